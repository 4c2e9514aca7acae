"""What a DICOM header says of an image, classic or multi-frame, without who it shows.

Only the elements listed here are read. None of them names a person or holds a date.
"""

from __future__ import annotations

import contextlib
import re
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import data_element_generator
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from mmccd_cli.inputs.dicom.files import MAX_FILE_BYTES, MAX_HEADER_BYTES, DicomFile
from mmccd_cli.inputs.dicom.recognition import Acquisition
from mmccd_cli.inputs.names import names_agent, tokens_of
from mmccd_cli.inputs.volume import is_too_large

_MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
_ENHANCED_MR_IMAGES = ("1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4")
_INDEX_OF_A_DISC = "1.2.840.10008.1.3.10"

_KINDS = {"SE", "IR", "GR", "EP", "RM"}
_KINDS_OF_ENHANCED = {"SPIN": {"SE"}, "GRADIENT": {"GR"}, "BOTH": {"SE", "GR"}}
_SIEMENS_B_VALUE = (0x0019, 0x100C)

_KEYWORDS = (
    # What the file is
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"),
    *("SeriesNumber", "InstanceNumber", "ImageType", "BodyPartExamined", "SeriesDescription"),
    *("ProtocolName", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    # Which repetition of a slice it holds
    *("AcquisitionNumber", "TemporalPositionIdentifier", "TriggerTime", "EchoNumbers"),
    # How it was acquired
    *("ScanningSequence", "SequenceVariant", "RepetitionTime", "EchoTime", "InversionTime"),
    *("FlipAngle", "AngioFlag", "DiffusionBValue", "EchoPulseSequence", "TimeOfFlightContrast"),
    *("EchoPlanarPulseSequence", "SteadyStatePulseSequence", "PhaseContrast"),
    *("ContrastBolusAgent", "ContrastBolusAgentSequence"),
    # Where it lies, and what its numbers mean
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("RescaleSlope", "RescaleIntercept"),
    # The same of multi-frame images
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
_TAGS: list[Any] = [Tag(name) for name in (*_KEYWORDS, _SIEMENS_B_VALUE)]


_STARTS_OF_ITEM = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_MAX_ITEMS = 200_000  # a multi-frame image has some ten for each of its thousands of frames


class NotUsable(Exception):
    """A file is no image of ours; the message says why."""


@dataclass(frozen=True, kw_only=True)
class DicomFrame:
    """One slice.

    Args:
        file: Where it is.
        index: Its number in a multi-frame file from 0, None where the file is the slice.
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        instance: SOPInstanceUID.
        series_number: None where it is missing.
        repeat: What tells repetitions of one slice apart: acquisition, time point, trigger time.
        shape: Columns and rows.
        position: Centre of the first pixel in LPS mm.
        directions: Unit vectors in LPS along a row and along a column.
        spacing_mm: Distance of columns and of rows.
        slope: Of the stored values.
        intercept: Of the stored values.
        acquisition: What it was acquired with.
    """

    file: DicomFile
    index: int | None
    study: str
    series: str
    instance: str
    series_number: int | None
    repeat: tuple[float, ...]
    shape: tuple[int, int]
    position: tuple[float, float, float]
    directions: tuple[float, float, float, float, float, float]
    spacing_mm: tuple[float, float]
    slope: float
    intercept: float
    acquisition: Acquisition

    @property
    def series_label(self) -> str:
        """What its series is called: nothing that could identify a person."""
        number = self.series_number
        return "Series without a number" if number is None else f"Series {number}"

    @property
    def series_order(self) -> int:
        """The number of its series for sorting, those without one the last."""
        return 10**9 if self.series_number is None else self.series_number


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """Let pydicom read what breaks a rule of the standard without a warning, which may quote it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(pydicom.config.disable_value_validation())
        if threading.current_thread() is threading.main_thread():
            # Filters belong to the process: two threads would restore each other's.
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        yield


def parse(stream: BinaryIO, tags: list[Any], **options: Any) -> Dataset:
    """Let pydicom read some elements of a file, unless that would take long or fill the memory.

    Raises:
        NotUsable: It would inflate to more than is read, or has too many items.
        Exception: Whatever damaged bytes make of a parser.
    """
    deflated = DeflatedExplicitVRLittleEndian.encode() in stream.read(4096)
    items = 0
    for block in _inflated(stream) if deflated else _blocks(stream):
        items += sum(block.count(start) for start in _STARTS_OF_ITEM)
        if items > _MAX_ITEMS:
            raise NotUsable("more items than an image of a head has")
    stream.seek(0)
    return pydicom.dcmread(stream, force=True, specific_tags=tags, **options)


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    stream.seek(0)
    yield stream.read(MAX_HEADER_BYTES)


def _inflated(stream: BinaryIO) -> Iterator[bytes]:
    """What a deflated file inflates to, in blocks.

    Raises:
        NotUsable: It is too much.
    """
    stream.seek(132)
    for _ in data_element_generator(stream, False, True, stop_when=_is_after_meta):
        pass
    inflater, inflated = zlib.decompressobj(-zlib.MAX_WBITS), 0
    data = stream.read()
    while data and inflated <= MAX_FILE_BYTES:
        block = inflater.decompress(data, 2**20)
        inflated += len(block)
        yield block
        data = inflater.unconsumed_tail
    if data:
        raise NotUsable("too large for an image of a head")


def _is_after_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag.group != 2


def read_frames(file: DicomFile, stream: BinaryIO) -> list[DicomFrame]:
    """Read the header of a file.

    Returns:
        One frame, or all of a multi-frame image in their stored order.

    Raises:
        NotUsable: It is no MR image, or lacks what places it in space.
    """
    with lenient():
        try:
            return _frames_of(file, parse(stream, _TAGS, stop_before_pixels=True))
        except NotUsable:
            raise
        except Exception as error:  # whatever damaged bytes make of a parser and its conversions
            raise NotUsable("its header is damaged or breaks off") from error


def _frames_of(file: DicomFile, header: Dataset) -> list[DicomFrame]:
    kind = str(header.get("SOPClassUID", ""))
    if kind == _INDEX_OF_A_DISC:
        raise NotUsable("the index of a disc")
    if not kind and "Rows" not in header:
        raise NotUsable("not DICOM, or its header breaks off")
    modality = str(header.get("Modality", "MR") or "MR")
    if modality != "MR":
        # A damaged header may have swallowed what comes after, the patient included.
        told = f" ({modality})" if re.fullmatch(r"[A-Z]{2,8}", modality) else ""
        raise NotUsable(f"not an MR image{told}")
    if "Rows" not in header:
        raise NotUsable("no image in it")
    if int(header.get("SamplesPerPixel", 1) or 1) != 1:
        raise NotUsable("a colour image")
    frames = int(header.get("NumberOfFrames", 1) or 1)
    if is_too_large((int(header.Columns), int(header.Rows), frames)):
        raise NotUsable("too large for an image of a head")
    if kind in _ENHANCED_MR_IMAGES or "PerFrameFunctionalGroupsSequence" in header:
        return _enhanced_frames(file, header)
    if frames > 1:
        raise NotUsable("several frames without a position for each")
    if kind != _MR_IMAGE and kind and "ImagePositionPatient" not in header:
        raise NotUsable("not an MR image (a screen shot or document)")
    return [_frame(file, [header])]


def _enhanced_frames(file: DicomFile, header: Dataset) -> list[DicomFrame]:
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    if len(per_frame) != int(header.get("NumberOfFrames", 1) or 1):
        raise NotUsable("a multi-frame image whose frames are not described")
    shared = _items_of(header.get("SharedFunctionalGroupsSequence"))
    return [
        _frame(file, [*_items_of([groups]), *shared, header], index=index)
        for index, groups in enumerate(per_frame)
    ]


def _items_of(groups: Sequence[Dataset] | None) -> list[Dataset]:
    """The items of all functional groups, which are sequences of one item each."""
    return [
        element.value[0]
        for group in (groups or [])[:1]
        for element in group
        if element.VR == "SQ" and element.value
    ]


def _frame(file: DicomFile, places: list[Dataset], *, index: int | None = None) -> DicomFrame:
    """Make a frame of several data sets, the file's own the last; the first that says it counts."""
    header = places[-1]
    position = _numbers(places, "ImagePositionPatient", 3)
    directions = _numbers(places, "ImageOrientationPatient", 6)
    spacing = _numbers(places, "PixelSpacing", 2)
    if position is None or directions is None:
        raise NotUsable("it has no position in space")
    if spacing is None or min(spacing) <= 0:
        raise NotUsable("it has no pixel spacing")
    repeats = ("AcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex")
    number = _number(places, "SeriesNumber")
    slope = _number(places, "RescaleSlope")
    return DicomFrame(
        file=file,
        index=index,
        study=str(header.get("StudyInstanceUID", "")),
        series=str(header.get("SeriesInstanceUID", "")),
        instance=str(header.get("SOPInstanceUID", "")),
        series_number=None if number is None else int(number),
        repeat=tuple(_number(places, name) or 0.0 for name in (*repeats, "TriggerTime")),
        shape=(int(header.Columns), int(header.Rows)),
        position=(position[0], position[1], position[2]),
        directions=(*directions[:3], *directions[3:]),  # type: ignore[arg-type]
        spacing_mm=(spacing[1], spacing[0]),
        slope=slope if slope else 1.0,
        intercept=_number(places, "RescaleIntercept") or 0.0,
        acquisition=_acquisition(places),
    )


def _acquisition(places: list[Dataset]) -> Acquisition:
    kinds = _KINDS & set(_texts(places, "ScanningSequence"))
    kinds |= _KINDS_OF_ENHANCED.get(_text(places, "EchoPulseSequence"), set())
    if _text(places, "EchoPlanarPulseSequence") == "YES":
        kinds.add("EP")
    if _text(places, "InversionRecovery") == "YES":
        kinds.add("IR")
    echo = _number(places, "EchoNumbers")
    flow = [_text(places, name) for name in ("AngioFlag", "TimeOfFlightContrast", "PhaseContrast")]
    b_value = _number(places, "DiffusionBValue")
    # The protocol may be that of the whole examination ("brain with contrast"): second choice.
    described = _text(places, "SeriesDescription") or _text(places, "ProtocolName")
    return Acquisition(
        kinds=frozenset(kinds),
        variants=frozenset(_texts(places, "SequenceVariant")),
        repetition_ms=_positive(places, "RepetitionTime"),
        echo_ms=_positive(places, "EffectiveEchoTime") or _positive(places, "EchoTime"),
        inversion_ms=_positive(places, "InversionTimes") or _positive(places, "InversionTime"),
        flip_deg=_positive(places, "FlipAngle"),
        echo_number=None if echo is None else int(echo),
        image_type=_image_type(places),
        has_agent=_has_agent(places),
        b_value=b_value if b_value is not None else _number(places, _SIEMENS_B_VALUE),
        is_angiography=any(value in ("Y", "YES") for value in flow),
        is_balanced=_text(places, "SteadyStatePulseSequence") == "FREE_PRECESSION",
        words=tuple(tokens_of(described)),
        body_part=_text(places, "BodyPartExamined").lower(),
    )


def _image_type(places: list[Dataset]) -> tuple[str, ...]:
    values = _texts(places, "FrameType") or _texts(places, "ImageType")
    component = _texts(places, "ComplexImageComponent")
    return tuple(value.upper() for value in (*values, *component))


def _has_agent(places: list[Dataset]) -> bool:
    if any(place.get("ContrastBolusAgentSequence") for place in places):
        return _text(places, "ContrastBolusAgentAdministered") != "NO"
    return names_agent(_text(places, "ContrastBolusAgent"))


def _value(places: list[Dataset], name: Any) -> Any:
    for place in places:
        try:
            value = place[name].value if name in place else None
        except (TypeError, ValueError):  # no number where there should be one
            continue
        if value not in (None, ""):
            return value
    return None


def _texts(places: list[Dataset], name: str) -> list[str]:
    value = _value(places, name)
    if value is None:
        return []
    values = [value] if isinstance(value, str) else list(value)
    return [str(item).strip().upper() for item in values if str(item).strip()]


def _text(places: list[Dataset], name: str) -> str:
    return " ".join(_texts(places, name))


def _numbers(places: list[Dataset], name: Any, count: int) -> list[float] | None:
    value = _value(places, name)
    try:
        numbers = [float(item) for item in value]
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(abs(n) < 1e6 for n in numbers) else None


def _number(places: list[Dataset], name: Any) -> float | None:
    value = _value(places, name)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = value[0] if value else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < 1e9 else None


def _positive(places: list[Dataset], name: Any) -> float | None:
    number = _number(places, name)
    return number if number is not None and number > 0 else None
