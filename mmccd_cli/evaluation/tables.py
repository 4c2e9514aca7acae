"""Rows of an evaluation as files: one line a case as CSV, and a summary with intervals as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

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


def summarise_group(rows: Sequence[CaseRow]) -> dict[str, MetricSummary]:
    """Summarise every score, the passes and the seconds of one row of the table."""
    return {
        **summarise_cases([row.scores for row in rows]),
        "passes": summarise([float(row.passes) for row in rows]),
        "seconds": summarise([row.seconds for row in rows]),
    }


def dice_above_unlearned(rows: Sequence[CaseRow]) -> tuple[str, dict[str, MetricSummary]]:
    """Compare every learned row of one protocol with the best one that learns nothing.

    The best is chosen by the very rows that are compared, which is in its favour.

    Args:
        rows: Rows of labelled subjects by one protocol.

    Returns:
        The best row's name, and the difference of Dice of each learned row on the subjects of
        both; nothing where there is no such row.
    """
    by_method: dict[str, dict[str, float]] = {}
    for row in rows:
        by_method.setdefault(row.method, {})[row.subject] = row.scores.dice
    learned = {row.method for row in rows if row.weights}
    plain = {m: dice for m, dice in by_method.items() if m not in learned}
    if not plain:
        return "", {}
    best = max(plain, key=lambda m: summarise(list(plain[m].values())).mean)
    return best, {
        m: summarise([dice[s] - plain[best][s] for s in dice if s in plain[best]])
        for m, dice in by_method.items()
        if m in learned
    }


def write_summary(path: Path, rows: Sequence[CaseRow], about: dict[str, Any]) -> None:
    """Write mean, SD, interval and number of subjects of every score of every method as JSON.

    Args:
        path: Where to write.
        rows: All rows.
        about: What else a reader must know: constants, cleaning, weights.
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
        chosen = [row for row in rows if row.protocol == protocol and not row.healthy]
        best, differences = dice_above_unlearned(chosen)
        above[protocol] = {"best": best, **{m: _plain(s) for m, s in differences.items()}}
    about = {**about, "dice_above_best_unlearned": above}
    document = {"mmccd": __version__, "conventions": CONVENTIONS, **about, "table": table}
    write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())


def _plain(summary: MetricSummary) -> dict[str, float]:
    return {
        name: round(value, 5) if isinstance(value, float) else value
        for name, value in asdict(summary).items()
    }
