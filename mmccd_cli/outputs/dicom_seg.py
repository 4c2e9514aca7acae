"""Masks and maps as DICOM Segmentation objects, which viewers lay over the series they are of."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from mmccd_cli import __version__
from mmccd_cli.errors import DataError, UsageError
from mmccd_cli.inputs.dicom.files import open_files
from mmccd_cli.inputs.dicom.headers import lenient
from mmccd_cli.inputs.dicom.stacks import Stack

if TYPE_CHECKING:
    import highdicom

_SERIES_NUMBER_OFFSET = 9000  # above what scanners give, and next to nothing else in lists
_COLOR_CIELAB = (53.0, 80.0, 67.0)  # red
# Type 2 of the standard: they must be there and may be empty. De-identified files lack some.
_MAY_BE_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What made a segmentation: the weights, and by name the settings that changed it."""

    name: str
    version: str
    sha256: str
    parameters: dict[str, str]


def check_available() -> None:
    """Raise at once if the package that writes segmentations is not installed.

    Raises:
        UsageError: It is not.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "DICOM segmentations need the package highdicom, which is not installed.",
            next_step="pip install 'mmccd[dicom-seg]'",
        ) from error


def encode_segmentation(
    stack: Stack, values: NDArray[Any], made_by: Provenance, *, kind: Literal["mask", "map"]
) -> bytes:
    """Return a DICOM SEG file with values on the slices of a series.

    What it says of the patient and the study is copied from that series, as the standard requires;
    slices without a value above 0 are left out.

    Args:
        stack: The series that the values belong to.
        values: (I, J, K), columns, rows and slices: bool for a mask, [0, 1] for a map.
        made_by: What made them.
        kind: "mask" for a binary, "map" for a fractional segmentation.

    Raises:
        UsageError: highdicom is not installed.
        DataError: The series lacks what a segmentation must say of it.
    """
    check_available()
    if values.shape != stack.shape:
        raise ValueError(f"values have the shape {values.shape}, their series {stack.shape}")
    slices = np.ascontiguousarray(values.transpose(2, 1, 0))
    stored = slices.astype(np.uint8) if kind == "mask" else slices.astype(np.float32)
    sources = _source_headers(stack)
    with lenient():
        try:
            made = _make(stack, sources, values=stored, made_by=made_by, kind=kind)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                "No DICOM segmentation can be made of this series.",
                cause="Its headers lack something that the standard requires, or contradict it; "
                "-vv shows what.",
                next_step="Leave out --dicom-seg and --dicom-map.",
            ) from error
        stream = io.BytesIO()
        made.save_as(stream)
    return stream.getvalue()


def _source_headers(stack: Stack) -> list[Dataset]:
    """Read the headers of the source: one of each slice in their order, or one multi-frame."""
    files = list(dict.fromkeys(frame.file for frame in stack.frames))
    if stack.frames[0].index is not None and len(files) > 1:
        raise DataError(
            "No DICOM segmentation can be made of several multi-frame files.",
            next_step="Leave out --dicom-seg and --dicom-map.",
        )
    with lenient():
        headers: list[Dataset] = [
            pydicom.dcmread(stream, stop_before_pixels=True, force=True)
            for _, stream in open_files(files)
        ]
    for header in headers:
        for keyword in _MAY_BE_EMPTY:
            if keyword not in header:
                setattr(header, keyword, "")
    return headers


def _make(
    stack: Stack,
    sources: Sequence[Dataset],
    *,
    values: NDArray[Any],
    made_by: Provenance,
    kind: Literal["mask", "map"],
) -> highdicom.seg.Segmentation:
    import highdicom

    # Said of every slice, because a multi-frame source may have others at the same places.
    positions = [
        highdicom.PlanePositionSequence("PATIENT", image_position=frame.position)
        for frame in stack.frames
    ]
    number = int(sources[0].get("SeriesNumber") or 0) + _SERIES_NUMBER_OFFSET
    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=values,
        plane_positions=positions,
        segmentation_type="BINARY" if kind == "mask" else "FRACTIONAL",
        fractional_type="PROBABILITY",
        segment_descriptions=[_segment(made_by)],
        series_instance_uid=generate_uid(),
        series_number=number if kind == "mask" else number + 1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="mmccd developers",
        manufacturer_model_name="mmccd",
        software_versions=__version__,
        device_serial_number=made_by.sha256[:16],
        omit_empty_frames=bool(values.any()),
        content_label="ANOMALY",
        content_description=f"Anomaly {kind}, for research use only",
        series_description=f"mmccd anomaly {kind}",
    )


def _segment(made_by: Provenance) -> highdicom.seg.SegmentDescription:
    import highdicom

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=f"mmccd {made_by.name}"[:64],
        version=f"{__version__}, weights {made_by.version}"[:64],
        family=codes.cid7162.ArtificialIntelligence,
        parameters=made_by.parameters or None,
    )
    return highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="Anomaly",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        anatomic_regions=[codes.SCT.Brain],
        display_color=highdicom.color.CIELabColor(*_COLOR_CIELAB),
    )
