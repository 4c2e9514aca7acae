"""Segmenting a cohort: one subject after the other, the next ones prepared beside it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from mmccd_cli.cohort.derivative_outcomes import earlier_failures, note_failure
from mmccd_cli.cohort.derivatives import write_root
from mmccd_cli.cohort.jobs import Job, RunSettings
from mmccd_cli.cohort.plan import Cohort, RunPolicy
from mmccd_cli.cohort.prefetch import prefetch
from mmccd_cli.cohort.runner import Observer, Runner, failure, refuse_to_replace
from mmccd_cli.cohort.steps import JobSteps
from mmccd_cli.cohort.workers import choose_workers
from mmccd_cli.errors import MmccdError
from mmccd_cli.files import remove_leftovers
from mmccd_cli.inputs.scans import read_scans
from mmccd_cli.outputs.record import Outcome

if TYPE_CHECKING:
    from mmccd_cli.pipeline import Pipeline

SILENT = Observer()


def segment_cohort(
    cohort: Cohort,
    load: Callable[[], Pipeline],
    *,
    settings: RunSettings,
    policy: RunPolicy,
    observer: Observer = SILENT,
) -> Generator[Outcome, None, None]:
    """Segment a cohort, and write all that is wanted of it; a subject that fails stops no other.

    Everything is checked before anything is computed. While one subject is on the device, the next
    ones are read and prepared in threads; their errors wait until their turn comes. The table is
    up to date before an outcome is yielded; the page of reports is written at the end, also of a
    run that is interrupted, so close this generator (`contextlib.closing`) where the loop over it
    may be left.

    Args:
        cohort: What to do; see `SubjectSelection.plan` and `plan_bids_cohort`.
        load: Loads the weights; called once, when the first subject could be read.
        settings: What was asked for that changes a number.
        policy: What is overwritten or kept, and how many subjects are prepared ahead.
        observer: Hears of progress between two outcomes.

    Yields:
        An outcome for each subject: first those that could not be found, then the others in order.

    Raises:
        WeightsError: The weights cannot be loaded or used, which concerns every subject.
        UsageError: What was asked for cannot be done.
        ComputeError: The device cannot be used, or the disk is full.
    """
    cohort.check(settings, policy)
    if cohort.bids_root is not None and cohort.jobs:
        write_root(cohort.bids_root, [job.subject for job in cohort.jobs])
    targets = [path for job in cohort.jobs for path in job.targets.values()]
    remove_leftovers(*targets, *([cohort.summary.path] if cohort.summary else []))
    outcomes: list[Outcome] = []
    segment = _segment_jobs
    if policy.scheduler is not None:
        from mmccd_cli.cohort.dask_workers import segment_jobs as segment
    done = segment(cohort.jobs, load, settings, policy=policy, observer=observer)
    try:
        for outcome in chain(cohort.failures, done):
            if cohort.summary is not None:
                cohort.summary.add(outcome)
            if cohort.bids_root is not None:
                note_failure(cohort.bids_root, outcome)
            outcomes.append(outcome)
            yield outcome
        if cohort.summary is not None and (table := cohort.summary.unite()):
            observer.note(f"All shares are through: {table}")
    finally:
        if cohort.report_dir is not None:
            from mmccd_cli.outputs.report.cohort import write_cohort_page

            tables = cohort.summary.path.parent.glob("summary*.tsv") if cohort.summary else ()
            root = cohort.bids_root
            before = [] if root is None else earlier_failures(root, outcomes)
            write_cohort_page(cohort.report_dir, [*before, *outcomes], tables=tables)


def preview_cohort(
    cohort: Cohort,
    load: Callable[[], Pipeline],
    *,
    settings: RunSettings,
    policy: RunPolicy,
    observer: Observer = SILENT,
) -> Generator[Outcome, None, None]:
    """Tell what `segment_cohort` would do, from the files' names and headers; nothing is written.

    It takes and raises what `segment_cohort` does.

    Yields:
        An outcome for each subject, whose status is "planned", "skipped" or "failed".
    """
    cohort.check(settings, policy)
    yield from cohort.failures
    steps = JobSteps(pipeline=load(), settings=settings)
    steps.pipeline.begin()
    observer.loaded(steps.pipeline)
    for job in cohort.jobs:
        try:
            plan = steps.describe_plan(job, resume=policy.resume)
            refuse_to_replace(job, policy)
            yield plan
        except (MmccdError, OSError) as error:
            yield failure(job, error)


def _segment_jobs(
    jobs: Sequence[Job],
    load: Callable[[], Pipeline],
    settings: RunSettings,
    *,
    policy: RunPolicy,
    observer: Observer,
) -> Generator[Outcome, None, None]:
    """Segment subjects one after the other, and yield an outcome of each, in order."""
    remaining = iter(jobs)
    for first in remaining:
        try:
            nothing_to_read = policy.resume and first.exists
            scans = None if nothing_to_read else read_scans(first.subject, first.brain_mask)
            break
        except Exception as error:
            observer.began(first)
            yield failure(first, error)
    else:
        return
    # Not within the try: without weights or device, no other subject can be done either.
    steps = JobSteps(pipeline=load(), settings=settings)
    workers, threads = policy.workers, steps.pipeline.threads
    runner = Runner(
        steps=steps,
        policy=policy,
        staged=observer.staged,
        advance=observer.advance,
        workers=choose_workers(jobs, threads) if workers is None else workers,
        threads=threads,
    )
    runner.begin(first, scans)
    del scans
    steps.pipeline.begin(() if nothing_to_read else tuple(first.subject.paths))
    observer.loaded(steps.pipeline)
    runner = replace(runner, side_by_side=_side_by_side(jobs, runner))
    for job, wait in prefetch(chain([first], remaining), runner.prepare, runner.workers):
        observer.began(job)
        yield runner.outcome(job, wait)


def _side_by_side(jobs: Sequence[Job], runner: Runner) -> frozenset[str]:
    """On a CPU, all subjects but those at the end that do not occupy all workers."""
    if runner.steps.pipeline.device.type != "cpu" or runner.workers < 2:
        return frozenset()
    whole = len(jobs) - len(jobs) % runner.workers
    return frozenset(job.subject.id for job in jobs[:whole])
