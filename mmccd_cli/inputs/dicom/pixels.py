"""From a stack of DICOM frames to a volume."""

from __future__ import annotations

import hashlib
import io
import struct
from collections import defaultdict
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

from mmccd_cli.errors import DataError
from mmccd_cli.inputs.dicom.files import DicomFile, combined_sha256, open_files
from mmccd_cli.inputs.dicom.headers import lenient, parse
from mmccd_cli.inputs.dicom.stacks import Stack
from mmccd_cli.inputs.nifti import NiftiGrid, finite_values, make_grid
from mmccd_cli.inputs.volume import Volume, is_too_large

# All that decoding needs, and nothing of the person.
_KEYWORDS = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue"),
    *("PlanarConfiguration", "LossyImageCompression"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("FloatPixelData", "DoubleFloatPixelData", "PixelData"),
)
_CODESTREAMS = {*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes}
# Segments of JPEG: a frame starts, of any process or of JPEG-LS; Huffman's or arithmetic tables,
# which JPEG-LS does without.
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_DECODABLE = {0xC4, 0xCC, 0xF7}
_START_OF_SCAN = 0xDA
_TAGS: list[Any] = [Tag(name) for name in _KEYWORDS]


def read_stack(
    stack: Stack, *, notes: list[str] | None = None, digests: list[str] | None = None
) -> tuple[Volume, NiftiGrid]:
    """Decode the frames of a stack.

    Args:
        stack: See `mmccd_cli.inputs.dicom.stacks.arrange`.
        notes: Sentences on what was found and mended are appended here.
        digests: The SHA-256 over the bytes of all files, as read, is appended here.

    Returns:
        The volume, with columns, rows and slices as its axes, and a grid to write outputs on.

    Raises:
        DataError: A file is truncated, or compressed in a way that no installed package decodes.
    """
    notes = notes if notes is not None else []
    label = stack.frames[0].series_label
    if is_too_large(stack.shape):
        raise DataError(
            f"{label} has {' x '.join(map(str, stack.shape))} voxels, more than a head has.",
            cause="Its headers are damaged, or it is no scan of a head.",
            next_step="Export the series again, or give another.",
        )
    slices = np.empty(stack.shape[::-1], np.float32)
    places: dict[DicomFile, list[int]] = defaultdict(list)
    for place, frame in enumerate(stack.frames):
        places[frame.file].append(place)
    hashes: list[str] = []
    for file, stream in open_files(places):
        content, syntax = stream.read(), UID("")
        hashes.append(hashlib.sha256(content).hexdigest())
        try:
            with lenient(), np.errstate(all="ignore"):
                image = _parse(io.BytesIO(content))
                syntax = image.file_meta.TransferSyntaxUID
                _check_codestreams(image)
                if image.pixel_array.shape[-2:] != slices.shape[1:]:
                    raise ValueError("its frames have another shape than their header says")
                stored = image.pixel_array.reshape(-1, *slices.shape[1:])
                for place in places[file]:
                    frame = stack.frames[place]
                    values = _signal(image, stored[frame.index or 0])
                    values = values * frame.slope + frame.intercept
                    slices[place] = np.where(np.isfinite(values), values, 0)  # padding is no signal
        except MemoryError:
            raise
        except Exception as error:  # whatever damaged bytes make of a parser or a decoder
            unknown = isinstance(error, NotImplementedError) or "missing dependencies" in str(error)
            if syntax and unknown:
                raise _no_decoder(label, syntax) from error
            raise _damaged(label, places[file]) from error
    if digests is not None:
        digests.append(combined_sha256(hashes))
    notes += [f"{label}: {note}." for note in stack.notes]
    data = finite_values(label, slices.transpose(2, 1, 0), notes=notes)
    grid = make_grid(stack.shape, stack.affine)
    return Volume(data, grid.affine), grid


def _parse(stream: BinaryIO) -> Dataset:
    image = parse(stream, _TAGS)
    if "TransferSyntaxUID" not in image.file_meta:
        implicit = image.original_encoding[0]
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        image.file_meta.TransferSyntaxUID = syntax
    return image


def _check_codestreams(image: Dataset) -> None:
    """Refuse compressed frames that are not what the header says: GDCM would end the process."""
    if image.file_meta.TransferSyntaxUID not in _CODESTREAMS:
        return
    tables = [image.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    frames = generate_frames(
        image.PixelData,
        number_of_frames=int(image.get("NumberOfFrames", 1) or 1),
        extended_offsets=(tables[0], tables[1]) if all(tables) else None,
    )
    is_grey = str(image.PhotometricInterpretation) in ("MONOCHROME1", "MONOCHROME2")
    for frame in frames:
        bits, *size = _format_of_codestream(frame)
        fits = 2 <= bits <= image.BitsAllocated <= max(16, 8 * -(-bits // 8))
        if not fits or not is_grey or size != [image.Rows, image.Columns, 1]:
            raise ValueError("a compressed frame is not what the header says")


def _format_of_codestream(frame: bytes) -> tuple[int, ...]:
    """Return bits, rows, columns and colours of a frame in JPEG, JPEG-LS or JPEG 2000."""
    if not frame.startswith(b"\xff\xd8"):  # JPEG 2000, perhaps in a file of its own
        start = frame.index(b"\xff\x4f\xff\x51")
        right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
        colours = int.from_bytes(frame[start + 40 : start + 42], "big")
        return (frame[start + 42] & 0x7F) + 1, bottom - top, right - left, colours
    place, segments = 2, {}
    while (marker := frame[place + 1]) != _START_OF_SCAN:
        if frame[place] != 0xFF:
            raise ValueError("a compressed frame has a damaged head")
        segments[marker] = place + 4
        fills = marker == 0xFF
        place += 1 if fills else 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    if not segments.keys() & _DECODABLE:
        raise ValueError("a compressed frame has no table to decode it with")
    (start,) = (segments[marker] for marker in segments.keys() & _FRAME_MARKERS)
    return struct.unpack_from(">B2HB", frame, start)


def _signal(image: Dataset, stored: NDArray[Any]) -> NDArray[np.float64]:
    """Return the stored values of a frame bright where signal is high, and NaN where padded."""
    values = stored.astype(np.float64)
    if image.get("PhotometricInterpretation") == "MONOCHROME1":
        # The least stored value is the brightest; signed values lie around -1/2.
        top = -1.0 if image.get("PixelRepresentation") else 2.0 ** int(image.BitsStored) - 1
        values = top - values
    if isinstance(padding := image.get("PixelPaddingValue"), int):
        values[stored == padding] = np.nan
    return values


def _damaged(label: str, places: list[int]) -> DataError:
    which = f"Slice {places[0] + 1} of {label.lower()}" if len(places) == 1 else label
    return DataError(
        f"{which} is truncated or damaged.",
        cause="The copy or export was probably interrupted.",
        next_step="Copy or export the series again.",
    )


def _no_decoder(label: str, syntax: UID) -> DataError:
    known = syntax.type == "Transfer Syntax"
    name = syntax.name if known else "in a way that the standard does not know"
    return DataError(
        f"{label} is compressed ({name}), and no installed package decodes that.",
        next_step="Install one: pip install 'mmccd[dicom-codecs]'",
    )
