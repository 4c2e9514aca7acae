"""Intensity baselines on a phantom, and their known numbers on real scans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.errors import DataError
from mmccd_cli.evaluation.baselines import (
    BASELINES,
    AdaptiveThreshold,
    EdgeThreshold,
    FixedThreshold,
    robust_z,
)

ONE_MM = (1.0, 1.0, 1.0)


def phantom(
    seed: int = 0, gain: float = 1.0
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """A noisy ball of a brain with a lesion: bright on FLAIR and T2w, dark on T1w."""
    i, j, k = np.mgrid[:36, :36, :36]
    brain = (i - 18) ** 2 + (j - 18) ** 2 + (k - 18) ** 2 < 15**2
    lesion = (i - 20) ** 2 + (j - 16) ** 2 + (k - 18) ** 2 < 7**2
    noise = np.random.default_rng(seed).normal(size=(3, *brain.shape))
    signs = {"FLAIR": 5.0, "T2w": 4.0, "T1w": -4.0}
    images = {
        m: np.where(brain, gain * (100 + 5 * (n + sign * lesion)), 0).astype(np.float32)
        for (m, sign), n in zip(signs.items(), noise, strict=True)
    }
    return images, brain, lesion


def test_robust_z_has_a_unit_that_ignores_gain_and_lesion() -> None:
    images, brain, lesion = phantom()
    z = robust_z(images["FLAIR"], brain)
    assert abs(np.median(z[brain])) < 1e-6
    assert z[brain & ~lesion].std() == pytest.approx(1.0, abs=0.2)
    assert not z[~brain].any()
    np.testing.assert_allclose(robust_z(1000 * images["FLAIR"] + 7, brain), z, atol=1e-4)


@pytest.mark.parametrize("name", list(BASELINES))
def test_every_baseline_finds_the_lesion_of_the_phantom(name: str) -> None:
    images, brain, lesion = phantom()
    baseline = BASELINES[name]
    score = baseline.score(images, brain, ONE_MM)
    assert score.values.dtype == np.float32
    assert not score.region[~brain].any()
    assert overlap(baseline.cleaning.segment(score, FixedThreshold(2.0)), lesion).dice > 0.8
    assert overlap(baseline.cleaning.segment(score, AdaptiveThreshold(0.6)), lesion).dice > 0.8
    assert overlap(baseline.cleaning.segment(score, EdgeThreshold(0.9, 3.0)), lesion).dice > 0.8


def test_an_unreachable_threshold_marks_nothing() -> None:
    images, brain, _ = phantom()
    baseline = BASELINES["flair-z"]
    assert not baseline.cleaning.segment(
        baseline.score(images, brain, ONE_MM), FixedThreshold(99.0)
    ).any()


def test_seeds_leave_a_brain_without_a_bright_core_alone() -> None:
    images, brain, lesion = phantom()
    images["FLAIR"][lesion] -= 17.0  # from five standard deviations to less than two
    baseline = BASELINES["flair-z"]
    score = baseline.score(images, brain, ONE_MM)
    rule = FixedThreshold(0.9)
    assert baseline.cleaning.segment(score, rule).any()
    assert not replace(baseline.cleaning, min_seed_mm3=80.0).segment(score, rule).any()


def test_missing_modality_and_empty_brain_are_named() -> None:
    images, brain, _ = phantom()
    with pytest.raises(DataError, match="T2w"):
        BASELINES["flair-t2w-z"].score({"FLAIR": images["FLAIR"]}, brain, ONE_MM)
    with pytest.raises(DataError, match="empty"):
        BASELINES["flair-z"].score(images, np.zeros_like(brain), ONE_MM)
    with pytest.raises(DataError, match="contrast"):
        robust_z(np.ones(brain.shape, dtype=np.float32), brain)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "rule", "known"),
    [
        ("flair-z", FixedThreshold(1.4), 0.732),
        ("flair-t2w-z", FixedThreshold(2.0), 0.742),
        ("t2w-z", FixedThreshold(1.2), 0.448),
        ("flair-z", AdaptiveThreshold(0.6), 0.788),
        ("flair-t2w-z", AdaptiveThreshold(1.0), 0.767),
    ],
)
@pytest.mark.slow
def test_baselines_reach_their_known_dice_on_gliomas(
    real_data: Path, name: str, rule: FixedThreshold | AdaptiveThreshold, known: float
) -> None:
    nibabel = pytest.importorskip("nibabel")
    baseline = BASELINES[name]
    dice = []
    for subject in (
        "Brats18_TCIA02_135_1",
        "Brats18_CBICA_AME_1",
        "Brats18_2013_3_1",
        "Brats18_TCIA10_637_1",
        "Brats18_TCIA01_425_1",
    ):
        folder = real_data / "glioma" / subject
        files = {"FLAIR": "flair", "T2w": "t2", "T1w": "t1", "seg": "seg"}
        images = {
            m: np.asarray(nibabel.load(folder / f"{subject}_{s}.nii.gz").dataobj, dtype=np.float32)
            for m, s in files.items()
        }
        reference = images.pop("seg") > 0
        brain = np.any([image != 0 for image in images.values()], axis=0)
        mask = baseline.cleaning.segment(baseline.score(images, brain, ONE_MM), rule)
        dice.append(overlap(mask, reference).dice)
    assert np.mean(dice) == pytest.approx(known, abs=0.01)
