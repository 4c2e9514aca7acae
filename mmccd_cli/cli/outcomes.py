"""A cohort as a command shows it: progress, an outcome for each subject, and a summary."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mmccd_cli import __version__
from mmccd_cli.cli.console import JsonConsole, left_out_of, lesions_of
from mmccd_cli.cli.options import RunOptions
from mmccd_cli.errors import SomeSubjectsFailed, as_mmccd_error, check_address_space

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

    Args:
        cohort: What is to be done.
        load: Loads the weights.
        settings: What was asked for that changes a number.
        run: What is overwritten or kept, and whether this is a dry run.
        console: Where messages and records go.
        many: Whether a subject that fails is reported, instead of ending the command.

    Raises:
        MmccdError: What concerns all subjects; or the only one, where there are not many.
        typer.Exit: Some of many subjects failed.
    """
    check_address_space()
    from mmccd_cli.cohort.plan import RunPolicy
    from mmccd_cli.cohort.run import preview_cohort, segment_cohort
    from mmccd_cli.cohort.runner import Observer

    def announce() -> Pipeline:
        pipeline = load()
        console.info(_describe(pipeline))
        return pipeline

    def began(job: Job) -> None:
        progress.begin(job.subject.id)
        _explain(job, console.detail)

    policy = RunPolicy(
        force=run.force, resume=run.resume, workers=run.workers, scheduler=run.scheduler
    )
    jobs = {job.subject.id: job for job in cohort.jobs}
    reported: list[Outcome] = []
    since = time.perf_counter()
    with console.progress() as progress:
        observer = Observer(began=began, advance=progress.advance, note=console.info)
        outcomes = (
            preview_cohort(cohort, announce, settings=settings, policy=policy)
            if run.dry_run
            else segment_cohort(
                cohort,
                load if run.scheduler else announce,  # the console stays here
                settings=settings,
                policy=policy,
                observer=observer,
            )
        )
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                now = time.perf_counter()
                reported.append(outcome)
                if outcome.error is not None and not many:
                    raise as_mmccd_error(outcome.error)
                _report(outcome, console, seconds=now - since)
                if outcome.status == "planned":
                    _explain(jobs[outcome.name], console.info)
                since = now
    _summarise(reported, console)


def _describe(pipeline: Pipeline) -> str:
    from mmccd_cli.translation.devices import describe_device

    weights = pipeline.bundle.config
    device = describe_device(pipeline.device)
    return f"{weights.name} {weights.version}, {pipeline.sampling.method}, on {device}"


def _explain(job: Job, say: Callable[[str], None]) -> None:
    """Say what each file of a subject was taken for, and what is written."""
    for kind, path in job.inputs.items():
        reason = job.subject.reasons.get(kind)
        say(f"  {kind}: {path}" + (f", {reason}" if reason else ""))
    for path, reason in job.subject.ignored:
        say(f"  left out: {path} ({reason})")
    for kind, path in job.targets.items():
        say(f"  writes {kind}: {path}")


def _report(outcome: Outcome, console: JsonConsole, *, seconds: float) -> None:
    from mmccd_cli.outputs.record import describe_failure

    if outcome.error is not None:
        error = as_mmccd_error(outcome.error)
        console.record(describe_failure(outcome))
        console.error(error, about=outcome.name)
        return
    record = outcome.record
    console.record(record)
    console.info(f"{outcome.name}: {_in_words(outcome, seconds)}")
    if outcome.status == "skipped" and record["versions"]["mmccd"] != __version__:
        console.note(f"made by mmccd {record['versions']['mmccd']}")
    if outcome.status == "done":
        console.remarks(record)
        for stage, value in record["seconds"].items():
            console.detail(f"  {stage}: {value:.1f} s")


def _in_words(outcome: Outcome, seconds: float) -> str:
    record = outcome.record
    if outcome.status == "skipped":
        return "skipped, its result is up to date"
    if outcome.status == "planned":
        if outcome.from_map:
            return "would get a new mask from its map"
        return f"would be segmented by its {' and '.join(record['modalities'])}"
    if outcome.from_map:
        how = "new mask from the map that was there"
    else:
        how = f"written to {record['outputs']['map']} ({seconds:.0f} s)"
    return f"{lesions_of(record)}, {how}{left_out_of(record)}"


def _summarise(outcomes: Sequence[Outcome], console: JsonConsole) -> None:
    """Count what became of the subjects, and end the command where some failed."""
    statuses = [outcome.status for outcome in outcomes]
    if len(outcomes) > 1:
        kinds = [kind for kind in ("done", "planned", "skipped", "failed") if kind in statuses]
        counts = ", ".join(f"{statuses.count(kind)} {kind}" for kind in kinds)
        console.info(f"{len(outcomes)} subjects: {counts}")
    failed = [(o.name, as_mmccd_error(o.error)) for o in outcomes if o.error is not None]
    if len(failed) == len(outcomes) == 1:
        raise typer.Exit(failed[0][1].exit_code)
    if failed:
        console.table([(name, error.message) for name, error in failed])
        raise typer.Exit(SomeSubjectsFailed.exit_code)
