"""Constants of threshold rules against brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmccd_cli.anomaly.candidates import find_threshold, mask_at
from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.anomaly.score import SmoothedScore, smooth
from mmccd_cli.evaluation.baselines import BASELINES
from mmccd_cli.evaluation.thresholds import (
    CURVE_THRESHOLDS,
    DiceCurve,
    choose_constants,
    dice_curve,
)

FLAIR_Z = BASELINES["flair-z"]


def make_score(seed: int, contrast: float) -> tuple[SmoothedScore, np.ndarray]:
    """Noise with a bright ball in a ball of a brain, and the bright ball."""
    i, j, k = np.mgrid[:28, :28, :28]
    brain = (i - 14) ** 2 + (j - 14) ** 2 + (k - 14) ** 2 < 12**2
    lesion = (i - 15) ** 2 + (j - 13) ** 2 + (k - 14) ** 2 < 5**2
    raw = np.random.default_rng(seed).normal(size=brain.shape) + contrast * lesion
    raw = np.where(brain, raw, 0).astype(np.float32)
    signals = {"intensity:FLAIR": raw}
    return smooth(signals, brain, spacing_mm=(1.0, 1.0, 1.0), config=FLAIR_Z), lesion


def test_a_curve_is_the_dice_of_the_masks() -> None:
    score, lesion = make_score(0, 3.0)
    far = lesion.copy()
    far[0, 0] = True  # what lies outside the region counts as missed
    for reference in (lesion, far):
        curve = dice_curve(score, reference, FLAIR_Z)
        for threshold in (0.5, 1.5, 3.0):
            expected = overlap(mask_at(score, threshold, FLAIR_Z), reference).dice
            assert curve.at([threshold])[0] == pytest.approx(expected)
        assert reference is far or max(curve.dice) > 0.8
    otsu = replace(FLAIR_Z, threshold_rule="otsu", threshold_offset=0.0)
    assert curve.otsu_share == pytest.approx(find_threshold(score, otsu), abs=0.02)


def test_constants_are_the_best_over_the_subjects() -> None:
    def peak(at: float) -> tuple[float, ...]:
        return tuple(max(0.0, 1 - abs(t - at)) for t in CURVE_THRESHOLDS)

    # The best threshold of each is its own Otsu share plus one.
    curves = [DiceCurve(peak(1.5), 0.5), DiceCurve(peak(3.0), 2.0)]
    chosen = choose_constants(curves)
    assert chosen["adaptive"] == 1.0
    assert 1.5 <= chosen["fixed"] <= 3.0
    assert choose_constants(curves[:1])["fixed"] == 1.5
    with pytest.raises(ValueError, match="at least one"):
        choose_constants([])
