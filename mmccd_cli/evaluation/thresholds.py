"""The one number of a threshold rule, chosen on labelled subjects that are not scored with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmccd_cli.anomaly.components import BoolArray
from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.anomaly.score import SmoothedScore
from mmccd_cli.evaluation.baselines import (
    AdaptiveThreshold,
    Cleaning,
    EdgeThreshold,
    FixedThreshold,
    ThresholdRule,
)
from mmccd_cli.template import bounding_box

THRESHOLDS = tuple(round(0.1 * i, 1) for i in range(1, 51))
"""Thresholds whose masks are made; between them Dice is interpolated."""
FIXED_CANDIDATES = tuple(round(0.1 * i, 1) for i in range(2, 51))
ADAPTIVE_CANDIDATES = tuple(round(0.1 * i, 1) for i in range(-10, 31))

Constants = Mapping[str, Mapping[str, float]]
"""Score -> rule ("fixed", "adaptive") -> its constant."""

SHIPPED_CONSTANTS: Constants = {
    "flair-z": {"fixed": 1.4, "adaptive": 0.6},
    "flair-t2w-z": {"fixed": 2.0, "adaptive": 1.0},
    "t2w-z": {"fixed": 1.2, "adaptive": 0.3},
    "t1w-z": {"fixed": 0.2, "adaptive": -0.6},
}
"""Chosen on 17 gliomas, the `train` subjects of the embedded weights."""

EDGE_SCORE = "flair-z"
"""The score that also has a row with the contour rule of our own map, at its default bounds."""


@dataclass(frozen=True)
class DiceCurve:
    """Dice of one subject's cleaned masks by threshold.

    Attributes:
        subject: Id.
        dice: One value for each of `THRESHOLDS`.
        otsu_share: What an adaptive rule adds to its constant in this scan.
    """

    subject: str
    dice: tuple[float, ...]
    otsu_share: float

    def at(self, thresholds: Iterable[float]) -> np.ndarray:
        """Interpolate Dice at other thresholds."""
        return np.interp(list(thresholds), THRESHOLDS, self.dice)


def dice_curve(
    subject: str, score: SmoothedScore, reference: BoolArray, cleaning: Cleaning
) -> DiceCurve:
    """Make the masks of all thresholds and compare them.

    Args:
        subject: Id.
        score: The subject's smoothed score.
        reference: (I, J, K) bool.
        cleaning: From score to mask.
    """
    box = bounding_box(score.region | reference, margin=1)
    part = SmoothedScore(
        values=score.values[box],
        raw=score.raw[box],
        brain=score.brain[box],
        region=score.region[box],
        spacing_mm=score.spacing_mm,
    )
    truth = reference[box]
    dice = [overlap(cleaning.segment(part, FixedThreshold(t)), truth).dice for t in THRESHOLDS]
    return DiceCurve(subject, tuple(dice), AdaptiveThreshold(0.0).find(part))


def choose_constants(curves: Sequence[DiceCurve]) -> dict[str, float]:
    """Choose the constants of the highest mean Dice over subjects.

    Args:
        curves: One for each subject.

    Returns:
        The constants of the fixed and of the adaptive rule; the lowest of equally good ones.

    Raises:
        ValueError: No subject.
    """
    if not curves:
        raise ValueError("constants are chosen on at least one subject")
    fixed = np.mean([c.at(FIXED_CANDIDATES) for c in curves], axis=0)
    adaptive = np.mean([c.at(np.add(ADAPTIVE_CANDIDATES, c.otsu_share)) for c in curves], axis=0)
    return {
        "fixed": FIXED_CANDIDATES[int(np.argmax(fixed))],
        "adaptive": ADAPTIVE_CANDIDATES[int(np.argmax(adaptive))],
    }


def rules_of(score: str, constants: Mapping[str, float]) -> dict[str, ThresholdRule]:
    """Build the rules of one score's rows.

    Args:
        score: Name of the score.
        constants: Rule -> constant.
    """
    rules: dict[str, ThresholdRule] = {
        "fixed": FixedThreshold(constants["fixed"]),
        "adaptive": AdaptiveThreshold(constants["adaptive"]),
    }
    if score == EDGE_SCORE:
        rules["edge"] = EdgeThreshold()
    return rules
