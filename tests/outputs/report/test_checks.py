"""Signs of failure: quiet where all is well, loud where something was moved, cut or wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmccd_cli.anomaly.mask import LeftOutSmall, MaskFindings
from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.outputs.lesions import mask_warnings
from mmccd_cli.outputs.report.checks import Check, check_subject, suspicion, verdict
from mmccd_cli.outputs.report.data import ReportData
from mmccd_cli.template import Template

NOTHING_KEPT = MaskFindings(
    mask=np.zeros((1, 1, 1), bool), lesions=[], left_out=[], left_out_small=LeftOutSmall(count=2)
)
Change = Callable[[ReportData], ReportData]


def normalised(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    inside = image[brain]
    return np.where(brain, (image - np.median(inside)) / inside.std(), 0).astype(np.float32)


@pytest.fixture(scope="module")
def data(tiny_phantom: Phantom) -> ReportData:
    """A subject that is its own template, with its true lesion as the result."""
    brain = tiny_phantom.brain
    images = {name: volume.data for name, volume in tiny_phantom.volumes.items()}
    scans = {name: normalised(image, brain) for name, image in images.items()}
    prepared: Any = SimpleNamespace(
        images=scans, brain=brain, covered=dict.fromkeys(images, brain), brain_method="stripped"
    )
    return ReportData(
        affine=tiny_phantom.affine,
        reference="FLAIR",
        images={"FLAIR": images["FLAIR"], **images},
        brain=brain,
        at_edge=0.0,
        anomaly_map=0.9 * tiny_phantom.lesion.astype(np.float32),
        mask=tiny_phantom.lesion,
        threshold=0.5,
        numbers=tiny_phantom.lesion.astype(np.uint16),
        lesions=[],
        left_out=[],
        points=[],
        template_image=scans["FLAIR"],
        template_mask=brain,
        prepared=prepared,
        template=Template(scans, brain, tiny_phantom.affine),
    )


def loud(data: ReportData, *warnings: str) -> set[str]:
    return {check.name for check in check_subject(data, warnings) if check.suspicion > 0.5}


def test_nothing_is_said_of_a_subject_that_is_well(data):
    assert suspicion(check_subject(data, [])) < 0.05


def with_t2w(data: ReportData, change: Callable[[np.ndarray], np.ndarray]) -> ReportData:
    prepared: Any = SimpleNamespace(**vars(data.prepared))
    prepared.images = {**prepared.images, "T2w": change(prepared.images["T2w"])}
    return replace(data, prepared=prepared)


def shifted(data: ReportData) -> ReportData:
    return with_t2w(data, lambda scan: np.roll(scan, 1, axis=1))  # by 4 mm


def mirrored(data: ReportData) -> ReportData:
    return with_t2w(data, lambda scan: scan[::-1])


def off_the_template(data: ReportData) -> ReportData:
    scans = {n: np.roll(a, 3, axis=2) for n, a in data.prepared.images.items()}
    brain = np.roll(data.brain, 3, axis=2)
    prepared: Any = SimpleNamespace(images=scans, brain=brain, covered=dict.fromkeys(scans, brain))
    return replace(data, prepared=prepared)


def cut(data: ReportData) -> ReportData:
    half = data.brain.copy()
    half[:, :, : half.shape[2] // 2] = False
    prepared: Any = SimpleNamespace(**vars(data.prepared))
    prepared.covered = {**prepared.covered, "FLAIR": half}
    return replace(data, prepared=prepared)


@pytest.mark.parametrize(
    ("change", "sign"),
    [
        (shifted, "T2w lies on FLAIR"),
        (mirrored, "T2w shows the head of FLAIR"),
        (off_the_template, "Scans lie on the template"),
        (cut, "FLAIR shows the brain"),
        (lambda m: replace(m, affine=m.affine * [[0.7], [0.7], [0.7], [1]]), "Brain volume"),
        (lambda m: replace(m, affine=m.affine * [[1.3], [1.3], [1.3], [1]]), "Brain volume"),
        (lambda m: replace(m, at_edge=0.4), "Brain mask at the edge of the scan"),
        (lambda m: replace(m, mask=m.brain), "Lesions"),
        (lambda m: replace(m, anomaly_map=m.anomaly_map + 0.3), "Middle value of the map"),
    ],
    ids=[
        "shifted",
        "mirrored",
        "template",
        "cut",
        "small",
        "large",
        "edge",
        "all-lesion",
        "high-map",
    ],
)
def test_each_fault_raises_its_sign(data: ReportData, change: Change, sign: str):
    assert sign in loud(change(data))


def test_only_warnings_count_of_what_a_run_says(data):
    assert "Warnings besides those of the mask" in loud(data, "One.", "Another.")
    assert "Warnings besides those of the mask" not in loud(data, *mask_warnings(NOTHING_KEPT))


def test_one_clear_sign_is_enough_and_weak_ones_add_up():
    def check(value: float) -> Check:
        return Check(name="a", value="b", expected="c", suspicion=value)

    assert suspicion([check(0.0)]) == 0
    assert suspicion([check(1.0), check(0.0)]) == 1
    assert suspicion([check(0.5), check(0.5)]) == 0.75
    assert [verdict(v) for v in (0, 0.24, 0.25, 0.74, 0.75)] == [
        "good",
        "good",
        "look",
        "look",
        "bad",
    ]
    assert check(0.3).verdict == "look"
