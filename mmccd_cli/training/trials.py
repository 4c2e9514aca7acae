"""Rules of the threshold that a calibration tries, and which is best on subjects left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.candidates import (
    EDGE_STEP,
    completed,
    edge_key,
    find_threshold,
    judged_candidates,
)
from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.anomaly.score import SmoothedScore
from mmccd_cli.config import ScoreConfig

THRESHOLDS = tuple(edge_key(EDGE_STEP * i) for i in range(2, 17))
"""The fixed thresholds that are tried; those of the edge rule are among them."""
EDGE_WINDOW = (0.6, 2.2)
"""A wider or higher one lets single scans run away to the contour of a bright core; chosen among
several for each set of scans, it differs by chance: with FLAIR the Dice of 17 patients left out was
0.807 instead of 0.834 in version 0.5.0."""
EDGE_COMPACTNESS = 0.45
"""In version 0.10.0, of 17 patients left out no mask changed up to 0.5; of what is left of their
brains without the tumour, the edge rule alone marked 10 ml at most instead of 32 (all scans; 24
instead of 30 with FLAIR and T1w, 27 instead of 28 with FLAIR), before confidences."""
CLEARLY_BETTER = 0.005
"""Mean Dice by which what is preferred less must be better: a small ridge, for example."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One kind of threshold rule for one combination of signals.

    Attributes:
        ridge: Ridge of the fit of the weights.
        settings: The settings of the rule that were tried.
        dice: (subjects, settings).
    """

    ridge: float
    settings: list[ScoreConfig]
    dice: NDArray[np.float64]

    def left_out_dice(self, rows: NDArray[np.bool_]) -> float:
        """Mean Dice where each subject's setting is the best one of all others."""
        dice = self.dice[rows]
        if len(dice) == 1:
            return float(dice.max())
        rest = dice.sum(axis=0) - dice
        return float(dice[np.arange(len(dice)), rest.argmax(axis=1)].mean())

    def best(self, rows: NDArray[np.bool_]) -> ScoreConfig:
        """The setting with the best mean Dice."""
        return self.settings[int(self.dice[rows].mean(axis=0).argmax())]

    def describe(self) -> dict[str, Any]:
        """As plain values, for the model card."""
        everyone = np.ones(len(self.dice), dtype=bool)
        config = self.best(everyone)
        return {
            "weights": config.weights,
            "ridge": self.ridge,
            "rule": config.rule_in_words,
            "dice": round(float(self.dice.mean(axis=0).max()), 4),
            "left_out_dice": round(self.left_out_dice(everyone), 4),
        }


def choose_trial(trials: Sequence[Trial], rows: NDArray[np.bool_]) -> tuple[Trial, ScoreConfig]:
    """The trial with the best Dice left out among some subjects, and its best setting for them.

    A smaller ridge must be better by `CLEARLY_BETTER`.
    """
    largest = max(trial.ridge for trial in trials)

    def worth(trial: Trial) -> float:
        return trial.left_out_dice(rows) - (CLEARLY_BETTER if trial.ridge < largest else 0.0)

    trial = max(trials, key=worth)
    return trial, trial.best(rows)


def threshold_rules(config: ScoreConfig) -> list[list[ScoreConfig]]:
    """For each kind of rule, a score with every setting of it that is tried."""
    edge = replace(
        config,
        threshold_rule="edge",
        edge_low=EDGE_WINDOW[0],
        edge_high=EDGE_WINDOW[1],
        edge_compactness=EDGE_COMPACTNESS,
    )
    return [
        [replace(config, threshold_rule="fixed", threshold_offset=t) for t in THRESHOLDS],
        [edge],
    ]


def dice_of_rules(
    smoothed: SmoothedScore, lesion: NDArray[np.bool_], rules: Sequence[Sequence[ScoreConfig]]
) -> list[NDArray[np.float64]]:
    """Dice of one subject at the threshold that each setting finds.

    Masks are made at every threshold of `THRESHOLDS` only, between which Dice is interpolated; the
    edge rule may try no others.

    Args:
        smoothed: The subject's score.
        lesion: (I, J, K) bool.
        rules: Settings of each kind of rule, which differ in their rule alone.

    Returns:
        (settings,) float64 for each kind of rule.
    """
    config = rules[0][0]
    judged = judged_candidates(smoothed, THRESHOLDS, config)
    dice = [
        overlap(completed(found.mask, smoothed, threshold=threshold, config=config), lesion).dice
        for threshold, found in zip(THRESHOLDS, judged, strict=True)
    ]
    known = dict(zip(THRESHOLDS, judged, strict=True))
    return [
        np.interp([find_threshold(smoothed, s, known=known) for s in settings], THRESHOLDS, dice)
        for settings in rules
    ]
