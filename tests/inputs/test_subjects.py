"""From names of files to modalities; the files of these tests are empty."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from mmccd_cli.config import MODALITIES
from mmccd_cli.errors import DataError, UsageError
from mmccd_cli.inputs.subjects import (
    find_sessions,
    find_subject,
    find_subjects,
    name_doubts,
    subject_from_files,
)


def folder_with(parent: Path, *names: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return parent


def names(subject) -> dict[str, str]:
    return {modality: path.name for modality, path in subject.paths.items()}


@pytest.mark.parametrize(
    ("id", "pattern"),
    [
        ("Brats18_2013_11_1", "{id}_{m}.nii.gz"),
        ("BraTS20_Training_001", "{id}_{m}.nii"),
        ("BraTS2021_00000", "{id}_{m}.nii.gz"),
    ],
)
def test_brats_until_2021(tmp_path, id, pattern):
    files = {m: pattern.format(id=id, m=m) for m in ("flair", "t1", "t1ce", "t2", "seg")}
    subject = find_subject(folder_with(tmp_path / id, *files.values()))
    assert names(subject) == {"FLAIR": files["flair"], "T2w": files["t2"], "T1w": files["t1"]}
    assert subject.segmentation.name == files["seg"]
    assert [path.name for path, _ in subject.ignored] == [files["t1ce"]]
    assert "contrast" in subject.ignored[0][1]
    assert (subject.id, subject.layout) == (id, "brats")


def test_brats_2023(tmp_path):
    id = "BraTS-GLI-00005-100"
    files = [f"{id}-{m}.nii.gz" for m in ("t1c", "t1n", "t2f", "t2w", "seg")]
    subject = find_subject(folder_with(tmp_path / id, *files))
    assert names(subject) == {
        "FLAIR": f"{id}-t2f.nii.gz",
        "T2w": f"{id}-t2w.nii.gz",
        "T1w": f"{id}-t1n.nii.gz",
    }
    assert tuple(subject.paths) == MODALITIES
    assert subject.segmentation is not None


def test_several_bids_sessions_have_to_be_given_one_by_one(tmp_path):
    for session in ("ses-01", "ses-02"):
        folder_with(tmp_path / "sub-01" / session / "anat", f"sub-01_{session}_T1w.nii.gz")
    with pytest.raises(DataError, match="2 sessions") as caught:
        find_subject(tmp_path / "sub-01")
    assert "ses-01" in caught.value.next_step
    assert [subject.id for subject in find_subjects(tmp_path)] == [
        "sub-01_ses-01",
        "sub-01_ses-02",
    ]


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("T1.nii", "T1w"),
        ("t1.NII.GZ", "T1w"),
        ("T1w.nii.gz", "T1w"),
        ("t1_mprage_sag.nii.gz", "T1w"),
        ("3DT1.nii.gz", "T1w"),
        ("MPRAGE.nii.gz", "T1w"),
        ("T1_native.nii.gz", "T1w"),
        ("t1_pre_contrast.nii.gz", "T1w"),
        ("AX_T1_FLAIR.nii.gz", "T1w"),
        ("T1_to_FLAIR.nii.gz", "T1w"),
        ("T1w_post_surgery_FLAIR_space.nii.gz", None),
        ("flair_space-T1.nii.gz", "FLAIR"),
        ("sub-01_space-T1w_desc-preproc_FLAIR.nii.gz", "FLAIR"),
        ("t2_space-T1.nii.gz", "T2w"),
        ("sub-01_space-FLAIR_T2w.nii.gz", "T2w"),
        ("T1w_space-FLAIR.nii.gz", "T1w"),
        ("t2_space-flair.nii.gz", "FLAIR"),
        ("SPACE-T2.nii.gz", "T2w"),
        ("T2_space-MNI.nii.gz", "T2w"),
        ("flair_reg_t1.nii.gz", "FLAIR"),
        ("FLAIR_T1.nii.gz", None),
        ("FLAIR_T1space.nii.gz", None),
        ("sT1W_3D_TFE.nii.gz", "T1w"),
        ("WIPsT2W_TSE.nii.gz", "T2w"),
        ("sT2W_FLAIR.nii.gz", "FLAIR"),
        ("st1_flair.nii.gz", "FLAIR"),
        ("T1TFE.nii.gz", "T1w"),
        ("x_T2_SPACE.nii.gz", "T2w"),
        ("t2tse.nii.gz", "T2w"),
        ("T2_in_FLAIR.nii.gz", "T2w"),
        ("sub_T2_FLAIR.nii.gz", "FLAIR"),
        ("t2flair.nii.gz", "FLAIR"),
        ("Flair-3D.nii", "FLAIR"),
        ("sag3dflair.nii.gz", "FLAIR"),
        ("t2_tirm_tra_dark-fluid.nii.gz", "FLAIR"),
        ("t2_tirm_tra_dark_fluid_320.nii.gz", "FLAIR"),
        ("x_t2_spc_da-fl_sag.nii.gz", "FLAIR"),
        ("Dark Fluid.nii.gz", "FLAIR"),
        ("t1_tirm_tra_dark-fluid.nii.gz", "T1w"),
        ("t1_tirm_sag.nii.gz", "T1w"),
        ("t2_tirm_cor.nii.gz", None),
        ("t2_tir.nii.gz", None),
        ("t2_dark_blood_fluid.nii.gz", "T2w"),
        ("t1_pc.nii.gz", None),
        ("x_T1PC.nii.gz", None),
        ("t1ce.nii.gz", None),
        ("x-t1c.nii.gz", None),
        ("t1gd.nii.gz", None),
        ("T1_gado.nii.gz", None),
        ("t1_mdc.nii.gz", None),
        ("T1_Dotarem.nii.gz", None),
        ("patient01_T1WKS.nii.gz", None),
        ("CT1.nii.gz", None),
        ("T1post.nii.gz", None),
        ("T1 post.nii.gz", None),
        ("t1+c.nii.gz", None),
        ("ce-T1w.nii.gz", None),
        ("T1_km.nii.gz", None),
        ("MPRAGE_Gd.nii.gz", None),
        ("T2star.nii.gz", None),
        ("T2W_FFE.nii.gz", None),
        ("5_t2_fl2d_tra_hemo.nii.gz", None),
        ("T1_FFE.nii.gz", "T1w"),
        ("t2_tse_sag_spine.nii.gz", None),
        ("T1_mapping.nii.gz", None),
        ("t1_dce_dynamic.nii.gz", None),
        ("T2*.nii.gz", None),
        ("T1map.nii.gz", None),
        ("dwi.nii.gz", None),
        ("pd.nii.gz", None),
        ("t1_t2_ratio.nii.gz", None),
        ("flair_lesion_mask.nii.gz", None),
        ("t1_brain_mask.nii.gz", None),
        ("map_mask.nii.gz", None),
        ("1-LesionSeg-Flair.nii", None),
        ("FLAIR_wmhmask.nii.gz", None),
        ("flair_mask1.nii.gz", None),
        ("T1_synthseg.nii.gz", None),
        ("MP2RAGE_INV1.nii.gz", None),
        ("MP2RAGE_UNI.nii.gz", "T1w"),
    ],
)
def test_plain_names(tmp_path, name, modality):
    # A second file lets the first be ignored; ids that look like words must not confuse.
    other = "t2.nii.gz" if modality != "T2w" else "flair.nii.gz"
    subject = find_subject(folder_with(tmp_path / "case", name, other))
    expected = {name: modality} if modality else {}
    found = {path.name: m for m, path in subject.paths.items() if path.name != other}
    assert found == expected


def test_words_in_the_own_name_of_a_subject_do_not_count(tmp_path):
    id = "TCGA-FA-T2-0001"
    files = [f"{id}_{m}.nii.gz" for m in ("t1", "flair")]
    assert len(find_subject(folder_with(tmp_path / id, *files)).paths) == 2
    # Nor do the tokens that all files share, when the folder is named otherwise.
    assert len(find_subject(folder_with(tmp_path / "x", "PD_07_t1.nii", "PD_07_t2.nii")).paths) == 2


def test_segmentations_and_brain_masks(tmp_path):
    folder = folder_with(
        tmp_path / "UCSF-1",
        "UCSF-1_FLAIR.nii.gz",
        "UCSF-1_brain_segmentation.nii.gz",
        "UCSF-1_tumor_segmentation.nii.gz",
        "brainmask_common_space.nii.gz",
    )
    subject = find_subject(folder)
    assert subject.segmentation.name == "UCSF-1_tumor_segmentation.nii.gz"
    assert len(subject.ignored) == 2


@pytest.mark.parametrize(
    ("name", "lesions"), [("1-LesionSeg-Flair.nii", True), ("1-T1_synthseg.nii", False)]
)
def test_masks_whose_words_are_written_together(tmp_path, name, lesions):
    subject = find_subject(folder_with(tmp_path / "Patient-1", "1-Flair.nii", "1-T1.nii", name))
    assert names(subject) == {"FLAIR": "1-Flair.nii", "T1w": "1-T1.nii"}
    assert (subject.segmentation is not None) is lesions


def test_two_segmentations_are_both_left_out(tmp_path):
    subject = find_subject(folder_with(tmp_path, "t1.nii", "seg_a.nii", "seg_b.nii"))
    assert subject.segmentation is None
    assert len(subject.ignored) == 2


@pytest.mark.parametrize("pair", [("t1.nii.gz", "T1w.nii.gz"), ("a_t1.nii.gz", "b_t1.nii.gz")])
def test_two_files_for_one_modality_are_an_error_that_names_both(tmp_path, pair):
    with pytest.raises(DataError, match="2 images for T1w") as caught:
        find_subject(folder_with(tmp_path / "case", *pair, "flair.nii.gz"))
    assert all(name in caught.value.message for name in pair)
    assert "--t1" in caught.value.next_step
    assert caught.value.exit_code == 3


def test_the_image_itself_is_taken_beside_what_was_made_of_it(tmp_path):
    kinds = ("FLAIR", "FLAIR_bias", "T1", "T1_bias", "T1c", "T1c_bias", "T2", "T2_bias", "T2_brain")
    files = [f"UCSF-PDGM-0004_{kind}.nii.gz" for kind in kinds]
    subject = find_subject(folder_with(tmp_path / "UCSF-PDGM-0004_nifti", *files))
    assert names(subject) == {
        "FLAIR": "UCSF-PDGM-0004_FLAIR.nii.gz",
        "T2w": "UCSF-PDGM-0004_T2.nii.gz",
        "T1w": "UCSF-PDGM-0004_T1.nii.gz",
    }
    told = {path.name: reason for path, reason in subject.ignored}
    assert told["UCSF-PDGM-0004_T2_brain.nii.gz"] == "UCSF-PDGM-0004_T2.nii.gz, processed"
    made = ("T1w_acpc_dc_restore.nii.gz", "T1w_acpc_dc_restore_brain.nii.gz")
    assert names(find_subject(folder_with(tmp_path / "100307", *made))) == {"T1w": made[0]}


@pytest.mark.parametrize("place", ["", "t2 series"])
def test_dicom_beside_nifti_is_told_where_a_scan_is_missing(tmp_path, place):
    folder = folder_with(tmp_path / "case", "flair.nii.gz")
    assert find_subject(folder).ignored == ()
    (folder / place).mkdir(exist_ok=True)
    (folder / place / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(99))
    ((name, reason),) = find_subject(folder).ignored
    assert str(name) == "DICOM"
    assert "beside NIfTI" in reason
    for kind in ("t1", "t2"):
        (folder / f"{kind}.nii.gz").touch()
    assert find_subject(folder).ignored == ()


@pytest.mark.parametrize("visit", ["T1", "T2", "T3"])
def test_points_in_time_are_no_weightings(tmp_path, visit):
    kinds = ("FLAIR", "T1", "T2", "MASK")
    folder = folder_with(tmp_path / visit, *(f"P1_{visit}_{kind}.nii.gz" for kind in kinds))
    assert names(find_subject(folder)) == {
        "FLAIR": f"P1_{visit}_FLAIR.nii.gz",
        "T2w": f"P1_{visit}_T2.nii.gz",
        "T1w": f"P1_{visit}_T1.nii.gz",
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("T2_FLAIR.nii.gz", "T2_TSE.nii.gz"), ["FLAIR", "T2w"]),
        (("T1_FLAIR.nii.gz", "T1_FLAIR_mask.nii.gz"), ["T1w"]),
    ],
)
def test_a_weighting_that_all_names_start_with_counts(tmp_path, files, expected):
    assert list(find_subject(folder_with(tmp_path / "case", *files)).paths) == expected


@pytest.mark.parametrize(
    "others", [("t1_brain.nii.gz", "t1_bias.nii.gz"), ("t1.nii.gz", "t1_followup_brain.nii.gz")]
)
def test_no_image_is_chosen_among_those_that_may_be_another_one(tmp_path, others):
    with pytest.raises(DataError, match="2 images for T1w"):
        find_subject(folder_with(tmp_path / "case", *others, "flair.nii.gz"))


def test_no_modality_is_an_error_that_says_how_each_name_was_read(tmp_path):
    with pytest.raises(DataError, match="No FLAIR, T2w or T1w") as caught:
        find_subject(folder_with(tmp_path, "t1ce.nii.gz", "scan.nii.gz"))
    assert "t1ce" in caught.value.cause
    assert "--flair" in caught.value.next_step


def test_folders_that_are_no_subject(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        find_subject(tmp_path / "none")
    with pytest.raises(DataError, match="is empty"):
        find_subject(folder_with(tmp_path / "empty"))
    with pytest.raises(DataError, match="is a file"):
        find_subject(folder_with(tmp_path / "file", "t1.nii") / "t1.nii")
    with pytest.raises(DataError, match="holds no image") as caught:
        find_subject(folder_with(tmp_path / "dicom", "IM0001.dcm"))
    assert "DICOM" in caught.value.next_step
    (tmp_path / "outside" / "inside").mkdir(parents=True)
    with pytest.raises(DataError, match="and neither do the folders in it"):
        find_subject(tmp_path / "outside")


@pytest.mark.parametrize("layout", ["case", "sub-01/anat"])
@pytest.mark.parametrize(
    ("files", "known"),
    [(("my T1.mgz", "orig.mgh"), "mri_convert"), (("my T1.hdr", "my T1.img"), "fslchfiletype")],
)
def test_scans_in_formats_that_are_not_read_are_named_with_a_way_on(tmp_path, layout, files, known):
    folder = folder_with(tmp_path / layout, "notes.txt", *files)
    with pytest.raises(DataError, match="no scan that can be read") as caught:
        find_subject(tmp_path / layout.split("/")[0])
    assert all(name in caught.value.message for name in files)
    assert known in caught.value.next_step
    command = f"nib-convert '{folder / files[0]}' '{folder / 'my T1.nii.gz'}'"
    assert command in caught.value.next_step
    if layout != "case":
        ((_, error),) = find_sessions(tmp_path)[1]
        assert command in error.next_step


def test_a_folder_of_subjects_says_how_to_give_them(tmp_path):
    for case in ("case 1", "case 2"):
        folder_with(tmp_path / "data" / case, "flair.nii.gz")
    folder_with(tmp_path / "data", "participants.tsv")
    with pytest.raises(DataError, match="no image itself") as caught:
        find_subject(tmp_path / "data")
    assert f"mmccd segment {tmp_path}/data/*/ --out-dir OUT" in caught.value.next_step
    with pytest.raises(DataError, match="no image itself") as caught:
        find_subject(tmp_path)  # two levels down
    assert f"mmccd segment {tmp_path}/data/*/ --out-dir" in caught.value.next_step
    for label in ("sub-01", "sub-02"):
        folder_with(tmp_path / "study" / label / "ses-a" / "anat", f"{label}_ses-a_T1w.nii.gz")
    folder_with(tmp_path / "study", "participants.tsv")
    with pytest.raises(DataError, match="is a BIDS data set") as caught:
        find_subject(tmp_path / "study")
    assert f"mmccd bids {tmp_path}/study OUT participant" in caught.value.next_step


def test_the_advice_for_two_files_of_a_modality_can_be_followed(tmp_path):
    case = folder_with(tmp_path / "a case", "a_flair.nii", "b_flair.nii", "t2.nii", "t1.nii")
    with pytest.raises(DataError, match="2 images for FLAIR") as caught:
        find_subject(case)
    *_, line = caught.value.next_step.partition(": ")
    words = shlex.split(line)
    names = {"--flair": "FLAIR", "--t2": "T2w", "--t1": "T1w"}
    files = {names[name]: Path(file) for name, file in zip(words[::2], words[1::2], strict=True)}
    assert subject_from_files(files).paths == {
        "FLAIR": case / "a_flair.nii",
        "T2w": case / "t2.nii",
        "T1w": case / "t1.nii",
    }


def test_a_folder_of_files_is_no_image(tmp_path):
    case = folder_with(tmp_path / "case", "flair.nii.gz")
    with pytest.raises(DataError, match="given as --flair, is a folder of NIfTI files") as caught:
        subject_from_files({"FLAIR": case})
    assert f"--flair {case}/flair.nii.gz" in caught.value.next_step


@pytest.mark.parametrize(
    ("name", "doubted"),
    [
        ("t1c.nii.gz", True),
        ("x_T1_Gd.nii.gz", True),
        ("t1_pc.nii.gz", True),
        ("t1pc.nii.gz", True),
        ("t1.nii.gz", False),
        ("gd_t1.nii.gz", False),
    ],
)
def test_contrast_agent_in_the_name_of_a_file_that_was_given_is_doubted(tmp_path, name, doubted):
    case = folder_with(tmp_path / "gd", name, "t2.nii.gz")  # the folder's own name says nothing
    subject = subject_from_files({"T1w": case / name, "T2w": case / "t2.nii.gz"})
    assert [str(said).split(" ")[0] for said in name_doubts(subject)] == [name] * doubted
    assert name_doubts(find_subject(case)) == []


def test_inversion_recovery_that_may_be_flair_or_stir_is_named_and_believed_of_the_user(tmp_path):
    case = folder_with(tmp_path / "case", "p_t2_tirm_tra.nii.gz", "p_t1.nii.gz")
    assert find_subject(case).ignored == (
        (case / "p_t2_tirm_tra.nii.gz", "inversion recovery (tirm), which may be FLAIR or STIR"),
    )
    assert name_doubts(subject_from_files({"FLAIR": case / "p_t2_tirm_tra.nii.gz"})) == []


def test_names_that_say_another_modality_than_their_options_are_doubted(tmp_path):
    case = folder_with(tmp_path / "x", "p_t1.nii.gz", "p_flair.nii.gz", "p_seg.nii.gz", "p_1.nii")
    swapped = {"FLAIR": case / "p_t1.nii.gz", "T1w": case / "p_flair.nii.gz"}
    first, second = name_doubts(subject_from_files(swapped))
    assert "p_t1.nii.gz was given as FLAIR, but its name says T1w: were two options" in first
    assert "p_flair.nii.gz was given as T1w, but its name says FLAIR" in second
    (mask,) = name_doubts(subject_from_files({"FLAIR": case / "p_seg.nii.gz"}))
    assert "its name says lesion mask" in mask
    plain = {"FLAIR": case / "p_flair.nii.gz", "T1w": case / "p_t1.nii.gz", "T2w": case / "p_1.nii"}
    assert name_doubts(subject_from_files(plain)) == []


def test_each_scan_may_lie_in_a_folder_named_after_it(tmp_path):
    case = tmp_path / "data" / "TCGA-FA-1"
    for folder in ("FLAIR", "T1", "T2", "T1Gd", "notes"):
        folder_with(case / folder, f"TCGA-FA-1_{folder}.nii.gz" if folder == "T2" else "1.nii.gz")
    folder_with(case / "T1", "1_gd.nii.gz", "1_mask.nii.gz")
    subject = find_subject(case)
    assert {m: p.relative_to(case).parts[0] for m, p in subject.paths.items()} == {
        "FLAIR": "FLAIR",
        "T2w": "T2",
        "T1w": "T1",
    }
    assert subject.id == "TCGA-FA-1"
    assert {path.name for path, _ in subject.ignored} == {"1_gd.nii.gz", "1_mask.nii.gz"}
    assert [found.paths for found in find_subjects(tmp_path / "data")] == [subject.paths]
    with pytest.raises(DataError, match="holds no image itself") as caught:
        find_subject(tmp_path / "data")
    assert caught.value.next_step == f"Give the subject's own folder: {case}"


@pytest.mark.parametrize(
    ("flair", "mask"),
    [
        ("FLAIR.nii.gz", "wmh.nii.gz"),
        ("3DFLAIR.nii.gz", "Consensus.nii.gz"),
        ("x_ses-0001_flair.nii.gz", "x_ses-0001_msk.nii.gz"),
    ],
)
def test_references_of_challenges_are_known(tmp_path, flair, mask):
    others = ("ManualSegmentation_1.nii.gz", "brain_msk.nii.gz", "T1_msk.nii.gz")
    folder_with(tmp_path / "c", flair, mask, *others)
    subject = find_subject(tmp_path / "c")
    assert [path.name for path in subject.paths.values()] == [flair]
    assert subject.segmentation is not None
    assert subject.segmentation.name == mask


def test_the_name_of_a_challenge_is_no_mask(tmp_path):
    folder_with(tmp_path / "c", "WMH_01_FLAIR.nii.gz", "WMH_01_T1.nii.gz")
    assert list(find_subject(tmp_path / "c").paths) == ["FLAIR", "T1w"]


def test_folders_of_points_in_time_are_subjects_of_their_own(tmp_path):
    for folder in ("T1", "T2"):
        folder_with(tmp_path / "p" / folder, "FLAIR.nii.gz", "t2.nii.gz")
    with pytest.raises(DataError, match="holds no image itself"):
        find_subject(tmp_path / "p")
    assert [subject.id for subject in find_subjects(tmp_path)] == ["T1", "T2"]


@pytest.mark.parametrize("bids", [False, True])
def test_the_json_beside_a_t1w_tells_contrast_agent(tmp_path, bids):
    if bids:
        folder, names = tmp_path / "sub-1" / "anat", ("sub-1_acq-a_T1w", "sub-1_acq-b_T1w")
        flair = "sub-1_FLAIR.nii.gz"
    else:
        folder, names = tmp_path / "p", ("5_t1_mprage", "9_t1_mprage")
        flair = "flair.nii.gz"
    folder_with(folder, flair, *(f"{name}.nii.gz" for name in names))
    whole = tmp_path / "sub-1" if bids else folder
    with pytest.raises(DataError, match="2 images for T1w"):
        find_subject(whole)
    (folder / f"{names[0]}.json").write_text('{"ContrastBolusIngredient": "NONE"}')
    (folder / f"{names[1]}.json").write_text('{"ContrastBolusIngredient": "GADOLINIUM"}')
    subject = find_subject(whole)
    assert subject.paths["T1w"].name == f"{names[0]}.nii.gz"
    reasons = {path.name: reason for path, reason in subject.ignored}
    assert f"contrast-enhanced by {names[1]}.json" in reasons[f"{names[1]}.nii.gz"]
    (said,) = name_doubts(subject_from_files({"T1w": folder / f"{names[1]}.nii.gz"}))
    assert "its JSON says contrast agent" in said


FLAIR_JSON = {
    "RepetitionTime": 9,
    "EchoTime": 0.09,
    "InversionTime": 2.5,
    "ScanningSequence": "SE\\IR",
}
T1_JSON = {"RepetitionTime": 2.3, "EchoTime": 0.003, "InversionTime": 0.9, "FlipAngle": 9,
           "ScanningSequence": ["GR", "IR"], "SequenceVariant": "SK_SP_MP"}  # fmt: skip
T2STAR_JSON = {"RepetitionTime": 0.7, "EchoTime": 0.02, "FlipAngle": 20, "ScanningSequence": "GR"}


def folder_of_dcm2niix(folder, jsons):
    folder_with(folder, *(f"{name}.nii.gz" for name in jsons))
    for name, content in jsons.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_the_json_of_dcm2niix_tells_what_a_name_does_not(tmp_path):
    jsons = {"5_brain": FLAIR_JSON, "6_brain": T1_JSON, "7_brain": T2STAR_JSON, "8_brain": {}}
    jsons["9_brain"] = T1_JSON | {"ImageType": ["DERIVED", "PRIMARY", "MIN_IP"]}
    subject = find_subject(folder_of_dcm2niix(tmp_path / "p", jsons))
    assert {m: path.name for m, path in subject.paths.items()} == {
        "FLAIR": "5_brain.nii.gz",
        "T1w": "6_brain.nii.gz",
    }
    assert subject.reasons["FLAIR"] == "IR/SE, TR 9000 ms, TE 90 ms, TI 2500 ms, by 5_brain.json"
    ignored = {path.name: reason for path, reason in subject.ignored}
    assert "T2*-weighted" in ignored["7_brain.nii.gz"]
    assert ignored["9_brain.nii.gz"] == "a projection, by 9_brain.json"
    assert ignored["8_brain.nii.gz"] == "its name states no modality"


def test_what_a_name_states_is_not_looked_for_in_json(tmp_path):
    jsons = {"flair": T1_JSON, "5_brain": FLAIR_JSON, "6_brain": T1_JSON | {"RepetitionTime": 2300}}
    subject = find_subject(folder_of_dcm2niix(tmp_path / "p", jsons))
    assert [path.name for path in subject.paths.values()] == ["flair.nii.gz"]
    enhanced = T1_JSON | {"ContrastBolusIngredient": "GADOLINIUM"}
    folder_of_dcm2niix(tmp_path / "p", {"7_brain": enhanced})
    reasons = {path.name: reason for path, reason in find_subject(tmp_path / "p").ignored}
    assert reasons["7_brain.nii.gz"] == "contrast-enhanced, which is not T1w, by 7_brain.json"


def test_a_name_that_its_json_contradicts_has_a_warning(tmp_path):
    jsons = {"flair": T1_JSON, "t2": FLAIR_JSON, "t1": T1_JSON}
    subject = find_subject(folder_of_dcm2niix(tmp_path / "p", jsons))
    (said,) = name_doubts(subject)
    assert "flair.nii.gz is taken for FLAIR, but flair.json says T1w (GR/IR, TR 2300 ms" in said
    (same,) = name_doubts(subject_from_files({"FLAIR": tmp_path / "p" / "flair.nii.gz"}))
    assert same == said


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"ContrastBolusIngredient": 3}', '{"ContrastBolusAgent": ""}']
)
def test_a_json_that_says_nothing_of_contrast_agent_changes_nothing(tmp_path, content):
    folder_with(tmp_path / "p", "t1.nii.gz")
    (tmp_path / "p" / "t1.json").write_text(content)
    assert list(find_subject(tmp_path / "p").paths) == ["T1w"]


def test_what_may_be_the_missing_flair_is_named(tmp_path):
    names = ["T1.nii.gz", "rFLAIR.nii.gz", "FLAIR_T1.nii.gz", "t2_tirm_tra.nii.gz", "adc.nii.gz"]
    folder_with(tmp_path / "p", *names)
    subject = find_subject(tmp_path / "p")
    assert list(subject.paths) == ["T1w"]
    (said,) = name_doubts(subject)
    assert "rFLAIR.nii.gz" in said
    assert "adc" not in said
    reasons = {path.name: reason for path, reason in subject.ignored}
    assert reasons["FLAIR_T1.nii.gz"] == "its name states FLAIR and T1w"
    folder_with(tmp_path / "p", "FLAIR.nii.gz")
    assert name_doubts(find_subject(tmp_path / "p")) == []


def test_the_reference_segmentation_is_named_among_what_is_not_read(tmp_path):
    subject = find_subject(folder_with(tmp_path / "case", "flair.nii", "lesion.nii", "dwi.nii"))
    reasons = {path.name: reason for path, reason in subject.left_out}
    assert reasons.keys() == {"dwi.nii", "lesion.nii"}
    assert "reference segmentation" in reasons["lesion.nii"]


def test_separate_files(tmp_path):
    folder_with(tmp_path, "P7_T1.nii.gz", "b.nii.gz")
    subject = subject_from_files({"T1w": tmp_path / "P7_T1.nii.gz", "FLAIR": tmp_path / "b.nii.gz"})
    assert tuple(subject.paths) == ("FLAIR", "T1w")
    assert subject.layout == "files"
    assert subject_from_files({"T1w": tmp_path / "P7_T1.nii.gz"}).id == "P7"
    assert subject_from_files({"T1w": tmp_path / "P7_T1.nii.gz"}, id="me").id == "me"
    folder_with(tmp_path / "case", "flair.nii.gz")
    assert subject_from_files({"FLAIR": tmp_path / "case" / "flair.nii.gz"}).id == "case"


def test_separate_files_that_contradict(tmp_path):
    folder_with(tmp_path, "a.nii.gz")
    with pytest.raises(UsageError, match="No image"):
        subject_from_files({})
    with pytest.raises(UsageError, match="no modality T1c"):
        subject_from_files({"T1c": tmp_path / "a.nii.gz"})
    with pytest.raises(UsageError, match="--t1"):
        subject_from_files({"T1w": tmp_path / "a.nii.gz", "T2w": tmp_path / "a.nii.gz"})
    with pytest.raises(DataError, match="--t2"):
        subject_from_files({"T2w": tmp_path / "none.nii.gz"})


def test_a_grouped_data_set_with_folders_that_are_no_subject(tmp_path):
    folder_with(tmp_path / "HGG" / "a", "a_t1.nii.gz")
    folder_with(tmp_path / "LGG" / "b", "b_t1.nii.gz", "b2_t1.nii.gz")
    folder_with(tmp_path / "LGG" / "c", "c_flair.nii.gz")
    folder_with(tmp_path / "docs", "readme.txt")
    skipped: list[tuple[Path, str]] = []
    assert [subject.id for subject in find_subjects(tmp_path, skipped=skipped)] == ["a", "c"]
    assert {path.name for path, _ in skipped} == {"b", "docs"}


def test_a_data_set_without_subjects_is_an_error(tmp_path):
    with pytest.raises(DataError, match="No subject"):
        find_subjects(folder_with(tmp_path / "empty"))
    with pytest.raises(DataError, match="directly"):
        find_subjects(folder_with(tmp_path / "subject", "t1.nii.gz"))


@pytest.mark.parametrize("layout", ["brats", "brats2023", "bids", "plain"])
def test_written_phantoms_are_found(tmp_path, tiny_phantom, write_subject, layout):
    subject = find_subject(write_subject(tmp_path, tiny_phantom, layout, lesion=True))
    assert set(subject.paths) == set(MODALITIES)
    assert subject.segmentation is not None
    assert subject.ignored == ()


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("group", "at_least", "modalities"),
    [
        ("glioma", 23, MODALITIES),
        ("metastasis", 1, MODALITIES),
        ("ms", 2, MODALITIES),
        ("healthy", 1, MODALITIES),
        ("raw", 4, MODALITIES),
        ("glioma_flair", 3, ("FLAIR",)),
        ("stroke", 1, ("FLAIR",)),
    ],
)
def test_every_folder_of_real_scans_is_a_subject(real_data, group, at_least, modalities):
    skipped: list[tuple[Path, str]] = []
    subjects = find_subjects(real_data / group, skipped=skipped)
    folders = [path for path in (real_data / group).iterdir() if path.is_dir()]
    assert len(subjects) == len(folders) >= at_least
    assert not skipped
    for subject in subjects:
        assert tuple(subject.paths) == tuple(modalities)
        assert not any("t1c" in path.name for path in subject.paths.values())
        labelled = group in ("glioma", "glioma_flair", "ms", "stroke")
        assert (subject.segmentation is not None) == labelled


def test_a_name_that_is_no_text_becomes_one_that_can_be_written(tmp_path):
    folder = tmp_path / os.fsdecode(b"M\xfcller\t1")
    try:
        folder_with(folder, "t1.nii.gz")
    except OSError:
        pytest.skip("this file system only takes names in UTF-8")
    assert find_subject(folder).id == "M_fcller_1"  # the byte's number: names stay different
    assert find_subject(folder).paths["T1w"].is_file()


@pytest.mark.parametrize("other", ["c1", "C1"])
def test_two_subjects_of_one_name_in_two_groups_are_refused(tmp_path, other):
    folder_with(tmp_path / "HGG" / "c1", "c1_flair.nii.gz")
    folder_with(tmp_path / "LGG" / other, "x_flair.nii.gz")
    with pytest.raises(DataError, match="both the subject") as caught:
        find_subjects(tmp_path)
    assert str(tmp_path / "HGG" / "c1") in caught.value.message
    assert str(tmp_path / "LGG" / other) in caught.value.message
    assert "Rename" in caught.value.next_step
    assert [subject.id for subject in find_subjects(tmp_path / "LGG")] == [other]
