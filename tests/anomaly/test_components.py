"""Rim, components and holes of masks small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest
from grids import block
from scipy import ndimage

from mmccd_cli.anomaly.components import (
    component_surfaces,
    erode,
    fill_holes,
    grow_into_rim,
    judge_components,
)

ONE_MM = (1.0, 1.0, 1.0)


def test_erode_takes_the_same_millimetres_on_every_axis() -> None:
    mask = block((40, 40, 20), (5, 35), (5, 35), (4, 16))
    eroded = erode(mask, 3.0, (1.0, 1.0, 3.0))
    np.testing.assert_array_equal(eroded, block(mask.shape, (8, 32), (8, 32), (5, 15)))


def test_erode_does_not_take_the_edge_of_the_volume_for_the_rim() -> None:
    mask = block((20, 20, 5), (5, 15), (5, 15), (0, 5))
    assert erode(mask, 2.0, (1.0, 1.0, 5.0))[10, 10].all()


def test_erode_by_nothing_and_of_nothing() -> None:
    mask = block((4, 4, 4), (1, 3), (1, 3), (1, 3))
    np.testing.assert_array_equal(erode(mask, 0.0, ONE_MM), mask)
    assert not erode(np.zeros_like(mask), 3.0, ONE_MM).any()
    assert erode(np.ones_like(mask), 3.0, ONE_MM).all()


def test_fill_holes_fills_cavities_and_not_bays() -> None:
    mask = block((9, 9, 9), (1, 8), (1, 8), (1, 8))
    mask[4, 4, 4] = False
    mask[2, 2, 1:5] = False
    filled = fill_holes(mask)
    assert filled[4, 4, 4]
    assert not filled[2, 2, 1:5].any()
    assert not fill_holes(np.zeros_like(mask)).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_fill_in_planes_fills_a_tunnel_and_not_a_bay(axis: int) -> None:
    mask = block((9, 9, 9), (1, 8), (1, 8), (1, 8))
    tunnel = block((9, 9, 9), (1, 8), (4, 5), (4, 5))
    bay = block((9, 9, 9), (1, 2), (1, 2), (1, 8))
    mask = np.moveaxis(mask & ~tunnel & ~bay, 0, axis)
    assert (fill_holes(mask) == mask).all()
    filled = fill_holes(mask, "planes")
    np.testing.assert_array_equal(filled, mask | np.moveaxis(tunnel, 0, axis))
    assert not fill_holes(np.zeros_like(mask), "planes").any()


def test_rim_is_given_back_only_next_to_the_mask_and_where_bright() -> None:
    brain = block((20, 12, 12), (1, 19), (1, 11), (1, 11))
    region = erode(brain, 2.0, ONE_MM)
    bright = block(brain.shape, (0, 6), (0, 12), (0, 6))
    mask = bright & region

    def grow(mask: np.ndarray) -> np.ndarray:
        return grow_into_rim(
            mask, bright=bright, brain=brain, region=region, distance_mm=3.0, spacing_mm=ONE_MM
        )

    grown = grow(mask)
    away = ndimage.distance_transform_edt(~mask)
    np.testing.assert_array_equal(grown, mask | (bright & brain & ~region & (away <= 3.0)))
    assert grown.sum() > mask.sum()
    assert not grow(np.zeros_like(mask)).any()


def test_components_need_a_share_of_the_largest_and_a_volume() -> None:
    mask = block((30, 30, 30), (0, 2), (0, 12), (0, 10))  # 240 voxels
    mask |= block(mask.shape, (10, 12), (0, 2), (0, 12))  # 48: exactly a fifth
    mask |= block(mask.shape, (20, 21), (0, 1), (0, 30))  # 30: less
    twice = (1.0, 1.0, 2.0)
    assert judge_components(mask, ONE_MM, min_fraction_of_largest=0.2).mask.sum() == 240 + 48
    assert judge_components(mask, ONE_MM).mask.sum() == mask.sum()
    assert judge_components(mask, twice, min_volume_mm3=96.0).mask.sum() == 288
    assert judge_components(mask, twice, min_volume_mm3=97.0).mask.sum() == 240
    assert not judge_components(mask, ONE_MM, min_volume_mm3=1000.0).mask.any()
    assert not judge_components(np.zeros_like(mask), ONE_MM).mask.any()


def test_components_need_seeds_and_those_without_are_no_yardstick() -> None:
    large = block((30, 30, 30), (0, 2), (0, 12), (0, 10))  # 240 voxels, no seed
    small = block(large.shape, (10, 12), (0, 2), (0, 12))  # 48, 4 seeds
    tiny = block(large.shape, (20, 21), (0, 1), (0, 8))  # 8, 4 seeds
    seeds = block(large.shape, (10, 11), (0, 1), (0, 4)) | block(
        large.shape, (20, 21), (0, 1), (0, 4)
    )

    def kept(**settings: float) -> np.ndarray:
        found = large | small | tiny
        return judge_components(found, (1.0, 1.0, 2.0), seeds=seeds, **settings).mask

    np.testing.assert_array_equal(kept(), small | tiny)
    np.testing.assert_array_equal(kept(min_seed_mm3=8.0), small | tiny)
    np.testing.assert_array_equal(kept(min_fraction_of_largest=0.2), small)
    assert not kept(min_seed_mm3=8.1).any()


def test_surfaces_are_outer_faces_in_square_millimetres() -> None:
    """Two boxes that share a face, one of them at the border of the array."""
    labels = np.zeros((6, 5, 4), np.uint16)
    labels[0:2, 0:3, 0:1], labels[2:4, 0:3, 0:1] = 1, 2
    box = 2 * (2 * 1.0 * 3 * 2.0 + 2 * 1.0 * 4.0 + 3 * 2.0 * 4.0)
    found = component_surfaces(labels, 3, (1.0, 2.0, 4.0))
    np.testing.assert_allclose(found, [box, box, 0.0])


def test_a_ball_has_half_as_much_again_whatever_the_voxels() -> None:
    for spacing in ((1.0, 1.0, 1.0), (0.5, 0.5, 2.0)):
        shape = [round(40 / size) for size in spacing]
        place = [size * (np.arange(n) + 0.5) - 20 for size, n in zip(spacing, shape, strict=True)]
        ball = sum(axis**2 for axis in np.meshgrid(*place, indexing="ij")) <= 15.0**2
        (found,) = component_surfaces(ball.astype(np.uint8), 1, spacing)
        assert found / (4 * np.pi * 15.0**2) == pytest.approx(1.5, rel=0.03)
