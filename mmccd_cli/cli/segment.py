"""`mmccd segment`: from scans to anomaly map, mask and sidecar."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import JsonConsole
from mmccd_cli.cli.planning import choose_shard, list_folders
from mmccd_cli.cli.running import CohortRun

if TYPE_CHECKING:
    from mmccd_cli.cohort.jobs import RunSettings

INPUT, OUTPUT = "Input", "Output"


@dataclass(frozen=True, kw_only=True)
class _Sampling(options.SamplingOptions):
    """How slices are imagined, down to the single step."""

    method: Annotated[
        Literal["mmccd", "cyclic-unet"] | None,
        typer.Option(
            metavar="mmccd|cyclic-unet",
            help="Instead of the preset's.",
            rich_help_panel=options.METHOD,
        ),
    ] = None
    num_inference_steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="DDIM steps.", rich_help_panel=options.METHOD),
    ] = None
    band_width: Annotated[
        int | None,
        typer.Option(min=1, help="Pixels of a hidden band.", rich_help_panel=options.METHOD),
    ] = None
    band_stride: Annotated[
        int | None,
        typer.Option(min=1, help="Pixels from band to band.", rich_help_panel=options.METHOD),
    ] = None


@command
def segment(
    *,
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SUBJECT",
            help="Folder with a subject's FLAIR, T2w and T1w, or any of them, as NIfTI files or "
            "DICOM series; or a zip of DICOM series. A single - reads them from stdin, one a line.",
            show_default=False,
        ),
    ] = None,
    t1: Annotated[
        Path | None, typer.Option("--t1", help="T1w without contrast agent.", rich_help_panel=INPUT)
    ] = None,
    t2: Annotated[Path | None, typer.Option("--t2", help="T2w.", rich_help_panel=INPUT)] = None,
    flair: Annotated[
        Path | None, typer.Option("--flair", help="FLAIR.", rich_help_panel=INPUT)
    ] = None,
    subjects_from: Annotated[
        Path | None,
        typer.Option("--from", help="File with folders, one a line.", rich_help_panel=INPUT),
    ] = None,
    null: Annotated[
        bool,
        typer.Option("--null", help="Folders end with NUL (find -print0).", rich_help_panel=INPUT),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Anomaly map of one subject, .nii.gz or .nii. Beside map.nii.gz come "
            "map_mask.nii.gz and map.json.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for any number of subjects: ID.nii.gz, ID_mask.nii.gz and ID.json each.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    bids_out: Annotated[
        Path | None,
        typer.Option(
            help="Instead, root of BIDS derivatives: "
            "sub-ID/anat/sub-ID_space-orig_desc-anomaly_probseg.nii.gz and more. See mmccd bids.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Also draw the result in three planes; with --out-dir as ID_FILE.png.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Also write a report with pictures, checks and a viewer, all in one file; with "
            "--out-dir as ID_FILE.html.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    report_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write the reports into a folder of their own, and an index.html that sorts them.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    dicom_seg: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.dcm",
            help="Also write the mask as DICOM SEG, for input of DICOM; with --out-dir as "
            "ID_FILE.dcm.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    dicom_map: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.dcm",
            help="Also write the map as fractional DICOM SEG.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    policy: options.RunPolicy,
    sampling: _Sampling,
    mask: options.MaskChoice,
    skull_strip: Annotated[
        str,
        typer.Option(
            metavar="auto|never|METHOD|MASK.nii.gz",
            help="auto strips what is not stripped; MASK.nii.gz is a brain mask in the space of "
            "the reference (FLAIR, else T2w, else T1w).",
            rich_help_panel=options.METHOD,
        ),
    ] = "auto",
    space: Annotated[
        Literal["native", "template"],
        typer.Option(
            metavar="native|template",
            help="Grid of map and mask: the reference scan's, or the template's.",
            rich_help_panel=OUTPUT,
        ),
    ] = "native",
    shard: Annotated[
        str,
        typer.Option(
            metavar="auto|I/N|off",
            help="Do the I-th of N shares of the subjects; auto asks the variables of a SLURM "
            "array.",
        ),
    ] = "auto",
    model: options.ModelOptions,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="auto|N",
            parser=options.count_or_none,
            show_default="auto",
            help="Subjects that are read and registered in threads while one is on the device; "
            "each takes up to 1 GB. 0 for none.",
            rich_help_panel=options.COMPUTING,
        ),
    ] = None,
    console: JsonConsole,
) -> None:
    """Segment what is anomalous in brain MRI: an anomaly map, a mask, and a record as JSON.

    One subject with --out, any number with --out-dir.
    """
    strip, brain_mask = options.parse_skull_strip(skull_strip)
    settings = _settings(mask, strip, space)
    folders = list_folders(subjects or [], subjects_from, null)
    wanted = {
        "picture": picture,
        "report": report,
        "dicom_seg": dicom_seg,
        "dicom_map": dicom_map,
    }
    chosen = choose_shard(shard, folders, console)
    extras = {kind: path for kind, path in wanted.items() if path is not None}
    given = {"FLAIR": flair, "T2w": t2, "T1w": t1}
    from mmccd_cli.cohort.plan import RunPolicy, SubjectSelection

    selection = SubjectSelection(
        folders=folders,
        files={name: path for name, path in given.items() if path is not None},
        out=out,
        out_dir=out_dir,
        bids_out=bids_out,
        extras=extras,
        brain_mask=brain_mask,
        shard=chosen,
        report_dir=report_dir,
    )
    CohortRun(
        console=console,
        cohort=selection.plan(),
        settings=settings,
        policy=RunPolicy(force=policy.force, resume=policy.resume, workers=workers),
        load=partial(model.load, **sampling.describe()),
        many=out is None,
    ).execute(dry_run=policy.dry_run)


def _settings(
    mask: options.MaskChoice, skull_strip: str, space: Literal["native", "template"]
) -> RunSettings:
    from mmccd_cli.cohort.jobs import RunSettings

    return RunSettings(
        threshold=mask.threshold,
        min_lesion_mm3=mask.min_lesion_mm3,
        skull_strip=skull_strip,
        space=space,
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("segment")(segment)
