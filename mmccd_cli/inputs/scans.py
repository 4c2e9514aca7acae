"""What is read of one subject, and the hashes that say which files these were."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.errors import Caution, DataError, GeometryError
from mmccd_cli.files import sha256_of_file
from mmccd_cli.inputs.dicom.files import sha256_of_files
from mmccd_cli.inputs.nifti import NiftiGrid, read_grid, read_nifti
from mmccd_cli.inputs.subjects import Subject, name_doubts
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.template import spacing_of, voxel_volume_mm3

BRAIN_MASK = "brain_mask"

# What no scan of a head has, whoever acquired it: the bore of a scanner holds 500 litres with a
# whole person in it, and infants' brains have 0.3 litres.
_MIN_FIELD_LITRES, _MAX_FIELD_LITRES = 0.05, 500.0
_MAX_SPACING_MM = 25.0
_LARGE = 2**22  # voxels of which a thirty-sixth part tells as much as a ninth
_MIN_CORRELATION = 0.1  # of neighbouring voxels; heads have 0.7 to 0.99, noise 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Scans:
    """What was read of one subject, what was found and mended, and the seconds that took."""

    volumes: Mapping[str, Volume]
    grids: Mapping[str, NiftiGrid]
    brain_mask: Volume | None
    inputs: Mapping[str, Mapping[str, Any]]
    notes: list[str]
    seconds: float


def read_scans(subject: Subject, brain_mask: Path | None = None) -> Scans:
    """Read all images of a subject.

    Raises:
        DataError: One of them cannot be used.
    """
    started = time.perf_counter()
    notes: list[str] = [*name_doubts(subject)]
    digests: list[str] = []
    read = {name: read_image(subject, name, notes=notes, digests=digests) for name in subject.paths}
    mask = None
    if brain_mask:
        mask = read_nifti(brain_mask, allow_constant=True, notes=notes, digests=digests)
    hashes = dict(zip([*subject.paths, BRAIN_MASK], digests, strict=False))
    notes += _repetitions(subject, hashes)
    return Scans(
        volumes={name: volume for name, (volume, _) in read.items()},
        grids={name: grid for name, (_, grid) in read.items()},
        brain_mask=mask[0] if mask else None,
        inputs=describe_inputs(subject, brain_mask, hashes=hashes),
        notes=notes,
        seconds=time.perf_counter() - started,
    )


def _repetitions(subject: Subject, hashes: Mapping[str, str]) -> list[Caution]:
    """Say which modalities have one and the same content."""
    same: dict[str, list[str]] = {}
    for modality, entry in name_inputs(subject).items():
        same.setdefault(hashes[modality], []).append(f"{modality} ({entry['file']})")
    return [
        Caution(f"{' and '.join(names)} are one and the same image: give each scan its own file.")
        for names in same.values()
        if len(names) > 1
    ]


def read_image(
    subject: Subject,
    modality: str,
    *,
    notes: list[str] | None = None,
    digests: list[str] | None = None,
) -> tuple[Volume, NiftiGrid]:
    """Read one image of a subject, of a NIfTI file or a DICOM series.

    Args:
        subject: Its files.
        modality: One of those that it has.
        notes: Sentences on what was found and mended are appended here.
        digests: The SHA-256 of what was read is appended here; see `sha256_of_image`.

    Raises:
        DataError: It cannot be used, or cannot be a head.
    """
    if modality not in subject.series:
        source = str(subject.paths[modality])
        volume, grid = read_nifti(subject.paths[modality], notes=notes, digests=digests)
    else:
        from mmccd_cli.inputs.dicom.pixels import read_stack

        source = subject.series[modality].frames[0].series_label
        volume, grid = read_stack(subject.series[modality], notes=notes, digests=digests)
    check_head(source, volume)
    return volume, grid


def check_headers(subject: Subject, brain_mask: Path | None = None) -> list[str]:
    """Refuse files that cannot be used as far as their headers tell; no voxel is read.

    The headers of DICOM series were read when they were found.

    Returns:
        Sentences on what the headers and names say, as `Scans.notes` has them.

    Raises:
        DataError: One of them cannot be used.
    """
    notes: list[str] = [*name_doubts(subject)]
    for modality, path in subject.paths.items():
        if modality not in subject.series:
            grid = read_grid(path, notes=notes)
            _check_field(str(path), grid.shape, grid.affine)
    if brain_mask is not None:
        read_grid(brain_mask)
    return notes


def check_head(source: str, volume: Volume) -> None:
    """Refuse an image that cannot be a head; what is in doubt passes.

    Raises:
        GeometryError: Its field of view is far too small or too large, or its voxels are.
        DataError: It is noise.
    """
    _check_field(source, volume.shape, volume.affine)
    if _is_noise(volume.data):
        raise DataError(
            f"{source} cannot be a head: neighbouring voxels have nothing in common.",
            cause="It is noise, was scrambled, or its header states a wrong type or shape.",
            next_step="Look at it in a viewer and give the scan itself.",
        )


def _check_field(source: str, shape: Sequence[int], affine: NDArray[np.float64]) -> None:
    """Refuse a grid that no scan of a head has; see `check_head`."""
    extent_mm = np.multiply(shape, spacing_of(affine))
    litres, largest = voxel_volume_mm3(affine) * math.prod(shape) / 1e6, max(spacing_of(affine))
    if not _MIN_FIELD_LITRES <= litres <= _MAX_FIELD_LITRES or largest > _MAX_SPACING_MM:
        size = " x ".join(f"{side:.3g}" for side in extent_mm)
        raise GeometryError(
            f"{source} cannot be a head: it shows {size} mm ({litres:.3g} litres) in voxels of up "
            f"to {largest:.3g} mm.",
            cause="The voxel spacing in its header is wrong, for example in another unit.",
            next_step="Convert the scan again from DICOM, or mend its affine with nifti_tool.",
        )


def _is_noise(data: NDArray[np.float32]) -> bool:
    """Tell whether the correlation of neighbours is about 0 along every axis."""
    every = 3 if data.size < _LARGE else 6
    for axis in range(3):
        # Whole lines along the axis, some of them; without outliers, which would outweigh the rest.
        lines = np.moveaxis(data, axis, 0)[:, ::every, ::every]
        lines = np.clip(lines, *np.percentile(lines, [1, 99])).astype(np.float64)
        lines -= lines.mean()
        if (lines[1:] * lines[:-1]).mean() >= _MIN_CORRELATION * (lines**2).mean():
            return False
    return True


def name_inputs(subject: Subject, brain_mask: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return what each input is called, and why it was chosen where no name decided.

    The folder is left out: it may say more about a person than a result should carry. So may the
    names and identifiers of DICOM files; a series is called by its number.
    """
    named: dict[str, dict[str, Any]] = {}
    for modality, path in subject.paths.items():
        stack = subject.series.get(modality)
        named[modality] = {"file": path.name} if stack is None else {"file": stack.label}
        if reason := subject.reasons.get(modality):
            named[modality]["chosen"] = reason
    return {**named, BRAIN_MASK: {"file": brain_mask.name}} if brain_mask else named


def describe_inputs(
    subject: Subject, brain_mask: Path | None = None, *, hashes: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Return name and SHA-256 of each input for the sidecar; of a DICOM series over all files.

    Args:
        subject: Its files.
        brain_mask: The file of a brain mask, or None.
        hashes: Input to the SHA-256 of what was read; None to read the files now.
    """
    described = name_inputs(subject, brain_mask)
    for name, entry in described.items():
        if hashes is not None:
            entry["sha256"] = hashes[name]
        elif name in subject.paths:
            entry["sha256"] = sha256_of_image(subject, name)
        elif brain_mask is not None:
            entry["sha256"] = sha256_of_file(brain_mask)
        if stack := subject.series.get(name):
            entry["slices"] = len(stack.frames)
    return described


def sha256_of_image(subject: Subject, modality: str) -> str:
    """Return the SHA-256 of a modality's file, or one over all files of its DICOM series."""
    stack = subject.series.get(modality)
    if stack is None:
        return sha256_of_file(subject.paths[modality])
    return sha256_of_files(dict.fromkeys(frame.file for frame in stack.frames))
