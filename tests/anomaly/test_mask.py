"""From a map to its mask and lesions, on arrays small enough to count by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from grids import AFFINES, block
from numpy.typing import NDArray
from scores import LESION, PLAIN, SHAPE, SPACING, signal

from mmccd_cli.anomaly.components import voxel_mm3_of
from mmccd_cli.anomaly.mask import (
    LeftOutSmall,
    MaskFindings,
    MaskOptions,
    find_lesions,
    mask_and_lesions,
    mask_from_map,
)
from mmccd_cli.anomaly.score import map_from_score, score_from_map
from mmccd_cli.config import ConfidenceConfig, ScoreConfig
from mmccd_cli.errors import UsageError
from mmccd_cli.template import spacing_of


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


@pytest.mark.parametrize("above_threshold", [False, True])
def test_a_threshold_of_ones_own_changes_no_candidates_confidence(above_threshold: bool) -> None:
    """What is left of a candidate higher up is brighter on the whole, and no surer for that."""
    values = np.zeros(SHAPE, dtype=np.float32)
    values[LESION] = 3.0
    values[3:7, 3:7, 3:7] = 1.2  # wide and faint, with a bright middle
    values[4:6, 4:6, 4:6] = 3.0
    values[3:5, 14:16, 3:5] = 0.8  # below the scan's threshold
    sure = ConfidenceConfig(weights=(0.0, 0.0, 4.0), bias=-7.0, above_threshold=above_threshold)
    config = replace(PLAIN, confidence=sure, min_confidence=0.5)
    if above_threshold:
        config = replace(config, confidence=replace(sure, bias=-3.0))
    default = mask_of(values, config)
    np.testing.assert_array_equal(default, LESION)
    higher = MaskOptions(threshold=0.8).applied_to(config)
    np.testing.assert_array_equal(mask_of(values, higher), LESION)
    alone = replace(higher, judged_above=None)
    assert mask_of(values, alone).sum() > LESION.sum(), "each by itself, the middle would be kept"
    lower = mask_of(values, MaskOptions(threshold=0.3).applied_to(config))
    assert not (default & ~lower).any()
    assert MaskOptions(threshold=config.threshold).applied_to(config) == config
    again = MaskOptions(threshold=0.9).applied_to(higher)
    assert again.judged_above == config.threshold


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


def test_lesions_come_by_volume_and_lie_in_world_coordinates() -> None:
    mask = block((10, 10, 10), (1, 2), (1, 2), (1, 3)) | block((10, 10, 10), (4, 8), (5, 7), (6, 9))
    anomaly_map = np.where(mask, 0.5, 0.0).astype(np.float32)
    anomaly_map[5, 5, 7] = 0.9
    affine = np.diag([-2.0, 1.0, 3.0, 1.0])
    affine[:3, 3] = (100.0, -50.0, 10.0)
    first, second = find_lesions(mask, anomaly_map, affine)
    assert (first.id, second.id) == (1, 2)
    assert first.volume_ml == pytest.approx(24 * 6 / 1000)
    assert first.box == ((4, 8), (5, 7), (6, 9))
    assert first.centroid_ras_mm == pytest.approx((100 - 2 * 5.5, -50 + 5.5, 10 + 3 * 7))
    assert first.peak == pytest.approx(0.9)
    assert first.mean == pytest.approx((23 * 0.5 + 0.9) / 24)
    assert second.volume_ml == pytest.approx(2 * 6 / 1000)
    assert find_lesions(np.zeros_like(mask), anomaly_map, affine) == []


CUBES = (30, 30, 30)
LARGE = block(CUBES, (2, 12), (2, 12), (2, 12))  # 1000 mm3
THIN = block(CUBES, (20, 25), (20, 24), (5, 15))  # 200 mm3
FLAT = block(CUBES, (20, 24), (2, 6), (2, 4))  # 32 mm3
SPECKS = block(CUBES, (28, 29), (28, 29), (0, 9)) | block(CUBES, (28, 29), (2, 3), (20, 28))


def found_in(values: NDArray[np.float32], config: ScoreConfig) -> MaskFindings:
    """What is found on a map with voxels of 1 mm, whose seeds begin at 0.9."""
    affine = np.eye(4)
    return mask_and_lesions(values, config, affine=affine, scan_threshold=1.0)


def with_seeds_from(value: float, **rules: float) -> ScoreConfig:
    """Settings whose seeds are voxels of the map above a value."""
    threshold = 1.0 + PLAIN.map_scale * float(np.log(value / (1 - value)))
    return replace(PLAIN, **{"seed_threshold": threshold, "min_lesion_mm3": 0.0, **rules})


def test_what_is_left_out_is_listed_with_the_rule_that_did_it() -> None:
    values = np.select([LARGE, THIN, FLAT, SPECKS], [0.8, 0.7, 0.9, 0.6], 0.1).astype(np.float32)
    values[2:5, 2:5, 2:5] = 0.97  # 27 mm3 of seeds
    values[20, 20, 5:9] = 0.97  # 4 mm3
    seeds = found_in(values, with_seeds_from(0.93, min_seed_mm3=27.0))
    np.testing.assert_array_equal(seeds.mask, LARGE)
    assert [found.reason for found in seeds.left_out] == [
        "its core above 0.93 has 4 mm3, 27 mm3 are needed",
        "its core above 0.93 has 0 mm3, 27 mm3 are needed",
    ]
    share = found_in(values, with_seeds_from(0.93, min_fraction_of_largest=0.2))
    np.testing.assert_array_equal(share.mask, LARGE | THIN)  # 200 mm3 are just enough
    (flat,) = share.left_out
    assert flat.reason == "32 mm3 is less than 20% of the largest component's 1.00 ml"
    size = found_in(values, with_seeds_from(0.93, min_lesion_mm3=250.0))
    assert [found.reason for found in size.left_out] == [
        "0.20 ml is less than the smallest lesion of 0.25 ml",
        "32 mm3 is less than the smallest lesion of 0.25 ml",
    ]
    both = with_seeds_from(0.93, min_lesion_mm3=20.0, min_fraction_of_largest=0.2)
    assert found_in(values, both).left_out[0].reason == flat.reason
    least = with_seeds_from(0.99996, min_seed_mm3=0.5)
    assert {found.reason for found in found_in(values, least).left_out} == {
        "its core above 0.99996 has 0 mm3, 1 mm3 are needed"  # a voxel at the least
    }


def test_what_is_left_out_is_measured_like_a_lesion() -> None:
    values = np.select([LARGE, FLAT, SPECKS], [0.8, 0.7, 0.6], 0.1).astype(np.float32)
    values[20, 2, 2] = 0.9
    found = found_in(values, with_seeds_from(0.93, min_fraction_of_largest=0.2))
    (lesion,), (flat,) = found.lesions, found.left_out
    assert (lesion.id, flat.id) == (1, 2)
    (alone,) = find_lesions(FLAT, values, np.eye(4))
    assert {**vars(flat), "id": 1} == {**vars(alone), "reason": flat.reason}
    assert flat.box == ((20, 24), (2, 6), (2, 4))
    assert flat.peak == pytest.approx(0.9)
    assert flat.mean == pytest.approx((31 * 0.7 + 0.9) / 32)
    assert found.left_out_small == LeftOutSmall(count=2, volume_ml=0.017)  # 9 and 8 mm3


def test_all_above_the_threshold_is_in_the_mask_or_left_out() -> None:
    """An island in a hole that is filled is in the mask, and not left out."""
    values = np.where(LARGE, 0.8, 0.1).astype(np.float32)
    values[4:10, 4:10, 4:10] = 0.1
    values[6:8, 6:8, 5:8] = 0.9  # 12 mm3
    values[THIN] = 0.7
    config = with_seeds_from(0.93, min_lesion_mm3=250.0)
    filled = found_in(values, replace(config, fill_holes="volume"))
    assert [round(1000 * found.volume_ml) for found in filled.left_out] == [200]
    np.testing.assert_array_equal(filled.mask, LARGE)
    hollow = found_in(values, config)
    assert [round(1000 * found.volume_ml) for found in hollow.left_out] == [200, 12]
    assert hollow.left_out_small == LeftOutSmall()


def test_a_noisy_map_gives_no_endless_list() -> None:
    values = np.zeros((60, 60, 60), np.float32)
    for corner in np.ndindex(6, 6, 6):
        i, j, k = (10 * step for step in corner)
        values[i : i + 3, j : j + 3, k : k + 2] = 0.9  # 216 of 18 mm3
    found = found_in(values, with_seeds_from(0.93, min_seed_mm3=1.0))
    assert not found.mask.any()
    assert [found.id for found in found.left_out] == list(range(1, 101))
    assert found.left_out_small == LeftOutSmall(count=116, volume_ml=2.088)


# Confidence

SURE = replace(
    PLAIN,
    confidence=ConfidenceConfig(weights=(1.0, 1.0, 0.0), bias=-3.0),
    map_scale=0.5,
    min_lesion_mm3=0.0,
)


def two_candidates(second: float) -> np.ndarray:
    """A large bright block, and a small one of another level."""
    values = np.full((30, 30, 30), 0.01, np.float32)
    values[3:13, 3:13, 3:13] = 0.999
    values[20:23, 20:23, 20:23] = second
    return values


def test_each_candidate_counts_by_its_own_confidence() -> None:
    """However small it is beside the largest one."""
    for second, lesions in ((0.999, 2), (0.55, 1)):
        found = mask_and_lesions(two_candidates(second), SURE, affine=np.eye(4), scan_threshold=2.0)
        assert len(found.lesions) == lesions
        assert len(found.left_out) == 2 - lesions
        sure = [lesion.confidence for lesion in found.lesions]
        assert sure == sorted(sure, reverse=True)
        assert all(c is not None and c >= SURE.min_confidence for c in sure)
    (left,) = found.left_out
    assert left.confidence is not None
    assert left.confidence < 0.5
    assert left.reason == f"its confidence {left.confidence:.2f} is below 0.5"


def test_a_lower_confidence_takes_more_and_needs_a_model() -> None:
    options = MaskOptions(min_confidence=0.0)
    found = mask_and_lesions(
        two_candidates(0.55), options.applied_to(SURE), affine=np.eye(4), scan_threshold=2.0
    )
    assert len(found.lesions) == 2
    assert not found.left_out
    with pytest.raises(UsageError, match="do not know how sure"):
        options.applied_to(PLAIN)


def test_confidence_does_not_depend_on_how_finely_a_lesion_is_sampled() -> None:
    coarse = two_candidates(0.9)
    fine = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    half = np.diag([0.5, 0.5, 0.5, 1.0])
    one, other = (
        mask_and_lesions(values, SURE, affine=affine, scan_threshold=2.0)
        for values, affine in ((coarse, np.eye(4)), (fine, half))
    )
    for a, b in zip(one.lesions, other.lesions, strict=True):
        assert a.confidence == pytest.approx(b.confidence, abs=1e-3)


def test_confidence_counts_from_the_scans_threshold_where_it_was_learnt_so() -> None:
    """Bundles of before have confidences of absolute scores, and keep them."""
    assert SURE.confidence is not None
    since = replace(SURE, confidence=replace(SURE.confidence, above_threshold=True))
    for config, same in ((since, True), (SURE, False)):
        low, high = (
            mask_and_lesions(
                two_candidates(0.999),
                replace(config, min_confidence=0.0),
                affine=np.eye(4),
                scan_threshold=threshold,
            )
            for threshold in (0.0, 2.0)
        )
        sure = [[lesion.confidence for lesion in found.lesions] for found in (low, high)]
        assert (sure[0] == sure[1]) is same
    at_threshold = replace(since, min_confidence=0.0)
    found = mask_and_lesions(
        two_candidates(0.999), at_threshold, affine=np.eye(4), scan_threshold=0.0
    )
    peak = 0.5 * np.log(0.999 / 0.001)  # score units above the threshold
    assert found.lesions[0].confidence == pytest.approx(1 / (1 + np.exp(3 - peak)), abs=1e-3)


def test_a_filled_hole_joins_candidates_under_the_surest() -> None:
    values = two_candidates(0.999)
    values[6:10, 6:10, 6:10] = 0.01
    values[7:9, 7:9, 7:9] = 0.55
    config = replace(SURE, fill_holes="volume")
    found = mask_and_lesions(values, config, affine=np.eye(4), scan_threshold=2.0)
    assert len(found.lesions) == 2
    assert not found.left_out, "what the hole holds is in the mask"
    assert found.lesions[0].volume_ml == pytest.approx(1.0)
    alone = mask_and_lesions(two_candidates(0.999), config, affine=np.eye(4), scan_threshold=2.0)
    assert found.lesions[0].confidence == pytest.approx(alone.lesions[0].confidence, abs=0.02)


def test_scores_come_back_from_the_map() -> None:
    scores = np.array([-2.0, 0.0, 1.9, 2.0, 5.0], np.float32)
    there = map_from_score(scores, 2.0, SURE)
    np.testing.assert_allclose(score_from_map(there, 2.0, SURE), scores, atol=1e-3)


SHEAR = np.array([[1, 0, 0, 0], [0, 1, 0.75, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
"""A stack whose slices of 1 mm are moved by 0.75 mm each: neighbours are 1.25 mm apart."""


def test_a_component_of_a_tilted_stack_counts_by_its_true_volume() -> None:
    """So what is kept has the volume that its own table tells."""
    values = np.zeros(SHAPE, np.float32)
    values[4:8, 4:8, 4:8] = 0.9  # 64 mm3
    config = replace(PLAIN, min_lesion_mm3=70.0)
    for affine in (np.eye(4), SHEAR):
        found = mask_and_lesions(values, config, affine=affine, scan_threshold=1.0)
        assert not found.mask.any()
        (left_out,) = found.left_out
        assert left_out.volume_ml == pytest.approx(0.064)
        kept = replace(config, min_lesion_mm3=64.0)
        assert mask_and_lesions(values, kept, affine=affine, scan_threshold=1.0).mask.any()


def test_confidence_counts_the_true_volume_of_a_tilted_stack() -> None:
    config = replace(SURE, min_confidence=0.0)
    of_volume = ConfidenceConfig(weights=(2.0, 0.0, 0.0), bias=0.0)
    config = replace(config, confidence=of_volume)
    straight, tilted = (
        mask_and_lesions(two_candidates(0.999), config, affine=affine, scan_threshold=2.0)
        for affine in (np.eye(4), SHEAR)
    )
    assert straight.lesions[0].confidence == tilted.lesions[0].confidence


@pytest.mark.parametrize("name", AFFINES)
def test_without_shear_a_voxel_has_the_product_of_its_spacing(name: str) -> None:
    """To the last bit, also where the header holds float32 numbers."""
    for affine in (AFFINES[name], AFFINES[name].astype(np.float32).astype(np.float64)):
        assert voxel_mm3_of(affine) == float(np.prod(np.asarray(spacing_of(affine))))
    assert voxel_mm3_of(SHEAR) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 1.5},
        {"threshold": 0.0},
        {"threshold": float("nan")},
        {"threshold": True},
        {"min_lesion_mm3": 1e13},
        {"min_lesion_mm3": -1.0},
        {"min_lesion_mm3": "10"},
        {"min_confidence": 1.1},
    ],
)
def test_choices_out_of_their_range_are_refused_in_words(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(UsageError, match=f"{name} cannot be") as caught:
        MaskOptions(**wrong)
    assert "Give a number" in (caught.value.next_step or "")
