"""The measure of repeatability finds what changes, and nothing where nothing does."""

from __future__ import annotations

import numpy as np
import pytest
import repeatability
from repeatability import (
    between_grids,
    change_of_volume,
    half_a_voxel_on,
    same_grid,
    through_dicom,
)

from mmccd_cli import Segmenter
from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.inputs.volume import Volume, reorient
from mmccd_cli.preprocessing.spatial import resample
from mmccd_cli.template import transform_points


def ball(affine: np.ndarray, *, radius_mm: float = 20.0) -> Volume:
    """1 inside a ball about (40, 40, 40) mm, on a grid of 40 voxels a side."""
    centres = transform_points(affine, np.argwhere(np.ones((40, 40, 40))))
    inside = np.linalg.norm(centres - 40, axis=1) < radius_mm
    return Volume(inside.reshape(40, 40, 40).astype(np.float32), affine)


def test_grids_half_a_voxel_apart_are_compared_without_favour() -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    moved = affine.copy()
    moved[:3, 3] = 1.0
    assert between_grids(ball(affine), ball(affine)) == 1
    assert between_grids(ball(affine), ball(moved)) > 0.94  # all that such voxels say of a ball
    smaller = between_grids(ball(affine), ball(moved, radius_mm=18.0))
    assert smaller == pytest.approx(2 * 0.9**3 / (1 + 0.9**3), abs=0.02)


def test_orders_of_voxels_do_not_matter() -> None:
    mask = ball(np.diag([2.0, 2.0, 2.0, 1.0]))
    mask.data[0, 1, 2] = 1
    assert same_grid(mask, reorient(mask, "LPS")) == 1
    assert same_grid(mask, Volume(mask.data[::-1].copy(), mask.affine)) < 1


def test_two_empty_masks_are_the_same() -> None:
    mask = ball(np.diag([2.0, 2.0, 2.0, 1.0]))
    nothing = Volume(np.zeros_like(mask.data), mask.affine)
    assert same_grid(nothing, nothing) == 1
    assert change_of_volume(nothing, nothing) == 0
    assert change_of_volume(nothing, mask) == np.inf
    assert change_of_volume(mask, nothing) == -100


def test_a_scan_comes_back_from_dicom(tiny_phantom: Phantom) -> None:
    scan = tiny_phantom.volumes["FLAIR"]
    back = through_dicom(scan)
    found = resample(back, scan.shape, scan.affine, interpolation="nearest").data
    assert np.abs(found - scan.data).max() <= np.ptp(scan.data) / 2**16


def test_every_change_is_measured(segmenter: Segmenter, tiny_phantom: Phantom) -> None:
    found = repeatability.compare(segmenter, tiny_phantom.volumes)
    assert {*repeatability.CHANGES, repeatability.ALONE, "two threads"} <= set(found)
    assert segmenter.segment(tiny_phantom.volumes).mask.any()
    assert found["two threads"] == (1, 0)
    # These weights take scans as they lie, so a moved origin is another place to them.
    assert found["origin +10 mm"][0] < 1
    for name in ("affine noise 1e-4 mm", "intensities x 1000", "DICOM and back"):
        assert found[name][0] > 0.95
    moved = half_a_voxel_on(tiny_phantom.volumes["FLAIR"])
    assert np.allclose(np.abs(moved.affine[:3, 3] - tiny_phantom.affine[:3, 3]), 2)  # of 4 mm
