"""The contour goes to where the scan changes, and no farther than allowed."""

from __future__ import annotations

import numpy as np
import pytest

from mmccd_cli.anomaly import contour
from mmccd_cli.anomaly.contour import refine_contour
from mmccd_cli.anomaly.metrics import overlap

SHAPE = (48, 48, 40)


def ball(radius: float, centre: tuple[float, float, float] = (24, 24, 20)) -> np.ndarray:
    axes = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    return np.asarray(sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) <= radius**2)


def scan(lesion: np.ndarray, contrast: float = 300.0) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 40, SHAPE)
    return (1000 + noise + contrast * lesion).astype(np.float32)


def refined_mask(mask: np.ndarray, image: np.ndarray, reach: float = 3.0) -> np.ndarray:
    values = np.where(mask, 0.9, 0.1).astype(np.float32)
    brain = ball(21)
    result = refine_contour(
        values, mask, image=image, brain=brain, spacing_mm=(1, 1, 1), reach_mm=reach
    )
    assert result.dtype == np.float32
    assert 0 <= result.min() <= result.max() <= 1
    return result > 0.5


@pytest.mark.parametrize("contrast", [300.0, -300.0])
@pytest.mark.parametrize("radius", [8, 12])
def test_a_contour_that_is_off_by_two_voxels_is_mended(radius: int, contrast: float) -> None:
    lesion, mask = ball(10), ball(radius)
    image = scan(lesion, contrast)
    better = refined_mask(mask, image)
    assert overlap(better, lesion).dice > overlap(mask, lesion).dice + 0.04
    np.testing.assert_array_equal(refined_mask(mask, image * np.float32(2.0**-40)), better)


def test_nothing_changes_out_of_reach() -> None:
    mask, elsewhere = ball(8), ball(4, (24, 8, 20))
    image = scan(ball(10) | elsewhere)
    result = refined_mask(mask, image)
    assert not result[elsewhere].any()
    assert (result & ~ball(11.5)).sum() == 0


def test_without_contrast_the_contour_stays() -> None:
    mask = ball(10)
    assert overlap(refined_mask(mask, scan(mask, 0.0)), mask).dice > 0.97


@pytest.mark.parametrize("radius", [0.5, 3])
def test_what_is_too_small_to_learn_from_is_left_alone(radius: float) -> None:
    mask = ball(radius)
    np.testing.assert_array_equal(refined_mask(mask, scan(ball(6))), mask)


def test_what_a_lesion_is_worth_stays_as_it_was() -> None:
    """So the confidence of a candidate does not depend on whether its contour was refined."""
    rng, mask = np.random.default_rng(1), ball(8)
    log_odds = np.where(mask, rng.normal(1.5, 0.3, SHAPE), -3).astype(np.float32)
    before = 1 / (1 + np.exp(-log_odds))
    after = refine_contour(
        before, mask, image=scan(ball(10)), brain=ball(21), spacing_mm=(1, 1, 1), reach_mm=3.0
    )
    refined = after > 0.5
    assert refined.sum() > 1.5 * mask.sum()
    assert np.log(after[refined] / (1 - after[refined])).mean() == pytest.approx(1.5, abs=0.1)
    np.testing.assert_array_equal(after[mask & refined], before[mask & refined])


@pytest.mark.parametrize("rounding", [1e-6, -1e-6])
def test_rounding_of_a_header_moves_no_contour(rounding: float) -> None:
    """Voxels next to the contour are a whole millimetre away from it, and a hair more or less."""
    mask, image, brain = ball(6), scan(ball(8), 80.0), ball(21)
    values = np.where(mask, 0.9, 0.1).astype(np.float32)
    plain, rounded = (
        refine_contour(
            values, mask, image=image, brain=brain, spacing_mm=(size, size, size), reach_mm=3.0
        )
        for size in (1.0, 1.0 + rounding)
    )
    np.testing.assert_allclose(rounded, plain, atol=1e-4)


def test_no_reach_and_no_mask_change_nothing() -> None:
    image, nothing = scan(ball(10)), np.zeros(SHAPE, dtype=bool)
    np.testing.assert_array_equal(refined_mask(ball(8), image, reach=0.0), ball(8))
    assert not refined_mask(nothing, image).any()


def test_the_threshold_stays_where_both_sides_are_equally_likely() -> None:
    mask, image, brain = ball(8), scan(ball(10)), ball(21)
    values = np.where(mask, 0.9, 0.1).astype(np.float32)
    half, high = (
        refine_contour(
            values,
            mask,
            image=image,
            brain=brain,
            spacing_mm=(1, 1, 1),
            reach_mm=3.0,
            threshold=t,
        )
        > t
        for t in (0.5, 0.8)
    )
    np.testing.assert_array_equal(half, high)


def test_a_large_mask_is_done_in_layers_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = ball(6, (12, 24, 20)) | ball(7, (36, 20, 18))
    image = scan(ball(8, (12, 24, 20)) | ball(6, (36, 20, 18)))
    whole = refined_mask(mask, image)
    monkeypatch.setattr(contour, "LAYER_VOXELS", 1)
    np.testing.assert_array_equal(refined_mask(mask, image), whole)
    assert (whole != mask).any()
