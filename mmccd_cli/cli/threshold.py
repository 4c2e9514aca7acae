"""`mmccd threshold`: a new mask from a map that is there, without inference."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import JsonConsole, left_out_of, lesions_of
from mmccd_cli.errors import MmccdError, SomeSubjectsFailed, as_mmccd_error


@command
def threshold(
    *,
    maps: Annotated[
        list[Path],
        typer.Argument(
            metavar="MAP",
            help="Anomaly maps that mmccd wrote, each with its .json beside it. Masks among them "
            "are left out.",
            show_default=False,
        ),
    ],
    like: options.Like = None,
    mask: options.MaskChoice,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="MASK.nii.gz",
            help="New mask of one map, with MASK.json and MASK_lesions.tsv beside it. By default "
            "the map's own mask, record and table are replaced, which needs --force.",
        ),
    ] = None,
    force: options.Force = False,
    console: JsonConsole,
) -> None:
    """Make mask and lesion table anew from a map, in about a second.

    The mask equals, voxel by voxel, the one of a new run with the same --threshold,
    --min-lesion and --min-confidence. What is not given is as calibrated, whatever the mask was
    made with before.

    Examples:
      mmccd threshold out/*.nii.gz --threshold 0.7 --force
      mmccd threshold map.nii.gz --threshold 0.7 --out strict.nii.gz
      mmccd threshold map.nii.gz --min-confidence 0.2 --out more.nii.gz
    """
    del like  # its settings are the defaults of all others
    from mmccd_cli.anomaly.mask import MaskOptions
    from mmccd_cli.cohort.threshold import make_mask, plan_masks
    from mmccd_cli.outputs.remask import describe_stale

    failed: list[tuple[str, str]] = []
    options = MaskOptions(**asdict(mask))
    jobs = plan_masks(maps, out, force=force)
    for job in jobs:
        try:
            record = make_mask(job, options, force=force)
        except (MmccdError, OSError) as error:
            if len(jobs) == 1:
                raise
            known = as_mmccd_error(error)
            console.error(known, about=str(job.files["map"]))
            failed.append((str(job.files["map"]), known.message))
            continue
        console.record(record)
        console.info(
            f"{record['subject']}: {lesions_of(record)} above {record['threshold']:g}, "
            f"written to {job.files['mask']}{left_out_of(record)}"
        )
        for sentence in describe_stale(record, job.files["sidecar"].parent):
            console.warning(sentence)
    if failed:
        console.table(failed)
        raise typer.Exit(SomeSubjectsFailed.exit_code)
