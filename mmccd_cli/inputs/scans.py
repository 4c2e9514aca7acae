"""What is read of one subject, and the hashes that say which files these were."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmccd_cli.files import sha256_of_file
from mmccd_cli.inputs.dicom.files import sha256_of_files
from mmccd_cli.inputs.nifti import NiftiGrid, read_nifti
from mmccd_cli.inputs.subjects import Subject
from mmccd_cli.inputs.volume import Volume

BRAIN_MASK = "brain_mask"


@dataclass(frozen=True, eq=False, kw_only=True)
class Scans:
    """What was read of one subject.

    Attributes:
        volumes: Modality to image.
        grids: Modality to the grid of its file.
        brain_mask: The mask that was given, or None.
        inputs: Names and hashes of what was read; see `describe_inputs`.
        notes: What was found and mended.
        seconds: How long it took.
    """

    volumes: Mapping[str, Volume]
    grids: Mapping[str, NiftiGrid]
    brain_mask: Volume | None
    inputs: Mapping[str, Mapping[str, Any]]
    notes: list[str]
    seconds: float


def read_scans(subject: Subject, brain_mask: Path | None = None) -> Scans:
    """Read all images of a subject.

    Args:
        subject: Its files.
        brain_mask: The file of a brain mask, or None.

    Raises:
        DataError: One of them cannot be used.
    """
    started = time.perf_counter()
    notes: list[str] = []
    digests: list[str] = []
    read = {name: read_image(subject, name, notes=notes, digests=digests) for name in subject.paths}
    mask = read_nifti(brain_mask, allow_constant=True, digests=digests) if brain_mask else None
    hashes = dict(zip([*subject.paths, BRAIN_MASK], digests, strict=False))
    return Scans(
        volumes={name: volume for name, (volume, _) in read.items()},
        grids={name: grid for name, (_, grid) in read.items()},
        brain_mask=mask[0] if mask else None,
        inputs=describe_inputs(subject, brain_mask, hashes=hashes),
        notes=notes,
        seconds=time.perf_counter() - started,
    )


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
        DataError: It cannot be used.
    """
    if modality not in subject.series:
        return read_nifti(subject.paths[modality], notes=notes, digests=digests)
    from mmccd_cli.inputs.dicom.pixels import read_stack

    return read_stack(subject.series[modality], notes=notes, digests=digests)


def name_inputs(subject: Subject, brain_mask: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return what each input is called, and of DICOM why it was chosen.

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
