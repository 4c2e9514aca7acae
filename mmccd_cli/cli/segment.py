"""`mmccd segment`: from scans to anomaly map, mask and sidecar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.console import Console, Progress, as_mmccd_error, command
from mmccd_cli.cli.loading import Loading
from mmccd_cli.errors import MmccdError, SomeSubjectsFailed, UsageError

if TYPE_CHECKING:
    from mmccd_cli.cohort import Job, Outcome, RunSettings

INPUT, OUTPUT = "Input", "Output"


@command
def segment(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SUBJECT",
            help="Folder with a subject's FLAIR, T2w and T1w, or any of them. "
            "A single - reads folders from stdin, one a line.",
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
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Also draw the result in three planes; with --out-dir as ID_FILE.png.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: options.Force = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Skip subjects whose result has the same inputs, weights and settings."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    preset: options.Preset = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="mmccd|cyclic-unet",
            help="Instead of the preset's.",
            rich_help_panel=options.METHOD,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="DDIM steps.", rich_help_panel=options.METHOD)
    ] = None,
    band_width: Annotated[
        int | None,
        typer.Option(min=1, help="Pixels of a hidden band.", rich_help_panel=options.METHOD),
    ] = None,
    band_stride: Annotated[
        int | None,
        typer.Option(min=1, help="Pixels from band to band.", rich_help_panel=options.METHOD),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of all that is random.", rich_help_panel=options.METHOD),
    ] = None,
    threshold: Annotated[
        str,
        typer.Option(
            metavar="auto|VALUE",
            help="Value of the map above which a voxel belongs to the mask; auto as calibrated.",
            rich_help_panel=options.METHOD,
        ),
    ] = "auto",
    min_lesion: Annotated[
        str,
        typer.Option(
            metavar="auto|VOLUME",
            help="Smallest lesion of the mask: 10mm3, 0.01ml.",
            rich_help_panel=options.METHOD,
        ),
    ] = "auto",
    skull_strip: Annotated[
        str,
        typer.Option(
            metavar="auto|never|METHOD|MASK.nii.gz",
            help="auto strips what is not stripped; MASK.nii.gz is a brain mask in the space of "
            "the reference (FLAIR, else T2w, else T1w).",
            rich_help_panel=options.METHOD,
        ),
    ] = "auto",
    weights: options.Weights = None,
    offline: options.Offline = False,
    device: options.Device = "auto",
    batch_size: options.BatchSize = "auto",
    threads: options.Threads = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Segment what is anomalous in brain MRI: an anomaly map, a mask, and a record as JSON.

    One subject with --out, any number with --out-dir.
    """
    console = Console(-1 if quiet else verbose)
    changes = {
        "num_inference_steps": steps,
        "band_width": band_width,
        "band_stride": band_stride,
        "seed": seed,
    }
    loading = Loading(weights, offline, device, batch_size, threads, preset, method, changes)
    strip, brain_mask = options.parse_skull_strip(skull_strip)
    settings = _settings(threshold, min_lesion, strip)
    folders = _folders(subjects or [], subjects_from, null)
    with console.computing():
        jobs, failures = _plan(
            folders, {"t1": t1, "t2": t2, "flair": flair}, out, out_dir, picture, brain_mask
        )
        run = _Run(
            console,
            jobs,
            settings,
            loading,
            force=force,
            resume=resume,
            as_json=as_json,
            many=out is None,
        )
        run.check()
        if dry_run:
            run.show_plan(failures)
        else:
            run.execute(failures)


def _folders(subjects: Sequence[str], listed_in: Path | None, null: bool) -> list[Path]:
    """Collect the subjects' folders from arguments, stdin and a list."""
    if null and "-" not in subjects and listed_in is None:
        raise UsageError("--null says how a list ends its lines, but there is no list.")
    folders: list[Path] = []
    for word in subjects:
        folders += _split(sys.stdin.read(), null) if word == "-" else [Path(word)]
    if listed_in is not None:
        folders += _split(listed_in.read_text(encoding="utf-8", errors="surrogateescape"), null)
    if not folders and ("-" in subjects or listed_in is not None):
        raise UsageError("The list of subjects is empty.", next_step="Check what should fill it.")
    return folders


def _split(text: str, null: bool) -> list[Path]:
    lines = text.split("\0") if null else text.splitlines()
    return [Path(line) for line in lines if line.strip()]


def _plan(
    folders: Sequence[Path],
    files: dict[str, Path | None],
    out: Path | None,
    out_dir: Path | None,
    picture: Path | None,
    brain_mask: Path | None,
) -> tuple[list[Job], list[Outcome]]:
    """Find the subjects and name their outputs; see `_refuse_contradictions`."""
    from mmccd_cli.cohort import Job, find_all_subjects, plan_job
    from mmccd_cli.outputs import output_paths
    from mmccd_cli.subjects import find_subject, subject_from_files

    given = {name: path for name, path in files.items() if path is not None}
    _refuse_contradictions(folders, given, out, out_dir, picture, brain_mask)
    if out is not None:
        subject = subject_from_files(**given) if given else find_subject(folders[0])
        return [Job(subject, output_paths(out), picture, brain_mask)], []
    assert out_dir is not None  # _refuse_contradictions has seen to it
    failures: list[Outcome] = []
    if given:
        subjects = [subject_from_files(**given)]
    else:
        subjects, failures = find_all_subjects(folders)
    name = picture.name if picture else None
    jobs = [plan_job(found, out_dir, picture=name, brain_mask=brain_mask) for found in subjects]
    return jobs, failures


def _refuse_contradictions(
    folders: Sequence[Path],
    files: dict[str, Path],
    out: Path | None,
    out_dir: Path | None,
    picture: Path | None,
    brain_mask: Path | None,
) -> None:
    if not folders and not files:
        raise UsageError(
            "No subject was given.",
            next_step="Give a folder, or --flair, --t2 and --t1 (see mmccd segment --help).",
        )
    if folders and files:
        raise UsageError(
            "A subject was given both as a folder and as files.", next_step="Give one of them."
        )
    if (out is None) == (out_dir is None):
        raise UsageError(
            "Say where the result goes, once.",
            next_step="Add --out map.nii.gz for one subject, or --out-dir DIR for any number.",
        )
    if out is not None and len(folders) > 1:
        raise UsageError(
            f"--out names one result, but there are {len(folders)} subjects.",
            next_step="Give --out-dir DIR instead.",
        )
    if brain_mask is not None and len(folders) > 1:
        raise UsageError(
            f"{brain_mask} is one brain mask, but there are {len(folders)} subjects.",
            next_step="Run them one by one, each with its own --skull-strip.",
        )
    if picture is not None and picture.suffix.lower() != ".png":
        raise UsageError(f"--picture {picture} is not named .png.", next_step="Name it FILE.png.")
    if picture is not None and out_dir is not None and picture.name != str(picture):
        raise UsageError(
            f"With --out-dir, --picture {picture} must be a name without a folder.",
            next_step=f"Give --picture {picture.name}",
        )


def _settings(threshold: str, min_lesion: str, skull_strip: str) -> RunSettings:
    from mmccd_cli.cohort import RunSettings

    return RunSettings(
        options.parse_threshold(threshold), options.parse_volume_mm3(min_lesion), skull_strip
    )


@dataclass
class _Run:
    """One call of the command, ready to run."""

    console: Console
    jobs: list[Job]
    settings: RunSettings
    loading: Loading
    force: bool
    resume: bool
    as_json: bool
    many: bool

    def check(self) -> None:
        """Refuse what cannot be written, before anything is computed."""
        from mmccd_cli.cohort import check_targets

        if self.force and self.resume:
            raise UsageError(
                "--force does everything anew and --resume does not.", next_step="Give one of them."
            )
        check_targets(self.jobs, force=self.force, resume=self.resume)

    def execute(self, failures: Sequence[Outcome]) -> None:
        """Segment all subjects and report on each as it finishes."""
        from mmccd_cli.cohort import run_jobs

        outcomes: list[Outcome] = []
        for failure in failures:
            self._report(failure, outcomes)
        with self.console.progress() as progress:
            for outcome in run_jobs(
                self.jobs,
                self.loading.load,
                self.settings,
                force=self.force,
                resume=self.resume,
                began=lambda job: self._begin(job, progress),
                advance=progress.advance,
            ):
                self._report(outcome, outcomes)
        self._finish(outcomes)

    def show_plan(self, failures: Sequence[Outcome]) -> None:
        """Say what each file was taken for and what would be written."""
        from mmccd_cli.cohort import plan_outcome

        outcomes: list[Outcome] = []
        for failure in failures:
            self._report(failure, outcomes)
        segmenter = self.loading.load()
        for job in self.jobs:
            outcome = plan_outcome(job, segmenter, self.settings, resume=self.resume)
            self._report(outcome, outcomes)
            if outcome.status == "planned":
                self._explain(job, self.console.info)
        self._finish(outcomes)

    def _begin(self, job: Job, progress: Progress) -> None:
        progress.begin(job.subject.id)
        self._explain(job, self.console.detail)

    def _explain(self, job: Job, say: Callable[[str], None]) -> None:
        for kind, path in job.inputs.items():
            say(f"  {kind}: {path}")
        for path, reason in job.subject.ignored:
            say(f"  left out: {path} ({reason})")
        for kind, path in job.targets.items():
            say(f"  writes {kind}: {path}")

    def _report(self, outcome: Outcome, outcomes: list[Outcome]) -> None:
        outcomes.append(outcome)
        if outcome.error is not None:
            self._report_failure(outcome.name, as_mmccd_error(outcome.error))
            return
        if self.as_json:
            from mmccd_cli.outputs import to_json

            self.console.result(to_json(outcome.record))
        self.console.info(f"{outcome.name}: {_summary(outcome)}")
        if outcome.status == "done":
            for note in outcome.record["warnings"]:
                self.console.note(note)
            for stage, seconds in outcome.record["seconds"].items():
                self.console.detail(f"  {stage}: {seconds:.1f} s")

    def _report_failure(self, name: str, error: MmccdError) -> None:
        if not self.many:
            raise error
        if self.as_json:
            from mmccd_cli.outputs import to_json
            from mmccd_cli.records import describe_failure

            self.console.result(to_json(describe_failure(name, error)))
        self.console.error(error, about=name)

    def _finish(self, outcomes: Sequence[Outcome]) -> None:
        failed = [(o.name, as_mmccd_error(o.error)) for o in outcomes if o.error is not None]
        if len(outcomes) > 1:
            counts = ", ".join(_counts(outcomes))
            self.console.info(f"{len(outcomes)} subjects: {counts}")
        if not failed:
            return
        if len(outcomes) == 1:
            raise typer.Exit(failed[0][1].exit_code)
        self.console.table([(name, error.message) for name, error in failed])
        raise typer.Exit(SomeSubjectsFailed.exit_code)


def _summary(outcome: Outcome) -> str:
    record = outcome.record
    if outcome.status == "skipped":
        return "skipped, its result is up to date"
    if outcome.status == "planned":
        return f"would be segmented by its {' and '.join(record['modalities'])}"
    number = len(record["lesions"])
    lesions = f"{number} lesion{'' if number == 1 else 's'}, {record['lesion_volume_ml']:.2f} ml"
    seconds = sum(record["seconds"].values())
    return f"{lesions}, written to {record['outputs']['map']} ({seconds:.0f} s)"


def _counts(outcomes: Iterable[Outcome]) -> list[str]:
    statuses = [outcome.status for outcome in outcomes]
    return [
        f"{statuses.count(s)} {s}"
        for s in ("done", "planned", "skipped", "failed")
        if s in statuses
    ]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("segment")(segment)
