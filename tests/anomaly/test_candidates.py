"""Thresholds without labels, and what a scan's own threshold leaves of its score."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scores import LESION, PLAIN, SHAPE, SPACING, brain, signal

from mmccd_cli.anomaly.candidates import (
    ScanScore,
    _worth,
    adaptive_threshold,
    compactness,
    find_threshold,
    otsu_threshold,
    score_scan,
    strongest_edge,
)
from mmccd_cli.anomaly.components import label_components
from mmccd_cli.anomaly.score import SmoothedScore, map_from_score
from mmccd_cli.config import ScoreConfig


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=40))
def test_otsu_is_the_best_of_all_cuts(numbers: list[int]) -> None:
    values = np.array(numbers, dtype=float)
    levels = np.unique(values)
    if levels.size == 1:
        assert otsu_threshold(values) == levels[0]
        return

    def inner_variance(cut: float) -> float:
        low, high = values[values <= cut], values[values > cut]
        return float(low.size * low.var() + high.size * high.var())

    best = min(inner_variance(c) for c in (levels[:-1] + levels[1:]) / 2)
    assert inner_variance(otsu_threshold(values)) == pytest.approx(best, abs=1e-6)


def test_otsu_of_nothing_is_zero() -> None:
    assert otsu_threshold(np.array([])) == 0.0


def test_adaptive_threshold_follows_the_contrast_of_the_scan() -> None:
    dark = np.concatenate([np.linspace(-1, 1, 900), np.full(100, 4.0)])
    bright = np.concatenate([np.linspace(-1, 1, 900), np.full(100, 8.0)])
    low, high = (adaptive_threshold(s, constant=0.6) for s in (dark, bright))
    assert low < high
    # The lowest of the upper group is 4 and the highest of the others 1: the cut is half-way.
    assert low == pytest.approx(0.6 + 0.5 * 2.5)
    assert adaptive_threshold(dark, constant=0.6, otsu_weight=0.0) == 0.6
    assert adaptive_threshold(np.array([]), constant=0.6) == 0.6


def scored(
    values: NDArray[np.float32],
    config: ScoreConfig,
    spacing_mm: tuple[float, float, float] = SPACING,
) -> ScanScore:
    return score_scan({"cycle:FLAIR": values}, brain(), spacing_mm=spacing_mm, config=config)


def test_a_fixed_threshold_is_what_the_settings_say() -> None:
    found = scored(signal(), PLAIN)
    assert found.threshold == 1.0
    np.testing.assert_array_equal(found.values, signal())


def test_the_outside_of_the_brain_scores_nothing() -> None:
    loud = np.full(SHAPE, 9.0, dtype=np.float32)
    found = scored(loud, PLAIN)
    assert not found.values[~brain()].any()
    assert (found.values[brain()] == 9).all()


def test_what_is_on_both_sides_scores_less() -> None:
    """Two spots mirror each other and a third is alone: only the pair loses."""
    values = np.zeros(SHAPE, dtype=np.float32)
    values[4:8, 4:8, 8:13] = values[16:20, 4:8, 8:13] = 4.0
    values[4:8, 16:20, 8:13] = 4.0
    signals = {"cycle:FLAIR": values, "intensity:FLAIR": np.where(brain(), values + 1, 0)}
    config = replace(PLAIN, asymmetry_weight=1.0)
    found = score_scan(signals, brain(), spacing_mm=SPACING, config=config).values
    pair, other, alone = (found[i, j, 10] for i, j in ((6, 6), (17, 6), (6, 18)))
    assert pair == pytest.approx(other, abs=0.05)
    assert pair < 3.7
    assert alone > 3.9


def test_the_rim_is_left_out_by_millimetres() -> None:
    config = replace(PLAIN, erosion_mm=3.0, threshold_offset=99.0)
    loud = np.where(brain(), np.float32(9), np.float32(0))
    found = scored(loud, config)
    inner = np.zeros(SHAPE, dtype=bool)
    inner[3:21, 3:21, 3:17] = True
    np.testing.assert_array_equal(found.values > 0, inner)
    coarse = scored(loud, config, (4.0, 4.0, 4.0))
    np.testing.assert_array_equal(coarse.values > 0, brain())


def test_the_rim_comes_back_next_to_a_lesion_and_nowhere_else() -> None:
    """A lesion that touches the brain's surface, and a bright rim far from it."""
    values = np.zeros(SHAPE, dtype=np.float32)
    values[2:9, 8:15, 8:13] = 4.0
    values[8:14, 21:22, 8:13] = 4.0
    config = replace(PLAIN, erosion_mm=3.0, rim_mm=4.5)
    found = scored(values, config)
    assert (found.values[2, 9:14, 9:12] == 4).all(), "the lesion's part of the rim"
    assert not found.values[:, 21].any(), "a rim without a lesion"
    without = scored(values, replace(config, rim_mm=0.0))
    assert not without.values[2].any()


def test_the_map_says_of_small_foci_what_their_network_says() -> None:
    """One in the tissue, one in the rim, one inside a lesion that is surer; the threshold stays."""
    config = replace(PLAIN, erosion_mm=3.0, foci_weight=1.5, foci_bias=-2.0, map_offset=-0.5)
    values = signal()
    foci = np.zeros(SHAPE, dtype=np.float32)
    lesion = tuple(int(n) for n in np.argwhere(values > 3).mean(axis=0))
    foci[18, 5, 8], foci[2, 12, 10], foci[lesion] = 4.0, 4.0, 0.1
    signals = {"cycle:FLAIR": values, "foci:FLAIR": foci}
    found = score_scan(signals, brain(), spacing_mm=SPACING, config=config)
    plain = score_scan(
        signals, brain(), spacing_mm=SPACING, config=replace(config, foci_weight=0.0)
    )
    assert found.threshold == plain.threshold
    shown = map_from_score(found.values, found.threshold, config)
    assert shown[18, 5, 8] == pytest.approx(1 / (1 + np.exp(-(1.5 * 4.0 - 2.0))), rel=1e-4)
    changed = np.argwhere(found.values != plain.values)
    np.testing.assert_array_equal(changed, [[18, 5, 8]])


@pytest.mark.parametrize("rule", ["otsu", "edge"])
def test_adaptive_thresholds_lie_between_tissue_and_lesion(rule: str) -> None:
    config = replace(
        PLAIN,
        threshold_rule=rule,  # type: ignore[arg-type]
        threshold_offset=0.0,
        otsu_weight=1.0,
        edge_low=0.5,
        edge_high=5.0,
    )
    found = scored(signal(), config)
    assert 0.5 <= found.threshold < 4
    agreement = (found.values > found.threshold) == LESION
    assert agreement.mean() > 0.98


def test_the_constant_is_added_to_the_share_of_otsu() -> None:
    config = replace(PLAIN, threshold_rule="otsu", otsu_weight=0.5)
    found = [scored(signal(), replace(config, threshold_offset=o)) for o in (0.0, 1.0)]
    assert found[1].threshold - found[0].threshold == pytest.approx(1.0)
    none = replace(config, otsu_weight=0.0, threshold_offset=1.5)
    assert scored(signal(), none).threshold == 1.5


def test_the_edge_rule_stays_within_its_bounds_without_a_lesion() -> None:
    config = replace(PLAIN, threshold_rule="edge", edge_low=1.0, edge_high=2.0, min_seed_mm3=80.0)
    quiet = np.where(brain(), signal() - 4 * LESION, 0).astype(np.float32)
    found = scored(quiet, config)
    assert found.threshold == 2.0, "the most careful one, where there is nothing"


def test_the_median_takes_away_what_is_smaller_than_its_box() -> None:
    spiky = signal()
    spiky[4, 4, 4] = 50
    config = replace(PLAIN, median_mm=6.0)
    found = scored(spiky, config)
    assert found.values[4, 4, 4] < 1
    assert found.values[11, 11, 10] > 3


def test_a_small_change_never_moves_the_threshold_from_one_edge_to_another() -> None:
    candidates = [1.0, 2.0, 3.0]
    even = np.array([1.0, 0.0, 3.0**0.25])  # as strong at 1 as at 3
    assert strongest_edge(candidates, even) == pytest.approx(2.0, abs=1e-6)
    hair = even * [1.001, 1, 1]
    assert strongest_edge(candidates, hair) == pytest.approx(2.0, abs=0.06)
    assert strongest_edge(candidates, even * [1.2, 1, 1]) == pytest.approx(1.0, abs=1e-3)
    assert strongest_edge(candidates, np.zeros(3)) == 3.0


def ball(shape: tuple[int, int, int], radius: float) -> np.ndarray:
    axes = np.indices(shape) - np.array(shape).reshape(3, 1, 1, 1) // 2
    return (axes**2).sum(axis=0) <= radius**2


def compactness_of(mask: np.ndarray) -> float:
    _, voxels, _ = label_components(mask)
    return compactness(mask, voxels * 8.0, (2.0, 2.0, 2.0))


@pytest.mark.parametrize("radius", [6, 10, 15])
def test_balls_are_compact_whatever_their_size(radius: int) -> None:
    assert compactness_of(ball((40, 40, 40), radius)) == pytest.approx(1.0, abs=0.2)


def test_a_sheet_is_not_compact_and_a_small_spot_need_not_be() -> None:
    sheet = ball((40, 40, 40), 18) & ~ball((40, 40, 40), 16)
    assert compactness_of(sheet) < 0.05
    assert compactness_of(ball((40, 40, 40), 1)) == 1.0
    assert compactness_of(np.zeros((9, 9, 9), bool)) == 1.0


def test_what_is_too_small_to_tell_counts_as_compact() -> None:
    few = ball((40, 40, 40), 5) & ~ball((40, 40, 40), 3)
    many = sum((np.roll(few, 11 * n, axis=n % 3) for n in range(3)), np.zeros_like(few))
    assert 0.5 < compactness_of(few) < 0.8
    assert compactness_of(many > 0) < compactness_of(few)


def test_a_mask_that_is_hardly_compact_enough_moves_the_threshold_little() -> None:
    rise = [_worth(beyond) for beyond in np.linspace(-0.1, 0.1, 201)]
    assert rise[0] == 0.0
    assert rise[-1] == 1.0
    assert _worth(0.0) == pytest.approx(0.5)
    assert np.diff(rise).min() >= 0.0
    assert np.diff(rise).max() < 0.02  # a cliff would be 0.9


def test_the_edge_rule_passes_by_thresholds_at_which_healthy_tissue_runs_together() -> None:
    """A shell with a steep edge around a brighter lesion with a soft one."""
    brain = ball((48, 48, 48), 22)
    shell = ball((48, 48, 48), 17) & ~ball((48, 48, 48), 14)
    distance = np.sqrt(((np.indices((48, 48, 48)) - 24) ** 2).sum(axis=0))
    values = np.where(shell, 1.5, 0.0) + np.clip(4.0 - 0.4 * distance, 0, None)
    smoothed = SmoothedScore(
        raw=values.astype(np.float32),
        values=values.astype(np.float32),
        brain=brain,
        region=brain,
        spacing_mm=(2.0, 2.0, 2.0),
    )
    config = replace(PLAIN, threshold_rule="edge", edge_low=0.8, edge_high=1.8)
    assert find_threshold(smoothed, config) < 1.45
    careful = replace(config, edge_compactness=0.45)
    assert find_threshold(smoothed, careful) > 1.5
