"""A new mask from a map that is there, with all files and the record that go with it.

Neither networks nor scans are needed: the mask is a function of the map as it was written and of
its record. `mmccd threshold` and `--resume` both make it here, so that both write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmccd_cli import __version__
from mmccd_cli.anomaly.mask import (
    MASK_SETTINGS,
    MaskFindings,
    MaskOptions,
    mask_and_lesions,
)
from mmccd_cli.config import ScoreConfig, from_dict, to_dict
from mmccd_cli.errors import DataError
from mmccd_cli.inputs.nifti import NiftiGrid, read_nifti
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.outputs.bids import BIDS_OUTPUTS, BidsMask
from mmccd_cli.outputs.images import encode_mask
from mmccd_cli.outputs.lesions import (
    describe_mask,
    is_mask_warning,
    lesion_table,
    mask_warnings,
)
from mmccd_cli.outputs.record import jsonable

_OLDER_MAP = "The map was made by mmccd"
_WITHOUT_MASK = "dicom_map"
_TABLE = ("lesions", "left_out", "left_out_small")
_WORDS_OF_SETTINGS = (
    ("threshold", "threshold", ""),
    ("min_lesion_mm3", "smallest lesion", " mm3"),
    ("min_confidence", "least confidence", ""),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class NewMask:
    """A mask that was made from a map that is there.

    Contents are the bytes of mask, table and files of BIDS; the record has the hash of the mask.
    """

    volume: Volume
    grid: NiftiGrid
    found: MaskFindings
    contents: dict[str, bytes]
    record: dict[str, Any]


def remask(
    outputs: Mapping[str, Path],
    record: Mapping[str, Any],
    options: MaskOptions,
    *,
    spatial_reference: str | None = None,
) -> NewMask:
    """Make the mask of a map anew, and what follows from it; nothing is written.

    Args:
        outputs: Kind of output -> file: "map", which is read, "mask", "sidecar", and all else that
            the new record is to name.
        record: The record of the map; see `mmccd_cli.outputs.record`.
        options: Threshold and cleaning; what is None is as calibrated.
        spatial_reference: BIDS URI of the scan whose grid it is; needed where `outputs` names files
            of BIDS.

    Raises:
        DataError: The map cannot be read, or the record lacks what is needed.
    """
    volume, grid = read_nifti(outputs["map"], allow_constant=True)
    of_scan, score = score_of_record(record, options)
    found = mask_and_lesions(volume.data, score, affine=volume.affine, scan_threshold=of_scan)
    contents = {"mask": encode_mask(outputs["mask"], found.mask, grid)}
    if "table" in outputs:
        contents["table"] = lesion_table(found, settings=record["settings"])
    if of_bids := [kind for kind in outputs if kind in BIDS_OUTPUTS]:
        if not isinstance(spatial_reference, str):
            raise DataError(
                f"{outputs['sidecar']} does not say which scan's grid the map has.",
                cause="Its SpatialReference is missing, or is no text.",
                next_step="Segment the subject anew: mmccd segment ... --force",
            )
        shown = BidsMask(
            map=outputs["map"],
            mask=outputs["mask"],
            voxels=found.mask,
            lesions=found.lesions,
            grid=grid,
            threshold=score.threshold,
            spatial_reference=spatial_reference,
            settings=record["settings"],
        )
        contents |= {kind: BIDS_OUTPUTS[kind](shown) for kind in of_bids}
    sha256 = hashlib.sha256(contents["mask"]).hexdigest()
    asked = record["settings"]["requested"].items()
    kept = {name: value for name, value in asked if name not in MASK_SETTINGS}
    changed = {
        **record,
        **describe_mask(found, threshold=score.threshold, settings=record["settings"]),
        "outputs": {kind: path.name for kind, path in outputs.items()},
        "output_sha256": {**record["output_sha256"], "mask": sha256},
        "settings": {
            **record["settings"],
            "score": to_dict(score),
            "requested": kept | options.describe(),
        },
        "warnings": [
            *(text for text in record["warnings"] if not _is_renewed(text)),
            *mask_warnings(found, brain_ml=record.get("brain_volume_ml")),
        ],
        "notes": _notes(record),
    }
    return NewMask(
        volume=volume,
        grid=grid,
        found=found,
        contents=contents,
        record=with_kept(jsonable(changed), record),
    )


def describe_stale(record: Mapping[str, Any], folder: Path = Path()) -> list[str]:
    """Say which files of a result show a mask from before the record's, and how to draw them anew.

    Args:
        record: The record of the result.
        folder: Where it lies, for the line that draws them.

    Returns:
        A sentence on all of them; none where there are none.
    """
    stale: dict[str, dict[str, Any]] = record.get("stale_outputs", {})
    if not stale:
        return []
    names = " and ".join(old["file"] for old in stale.values())
    changes = {_what_changed(old, record) for old in stale.values()}
    how = f" ({changes.pop()})" if len(changes) == 1 and "" not in changes else ""
    shows, is_drawn = ("show", "they are") if len(stale) > 1 else ("shows", "it is")
    return [
        f"{names} still {shows} the mask of before{how}: {is_drawn} drawn from the scans, by "
        f"{_line_that_draws(stale, record, folder)}"
    ]


def _what_changed(old: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Say in which settings the mask that a stale file shows is another than the record's."""
    now = {**record["settings"]["score"], "threshold": record["threshold"]}
    changed = [
        f"{word} {old[name]:g}, now {now[name]:g}{unit}"
        for name, word, unit in _WORDS_OF_SETTINGS
        if isinstance(old.get(name), int | float) and old[name] != now.get(name, old[name])
    ]
    return "; ".join(changed)


def _line_that_draws(
    stale: Mapping[str, Mapping[str, Any]], record: Mapping[str, Any], folder: Path
) -> str:
    """Return the line that makes files of a result anew with the settings of its mask."""
    outputs = record["outputs"]
    like = f"--like {shlex.quote(str(folder / outputs['sidecar']))}"
    options = {kind: f"--{kind.replace('_', '-')}" for kind in stale}
    if any(kind in BIDS_OUTPUTS for kind in outputs):
        flags = " ".join(options.values())
        labels = re.match(r"sub-([A-Za-z0-9+]+)(?:_ses-([A-Za-z0-9+]+))?", outputs["map"])
        who = f" --participant-label {labels[1]}" if labels else ""
        who += f" --session-id {labels[2]}" if labels and labels[2] else ""
        return f"mmccd bids BIDS_DIR OUT participant{who} {like} {flags} --force"
    files = [f"--out {shlex.quote(str(folder / outputs['map']))}"]
    for kind, option in options.items():
        beside = folder / (name := stale[kind]["file"])
        files.append(f"{option} {shlex.quote(str(beside) if beside.is_file() else name)}")
    return f"mmccd segment SUBJECT {like} {' '.join(files)} --force"


def with_kept(changed: dict[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a changed record which files of the one before were not made anew.

    Those that show the same map, mask and table go on to be outputs, all others are stale.

    Args:
        changed: The record of what replaces a result.
        record: The record of the result that is replaced.
    """
    score = record["settings"]["score"]
    of_record = {
        "threshold": record.get("threshold"),
        **{name: score[name] for name in ("min_lesion_mm3", "min_confidence") if name in score},
        "shown_sha256": _shown(record),
    }
    before = {kind: {"file": name, **of_record} for kind, name in record.get("outputs", {}).items()}
    known = before | record.get("stale_outputs", {})
    kept = {kind: old for kind, old in known.items() if kind not in changed["outputs"]}
    now = _shown(changed)
    same_map = changed["output_sha256"].get("map") == record["output_sha256"].get("map")
    true = {
        kind: old["file"]
        for kind, old in kept.items()
        if same_map and (kind == _WITHOUT_MASK or old.get("shown_sha256") == now)
    }
    stale = {kind: old for kind, old in kept.items() if kind not in true}
    return changed | {"outputs": changed["outputs"] | true, "stale_outputs": stale}


def _shown(record: Mapping[str, Any]) -> str:
    """Return a hash over the mask and the lesion table of a record."""

    def rounded(part: Any) -> Any:  # as earlier versions did not
        if isinstance(part, list):
            return [{**row, "volume_ml": round(row["volume_ml"], 6)} for row in part]
        return part

    shown = [record["output_sha256"].get("mask"), *(rounded(record.get(name)) for name in _TABLE)]
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def _is_renewed(text: str) -> bool:
    """Tell whether a sentence is one that each new mask says anew."""
    return is_mask_warning(text) or text.startswith(_OLDER_MAP)


def _notes(record: Mapping[str, Any]) -> list[str]:
    """Return a record's notes, and whether its map is older."""
    made_by = record["versions"]["mmccd"]
    notes = [text for text in record.get("notes", ()) if not _is_renewed(text)]
    if made_by != __version__:
        notes.append(f"{_OLDER_MAP} {made_by}; its mask was made anew by {__version__}.")
    return notes


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
