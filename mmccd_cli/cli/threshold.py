"""`mmccd threshold`: a new mask from a map that is there, without inference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.console import Console, as_mmccd_error, command
from mmccd_cli.errors import MmccdError, SomeSubjectsFailed, UsageError

if TYPE_CHECKING:
    from mmccd_cli.anomaly.mask import MaskOptions
    from mmccd_cli.cohort.threshold import MaskJob

FILLS = ("none", "volume", "planes")


@command
def threshold(
    maps: Annotated[
        list[Path],
        typer.Argument(
            metavar="MAP...",
            help="Anomaly maps that mmccd wrote, each with its .json beside it. Masks among them "
            "are left out.",
            show_default=False,
        ),
    ],
    value: Annotated[
        str,
        typer.Option(
            "--threshold",
            metavar="auto|VALUE",
            help="Value of the map above which a voxel belongs to the mask; auto as calibrated.",
        ),
    ] = "auto",
    min_lesion: Annotated[
        str, typer.Option(metavar="auto|VOLUME", help="Smallest lesion: 10mm3, 0.01ml.")
    ] = "auto",
    min_fraction: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of the largest lesion's volume that a lesion needs."
        ),
    ] = None,
    fill_holes: Annotated[
        str | None,
        typer.Option(
            metavar="none|volume|planes",
            help="Fill what the mask encloses: nothing, in three dimensions, or in any plane.",
        ),
    ] = None,
    seeds: Annotated[
        bool,
        typer.Option(
            "--seeds/--no-seeds",
            help="Keep only lesions that exceed a second, higher threshold somewhere.",
        ),
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="MASK.nii.gz",
            help="New mask of one map, with MASK.json beside it. By default the map's own mask and "
            "record are replaced, which needs --force.",
        ),
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Make mask and lesion table anew from a map: seconds instead of minutes.

    The mask equals, voxel by voxel, the one of a new run with the same --threshold and
    --min-lesion. What is not given is as calibrated, whatever the mask was made with before.
    """
    console = Console(-1 if quiet else verbose)
    if fill_holes is not None and fill_holes not in FILLS:
        raise UsageError(
            f"--fill-holes {fill_holes} is not known.", next_step=f"Use {', '.join(FILLS)}."
        )
    with console.computing():
        from mmccd_cli.anomaly.mask import MaskOptions
        from mmccd_cli.cohort.threshold import plan_masks

        chosen = MaskOptions(
            threshold=options.parse_threshold(value),
            min_lesion_mm3=options.parse_volume_mm3(min_lesion),
            min_fraction_of_largest=min_fraction,
            min_seed_mm3=None if seeds else 0.0,
            fill_holes=fill_holes,  # type: ignore[arg-type]  # checked above
        )
        jobs = plan_masks(maps, out, force=force)
        _Run(console, chosen, force, as_json, many=len(maps) > 1).execute(jobs)


@dataclass
class _Run:
    console: Console
    chosen: MaskOptions
    force: bool
    as_json: bool
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
        if self.as_json:
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
