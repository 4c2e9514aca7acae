"""`mmccd segment`: from scans to anomaly map, mask and sidecar."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import JsonConsole, switch
from mmccd_cli.cli.lists import read_list
from mmccd_cli.cli.options import INPUT, input_option, method_option, output_option
from mmccd_cli.cli.outcomes import choose_shard, recorded, run_cohort
from mmccd_cli.cli.start import begin_imports
from mmccd_cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class SubjectOptions:
    """Which subjects are meant."""

    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SUBJECT",
            help="Folder with a subject's FLAIR, T2w and T1w, or any of them, as NIfTI files or "
            "DICOM series; or a zip of DICOM series. A single - reads them from stdin, one a line.",
            show_default=False,
        ),
    ] = None
    t1: Annotated[Path | None, input_option(help="T1w without contrast agent.")] = None
    t2: Annotated[Path | None, input_option(help="T2w.")] = None
    flair: Annotated[Path | None, input_option(help="FLAIR.")] = None
    subjects_from: Annotated[
        Path | None,
        input_option("--from", help="File with folders, one a line."),
    ] = None
    null: Annotated[
        bool,
        switch("--null", help="Folders end with NUL (find -print0).", panel=INPUT),
    ] = False

    def folders(self) -> list[Path]:
        """Collect the subjects' folders from arguments, stdin and a list.

        Raises:
            UsageError: The list is empty, or there is none; see also `read_list`.
        """
        words = self.subjects or []
        if self.null and "-" not in words and self.subjects_from is None:
            raise UsageError(
                "--null says how a list ends its lines, but there is no list.",
                next_step="Give - for a list on stdin, or --from FILE.",
            )
        folders: list[Path] = []
        for word in words:
            folders += read_list(None, null=self.null) if word == "-" else [Path(word)]
        if self.subjects_from is not None:
            folders += read_list(self.subjects_from, null=self.null)
        if not folders and ("-" in words or self.subjects_from is not None):
            raise UsageError(
                "The list of subjects is empty.", next_step="Check what should fill it."
            )
        return folders

    def files(self) -> dict[str, Path]:
        """Return the files that were given instead of a folder, by modality."""
        given = {"FLAIR": self.flair, "T2w": self.t2, "T1w": self.t1}
        return {name: path for name, path in given.items() if path is not None}


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where results go, and what is written beside them."""

    out: Annotated[
        Path | None,
        output_option(
            help="Anomaly map of one subject, .nii.gz or .nii. Beside map.nii.gz come "
            "map_mask.nii.gz, map.json and map_lesions.tsv."
        ),
    ] = None
    out_dir: Annotated[
        Path | None,
        output_option(
            help="Folder for any number of subjects: ID.nii.gz, ID_mask.nii.gz, ID.json and "
            "ID_lesions.tsv each."
        ),
    ] = None
    bids_out: Annotated[
        Path | None,
        output_option(
            help="Root of BIDS derivatives, instead: sub-ID/anat/sub-ID_..._probseg.nii.gz and "
            "more. See mmccd bids."
        ),
    ] = None
    picture: Annotated[
        Path | None,
        output_option(
            metavar="FILE.png",
            help="Also draw the result in three planes; with --out-dir as ID_FILE.png.",
        ),
    ] = None
    report: Annotated[
        Path | None,
        output_option(
            metavar="FILE.html",
            help="Also write a report with pictures, checks and a viewer, all in one file; with "
            "--out-dir as ID_FILE.html.",
        ),
    ] = None
    report_dir: Annotated[
        Path | None,
        output_option(
            metavar="DIR",
            help="Write the reports into a folder of their own, and an index.html that sorts them.",
        ),
    ] = None
    dicom_seg: Annotated[
        Path | None,
        output_option(
            metavar="FILE.dcm",
            help="Also write the mask as DICOM SEG, for input of DICOM; with --out-dir as "
            "ID_FILE.dcm.",
        ),
    ] = None
    dicom_map: Annotated[
        Path | None,
        output_option(metavar="FILE.dcm", help="Also write the map as fractional DICOM SEG."),
    ] = None
    space: Annotated[
        Literal["native", "template"],
        output_option(
            metavar="native|template",
            help="Grid of map and mask: the reference scan's, or the template's.",
        ),
    ] = "native"

    def extras(self) -> dict[str, Path]:
        """Return what is written beside map, mask and sidecar: kind -> path."""
        kinds = ("picture", "report", "dicom_seg", "dicom_map")
        return {kind: path for kind in kinds if (path := getattr(self, kind)) is not None}


@command
def segment(
    *,
    given: SubjectOptions,
    wanted: OutputOptions,
    run: options.RunOptions,
    like: options.SettingsOptions,
    sampling: options.StepOptions,
    mask: options.MaskChoice,
    skull_strip: Annotated[
        str,
        method_option(
            metavar="auto|never|METHOD|MASK.nii.gz",
            help="auto strips what is not stripped; MASK.nii.gz is a brain mask in the space of "
            "the reference (FLAIR, else T2w, else T1w).",
        ),
    ] = "auto",
    shard: Annotated[
        str,
        typer.Option(
            metavar="auto|I/N|off",
            help="Do the I-th of N shares of the subjects; auto asks the variables of a SLURM "
            "array.",
        ),
    ] = "auto",
    model: options.ModelOptions,
    console: JsonConsole,
) -> None:
    """Segment subjects: an anomaly map, a mask, a table of lesions and a record each.

    One subject with --out, any number with --out-dir. Map and mask lie on the grid of the
    reference scan: FLAIR, else T2w, else T1w.

    Examples:
      mmccd segment SUBJECT --out map.nii.gz --report report.html
      mmccd segment --flair f.nii.gz --t1 t1.nii.gz --out map.nii.gz
      mmccd segment data/*/ --out-dir out --resume
      mmccd segment SUBJECT --out map.nii.gz --dry-run
    """
    begin_imports()
    from mmccd_cli.cohort.jobs import RunSettings
    from mmccd_cli.cohort.plan import SubjectSelection

    strip, brain_mask = options.parse_skull_strip(skull_strip)
    folders = given.folders()
    selection = SubjectSelection(
        folders=folders,
        files=given.files(),
        out=wanted.out,
        out_dir=wanted.out_dir,
        bids_out=wanted.bids_out,
        extras=wanted.extras(),
        brain_mask=brain_mask,
        shard=choose_shard(shard, folders, console),
        report_dir=wanted.report_dir,
    )
    with recorded(folders or list(given.files().values()), console):
        cohort = selection.plan()
    run_cohort(
        cohort,
        like.loader(model.for_workers() if run.scheduler else model, sampling),
        settings=RunSettings(**asdict(mask), skull_strip=strip, space=wanted.space),
        run=run,
        console=console,
        many=wanted.out is None,
    )
