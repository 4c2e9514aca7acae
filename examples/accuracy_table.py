"""Turn CSVs of `mmccd evaluate` into the Markdown tables of the accuracy page, one a protocol.

python examples/accuracy_table.py results.csv [more.csv ...]
"""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

from mmccd_cli.anomaly.metrics import summarise

Row = dict[str, str]

COLUMNS = (
    ("jaccard", "Jaccard", "{:.2f}"),
    ("precision", "precision", "{:.2f}"),
    ("recall", "recall", "{:.2f}"),
    ("auroc", "AUROC", "{:.2f}"),
    ("auprc", "AUPRC", "{:.2f}"),
    ("assd_mm", "ASSD mm", "{:.1f}"),
    ("hd95_mm", "HD95 mm", "{:.0f}"),
    ("lesion_f1", "lesion F1", "{:.2f}"),
    ("false_positive_ml", "false positives ml", "{:.1f}"),
    ("false_positive_healthy_slices_ml", "on healthy slices ml", "{:.1f}"),
    ("passes", "passes", "{:.0f}"),
    ("seconds", "seconds", "{:.0f}"),
)
HEALTHY_COLUMNS = (
    ("false_positive_ml", "false positives ml", "{:.2f}"),
    ("passes", "passes", "{:.0f}"),
    ("seconds", "seconds", "{:.0f}"),
)


def accuracy_tables(paths: list[Path]) -> str:
    """Return a Markdown table for each protocol, and one for healthy subjects.

    Args:
        paths: CSVs; their rows are taken together.
    """
    rows: list[Row] = []
    for path in paths:
        with path.open(newline="") as file:
            rows += csv.DictReader(file)
    groups: dict[tuple[str, bool], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["protocol"], row["healthy"] == "1"), []).append(row)
    return "\n\n".join(
        _table(f"{protocol}{', healthy subjects' if healthy else ''}", group, healthy)
        for (protocol, healthy), group in groups.items()
    )


def _table(title: str, rows: list[Row], healthy: bool) -> str:
    """One Markdown row a method: mean of every column, Dice with SD and interval."""
    columns = HEALTHY_COLUMNS if healthy else COLUMNS
    dice = [] if healthy else ["Dice (SD)", "95 % interval"]
    header = ["method", "n", *dice, *(name for _, name, _ in columns)]
    lines = [f"*{title}*", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        subjects = {row["subject"] for row in own}
        if len(subjects) != len(own):
            raise SystemExit(f"{method}: a subject stands there twice; give every CSV once")
        cells = [method + _mark(own), str(len(own))]
        if not healthy:
            found = summarise([float(row["dice"]) for row in own])
            cells += [f"{found.mean:.3f} ({found.sd:.2f})", f"{found.low:.2f}-{found.high:.2f}"]
        cells += [_mean(own, column, form) for column, _, form in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mark(rows: list[Row]) -> str:
    """Say so where the weights or constants know some of the subjects."""
    seen = sum(row["seen"] == "1" for row in rows)
    return f" (trained on {seen} of them)" if seen else ""


def _mean(rows: list[Row], column: str, form: str) -> str:
    mean = summarise([float(row[column]) for row in rows]).mean
    return "-" if math.isnan(mean) else form.format(mean)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(accuracy_tables([Path(word) for word in sys.argv[1:]]))
