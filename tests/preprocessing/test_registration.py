"""Registration comes back, and ends where brains agree."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mmccd_cli.errors import DataError
from mmccd_cli.inputs.phantom import make_phantom
from mmccd_cli.inputs.volume import Volume, reorient, reorient_array
from mmccd_cli.preprocessing.registration import refine, register
from mmccd_cli.preprocessing.spatial import resample

_YARDSTICKS = runpy.run_path(
    str(Path(__file__).resolve().parents[2] / "examples" / "registration_yardsticks.py")
)


def _pose(degrees: tuple[float, float, float], shift_mm: tuple[float, float, float]) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    centre = np.array([-118.0, 104.0, 72.0])
    pose[:3, 3] = centre - pose[:3, :3] @ centre + shift_mm
    return pose


def _error_mm(ours: np.ndarray, true: np.ndarray) -> float:
    points = np.random.default_rng(0).uniform(-60, 60, size=(500, 3)) + np.array([-118, 104, 72])
    points = np.c_[points, np.ones(500)]
    return float(np.linalg.norm((points @ (ours - true).T)[:, :3], axis=1).mean())


def test_rigid_registration_of_another_contrast_comes_back() -> None:
    pose = _pose((8, -6, 10), (12, -9, 10))
    fixed = make_phantom(0, shape=(64, 72, 60), spacing_mm=(3, 3, 3), modalities=["FLAIR"])
    moving = make_phantom(
        0,
        shape=(72, 60, 72),
        spacing_mm=(3, 3, 3),
        orientation="PIR",
        pose=pose,
        modalities=["T1w"],
    )
    found = register(fixed.volumes["FLAIR"], moving.volumes["T1w"])
    assert _error_mm(found, pose) < 1.0
    assert found[:3, :3].T @ found[:3, :3] == pytest.approx(np.eye(3), abs=1e-9)


@pytest.mark.parametrize("codes", ["LPS", "PIR", "SAL"])
def test_the_order_of_axes_changes_nothing(codes: str) -> None:
    pose = _pose((4, -3, 5), (3, -4, 2))
    head = make_phantom(0, shape=(40, 44, 38), spacing_mm=(5, 5, 5), modalities=["FLAIR"])
    other = make_phantom(0, shape=(44, 40, 42), spacing_mm=(5, 5, 5), pose=pose, modalities=["T1w"])
    fixed, moving = head.volumes["FLAIR"], other.volumes["T1w"]
    brain = head.brain
    found = refine(fixed, moving, register(fixed, moving), brain=brain)
    turned, _ = reorient_array(brain, fixed.affine, codes)
    stored = reorient(fixed, codes), reorient(moving, codes)
    again = refine(*stored, register(*stored), brain=turned)
    assert again == pytest.approx(found, abs=1e-6)


def test_a_brain_that_moved_within_its_head_is_followed() -> None:
    """What lies around it stays, as scalp and neck may, and no longer decides."""
    shape, spacing = (72, 84, 72), (2.5, 2.5, 2.5)
    phantom = make_phantom(
        0, shape=shape, spacing_mm=spacing, modalities=["FLAIR", "T1w"], skull=True
    )
    fixed, still = phantom.volumes["FLAIR"], phantom.volumes["T1w"]
    brain = phantom.brain
    motion = np.eye(4)
    motion[:3, 3] = (0.0, 0.5, 2.0)
    moved = resample(still, shape, still.affine, matrix=motion).data
    there = resample(Volume(brain, still.affine), shape, still.affine, matrix=motion).data > 0.5
    moving = Volume(np.where(there, moved, still.data), still.affine)
    whole = register(fixed, moving)
    found = refine(fixed, moving, whole, brain=brain)
    true = np.linalg.inv(motion)
    assert _error_mm(whole, true) > 1.5
    assert _error_mm(found, true) < 0.7
    assert np.array_equal(found, refine(fixed, moving, whole, brain=brain))


def test_an_empty_brain_leaves_a_registration_as_it_is() -> None:
    fixed = make_phantom(0, shape=(32, 36, 30), spacing_mm=(6, 6, 6)).volumes["FLAIR"]
    nothing = np.zeros(fixed.shape, dtype=bool)
    assert np.array_equal(refine(fixed, fixed, np.eye(4), brain=nothing), np.eye(4))


def test_images_without_content_are_refused() -> None:
    empty = Volume(np.zeros((8, 8, 8)), np.eye(4))
    with pytest.raises(DataError, match="empty"):
        register(empty, empty)
    with pytest.raises(DataError, match="constant"):
        register(Volume(np.ones((8, 8, 8)), np.eye(4)), empty)


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_moved_brain_comes_back_to_under_a_millimetre(real_data: Path, seed: int) -> None:
    subject = ("Brats18_CBICA_ABM_1", "Brats18_TCIA10_639_1", "Brats18_2013_2_1")[seed]
    suffix = ("t1", "t2", "flair")[seed]
    row = _YARDSTICKS["known_motion"](real_data / "glioma", subject, suffix, seed)
    assert row[1] < 1.0


@pytest.mark.slow
@pytest.mark.realdata
def test_close_to_the_transforms_of_the_data_set(real_data: Path) -> None:
    rows = _YARDSTICKS["against_data_set"](real_data / "raw" / "openms_patient12")
    assert max(row[1] for row in rows) < 0.7  # theirs are affine, ours rigid; slices have 3 mm
