"""Rows of an evaluation: one line a case as CSV, a summary with intervals as JSON, and tables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mmccd_cli import __version__
from mmccd_cli.anomaly.metrics import CaseMetrics, MetricSummary, summarise, summarise_cases
from mmccd_cli.evaluation.cases import CaseRow
from mmccd_cli.files import write_atomically

METRICS = tuple(field.name for field in fields(CaseMetrics))
COLUMNS = (
    *(field.name for field in fields(CaseRow) if field.name != "scores"),
    *METRICS,
)
CONVENTIONS = (
    "Both masks empty: overlaps 1, distances 0. One of them empty: overlaps 0, distances the "
    "diagonal of the volume. AUROC and AUPRC are computed inside the brain and need both classes; "
    "without, they are left out of the mean and counted as undefined. Healthy subjects count for "
    "false positives only. A lesion is a 26-connected component, found when a tenth of it is "
    "covered. Intervals: percentile bootstrap of the mean over subjects, 95 %, 10 000 resamples."
)
"""How the numbers are to be read; part of every summary."""
SHOWN = (
    ("jaccard", "Jaccard", "{:.3f}"),
    ("precision", "prec.", "{:.2f}"),
    ("recall", "recall", "{:.2f}"),
    ("auroc", "AUROC", "{:.3f}"),
    ("auprc", "AUPRC", "{:.3f}"),
    ("assd_mm", "ASSD mm", "{:.1f}"),
    ("hd95_mm", "HD95 mm", "{:.1f}"),
    ("lesion_f1", "lesion F1", "{:.2f}"),
    ("false_positive_ml", "FP ml", "{:.1f}"),
    ("false_positive_healthy_slices_ml", "FP ml healthy slices", "{:.1f}"),
    ("passes", "passes", "{:.0f}"),
    ("seconds", "s", "{:.1f}"),
)
SHOWN_OF_HEALTHY = (("false_positive_ml", "FP ml", "{:.2f}"), *SHOWN[-2:])
"""Score, heading and format of the columns of a table."""
DETECTION = (
    ("min_confidence", "asked"),
    ("sensitivity", "found"),
    ("precision", "right"),
    ("f1", "F1"),
    ("false_positives_per_scan", "FP a scan"),
    ("sensitivity_at_1_fp", "found at 1 FP"),
    ("sensitivity_at_2_fp", "at 2"),
    ("sensitivity_at_4_fp", "at 4"),
)
"""Number and heading of the table of lesions; the first ones at the confidence of the masks."""
WIDE = 190
SHOWN_IF_NARROW = ("precision", "recall", "auprc", "false_positive_ml", "passes", "seconds")
"""What a terminal under `WIDE` columns shows; the summary has the rest."""

Group = dict[str, MetricSummary]
"""Score -> its summary, of one row of a table."""


def summary_path(out: Path) -> Path:
    """Where the summary of a CSV is written."""
    return out.with_suffix(".summary.json")


def write_rows(path: Path, rows: Sequence[CaseRow]) -> None:
    """Write one line a protocol, method and subject as CSV, all or nothing."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values: dict[str, Any] = asdict(row)
        scores = values.pop("scores")
        values["healthy"], values["seen"] = int(row.healthy), int(row.seen)
        values["seconds"] = f"{row.seconds:.2f}"
        writer.writerow({**values, **{name: f"{value:.6g}" for name, value in scores.items()}})
    write_atomically(path, stream.getvalue().encode())


def group_rows(rows: Sequence[CaseRow]) -> dict[tuple[str, str, bool], list[CaseRow]]:
    """Group rows by protocol, method and whether healthy, in the order in which they came."""
    groups: dict[tuple[str, str, bool], list[CaseRow]] = {}
    for row in rows:
        groups.setdefault((row.protocol, row.method, row.healthy), []).append(row)
    return groups


def summarise_group(rows: Sequence[CaseRow]) -> Group:
    """Summarise every score, the passes and the seconds of one row of the table."""
    return {
        **summarise_cases([row.scores for row in rows]),
        "passes": summarise([float(row.passes) for row in rows]),
        "seconds": summarise([row.seconds for row in rows]),
    }


def dice_above_unlearned(
    rows: Sequence[CaseRow], protocol: str
) -> tuple[str, dict[str, MetricSummary]]:
    """Compare every learned row of one protocol with the best one that learns nothing.

    The best is chosen by the very rows that are compared, which is in its favour.

    Returns:
        The best row's name, and the difference of Dice of each learned row on the subjects of
        both; nothing where there is no such row.
    """
    learned: dict[str, dict[str, float]] = {}
    plain: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.protocol == protocol and not row.healthy:
            own = (learned if row.weights else plain).setdefault(row.method, {})
            own[row.subject] = row.scores.dice
    if not plain:
        return "", {}
    best = max(plain, key=lambda m: summarise(list(plain[m].values())).mean)
    return best, {
        m: summarise([dice[s] - plain[best][s] for s in dice if s in plain[best]])
        for m, dice in learned.items()
    }


def write_summary(path: Path, rows: Sequence[CaseRow], about: dict[str, Any]) -> None:
    """Write as JSON what `describe_rows` returns."""
    document = describe_rows(rows, about)
    write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())


def describe_rows(rows: Sequence[CaseRow], about: dict[str, Any]) -> dict[str, Any]:
    """Return mean, SD, interval and number of subjects of every score of every method.

    `about` is what else a reader must know: constants, cleaning, weights.
    """
    table = [
        {
            "protocol": protocol,
            "method": method,
            "healthy": healthy,
            "rules": sorted({row.rule for row in group}),
            "weights": sorted({row.weights for row in group}),
            "subjects": len(group),
            "seen": sum(row.seen for row in group),
            "scores": {
                name: _plain(summary)
                for name, summary in summarise_group(group).items()
                if summary.n
            },
        }
        for (protocol, method, healthy), group in group_rows(rows).items()
    ]
    above = {}
    for protocol in dict.fromkeys(row.protocol for row in rows):
        best, differences = dice_above_unlearned(rows, protocol)
        above[protocol] = {"best": best, **{m: _plain(s) for m, s in differences.items()}}
    about = {**about, "dice_above_best_unlearned": above}
    return {"mmccd": __version__, "conventions": CONVENTIONS, **about, "table": table}


def _plain(summary: MetricSummary) -> dict[str, float]:
    return {
        name: round(value, 5) if isinstance(value, float) else value
        for name, value in asdict(summary).items()
    }


def text_tables(rows: Sequence[CaseRow], *, width: int, details: bool = False) -> Iterator[str]:
    """Lay rows out for people: a table a protocol, and what learning gained over intensities.

    Args:
        rows: All rows.
        width: Characters of a line; under `WIDE` there are fewer columns.
        details: Whether mean, SD and interval of every score follow.

    Yields:
        One table after the other, each with its title.
    """
    groups = {key: summarise_group(group) for key, group in group_rows(rows).items()}
    for protocol, healthy in dict.fromkeys((p, h) for p, _, h in groups):
        chosen = {m: s for (p, m, h), s in groups.items() if (p, h) == (protocol, healthy)}
        title = f"{protocol}{', healthy subjects' if healthy else ''}"
        yield text_table(title, *_overview(chosen, healthy, narrow=width < WIDE), width=width)
        best, above = ("", {}) if healthy else dice_above_unlearned(rows, protocol)
        if above:
            heading = f"{protocol}: Dice above {best}, the best row that learns nothing, by subject"
            cells = [
                [method, f"{s.mean:+.3f}", f"{s.low:+.3f} to {s.high:+.3f}", str(s.n)]
                for method, s in above.items()
            ]
            yield text_table(heading, ["method", "mean", "95 % interval", "n"], cells, width=width)
        if details:
            yield text_table(f"{title}: every score", *_details(chosen), width=width, left=2)


def free_response_table(curves: Sequence[Mapping[str, Any]], *, width: int) -> str:
    """Lay out what lesions are found, at how many false positives a scan, by a summary's curves."""
    cells = [
        [
            curve["method"] + (", healthy" if curve["healthy"] else ""),
            *(str(curve[name]) for name in ("scans", "lesions")),
            *("-" if curve.get(n) is None else f"{curve[n]:.2f}" for n, _ in DETECTION),
        ]
        for curve in curves
    ]
    header = ["method", "scans", "lesions", *(heading for _, heading in DETECTION)]
    return text_table("lesions found, by confidence", header, cells, width=width)


def text_table(
    title: str,
    header: Sequence[str],
    cells: Sequence[Sequence[str]],
    *,
    width: int = 100,
    left: int = 1,
) -> str:
    """Align cells under their header: the first `left` columns to the left, others to the right."""
    table = Table(box=SIMPLE, pad_edge=False)
    for number, name in enumerate(header):
        short = number == 0 or name in ("Dice", "SD", "95 % interval")
        table.add_column(name, justify="left" if number < left else "right", no_wrap=short)
    for row in cells:
        table.add_row(*row)
    stream = io.StringIO()
    Console(file=stream, width=max(100, width), color_system=None).print(table)
    lines = (line.rstrip() for line in stream.getvalue().splitlines())
    return "\n".join([title, *filter(None, lines), ""])


def _overview(
    table: dict[str, Group], healthy: bool, *, narrow: bool
) -> tuple[list[str], list[list[str]]]:
    """One line a method: Dice with SD and interval, and the mean of everything else."""
    columns = [
        column
        for column in (SHOWN_OF_HEALTHY if healthy else SHOWN)
        if column[0] in SHOWN_IF_NARROW or not narrow
    ]
    dice = [] if healthy else ["Dice", "SD", "95 % interval"]
    cells = []
    for method, scores in table.items():
        line = [method, str(scores["false_positive_ml"].n)]
        if not healthy:
            s = scores["dice"]
            line += [f"{s.mean:.3f}", f"{s.sd:.3f}", f"{s.low:.3f}-{s.high:.3f}"]
        means = ((scores[name], form) for name, _, form in columns)
        line += [form.format(s.mean) if s.n else "-" for s, form in means]
        cells.append(line)
    return ["method", "n", *dice, *(name for _, name, _ in columns)], cells


def _details(table: dict[str, Group]) -> tuple[list[str], list[list[str]]]:
    """One line a method and score."""
    header = ["method", "score", "mean", "SD", "95 % interval", "n", "undefined"]
    cells = []
    for method, scores in table.items():
        for name, s in scores.items():
            if s.n:
                numbers = [f"{s.mean:.4g}", f"{s.sd:.4g}", f"{s.low:.4g} to {s.high:.4g}"]
                cells.append([method, name, *numbers, str(s.n), str(s.undefined)])
    return header, cells
