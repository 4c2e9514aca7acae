"""Scores against values counted by hand, brute force, and a second opinion."""

from __future__ import annotations

import math

import numpy as np
import pytest
from grids import block
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from mmccd_cli.anomaly import metrics

ONE_MM = (1.0, 1.0, 1.0)


EMPTY = np.zeros((6, 6, 6), dtype=bool)
CUBE = block((6, 6, 6), (1, 4), (1, 4), (1, 4))


def test_overlap_by_hand() -> None:
    scores = metrics.overlap(
        block((4, 4, 4), (0, 4), (0, 2), (0, 1)),  # 8 voxels
        block((4, 4, 4), (0, 2), (0, 2), (0, 3)),  # 12, of which 4 are shared
    )
    assert scores == metrics.Overlap(dice=8 / 20, jaccard=4 / 16, precision=4 / 8, recall=4 / 12)


@pytest.mark.parametrize(
    ("mask", "reference", "value"), [(EMPTY, EMPTY, 1.0), (EMPTY, CUBE, 0.0), (CUBE, EMPTY, 0.0)]
)
def test_overlap_of_empty_masks(mask: np.ndarray, reference: np.ndarray, value: float) -> None:
    assert metrics.overlap(mask, reference) == metrics.Overlap(
        dice=value, jaccard=value, precision=value, recall=value
    )
    lesions = metrics.lesion_overlap(mask, reference, ONE_MM)
    assert (lesions.f1, lesions.sensitivity, lesions.precision) == (value, value, value)


@pytest.mark.parametrize(
    ("mask", "reference", "value"),
    [(EMPTY, EMPTY, 0.0), (EMPTY, CUBE, math.sqrt(2 * 36 + 18**2)), (CUBE, CUBE, 0.0)],
)
def test_distance_of_empty_and_equal_masks(
    mask: np.ndarray, reference: np.ndarray, value: float
) -> None:
    distance = metrics.surface_distance(mask, reference, (1.0, 1.0, 3.0))
    assert distance.assd_mm == pytest.approx(value)
    assert distance.hd95_mm == pytest.approx(value)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_distance_on_an_anisotropic_grid_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spacing = (0.9, 1.3, 5.0)
    masks = [ndimage.binary_dilation(rng.random((12, 10, 7)) > 0.985) for _ in range(2)]

    def surface_mm(mask: np.ndarray) -> np.ndarray:
        points = []
        padded = np.pad(mask, 1)
        for i, j, k in np.argwhere(padded):
            around = [padded[i + d, j, k] for d in (-1, 1)]
            around += [padded[i, j + d, k] for d in (-1, 1)]
            around += [padded[i, j, k + d] for d in (-1, 1)]
            if not all(around):
                points.append((i, j, k))
        return np.array(points) * spacing

    between = cdist(surface_mm(masks[0]), surface_mm(masks[1]))
    forth, back = between.min(axis=1), between.min(axis=0)
    distance = metrics.surface_distance(masks[0], masks[1], spacing)
    assert distance.assd_mm == pytest.approx(np.concatenate([forth, back]).mean())
    assert distance.hd95_mm == pytest.approx(max(np.percentile(forth, 95), np.percentile(back, 95)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40))
def test_areas_equal_their_definitions_with_ties(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([p[0] for p in pairs], dtype=np.float32)
    truth = np.array([p[1] for p in pairs])
    if truth.all() or not truth.any():
        assert math.isnan(metrics.auroc(scores, truth))
        assert math.isnan(metrics.auprc(scores, truth))
        return
    lesion, healthy = scores[truth][:, None], scores[~truth][None, :]
    wins = (lesion > healthy).mean() + 0.5 * (lesion == healthy).mean()
    assert metrics.auroc(scores, truth) == pytest.approx(wins)
    # Average precision: each lesion voxel's precision at its own score, averaged.
    precisions = [truth[scores >= s].mean() for s in scores[truth]]
    assert metrics.auprc(scores, truth) == pytest.approx(np.mean(precisions))


def test_areas_equal_scikit_learn() -> None:
    second_opinion = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth = rng.random(5000) > 0.9
    scores = np.round(rng.normal(size=5000) + truth, 1)
    assert metrics.auroc(scores, truth) == pytest.approx(
        second_opinion.roc_auc_score(truth, scores)
    )
    assert metrics.auprc(scores, truth) == pytest.approx(
        second_opinion.average_precision_score(truth, scores)
    )


def test_lesions_are_found_by_a_tenth_and_not_by_a_touch() -> None:
    shape = (30, 10, 10)
    reference = block(shape, (0, 4), (0, 5), (0, 5)) | block(shape, (10, 14), (0, 5), (0, 5))
    mask = block(shape, (0, 1), (0, 5), (0, 2))  # 10 of 100 voxels: found
    mask |= block(shape, (13, 20), (0, 1), (0, 9))  # 5 of 100: touched, and 5 of 63: wrong
    mask |= block(shape, (25, 26), (0, 1), (0, 1))
    scores = metrics.lesion_overlap(mask, reference, ONE_MM)
    assert scores.sensitivity == pytest.approx(1 / 2)
    assert scores.precision == pytest.approx(1 / 3)
    assert scores.f1 == pytest.approx(0.4)
    assert (scores.reference_lesions, scores.predicted_lesions) == (2, 3)
    larger = metrics.lesion_overlap(mask, reference, (1.0, 1.0, 2.0), min_volume_mm3=4.0)
    assert larger.predicted_lesions == 2
    assert larger.precision == pytest.approx(1 / 2)


def test_false_positives_are_millilitres() -> None:
    mask, reference = block((20, 20, 20), (0, 10), (0, 10), (0, 10)), EMPTY
    reference = block((20, 20, 20), (0, 5), (0, 10), (0, 10))
    assert metrics.false_positive_ml(mask, reference, (1.0, 1.0, 3.0)) == pytest.approx(1.5)
    assert metrics.volume_ml(mask, (1.0, 1.0, 3.0)) == pytest.approx(3.0)


def test_a_case_gathers_every_score() -> None:
    brain = block((6, 6, 6), (0, 5), (0, 5), (0, 5))
    anomaly_map = np.where(CUBE, 0.9, 0.1)
    anomaly_map[5] = 1.0  # outside the brain: not judged
    case = metrics.measure_case(CUBE, CUBE, ONE_MM, anomaly_map=anomaly_map, brain=brain)
    assert case.dice == case.auroc == case.auprc == case.lesion_f1 == 1.0
    assert case.hd95_mm == case.false_positive_ml == 0.0
    assert case.predicted_ml == case.reference_ml == pytest.approx(0.027)
    assert math.isnan(metrics.measure_case(CUBE, CUBE, ONE_MM).auroc)


def test_a_case_refuses_what_does_not_belong_together() -> None:
    with pytest.raises(ValueError, match="shape"):
        metrics.measure_case(CUBE, CUBE[:-1], ONE_MM)
    with pytest.raises(ValueError, match="brain"):
        metrics.measure_case(CUBE, CUBE, ONE_MM, anomaly_map=CUBE.astype(float))


def test_bootstrap_is_seeded_and_holds_the_mean() -> None:
    values = list(np.random.default_rng(1).normal(0.7, 0.1, size=40))
    low, high = metrics.bootstrap_interval(values)
    assert low < np.mean(values) < high
    assert high - low == pytest.approx(2 * 1.96 * np.std(values) / math.sqrt(40), rel=0.1)
    assert metrics.bootstrap_interval(values) == (low, high)
    assert metrics.bootstrap_interval(values, seed=1) != (low, high)
    assert metrics.bootstrap_interval([0.5, float("nan")]) == (0.5, 0.5)
    assert all(math.isnan(v) for v in metrics.bootstrap_interval([]))


def test_summary_says_what_it_leaves_out() -> None:
    summary = metrics.summarise([0.2, 0.4, float("nan")])
    assert (summary.mean, summary.n, summary.undefined) == (pytest.approx(0.3), 2, 1)
    assert summary.sd == pytest.approx(0.2 / math.sqrt(2))
    assert metrics.summarise([0.5]).sd == 0.0
    assert math.isnan(metrics.summarise([]).mean)
    table = metrics.summarise_cases([metrics.measure_case(CUBE, CUBE, ONE_MM)])
    assert table["dice"].mean == 1.0
    assert table["auroc"].undefined == 1


def test_dice_by_threshold_equals_one_mask_at_a_time() -> None:
    rng = np.random.default_rng(2)
    truth = rng.random(500) > 0.8
    scores = np.round(rng.normal(size=500) + truth, 1)
    thresholds = np.linspace(-2, 6, 33).round(2)
    expected = [metrics.overlap(scores > t, truth).dice for t in thresholds]
    np.testing.assert_allclose(metrics.dice_by_threshold(scores, truth, thresholds), expected)
    missed = metrics.dice_by_threshold(scores, truth, [0.0], missed_voxels=100)[0]
    shared = np.count_nonzero(truth & (scores > 0))
    assert missed == 2 * shared / (np.count_nonzero(scores > 0) + truth.sum() + 100)
    assert metrics.dice_by_threshold(scores, truth & False, [9.0])[0] == 1.0


def test_oracle_is_the_best_for_the_set_and_not_for_each() -> None:
    truth = np.array([False, False, True, True])
    threshold, dice = metrics.oracle_threshold(
        [np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 2.0, 3.0, 4.0])],
        [truth, truth],
        [0.5, 1.5, 2.5],
    )
    assert threshold == 1.5
    assert dice == pytest.approx((1.0 + 0.8) / 2)


def test_volumes_of_a_tilted_stack_are_true() -> None:
    mask = np.zeros((6, 6, 6), dtype=bool)
    mask[1:3, 1:3, 1:3] = True
    none = np.zeros_like(mask)
    spacing = (1.0, 1.0, 1.25)
    scores = metrics.measure_case(mask, none, spacing, voxel_mm3=1.0)
    assert (scores.predicted_ml, scores.false_positive_ml) == (0.008, 0.008)
    assert metrics.measure_healthy(mask, spacing, voxel_mm3=1.0).predicted_ml == 0.008
    assert metrics.measure_healthy(mask, spacing).predicted_ml == 0.01
