"""The masks at other thresholds: those that `mmccd threshold` makes, each in full."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from report_cases import Case

from mmccd_cli.anomaly.mask import MaskOptions, mask_and_lesions
from mmccd_cli.outputs.record import jsonable
from mmccd_cli.outputs.remask import score_of_record
from mmccd_cli.outputs.report.data import ReportData, report_data
from mmccd_cli.outputs.report.thresholds import Sweep, sweep_thresholds
from mmccd_cli.template import voxel_volume_mm3


@pytest.fixture(scope="module")
def data(case: Case) -> ReportData:
    return report_data(case.result, case.volumes, case.template)


def masks_of(sweep: Sweep) -> list[np.ndarray]:
    found = np.array(sweep.patterns)[sweep.codes]
    return [(found >> number) & 1 > 0 for number in range(len(sweep.steps))]


def asked(case: Case, **options: Any) -> dict[str, Any]:
    """The record, had this been asked for."""
    record: dict[str, Any] = jsonable(case.record)
    return {**record, "settings": {**record["settings"], "requested": options}}


@pytest.mark.parametrize("options", [{}, {"min_lesion_mm3": 3000.0}])
def test_each_is_the_mask_of_the_whole_map(case: Case, data: ReportData, options: dict[str, float]):
    record, result = asked(case, **options), case.result
    sweep = sweep_thresholds(data, record)
    volumes = []
    for number, (step, mask) in enumerate(zip(sweep.steps, masks_of(sweep), strict=True)):
        if number == sweep.own:
            continue
        wanted = MaskOptions(threshold=step.threshold, **options)
        scan_threshold, score = score_of_record(record, wanted)
        affine = result.shown.affine
        found = mask_and_lesions(
            result.anomaly_map, score, affine=affine, scan_threshold=scan_threshold
        )
        to_ml = voxel_volume_mm3(affine) / 1000
        assert mask.sum() == found.mask.sum()
        assert step.volume_ml == pytest.approx(found.mask.sum() * to_ml)
        assert step.lesions == len(found.lesions)
        left_out = (result.anomaly_map > step.threshold) & ~found.mask
        assert step.left_out_ml == pytest.approx(left_out.sum() * to_ml)
        volumes.append(step.volume_ml)
    assert len(set(volumes)) > 3


def test_the_results_own_threshold_is_among_them_with_its_own_mask(case: Case, data: ReportData):
    odd = replace(data, threshold=0.613)
    sweep = sweep_thresholds(odd, asked(case, threshold=0.613))
    thresholds = [step.threshold for step in sweep.steps]
    assert thresholds == sorted(thresholds)
    assert thresholds[sweep.own] == 0.613
    np.testing.assert_array_equal(masks_of(sweep)[sweep.own], data.mask)


def test_a_lesion_may_be_in_a_stricter_mask_and_not_in_a_laxer_one(case: Case, data: ReportData):
    score = {"min_fraction_of_largest": 0.2, "min_seed_mm3": 0.0, "min_lesion_mm3": 0.0}
    record = asked(case)
    for part in ("score", "calibrated_mask"):
        record["settings"][part] = record["settings"][part] | score
    values = np.zeros(data.anomaly_map.shape, np.float32)
    values[5:17, 5:17, 5:17] = 0.3
    values[8:13, 8:13, 8:13] = 0.9
    values[25:29, 25:29, 25:29] = 0.9
    made = replace(data, anomaly_map=values, mask=values > 0.5)
    sweep = sweep_thresholds(made, record)
    small = [bool(mask[26, 26, 26]) for mask in masks_of(sweep)]
    at = {round(step.threshold, 2): inside for step, inside in zip(sweep.steps, small, strict=True)}
    assert not at[0.2]
    assert at[0.4]
    assert not at[0.95]
    assert [step.lesions for step in sweep.steps if step.threshold in (0.2, 0.4)] == [1, 2]


def test_an_empty_map_has_empty_masks(case: Case, data: ReportData):
    nothing = np.zeros_like(data.anomaly_map)
    sweep = sweep_thresholds(replace(data, anomaly_map=nothing, mask=nothing > 0), asked(case))
    assert {step.volume_ml for step in sweep.steps} == {0.0}
    assert sweep.patterns == [0]


def test_the_line_to_copy_keeps_what_was_asked_for(case: Case, data: ReportData):
    record = asked(case, threshold=0.5, min_lesion_mm3=20.0, sampling={"seed": 1})
    record["outputs"] = {"map": "a map's.nii.gz"}
    words = [shlex.split(step.command) for step in sweep_thresholds(data, record).steps]
    expected = ["mmccd", "threshold", "a map's.nii.gz", "--threshold", "0.05"]
    assert words[0] == [*expected, "--min-lesion", "20mm3", "--force"]
