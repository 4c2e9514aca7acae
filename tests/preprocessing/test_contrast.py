"""Scans under each other's names are noticed, and those under their own are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from mmccd_cli.config import MODALITIES, PreprocessingConfig
from mmccd_cli.errors import Caution
from mmccd_cli.inputs.nifti import read_nifti
from mmccd_cli.inputs.phantom import Phantom, make_phantom
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.preprocessing.contrast import check_contrast
from mmccd_cli.preprocessing.subject import PreparedSubject, prepare_subject
from mmccd_cli.template import Template
from mmccd_cli.weights.bundle import load_bundle

AFFINE = np.diag([3.0, 3, 3, 1])
AFFINE[:3, 3] = [-206, 4, -10]
PAIRS = [(a, b) for a in MODALITIES for b in MODALITIES if a != b]


@pytest.fixture(scope="module")
def shipped() -> Template:
    return load_bundle(Path(__file__).parents[2] / "weights" / "glioma-compact").template


@pytest.fixture(scope="module")
def template() -> Template:
    """Of a synthetic head: others resemble it as patients resemble the shipped one."""
    healthy = make_phantom(1, shape=(120, 130, 100), spacing_mm=(1.8, 1.8, 1.8), lesion=False)
    empty = Template({}, np.zeros((60, 70, 58), bool), AFFINE)
    trusting = PreprocessingConfig(template_registration="none")
    prepared = prepare_subject(healthy.volumes, empty, trusting)
    return Template(prepared.images, prepared.brain, AFFINE)


def _prepare(seed: int, template: Template, names: dict[str, str]) -> PreparedSubject:
    """A synthetic subject, some of its scans under other names."""
    head = make_phantom(seed, shape=(100, 110, 90), spacing_mm=(2, 2, 2), noise=0.0)
    volumes = {given: head.volumes[true] for given, true in names.items()}
    return prepare_subject(volumes, template, PreprocessingConfig())


def _suspected(prepared: PreparedSubject) -> list[tuple[str, str]]:
    texts = [text for text in prepared.notes if "looks like" in text]
    assert all(isinstance(text, Caution) for text in texts)
    return [(text.split()[4], text.split()[7].rstrip(":")) for text in texts]


@pytest.mark.parametrize("lone", [False, True])
def test_right_names_are_not_doubted(template: Template, shipped: Template, lone: bool) -> None:
    sets = [(name,) for name in MODALITIES] if lone else [MODALITIES]
    for names in sets:
        right = {name: name for name in names}
        assert not _suspected(_prepare(3, template, right))
        assert not _suspected(_prepare(3, shipped, right))


@pytest.mark.parametrize(("given", "true"), PAIRS)
def test_a_scan_under_another_name_is_noticed(template: Template, given: str, true: str) -> None:
    assert _suspected(_prepare(3, template, {given: true})) == [(given, true)]


def test_of_scans_that_are_mixed_up_both_are_named(template: Template) -> None:
    names = {"FLAIR": "T1w", "T2w": "T2w", "T1w": "FLAIR"}
    assert _suspected(_prepare(5, template, names)) == [("FLAIR", "T1w"), ("T1w", "FLAIR")]


def test_what_resembles_nothing_is_said_to(template: Template) -> None:
    noise = np.random.default_rng(0).normal(size=template.shape).astype(np.float32)
    flat = np.zeros(template.shape, np.float32)
    for image in (noise, flat):
        (said,) = check_contrast({"T1w": image}, {"T1w": template.mask}, template)
        assert "resembles no modality" in said
    hidden = {"T1w": np.zeros(template.shape, bool)}
    assert check_contrast({"T1w": noise}, hidden, template) == []
    bare = Template({}, template.mask, template.affine)
    assert check_contrast({"T1w": template.images["FLAIR"]}, hidden, bare) == []


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("folder", ["healthy/kirby21_113", "ms/openms_patient26"])
def test_real_scans_are_known(shipped: Template, real_data: Path, folder: str) -> None:
    files = {"FLAIR": "flair", "T2w": "t2", "T1w": "t1"}
    scans = {n: read_nifti(real_data / folder / f"{f}.nii.gz")[0] for n, f in files.items()}
    assert not _suspected(prepare_subject(scans, shipped, PreprocessingConfig()))
    mixed = scans | {"FLAIR": scans["T1w"], "T1w": scans["FLAIR"]}
    found = _suspected(prepare_subject(mixed, shipped, PreprocessingConfig()))
    assert found == [("FLAIR", "T1w"), ("T1w", "FLAIR")]


def _with_vessels(head: Phantom) -> dict[str, Volume]:
    """The T1w with a few bright places in the brain, as after contrast agent."""
    scan = head.volumes["T1w"]
    inside = ndimage.binary_erosion(head.brain, iterations=6)
    seeds = np.random.default_rng(0).random(scan.shape) < 2e-4
    vessels = ndimage.binary_dilation(seeds & inside, iterations=2)
    bright = np.where(vessels, 3 * np.median(scan.data[head.brain]), scan.data)
    return {**head.volumes, "T1w": Volume(bright.astype(np.float32), scan.affine)}


def test_a_t1w_after_contrast_agent_is_left_out_where_there_is_another_scan(
    template: Template,
) -> None:
    head = make_phantom(3, shape=(100, 110, 90), spacing_mm=(2, 2, 2), noise=0.0)
    settings, volumes = PreprocessingConfig(), _with_vessels(head)
    prepared = prepare_subject(volumes, template, settings)
    assert set(prepared.images) == set(prepared.covered) == {"FLAIR", "T2w"}
    assert set(prepared.matrices) == set(MODALITIES)
    (told,) = (text for text in prepared.notes if "contrast agent" in text)
    assert isinstance(told, Caution)
    assert "left out" in told
    alone = prepare_subject({"T1w": volumes["T1w"]}, template, settings)
    assert set(alone.images) == {"T1w"}
    assert any("contrast agent" in text and "left out" not in text for text in alone.notes)
    before = prepare_subject(head.volumes, template, settings)
    assert set(before.images) == set(MODALITIES)
    assert not any("contrast agent" in text for text in before.notes)


@pytest.mark.slow
@pytest.mark.realdata
def test_contrast_agent_is_seen_in_real_scans(real_data: Path, shipped: Template) -> None:
    folders = [real_data / "raw" / "TCGA-FG-6692", *(real_data / "metastasis").iterdir()]
    for folder in (path for path in folders if path.is_dir()):
        for name, seen in (("t1", False), ("t1c", True)):
            volumes = {"FLAIR": folder / "flair.nii.gz", "T1w": folder / f"{name}.nii.gz"}
            read = {modality: read_nifti(path)[0] for modality, path in volumes.items()}
            prepared = prepare_subject(read, shipped, PreprocessingConfig())
            assert ("T1w" not in prepared.images) == seen
