"""What a calibration looks at besides subjects as they are: painted lesions, another scanner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from mmccd_cli.anomaly.components import erode
from mmccd_cli.config import MODALITIES, ScoreConfig
from mmccd_cli.training.calibration_data import (
    FROM_LESIONS_MM,
    FROM_RIM_MM,
    MODALITY_SETS,
    CalibrationSubject,
    _painted,
    _with_cycles,
)
from mmccd_cli.training.painting import Painter
from mmccd_cli.training.slices import SubjectVolumes
from mmccd_cli.weights.bundle import Bundle, load_bundle

SHAPE = (48, 56, 40)
SMALL = Painter(count=6, volumes_ml=(0.5, 2.0))


@pytest.fixture(scope="module")
def small(bundle: Path) -> Bundle:
    return load_bundle(bundle)


def subject(bundle: Bundle, seed: int = 0) -> SubjectVolumes:
    """Tissue of two kinds in a ball, and a lesion that is bright everywhere."""
    settings = bundle.config.preprocessing.intensity
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    brain = np.asarray(sum(a**2 for a in axes) < 0.9)
    lesion = np.zeros(SHAPE, bool)
    lesion[14:19, 20:26, 18:22] = True
    images = {}
    for modality in MODALITIES:
        tissue = np.where(axes[1] > 0, 1.0, -1.0) + 0.2 * generator.standard_normal(SHAPE)
        values = settings.scale * np.where(lesion, 3.5, tissue)
        images[modality] = np.where(brain, values, settings.background).astype(np.float32)
    return SubjectVolumes(images, brain, lesion)


def painted(bundle: Bundle, *, other_scanner: bool, painter: Painter = SMALL) -> SubjectVolumes:
    return _painted(
        subject(bundle),
        bundle,
        painter,
        generator=np.random.default_rng(1),
        other_scanner=other_scanner,
    )


def test_painted_voxels_change_and_nothing_else_does(small: Bundle) -> None:
    before, after = subject(small), painted(small, other_scanner=False)
    new = after.lesion & ~before.lesion
    assert new.sum() > 20
    assert (after.lesion >= before.lesion).all()
    unit = small.config.preprocessing.intensity.scale
    for modality, sign in (("FLAIR", 1), ("T2w", 1), ("T1w", -1)):
        change = sign * (after.images[modality] - before.images[modality]) / unit
        assert (change[new] > 0.2).all()
        assert np.median(change[new]) > 0.5
        near = ndimage.binary_dilation(new, iterations=6)
        np.testing.assert_allclose(change[~near], 0.0, atol=1e-5)


def test_painted_lesions_stay_away_from_the_rim_and_from_other_lesions(small: Bundle) -> None:
    before, after = subject(small), painted(small, other_scanner=False)
    spacing = small.template.spacing_mm
    new = after.lesion & ~before.lesion
    assert not (new & ~erode(before.brain, FROM_RIM_MM, spacing)).any()
    assert not (new & ~erode(~before.lesion, FROM_LESIONS_MM, spacing)).any()


def test_another_scanner_has_other_contrast_inside_the_brain_alone(small: Bundle) -> None:
    before = subject(small)
    after = painted(small, other_scanner=True, painter=Painter(count=0))
    np.testing.assert_array_equal(after.lesion, before.lesion)
    settings = small.config.preprocessing.intensity
    half = np.indices(SHAPE)[1] > SHAPE[1] // 2
    healthy = before.brain & ~before.lesion
    contrasts = []
    for modality in MODALITIES:
        values = after.images[modality]
        np.testing.assert_array_equal(values[~before.brain], np.float32(settings.background))
        assert (values[before.brain] != before.images[modality][before.brain]).mean() > 0.9
        sides = [values[healthy & side].mean() for side in (half, ~half)]
        contrasts.append(abs(sides[0] - sides[1]))
        assert contrasts[-1] > 0.1 * settings.scale, "tissues can still be told apart"
    assert np.std(contrasts) > 0.02 * settings.scale, "each scan has its own"


def test_a_look_is_the_same_each_time(small: Bundle) -> None:
    for other_scanner in (False, True):
        once, again = (painted(small, other_scanner=other_scanner) for _ in range(2))
        for modality in MODALITIES:
            np.testing.assert_array_equal(once.images[modality], again.images[modality])


def test_cycles_are_mirrored_where_they_are_cheap() -> None:
    shipped = load_bundle(Path(__file__).parents[2] / "weights" / "glioma-compact")

    def compute(config: ScoreConfig) -> dict[str, np.ndarray]:
        return {name: np.full(SHAPE, len(config.mirrored), np.float32) for name in config.weights}

    brain = np.ones(SHAPE, bool)
    known = {modalities: {"restoration:T2w": np.ones(SHAPE)} for modalities in MODALITY_SETS}
    bare = CalibrationSubject(id="a", brain=brain, lesion=brain, signals={}, of_sets=known)
    plain = _with_cycles(bare, compute, shipped, method="cyclic-unet")
    masked = _with_cycles(plain, compute, shipped, method="mmccd")
    cycles = {f"cycle:{source}" for source in shipped.sources}
    for looked_at, sides in ((plain, 1), (masked, 0)):
        assert looked_at.signals.keys() == cycles
        assert all((signal == sides).all() for signal in looked_at.signals.values())
        assert looked_at.of_sets == known
