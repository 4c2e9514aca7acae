"""A new mask from a map that is there, and the record that goes with it; no network needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli import __version__
from mmccd_cli.anomaly.mask import Lesion, MaskOptions, mask_and_lesions
from mmccd_cli.config import ScoreConfig, from_dict, to_dict
from mmccd_cli.errors import DataError
from mmccd_cli.inputs.nifti import NiftiGrid, read_nifti
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.outputs.images import plain

_OLDER_MAP = "The map was made by mmccd"


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
    mask, lesions = mask_and_lesions(
        volume.data, score, affine=volume.affine, scan_threshold=scan_threshold
    )
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
