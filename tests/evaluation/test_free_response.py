"""The free-response curve counts lesions and candidates as its definition says."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from accuracy_by_kind import table_by_kind

from mmccd_cli.anomaly.metrics import CaseMetrics, lesion_overlap
from mmccd_cli.evaluation.cases import Candidates, Case, CaseRow, Prediction
from mmccd_cli.evaluation.free_response import (
    Detections,
    FreeResponse,
    detect,
    free_response,
    operating_point,
    sensitivity_at,
    write_curves,
)
from mmccd_cli.evaluation.free_response_picture import draw_curves
from mmccd_cli.evaluation.tables import write_rows, write_summary
from mmccd_cli.inputs.volume import Volume

SHAPE = (40, 12, 4)


@dataclass
class Scan:
    """Boxes along the first axis: those of the reference, and candidates with their confidence."""

    lesions: list[tuple[int, int]]
    candidates: list[tuple[int, int, float]]

    @property
    def reference(self) -> np.ndarray:
        found = np.zeros(SHAPE, bool)
        for start, stop in self.lesions:
            found[start:stop, 2:4, 1:3] = True
        return found

    @property
    def labels(self) -> np.ndarray:
        labels = np.zeros(SHAPE, np.uint16)
        for number, (start, stop, _) in enumerate(self.candidates, start=1):
            labels[start:stop, 2:4, 1:3] = number
        return labels

    @property
    def confidence(self) -> np.ndarray:
        return np.array([confidence for *_, confidence in self.candidates])

    def detect(self, voxel_mm3: float = 1.0) -> Detections:
        return detect(self.labels, self.confidence, self.reference, voxel_mm3=voxel_mm3)


SCAN = Scan(
    lesions=[(0, 10), (12, 22), (30, 34)],
    candidates=[(0, 1, 0.9), (12, 16, 0.4), (17, 20, 0.6), (24, 28, 0.7), (36, 38, 0.2)],
)


def test_a_lesion_is_found_by_the_surest_candidates_that_cover_a_tenth_of_it() -> None:
    found = SCAN.detect()
    np.testing.assert_array_equal(found.found_at, [0.9, 0.6, np.nan])
    np.testing.assert_array_equal(found.right_at, [0.9, 0.4, 0.6])
    np.testing.assert_array_equal(found.false_at, [0.7, 0.2])


def test_several_candidates_find_a_lesion_together_and_at_the_lowest_of_their_confidences() -> None:
    thin = Scan(lesions=[(0, 30)], candidates=[(0, 2, 0.9), (4, 5, 0.8), (6, 8, 0.3)])
    np.testing.assert_array_equal(thin.detect().found_at, [0.8])
    too_thin = Scan(lesions=[(0, 30)], candidates=[(0, 2, 0.9)])
    assert np.isnan(too_thin.detect().found_at).all()


def test_to_touch_a_lesion_by_less_than_a_tenth_is_a_false_positive() -> None:
    leak = Scan(lesions=[(0, 10)], candidates=[(9, 30, 0.8)])
    assert leak.detect().false_at.tolist() == [0.8]
    assert leak.detect().found_at.tolist() == [0.8]  # it covers a tenth


def test_specks_under_three_cubic_millimetres_are_counted_on_neither_side() -> None:
    specks = Scan(lesions=[(0, 1), (4, 10)], candidates=[(4, 6, 0.5), (20, 21, 0.5)])
    assert len(specks.detect(1.0).found_at) == 2
    assert len(specks.detect(1.0).false_at) == 1
    assert specks.detect(0.5).found_at.tolist() == [0.5]
    assert len(specks.detect(0.5).false_at) == 0


def test_the_points_are_those_of_the_masks_that_each_confidence_gives() -> None:
    found = SCAN.detect()
    for least in (0.95, 0.65, 0.5, 0.3, 0.0):
        kept = np.concatenate([[False], SCAN.confidence >= least])[SCAN.labels]
        point, truth = operating_point(found, least), SCAN.reference
        counted = lesion_overlap(kept, truth, (1, 1, 1))
        assert point.sensitivity == pytest.approx(counted.sensitivity)
        assert point.f1 == pytest.approx(counted.f1)
        if counted.predicted_lesions:
            assert point.precision == pytest.approx(counted.precision)


def test_the_curve_starts_with_nothing_and_ends_with_everything() -> None:
    points = free_response(SCAN.detect())
    levels = [point.min_confidence for point in points]
    assert levels == sorted(levels, reverse=True)
    assert (levels[0], levels[-1]) == (1.0, 0.0)
    assert (points[0].sensitivity, points[0].false_positives_per_scan) == (0.0, 0.0)
    assert points[-1].sensitivity == pytest.approx(2 / 3)
    assert points[-1].false_positives_per_scan == 2.0
    assert sensitivity_at(points, 0.5) == pytest.approx(1 / 3)
    assert sensitivity_at(points, 1) == pytest.approx(2 / 3)


def test_lesions_are_pooled_and_false_positives_are_shared_among_scans() -> None:
    empty = Scan(lesions=[(0, 10)], candidates=[])
    both = Detections.pooled([SCAN.detect(), empty.detect()])
    point = operating_point(both, 0.0)
    assert (point.lesions, point.scans) == (4, 2)
    assert point.sensitivity == pytest.approx(2 / 4)
    assert point.false_positives_per_scan == 1.0


def test_a_healthy_scan_has_false_positives_and_no_sensitivity() -> None:
    found = detect(SCAN.labels, SCAN.confidence, None, voxel_mm3=1.0)
    point = operating_point(found, 0.5)
    assert point.false_positives_per_scan == 3
    assert math.isnan(point.sensitivity)
    assert math.isnan(point.f1)


def observed(
    response: FreeResponse, scan: Scan, *, healthy: bool = False, **changes: Any
) -> CaseRow:
    volume = Volume(np.zeros(SHAPE, np.float32), np.eye(4))
    case = Case(
        subject="a", volumes={"FLAIR": volume}, reference=None if healthy else scan.reference
    )
    candidates = Candidates(
        labels=scan.labels, confidence=scan.confidence, min_confidence=0.5, modalities=("FLAIR",)
    )
    prediction = Prediction(
        method="ours",
        score="ours",
        rule="",
        mask=scan.labels > 0,
        values=volume.data,
        brain=scan.labels > 0,
        spacing_mm=(1, 1, 1),
        seconds=0.0,
        passes=0,
        candidates=candidates,
    )
    scores = CaseMetrics(
        **dict.fromkeys(CaseMetrics.__dataclass_fields__, 0.5)
        | {"predicted_ml": 2.0, "reference_ml": 3.0}
    )
    row = CaseRow(
        protocol="deployed",
        method="ours",
        rule="",
        weights="",
        subject="a",
        healthy=healthy,
        seen=False,
        passes=0,
        seconds=0.0,
        scores=scores,
    )
    response(case, replace(prediction, **changes), row)
    return row


def test_the_table_has_a_line_a_point_and_healthy_scans_apart(tmp_path: Path) -> None:
    response = FreeResponse()
    observed(response, SCAN)
    observed(response, SCAN, healthy=True)
    observed(response, SCAN, candidates=None)  # does not know how sure it is
    curves = list(response.curves())
    about = {curve.healthy: curve.describe() for curve in curves}
    assert about[False]["min_confidence"] == 0.5
    assert about[False]["sensitivity"] == pytest.approx(2 / 3, abs=1e-5)
    assert about[False]["sensitivity_at_1_fp"] == pytest.approx(2 / 3, abs=1e-5)
    assert (about[True]["sensitivity"], about[True]["false_positives_per_scan"]) == (None, 3.0)
    write_curves(tmp_path / "a.froc.tsv", curves)
    with (tmp_path / "a.froc.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert {row["method"] for row in rows} == {"ours"}
    assert {row["modalities"] for row in rows} == {"FLAIR"}
    assert [row["min_confidence"] for row in rows if row["healthy"] == "1"][-1] == "0"
    assert {row["sensitivity"] for row in rows if row["healthy"] == "1"} == {"n/a"}


def test_the_picture_steps_up_and_to_the_right() -> None:
    response = FreeResponse()
    observed(response, SCAN)
    observed(response, SCAN, healthy=True)
    svg = ElementTree.fromstring(draw_curves(list(response.curves())))
    (path,) = [e.get("d", "") for e in svg.iter() if e.get("stroke-width") == "2"]
    right = [float(x) for x in re.findall(r"[MH]([\d.]+)", path)]
    down = [float(y) for y in re.findall(r"(?:V|M[\d.]+ )([\d.]+)", path)]
    assert right == sorted(right)
    assert down == sorted(down, reverse=True)
    (dot,) = [e for e in svg.iter() if e.tag.endswith("circle")]
    assert float(dot.get("cx", "")) == pytest.approx(48 + 420 / 8)  # one false positive
    assert float(dot.get("cy", "")) == pytest.approx(16 + 300 / 3, abs=0.1)  # two thirds found


def test_runs_on_several_kinds_of_lesions_become_one_table(tmp_path: Path) -> None:
    response, rows = FreeResponse(), []
    for healthy in (False, True):
        rows.append(observed(response, SCAN, healthy=healthy))
    about = {"free_response": [curve.describe() for curve in response.curves()]}
    write_rows(tmp_path / "a.csv", rows)
    write_summary(tmp_path / "a.summary.json", rows, about)
    sick, well = table_by_kind({"MS": tmp_path / "a.csv"}).splitlines()[2:]
    assert sick == "| MS | FLAIR | 1 | 0.50 | 3 | 0.67 | 1.0 | 1.5 | 2.0 | 3.0 |"
    assert well == "| MS | FLAIR | 1 | - | - | - | 3.0 | - | 2.0 | - |"
