"""Geometry of voxel grids, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mmccd_cli.template import (
    affine_of_box,
    bounding_box,
    median_and_deviation,
    transform_points,
    voxel_volume_mm3,
)

SHEARED = np.array([[2.0, 0.5, 0, -7], [0, 3, 0.2, 5], [0, 0, 4, 11], [0, 0, 0, 1]])


def test_a_bounding_box_holds_the_mask_and_ends_at_the_edge_of_the_volume() -> None:
    mask = np.zeros((9, 9, 9), dtype=bool)
    mask[0:3, 4:5, 2:9] = True
    assert bounding_box(mask) == (slice(0, 3), slice(4, 5), slice(2, 9))
    assert bounding_box(mask, margin=1) == (slice(0, 4), slice(3, 6), slice(1, 9))
    assert bounding_box(mask, margin=(0, 2, 1)) == (slice(0, 3), slice(2, 7), slice(1, 9))
    assert mask[bounding_box(np.zeros_like(mask))].size == 0


def test_the_affine_of_a_box_leaves_every_voxel_where_it_was() -> None:
    part = affine_of_box(SHEARED, (slice(2, 5), slice(1, 3), slice(4, 9)))
    np.testing.assert_allclose(
        transform_points(part, [0, 0, 0]), transform_points(SHEARED, [2, 1, 4])
    )
    np.testing.assert_array_equal(part[:, :3], SHEARED[:, :3])


def test_the_volume_of_a_voxel_is_exact_under_shear() -> None:
    np.testing.assert_allclose(voxel_volume_mm3(SHEARED), 2 * 3 * 4)
    np.testing.assert_allclose(voxel_volume_mm3(-SHEARED), 2 * 3 * 4)


def test_deviation_is_one_sigma_of_what_is_normal_and_ignores_a_lesion() -> None:
    values = np.random.default_rng(0).normal(300, 40, 50_000)
    values[:1000] = 5000
    median, deviation = median_and_deviation(values)
    assert median == pytest.approx(301, abs=2)
    assert deviation == pytest.approx(40, rel=0.05)
