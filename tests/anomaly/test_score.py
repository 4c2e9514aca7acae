"""From signals to map and mask: exact at the threshold, monotone, and within [0, 1]."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmccd_cli.anomaly.candidates import ScanScore, score_scan
from mmccd_cli.anomaly.mask import mask_from_map
from mmccd_cli.anomaly.score import combine, map_from_score
from mmccd_cli.config import ScoreConfig

SPACING = (2.0, 2.0, 2.0)
SHAPE = (24, 24, 20)
PLAIN = ScoreConfig(
    modalities=("FLAIR", "T2w"),
    weights={"cycle:FLAIR": 1.0},
    asymmetry_weight=0.0,
    median_mm=0.0,
    erosion_mm=0.0,
    threshold_rule="fixed",
    threshold_offset=1.0,
    min_seed_mm3=0.0,
    min_fraction_of_largest=0.0,
    rim_mm=0.0,
    fill_holes="none",
)


def brain() -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[2:22, 2:22, 2:18] = True
    return mask


def signal(seed: int = 0) -> NDArray[np.float32]:
    """Noise of 0.3 with a lesion of 4 in the brain."""
    values = 0.3 * np.random.default_rng(seed).standard_normal(SHAPE)
    values[8:14, 8:14, 8:13] += 4
    return np.where(brain(), values, 0).astype(np.float32)


LESION = np.zeros(SHAPE, dtype=bool)
LESION[8:14, 8:14, 8:13] = True


# The map

finite = st.floats(-1e6, 1e6, width=32)


@settings(deadline=None)
@given(st.lists(finite, min_size=2, max_size=30), st.floats(-10, 10), st.floats(0.01, 10))
def test_map_rises_with_the_score_within_zero_and_one(
    values: list[float], threshold: float, scale: float
) -> None:
    ordered = np.sort(np.array(values, dtype=np.float32))
    mapped = map_from_score(ordered, threshold, replace(PLAIN, map_scale=scale))
    assert mapped.dtype == np.float32
    assert np.isfinite(mapped).all()
    assert mapped.min() >= 0
    assert mapped.max() <= 1
    assert (np.diff(mapped) >= 0).all()


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 2.5])
@pytest.mark.parametrize("scale", [0.1, 0.5, 3.0])
def test_map_is_one_half_at_the_threshold(threshold: float, scale: float) -> None:
    config = replace(PLAIN, map_scale=scale)
    values = np.array([threshold - scale, threshold, threshold + scale])
    expected = [1 / (1 + np.e), 0.5, np.e / (1 + np.e)]
    np.testing.assert_allclose(map_from_score(values, threshold, config), expected, rtol=1e-5)


# The score


def scored(
    values: NDArray[np.float32],
    config: ScoreConfig,
    spacing_mm: tuple[float, float, float] = SPACING,
) -> ScanScore:
    return score_scan({"cycle:FLAIR": values}, brain(), spacing_mm=spacing_mm, config=config)


def test_combine_is_a_weighted_sum() -> None:
    signals = {"cycle:FLAIR": np.full(SHAPE, 2.0), "intensity:T2w": np.full(SHAPE, 3.0)}
    total = combine(signals, {"cycle:FLAIR": 1.0, "intensity:T2w": -0.5})
    assert total.dtype == np.float32
    np.testing.assert_allclose(total, 0.5)


def test_a_signal_of_weight_zero_need_not_be_there() -> None:
    total = combine({"cycle:FLAIR": np.ones(SHAPE)}, {"cycle:FLAIR": 2.0, "cycle:T2w": 0.0})
    np.testing.assert_allclose(total, 2.0)


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


# The mask


def mask_of(values: NDArray[np.float32], config: ScoreConfig) -> NDArray[np.bool_]:
    """The mask of a score whose scan has the threshold 1."""
    anomaly_map = map_from_score(values, 1.0, config)
    return mask_from_map(anomaly_map, config, spacing_mm=SPACING, scan_threshold=1.0)


def test_the_mask_at_one_half_is_the_score_above_its_threshold() -> None:
    mask = mask_of(signal(), PLAIN)
    np.testing.assert_array_equal(mask, signal() > 1)
    assert mask.dtype == bool


def test_a_higher_threshold_gives_a_smaller_mask() -> None:
    ramp = np.broadcast_to(np.linspace(-2, 4, SHAPE[0], dtype=np.float32)[:, None, None], SHAPE)
    masks = [mask_of(ramp, replace(PLAIN, threshold=t)) for t in (0.3, 0.5, 0.9)]
    sizes = [int(mask.sum()) for mask in masks]
    assert sizes[0] > sizes[1] > sizes[2] > 0
    assert not (masks[2] & ~masks[0]).any()


def test_small_components_go_by_volume_in_millimetres() -> None:
    values = np.zeros(SHAPE, dtype=np.float32)
    values[LESION] = 4  # 180 voxels, 1440 mm3
    values[3:5, 3:5, 3:5] = 4  # 8 voxels, 64 mm3
    keep = replace(PLAIN, min_lesion_mm3=64.0)
    assert mask_of(values, keep).sum() == 188
    drop = replace(PLAIN, min_lesion_mm3=65.0)
    np.testing.assert_array_equal(mask_of(values, drop), LESION)
    share = replace(PLAIN, min_fraction_of_largest=0.05)
    np.testing.assert_array_equal(mask_of(values, share), LESION)


def test_components_need_seeds() -> None:
    """Both spots exceed the threshold; only one exceeds the seeds' over enough volume."""
    values = np.zeros(SHAPE, dtype=np.float32)
    values[LESION] = 4
    values[3:7, 3:7, 3:7] = 2
    config = replace(PLAIN, seed_threshold=2.4, min_seed_mm3=80.0)
    np.testing.assert_array_equal(mask_of(values, config), LESION)
    assert mask_of(values, PLAIN).sum() == LESION.sum() + 64
    much = replace(config, min_seed_mm3=1441.0)
    assert not mask_of(values, much).any()


def test_holes_are_filled_as_the_settings_say() -> None:
    shell = np.zeros(SHAPE, dtype=np.float32)
    shell[LESION] = 4
    shell[10:12, 10:12, 10] = 0  # enclosed
    tunnel = shell.copy()
    tunnel[10:12, 10:12, 8:13] = 0  # open at both ends, closed in each axial plane
    for kind, shell_filled, tunnel_filled in (
        ("none", False, False),
        ("volume", True, False),
        ("planes", True, True),
    ):
        config = replace(PLAIN, fill_holes=kind)  # type: ignore[arg-type]
        assert mask_of(shell, config)[10, 10, 10] == shell_filled
        assert mask_of(tunnel, config)[10, 10, 10] == tunnel_filled


def test_nothing_above_the_threshold_is_an_empty_mask() -> None:
    for config in (PLAIN, replace(PLAIN, min_seed_mm3=80.0, fill_holes="planes")):
        assert not mask_of(np.full(SHAPE, -9, dtype=np.float32), config).any()
