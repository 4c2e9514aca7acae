"""The one number of a threshold rule, chosen on labelled subjects that are not scored with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmccd_cli.anomaly.candidates import find_threshold, mask_at
from mmccd_cli.anomaly.components import BoolArray
from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.anomaly.score import SmoothedScore
from mmccd_cli.config import ScoreConfig
from mmccd_cli.template import bounding_box

CURVE_THRESHOLDS = tuple(round(0.1 * i, 1) for i in range(1, 51))
"""Thresholds whose masks are made; between them Dice is interpolated."""
FIXED_CANDIDATES = tuple(round(0.1 * i, 1) for i in range(2, 51))
ADAPTIVE_CANDIDATES = tuple(round(0.1 * i, 1) for i in range(-10, 31))
"""What is tried as the constant of each rule, in the score's unit."""


@dataclass(frozen=True)
class DiceCurve:
    """Dice of one subject's cleaned masks by threshold.

    Attributes:
        dice: One value for each of `CURVE_THRESHOLDS`.
        otsu_share: What the adaptive rule adds to its constant in this scan.
    """

    dice: tuple[float, ...]
    otsu_share: float

    def at(self, thresholds: Iterable[float]) -> np.ndarray:
        """Interpolate Dice at other thresholds."""
        return np.interp(list(thresholds), CURVE_THRESHOLDS, self.dice)


def dice_curve(smoothed: SmoothedScore, reference: BoolArray, config: ScoreConfig) -> DiceCurve:
    """Make the masks of all thresholds and compare them with a reference on the same grid."""
    box = bounding_box(smoothed.region | reference, margin=1)
    arrays = ("raw", "values", "brain", "region")
    part = replace(smoothed, **{name: getattr(smoothed, name)[box] for name in arrays})
    truth = reference[box]
    dice = [overlap(mask_at(part, t, config), truth).dice for t in CURVE_THRESHOLDS]
    otsu = replace(config, threshold_rule="otsu", threshold_offset=0.0)
    return DiceCurve(tuple(dice), find_threshold(part, otsu))


def choose_constants(curves: Sequence[DiceCurve]) -> dict[str, float]:
    """Choose the constants of both rules with the highest mean Dice, the lowest of equal ones.

    Raises:
        ValueError: No subject.
    """
    if not curves:
        raise ValueError("Constants are chosen on at least one subject.")
    fixed = np.mean([c.at(FIXED_CANDIDATES) for c in curves], axis=0)
    adaptive = np.mean([c.at(np.add(ADAPTIVE_CANDIDATES, c.otsu_share)) for c in curves], axis=0)
    return {
        "fixed": FIXED_CANDIDATES[int(np.argmax(fixed))],
        "adaptive": ADAPTIVE_CANDIDATES[int(np.argmax(adaptive))],
    }
