"""From signals to a score, and from a score to a map: exact, monotone, and within [0, 1]."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scores import PLAIN, SHAPE

from mmccd_cli.anomaly.score import (
    combine,
    map_from_score,
    median_filter,
    score_from_map,
    window_size,
)

ONE_MM = (1.0, 1.0, 1.0)


def test_combine_is_a_weighted_sum() -> None:
    signals = {"cycle:FLAIR": np.full(SHAPE, 2.0), "intensity:T2w": np.full(SHAPE, 3.0)}
    total = combine(signals, {"cycle:FLAIR": 1.0, "intensity:T2w": -0.5})
    assert total.dtype == np.float32
    np.testing.assert_allclose(total, 0.5)


def test_a_signal_of_weight_zero_need_not_be_there() -> None:
    total = combine({"cycle:FLAIR": np.ones(SHAPE)}, {"cycle:FLAIR": 2.0, "cycle:T2w": 0.0})
    np.testing.assert_allclose(total, 2.0)


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


finite = st.floats(-1e6, 1e6, width=32)


@settings(deadline=None)
@given(st.lists(finite, min_size=2, max_size=30), st.floats(-10, 10), st.floats(0.01, 10))
def test_map_rises_with_the_score_within_zero_and_one(
    values: list[float], threshold: float, scale: float
) -> None:
    ordered = np.sort(np.array(values, dtype=np.float32))
    mapped = map_from_score(ordered, threshold, replace(PLAIN, map_scale=scale))
    assert mapped.dtype == np.float32
    assert np.isfinite(mapped).all()
    assert mapped.min() >= 0
    assert mapped.max() <= 1
    assert (np.diff(mapped) >= 0).all()


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 2.5])
@pytest.mark.parametrize("scale", [0.1, 0.5, 3.0])
def test_map_is_one_half_at_the_threshold(threshold: float, scale: float) -> None:
    config = replace(PLAIN, map_scale=scale)
    values = np.array([threshold - scale, threshold, threshold + scale])
    expected = [1 / (1 + np.e), 0.5, np.e / (1 + np.e)]
    np.testing.assert_allclose(map_from_score(values, threshold, config), expected, rtol=1e-5)


def test_an_offset_moves_the_map_at_the_threshold_and_comes_back() -> None:
    config = replace(PLAIN, map_scale=0.4, map_offset=-1.0)
    scores = np.array([0.0, 2.0, 3.5], np.float32)
    there = map_from_score(scores, 2.0, config)
    assert float(there[1]) == pytest.approx(1 / (1 + np.exp(1.0)))
    np.testing.assert_allclose(score_from_map(there, 2.0, config), scores, atol=1e-3)
