"""Reading a BIDS data set: what is chosen, what is left out, and why. Names only, no images."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mmccd_cli.errors import DataError, UsageError
from mmccd_cli.inputs.bids import BidsFilter, bids_root, read_filter
from mmccd_cli.inputs.subjects import Subject, find_sessions, find_subject


def _make(root: Path, *names: str) -> Path:
    """Make empty files below a root, each with its folder from its name; return the root."""
    for name in names:
        folder = root.joinpath(*re.findall(r"(?:sub|ses)-[A-Za-z0-9]+", name)[:2], "anat")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.nii.gz").touch()
    return root


def _only(root: Path, **wanted: Any) -> Subject:
    """The one subject of a data set, which the folders of its participant must give, too."""
    subjects, failures = find_sessions(root, BidsFilter(**wanted))
    assert not failures
    assert len(subjects) == 1
    if not wanted:
        for folder in (root / "sub-01", next(iter(subjects[0].paths.values())).parent):
            assert find_subject(folder) == subjects[0]
    return subjects[0]


def _chosen(subject: Subject) -> list[str]:
    return [path.name.removesuffix(".nii.gz") for path in subject.paths.values()]


def _reasons(subject: Subject) -> dict[str, str]:
    return {path.name.removesuffix(".nii.gz"): reason for path, reason in subject.ignored}


def _failure(root: Path, **wanted: Any) -> DataError:
    """Why a data set has no subject, which the folder of its participant must say, too."""
    subjects, failures = find_sessions(root, BidsFilter(**wanted))
    assert not subjects
    name, error = failures[0]
    if not wanted:
        with pytest.raises(DataError) as caught:
            find_subject(root / name)
        assert vars(caught.value) == vars(error)
    return error


def test_each_session_is_a_subject(tmp_path: Path) -> None:
    _make(tmp_path, "sub-02_ses-b_T1w", "sub-02_ses-a_FLAIR", "sub-01_T2w", "sub-01_FLAIR")
    (tmp_path / "derivatives" / "sub-09" / "anat").mkdir(parents=True)
    (tmp_path / "sub-02" / "ses-c" / "func").mkdir(parents=True)
    subjects, failures = find_sessions(tmp_path)
    assert [subject.id for subject in subjects] == ["sub-01", "sub-02_ses-a", "sub-02_ses-b"]
    assert list(subjects[0].paths) == ["FLAIR", "T2w"]
    assert {subject.layout for subject in subjects} == {"bids"}
    assert not failures


@pytest.mark.parametrize("label", ["02", "sub-02"])
def test_participants_and_sessions_can_be_chosen(tmp_path: Path, label: str) -> None:
    _make(tmp_path, "sub-01_ses-a_T1w", "sub-02_ses-a_T1w", "sub-02_ses-b_T1w")
    assert _only(tmp_path, participants=(label,), sessions=("ses-b",)).id == "sub-02_ses-b"
    assert _only(tmp_path, participants=(label, label), sessions=("a",)).id == "sub-02_ses-a"


def test_contrast_agent_phases_and_other_images_are_left_out(tmp_path: Path) -> None:
    _make(
        tmp_path,
        "sub-01_T1w",
        "sub-01_ce-gadolinium_T1w",
        "sub-01_part-phase_T2w",
        "sub-01_part-mag_T2w",
        "sub-01_T2starw",
        "sub-01_label-lesion_mask",
        "sub-01_desc-brain_mask",
    )
    subject = _only(tmp_path)
    assert _chosen(subject) == ["sub-01_part-mag_T2w", "sub-01_T1w"]
    assert subject.segmentation is not None
    assert subject.segmentation.name == "sub-01_label-lesion_mask.nii.gz"
    reasons = _reasons(subject)
    assert len(reasons) == 4
    assert reasons["sub-01_desc-brain_mask"] == "a mask, not an image"
    assert "contrast-enhanced (ce-gadolinium)" in reasons["sub-01_ce-gadolinium_T1w"]
    assert "phase part" in reasons["sub-01_part-phase_T2w"]
    assert "suffix T2starw" in reasons["sub-01_T2starw"]


def test_the_folder_of_a_session_is_its_subject(tmp_path: Path) -> None:
    subject = _only(_make(tmp_path, "sub-01_ses-01_T1w", "sub-01_ses-01_acq-space_T2w"))
    assert (subject.id, subject.layout) == ("sub-01_ses-01", "bids")
    assert _chosen(subject) == ["sub-01_ses-01_acq-space_T2w", "sub-01_ses-01_T1w"]


def test_a_suffix_may_be_written_small(tmp_path: Path) -> None:
    assert list(_only(_make(tmp_path, "sub-01_t1w", "sub-01_flair")).paths) == ["FLAIR", "T1w"]


@pytest.mark.parametrize("part", ["real", "imag", "phase"])
def test_a_part_of_an_image_alone_is_none(tmp_path: Path, part: str) -> None:
    _make(tmp_path, f"sub-01_part-{part}_FLAIR", "sub-01_T1w")
    subject = _only(tmp_path)
    assert _chosen(subject) == ["sub-01_T1w"]
    assert _reasons(subject) == {f"sub-01_part-{part}_FLAIR": f"the {part} part of an image"}


def test_of_several_runs_the_first_is_taken_unless_another_is_asked_for(tmp_path: Path) -> None:
    _make(tmp_path, *(f"sub-01_run-{run}_T1w" for run in ("10", "02")), "sub-01_FLAIR")
    subject = _only(tmp_path)
    assert _chosen(subject) == ["sub-01_FLAIR", "sub-01_run-02_T1w"]
    reason = "another run of T1w: the first, run-2, is taken"
    assert _reasons(subject) == {"sub-01_run-10_T1w": reason}
    subject = _only(tmp_path, run=10)
    assert _chosen(subject) == ["sub-01_FLAIR", "sub-01_run-10_T1w"]
    assert "run 10 was asked for" in _reasons(subject)["sub-01_run-02_T1w"]
    # A run that a modality does not have leaves that modality out.
    assert _chosen(_only(tmp_path, run=3)) == ["sub-01_FLAIR"]


def test_several_acquisitions_are_an_error_of_that_session_alone(tmp_path: Path) -> None:
    _make(tmp_path, "sub-01_acq-2d_FLAIR", "sub-01_acq-3d_FLAIR", "sub-02_acq-3d_FLAIR")
    subjects, failures = find_sessions(tmp_path)
    assert [subject.id for subject in subjects] == ["sub-02"]
    ((name, error),) = failures
    assert name == "sub-01"
    assert "2 images for FLAIR" in error.message
    assert "--bids-filter-file" in str(error.next_step)
    own = tmp_path / "sub-01" / "anat" / "sub-01_acq-2d_FLAIR.nii.gz"
    assert f"--flair {own};" in str(error.next_step)
    with pytest.raises(DataError) as caught:
        find_subject(tmp_path / "sub-01")
    assert vars(caught.value) == vars(error)


def test_a_filter_file_tells_acquisitions_apart(tmp_path: Path) -> None:
    _make(
        tmp_path,
        "sub-01_acq-2d_FLAIR",
        "sub-01_acq-3d_run-1_FLAIR",
        "sub-01_T1w",
        "sub-01_rec-norm_T1w",
        "sub-01_T2w",
        "sub-01_UNIT1",
    )
    query = {
        "flair": {"acquisition": "3d", "run": "01", "datatype": "anat"},
        "t1w": {"reconstruction": None},
        "t2w": {"suffix": "T2w", "session": ["1", "2"]},
        "bold": {"task": "rest"},
    }
    (tmp_path / "filter.json").write_text(json.dumps(query))
    subject = _only(tmp_path, queries=read_filter(tmp_path / "filter.json"))
    assert _chosen(subject) == ["sub-01_acq-3d_run-1_FLAIR", "sub-01_T1w"]
    assert _reasons(subject)["sub-01_acq-2d_FLAIR"] == "left out by the filter (acq-2d)"
    assert _reasons(subject)["sub-01_T2w"] == "left out by the filter (no ses)"
    any_reconstruction = {"T1w": {"rec": ("*",)}, "FLAIR": {"acq": ("2d",)}}
    assert "sub-01_rec-norm_T1w" in _chosen(_only(tmp_path, queries=any_reconstruction))
    other_suffix = {"T1w": {"suffix": ("UNIT1",)}, "FLAIR": {"acq": ("2d",)}}
    assert "sub-01_UNIT1" in _chosen(_only(tmp_path, queries=other_suffix))


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"bold": {}}', '{"t1w": 3}', '{"t1w": {"colour": "red"}}']
)
def test_a_filter_file_that_says_nothing_useful_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "filter.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=re.escape(str(path))):
        read_filter(path)


def test_what_cannot_be_segmented_is_named(tmp_path: Path) -> None:
    _make(tmp_path, "sub-01_ce-gd_T1w")
    (tmp_path / "sub-02" / "dwi").mkdir(parents=True)
    assert "ce-gd" in str(_failure(tmp_path, participants=("01",)).cause)
    assert "no structural images" in _failure(tmp_path, participants=("02",)).message
    assert "no participant sub-03" in _failure(tmp_path, participants=("03",)).message
    with pytest.raises(UsageError, match="session 9"):
        find_sessions(tmp_path, BidsFilter(participants=("01",), sessions=("9",)))
    (tmp_path / "empty").mkdir()
    for place in ("empty", "nowhere"):
        with pytest.raises(DataError, match=place):
            find_sessions(tmp_path / place)


def test_an_image_whose_content_was_not_fetched_is_an_error_that_says_so(tmp_path: Path) -> None:
    _make(tmp_path, "sub-01_T1w")
    link = tmp_path / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz"
    link.symlink_to("../../.git/annex/objects/ab/cd/none.nii.gz")
    error = _failure(tmp_path)
    assert str(link) in error.message
    assert "datalad get" in str(error.next_step)


def test_a_session_behind_a_link_is_that_session(tmp_path: Path) -> None:
    (tmp_path / "store" / "a7").mkdir(parents=True)
    (tmp_path / "store" / "a7" / "sub-01_T1w.nii.gz").touch()
    (tmp_path / "sub-01").mkdir()
    (tmp_path / "sub-01" / "anat").symlink_to(tmp_path / "store" / "a7")
    assert _only(tmp_path).id == "sub-01"
    _make(tmp_path, "sub-02_T1w")
    (tmp_path / "case").symlink_to(tmp_path / "sub-02")
    assert find_subject(tmp_path / "case").id == "sub-02"


def test_the_root_of_a_data_set_is_above_its_participants(tmp_path: Path) -> None:
    assert bids_root(tmp_path / "sub-01" / "ses-1" / "anat") == tmp_path
    assert bids_root(tmp_path / "case" / "anat") is None
