"""DICOM series written from volumes: what a scanner would have sent of a phantom."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from mmccd_cli.inputs.volume import Volume
from mmccd_cli.template import transform_points

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4.1"

PARAMETERS: dict[str, dict[str, Any]] = {
    "FLAIR": {
        "SeriesDescription": "AX FLAIR",
        "ScanningSequence": ["SE", "IR"],
        "SequenceVariant": ["SK", "SP"],
        "RepetitionTime": 9000,
        "EchoTime": 120,
        "InversionTime": 2500,
        "FlipAngle": 150,
    },
    "T2w": {
        "SeriesDescription": "AX T2 TSE",
        "ScanningSequence": "SE",
        "SequenceVariant": "SK",
        "RepetitionTime": 4500,
        "EchoTime": 100,
        "FlipAngle": 120,
    },
    "T1w": {
        "SeriesDescription": "MPRAGE",
        "ScanningSequence": ["GR", "IR"],
        "SequenceVariant": ["SK", "SP", "MP"],
        "MRAcquisitionType": "3D",
        "RepetitionTime": 2000,
        "EchoTime": 2.9,
        "InversionTime": 900,
        "FlipAngle": 9,
    },
}
"""What a scanner writes into the headers of each modality."""

PATIENT = {
    "PatientName": "Doe^Jane",
    "PatientID": "SECRET-4711",
    "PatientBirthDate": "19610203",
    "PatientSex": "F",
    "StudyDate": "20190807",
    "SeriesDate": "20190807",
    "AcquisitionDate": "20190807",
    "ContentDate": "20190807",
    "StudyTime": "101112",
    "AccessionNumber": "ACC-0815",
    "InstitutionName": "Hidden Hospital",
    "ReferringPhysicianName": "House^Greg",
}
"""What no file of ours may repeat."""


def make_dicom(volumes: Mapping[str, Volume], folder: Path, **settings: Any) -> Path:
    """Write one series for each modality into one folder each, all of one study.

    Args:
        volumes: Modality -> volume; the third axis becomes the slices.
        folder: Is made; holds a folder for each series.
        settings: Passed on to `write_series`.

    Returns:
        The folder.
    """
    study = {"StudyInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid()}
    for number, (modality, volume) in enumerate(volumes.items(), start=1):
        tags = {**study, **PARAMETERS[modality], **settings.get("tags", {})}
        rest = {name: value for name, value in settings.items() if name != "tags"}
        write_series(volume, Path(folder) / f"S{number:03d}", number=number, tags=tags, **rest)
    return Path(folder)


def write_series(
    volume: Volume,
    folder: Path,
    *,
    number: int = 1,
    tags: Mapping[str, Any] | None = None,
    shuffled: int | None = None,
    name: str = "IM{:04d}",
    dtype: str = "int16",
) -> list[Path]:
    """Write one file for each slice along the third axis.

    Args:
        volume: Its first axis becomes the columns, its second the rows.
        folder: Is made.
        number: SeriesNumber.
        tags: Keyword -> value, over those that every image has.
        shuffled: Seed of a permutation of the files' and instances' numbers.
        name: Name of the n-th file.
        dtype: Type of the stored values: int16, uint16 or uint8.

    Returns:
        The files in the order of the slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored, slope, intercept = _as_stored(volume.data, dtype)
    common = {
        "StudyInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "SeriesNumber": number,
    }
    if (slope, intercept) != (1.0, 0.0):
        common |= {"RescaleSlope": _ds(slope), "RescaleIntercept": _ds(intercept)}
    order = np.arange(volume.shape[2])
    if shuffled is not None:
        order = np.random.default_rng(shuffled).permutation(order)
    paths = []
    for index, instance in enumerate(order.tolist()):
        place = {"InstanceNumber": instance + 1, **_place(volume, index)}
        image = _image(stored[:, :, index], {**common, **place, **(tags or {})})
        paths.append(folder / name.format(instance + 1))
        image.save_as(paths[-1], enforce_file_format=True)
    return paths


def write_enhanced(
    volumes: Mapping[float, Volume], path: Path, *, tags: Mapping[str, Any] | None = None
) -> Path:
    """Write volumes of one grid, told apart by their echo time, as one enhanced MR image."""
    first = next(iter(volumes.values()))
    frames = [
        (echo, index, volume.data[:, :, index])
        for index in range(first.shape[2])
        for echo, volume in volumes.items()
    ]
    stack, _, _ = _as_stored(np.stack([data for *_, data in frames]), "uint16")
    common = {
        "SOPClassUID": ENHANCED_MR_IMAGE,
        "StudyInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "SeriesNumber": 7,
        "InstanceNumber": 1,
        "SharedFunctionalGroupsSequence": [_shared_groups(first)],
        "PerFrameFunctionalGroupsSequence": [
            _groups_of_frame(first, echo, index) for echo, index, _ in frames
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    _image(stack, {**common, **(tags or {})}).save_as(path, enforce_file_format=True)
    return path


def compress_jpeg(path: Path, syntax: str) -> None:
    """Compress an image in place, as archives do, in a syntax as GDCM names it."""
    gdcm = pytest.importorskip("gdcm")
    reader, writer = gdcm.ImageReader(), gdcm.ImageWriter()
    change = gdcm.ImageChangeTransferSyntax()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def _image(pixels: np.ndarray, tags: Mapping[str, Any]) -> Dataset:
    """One image of (columns, rows) or (frames, columns, rows) with all that is required of it."""
    image = _dataset(
        SOPClassUID=MR_IMAGE,
        SOPInstanceUID=generate_uid(),
        Modality="MR",
        ImageType=["ORIGINAL", "PRIMARY", "M", "ND"],
        MRAcquisitionType="2D",
        Manufacturer="Phantom",
        StudyID="",
        MagneticFieldStrength=3,
        BodyPartExamined="HEAD",
        **PATIENT,
    )
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    rows_first = np.ascontiguousarray(pixels.swapaxes(-1, -2))
    bits = 8 * pixels.dtype.itemsize
    image.set_pixel_data(rows_first, "MONOCHROME2", bits, generate_instance_uid=False)
    for keyword, value in tags.items():
        setattr(image, keyword, value)
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    return image


def _dataset(**elements: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def _place(volume: Volume, index: int) -> dict[str, Any]:
    """What an image's header says of where a slice lies."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    width, height, thickness = volume.spacing_mm
    directions = (*lps[:3, 0] / width, *lps[:3, 1] / height)
    return {
        "ImageOrientationPatient": [_ds(value) for value in directions],
        "ImagePositionPatient": [_ds(value) for value in transform_points(lps, [0, 0, index])],
        "PixelSpacing": [_ds(height), _ds(width)],
        "SliceThickness": _ds(thickness),
    }


def _shared_groups(volume: Volume) -> Dataset:
    place = _place(volume, 0)
    measures = {keyword: place[keyword] for keyword in ("PixelSpacing", "SliceThickness")}
    orientation = _dataset(ImageOrientationPatient=place["ImageOrientationPatient"])
    return _dataset(
        PlaneOrientationSequence=[orientation],
        PixelMeasuresSequence=[_dataset(**measures)],
        MRTimingAndRelatedParametersSequence=[_dataset(RepetitionTime=3000.0, FlipAngle=90.0)],
    )


def _groups_of_frame(volume: Volume, echo: float, index: int) -> Dataset:
    position = _place(volume, index)["ImagePositionPatient"]
    return _dataset(
        PlanePositionSequence=[_dataset(ImagePositionPatient=position)],
        FrameContentSequence=[_dataset(DimensionIndexValues=[index + 1])],
        MREchoSequence=[_dataset(EffectiveEchoTime=float(echo))],
    )


def _as_stored(data: np.ndarray, dtype: str) -> tuple[np.ndarray, float, float]:
    """Integers with the slope and intercept that lead back; integers that fit stay as they are."""
    limits = np.iinfo(dtype)
    low, high = float(data.min()), float(data.max())
    if np.array_equal(data, np.rint(data)) and limits.min <= low and high <= limits.max:
        return data.astype(dtype), 1.0, 0.0
    slope = (high - low) / (limits.max - limits.min)
    intercept = low - limits.min * slope
    stored = np.clip(np.rint((data - intercept) / slope), limits.min, limits.max)
    return stored.astype(dtype), slope, intercept


def _ds(value: float) -> DSfloat:
    return DSfloat(float(value), auto_format=True)
