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


@dataclass(frozen=True, eq=False, kw_only=True)
class Scans:
    """What was read of one subject.

    Attributes:
        volumes: Modality to image.
        grids: Modality to the grid of its file.
        brain_mask: The mask that was given, or None.
        notes: What was found and mended.
        seconds: How long it took.
    """

    volumes: Mapping[str, Volume]
    grids: Mapping[str, NiftiGrid]
    brain_mask: Volume | None
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
    read = {name: read_image(subject, name, notes=notes) for name in subject.paths}
    mask = read_nifti(brain_mask, allow_constant=True)[0] if brain_mask else None
    return Scans(
        volumes={name: volume for name, (volume, _) in read.items()},
        grids={name: grid for name, (_, grid) in read.items()},
        brain_mask=mask,
        notes=notes,
        seconds=time.perf_counter() - started,
    )


def read_image(
    subject: Subject, modality: str, *, notes: list[str] | None = None
) -> tuple[Volume, NiftiGrid]:
    """Read one image of a subject, of a NIfTI file or a DICOM series.

    Args:
        subject: Its files.
        modality: One of those that it has.
        notes: Sentences on what was found and mended are appended here.

    Raises:
        DataError: It cannot be used.
    """
    if modality not in subject.series:
        return read_nifti(subject.paths[modality], notes=notes)
    from mmccd_cli.inputs.dicom.pixels import read_stack

    return read_stack(subject.series[modality], notes=notes)


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
    return {**named, "brain_mask": {"file": brain_mask.name}} if brain_mask else named


def describe_inputs(subject: Subject, brain_mask: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return name and SHA-256 of each input for the sidecar; of a DICOM series over all files."""
    described = name_inputs(subject, brain_mask)
    for modality in subject.paths:
        described[modality]["sha256"] = sha256_of_image(subject, modality)
        if stack := subject.series.get(modality):
            described[modality]["slices"] = len(stack.frames)
    if brain_mask:
        described["brain_mask"]["sha256"] = sha256_of_file(brain_mask)
    return described


def sha256_of_image(subject: Subject, modality: str) -> str:
    """Return the SHA-256 of a modality's file, or one over all files of its DICOM series."""
    stack = subject.series.get(modality)
    if stack is None:
        return sha256_of_file(subject.paths[modality])
    return sha256_of_files(dict.fromkeys(frame.file for frame in stack.frames))
