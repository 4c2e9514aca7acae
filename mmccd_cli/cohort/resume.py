"""What an earlier run left: whether it can stay, or its map can give the mask that is asked for."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli import __version__
from mmccd_cli.anomaly.components import Lesion
from mmccd_cli.anomaly.mask import MASK_SETTINGS, MaskOptions, cut
from mmccd_cli.cohort.jobs import Job
from mmccd_cli.config import ScoreConfig, from_dict, to_dict
from mmccd_cli.errors import DataError
from mmccd_cli.files import sha256_of_file
from mmccd_cli.inputs.volume import NiftiGrid, Volume, read_nifti
from mmccd_cli.outputs.extras import MAKERS
from mmccd_cli.outputs.images import MAP_DESCRIPTION, plain

_NIFTI_DESCRIPTION = slice(148, 228)


@dataclass(frozen=True)
class Earlier:
    """A result of an earlier run whose map is the one that is asked for.

    Attributes:
        record: What its sidecar says.
        is_current: Whether mask and all else are as asked for, too.
    """

    record: dict[str, Any]
    is_current: bool


def find_earlier(
    job: Job,
    bundle_sha256: str,
    requested: Mapping[str, Any],
    inputs: Mapping[str, Any],
) -> Earlier | None:
    """Compare what lies at a job's outputs with what is asked for.

    Args:
        job: The job.
        bundle_sha256: Hash of the weights.
        requested: The settings, as `RunSettings.describe` returns them.
        inputs: The inputs' hashes, as `describe_inputs` returns them.

    Returns:
        The earlier result; None where its map has other inputs, weights or settings, is not the
        one that its sidecar speaks of, or cannot give all that is asked for.
    """
    record = read_record(job.outputs.sidecar)
    if record is None or record.get("status") != "done" or not job.outputs.map.is_file():
        return None
    earlier, now = record.get("settings", {}).get("requested", {}), plain(requested)
    hashes = record.get("output_sha256", {})
    same_map = (
        record.get("bundle", {}).get("sha256") == bundle_sha256
        and _without_mask(earlier) == _without_mask(now)
        and record.get("inputs") == plain(inputs)
        and hashes.get("map") == sha256_of_file(job.outputs.map)
    )
    if not same_map:
        return None
    current = (
        earlier == now
        and set(job.extras) <= set(record.get("outputs", {}))
        and all(path.is_file() for path in job.targets.values())
        and hashes.get("mask") == sha256_of_file(job.outputs.mask)
    )
    if current:
        return Earlier(record, True)
    remakes = all(not MAKERS[kind].needs_prepared for kind in job.extras)
    if not remakes or (job.extras and now["space"] != "native"):
        return None
    return Earlier(record, False)


def is_ours(job: Job) -> bool:
    """Tell whether what lies at the outputs' places was made by mmccd, so may be replaced."""
    if read_record(job.outputs.sidecar) is not None:
        return True
    path = job.outputs.map
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            header = stream.read(_NIFTI_DESCRIPTION.stop)
    except (OSError, EOFError, zlib.error):
        return False
    return header[_NIFTI_DESCRIPTION].startswith(MAP_DESCRIPTION.encode())


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a sidecar; None where it is missing or was not written by mmccd."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "record_version" in record else None


def score_of_record(record: Mapping[str, Any], options: MaskOptions) -> tuple[float, ScoreConfig]:
    """Return the scan's threshold and the score's settings, with new choices for the mask.

    What the new choices leave open is as the bundle's calibration has it, not as an earlier choice
    had it: the same command gives the same mask, whatever was asked for before.

    Raises:
        DataError: The record lacks them.
    """
    try:
        settings = record["settings"]
        calibrated = from_dict(ScoreConfig, settings["score"] | settings["calibrated_mask"])
        return float(settings["score_threshold_of_this_scan"]), options.applied_to(calibrated)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            "The record of the map lacks the settings that its mask needs.",
            cause=f"It was changed, or written by another version ({error!r}).",
            next_step="Segment the subject anew: mmccd segment ... --force",
        ) from error


@dataclass(frozen=True, eq=False)
class NewMask:
    """A mask that was made from a map that is there.

    Attributes:
        volume: The map.
        grid: Its grid.
        mask: (I, J, K) bool.
        lesions: Its components, the largest first.
        score: The score's settings with the choices that it was made with.
    """

    volume: Volume
    grid: NiftiGrid
    mask: NDArray[np.bool_]
    lesions: list[Lesion]
    score: ScoreConfig


def make_new_mask(path: Path, record: Mapping[str, Any], options: MaskOptions) -> NewMask:
    """Make the mask of a map anew.

    Args:
        path: The map.
        record: Its record.
        options: Threshold and cleaning.

    Raises:
        DataError: The map cannot be read, or the record lacks what is needed.
    """
    volume, grid = read_nifti(path, allow_constant=True)
    scan_threshold, score = score_of_record(record, options)
    mask, lesions = cut(volume.data, volume.affine, scan_threshold, score)
    return NewMask(volume, grid, mask, lesions, score)


def with_new_mask(
    record: Mapping[str, Any],
    new: NewMask,
    *,
    requested: Mapping[str, Any],
    outputs: Mapping[str, str],
) -> dict[str, Any]:
    """Return the record of a result whose mask was made anew from its map."""
    made_by = record["versions"]["mmccd"]
    notes = [note for note in record["warnings"] if not note.startswith(_OLDER_MAP)]
    if made_by != __version__:
        notes.append(f"{_OLDER_MAP} {made_by}; its mask was made anew by {__version__}.")
    volume = sum(lesion.volume_ml for lesion in new.lesions)
    return {
        **record,
        "lesion_volume_ml": round(volume, 6),
        "threshold": new.score.threshold,
        "lesions": plain(new.lesions),
        "outputs": dict(outputs),
        "settings": {
            **record["settings"],
            "score": to_dict(new.score),
            "requested": plain(requested),
        },
        "warnings": notes,
    }


_OLDER_MAP = "The map was made by mmccd"


def _without_mask(requested: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in requested.items() if name not in MASK_SETTINGS}
