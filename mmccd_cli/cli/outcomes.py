"""A cohort as a command shows it: progress, an outcome for each subject, and a summary."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mmccd_cli import __version__
from mmccd_cli.cli.console import JsonConsole, ProgressDisplay, counted, left_out_of, lesions_of
from mmccd_cli.cli.options import RunOptions
from mmccd_cli.errors import (
    DataError,
    SomeSubjectsFailed,
    as_mmccd_error,
    check_address_space,
)
from mmccd_cli.files import resolved

if TYPE_CHECKING:
    from mmccd_cli.cohort.jobs import Job, RunSettings
    from mmccd_cli.cohort.plan import Cohort
    from mmccd_cli.cohort.shards import Shard
    from mmccd_cli.outputs.record import Outcome
    from mmccd_cli.pipeline import Pipeline


def choose_shard(text: str, folders: Sequence[Path], console: JsonConsole) -> Shard | None:
    """Read --shard, and say what it means."""
    from mmccd_cli.cohort import shards

    shard = shards.choose_shard(text, folders)
    if shard is not None:
        everything = " (--shard off takes all)" if text == "auto" else ""
        console.info(shard.describe(folders) + everything)
    return shard


def run_cohort(
    cohort: Cohort,
    load: Callable[[], Pipeline],
    *,
    settings: RunSettings,
    run: RunOptions,
    console: JsonConsole,
    many: bool = True,
) -> None:
    """Segment a cohort, or say what would be done, and report on each subject as it finishes.

    Where there are not `many`, a subject that fails ends the command.

    Raises:
        MmccdError: What concerns all subjects; or the only one, where there are not many.
        typer.Exit: Some of many subjects failed.
    """
    check_address_space()
    from mmccd_cli.cohort.plan import RunPolicy
    from mmccd_cli.cohort.run import preview_cohort, segment_cohort
    from mmccd_cli.cohort.runner import Observer

    def announce(pipeline: Pipeline) -> None:
        console.info(_describe(pipeline))

    policy = RunPolicy(
        force=run.force, resume=run.resume, workers=run.workers, scheduler=run.scheduler
    )
    with console.progress() as progress:
        view = _View(cohort, console, progress, many=many, is_preview=run.dry_run)
        observer = Observer(
            loaded=announce,
            began=view.began,
            staged=view.staged,
            advance=view.advanced,
            note=console.info,
        )
        wanted = preview_cohort if run.dry_run else segment_cohort
        if not run.dry_run:
            progress.expect(len(cohort.jobs))
            progress.begin("starting", told=False)
        outcomes = wanted(cohort, load, settings=settings, policy=policy, observer=observer)
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                view.report(outcome)
    view.summarise()


@contextlib.contextmanager
def recorded(paths: Sequence[Path], console: JsonConsole) -> Iterator[None]:
    """Print the record of the only subject where its data cannot be used, and raise what was."""
    from mmccd_cli.outputs.record import Outcome, describe_failure

    try:
        yield
    except (DataError, OSError) as error:
        name, typed = resolved(paths[0]).name, tuple(map(str, paths))
        console.record(describe_failure(Outcome(name, "failed", error=error, paths=typed)))
        raise


class _View:
    """A cohort as a user sees it: its subjects in turn, what became of each, and all at the end."""

    def __init__(
        self,
        cohort: Cohort,
        console: JsonConsole,
        progress: ProgressDisplay,
        *,
        many: bool,
        is_preview: bool,
    ) -> None:
        self._cohort, self._console, self._progress, self._many = cohort, console, progress, many
        self._is_preview = is_preview
        self._jobs = {job.subject.id: job for job in cohort.jobs}
        self._stages: dict[str, str] = {}
        self._now = ""
        self._reported: list[Outcome] = []

    def began(self, job: Job) -> None:
        """A subject's turn has come; it may have been prepared before."""
        self._now = job.subject.id
        self._progress.begin(self._now, told=False)
        self._progress.stage(self._stages.get(self._now, ""))
        _explain(job, self._console.detail)

    def staged(self, job: Job, stage: str) -> None:
        """A stage of a subject has begun, in any thread."""
        self._stages[job.subject.id] = stage
        if job.subject.id == self._now:
            self._progress.stage(stage)

    def advanced(self, job: Job, done: int, total: int) -> None:
        """So many passes of the networks are done for a subject, in any thread."""
        if job.subject.id == self._now:
            self._progress.passes(done, total)

    def report(self, outcome: Outcome) -> None:
        """Print what became of a subject.

        Raises:
            MmccdError: It failed, and is the only one.
        """
        from mmccd_cli.outputs.record import describe_failure

        console, job = self._console, self._jobs.get(outcome.name)
        self._reported.append(outcome)
        quick = outcome.status != "done" or outcome.from_map
        how_far = self._progress.end(spared=quick) if job else ""
        if outcome.error is not None:
            error = as_mmccd_error(outcome.error)
            console.record(describe_failure(outcome))
            if not self._many:
                raise error
            console.error(error, about=outcome.name)
            return
        record = outcome.record
        console.record(record)
        files = _files(job, map_only=self._many) if job else ""
        text = f"{outcome.name}: {_in_words(outcome, files)}"
        console.info(f"{text}; {how_far}" if how_far else text)
        if outcome.status == "planned" and job:
            _explain(job, console.info)
            console.remarks(record)
        if outcome.status == "skipped" and record["versions"]["mmccd"] != __version__:
            console.note(f"made by mmccd {record['versions']['mmccd']}")
        if outcome.status == "done":
            console.remarks(record, job.targets["sidecar"].parent if job else Path())
            for stage, value in record["seconds"].items():
                console.detail(f"  {stage}: {value:.1f} s")

    def summarise(self) -> None:
        """Count what became of the subjects, and end the command where some failed."""
        outcomes, console = self._reported, self._console
        statuses = [outcome.status for outcome in outcomes]
        if len(outcomes) > 1:
            kinds = [kind for kind in ("done", "planned", "skipped", "failed") if kind in statuses]
            counts = ", ".join(f"{statuses.count(kind)} {kind}" for kind in kinds)
            where = "" if self._is_preview else self._where()
            console.info(f"{counted(len(outcomes), 'subject')}: {counts}{where}")
        failed = [(o.name, as_mmccd_error(o.error)) for o in outcomes if o.error is not None]
        if len(failed) == len(outcomes) == 1:
            raise typer.Exit(failed[0][1].exit_code)
        if failed:
            console.table([(name, error.message) for name, error in failed])
            raise typer.Exit(SomeSubjectsFailed.exit_code)

    def _where(self) -> str:
        """Say where results, table and reports of the cohort are."""
        cohort = self._cohort
        table = cohort.summary.path if cohort.summary else None
        pages = cohort.report_dir / "index.html" if cohort.report_dir else None
        root = cohort.bids_root or (table and table.parent)
        named = {"results in": root, "table": table, "reports": pages}
        return "".join(f"; {what} {path}" for what, path in named.items() if path)


def _describe(pipeline: Pipeline) -> str:
    weights, device = pipeline.bundle.config, pipeline.describe_device()
    return f"{weights.name} {weights.version}, {pipeline.sampling.method}, on {device}"


def _explain(job: Job, say: Callable[[str], None]) -> None:
    """Say what each file of a subject was taken for, and what is written."""
    for kind, path in job.inputs.items():
        reason = job.subject.reasons.get(kind)
        say(f"  {kind}: {path}" + (f", {reason}" if reason else ""))
    for path, reason in job.subject.left_out:
        say(f"  left out: {path} ({reason})")
    for kind, path in job.targets.items():
        say(f"  writes {kind}: {path}")


def _files(job: Job, *, map_only: bool) -> str:
    """Name what was written of a subject, with folders."""
    if map_only:
        return str(job.targets["map"])
    *first, last = map(str, job.targets.values())
    return f"{', '.join(first)} and {last}"


def _in_words(outcome: Outcome, files: str) -> str:
    record = outcome.record
    if outcome.status == "skipped":
        return "skipped, its result is up to date"
    if outcome.status == "planned":
        if outcome.from_map:
            return "would get a new mask from its map"
        return f"would be segmented by its {' and '.join(record['modalities'])}"
    if outcome.from_map:
        how = f"new mask from the map that was there, written to {files}"
    else:
        how = f"written to {files} ({sum(record['seconds'].values()):.0f} s)"
    return f"{lesions_of(record)}, {how}{left_out_of(record)}"
