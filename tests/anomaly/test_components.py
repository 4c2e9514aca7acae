"""Rim, median, threshold, components and lesions on arrays small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest
from grids import block
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mmccd_cli.anomaly.candidates import adaptive_threshold, otsu_threshold
from mmccd_cli.anomaly.components import (
    erode,
    fill_holes,
    grow_into_rim,
    keep_components,
)
from mmccd_cli.anomaly.mask import find_lesions
from mmccd_cli.anomaly.score import median_filter, window_size

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


@pytest.mark.parametrize(
    ("size_mm", "spacing_mm", "expected"),
    [
        (3.0, (1.0, 1.0, 1.0), (3, 3, 3)),
        (3.0, (0.9, 0.9, 5.5), (3, 3, 1)),
        (5.0, (2.0, 2.0, 2.0), (3, 3, 3)),
        (0.0, (1.0, 1.0, 1.0), (1, 1, 1)),
        (5.0, (0.5, 1.0, 1.2), (9, 5, 5)),
    ],
)
def test_window_is_odd_and_near_the_millimetres(
    size_mm: float, spacing_mm: tuple[float, ...], expected: tuple[int, ...]
) -> None:
    assert window_size(size_mm, spacing_mm) == expected


@pytest.mark.parametrize("spacing_mm", [ONE_MM, (1.0, 1.0, 3.0), (3.0, 1.0, 0.6)])
def test_median_equals_the_one_of_scipy(spacing_mm: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(0)
    brain = ndimage.binary_dilation(rng.random((14, 15, 16)) > 0.98, iterations=3)
    score = rng.normal(size=brain.shape).astype(np.float32)
    size = window_size(3.0, spacing_mm)
    expected = ndimage.median_filter(np.where(brain, score, 0.5), size, mode="constant", cval=0.5)
    found = median_filter(score, brain, size_mm=3.0, spacing_mm=spacing_mm, outside=0.5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.where(brain, expected, 0.5))


def test_median_of_an_empty_brain_is_the_outside() -> None:
    score = np.ones((4, 4, 4), dtype=np.float32)
    empty = np.zeros(score.shape, dtype=bool)
    assert (median_filter(score, empty, size_mm=3.0, spacing_mm=ONE_MM, outside=-1.0) == -1.0).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=40))
def test_otsu_is_the_best_of_all_cuts(numbers: list[int]) -> None:
    values = np.array(numbers, dtype=float)
    levels = np.unique(values)
    if levels.size == 1:
        assert otsu_threshold(values) == levels[0]
        return

    def inner_variance(cut: float) -> float:
        low, high = values[values <= cut], values[values > cut]
        return float(low.size * low.var() + high.size * high.var())

    best = min(inner_variance(c) for c in (levels[:-1] + levels[1:]) / 2)
    assert inner_variance(otsu_threshold(values)) == pytest.approx(best, abs=1e-6)


def test_otsu_of_nothing_is_zero() -> None:
    assert otsu_threshold(np.array([])) == 0.0


def test_adaptive_threshold_follows_the_contrast_of_the_scan() -> None:
    dark = np.concatenate([np.linspace(-1, 1, 900), np.full(100, 4.0)])
    bright = np.concatenate([np.linspace(-1, 1, 900), np.full(100, 8.0)])
    low, high = (adaptive_threshold(s, constant=0.6) for s in (dark, bright))
    assert low < high
    # The lowest of the upper group is 4 and the highest of the others 1: the cut is half-way.
    assert low == pytest.approx(0.6 + 0.5 * 2.5)
    assert adaptive_threshold(dark, constant=0.6, otsu_weight=0.0) == 0.6
    assert adaptive_threshold(np.array([]), constant=0.6) == 0.6


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
    assert keep_components(mask, ONE_MM, min_fraction_of_largest=0.2).sum() == 240 + 48
    assert keep_components(mask, ONE_MM).sum() == mask.sum()
    assert keep_components(mask, twice, min_volume_mm3=96.0).sum() == 288
    assert keep_components(mask, twice, min_volume_mm3=97.0).sum() == 240
    assert not keep_components(mask, ONE_MM, min_volume_mm3=1000.0).any()
    assert not keep_components(np.zeros_like(mask), ONE_MM).any()


def test_components_need_seeds_and_those_without_are_no_yardstick() -> None:
    large = block((30, 30, 30), (0, 2), (0, 12), (0, 10))  # 240 voxels, no seed
    small = block(large.shape, (10, 12), (0, 2), (0, 12))  # 48, 4 seeds
    tiny = block(large.shape, (20, 21), (0, 1), (0, 8))  # 8, 4 seeds
    seeds = block(large.shape, (10, 11), (0, 1), (0, 4)) | block(
        large.shape, (20, 21), (0, 1), (0, 4)
    )

    def kept(**settings: float) -> np.ndarray:
        return keep_components(large | small | tiny, (1.0, 1.0, 2.0), seeds=seeds, **settings)

    np.testing.assert_array_equal(kept(), small | tiny)
    np.testing.assert_array_equal(kept(min_seed_mm3=8.0), small | tiny)
    np.testing.assert_array_equal(kept(min_fraction_of_largest=0.2), small)
    assert not kept(min_seed_mm3=8.1).any()


def test_lesions_come_by_volume_and_lie_in_world_coordinates() -> None:
    mask = block((10, 10, 10), (1, 2), (1, 2), (1, 3)) | block((10, 10, 10), (4, 8), (5, 7), (6, 9))
    anomaly_map = np.where(mask, 0.5, 0.0).astype(np.float32)
    anomaly_map[5, 5, 7] = 0.9
    affine = np.diag([-2.0, 1.0, 3.0, 1.0])
    affine[:3, 3] = (100.0, -50.0, 10.0)
    first, second = find_lesions(mask, anomaly_map, affine)
    assert (first.id, second.id) == (1, 2)
    assert first.volume_ml == pytest.approx(24 * 6 / 1000)
    assert first.box == ((4, 8), (5, 7), (6, 9))
    assert first.centroid_ras_mm == pytest.approx((100 - 2 * 5.5, -50 + 5.5, 10 + 3 * 7))
    assert first.peak == pytest.approx(0.9)
    assert first.mean == pytest.approx((23 * 0.5 + 0.9) / 24)
    assert second.volume_ml == pytest.approx(2 * 6 / 1000)
    assert find_lesions(np.zeros_like(mask), anomaly_map, affine) == []
