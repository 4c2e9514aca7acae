"""Intensities stay where they are when a lesion comes."""

from __future__ import annotations

import numpy as np
import pytest

from mmccd_cli.config import IntensityConfig
from mmccd_cli.errors import DataError
from mmccd_cli.preprocessing.intensity import normalise


@pytest.fixture
def brain() -> np.ndarray:
    return np.random.default_rng(0).normal(300, 40, size=(20, 20, 20)).astype(np.float32)


def test_median_becomes_zero_and_deviation_the_scale(brain: np.ndarray) -> None:
    mask = np.ones(brain.shape, bool)
    values = normalise(brain, mask, IntensityConfig(scale=0.5, clip=None))
    assert abs(np.median(values)) < 1e-5
    assert np.percentile(np.abs(values), 68) == pytest.approx(0.5, rel=0.01)
    linear = (brain - np.median(brain)) * values.std() / brain.std()
    assert values == pytest.approx(linear, abs=1e-4)
    assert values.dtype == np.float32


def test_percentile_is_the_published_formula(brain: np.ndarray) -> None:
    mask = np.ones(brain.shape, bool)
    config = IntensityConfig(method="percentile", scale=1.0, clip=None)
    values = normalise(brain, mask, config)
    upper = np.percentile(brain, 90)
    assert values == pytest.approx((brain - upper / 2) / upper * 6, abs=1e-4)


def test_a_lesion_of_15_percent_moves_tissue_little(brain: np.ndarray) -> None:
    mask = np.ones(brain.shape, bool)
    config = IntensityConfig(scale=1.0, clip=None)
    ill = brain.copy()
    lesion = np.zeros(brain.shape, bool)
    lesion[:3] = True
    ill[lesion] *= 2
    healthy = normalise(brain, mask, config)
    shifted = normalise(ill, mask, config)
    assert np.abs(shifted - healthy)[~lesion].mean() < 0.4


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_unit_of_the_scanner_does_not_matter(brain: np.ndarray, factor: float) -> None:
    mask = brain > 250
    expected = normalise(brain, mask, IntensityConfig())
    values = normalise(brain * np.float32(factor), mask, IntensityConfig())
    assert values == pytest.approx(expected, abs=1e-3)


def test_background_and_clip(brain: np.ndarray) -> None:
    mask = np.zeros(brain.shape, bool)
    mask[5:15] = True
    values = normalise(brain, mask, IntensityConfig(clip=1.0, background=-7.0))
    assert (values[~mask] == -7).all()
    assert np.abs(values[mask]).max() <= 1


def test_constant_or_empty_brain_is_an_error() -> None:
    flat = np.ones((8, 8, 8), np.float32)
    with pytest.raises(DataError, match="FLAIR has no contrast") as caught:
        normalise(flat, flat > 0, IntensityConfig(), name="FLAIR")
    assert caught.value.next_step
    with pytest.raises(DataError, match="only 0 voxels of the brain"):
        normalise(flat, flat > 1, IntensityConfig())
