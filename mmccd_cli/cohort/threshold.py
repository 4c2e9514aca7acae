"""New masks from maps that are there, each with its record; neither weights nor torch needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmccd_cli.anomaly.mask import MaskOptions
from mmccd_cli.cohort.derivative_outcomes import row_of_result
from mmccd_cli.cohort.results import sidecar_of
from mmccd_cli.cohort.summary import update_summaries
from mmccd_cli.errors import UsageError
from mmccd_cli.files import refuse_to_overwrite, resolved
from mmccd_cli.inputs.bids import bids_root
from mmccd_cli.outputs.bids import outputs_beside
from mmccd_cli.outputs.images import CORE_OUTPUTS, output_paths, write_outputs
from mmccd_cli.outputs.record import Outcome, encode_sidecar
from mmccd_cli.outputs.remask import remask


@dataclass(frozen=True)
class MaskJob:
    """One map and where its new mask goes.

    Attributes:
        files: "map", and the new "mask" and "sidecar", and "table" except in BIDS.
        record: The record that the map has.
    """

    files: dict[str, Path]
    record: Path

    @property
    def in_place(self) -> bool:
        """Whether the map's own mask is replaced."""
        return self.files["sidecar"] == self.record

    @property
    def inputs(self) -> list[Path]:
        """What must not be overwritten."""
        return [self.files["map"], *([] if self.in_place else [self.record])]


def plan_masks(maps: Sequence[Path], out: Path | None = None, *, force: bool) -> list[MaskJob]:
    """Name the new masks, and refuse what would overwrite something.

    Args:
        maps: Anomaly maps; masks of the same names among them are left out.
        out: The new mask of the only map; None for the one beside each map.
        force: Whether existing masks and records may be replaced.

    Raises:
        UsageError: Two maps for one mask, or something exists that must stay.
    """
    own = {path: outputs_beside(path) for path in maps}
    masks = {paths["mask"] for paths in own.values()}
    chosen = [paths for path, paths in own.items() if path not in masks] or list(own.values())
    if out is not None and len(chosen) > 1:
        raise UsageError(
            f"--out names one mask, but there are {len(chosen)} maps.",
            next_step="Leave --out away to replace the masks beside the maps, with --force.",
        )
    jobs = []
    for paths in chosen:
        new = {kind: paths[kind] for kind in CORE_OUTPUTS if kind in paths}
        if out is not None and resolved(out) != resolved(paths["mask"]):  # else it is in place
            new = {**output_paths(out), "map": paths["map"], "mask": out}
        job = MaskJob(new, record=paths["sidecar"])
        written = [path for kind, path in new.items() if kind != "map"]
        refuse_to_overwrite(written, job.inputs, force=force)
        jobs.append(job)
    return jobs


def make_mask(job: MaskJob, options: MaskOptions, *, force: bool = False) -> dict[str, Any]:
    """Make a new mask and write it with its record and table, all or none; return the record.

    Raises:
        DataError: There is no map, no record, or they do not belong together.
        UsageError: Something would be overwritten.
        StorageError: The disk is full.
    """
    map_file = job.files["map"]
    sidecar = sidecar_of(map_file, job.record)
    # Beside another mask nothing is replaced, so nothing is out of date.
    old = sidecar.record if job.in_place else {**sidecar.record, "outputs": {}, "stale_outputs": {}}
    files = outputs_beside(map_file)
    files = {kind: path for kind, path in files.items() if kind in old["outputs"]} | job.files
    reference = sidecar.fields.get("SpatialReference")
    new = remask(files, old, options, spatial_reference=reference)
    contents = {files[kind]: made for kind, made in new.contents.items()}
    contents[files["sidecar"]] = encode_sidecar(new.record, sidecar.fields)
    write_outputs(contents, inputs=job.inputs, force=force)
    if job.in_place:
        update_summaries(map_file.parent, Outcome(new.record["subject"], "done", new.record))
        if sidecar.fields and (root := bids_root(map_file.parent)):
            update_summaries(root, row_of_result(new.record))
    return new.record
