"""Results are written whole or not at all, and never over something of value."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mmccd_cli.errors import StorageError, UsageError
from mmccd_cli.inputs.nifti import make_grid
from mmccd_cli.inputs.phantom import make_affine
from mmccd_cli.outputs.images import (
    encode_images,
    output_paths,
    write_outputs,
)
from mmccd_cli.outputs.record import encode_json, to_json

SHAPE = (4, 5, 6)
MAP = np.linspace(0, 1, 120, dtype=np.float32).reshape(SHAPE)
MASK = MAP > 0.5
GRID = make_grid(SHAPE, make_affine(SHAPE, (1, 2, 3), "LPS", rotation_deg=(5, 10, 20)), code=4)


def write(paths, record, *, values=MAP, extra=None, force=False):
    contents = encode_images(paths, anomaly_map=values, mask=MASK, grid=GRID)
    contents["sidecar"] = encode_json(record)
    named = {paths[kind]: content for kind, content in contents.items()}
    write_outputs(named | (extra or {}), force=force)


@dataclass(frozen=True)
class Lesion:
    id: int
    volume_ml: float
    centroid_mm: np.ndarray


def test_names_follow_from_the_map():
    paths = output_paths(Path("d/map.nii.gz"))
    assert [str(path) for path in paths.values()] == [
        "d/map.nii.gz",
        "d/map_mask.nii.gz",
        "d/map.json",
        "d/map_lesions.tsv",
    ]
    assert output_paths(Path("a.b.nii"))["mask"] == Path("a.b_mask.nii")


@pytest.mark.parametrize("name", ["map", "map.gz", "map.mgz", ".nii.gz", "map.nii.zip"])
def test_other_names_are_a_usage_error(name):
    with pytest.raises(UsageError, match="NIfTI"):
        output_paths(Path(name))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_all_three_files_are_written_on_the_grid(tmp_path, suffix):
    paths = output_paths(tmp_path / f"map{suffix}")
    record = {
        "lesions": [Lesion(1, np.float32(2.5), np.array([1.0, 2, 3]))],
        "path": tmp_path,
        "peak": np.nan,
    }
    write(paths, record, extra={tmp_path / "a.png": b"png"})
    image, mask = nib.load(paths["map"]), nib.load(paths["mask"])
    assert image.get_data_dtype() == np.float32
    assert mask.get_data_dtype() == np.uint8
    assert mask.header.get_intent()[0] == "label"
    np.testing.assert_array_equal(image.get_fdata(), MAP)
    np.testing.assert_array_equal(mask.get_fdata(), MASK)
    for each in (image, mask):
        np.testing.assert_array_equal(each.affine, GRID.affine)
        assert each.header["sform_code"] == each.header["qform_code"] == 4
    sidecar = json.loads(paths["sidecar"].read_text())
    assert sidecar["lesions"] == [{"id": 1, "volume_ml": 2.5, "centroid_mm": [1, 2, 3]}]
    assert sidecar["peak"] is None
    assert len(list(tmp_path.iterdir())) == 4


def test_existing_outputs_need_force(tmp_path):
    paths = output_paths(tmp_path / "map.nii.gz")
    paths["sidecar"].write_text("precious")
    with pytest.raises(UsageError, match="exists") as caught:
        write(paths, {})
    assert "--force" in caught.value.next_step
    assert [path.name for path in tmp_path.iterdir()] == ["map.json"]
    write(paths, {}, force=True)
    assert paths["sidecar"].read_text() == "{}\n"


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    calls = []

    def full_at_the_third(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_at_the_third)
    with pytest.raises(StorageError, match="could not be written to the folder '") as caught:
        write(output_paths(tmp_path / "map.nii.gz"), {})
    assert "No space left" in caught.value.cause
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [MAP * 2, MAP - 1, np.full(SHAPE, np.nan)])
def test_a_map_out_of_range_is_never_written(tmp_path, bad):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        write(output_paths(tmp_path / "map.nii.gz"), {}, values=bad)
    assert list(tmp_path.iterdir()) == []


def test_a_json_record_fits_one_line():
    assert "\n" not in to_json({"a": [1, 2.5], "b": "x\ny"})


def test_a_name_in_no_encoding_is_still_json():
    name = os.fsdecode(b"scan-\xff.nii.gz")
    text = to_json({"file": name, "path": Path(name)})
    assert json.loads(text.encode()) == {"file": "scan-\ufffd.nii.gz", "path": "scan-\ufffd.nii.gz"}
