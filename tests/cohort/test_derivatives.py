"""Names, sources and the files around a derivative data set; no image is computed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mmccd_cli.cohort.derivatives import (
    derivatives_planner,
    find_sources,
    write_root,
)
from mmccd_cli.cohort.jobs import Job, plan_jobs
from mmccd_cli.errors import UsageError
from mmccd_cli.inputs.subjects import Subject


def _subject(folder: Path, id: str, layout: str = "bids") -> Subject:
    return Subject(
        id=id,
        paths={name: folder / f"{name}.nii.gz" for name in ("FLAIR", "T1w")},
        layout=layout,
    )


def _bids_subject(root: Path, id: str) -> Subject:
    return _subject(root.joinpath(*id.split("_"), "anat"), id)


def _jobs(subjects: list[Subject], out: Path, **options: Any) -> list[Job]:
    return [*map(derivatives_planner(subjects, out, **options), subjects)]


def _description(root: Path) -> dict:
    return json.loads((root / "dataset_description.json").read_text())


def test_names_follow_the_specification(tmp_path: Path) -> None:
    subjects = [_bids_subject(tmp_path / "raw", id) for id in ("sub-01", "sub-02_ses-a")]
    out = tmp_path / "raw" / "derivatives" / "mmccd"
    jobs = _jobs(subjects, out, extras={"picture": "look.png"})
    names = {kind: str(path.relative_to(out)) for kind, path in jobs[0].targets.items()}
    assert names == {
        "map": "sub-01/anat/sub-01_space-orig_desc-anomaly_probseg.nii.gz",
        "mask": "sub-01/anat/sub-01_space-orig_label-L_desc-mmccd_mask.nii.gz",
        "sidecar": "sub-01/anat/sub-01_space-orig_desc-anomaly_probseg.json",
        "mask_sidecar": "sub-01/anat/sub-01_space-orig_label-L_desc-mmccd_mask.json",
        "lesions": "sub-01/anat/sub-01_space-orig_desc-lesions_dseg.nii.gz",
        "lesion_table": "sub-01/anat/sub-01_space-orig_desc-lesions_dseg.tsv",
        "lesions_sidecar": "sub-01/anat/sub-01_space-orig_desc-lesions_dseg.json",
        "picture": "sub-01/figures/sub-01_look.png",
    }
    assert jobs[1].targets["map"].parent == out / "sub-02" / "ses-a" / "anat"
    (with_run,) = _jobs(subjects[1:], out, run=2)
    assert with_run.names["mask"] == (
        "sub-02_ses-a_run-2_space-orig_label-L_desc-mmccd_mask.nii.gz"
    )


def test_sources_are_uris_within_the_data_set_that_was_read(tmp_path: Path) -> None:
    (job,) = _jobs([_bids_subject(tmp_path / "raw", "sub-01")], tmp_path / "out")
    assert job.sidecar_fields["Sources"] == [
        "bids:raw:sub-01/anat/FLAIR.nii.gz",
        "bids:raw:sub-01/anat/T1w.nii.gz",
    ]
    assert job.sidecar_fields["SpatialReference"] == "bids:raw:sub-01/anat/FLAIR.nii.gz"
    write_root(tmp_path / "out", [job.subject])
    assert _description(tmp_path / "out")["DatasetLinks"] == {"raw": "../raw"}


def test_subjects_that_are_not_bids_get_a_label_and_a_source(tmp_path: Path) -> None:
    subject = _subject(tmp_path / "my data" / "BraTS_000-1", "BraTS_000-1", "brats")
    (job,) = _jobs([subject], tmp_path / "out")
    assert job.names["map"] == "sub-BraTS0001_space-orig_desc-anomaly_probseg.nii.gz"
    assert job.sidecar_fields["Sources"][0] == "bids:mydata:BraTS_000-1/FLAIR.nii.gz"
    subjects = [_subject(tmp_path / "x", "---", "plain"), subject]
    jobs, (failure,) = plan_jobs(subjects, derivatives_planner(subjects, tmp_path / "out"))
    assert jobs == [job]
    assert (failure.name, "cannot be named" in str(failure.error)) == ("---", True)


def test_two_data_sets_keep_their_names_from_run_to_run(tmp_path: Path) -> None:
    one, two = (_bids_subject(tmp_path / name, f"sub-{name}") for name in ("one", "two"))
    out = tmp_path / "out"
    write_root(out, [one, two])
    links = _description(out)["DatasetLinks"]
    assert sorted(links.values()) == ["../one", "../two"]
    assert links["raw"] == "../one"
    again = find_sources([two], out)[two.id]
    assert links[again.name] == "../two"
    assert again.uri(two.paths["T1w"]) == f"bids:{again.name}:sub-two/anat/T1w.nii.gz"


def test_what_a_user_wrote_about_the_data_set_stays(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    subject = _bids_subject(raw, "sub-01")
    raw.mkdir()
    (raw / "dataset_description.json").write_text('{"Name": "x", "Authors": ["A", "B"]}')
    write_root(out, [subject])
    assert _description(out)["Authors"] == ["A", "B"]
    changed = {**_description(out), "Name": "Mine", "License": "CC0"}
    changed["GeneratedBy"] = [{"Name": "mmccd", "Version": "0.0.1"}]
    (out / "dataset_description.json").write_text(json.dumps(changed))
    (out / "README.md").write_text("mine")
    write_root(out, [subject])
    new = _description(out)
    assert (new["Name"], new["License"]) == ("Mine", "CC0")
    assert len(new["GeneratedBy"]) == 2
    assert (out / "README.md").read_text() == "mine"
    before = os.stat(out / "dataset_description.json").st_mtime_ns
    write_root(out, [subject])
    assert os.stat(out / "dataset_description.json").st_mtime_ns == before


def test_another_data_set_is_never_written_into(tmp_path: Path) -> None:
    raw, other = tmp_path / "raw", tmp_path / "fmriprep"
    subject = _bids_subject(raw, "sub-01")
    raw.mkdir()
    (tmp_path / "link").symlink_to(raw)
    for out in (raw, tmp_path / "link"):
        with pytest.raises(UsageError, match="is the data set that is read"):
            _jobs([subject], out)
    other.mkdir()
    own = '"GeneratedBy": [{"Name": "mmccd"}]'
    for content in (
        '{"Name": "fMRIPrep", "GeneratedBy": [{"Name": "fMRIPrep"}]}',
        "{broken",
        '{"GeneratedBy": ["fmriprep"]}',
        '{"GeneratedBy": {"Name": "mmccd"}}',
        f'{{{own}, "DatasetLinks": ["a"]}}',
        f'{{{own}, "DatasetLinks": {{"raw": 1}}}}',
    ):
        (other / "dataset_description.json").write_text(content)
        with pytest.raises(UsageError, match="holds another data set"):
            _jobs([subject], other)
