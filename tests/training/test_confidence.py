"""Weights and confidences learnt from subjects made by hand, in whom it is known what counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmccd_cli.anomaly.confidence import confidences, describe_candidates, sphericities
from mmccd_cli.config import ConfidenceConfig, ScoreConfig, from_dict, to_dict
from mmccd_cli.training.calibration_data import CalibrationSubject
from mmccd_cli.training.confidence import finer_mask, learn_confidence, on_finer_grid
from mmccd_cli.training.fusion import LEAST_SHARE, Fusion, fit_foci

SHAPE, SPACING = (40, 40, 24), (2.0, 2.0, 2.0)
SCORE = ScoreConfig(
    modalities=("FLAIR",),
    weights={"cycle:FLAIR": 1.0},
    asymmetry_weight=0.0,
    threshold_rule="fixed",
    threshold_offset=1.5,
    min_seed_mm3=0.0,
)


def subject(number: int) -> CalibrationSubject:
    """A large bright lesion, and a small faint spot that is none; a signal that knows nothing."""
    generator = np.random.default_rng(number)
    brain, lesion = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    brain[3:-3, 3:-3, 3:-3] = True
    lesion[8 + number : 18 + number, 8:18, 8:16] = True
    signal = 0.3 * generator.standard_normal(SHAPE)
    signal[lesion] += 4.0
    signal[28:33, 28:33, 9:14] += 2.2
    noise = generator.standard_normal(SHAPE)
    signals = {"cycle:FLAIR": signal, "intensity:FLAIR": noise}
    return CalibrationSubject(
        id=f"s{number}",
        brain=brain,
        lesion=lesion,
        signals={name: values.astype(np.float32) for name, values in signals.items()},
    )


SUBJECTS = [subject(number) for number in range(3)]
ROUGH = 0.7
"""About the sphericity of a noisy box."""


def test_the_signal_that_knows_gets_the_weight() -> None:
    fusion = Fusion(subjects=SUBJECTS, spacing_mm=SPACING, smoothing=SCORE)
    weights = fusion.weights(("FLAIR",), ridge=1e-3)
    assert weights["cycle:FLAIR"] > 4 * abs(weights.get("intensity:FLAIR", 0.0))
    assert 0.3 < weights["cycle:FLAIR"] < 3, "even odds are at a score of 2"
    without = fusion.weights(("FLAIR",), ridge=1e-3, left_out=["s0"])
    assert without != weights


def test_networks_that_hardly_count_do_not_count() -> None:
    """They would take passes; what takes none keeps the weight that it finds."""
    faint = [replace(s, signals=s.signals | {"restoration:FLAIR": hint(s)}) for s in SUBJECTS]
    free = [replace(s, signals=s.signals | {"atlas:FLAIR": hint(s)}) for s in SUBJECTS]
    paid, unpaid, without = (
        Fusion(subjects=of, spacing_mm=SPACING, smoothing=SCORE).weights(("FLAIR",), ridge=1e-3)
        for of in (free, faint, SUBJECTS)
    )
    assert 0 < paid["atlas:FLAIR"] < LEAST_SHARE * sum(map(abs, paid.values()))
    assert unpaid == without


def hint(subject: CalibrationSubject) -> np.ndarray:
    """A signal that is a little higher in lesions."""
    noise = np.random.default_rng(7).normal(0, 1, subject.brain.shape)
    return (noise + 0.05 * subject.lesion).astype(np.float32)


def test_confidence_tells_lesions_from_what_is_none() -> None:
    learnt = learn_confidence(SUBJECTS, SCORE, spacing_mm=SPACING)
    assert learnt is not None
    assert not learnt.above_threshold
    assert min(learnt.weights) >= 0
    lesion = np.array([[np.log10(6.0), 4.0, 3.9, ROUGH]])
    spot = np.array([[np.log10(0.5), 2.2, 2.0, ROUGH]])
    assert confidences(lesion, learnt)[0] > 0.8
    assert confidences(spot, learnt)[0] < 0.2


def test_with_foci_confidence_counts_from_the_scans_threshold() -> None:
    """The foci say nothing here; the threshold of 1.5 is taken off."""
    silent = [
        replace(s, of_sets={("FLAIR",): {"foci:FLAIR": np.zeros(SHAPE, np.float32)}})
        for s in SUBJECTS
    ]
    learnt = learn_confidence(silent, replace(SCORE, foci_weight=1.0), spacing_mm=SPACING)
    assert learnt is not None
    assert learnt.above_threshold
    lesion = np.array([[np.log10(6.0), 2.5, 2.4, ROUGH]])
    spot = np.array([[np.log10(0.5), 0.7, 0.5, ROUGH]])
    assert confidences(lesion, learnt)[0] > 0.8
    assert confidences(spot, learnt)[0] < 0.2


def test_nothing_can_be_learnt_where_all_are_lesions() -> None:
    above_spots = replace(SCORE, threshold_offset=3.0)
    assert learn_confidence(SUBJECTS, above_spots, spacing_mm=SPACING) is None


def test_of_equal_size_and_brightness_the_rounder_one_is_surer() -> None:
    """Lesions are balls here, and sheets of the same brightness none, some larger, some smaller."""
    place = np.indices(SHAPE) - np.reshape([12, 12, 12], (3, 1, 1, 1))

    def with_sheet(plain: CalibrationSubject, radius: int) -> CalibrationSubject:
        ball, sheet = (place**2).sum(axis=0) <= radius**2, np.zeros(SHAPE, bool)
        sheet[22:36, 4:36, 12] = True
        signal = np.where(ball | sheet, 3.0, 0.0).astype(np.float32)
        signals = {"cycle:FLAIR": signal, "intensity:FLAIR": signal}
        return replace(plain, lesion=ball, signals=signals)

    learners = [
        with_sheet(plain, radius) for plain, radius in zip(SUBJECTS, (2, 3, 5), strict=True)
    ]
    learnt = learn_confidence(learners, replace(SCORE, median_mm=0.0), spacing_mm=SPACING)
    assert learnt is not None
    ball, sheet = confidences(np.array([[0.0, 3.0, 3.0, 0.67], [0.0, 3.0, 3.0, 0.2]]), learnt)
    assert ball > 0.7 > 0.3 > sheet


def test_a_confidence_of_older_weights_knows_no_sphericity() -> None:
    older = to_dict(ConfidenceConfig(weights=(1.0, 0.0, 1.0), bias=-2.0))
    del older["sphericity_weight"]
    known = from_dict(ConfidenceConfig, older)
    same = confidences(np.array([[0.0, 1.0, 1.0, 0.8], [0.0, 1.0, 1.0, 0.1]]), known)
    assert same[0] == same[1]


def test_candidates_are_measured_each_on_its_own() -> None:
    labels = np.zeros((8, 8, 8), int)
    labels[0:2, 0:2, 0:2], labels[5:8, 5:8, 5:8] = 1, 2
    scores = np.where(labels == 1, 3.0, 1.0)
    scores[5, 5, 5] = 9.0
    spacing = (2.0, 2.0, 2.0)
    features = describe_candidates(
        labels, np.array([8, 27]), scores[labels > 0], spacing_mm=spacing
    )
    of_a_cube = (np.pi / 6) ** (1 / 3)
    np.testing.assert_allclose(features[0], [np.log10(0.064), 3.0, 3.0, of_a_cube])
    # The peak is the mean of ten voxels of 8 mm3, one of them 9 and nine of them 1.
    np.testing.assert_allclose(features[1], [np.log10(0.216), 1.8, (9 + 26) / 27, of_a_cube])
    nothing = describe_candidates(
        labels * 0, np.zeros(0, int), np.zeros(0, np.float32), spacing_mm=spacing
    )
    assert confidences(nothing, ConfidenceConfig(weights=(1.0, 1.0, 1.0), bias=0.0)).shape == (0,)


def test_sphericity_is_one_for_a_ball_of_any_size() -> None:
    radius = np.array([0.5, 3.0, 40.0])
    found = sphericities(4 / 3 * np.pi * radius**3, 4 * np.pi * radius**2)
    np.testing.assert_allclose(found, 1.0)


def test_between_two_voxels_lies_their_mean() -> None:
    volume = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    finer = on_finer_grid(volume)
    assert finer.shape == (3, 5, 7)
    np.testing.assert_array_equal(finer[::2, ::2, ::2], volume)
    assert finer[1, 1, 1] == volume[:2, :2, :2].mean()
    mask = finer_mask(volume >= 12)
    np.testing.assert_array_equal(mask, np.arange(3)[:, None, None] >= np.ones((3, 5, 7)))


def test_confidence_lies_between_zero_and_one() -> None:
    config = ConfidenceConfig(weights=(0.0, 1e6, 0.0), bias=0.0)
    peaks = np.array([[0.0, peak, 0.0, 0.0] for peak in (1.0, -1.0, 0.0)])
    found = confidences(peaks, config)
    assert found == pytest.approx([1.0, 0.0, 0.5])


def with_foci(plain: CalibrationSubject) -> CalibrationSubject:
    """The subject with a small painted lesion, and log odds there, elsewhere, and in its own."""
    painted = plain.lesion.copy()
    painted[30:33, 10:13, 10:13] = painted[20:22, 30:32, 8:12] = True
    log_odds = np.zeros(SHAPE, np.float32)
    log_odds[30:33, 10:13, 10:13] = 4.0
    log_odds[20:30, 30:34, 8:16] = 1.0
    log_odds[30:33, 20, 10] = 4.0
    log_odds[plain.lesion] = 9.0
    return replace(plain, lesion=painted, of_sets={("FLAIR",): {"foci:FLAIR": log_odds}})


def test_foci_are_worth_what_painted_lesions_say() -> None:
    """Of 30 voxels at 4, 27 are in a lesion, of 320 at 1 there are 16; its own is left out."""
    found = fit_foci(SUBJECTS, [with_foci(s) for s in SUBJECTS], SCORE, spacing_mm=SPACING)
    weight, bias = found["foci_weight"], found["foci_bias"]
    assert 1 / (1 + np.exp(-(4 * weight + bias))) == pytest.approx(0.9, abs=0.02)
    assert 1 / (1 + np.exp(-(weight + bias))) == pytest.approx(0.05, abs=0.01)


def test_heads_in_which_the_network_sees_nothing_do_not_matter() -> None:
    dumb = {("FLAIR",): {"foci:FLAIR": np.zeros(SHAPE, np.float32)}}
    silent = [replace(s, of_sets=dumb) for s in SUBJECTS]
    painted = [with_foci(s) for s in SUBJECTS]
    alone = fit_foci(SUBJECTS, painted, SCORE, spacing_mm=SPACING)
    both = fit_foci([*SUBJECTS, *SUBJECTS], [*silent, *painted], SCORE, spacing_mm=SPACING)
    assert both == alone
    assert fit_foci(SUBJECTS, silent, SCORE, spacing_mm=SPACING) == {}


def test_without_their_network_foci_are_worth_nothing() -> None:
    assert fit_foci(SUBJECTS, SUBJECTS, SCORE, spacing_mm=SPACING) == {}
