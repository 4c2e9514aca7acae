"""From a stack of DICOM frames to a volume."""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from mmccd_cli.errors import DataError
from mmccd_cli.inputs.dicom.files import DicomFile, combined_sha256, open_files
from mmccd_cli.inputs.dicom.headers import lenient
from mmccd_cli.inputs.dicom.stacks import Stack
from mmccd_cli.inputs.nifti import NiftiGrid, finite_values, make_grid
from mmccd_cli.inputs.volume import Volume

# All that decoding needs, and nothing of the person.
_KEYWORDS = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue"),
    *("PlanarConfiguration", "LossyImageCompression"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("FloatPixelData", "DoubleFloatPixelData", "PixelData"),
)
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
    slices = np.empty(stack.shape[::-1], np.float32)
    places: dict[DicomFile, list[int]] = defaultdict(list)
    for place, frame in enumerate(stack.frames):
        places[frame.file].append(place)
    hashes: list[str] = []
    for file, stream in open_files(places):
        content = stream.read()
        hashes.append(hashlib.sha256(content).hexdigest())
        stored = _decode(file, io.BytesIO(content), stack.shape[:2])
        for place in places[file]:
            frame = stack.frames[place]
            values = stored[frame.index or 0] * frame.slope + frame.intercept
            slices[place] = np.where(np.isfinite(values), values, 0)  # padding is not signal
    if digests is not None:
        digests.append(combined_sha256(hashes))
    notes += [f"{label}: {note}." for note in stack.notes]
    data = finite_values(label, slices.transpose(2, 1, 0), notes=notes)
    grid = make_grid(stack.shape, stack.affine)
    return Volume(data, grid.affine), grid


def _decode(file: DicomFile, stream: BinaryIO, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return the stored values of a file, (frames, rows, columns), bright where signal is high."""
    with lenient():
        try:
            image = pydicom.dcmread(stream, force=True, specific_tags=_TAGS)
            if "TransferSyntaxUID" not in image.file_meta:
                implicit = image.original_encoding[0]
                syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
                image.file_meta.TransferSyntaxUID = syntax
        except Exception as error:  # whatever damaged bytes make of a parser
            raise _damaged(file) from error
        try:
            stored = image.pixel_array
        except Exception as error:  # or of a decoder
            if isinstance(error, NotImplementedError) or "missing dependencies" in str(error):
                raise _no_decoder(file, image.file_meta.TransferSyntaxUID) from error
            raise _damaged(file) from error
    stored = stored.reshape(-1, *stored.shape[-2:])
    if stored.shape[1:] != (shape[1], shape[0]):
        raise _damaged(file)
    values = stored.astype(np.float64)
    if image.get("PhotometricInterpretation") == "MONOCHROME1":
        # The least stored value is the brightest; signed values lie around -1/2.
        top = -1.0 if image.get("PixelRepresentation") else 2.0 ** int(image.BitsStored) - 1
        values = top - values
    if isinstance(padding := image.get("PixelPaddingValue"), int):
        values[stored == padding] = np.nan
    return values


def _damaged(file: DicomFile) -> DataError:
    return DataError(
        f"{file.name} in {file.path if file.member else file.path.parent} is truncated or damaged.",
        cause="The copy or export was probably interrupted.",
        next_step="Copy or export the series again.",
    )


def _no_decoder(file: DicomFile, syntax: UID) -> DataError:
    known = syntax.type == "Transfer Syntax"
    name = syntax.name if known else "in a way that the standard does not know"
    return DataError(
        f"{file.name} is compressed ({name}), and no installed package decodes that.",
        next_step="Install one: pip install 'mmccd[dicom-codecs]'",
    )
