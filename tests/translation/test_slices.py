"""Slices go out and come back unchanged."""

from __future__ import annotations

import numpy as np
import pytest

from mmccd_cli.errors import DataError, GeometryError
from mmccd_cli.translation.slices import from_slices, to_slices


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(21, 30, 9)).astype(np.float32)


@pytest.fixture
def brain() -> np.ndarray:
    mask = np.zeros((21, 30, 9), bool)
    mask[3:19, 2:28, 2:7] = True
    return mask


def test_round_trip(volume: np.ndarray, brain: np.ndarray) -> None:
    stack = to_slices(np.where(brain, volume, 0), brain, multiple=8)
    assert (from_slices(stack.data, stack) == np.where(brain, volume, 0)).all()
    assert stack.levels.tolist() == [2, 3, 4, 5, 6]
    assert stack.data.shape == stack.brain.shape == (5, 1, 16, 32)
    assert stack.brain.sum() == brain.sum()


def test_height_is_i_and_width_is_j(volume: np.ndarray, brain: np.ndarray) -> None:
    stack = to_slices(volume, brain, multiple=1)
    assert stack.corner == (3, 2)
    assert stack.data[0, 0, 0, 1] == volume[3, 3, 2]
    assert stack.data[0, 0, 1, 0] == volume[4, 2, 2]


def test_crop_may_reach_beyond_the_volume(volume: np.ndarray) -> None:
    brain = np.ones(volume.shape, bool)
    stack = to_slices(volume, brain, multiple=16, fill=-3)
    assert stack.data.shape == (9, 1, 32, 32)
    assert (stack.data[~stack.brain] == -3).all()
    assert (from_slices(stack.data, stack) == volume).all()


def test_a_single_pixel_of_brain_keeps_its_slice(volume: np.ndarray, brain: np.ndarray) -> None:
    brain[:, :, 2] = False
    assert to_slices(volume, brain).levels.tolist() == [3, 4, 5, 6]
    brain[5, 5, 2] = True
    assert to_slices(volume, brain).levels.tolist() == [2, 3, 4, 5, 6]


def test_errors(volume: np.ndarray, brain: np.ndarray) -> None:
    with pytest.raises(DataError, match="No slice"):
        to_slices(volume, brain & False)
    with pytest.raises(GeometryError, match="do not fit"):
        to_slices(volume, brain[:-1])
    stack = to_slices(volume, brain)
    with pytest.raises(GeometryError, match="do not fit"):
        from_slices(stack.data[:-1], stack)
