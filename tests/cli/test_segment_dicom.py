"""`mmccd segment` on DICOM: one folder or archive in, NIfTI and DICOM SEG out, nobody named."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_phantoms import PATIENT, make_dicom

from mmccd_cli.inputs.nifti import make_grid, write_nifti
from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.inputs.scans import describe_inputs, read_scans
from mmccd_cli.inputs.subjects import find_subject, subject_from_files
from mmccd_cli.inputs.volume import Volume


@pytest.fixture
def volumes(tiny_phantom: Phantom) -> dict[str, Volume]:
    return {
        name: Volume(np.rint(tiny_phantom.volumes[name].data), tiny_phantom.affine)
        for name in ("FLAIR", "T2w")
    }


@pytest.fixture
def study(tmp_path: Path, volumes: dict[str, Volume]) -> Path:
    return make_dicom(volumes, tmp_path / "case7", shuffled=3)


def test_dicom_and_nifti_give_one_result(run, study, volumes, tmp_path):
    (tmp_path / "nifti").mkdir()
    for name, volume in volumes.items():
        grid = make_grid(volume.shape, volume.affine)
        write_nifti(tmp_path / "nifti" / f"{name}.nii.gz", volume.data, grid)
    of_dicom = run(study, "--out", tmp_path / "d.nii.gz", "--dicom-seg", tmp_path / "d.dcm")
    of_nifti = run(tmp_path / "nifti", "--out", tmp_path / "n.nii.gz")
    assert (of_dicom.exit_code, of_nifti.exit_code) == (0, 0), of_dicom.stderr
    for name in ("{}.nii.gz", "{}_mask.nii.gz"):
        first, second = (nib.load(tmp_path / name.format(kind)) for kind in "dn")
        np.testing.assert_array_equal(first.get_fdata(), second.get_fdata())
        np.testing.assert_array_equal(first.affine, second.affine)
        assert first.header["sform_code"] == first.header["qform_code"] == 1
    assert nib.load(tmp_path / "d_mask.nii.gz").get_fdata().any()


def test_nothing_that_is_written_or_said_names_the_patient(run, study, tmp_path):
    out = tmp_path / "out"
    result = run(study, "--out-dir", out, "--json", "-v", "--picture", "look.png")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["subject"] == "case7"
    assert record["inputs"]["FLAIR"]["file"] == "series 1"
    assert record["inputs"]["FLAIR"]["slices"] == 46
    assert "TI 2500 ms" in record["inputs"]["FLAIR"]["chosen"]
    said = result.stdout + result.stderr + (out / "case7.json").read_text()
    for keyword, value in PATIENT.items():
        if keyword != "PatientSex":  # one letter
            assert value not in said, keyword


def test_an_archive_is_the_same_subject_as_its_folder(study, tmp_path):
    archive = tmp_path / "case8.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        for path in sorted(study.rglob("*/*")):
            stream.write(path, path.name + path.parent.name)
    subjects = find_subject(study), find_subject(archive)
    assert [subject.id for subject in subjects] == ["case7", "case8"]
    assert subjects[1].files == [archive]  # which no output may replace
    assert describe_inputs(subjects[0]) == describe_inputs(subjects[1])
    first, second = (read_scans(subject) for subject in subjects)
    for modality, volume in first.volumes.items():
        np.testing.assert_array_equal(volume.data, second.volumes[modality].data)


def test_outputs_never_replace_an_image_of_the_series(run, study, tmp_path):
    target = (study / "S001" / "IM0003").rename(study / "S001" / "IM0003.dcm")
    before = target.read_bytes()
    result = run(study, "--out", tmp_path / "d.nii.gz", "--dicom-seg", target, "--force")
    assert result.exit_code == 2
    assert "is the input" in result.stderr
    assert target.read_bytes() == before


def test_resume_sees_a_changed_slice(run, study, tmp_path):
    def planned() -> str:
        return run(study, "--out-dir", tmp_path / "out", "--resume", "--dry-run").stderr

    assert run(study, "--out-dir", tmp_path / "out").exit_code == 0
    assert "up to date" in planned()
    path = study / "S002" / "IM0020"
    content = bytearray(path.read_bytes())
    content[-900] ^= 1
    path.write_bytes(bytes(content))
    assert "up to date" not in planned()


def test_dicom_seg_needs_dicom(run, volumes, tmp_path):
    grid = make_grid(volumes["FLAIR"].shape, volumes["FLAIR"].affine)
    write_nifti(tmp_path / "flair.nii.gz", volumes["FLAIR"].data, grid)
    flair = ("--flair", tmp_path / "flair.nii.gz", "--out", tmp_path / "m.nii.gz")
    result = run(*flair, "--dicom-seg", tmp_path / "m.dcm")
    assert result.exit_code == 2
    assert "was not given as DICOM" in result.stderr
    assert "--dicom-seg m.txt is not named .dcm" in run(*flair, "--dicom-seg", "m.txt").stderr


def test_dry_run_explains_the_choice(run, study, tmp_path):
    result = run(study, "--out", tmp_path / "d.nii.gz", "--dry-run")
    assert result.exit_code == 0
    said = " ".join(result.stderr.split())
    assert "series 1 (ax flair), 46 slices, 4 x 4 x 4 mm: IR/SE, TR 9000 ms" in said


def test_images_may_be_named_by_the_folders_of_their_series(study):
    subject = subject_from_files({"FLAIR": study / "S001", "T2w": study / "S002"})
    assert set(subject.series) == {"FLAIR", "T2w"}
    assert len(subject.files) == 92


def test_a_folder_of_dicom_is_a_subject_named_after_the_folder(study):
    subject = find_subject(study)
    assert (subject.id, subject.layout) == ("case7", "dicom")
    assert list(subject.paths.values()) == [study / "S001", study / "S002"]
