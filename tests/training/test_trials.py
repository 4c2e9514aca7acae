"""Rules of the threshold: tried as the product applies them, and chosen by the given subjects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmccd_cli.anomaly.candidates import find_threshold, mask_at
from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.anomaly.score import SmoothedScore
from mmccd_cli.config import ScoreConfig
from mmccd_cli.training.trials import (
    EDGE_COMPACTNESS,
    THRESHOLDS,
    Trial,
    choose_trial,
    dice_of_rules,
    threshold_rules,
)

SCORE = ScoreConfig(
    modalities=("FLAIR",),
    weights={"cycle:FLAIR": 1.0},
    min_seed_mm3=0.0,
    min_fraction_of_largest=0.0,
    rim_mm=0.0,
)


def shell_around_a_lesion() -> tuple[SmoothedScore, np.ndarray]:
    """A thin shell with a steep edge, around a brighter lesion with a soft one."""
    distance = np.sqrt(((np.indices((48, 48, 48)) - 24) ** 2).sum(axis=0))
    brain, shell = distance <= 22, (distance <= 17) & (distance > 14)
    values = (np.where(shell, 1.5, 0.0) + np.clip(4.0 - 0.4 * distance, 0, None)).astype(np.float32)
    smoothed = SmoothedScore(
        raw=values, values=values, brain=brain, region=brain, spacing_mm=(2.0, 2.0, 2.0)
    )
    return smoothed, distance < 5.5


def test_a_setting_has_the_dice_of_the_mask_that_the_product_makes() -> None:
    smoothed, lesion = shell_around_a_lesion()
    fixed, edge = threshold_rules(SCORE)
    of_fixed, of_edge = dice_of_rules(smoothed, lesion, [fixed, edge])

    def dice_at(threshold: float, config: ScoreConfig) -> float:
        return overlap(mask_at(smoothed, threshold, config), lesion).dice

    assert of_fixed == pytest.approx([dice_at(find_threshold(smoothed, c), c) for c in fixed])
    found = find_threshold(smoothed, edge[0])
    below, above = (THRESHOLDS[np.searchsorted(THRESHOLDS, found) - back] for back in (1, 0))
    share = (found - below) / (above - below)
    expected = (1 - share) * dice_at(below, edge[0]) + share * dice_at(above, edge[0])
    assert of_edge == pytest.approx([expected])
    assert expected > 0.3


def test_the_compactness_of_the_settings_decides() -> None:
    """Without it the shell would be marked, too."""
    smoothed, lesion = shell_around_a_lesion()
    _, (edge,) = threshold_rules(SCORE)
    assert edge.edge_compactness == EDGE_COMPACTNESS
    careless = replace(edge, edge_compactness=0.0)
    (careful_dice,), (careless_dice,) = dice_of_rules(smoothed, lesion, [[edge], [careless]])
    assert careful_dice > 2 * careless_dice


def test_the_edge_rule_may_try_no_other_threshold() -> None:
    smoothed, lesion = shell_around_a_lesion()
    _, (edge,) = threshold_rules(SCORE)
    with pytest.raises(KeyError):
        dice_of_rules(smoothed, lesion, [[replace(edge, edge_low=0.7)]])


def test_settings_are_chosen_by_the_given_subjects_alone() -> None:
    low, high = (
        ScoreConfig(
            modalities=("FLAIR",),
            weights={"cycle:FLAIR": 1.0},
            threshold_rule="fixed",
            threshold_offset=t,
        )
        for t in (1.0, 2.0)
    )
    # The first subject alone is best at the lower threshold.
    trial = Trial(0.1, [low, high], np.array([[1.0, 0.0], [0.6, 0.7], [0.6, 0.7]]))
    worse = Trial(0.1, [low, high], np.array([[0.9, 0.9], [0.1, 0.1], [0.1, 0.1]]))
    everyone, others = np.array([True, True, True]), np.array([False, True, True])
    assert choose_trial([worse, trial], everyone) == (trial, low)
    assert choose_trial([worse, trial], others) == (trial, high)
    # Left out: the first is scored at the others' choice (0.0), the others at the lower one (0.6).
    assert trial.left_out_dice(everyone) == pytest.approx((0.0 + 0.6 + 0.6) / 3)


def test_a_small_ridge_must_be_clearly_better() -> None:
    score = ScoreConfig(modalities=("FLAIR",), weights={"cycle:FLAIR": 1.0})
    everyone = np.array([True, True])
    even = Trial(1e-2, [score], np.array([[0.80], [0.80]]))
    hardly = Trial(1e-4, [score], np.array([[0.803], [0.803]]))
    clearly = Trial(1e-4, [score], np.array([[0.81], [0.81]]))
    assert choose_trial([hardly, even], everyone)[0] is even
    assert choose_trial([clearly, even], everyone)[0] is clearly
