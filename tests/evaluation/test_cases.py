"""Deployed evaluation: every subject counts, healthy ones by false positives only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from mmccd_cli.anomaly.metrics import CaseMetrics
from mmccd_cli.errors import DataError, MmccdError, StorageError, UsageError, WeightsError
from mmccd_cli.evaluation.cases import DEPLOYED, Case, Prediction, evaluate_cases, load_case
from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.inputs.subjects import Subject, find_subject
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.progress import silent

Write = Callable[..., Path]


@dataclass(frozen=True)
class Bright:
    """Marks what is brighter than a threshold."""

    name: str = "bright"
    weights: str = "none"
    seen: frozenset[str] = frozenset()

    def predict(self, case: Case) -> Iterator[Prediction]:
        data = case.grid.data
        yield Prediction(
            method="bright",
            score="bright",
            rule="450",
            mask=data > 450,
            values=data,
            brain=data > 0,
            spacing_mm=case.grid.spacing_mm,
            seconds=0.5,
            passes=7,
        )


@pytest.fixture
def subject(tmp_path: Path, write_subject: Write, tiny_phantom: Phantom) -> Subject:
    return find_subject(write_subject(tmp_path, tiny_phantom, id="one", lesion=True))


def test_a_labelled_subject_gets_every_score(subject: Subject, tiny_phantom: Phantom) -> None:
    seen: list[str] = []
    method = Bright(seen=frozenset({"one"}))
    ((row,),) = evaluate_cases(
        [(subject, False, [method])],
        inspect=lambda case, prediction, row: seen.append(f"{case.subject} {row.method}"),
    )
    assert (row.protocol, row.method, row.subject) == (DEPLOYED, "bright", "one")
    assert (row.healthy, row.seen, row.passes, row.seconds) == (False, True, 7, 0.5)
    assert row.scores.dice > 0.5
    assert row.scores.reference_ml == pytest.approx(tiny_phantom.lesion.sum() * 0.064)
    assert row.scores.false_positive_healthy_slices_ml <= row.scores.false_positive_ml
    assert seen == ["one bright"]


def test_a_healthy_subject_counts_for_false_positives_only(subject: Subject) -> None:
    healthy = replace(subject, segmentation=None)
    ((row,),) = evaluate_cases([(healthy, True, [Bright()])])
    assert row.healthy
    assert not row.seen
    wrong = row.scores.false_positive_ml
    assert wrong == row.scores.predicted_ml == row.scores.false_positive_healthy_slices_ml > 0
    known = {"false_positive_ml", "false_positive_healthy_slices_ml", "predicted_ml"}
    others = set(CaseMetrics.__dataclass_fields__) - known - {"reference_ml"}
    assert all(np.isnan(getattr(row.scores, name)) for name in others)


def test_nobody_is_left_out_silently(subject: Subject, tmp_path: Path) -> None:
    unlabelled = replace(subject, segmentation=None)
    with pytest.raises(DataError, match="no segmentation") as caught:
        list(evaluate_cases([(unlabelled, False, [Bright()])]))
    assert "--healthy" in str(caught.value.next_step)

    @dataclass(frozen=True)
    class Elsewhere(Bright):
        def predict(self, case: Case) -> Iterator[Prediction]:
            for prediction in super().predict(case):
                yield replace(prediction, mask=prediction.mask[:-1])

    with pytest.raises(DataError, match="grid"):
        list(evaluate_cases([(subject, False, [Elsewhere()])]))

    failed: list[str] = []
    bad, worse = replace(unlabelled, id="bad"), replace(subject, id="worse")
    cases = [
        (bad, False, [Bright()]),
        (worse, False, [Elsewhere(), Bright()]),
        (subject, False, [Bright()]),
    ]
    rows = list(evaluate_cases(cases, fail=lambda s, error: failed.append(f"{s.id}: {error}")))
    assert [[row.subject for row in of_one] for of_one in rows] == [[], ["worse"], ["one"]]
    assert [text.split(":")[0] for text in failed] == ["bad", "worse"]


@pytest.mark.parametrize("error", [StorageError("full"), WeightsError("lost"), UsageError("no")])
def test_what_concerns_all_subjects_stops(subject: Subject, error: MmccdError) -> None:
    @dataclass(frozen=True)
    class Broken(Bright):
        def predict(self, case: Case) -> Iterator[Prediction]:
            raise error

    with pytest.raises(type(error)):
        list(evaluate_cases([(subject, False, [Broken()])], fail=silent))


def test_what_methods_share_is_made_once_and_its_time_counts_for_each(subject: Subject) -> None:
    case = load_case(subject)
    made = []
    first = case.shared("brain", lambda: made.append(1))
    assert case.shared("brain", lambda: made.append(2)) == first
    assert made == [1]


def test_axial_axis_is_the_one_across_axial_slices() -> None:
    affine = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [-2, 0, 0, 0], [0, 0, 0, 1]], dtype=float)
    case = Case(
        subject="a",
        volumes={"FLAIR": Volume(np.zeros((3, 4, 5), dtype=np.float32), affine)},
        reference=None,
    )
    assert case.axial_axis == 0
