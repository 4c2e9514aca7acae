"""DICOM series written from volumes: what a scanner would have sent of a phantom or a NIfTI scan.

    python tests/dicom_phantoms.py SUBJECT_FOLDER OUT_FOLDER

turns a subject's folder of NIfTI files into a folder with a DICOM series for each modality.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from mmccd_cli.inputs.nifti import read_nifti
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
        **(tags or {}),
    }
    order = np.arange(volume.shape[2])
    if shuffled is not None:
        order = np.random.default_rng(shuffled).permutation(order)
    paths = []
    for index in range(volume.shape[2]):
        image = _image(stored[:, :, index], {"SeriesNumber": number, **common})
        image.InstanceNumber = int(order[index]) + 1
        _place(image, volume.affine, index)
        if (slope, intercept) != (1.0, 0.0):
            image.RescaleSlope, image.RescaleIntercept = _ds(slope), _ds(intercept)
        for keyword, value in (tags or {}).items():
            setattr(image, keyword, value)
        paths.append(folder / name.format(int(order[index]) + 1))
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
    common = {"StudyInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid()}
    image = _image(stack[0], {**common, "SeriesInstanceUID": generate_uid(), "SeriesNumber": 7})
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = ENHANCED_MR_IMAGE
    image.InstanceNumber = 1
    image.NumberOfFrames = len(frames)
    image.PixelData = np.ascontiguousarray(stack.transpose(0, 2, 1)).tobytes()
    for keyword, value in (tags or {}).items():
        setattr(image, keyword, value)
    image.SharedFunctionalGroupsSequence = DicomSequence([_shared_groups(first)])
    image.PerFrameFunctionalGroupsSequence = DicomSequence(
        [_groups_of_frame(first, echo, index) for echo, index, _ in frames]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    return path


def _image(pixels: np.ndarray, tags: Mapping[str, Any]) -> Dataset:
    """One image with everything that is required of it but its place."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = MR_IMAGE
    image.SOPInstanceUID = generate_uid()
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.Modality = "MR"
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    image.MRAcquisitionType = "2D"
    image.Manufacturer, image.StudyID, image.MagneticFieldStrength = "Phantom", "", 3
    image.BodyPartExamined = "HEAD"
    for keyword, value in {**PATIENT, **tags}.items():
        setattr(image, keyword, value)
    image.Columns, image.Rows = pixels.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 8 * pixels.dtype.itemsize
    image.HighBit = image.BitsStored - 1
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.PixelData = np.ascontiguousarray(pixels.T).tobytes()
    if len(image.PixelData) % 2:
        image.PixelData += b"\0"
    return image


def _place(image: Dataset, affine: np.ndarray, index: int) -> None:
    row, column, position, spacing = _geometry(affine, index)
    image.ImageOrientationPatient = [_ds(value) for value in (*row, *column)]
    image.ImagePositionPatient = [_ds(value) for value in position]
    image.PixelSpacing = [_ds(value) for value in spacing]
    image.SliceThickness = _ds(np.linalg.norm(affine[:3, 2]))


def _geometry(
    affine: np.ndarray, index: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float]]:
    """Directions along a row and a column, position, and spacing of rows and of columns."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    width, height = np.linalg.norm(lps[:3, 0]), np.linalg.norm(lps[:3, 1])
    position = transform_points(lps, [0, 0, index])
    return lps[:3, 0] / width, lps[:3, 1] / height, position, (float(height), float(width))


def _shared_groups(volume: Volume) -> Dataset:
    row, column, _, spacing = _geometry(volume.affine, 0)
    shared, orientation, measures, timing = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [_ds(value) for value in (*row, *column)]
    measures.PixelSpacing = [_ds(value) for value in spacing]
    measures.SliceThickness = _ds(volume.spacing_mm[2])
    timing.RepetitionTime, timing.FlipAngle = 3000.0, 90.0
    shared.PlaneOrientationSequence = DicomSequence([orientation])
    shared.PixelMeasuresSequence = DicomSequence([measures])
    shared.MRTimingAndRelatedParametersSequence = DicomSequence([timing])
    return shared


def _groups_of_frame(volume: Volume, echo: float, index: int) -> Dataset:
    frame, position, content, mr_echo = Dataset(), Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = [_ds(value) for value in _geometry(volume.affine, index)[2]]
    content.DimensionIndexValues = [index + 1]
    mr_echo.EffectiveEchoTime = float(echo)
    frame.PlanePositionSequence = DicomSequence([position])
    frame.FrameContentSequence = DicomSequence([content])
    frame.MREchoSequence = DicomSequence([mr_echo])
    return frame


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


def main() -> None:
    """Turn a subject's NIfTI files into DICOM."""
    from mmccd_cli.inputs.subjects import find_subject

    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    paths = find_subject(source).paths
    make_dicom({modality: read_nifti(path)[0] for modality, path in paths.items()}, target)


if __name__ == "__main__":
    main()
