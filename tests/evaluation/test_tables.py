"""Rows on the way to CSV, summary, and the README's table."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from accuracy_table import accuracy_tables

from mmccd_cli.anomaly.metrics import measure_case, measure_healthy
from mmccd_cli.evaluation.cases import DEPLOYED, CaseRow
from mmccd_cli.evaluation.published_protocol import PUBLISHED
from mmccd_cli.evaluation.tables import (
    COLUMNS,
    dice_above_unlearned,
    group_rows,
    write_rows,
    write_summary,
)

ONE_MM = (1.0, 1.0, 1.0)


def make_rows() -> list[CaseRow]:
    """Two subjects and a healthy one by one method, and one subject by the other protocol."""
    mask = np.zeros((8, 8, 8), dtype=bool)
    mask[2:5, 2:5, 2:5] = True
    first = CaseRow(
        protocol=DEPLOYED,
        method="m (fixed)",
        rule="fixed 1",
        weights="w",
        subject="a",
        healthy=False,
        seen=False,
        passes=12,
        seconds=1.25,
        scores=measure_case(mask, mask, ONE_MM),
    )
    second = replace(first, subject="b", scores=measure_case(mask, ~mask, ONE_MM), seconds=2.75)
    healthy = replace(first, subject="c", healthy=True, scores=measure_healthy(mask, ONE_MM))
    oracle = replace(first, protocol=PUBLISHED, method="m", rule="ORACLE 2", seen=True)
    return [first, second, healthy, oracle]


def test_csv_has_every_score_of_every_case(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.csv", make_rows())
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["subject"] for row in rows] == ["a", "b", "c", "a"]
    assert (rows[0]["dice"], rows[1]["dice"], rows[2]["dice"]) == ("1", "0", "nan")
    assert rows[2]["false_positive_ml"] == "0.027"
    assert (rows[2]["healthy"], rows[3]["seen"], rows[3]["rule"]) == ("1", "1", "ORACLE 2")


def test_summary_keeps_protocols_and_healthy_subjects_apart(tmp_path: Path) -> None:
    assert [len(group) for group in group_rows(make_rows()).values()] == [2, 1, 1]
    write_summary(tmp_path / "s.json", make_rows(), {"constants": {"m": 1}})
    document = json.loads((tmp_path / "s.json").read_text())
    assert document["constants"] == {"m": 1}
    both, calm, oracle = document["table"]
    assert both["scores"]["dice"]["mean"] == 0.5
    assert both["scores"]["seconds"]["mean"] == 2.0
    assert both["scores"]["passes"]["n"] == 2
    assert "dice" not in calm["scores"]
    assert "ORACLE" in oracle["protocol"]
    assert (oracle["seen"], both["seen"]) == (1, 0)


def test_learned_rows_are_compared_with_the_best_that_learns_nothing() -> None:
    one, other, *_ = make_rows()  # Dice 1 and 0
    good, bad = one.scores, other.scores

    def rows(method: str, weights: str, *scores: object) -> list[CaseRow]:
        return [
            replace(one, method=method, weights=weights, subject=s, scores=score)
            for s, score in zip("ab", scores, strict=False)
        ]

    plain = [*rows("weak", "", bad, bad), *rows("strong", "", good, bad)]
    best, above = dice_above_unlearned([*plain, *rows("net", "w", good, good)], DEPLOYED)
    assert best == "strong"
    assert list(above) == ["net"]
    assert (above["net"].mean, above["net"].n) == (0.5, 2)
    assert dice_above_unlearned(rows("net", "w", good), DEPLOYED) == ("", {})


def test_readme_table_from_several_csvs(tmp_path: Path) -> None:
    rows = make_rows()
    write_rows(tmp_path / "one.csv", rows[:1])
    write_rows(tmp_path / "two.csv", rows[1:])
    text = accuracy_tables([tmp_path / "one.csv", tmp_path / "two.csv"])
    deployed, calm, oracle = text.split("\n\n*")
    assert "| m (fixed) | 2 | 0.500 (0.71) | 0.00-1.00 |" in deployed
    assert "Dice" not in calm
    assert "ORACLE" in oracle
    assert "| m (trained on 1 of them) | 1 | 1.000 " in oracle
    widths = {line.count("|") for line in deployed.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    with pytest.raises(SystemExit, match="twice"):
        accuracy_tables([tmp_path / "one.csv", tmp_path / "one.csv"])
