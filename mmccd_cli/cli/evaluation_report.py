"""Tables of an evaluation on the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmccd_cli.cli.console import Console

if TYPE_CHECKING:
    from rich.table import Table

    from mmccd_cli.anomaly.metrics import MetricSummary
    from mmccd_cli.evaluation.cases import CaseRow

COLUMNS = (
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
HEALTHY_COLUMNS = (
    ("false_positive_ml", "FP ml", "{:.2f}"),
    ("passes", "passes", "{:.0f}"),
    ("seconds", "s", "{:.1f}"),
)
WIDE = 190
NARROW = ("precision", "recall", "auprc", "false_positive_ml", "passes", "seconds")
"""What a narrower terminal shows; -v and the summary have the rest."""


def show_tables(rows: Sequence[CaseRow], console: Console, remarks: Sequence[str]) -> None:
    """Write one table a protocol to stdout, and with -v mean, SD and interval of every score."""
    from mmccd_cli.evaluation.tables import (
        CONVENTIONS,
        dice_above_unlearned,
        group_rows,
        summarise_group,
    )

    groups = {key: summarise_group(group) for key, group in group_rows(rows).items()}
    for protocol, healthy in dict.fromkeys((p, h) for p, _, h in groups):
        chosen = {m: s for (p, m, h), s in groups.items() if (p, h) == (protocol, healthy)}
        title = f"{protocol}{', healthy subjects' if healthy else ''}"
        _write(title, _overview(chosen, healthy), console)
        best, above = dice_above_unlearned(
            [row for row in rows if (row.protocol, row.healthy) == (protocol, healthy)]
        )
        if above and not healthy:
            heading = f"{protocol}: Dice above {best}, the best row that learns nothing, by subject"
            _write(heading, _advantages(above), console)
        if console.verbosity > 0:
            _write(f"{title}: every score", _details(chosen), console)
    for remark in remarks:
        console.info(remark)
    console.detail(CONVENTIONS)


def _overview(table: dict[str, dict[str, MetricSummary]], healthy: bool) -> Table:
    """One line a method: Dice with SD and interval, and the mean of everything else."""
    result = _new_table()
    result.add_column("method", no_wrap=True)
    result.add_column("n", justify="right")
    columns = list(HEALTHY_COLUMNS if healthy else COLUMNS)
    if _width() < WIDE:
        columns = [column for column in columns if column[0] in NARROW]
    if not healthy:
        for title in ("Dice", "SD", "95 % interval"):
            result.add_column(title, justify="right", no_wrap=True)
    for _, title, _ in columns:
        result.add_column(title, justify="right")
    for method, scores in table.items():
        dice = scores["dice"]
        cells = [method, str(scores["false_positive_ml"].n)]
        if not healthy:
            cells += [f"{dice.mean:.3f}", f"{dice.sd:.3f}", f"{dice.low:.3f}-{dice.high:.3f}"]
        cells += [_mean(scores[name], form) for name, _, form in columns]
        result.add_row(*cells)
    return result


def _advantages(above: dict[str, MetricSummary]) -> Table:
    """How far each learned row lies above the best one that learns nothing, paired by subject."""
    result = _new_table()
    result.add_column("method", no_wrap=True)
    for title in ("mean", "95 % interval", "n"):
        result.add_column(title, justify="right")
    for method, s in above.items():
        result.add_row(method, f"{s.mean:+.3f}", f"{s.low:+.3f} to {s.high:+.3f}", str(s.n))
    return result


def _details(table: dict[str, dict[str, MetricSummary]]) -> Table:
    """One line a method and score."""
    result = _new_table()
    for title in ("method", "score", "mean", "SD", "95 % interval", "n", "undefined"):
        result.add_column(title, justify="left" if title in ("method", "score") else "right")
    for method, scores in table.items():
        for name, s in scores.items():
            if s.n:
                interval = f"{s.low:.4g} to {s.high:.4g}"
                numbers = (f"{s.mean:.4g}", f"{s.sd:.4g}", interval, str(s.n), str(s.undefined))
                result.add_row(method, name, *numbers)
    return result


def _mean(summary: MetricSummary, form: str) -> str:
    return form.format(summary.mean) if summary.n else "-"


def _new_table() -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    return Table(box=SIMPLE, pad_edge=False)


def _write(title: str, table: Table, console: Console) -> None:
    from io import StringIO

    from rich.console import Console as RichConsole

    stream = StringIO()
    RichConsole(file=stream, width=max(100, _width()), color_system=None).print(table)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    console.result("\n".join([title, *(line for line in lines if line), ""]))


def _width() -> int:
    """Columns of the terminal; wide where there is none, so that nothing is cut."""
    return shutil.get_terminal_size((WIDE, 24)).columns
