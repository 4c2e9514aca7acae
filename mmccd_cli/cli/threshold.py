"""`mmccd threshold`: a new mask from a map that is there, without inference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import JsonConsole
from mmccd_cli.errors import MmccdError, SomeSubjectsFailed, as_mmccd_error

if TYPE_CHECKING:
    from mmccd_cli.anomaly.mask import MaskOptions
    from mmccd_cli.cohort.threshold import MaskJob


@command
def threshold(
    *,
    maps: Annotated[
        list[Path],
        typer.Argument(
            metavar="MAP...",
            help="Anomaly maps that mmccd wrote, each with its .json beside it. Masks among them "
            "are left out.",
            show_default=False,
        ),
    ],
    mask: options.MaskChoice,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="MASK.nii.gz",
            help="New mask of one map, with MASK.json beside it. By default the map's own mask and "
            "record are replaced, which needs --force.",
        ),
    ] = None,
    force: options.Force = False,
    console: JsonConsole,
) -> None:
    """Make mask and lesion table anew from a map: seconds instead of minutes.

    The mask equals, voxel by voxel, the one of a new run with the same --threshold and
    --min-lesion. What is not given is as calibrated, whatever the mask was made with before.
    """
    from mmccd_cli.anomaly.mask import MaskOptions
    from mmccd_cli.cohort.threshold import plan_masks

    chosen = MaskOptions(threshold=mask.threshold, min_lesion_mm3=mask.min_lesion)
    jobs = plan_masks(maps, out, force=force)
    _Run(console, chosen, force, many=len(maps) > 1).execute(jobs)


@dataclass
class _Run:
    console: JsonConsole
    chosen: MaskOptions
    force: bool
    many: bool

    def execute(self, jobs: list[MaskJob]) -> None:
        failed: list[tuple[str, str]] = []
        for job in jobs:
            try:
                self._do(job)
            except (MmccdError, OSError) as error:
                known = as_mmccd_error(error)
                if not self.many:
                    raise known from error
                self.console.error(known, about=str(job.map))
                failed.append((str(job.map), known.message))
        if failed:
            self.console.table(failed)
            raise typer.Exit(SomeSubjectsFailed.exit_code)

    def _do(self, job: MaskJob) -> None:
        from mmccd_cli.cohort.threshold import make_mask
        from mmccd_cli.outputs.images import to_json

        record, stale = make_mask(job, self.chosen, force=self.force)
        if self.console.as_json:
            self.console.result(to_json(record))
        number, volume = len(record["lesions"]), record["lesion_volume_ml"]
        lesions = f"{number} lesion{'' if number == 1 else 's'}, {volume:.2f} ml"
        self.console.info(
            f"{record['subject']}: {lesions} above {record['threshold']:g}, written to {job.mask}"
        )
        for name in stale:
            self.console.note(f"{name} still shows the mask of before")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("threshold")(threshold)
