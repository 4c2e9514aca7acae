"""Whole evaluations from Python, without any command."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mmccd_cli.evaluation.plan import (
    ComparedMethods,
    EvaluationSubjects,
    plan_evaluation,
    run_evaluation,
)
from mmccd_cli.inputs.phantom import Phantom


def test_thresholds_are_compared_without_loading_weights(
    tiny_phantom: Phantom, write_subject: Callable[..., Path], tmp_path: Path
) -> None:
    for name in "ab":
        write_subject(tmp_path / "data", tiny_phantom, id=name, lesion=True)
    (tmp_path / "split.json").write_text(json.dumps({"train": ["a"], "val": ["b"]}))
    subjects = EvaluationSubjects(
        data_dir=tmp_path / "data",
        split_file=tmp_path / "split.json",
        healthy_dir=tmp_path / "data",
    )
    compared = ComparedMethods(load=lambda method, weights: pytest.fail("loaded"), methods=[])
    steps: list[tuple[str, int, int]] = []
    plan = plan_evaluation(
        subjects, compared, constants_from="train", report=lambda *step: steps.append(step)
    )
    assert plan.about["constants_subjects"] == ["a"]
    planned = [(subject.id, healthy) for subject, healthy, _ in plan.cases]
    assert planned == [("b", False), ("a", True), ("b", True)]
    assert plan.seen() == {}
    out = tmp_path / "rows.csv"
    result = run_evaluation(plan, out=out, report=lambda *step: steps.append(step))
    assert steps == [("choosing thresholds", 1, 1), *(("evaluating", n, 3) for n in (1, 2, 3))]
    rows = 2 * len(plan.about["constants"]) + 1
    assert len(result.rows) == 3 * rows
    assert [row.seen for row in result.rows] == rows * [False] + rows * [True] + rows * [False]
    with out.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * rows
    assert "holes filled" in json.loads((tmp_path / "rows.summary.json").read_text())["cleaning"]
