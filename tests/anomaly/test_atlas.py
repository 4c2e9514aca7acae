"""The atlas knows where brightness is healthy, from healthy voxels only."""

from __future__ import annotations

import numpy as np
import pytest

from mmccd_cli.anomaly.atlas import RARER_IN_GREY, NormalRangeFit, deviation, rarer_in_grey
from mmccd_cli.template import NormalRange

SHAPE = (20, 16, 12)
SPACING = (2.0, 2.0, 2.0)


def flat(mean: float, spread: float) -> NormalRange:
    return NormalRange(
        np.full(SHAPE, mean, dtype=np.float32), np.full(SHAPE, spread, dtype=np.float32)
    )


def test_mean_and_spread_over_subjects() -> None:
    fit = NormalRangeFit(SHAPE, SPACING)
    everywhere = np.ones(SHAPE, dtype=bool)
    for value in (1.0, 3.0):
        fit.add(np.full(SHAPE, value, dtype=np.float32), everywhere)
    normal = fit.result()
    np.testing.assert_allclose(normal.mean, 2.0, rtol=1e-5)
    np.testing.assert_allclose(normal.spread, 1.0, rtol=1e-4)
    assert normal.mean.dtype == normal.spread.dtype == np.float32


def test_lesions_do_not_teach() -> None:
    fit = NormalRangeFit(SHAPE, SPACING)
    image, healthy = np.ones(SHAPE, dtype=np.float32), np.ones(SHAPE, dtype=bool)
    healthy[3:7, 4:9, 4:8] = False
    image[~healthy] = 50.0
    fit.add(image, healthy)
    np.testing.assert_allclose(fit.result().mean, 1.0, rtol=1e-5)


def test_one_side_teaches_the_other() -> None:
    fit = NormalRangeFit(SHAPE, SPACING)
    left = np.zeros(SHAPE, dtype=bool)
    left[:10] = True
    fit.add(np.full(SHAPE, 2.0, dtype=np.float32), left)
    np.testing.assert_allclose(fit.result().mean, 2.0, rtol=1e-5)


def test_where_nobody_was_healthy_the_mean_is_zero() -> None:
    fit = NormalRangeFit(SHAPE, SPACING)
    fit.add(np.full(SHAPE, 2.0, dtype=np.float32), np.zeros(SHAPE, dtype=bool))
    normal = fit.result()
    assert not normal.mean.any()
    assert not normal.spread.any()


@pytest.mark.parametrize(("sign", "expected"), [(1, 2.5), (-1, -3.5), (0, 2.5)])
def test_deviation_is_what_lies_beyond_one_standard_deviation(sign: int, expected: float) -> None:
    image = np.full(SHAPE, 4.0, dtype=np.float32)
    beyond = deviation(image, flat(1.0, 0.5), sign)
    assert beyond.dtype == np.float32
    np.testing.assert_allclose(beyond, expected)


def test_dark_on_either_side_counts_where_the_sign_is_unknown() -> None:
    image = np.full(SHAPE, -2.0, dtype=np.float32)
    np.testing.assert_allclose(deviation(image, flat(1.0, 0.5), 0), 2.5)


def test_small_lesions_are_rarest_where_the_atlas_has_grey_matter() -> None:
    found = rarer_in_grey(np.array([-2.0, -0.2, 0.15, 0.5, 2.0], dtype=np.float32))
    assert found.dtype == np.float32
    expected = [RARER_IN_GREY, RARER_IN_GREY, RARER_IN_GREY / 2, 0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
