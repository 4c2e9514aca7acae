"""A map that keeps its promise has no error, and one that does not has the right one."""

from __future__ import annotations

import numpy as np
import pytest

from mmccd_cli.training.reliability import Reliability


def test_a_promise_that_is_kept_has_no_error() -> None:
    generator = np.random.default_rng(0)
    values = generator.random(200_000)
    found = Reliability()
    for part in np.array_split(values, 4):
        found.add(part, generator.random(part.size) < part)
    assert found.voxels.sum() == values.size
    assert found.expected_error < 0.01
    curve = found.describe()["curve"]
    assert len(curve) == 10
    assert all(abs(promised - truth) < 0.02 for promised, truth in curve)


def test_an_error_is_the_distance_of_promise_and_truth() -> None:
    found = Reliability()
    found.add(np.array([0.95, 0.95, 0.95, 0.95]), np.array([True, True, False, False]))
    assert found.expected_error == pytest.approx(0.45)
    assert found.describe()["curve"] == [[0.95, 0.5]]


def test_both_ends_of_the_map_count() -> None:
    found = Reliability()
    found.add(np.array([0.0, 1.0]), np.array([False, True]))
    assert found.voxels.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert found.expected_error == 0.0
