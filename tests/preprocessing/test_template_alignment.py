"""The same head lands on the same place of the template, whatever its header says of the origin."""

from __future__ import annotations

import time

import numpy as np
import pytest

from mmccd_cli.inputs.phantom import make_phantom
from mmccd_cli.inputs.volume import Volume, reorient
from mmccd_cli.preprocessing.template_alignment import align_to_template, match_moments
from mmccd_cli.template import Template, transform_points

BRAIN_CENTRE = np.array([-118.0, 104.0, 72.0])
FIXED = make_phantom(0, shape=(64, 72, 60), spacing_mm=(3, 3, 3), modalities=["FLAIR"])
TEMPLATE = Template({"FLAIR": FIXED.volumes["FLAIR"].data}, FIXED.brain, FIXED.affine)


def _pose(scale: float) -> np.ndarray:
    """Fixed world -> moving world: turned by some degrees, shifted and enlarged."""
    c, s = np.cos(0.15), np.sin(0.15)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, c, -s], [0, s, c]]
    )
    pose = np.eye(4)
    pose[:3, :3] = scale * turn
    pose[:3, 3] = BRAIN_CENTRE + np.array([25, -40, 30]) - pose[:3, :3] @ BRAIN_CENTRE
    return pose


POSE = _pose(1.08)
MOVING = make_phantom(
    0, shape=(90, 80, 84), spacing_mm=(2.5, 3, 3), pose=POSE, modalities=["FLAIR"], noise=0.01
)


def _aligned(scan: Volume, brain: np.ndarray, modality: str = "FLAIR") -> np.ndarray:
    return align_to_template(scan, brain, TEMPLATE, modality=modality)


@pytest.fixture(scope="module")
def matrix() -> np.ndarray:
    return _aligned(MOVING.volumes["FLAIR"], MOVING.brain)


def _distance_mm(a: np.ndarray, b: np.ndarray) -> float:
    """Mean distance over the template's brain of where two maps lead."""
    points = transform_points(TEMPLATE.affine, np.argwhere(TEMPLATE.mask)[::20])
    apart = transform_points(a, points) - transform_points(b, points)
    return float(np.linalg.norm(apart, axis=1).mean())


def test_pose_and_size_are_found(matrix: np.ndarray) -> None:
    assert _distance_mm(matrix, POSE) < 0.5


@pytest.mark.parametrize("shift_mm", [10.0, -37.0, 1234.5])
def test_origin_of_the_header_does_not_matter(matrix: np.ndarray, shift_mm: float) -> None:
    moved = np.eye(4)
    moved[:3, 3] = shift_mm
    scan = MOVING.volumes["FLAIR"]
    again = _aligned(Volume(scan.data, moved @ scan.affine), MOVING.brain)
    assert _distance_mm(again, moved @ matrix) < 1e-6


def test_small_changes_have_small_effects(matrix: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    scan = MOVING.volumes["FLAIR"]
    hair = scan.affine.copy()
    hair[:3, 3] += rng.normal(0, 1e-4, 3)
    hair[:3, :3] += rng.normal(0, 1e-6, (3, 3))
    noisy = scan.data * (1 + 0.01 * rng.standard_normal(scan.shape).astype(np.float32))
    assert _distance_mm(_aligned(Volume(scan.data, hair), MOVING.brain), matrix) < 0.01
    assert _distance_mm(_aligned(Volume(noisy, scan.affine), MOVING.brain), matrix) < 0.05
    for unit in (1000, 1e-20):
        scaled = _aligned(Volume(np.float32(unit) * scan.data, scan.affine), MOVING.brain)
        assert _distance_mm(scaled, matrix) < 1e-3


@pytest.mark.parametrize("codes", ["LPS", "PIR", "SAL"])
def test_order_of_the_axes_does_not_matter(matrix: np.ndarray, codes: str) -> None:
    scan = MOVING.volumes["FLAIR"]
    turned, brain = reorient(scan, codes), reorient(Volume(MOVING.brain, scan.affine), codes)
    assert _distance_mm(_aligned(turned, brain.data > 0), matrix) < 1e-6


def test_a_large_lesion_moves_nothing_by_a_millimetre(matrix: np.ndarray) -> None:
    scan = MOVING.volumes["FLAIR"]
    centre = np.argwhere(MOVING.brain).mean(axis=0) + np.array([10, 0, 5])
    far = np.linalg.norm((np.indices(scan.shape).T - centre) * scan.spacing_mm, axis=-1).T
    lesion = (far < 25) & MOVING.brain  # 65 ml
    bright = np.where(lesion, scan.data[MOVING.brain].max() * 1.5, scan.data)
    assert _distance_mm(_aligned(Volume(bright, scan.affine), MOVING.brain), matrix) < 1.0


def test_without_an_image_of_the_modality_masks_are_compared() -> None:
    found = _aligned(MOVING.volumes["FLAIR"], MOVING.brain, "T1w")
    assert _distance_mm(found, POSE) < 3.0
    by_moments = match_moments(MOVING.volumes["FLAIR"], MOVING.brain, TEMPLATE)
    assert _distance_mm(found, POSE) < _distance_mm(by_moments, POSE)


def test_only_one_core_works() -> None:
    """Threads of BLAS that are woken wait busily, and take the time of other subjects."""
    time.sleep(0.3)  # until those of the tests before this one sleep
    began, used = time.perf_counter(), time.process_time()
    _aligned(MOVING.volumes["FLAIR"], MOVING.brain)
    assert time.process_time() - used < 1.3 * (time.perf_counter() - began)
