"""Signs of failure: quiet where all is well, loud where something was moved, cut or wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.outputs.report.checks import Check, check_subject, suspicion
from mmccd_cli.outputs.report.data import Material
from mmccd_cli.template import Template

Change = Callable[[Material], Material]


def normalised(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    inside = image[brain]
    return np.where(brain, (image - np.median(inside)) / inside.std(), 0).astype(np.float32)


@pytest.fixture(scope="module")
def material(tiny_phantom: Phantom) -> Material:
    """A subject that is its own template, with its true lesion as the result."""
    brain = tiny_phantom.brain
    images = {name: volume.data for name, volume in tiny_phantom.volumes.items()}
    scans = {name: normalised(image, brain) for name, image in images.items()}
    prepared: Any = SimpleNamespace(
        images=scans, brain=brain, covered=dict.fromkeys(images, brain), brain_method="stripped"
    )
    return Material(
        affine=tiny_phantom.affine,
        reference="FLAIR",
        images={"FLAIR": images["FLAIR"], **images},
        brain=brain,
        at_edge=0.0,
        anomaly_map=0.9 * tiny_phantom.lesion.astype(np.float32),
        mask=tiny_phantom.lesion,
        threshold=0.5,
        lesions=[],
        points=[],
        template_image=scans["FLAIR"],
        template_mask=brain,
        prepared=prepared,
        template=Template(scans, brain, tiny_phantom.affine),
    )


def loud(material: Material, *warnings: str) -> set[str]:
    return {check.name for check in check_subject(material, warnings) if check.suspicion > 0.5}


def test_nothing_is_said_of_a_subject_that_is_well(material):
    assert suspicion(check_subject(material, ["T2w lies on another grid."])) < 0.05


def shifted(material: Material) -> Material:
    moved = np.roll(material.images["T2w"], 1, axis=1)  # by 4 mm
    return replace(material, images={**material.images, "T2w": moved})


def off_the_template(material: Material) -> Material:
    scans = {n: np.roll(a, 3, axis=2) for n, a in material.prepared.images.items()}
    brain = np.roll(material.brain, 3, axis=2)
    prepared: Any = SimpleNamespace(images=scans, brain=brain, covered=dict.fromkeys(scans, brain))
    return replace(material, prepared=prepared)


def cut(material: Material) -> Material:
    half = material.brain.copy()
    half[:, :, : half.shape[2] // 2] = False
    prepared: Any = SimpleNamespace(**vars(material.prepared))
    prepared.covered = {**prepared.covered, "FLAIR": half}
    return replace(material, prepared=prepared)


@pytest.mark.parametrize(
    ("change", "sign"),
    [
        (shifted, "T2w lies on FLAIR"),
        (off_the_template, "Scans lie on the template"),
        (cut, "FLAIR shows the brain"),
        (lambda m: replace(m, affine=m.affine * [[0.7], [0.7], [0.7], [1]]), "Brain volume"),
        (lambda m: replace(m, affine=m.affine * [[1.3], [1.3], [1.3], [1]]), "Brain volume"),
        (lambda m: replace(m, at_edge=0.4), "Brain mask at the edge of the scan"),
        (lambda m: replace(m, mask=m.brain), "Lesions"),
        (lambda m: replace(m, anomaly_map=m.anomaly_map + 0.3), "Middle value of the map"),
    ],
    ids=["shifted", "template", "cut", "small", "large", "edge", "all-lesion", "high-map"],
)
def test_each_fault_raises_its_sign(material: Material, change: Change, sign: str):
    assert sign in loud(change(material))


def test_only_warnings_count_of_what_a_run_says(material):
    assert "Warnings" in loud(material, "Warning: one.", "Warning: two.")
    assert "Warnings" not in loud(material, "A note.", "Another.")


def test_one_clear_sign_is_enough_and_weak_ones_add_up():
    def check(value: float) -> Check:
        return Check("a", "b", "c", value)

    assert suspicion([check(0.0)]) == 0
    assert suspicion([check(1.0), check(0.0)]) == 1
    assert suspicion([check(0.5), check(0.5)]) == 0.75
    assert [check(v).verdict for v in (0, 0.3, 0.9)] == ["good", "look", "bad"]
