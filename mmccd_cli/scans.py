"""What is read of one subject, and the hashes that say which files these were."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmccd_cli.files import sha256_of_file
from mmccd_cli.subjects import Subject
from mmccd_cli.volume import NiftiGrid, Volume, read_nifti


@dataclass(frozen=True, eq=False)
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
    read = {name: read_nifti(path, notes=notes) for name, path in subject.paths.items()}
    mask = read_nifti(brain_mask, allow_constant=True)[0] if brain_mask else None
    return Scans(
        {name: volume for name, (volume, _) in read.items()},
        {name: grid for name, (_, grid) in read.items()},
        mask,
        notes,
        time.perf_counter() - started,
    )


def describe_inputs(files: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Return name and SHA-256 of each input file for the sidecar.

    The folder is left out: it may say more about a person than a result should carry.
    """
    return {key: {"file": path.name, "sha256": sha256_of_file(path)} for key, path in files.items()}
