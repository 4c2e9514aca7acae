"""Which confidence lesions need: shared where small foci count, and never above even odds."""

from __future__ import annotations

import numpy as np
import pytest

from mmccd_cli.config import ScoreConfig
from mmccd_cli.training.calibration import (
    EVEN_ODDS,
    MIN_CONFIDENCES,
    CalibrationRow,
    with_least_confidences,
)


def row(dice: list[float], *, foci: bool) -> CalibrationRow:
    config = ScoreConfig(
        modalities=("FLAIR",),
        weights={"atlas:FLAIR": 1.0},
        foci_weight=1.0 if foci else 0.0,
        min_confidence=0.9,
    )
    return CalibrationRow(
        method="cyclic-unet",
        config=config,
        trials=[],
        fold_configs=[config, config],
        dice_by_confidence=tuple(dice),
    )


def chosen(*rows: CalibrationRow) -> list[float]:
    found = with_least_confidences(rows)
    for result in found:
        assert {own.min_confidence for own in result.fold_configs} <= {result.config.min_confidence}
    return [result.config.min_confidence for result in found]


def test_sets_with_foci_share_the_lowest_that_is_not_clearly_worse() -> None:
    """Alone the first would take the lowest and the second the highest but one."""
    first, second = [0.80, 0.80, 0.80, 0.80], [0.770, 0.790, 0.796, 0.799]
    assert chosen(row(first, foci=True), row(second, foci=True)) == [MIN_CONFIDENCES[1]] * 2
    assert chosen(row(second, foci=True)) == [MIN_CONFIDENCES[2]]


@pytest.mark.parametrize(("gain", "least"), [(0.004, EVEN_ODDS), (0.006, MIN_CONFIDENCES[1])])
def test_without_foci_another_than_even_odds_must_be_clearly_better(
    gain: float, least: float
) -> None:
    dice = np.full(len(MIN_CONFIDENCES), 0.7)
    dice[1] += gain
    assert chosen(row(dice.tolist(), foci=False)) == [least]


def test_sets_without_foci_and_without_lesions_are_left_to_themselves() -> None:
    healthy = CalibrationRow(
        method="mmccd",
        config=ScoreConfig(modalities=("T2w",), weights={"atlas:T2w": 1.0}, min_confidence=0.9),
        trials=[],
    )
    even = [0.7] * len(MIN_CONFIDENCES)
    assert chosen(healthy, row(even, foci=False), row(even, foci=True)) == [
        0.9,
        EVEN_ODDS,
        MIN_CONFIDENCES[0],
    ]
