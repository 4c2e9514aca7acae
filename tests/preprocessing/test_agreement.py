"""Scans of one head in one place agree; mirrored, moved or another head's they do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from mmccd_cli.config import PreprocessingConfig
from mmccd_cli.inputs.scans import read_image
from mmccd_cli.inputs.subjects import find_subjects
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.preprocessing.agreement import agreement, disagreements
from mmccd_cli.preprocessing.subject import prepare_subject
from mmccd_cli.weights.bundle import load_bundle

SHAPE, SPACING = (60, 70, 56), (2.0, 2.0, 2.0)
Image = np.ndarray


def _head(seed: int) -> Image:
    """Smooth tissue that is not the same left and right."""
    noise = np.random.default_rng(seed).normal(size=SHAPE)
    tissue = ndimage.gaussian_filter(noise, 1.5)
    return (tissue / tissue.std()).astype(np.float32)


def _other_contrast(head: Image) -> Image:
    noise = np.random.default_rng(9).normal(scale=0.3, size=SHAPE)
    return (-np.abs(head - 0.7) + noise).astype(np.float32)


@pytest.fixture(scope="module")
def brain() -> np.ndarray:
    axes = np.meshgrid(*(np.linspace(-1.1, 1.1, n) for n in SHAPE), indexing="ij")
    return np.sum(np.square(axes), axis=0) < 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda scan: scan, None),
        (lambda scan: scan[::-1], "looks like a mirror image"),
        (lambda scan: np.roll(scan, 2, axis=1), "seems not to lie on FLAIR"),
        (lambda _: _other_contrast(_head(1)), "does not seem to show the head"),
    ],
    ids=["right", "mirrored", "moved", "another"],
)
def test_what_does_not_belong_together_is_named(
    brain: np.ndarray, change: Callable[[Image], Image], said: str | None
) -> None:
    head = _head(0)
    images = {"FLAIR": head, "T2w": change(_other_contrast(head))}
    covered = dict.fromkeys(images, brain)
    found = disagreements(images, covered, reference="FLAIR", spacing_mm=SPACING)
    assert {name: said in text for name, text in found.items()} == ({"T2w": True} if said else {})


def test_of_what_hardly_anything_is_shown_nothing_is_said(brain: np.ndarray) -> None:
    slab = brain & (np.arange(SHAPE[2]) < 8)
    assert agreement(_head(0), _head(1), inside=slab, spacing_mm=SPACING) is None
    covered = {"FLAIR": brain, "T1w": slab}
    images = {"FLAIR": _head(0), "T1w": _head(1)}
    assert disagreements(images, covered, reference="FLAIR", spacing_mm=SPACING) == {}


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize("folder", ["glioma", "ms", "healthy", "metastasis", "raw"])
def test_real_scans_are_believed_and_mirrored_ones_are_not(real_data: Path, folder: str) -> None:
    bundle = load_bundle(Path(__file__).parents[2] / "weights" / "glioma-compact")
    subject = find_subjects(real_data / folder)[0]
    volumes = {name: read_image(subject, name)[0] for name in ("FLAIR", "T2w", "T1w")}

    def used(changed: dict[str, Volume]) -> set[str]:
        prepared = prepare_subject(volumes | changed, bundle.template, PreprocessingConfig())
        told = {text.split()[0] for text in prepared.notes if "left out" in text}
        assert told == set(volumes) - set(prepared.images)
        return set(prepared.images)

    assert used({}) == set(volumes)
    for name in ("T2w", "T1w"):
        scan = volumes[name]
        mirrored = {name: Volume(scan.data[::-1], scan.affine)}
        assert used(mirrored) == set(volumes) - {name}
