"""From a folder or archive of series to volumes: what is chosen, where it lies, what is refused."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_phantoms import (
    PARAMETERS,
    PATIENT,
    compress_jpeg,
    make_dicom,
    write_enhanced,
    write_series,
)
from pydicom.uid import generate_uid

from mmccd_cli.errors import DataError, GeometryError
from mmccd_cli.inputs.dicom.files import DicomFile
from mmccd_cli.inputs.dicom.headers import NotUsable, read_frames
from mmccd_cli.inputs.dicom.pixels import read_stack
from mmccd_cli.inputs.dicom.recognition import recognise
from mmccd_cli.inputs.dicom.stacks import Stack
from mmccd_cli.inputs.dicom.studies import read_single_series, read_study
from mmccd_cli.inputs.nifti import make_grid, read_nifti, write_nifti
from mmccd_cli.inputs.phantom import make_phantom
from mmccd_cli.inputs.volume import Volume, reorient

_ENCODERS = {"RLELossless": "pydicom", "JPEGLSLossless": "pyjpegls"}
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def head(**settings: Any) -> dict[str, Volume]:
    """Whole numbers, so that DICOM holds them exactly."""
    settings = {"shape": (28, 32, 24), "spacing_mm": (8.0, 7.0, 7.5), **settings}
    volumes = make_phantom(3, **settings).volumes
    return {name: Volume(np.rint(volume.data), volume.affine) for name, volume in volumes.items()}


def only_stack(folder: Path) -> Stack:
    (stack,) = read_study(folder).stacks.values()
    return stack


def volume_in(folder: Path) -> Volume:
    return read_stack(only_stack(folder))[0]


def same_place(volume: Volume, other: Volume) -> bool:
    """Whether two volumes are equal in the world, whatever the order of their voxels."""
    first, second = reorient(volume, "RAS"), reorient(other, "RAS")
    return np.allclose(first.affine, second.affine, atol=1e-4) and np.array_equal(
        first.data, second.data
    )


def slices_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def change(path: Path, **values: Any) -> None:
    image = pydicom.dcmread(path)
    for keyword, value in values.items():
        if value is None:
            delattr(image, keyword)
        else:
            setattr(image, keyword, value)
    image.save_as(path)


@pytest.fixture(scope="module")
def volumes() -> dict[str, Volume]:
    return head()


@pytest.fixture
def flair(tmp_path, volumes) -> Path:
    """A folder with one series of FLAIR; its slices lie in the order of their files' names."""
    write_series(volumes["FLAIR"], tmp_path / "case", tags=PARAMETERS["FLAIR"])
    return tmp_path / "case"


ORIENTATIONS = {
    "axial": {"orientation": "LPS"},
    "left-handed": {"orientation": "LAS"},
    "downwards": {"orientation": "LPI"},
    "sagittal": {"orientation": "PIR"},
    "coronal": {"orientation": "LIA"},
    "oblique": {"orientation": "LPS", "rotation_deg": (17.0, -8.0, 31.0)},
}


@pytest.mark.parametrize("case", ORIENTATIONS)
@pytest.mark.parametrize("shuffled", [None, 1])
def test_dicom_and_nifti_of_one_scan_are_one_volume(tmp_path, case, shuffled):
    volumes = head(modalities=["T2w"], **ORIENTATIONS[case])
    make_dicom(volumes, tmp_path / "dicom", shuffled=shuffled)
    grid = make_grid(volumes["T2w"].shape, volumes["T2w"].affine)
    write_nifti(tmp_path / "t2.nii.gz", volumes["T2w"].data, grid)
    of_nifti = read_nifti(tmp_path / "t2.nii.gz")[0]
    read, grid_read = read_stack(only_stack(tmp_path / "dicom"))
    assert same_place(read, of_nifti)
    if case != "downwards":  # slices run upwards, as nearly all NIfTI files have them
        np.testing.assert_array_equal(read.data, of_nifti.data)
        np.testing.assert_allclose(read.affine, of_nifti.affine, atol=1e-5)
    assert [grid_read.header[f"{form}_code"] for form in ("sform", "qform")] == [1, 1]
    np.testing.assert_array_equal(grid_read.affine, read.affine)


@pytest.mark.parametrize("case", ORIENTATIONS)
def test_gdcm_sees_the_same_affine(tmp_path, case):
    volumes = head(modalities=["T2w"], **ORIENTATIONS[case])
    make_dicom(volumes, tmp_path, shuffled=2)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "S001"))
    image = sitk.ReadImage(names)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    second = Volume(sitk.GetArrayFromImage(image).T, _LPS @ affine)
    assert same_place(volume_in(tmp_path), second)


def test_a_tilted_stack_keeps_its_shear(tmp_path, volumes):
    affine = volumes["FLAIR"].affine.copy()
    affine[:3, 2] += 0.3 * affine[:3, 1]  # each slice lies 2.1 mm further along the columns
    tilted = Volume(volumes["FLAIR"].data, affine)
    write_series(tilted, tmp_path / "case", tags=PARAMETERS["FLAIR"], shuffled=4)
    notes: list[str] = []
    read, grid = read_stack(only_stack(tmp_path / "case"), notes=notes)
    np.testing.assert_allclose(read.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(read.data, tilted.data)
    assert grid.header["qform_code"] == 0  # a qform cannot say shear
    assert notes == ["Series 1: its slices are tilted by 15.6 degrees."]


def test_rounded_positions_are_no_tilt(flair):
    for number, path in enumerate(slices_of(flair)):
        position = pydicom.dcmread(path).ImagePositionPatient
        position[0] = round(float(position[0]) + 0.004 * (number % 3), 3)
        change(path, ImagePositionPatient=list(position))
    notes: list[str] = []
    _, grid = read_stack(only_stack(flair), notes=notes)
    assert (grid.header["qform_code"], notes) == (1, [])


def test_directions_that_are_rounded_differently_are_one_stack(flair, volumes):
    for number, path in enumerate(slices_of(flair)):
        directions = [float(value) for value in pydicom.dcmread(path).ImageOrientationPatient]
        directions[1] += 0.0004 + 0.0002 * (number % 2)  # on both sides of a third decimal
        change(path, ImageOrientationPatient=directions)
    assert volume_in(flair).shape == volumes["FLAIR"].shape


@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8"])
def test_stored_values_are_scaled(tmp_path, volumes, dtype):
    scaled = Volume(volumes["T1w"].data * 0.37 - 55, volumes["T1w"].affine)
    write_series(scaled, tmp_path / "case", tags=PARAMETERS["T1w"], dtype=dtype)
    read = volume_in(tmp_path / "case")
    step = np.ptp(scaled.data) / (255 if dtype == "uint8" else 65535)
    np.testing.assert_allclose(read.data, scaled.data, atol=0.51 * step)


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_inverted_grey_is_turned_round(tmp_path, volumes, dtype):
    tags = {**PARAMETERS["T1w"], "PhotometricInterpretation": "MONOCHROME1"}
    write_series(volumes["T1w"], tmp_path / "case", tags=tags, dtype=dtype)
    read = volume_in(tmp_path / "case")
    brightest = {"int16": -1, "uint16": 65535}[dtype]
    np.testing.assert_array_equal(read.data, brightest - volumes["T1w"].data)


def test_padding_is_background(tmp_path, volumes):
    data = np.where(volumes["T1w"].data == 0, -2000, volumes["T1w"].data)
    tags = {**PARAMETERS["T1w"], "PixelPaddingValue": -2000}
    write_series(Volume(data, volumes["T1w"].affine), tmp_path / "case", tags=tags)
    read = volume_in(tmp_path / "case")
    np.testing.assert_array_equal(read.data, volumes["T1w"].data)


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLSLossless", "ImplicitVRLittleEndian"])
def test_transfer_syntaxes(flair, volumes, syntax):
    for path in slices_of(flair):
        image = pydicom.dcmread(path)
        if syntax == "ImplicitVRLittleEndian":
            image.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
            image.save_as(path, implicit_vr=True, little_endian=True)
        else:
            image.compress(getattr(pydicom.uid, syntax), encoding_plugin=_ENCODERS[syntax])
            image.save_as(path)
    assert same_place(volume_in(flair), volumes["FLAIR"])


def test_lossless_jpeg_as_archives_have_it(flair, volumes):
    for path in slices_of(flair):
        compress_jpeg(path, "JPEGLosslessProcess14_1")
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == pydicom.uid.JPEGLosslessSV1
    assert same_place(volume_in(flair), volumes["FLAIR"])


def test_a_compression_that_nobody_decodes_names_the_package(flair):
    for path in slices_of(flair):
        image = pydicom.dcmread(path)
        image.PixelData = pydicom.encaps.encapsulate([image.PixelData])
        image["PixelData"].VR = "OB"
        image.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
        image.save_as(path)
    with pytest.raises(DataError, match="no installed package decodes") as caught:
        read_stack(only_stack(flair))
    assert "dicom-codecs" in caught.value.next_step


def test_files_without_the_preamble_are_read(flair, volumes):
    for path in slices_of(flair):
        image = pydicom.dcmread(path)
        image.file_meta, image.preamble = pydicom.dataset.FileMetaDataset(), None
        image.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[:2] == b"\x08\x00"
    assert same_place(volume_in(flair), volumes["FLAIR"])


def test_a_whole_study_in_one_folder_and_in_an_archive(tmp_path, volumes):
    study = tmp_path / "study"
    make_dicom(volumes, study, shuffled=5)
    other = {"SeriesDescription": "AX DWI", "ScanningSequence": "EP", "SeriesNumber": 9}
    tags = pydicom.dcmread(slices_of(study)[0])
    same = {"StudyInstanceUID": tags.StudyInstanceUID}
    write_series(volumes["T2w"], study / "S009", tags={**PARAMETERS["T2w"], **other, **same})
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(slices_of(study)):
        shutil.copy(path, flat / f"{(number * 37) % 101:03d}")
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in slices_of(study):
            archive.write(path, path.relative_to(study))
    for source in (study, flat, tmp_path / "study.zip"):
        found = read_study(source)
        assert list(found.stacks) == ["FLAIR", "T2w", "T1w"]
        assert [label for label, _ in found.ignored] == ["series 9 (ax dwi)"]
        assert "echo-planar" in found.ignored[0][1]
        for modality, stack in found.stacks.items():
            assert same_place(read_stack(stack)[0], volumes[modality])


def test_two_echoes_of_one_series_are_two_volumes(tmp_path, volumes):
    uid = {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid()}
    dual = {**PARAMETERS["T2w"], **uid, "SeriesDescription": "PD T2"}
    for echo, te in ((1, 15), (2, 98)):
        tags = {**dual, "EchoTime": te, "EchoNumbers": echo}
        volume = volumes["T2w" if echo == 2 else "T1w"]
        write_series(volume, tmp_path, tags=tags, name=f"{echo}{{}}")
    found = read_study(tmp_path)
    assert same_place(read_stack(found.stacks["T2w"])[0], volumes["T2w"])
    assert found.ignored == (
        ("series 1 (pd t2)", "proton-density-weighted (SE, TR 4500 ms, TE 15 ms)"),
    )


def write_candidates(folder: Path, volume: Volume, *candidates: dict[str, Any]) -> None:
    study = {"StudyInstanceUID": generate_uid()}
    for number, tags in enumerate(candidates, start=1):
        chosen = tags.pop("volume", volume)
        all_tags = {**PARAMETERS["T1w"], **study, **tags}
        write_series(chosen, folder / str(number), number=number, tags=all_tags)


def test_the_best_of_several_series_is_chosen_and_the_choice_explained(tmp_path, volumes):
    volume = volumes["T1w"]
    thick = Volume(volume.data[:, :, ::2], volume.affine @ np.diag([1.0, 1, 2, 1]))
    slab = Volume(volume.data[:, :, 8:20], volume.affine)
    write_candidates(
        tmp_path,
        volume,
        {"volume": thick},
        {"ImageType": ["DERIVED", "SECONDARY", "MPR"]},
        {"volume": slab},
        {},
        {"ContrastBolusAgent": "Gadovist"},
        {"SeriesDescription": "localizer", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {},
    )
    found = read_study(tmp_path)
    assert found.stacks["T1w"].label == "series 4"
    reasons = {label.split(" (")[0]: reason for label, reason in found.ignored}
    assert reasons == {
        "series 1": "another T1w: coarser",
        "series 2": "another T1w: processed or reformatted",
        "series 3": "another T1w: does not cover the whole head",
        "series 5": "contrast-enhanced, which is not T1w",
        "series 6": "a localizer",
        "series 7": "another T1w: acquired later",
    }
    assert found.reasons["T1w"].startswith("series 4 (mprage), 24 slices, 8 x 7 x 7.5 mm: GR/IR")
    assert "preferred to series 7 (mprage)" in found.reasons["T1w"]


def test_copies_do_not_count_and_repetitions_are_two_series(tmp_path, flair, volumes):
    for path in slices_of(flair)[:5]:
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    assert same_place(volume_in(flair), volumes["FLAIR"])
    first = pydicom.dcmread(slices_of(flair)[0])
    same = {name: first[name].value for name in ("SeriesInstanceUID", "StudyInstanceUID")}
    again = {**same, "AcquisitionNumber": 2}
    write_series(volumes["T2w"], flair / "again", tags={**PARAMETERS["FLAIR"], **again})
    found = read_study(flair)
    assert same_place(read_stack(found.stacks["FLAIR"])[0], volumes["FLAIR"])
    assert found.ignored == (("series 1 (ax flair)", "another FLAIR: acquired later"),)


def test_slices_that_lost_their_identifiers_are_all_there(flair, volumes):
    for path in slices_of(flair):
        change(path, SOPInstanceUID="")
    assert same_place(volume_in(flair), volumes["FLAIR"])


def mix_two_series(paths: list[Path]) -> None:
    for path in paths[:4]:
        change(path, SOPInstanceUID=generate_uid())
        shutil.copy(path, path.with_name("z" + path.name))
        change(path, SOPInstanceUID=generate_uid())


def move(path: Path, *, x_mm: float = 0, z_mm: float = 0) -> None:
    x, y, z = pydicom.dcmread(path).ImagePositionPatient
    change(path, ImagePositionPatient=[x + x_mm, y, z + z_mm])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda paths: paths[9].unlink(),
            "lacks about 1 of its 24 slices: of those that are there, 9 and 10 are 15.00 mm apart",
        ),
        (lambda paths: paths[-2].unlink(), "lacks about 1 of its 24 slices"),
        (
            lambda paths: paths[9].write_bytes(paths[9].read_bytes()[:400]),
            "lacks about 1 of its 24 slices",
        ),
        (mix_two_series, "has 5 slices at places where one belongs"),
        (
            lambda paths: move(paths[9], x_mm=9),
            "not stacked in one direction: slice 10 lies 9.0 mm beside its place",
        ),
        (
            lambda paths: move(paths[9], z_mm=-2),
            "9.50 mm apart|lacks about 1|slices 5.50 to 9.50 mm apart",
        ),
    ],
    ids=["gap", "gap near the end", "cut header", "mixed", "sideways", "along"],
)
def test_a_stack_with_faults_is_refused(flair, damage, message):
    damage(slices_of(flair))
    with pytest.raises(GeometryError, match=message):
        read_study(flair)


def test_a_faulty_series_gives_way_to_a_sound_one(tmp_path, volumes):
    write_candidates(tmp_path, volumes["T1w"], {}, {"SeriesDescription": "MPRAGE MPR"})
    slices_of(tmp_path / "1")[7].unlink()
    found = read_study(tmp_path)
    assert found.stacks["T1w"].label == "series 2"
    assert "lacks about 1" in dict(found.ignored)["series 1 (mprage)"]


def test_a_localizer_that_does_not_say_so_stops_nothing(tmp_path, volumes):
    make_dicom({"FLAIR": volumes["FLAIR"]}, tmp_path)
    study = pydicom.dcmread(slices_of(tmp_path)[0]).StudyInstanceUID
    for number, few in enumerate(([2, 9, 11], [3, 8]), start=7):
        part = tmp_path / str(number)
        tags = {**PARAMETERS["T2w"], "SeriesDescription": "x", "StudyInstanceUID": study}
        paths = write_series(volumes["T2w"], part, number=number, tags=tags)
        for index, path in enumerate(paths):
            if index not in few:
                path.unlink()
    found = read_study(tmp_path)
    assert list(found.stacks) == ["FLAIR"]
    assert dict(found.ignored) == {
        "series 7": "only 3 slices, unevenly placed",
        "series 8": "only 2 slices in this direction",
    }


def test_truncated_pixels_are_told(flair):
    path = slices_of(flair)[3]
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"^Slice 4 of series 1 is truncated or damaged"):
        read_stack(only_stack(flair))


def test_two_studies_are_not_mixed(tmp_path, volumes):
    for name in ("first", "second"):
        make_dicom({"FLAIR": volumes["FLAIR"]}, tmp_path / name)
    with pytest.raises(DataError, match="2 studies"):
        read_study(tmp_path)


def test_what_is_no_mr_image_is_left_out_with_its_reason(flair):
    paths = slices_of(flair)
    folder = flair / "others"
    folder.mkdir()
    for name, values in {
        "ct": {"Modality": "CT"},
        "colour": {"SamplesPerPixel": 3},
        "report": {"Rows": None},
        "nowhere": {"ImagePositionPatient": None},
    }.items():
        shutil.copy(paths[0], folder / name)
        change(folder / name, SOPInstanceUID=generate_uid(), **values)
    shutil.copy(folder / "ct", folder / "ct of Jane Doe")
    assert set(read_study(flair).ignored) == {
        ("2 files", "not an MR image (CT)"),
        ("1 file", "a colour image"),
        ("1 file", "no image in it"),
        ("1 file", "it has no position in space"),
    }


def test_no_modality_is_an_error_that_says_what_each_series_is(tmp_path, volumes):
    tags = {**PARAMETERS["T2w"], "ScanningSequence": "EP", "SeriesDescription": "Jane Doe dwi"}
    write_series(volumes["T2w"], tmp_path / "case", number=4, tags=tags)
    with pytest.raises(DataError, match="No FLAIR, T2w or T1w series") as caught:
        read_study(tmp_path)
    assert "series 4 (dwi): echo-planar" in caught.value.cause
    assert "Jane" not in f"{caught.value.message}{caught.value.cause}"


def test_an_enhanced_image_of_two_echoes(tmp_path, volumes):
    tags = {"EchoPulseSequence": "SPIN", "SeriesDescription": "PD T2"}
    echoes = {15.0: volumes["T1w"], 98.0: volumes["T2w"]}
    write_enhanced(echoes, tmp_path / "IM1", tags=tags)
    found = read_study(tmp_path)
    assert list(found.stacks) == ["T2w"]
    assert "proton" in found.ignored[0][1]
    assert same_place(read_stack(found.stacks["T2w"])[0], volumes["T2w"])


def test_a_single_series_needs_no_modality(tmp_path, volumes):
    folder = tmp_path / "one"
    write_series(volumes["T2w"], folder, tags={"SeriesDescription": "?"})
    assert same_place(read_stack(read_single_series(folder))[0], volumes["T2w"])
    write_series(volumes["T2w"], folder / "two", number=2)
    with pytest.raises(DataError, match="holds 2 stacks"):
        read_single_series(folder)


def test_no_value_of_a_person_is_even_read(flair, monkeypatch):
    seen: list[pydicom.Dataset] = []
    read = pydicom.dcmread

    def spy(*args: Any, **kwargs: Any) -> pydicom.Dataset:
        seen.append(read(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(pydicom, "dcmread", spy)
    read_stack(only_stack(flair))
    assert len(seen) == 48  # header and pixels of each slice
    assert not {element.keyword for image in seen for element in image} & set(PATIENT)


def test_damaged_headers_are_left_out_and_quote_nobody(flair):
    rng = np.random.default_rng(0)
    whole = np.frombuffer(slices_of(flair)[0].read_bytes(), np.uint8)
    reasons = set()
    for _ in range(300):
        damaged = whole[: rng.integers(200, 2000)] if rng.random() < 0.3 else whole
        damaged = damaged.copy()
        damaged[rng.integers(132, min(1800, len(damaged)), 4)] = rng.integers(0, 256, 4)
        try:
            frames = read_frames(DicomFile(Path("x")), io.BytesIO(damaged.tobytes()))
            reasons |= {recognise(frame.acquisition).reason for frame in frames}
            reasons |= {frame.series_label for frame in frames}
        except NotUsable as reason:
            reasons.add(str(reason))
    assert len(reasons) > 5
    said = " ".join(reasons)
    assert not [value for value in PATIENT.values() if len(value) > 1 and value in said]
    assert max(map(len, reasons)) < 120
