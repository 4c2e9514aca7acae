"""The published protocol: which slice, which threshold, and that it is called an oracle."""

from __future__ import annotations

import numpy as np
import pytest

from mmccd_cli.anomaly.metrics import measure_healthy
from mmccd_cli.errors import DataError
from mmccd_cli.evaluation.cases import DEPLOYED, Case, CaseRow, Prediction
from mmccd_cli.evaluation.published_protocol import PUBLISHED, PublishedProtocol, most_tumour
from mmccd_cli.inputs.volume import Volume, reorient

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def make_case(subject: str, sizes: dict[int, int], *, healthy: bool = False) -> Case:
    """A subject on the BraTS grid with a square of tumour of a given size on some levels."""
    reference = np.zeros((240, 240, 155), dtype=bool)
    for level, size in sizes.items():
        reference[100 : 100 + size, 100 : 100 + size, level] = True
    image = Volume(np.zeros(reference.shape, dtype=np.float32), LPS)
    return Case(subject=subject, volumes={"FLAIR": image}, reference=None if healthy else reference)


def predict(
    case: Case, values: np.ndarray, method: str = "m (fixed)"
) -> tuple[Prediction, CaseRow]:
    brain = np.zeros(values.shape, dtype=bool)
    brain[20:220, 20:220] = True
    empty = np.zeros(values.shape, dtype=bool)
    spacing = (1.0, 1.0, 1.0)
    shared = {"method": method, "rule": "fixed 1", "seconds": 1.5, "passes": 20}
    prediction = Prediction(
        score="m", mask=empty, values=values, brain=brain, spacing_mm=spacing, **shared
    )
    row = CaseRow(
        protocol=DEPLOYED,
        weights="",
        subject=case.subject,
        healthy=False,
        seen=False,
        scores=measure_healthy(empty, spacing),
        **shared,
    )
    return prediction, row


def test_the_slice_with_most_tumour_lies_within_the_levels() -> None:
    assert most_tumour(make_case("a", {60: 30, 72: 5, 80: 9, 89: 8, 90: 20})) == 80
    assert most_tumour(make_case("a", {70: 5, 89: 5})) == 70
    assert most_tumour(make_case("a", {69: 9, 90: 9})) is None


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAR"])
def test_levels_are_counted_from_the_lowest_in_any_orientation(codes: str) -> None:
    case = make_case("a", {75: 9, 85: 4, 155 - 1 - 85: 30})
    assert case.reference is not None
    turned = reorient(Volume(case.reference.astype(np.float32), LPS), codes)
    other = Case(subject="a", volumes={"FLAIR": turned}, reference=turned.data > 0)
    expected = 75 if "S" in codes else 154 - 75
    assert most_tumour(other) == expected


@pytest.mark.parametrize(
    ("shape", "spacing"), [((182, 218, 182), 1.0), ((240, 240, 155), 2.0), ((155, 240, 240), 1.0)]
)
def test_other_grids_are_refused(shape: tuple[int, int, int], spacing: float) -> None:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    volume = Volume(np.zeros(shape, dtype=np.float32), affine)
    case = Case(subject="odd", volumes={"FLAIR": volume}, reference=np.ones(shape, dtype=bool))
    with pytest.raises(DataError, match="odd") as caught:
        most_tumour(case)
    assert "deployed" in str(caught.value.next_step)


def test_one_threshold_for_the_whole_set_and_named_an_oracle() -> None:
    protocol = PublishedProtocol()
    for subject, contrast in (("a", 2.0), ("b", 4.0)):
        case = make_case(subject, {80: 40})
        assert case.reference is not None
        values = np.random.default_rng(0).random(case.reference.shape).astype(np.float32)
        values += np.float32(contrast) * case.reference
        protocol(case, *predict(case, values))
        protocol(case, *predict(case, values, "m (adaptive)"))  # the same map once more
    rows = protocol.rows()
    assert [row.subject for row in rows] == ["a", "b"]
    assert {row.protocol for row in rows} == {PUBLISHED}
    assert "ORACLE" in PUBLISHED
    assert len({row.rule for row in rows}) == 1
    assert rows[0].rule.startswith("ORACLE")
    assert all(row.scores.dice > 0.99 and row.scores.auroc == 1.0 for row in rows)
    assert all(row.scores.reference_ml == pytest.approx(1.6) for row in rows)
    assert (rows[0].passes, rows[0].seconds, rows[0].method) == (20, 1.5, "m")


def test_tumour_outside_the_brain_counts_as_missed() -> None:
    protocol = PublishedProtocol()
    case = make_case("a", {80: 40})
    assert case.reference is not None
    values = case.reference.astype(np.float32)
    prediction, row = predict(case, values)
    prediction.brain[:, :120] = False
    protocol(case, prediction, row)
    (only,) = protocol.rows()
    assert only.scores.recall == pytest.approx(0.5)
    assert only.scores.precision == 1.0


def test_healthy_subjects_and_slices_without_tumour_are_left_out_and_named() -> None:
    protocol = PublishedProtocol()
    for case in (make_case("healthy", {}, healthy=True), make_case("low", {20: 9})):
        protocol(case, *predict(case, np.zeros((240, 240, 155), dtype=np.float32)))
    assert protocol.rows() == []
    assert protocol.without_tumour == {"low"}
