"""Constants of threshold rules against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.anomaly.score import SmoothedScore
from mmccd_cli.evaluation.baselines import (
    BASELINES,
    SHARED_CLEANING,
    AdaptiveThreshold,
    FixedThreshold,
)
from mmccd_cli.evaluation.thresholds import (
    SHIPPED_CONSTANTS,
    THRESHOLDS,
    DiceCurve,
    choose_constants,
    dice_curve,
    rules_of,
)

ONE_MM = (1.0, 1.0, 1.0)


def make_score(seed: int, contrast: float) -> tuple[SmoothedScore, np.ndarray]:
    """Noise with a bright ball in a ball of a brain, and the bright ball."""
    i, j, k = np.mgrid[:28, :28, :28]
    brain = (i - 14) ** 2 + (j - 14) ** 2 + (k - 14) ** 2 < 12**2
    lesion = (i - 15) ** 2 + (j - 13) ** 2 + (k - 14) ** 2 < 5**2
    raw = np.random.default_rng(seed).normal(size=brain.shape) + contrast * lesion
    raw = np.where(brain, raw, 0).astype(np.float32)
    return SHARED_CLEANING.smooth(raw, brain, ONE_MM), lesion


def test_a_curve_is_the_dice_of_the_masks() -> None:
    score, lesion = make_score(0, 3.0)
    curve = dice_curve("a", score, lesion, SHARED_CLEANING)
    for threshold in (0.5, 1.5, 3.0):
        mask = SHARED_CLEANING.segment(score, FixedThreshold(threshold))
        assert curve.at([threshold])[0] == pytest.approx(overlap(mask, lesion).dice)
    assert curve.otsu_share == pytest.approx(AdaptiveThreshold(0.0).find(score), abs=0.02)
    assert max(curve.dice) > 0.8


def test_reference_outside_the_region_counts_as_missed() -> None:
    score, lesion = make_score(0, 3.0)
    far = lesion.copy()
    far[0, 0] = True
    mask = SHARED_CLEANING.segment(score, FixedThreshold(1.5))
    curve = dice_curve("a", score, far, SHARED_CLEANING)
    assert curve.at([1.5])[0] == pytest.approx(overlap(mask, far).dice)


def test_constants_are_the_best_over_the_subjects() -> None:
    def peak(at: float) -> tuple[float, ...]:
        return tuple(max(0.0, 1 - abs(t - at)) for t in THRESHOLDS)

    # The best threshold of each is its own Otsu share plus one.
    curves = [DiceCurve("a", peak(1.5), 0.5), DiceCurve("b", peak(3.0), 2.0)]
    chosen = choose_constants(curves)
    assert chosen["adaptive"] == 1.0
    assert 1.5 <= chosen["fixed"] <= 3.0
    assert choose_constants(curves[:1])["fixed"] == 1.5
    with pytest.raises(ValueError, match="at least one"):
        choose_constants([])


def test_every_baseline_has_shipped_constants_and_rules() -> None:
    assert set(SHIPPED_CONSTANTS) == set(BASELINES)
    for score, constants in SHIPPED_CONSTANTS.items():
        rules = rules_of(score, constants)
        assert rules["fixed"] == FixedThreshold(constants["fixed"])
        assert rules["adaptive"] == AdaptiveThreshold(constants["adaptive"])
        assert ("edge" in rules) == (score == "flair-z")
        assert rules["fixed"].describe() == f"fixed {constants['fixed']:g}"
