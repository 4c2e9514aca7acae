"""One Markdown table of several runs of `mmccd evaluate`, each on lesions of another kind.

python examples/accuracy_by_kind.py "glioma=val.csv" "MS=ms.csv" ...

Each CSV needs its summary beside it. Recall and false positives count lesions, see
`mmccd_cli.evaluation.free_response`; volumes are sums over the subjects.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from mmccd_cli.anomaly.metrics import summarise

HEADER = (
    *("kind", "scans", "n", "Dice", "lesions", "found", "false positives a scan"),
    *("ml right", "marked", "true"),
)


def table_by_kind(runs: dict[str, Path]) -> str:
    """Return the table.

    Args:
        runs: Kind of lesion -> CSV of `mmccd evaluate`. Healthy subjects, or those without
            references, of a run have rows of their own.
    """
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    for kind, path in runs.items():
        for cells in _lines(path):
            lines.append("| " + " | ".join([kind, *cells]) + " |")
    return "\n".join(lines)


def _lines(path: Path) -> Iterator[list[str]]:
    """The cells of one run after the first, a method at a time."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["protocol"] == "deployed"]
    summary = json.loads(path.with_suffix(".summary.json").read_text())
    for curve in summary["free_response"]:
        key = (curve["method"], str(int(curve["healthy"])))
        own = [row for row in rows if (row["method"], row["healthy"]) == key]
        marked, wrong, true = (
            sum(float(row[name]) for row in own)
            for name in ("predicted_ml", "false_positive_ml", "reference_ml")
        )
        told = ["-", "-", "-"]
        if not curve["healthy"]:
            dice = summarise([float(row["dice"]) for row in own]).mean
            told = [f"{dice:.2f}", str(curve["lesions"]), f"{curve['sensitivity']:.2f}"]
        volumes = ["-" if curve["healthy"] else f"{marked - wrong:.1f}", f"{marked:.1f}"]
        wrong_a_scan = f"{curve['false_positives_per_scan']:.1f}"
        true_ml = "-" if curve["healthy"] else f"{true:.1f}"
        yield [curve["modalities"], str(len(own)), *told, wrong_a_scan, *volumes, true_ml]


if __name__ == "__main__":
    if len(sys.argv) < 2 or not all("=" in word for word in sys.argv[1:]):
        sys.exit(__doc__)
    named = (word.split("=", 1) for word in sys.argv[1:])
    print(table_by_kind({kind: Path(path) for kind, path in named}))
