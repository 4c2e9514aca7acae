"""Turn the CSV of `mmccd evaluate` into the Markdown table of the README.

python examples/accuracy_table.py results.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from mmccd_cli.metrics import summarise

COLUMNS = (
    ("dice", "Dice", "{:.3f}"),
    ("precision", "precision", "{:.2f}"),
    ("recall", "recall", "{:.2f}"),
    ("hd95_mm", "HD95 mm", "{:.0f}"),
    ("auprc", "AUPRC", "{:.2f}"),
    ("false_positive_ml", "false positives ml", "{:.1f}"),
    ("seconds", "seconds", "{:.0f}"),
)


def accuracy_table(path: Path) -> str:
    """Return one Markdown row a method: mean of every column, Dice with SD and interval."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    header = ["method", "n", "Dice (SD)", "95 % interval", *(name for _, name, _ in COLUMNS[1:])]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        dice = summarise([float(row["dice"]) for row in own])
        cells = [
            method,
            str(dice.n),
            f"{dice.mean:.3f} ({dice.sd:.2f})",
            f"{dice.low:.2f}-{dice.high:.2f}",
        ]
        for column, _, form in COLUMNS[1:]:
            cells.append(form.format(summarise([float(row[column]) for row in own]).mean))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(accuracy_table(Path(sys.argv[1])))
