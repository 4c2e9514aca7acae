"""Folds and constants: nobody is scored by what has seen him."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mmccd_cli.errors import DataError, UsageError
from mmccd_cli.evaluation.baselines import SHIPPED_CONSTANTS
from mmccd_cli.evaluation.folds import (
    check_unseen,
    constants_by_fold,
    measure_curves,
    read_constants,
    read_folds,
    shipped_constants,
)
from mmccd_cli.evaluation.methods import IntensityScorer
from mmccd_cli.evaluation.thresholds import CURVE_THRESHOLDS, DiceCurve
from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.inputs.subjects import find_subject

FLAIR = IntensityScorer("flair-z")


def peak(at: float) -> DiceCurve:
    return DiceCurve(tuple(max(0.0, 1 - abs(t - at)) for t in CURVE_THRESHOLDS), 0.0)


def test_a_folds_constants_come_from_the_other_folds_only() -> None:
    curves = {"flair-z": {"a": peak(1.0), "b": peak(2.0), "c": peak(3.0)}}
    chosen = constants_by_fold(curves, {"x": ["a", "b"], "y": ["c"]})
    assert chosen["x"].values["flair-z"]["fixed"] == 3.0
    assert 1.0 <= chosen["y"].values["flair-z"]["fixed"] <= 2.0
    assert chosen["x"].subjects == {"c"}
    (method,) = chosen["x"].methods([FLAIR])
    assert method.seen == {"c"}
    with pytest.raises(UsageError, match="t2w-z"):
        chosen["x"].methods([IntensityScorer("t2w-z")])


def test_a_subject_is_measured_by_every_score_it_has_the_scans_for(
    tiny_phantom: Phantom, write_subject: Callable[..., Path], tmp_path: Path
) -> None:
    subject = find_subject(write_subject(tmp_path, tiny_phantom, id="a", lesion=True))
    alone = replace(subject, paths={"FLAIR": subject.paths["FLAIR"]})
    curves = measure_curves([alone], [FLAIR, IntensityScorer("t2w-z")])
    assert list(curves) == ["flair-z"]
    assert max(curves["flair-z"]["a"].dice) > 0.8
    with pytest.raises(DataError, match="no segmentation"):
        measure_curves([replace(alone, segmentation=None)], [FLAIR])


def test_shipped_constants_are_those_of_the_scorers() -> None:
    assert shipped_constants([FLAIR]).values == {"flair-z": SHIPPED_CONSTANTS["flair-z"]}


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"one": ["a"]}', '{"one": ["a"], "two": []}', '{"one": ["a"], "two": [1]}'],
)
def test_odd_folds_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "folds.json"
    path.write_text(content)
    with pytest.raises(DataError, match="folds"):
        read_folds(path)


def test_folds_are_relative_to_their_file_and_disjoint(tmp_path: Path) -> None:
    path = tmp_path / "folds.json"
    path.write_text(json.dumps({"one": ["a"], "/abs/two": ["b"]}))
    assert read_folds(path) == {str(tmp_path / "one"): ["a"], "/abs/two": ["b"]}
    path.write_text(json.dumps({"one": ["a", "b"], "two": ["b"]}))
    with pytest.raises(DataError, match="b in"):
        read_folds(path)
    with pytest.raises(DataError, match="calibrated on b"):
        check_unseen("one", ["a", "b"], frozenset({"b", "c"}))


@pytest.mark.parametrize("content", ["{", "[]", '{"constants": {"m": {"fixed": 1}}}'])
def test_odd_constants_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(DataError, match="constants"):
        read_constants(path, [])


def test_scores_that_an_earlier_run_did_not_have_use_their_own_constants(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    numbers = {"fixed": 1.25, "adaptive": 0.5}
    earlier = {
        "constants": {"t2w-z": numbers},
        "constants_source": "there",
        "constants_subjects": ["a"],
    }
    path.write_text(json.dumps(earlier))
    chosen = read_constants(path, [FLAIR, IntensityScorer("t2w-z")])
    assert chosen.values == {"t2w-z": numbers, "flair-z": SHIPPED_CONSTANTS["flair-z"]}
    assert chosen.subjects == {"a"}
    assert "there" in chosen.source
    assert "flair-z: their own" in chosen.source
