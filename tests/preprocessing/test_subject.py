"""One head, however its grid lies, becomes one image on the template's grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.config import PreprocessingConfig
from mmccd_cli.errors import Caution, DataError
from mmccd_cli.inputs.nifti import read_nifti
from mmccd_cli.inputs.phantom import Phantom, make_phantom
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.preprocessing.reference_grid import to_reference_grid
from mmccd_cli.preprocessing.spatial import doubled
from mmccd_cli.preprocessing.subject import (
    PreparedSubject,
    prepare_subject,
)
from mmccd_cli.template import Box, Template

TEMPLATE_AFFINE = np.diag([4.0, 4, 4, 1])
TEMPLATE_AFFINE[:3, 3] = [-206, 4, -10]
SHAPE = (46, 52, 44)
TRUST = PreprocessingConfig(template_registration="none")


@pytest.fixture(scope="module")
def template() -> Template:
    healthy = make_phantom(1, shape=(120, 130, 100), spacing_mm=(1.8, 1.8, 1.8), lesion=False)
    empty = Template({}, np.zeros(SHAPE, bool), TEMPLATE_AFFINE)
    prepared = prepare_subject(healthy.volumes, empty, TRUST)
    return Template(prepared.images, prepared.brain, TEMPLATE_AFFINE)


def _subject(**changes: object) -> Phantom:
    settings: dict = {"shape": (100, 110, 90), "spacing_mm": (2, 2, 2), "noise": 0.0}
    return make_phantom(0, **(settings | changes))


@pytest.fixture(scope="module")
def prepared(template: Template) -> PreparedSubject:
    return prepare_subject(_subject().volumes, template, PreprocessingConfig())


def test_images_lie_on_the_template(prepared: PreparedSubject, template: Template) -> None:
    assert set(prepared.images) == {"FLAIR", "T2w", "T1w"}
    assert prepared.reference == "FLAIR"
    brain = prepared.brain
    assert 2 * (brain & template.mask).sum() / (brain.sum() + template.mask.sum()) > 0.93
    for image in prepared.images.values():
        assert image.shape == SHAPE
        assert image.dtype == np.float32
        assert (image[~brain] == -3).all()
        assert abs(np.median(image[brain])) < 1e-3
    assert not prepared.notes
    assert {"brain_mask", "template_registration", "resampling"} <= set(prepared.seconds)


@pytest.mark.parametrize("orientation", ["RAS", "PIR", "oblique"])
def test_any_orientation_gives_the_same_images(
    prepared: PreparedSubject, template: Template, orientation: str
) -> None:
    if orientation == "oblique":
        same = _subject(shape=(112, 118, 100), rotation_deg=(8, -12, 15))
    else:
        shape = {"RAS": (100, 110, 90), "PIR": (110, 90, 100)}[orientation]
        same = _subject(orientation=orientation, shape=shape)
    again = prepare_subject(same.volumes, template, PreprocessingConfig())
    both = prepared.brain & again.brain
    assert both.sum() > 0.97 * prepared.brain.sum()
    for name, image in prepared.images.items():
        # The oblique phantom is blurred and shaded along other axes.
        least = 0.97 if orientation == "oblique" else 0.995
        assert np.corrcoef(image[both], again.images[name][both])[0, 1] > least


def test_way_back_to_the_reference_grid(prepared: PreparedSubject) -> None:
    scan, brain = prepared.reference_volume, prepared.reference_brain
    back = to_reference_grid(prepared.images["FLAIR"], prepared)
    assert back.shape == scan.shape
    assert (back[~brain] == 0).all()
    assert np.corrcoef(back[brain], scan.data[brain])[0, 1] > 0.8
    ones = to_reference_grid(np.ones(SHAPE, np.float32), prepared)
    assert np.median(ones[brain]) == pytest.approx(1, abs=1e-5)
    assert (ones[brain] > 0.99).mean() > 0.98


def test_what_is_brought_back_in_slabs_is_the_same(
    prepared: PreparedSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = to_reference_grid(prepared.images["FLAIR"], prepared)
    monkeypatch.setattr("mmccd_cli.preprocessing.reference_grid._SLAB_VOXELS", whole[0].size * 3)
    assert to_reference_grid(prepared.images["FLAIR"], prepared) == pytest.approx(whole, abs=1e-5)


def test_only_what_is_looked_at_is_doubled(
    prepared: PreparedSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = []

    def kept(volume: Volume, box: Box) -> Volume:
        parts.append(volume.data[box].size / volume.data.size)
        return doubled(volume, box)

    monkeypatch.setattr("mmccd_cli.preprocessing.reference_grid.doubled", kept)
    part = to_reference_grid(prepared.images["FLAIR"], prepared)
    monkeypatch.setattr("mmccd_cli.preprocessing.reference_grid.doubled", lambda v, _: doubled(v))
    np.testing.assert_allclose(
        part, to_reference_grid(prepared.images["FLAIR"], prepared), atol=1e-6
    )
    assert parts[0] < 0.8


def test_without_surroundings_the_brain_of_the_reference_is_as_it_was(
    prepared: PreparedSubject,
) -> None:
    scan = Volume(prepared.reference_volume.data + 1, prepared.reference_volume.affine)
    kept = replace(prepared, reference_volume=scan).without_surroundings().reference_volume
    assert (kept.data[prepared.reference_brain] == scan.data[prepared.reference_brain]).all()
    assert (kept.data == 0).any()  # the corners
    assert (kept.affine == scan.affine).all()
    assert (scan.data != 0).all()


def test_modality_on_another_grid_is_aligned(template: Template) -> None:
    pose = np.eye(4)
    pose[:3, 3] = [7, -5, 6]
    moved = _subject(pose=pose, shape=(98, 108, 94), modalities=["T1w"])
    volumes = {**_subject(modalities=["FLAIR"]).volumes, **moved.volumes}
    result = prepare_subject(volumes, template, PreprocessingConfig())
    assert result.matrices["T1w"][:3, 3] + result.matrices["T1w"][:3, :3] @ [
        -118,
        104,
        72,
    ] == pytest.approx([-111, 99, 78], abs=0.8)
    assert (result.matrices["FLAIR"] == np.eye(4)).all()
    assert any("T1w lies on another grid" in note for note in result.notes)


def test_missing_part_is_noted_and_left_out(template: Template) -> None:
    volumes = dict(_subject().volumes)
    data = volumes["FLAIR"].data.copy()
    data[:, :, :40] = 0
    volumes["FLAIR"] = Volume(data, volumes["FLAIR"].affine)
    result = prepare_subject(volumes, template, TRUST)
    assert any("FLAIR shows only" in note for note in result.notes)
    hidden = result.brain & ~result.covered["FLAIR"]
    assert hidden.any()
    assert (result.images["FLAIR"][hidden] == -3).all()
    assert (result.covered["T2w"] == result.brain).all()


@pytest.mark.parametrize("lost", [["FLAIR"], ["FLAIR", "T2w", "T1w"]])
def test_lost_slices_part_no_brain_and_are_named(template: Template, lost: list[str]) -> None:
    volumes = dict(_subject().volumes)
    whole = prepare_subject(volumes, template, TRUST)
    for name in lost:
        data = volumes[name].data.copy()
        data[:, :, 40:42] = 0
        volumes[name] = Volume(data, volumes[name].affine)
    result = prepare_subject(volumes, template, TRUST)
    assert overlap(result.brain, whole.brain).dice > 0.99
    told = [note for note in result.notes if "empty in 2 of its slices" in note]
    assert [note.split()[0] for note in told] == lost


def test_a_slice_of_twice_the_brightness_is_told(template: Template) -> None:
    volumes = dict(_subject().volumes)
    data = volumes["T2w"].data.copy()
    data[:, :, 48] *= 2
    volumes["T2w"] = Volume(data, volumes["T2w"].affine)
    (told,) = (note for note in prepare_subject(volumes, template, TRUST).notes if "slices" in note)
    assert isinstance(told, Caution)
    assert told.startswith("T2w is far brighter or darker in 1 of its slices")


@pytest.mark.parametrize("background", [-4.5, -1024.0, 7.0])
def test_a_constant_background_is_background(
    prepared: PreparedSubject, template: Template, background: float
) -> None:
    scans = _subject().volumes
    offset = {m: Volume(v.data + np.float32(background), v.affine) for m, v in scans.items()}
    again = prepare_subject(offset, template, PreprocessingConfig())
    assert again.brain_method == "stripped"
    assert (again.brain == prepared.brain).all()
    for name, image in prepared.images.items():
        assert again.images[name] == pytest.approx(image, abs=0.01)  # float32 beside an offset


def test_given_mask(template: Template) -> None:
    head = _subject(skull=True, modalities=["T2w"])
    mask = Volume(head.brain, head.volumes["T2w"].affine)
    result = prepare_subject(head.volumes, template, TRUST, brain_mask=mask)
    assert result.brain_method == "given"
    assert result.reference == "T2w"
    assert (result.reference_brain == head.brain).all()


def test_a_template_that_was_moved_is_no_fault_of_the_scans(template: Template) -> None:
    affine = template.affine.copy()
    affine[0, 3] += 500
    with pytest.raises(DataError, match="template of these weights") as caught:
        prepare_subject(_subject().volumes, replace(template, affine=affine), TRUST)
    assert "register no scan" in str(caught.value.cause)


def _cut(axis: int, keep: slice) -> dict[str, Volume]:
    """A head that was only scanned in part; the rest is empty."""
    box = [slice(None)] * 3
    box[axis] = keep
    parts = {}
    for name, volume in _subject().volumes.items():
        seen = np.zeros_like(volume.data)
        seen[tuple(box)] = volume.data[tuple(box)]
        parts[name] = Volume(seen, volume.affine)
    return parts


@pytest.mark.parametrize(
    ("axis", "keep"),
    [(2, slice(42, 46)), (2, slice(20, 40)), (2, slice(None, 45)), (1, slice(45, 65))],
)
def test_too_little_of_a_brain_is_refused(template: Template, axis: int, keep: slice) -> None:
    with pytest.raises(DataError, match="too little") as caught:
        prepare_subject(_cut(axis, keep), template, PreprocessingConfig())
    assert "--skull-strip" in str(caught.value.next_step)
    # Where headers are trusted, a part lies where it belongs.
    assert prepare_subject(_cut(axis, keep), template, TRUST).brain.any()


@pytest.mark.parametrize("keep", [slice(None, 68), slice(28, None)])
def test_a_brain_without_its_vertex_or_cerebellum_goes_on(
    template: Template, prepared: PreparedSubject, keep: slice
) -> None:
    cut = prepare_subject(_cut(2, keep), template, PreprocessingConfig())
    assert (cut.brain & prepared.brain).sum() > 0.97 * cut.brain.sum()
    assert np.linalg.norm((cut.to_reference - prepared.to_reference)[:3, :3]) < 0.08


def test_no_known_modality_is_an_error(template: Template) -> None:
    with pytest.raises(DataError, match="none of the modalities"):
        prepare_subject({}, template, TRUST)


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize("case", ["TCGA-FG-6692", "openms_patient12"])
def test_raw_patients_reach_the_template(real_data: Path, case: str) -> None:
    empty = Template({}, np.zeros((82, 98, 78), bool), np.diag([2.0, 2, 2, 1]))
    empty.affine[:3, 3] = [-200, 22, 0]
    subject = "Brats18_CBICA_AME_1"
    glioma = real_data / "glioma" / subject
    volumes = {
        name: read_nifti(glioma / f"{subject}_{suffix}.nii.gz")[0]
        for name, suffix in (("FLAIR", "flair"), ("T2w", "t2"), ("T1w", "t1"))
    }
    first = prepare_subject(volumes, empty, TRUST)
    template = Template(first.images, first.brain, empty.affine)
    raw = {
        name: read_nifti(real_data / "raw" / case / f"{suffix}.nii.gz")[0]
        for name, suffix in (("FLAIR", "flair"), ("T2w", "t2"), ("T1w", "t1"))
    }
    result = prepare_subject(raw, template, PreprocessingConfig())
    dice = 2 * (result.brain & template.mask).sum() / (result.brain.sum() + template.mask.sum())
    assert dice > 0.88
    assert result.brain_method == "deepbet"
