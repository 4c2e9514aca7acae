"""A new mask from a map that is there, with all that shows it and its record."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from mmccd_cli.anomaly.mask import MaskOptions, mask_settings
from mmccd_cli.config import ScoreConfig, to_dict
from mmccd_cli.errors import DataError
from mmccd_cli.inputs.nifti import make_grid, write_nifti
from mmccd_cli.outputs.bids import BIDS_OUTPUTS
from mmccd_cli.outputs.lesions import is_mask_warning
from mmccd_cli.outputs.remask import remask, with_kept

SHAPE = (20, 22, 24)
REFERENCE = "bids:raw:sub-01/anat/FLAIR.nii.gz"


@pytest.fixture
def outputs(tmp_path: Path) -> dict[str, Path]:
    """A map with a large lesion and a small, less anomalous one, and names for what follows."""
    values = np.zeros(SHAPE, np.float32)
    values[4:10, 4:10, 4:10], values[14:17, 14:17, 14:17] = 0.9, 0.6
    folder = tmp_path / "out" / "sub-01" / "anat"
    folder.mkdir(parents=True)
    write_nifti(folder / "map.nii.gz", values, make_grid(SHAPE, np.eye(4)))
    names = {"map": "map.nii.gz", "mask": "mask.nii.gz", "sidecar": "map.json", "table": "t.tsv"}
    names |= {kind: f"{kind}.file" for kind in BIDS_OUTPUTS}
    return {kind: folder / name for kind, name in names.items()}


@pytest.fixture
def record() -> dict[str, Any]:
    """The record of the map, whose mask was made with a threshold of its own."""
    score = ScoreConfig(
        modalities=("FLAIR",),
        weights={"intensity:FLAIR": 1.0},
        threshold=0.8,
        min_seed_mm3=0,
        min_lesion_mm3=1,
        min_fraction_of_largest=0,
    )
    return {
        "versions": {"mmccd": "0.0.1"},
        "warnings": ["The map was made by mmccd 0.0.0; long ago.", "T2w was mended."],
        "notes": ["The head was raw."],
        "output_sha256": {"map": "of the map", "mask": "of the old mask"},
        "settings": {
            "score": to_dict(score),
            "calibrated_mask": {**mask_settings(score), "threshold": 0.5},
            "score_threshold_of_this_scan": 1.0,
            "requested": {"space": "native", "threshold": 0.8, "min_lesion_mm3": "auto"},
        },
    }


def test_what_is_not_asked_for_is_as_calibrated_not_as_before(outputs, record):
    new = remask(outputs, record, MaskOptions(), spatial_reference=REFERENCE)
    assert new.record["threshold"] == 0.5
    assert len(new.found.lesions) == len(new.record["lesions"]) == 2
    assert new.record["settings"]["requested"]["threshold"] == "auto"
    higher = remask(outputs, record, MaskOptions(threshold=0.7), spatial_reference=REFERENCE)
    assert higher.found.mask.sum() == 6**3
    assert higher.record["lesion_volume_ml"] == 0.216
    unset = {"min_lesion_mm3": "auto", "min_confidence": "auto"}
    asked = {"space": "native", "threshold": 0.7, **unset}
    assert higher.record["settings"]["requested"] == asked


def test_files_and_record_fit_the_mask(outputs, record, tmp_path):
    new = remask(outputs, record, MaskOptions(), spatial_reference=REFERENCE)
    assert set(new.contents) == {"mask", "table", *BIDS_OUTPUTS}
    hashes = {"map": "of the map", "mask": hashlib.sha256(new.contents["mask"]).hexdigest()}
    assert new.record["output_sha256"] == hashes
    assert new.record["outputs"] == {kind: path.name for kind, path in outputs.items()}
    assert new.record["warnings"] == ["T2w was mended."]
    kept, added = new.record["notes"]
    assert kept == "The head was raw."
    assert added.startswith("The map was made by mmccd 0.0.1; its mask")
    sidecar = json.loads(new.contents["mask_sidecar"])
    assert (sidecar["Threshold"], sidecar["Sources"]) == (0.5, ["bids::sub-01/anat/map.nii.gz"])
    assert new.contents["lesion_table"].decode().split("\n") == [
        "index\tname\tvolume_ml\tpeak\tmean\tx_mm\ty_mm\tz_mm\tside\tmidline_mm",
        "1\tlesion 1\t0.216\t0.9\t0.9\t6.5\t6.5\t6.5\tn/a\tn/a",
        "2\tlesion 2\t0.027\t0.6\t0.6\t15\t15\t15\tn/a\tn/a",
        "",
    ]
    (tmp_path / "numbered.nii.gz").write_bytes(new.contents["lesions"])
    numbered = nib.load(tmp_path / "numbered.nii.gz").get_fdata()
    assert (numbered[5, 5, 5], numbered[15, 15, 15]) == (1, 2)
    np.testing.assert_array_equal(numbered > 0, new.found.mask)


def test_what_is_said_of_the_mask_is_renewed(outputs, record):
    def renewed(record: dict[str, Any], mm3: float) -> dict[str, Any]:
        options = MaskOptions(min_lesion_mm3=mm3)
        return remask(outputs, record, options, spatial_reference=REFERENCE).record

    empty = renewed(record, 300)
    assert (empty["lesions"], [found["id"] for found in empty["left_out"]]) == ([], [1, 2])
    mended, sentence = empty["warnings"]
    assert mended == "T2w was mended."
    assert sentence == (
        "Nothing was kept, but the map shows 2 candidates of 0.2 ml in all; the strongest has "
        "0.2 ml and a peak of 0.9, at (6, 6, 6) mm: 0.22 ml is less than the smallest lesion of "
        "0.30 ml."
    )
    some = renewed(empty, 100)
    assert [len(some[name]) for name in ("lesions", "left_out")] == [1, 1]
    assert not any(map(is_mask_warning, some["warnings"]))  # what is left out is too small for one
    all_kept = renewed(some, 1)
    assert all_kept["left_out"] == []
    assert [text for text in all_kept["warnings"] if "left out" in text.lower()] == []


def test_a_result_outside_its_data_set_names_its_map(outputs, record, tmp_path):
    outputs["map"].rename(tmp_path / "map.nii.gz")
    moved = {kind: tmp_path / path.name for kind, path in outputs.items()}
    sidecar = json.loads(
        remask(moved, record, MaskOptions(), spatial_reference=REFERENCE).contents["mask_sidecar"]
    )
    assert sidecar["Sources"] == ["map.nii.gz"]


def test_files_of_bids_need_the_scan_whose_grid_it_is(outputs, record):
    with pytest.raises(DataError, match="does not say which scan"):
        remask(outputs, record, MaskOptions())


def test_a_record_without_the_hash_of_its_mask_can_be_replaced(outputs, record):
    del record["output_sha256"]["mask"]
    new = remask(outputs, record, MaskOptions(), spatial_reference=REFERENCE).record
    replaced = record | {"outputs": {"report": "r.html", "mask": "mask.nii.gz"}}
    assert set(with_kept(new, replaced)["stale_outputs"]) == {"report"}


def test_a_record_without_settings_is_explained(outputs, record):
    del record["settings"]["calibrated_mask"]
    with pytest.raises(DataError, match="lacks the settings"):
        remask(outputs, record, MaskOptions(), spatial_reference=REFERENCE)
