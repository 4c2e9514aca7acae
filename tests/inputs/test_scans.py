"""What is read of a subject, and how it is named in the record."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest

from mmccd_cli.errors import DataError, notes_and_warnings
from mmccd_cli.inputs.nifti import make_grid, write_nifti
from mmccd_cli.inputs.phantom import make_phantom
from mmccd_cli.inputs.scans import check_head, describe_inputs, read_image, read_scans
from mmccd_cli.inputs.subjects import find_subject, subject_from_files
from mmccd_cli.inputs.volume import Volume


def test_inputs_are_described_without_their_folder(tmp_path):
    path = tmp_path / "flair.nii.gz"
    path.write_bytes(b"scan")
    assert describe_inputs(subject_from_files({"FLAIR": path})) == {
        "FLAIR": {"file": "flair.nii.gz", "sha256": hashlib.sha256(b"scan").hexdigest()}
    }


def test_what_may_never_end_is_refused_before_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "flair.nii.gz")
    with pytest.raises(DataError, match="only regular files"):
        subject_from_files({"FLAIR": tmp_path / "flair.nii.gz"})
    with pytest.raises(DataError, match="only regular files"):
        find_subject(tmp_path)
    (tmp_path / "t1.nii.gz").write_bytes(b"scan")
    subject = subject_from_files({"T1w": tmp_path / "t1.nii.gz"})
    with pytest.raises(DataError, match="only regular files"):
        describe_inputs(subject, tmp_path / "flair.nii.gz")


def test_what_was_mended_in_a_brain_mask_is_told(tmp_path):
    volume = head()
    mask = (volume.data > 0).astype(np.float32)
    mask[0, 0, 0] = np.nan
    for name, data in (("flair", volume.data), ("mask", mask)):
        write_nifti(tmp_path / f"{name}.nii", data, make_grid(volume.shape, volume.affine))
    subject = subject_from_files({"FLAIR": tmp_path / "flair.nii"})
    notes = read_scans(subject, tmp_path / "mask.nii").notes
    assert any("mask.nii: 1 voxels were NaN" in note for note in notes)


def test_one_image_under_several_names_is_a_caution(tmp_path):
    volume = head()
    paths = {name: tmp_path / f"{name}.nii" for name in ("FLAIR", "T2w", "T1w")}
    for path in paths.values():
        write_nifti(path, volume.data, make_grid(volume.shape, volume.affine))
    subject = subject_from_files(paths)
    warnings = notes_and_warnings(read_scans(subject).notes)[1]
    assert warnings == [
        "FLAIR (FLAIR.nii) and T2w (T2w.nii) and T1w (T1w.nii) are one and the same image: give "
        "each scan its own file."
    ]
    for name, factor in (("T2w", 2.0), ("T1w", 3.0)):
        other = head(factor)
        write_nifti(paths[name], other.data, make_grid(other.shape, other.affine))
    assert notes_and_warnings(read_scans(subject).notes)[1] == []


def head(factor: float = 1.0, **settings) -> Volume:
    settings = {"modalities": ["FLAIR"], "shape": (40, 46, 38), "spacing_mm": (4, 4, 4), **settings}
    volume = make_phantom(0, **settings).volumes["FLAIR"]
    return Volume(volume.data, volume.affine @ np.diag([factor, factor, factor, 1]))


@pytest.mark.parametrize("factor", [1000, 10, 0.1])
def test_a_head_of_an_impossible_size_is_refused(tmp_path, factor):
    volume = head(factor)
    write_nifti(tmp_path / "a.nii", volume.data, make_grid(volume.shape, volume.affine))
    with pytest.raises(DataError, match=r"a.nii cannot be a head: it shows .* litres") as caught:
        read_image(subject_from_files({"FLAIR": tmp_path / "a.nii"}), "FLAIR")
    assert caught.value.next_step


def test_noise_is_refused():
    volume, rng = head(), np.random.default_rng(0)
    noise = rng.rayleigh(size=volume.shape).astype(np.float32)
    noise[3, 4, 5] = 1e30
    scrambled = rng.permutation(volume.data.ravel()).reshape(volume.shape)
    for data in (noise, scrambled):
        with pytest.raises(DataError, match="a scan cannot be a head: neighbouring voxels"):
            check_head("a scan", Volume(data, volume.affine))


def test_unusual_heads_pass():
    volume = head()
    noise = np.random.default_rng(0).normal(0, volume.data.std(), volume.shape)
    outlier = volume.data.copy()
    outlier[20, 20, 20] = 1e30
    for data in (volume.data + noise, outlier, np.abs(noise) * (volume.data > 0)):
        check_head("a scan", Volume(data, volume.affine))
    check_head("a slab of 12 mm", Volume(volume.data[:, :, 18:21], volume.affine))
    infant = head(0.6)
    assert (infant.data > 0).sum() * infant.voxel_volume_mm3 < 0.4e6
    check_head("an infant", infant)
    check_head("thick slices", head(shape=(40, 46, 8), spacing_mm=(4, 4, 20)))
