"""Segmenting a cohort: one subject after the other, the next ones prepared beside it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mmccd_cli.cohort.derivatives import write_root
from mmccd_cli.cohort.jobs import Job, RunSettings
from mmccd_cli.cohort.plan import Cohort, RunPolicy
from mmccd_cli.cohort.prefetch import prefetch
from mmccd_cli.cohort.resume import PreviousResult, is_ours
from mmccd_cli.cohort.steps import JobSteps, PreparedJob, hold_threads, threads_in_all
from mmccd_cli.cohort.summary import unite_shares
from mmccd_cli.errors import MmccdError, OutputExistsError, UsageError, WeightsError
from mmccd_cli.files import refuse_to_overwrite, remove_leftovers
from mmccd_cli.inputs.scans import Scans, read_scans
from mmccd_cli.outputs.record import Outcome
from mmccd_cli.progress import Progress, silent

if TYPE_CHECKING:
    from mmccd_cli.pipeline import Pipeline

MOST_WORKERS = 8
MEMORY_OF_A_SUBJECT = 1 << 30
"""Bytes that one subject takes at most while it is prepared; skull stripping takes most of them."""


@dataclass(frozen=True, kw_only=True)
class Observer:
    """Hears how a cohort comes along between two outcomes; silent where nothing is given.

    Attributes:
        began: Called when a subject's turn has come.
        advance: Called with how many passes of the networks are done for it, and their number.
        united: Called with the table of all shares, by the share that is through last.
    """

    began: Callable[[Job], None] = silent
    advance: Progress = silent
    united: Callable[[Path], None] = silent


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
        UsageError: What was asked for cannot be done, or the disk is full.
        ComputeError: The device cannot be used.
    """
    cohort.check(settings, policy)
    if cohort.bids_root is not None and cohort.jobs:
        write_root(cohort.bids_root, [job.subject for job in cohort.jobs])
    targets = [path for job in cohort.jobs for path in job.targets.values()]
    remove_leftovers(*targets, *([cohort.summary.path] if cohort.summary else []))
    outcomes: list[Outcome] = []
    done = _segment_jobs(cohort.jobs, load, settings, policy=policy, observer=observer)
    try:
        for outcome in chain(cohort.failures, done):
            if cohort.summary is not None:
                cohort.summary.add(outcome)
            outcomes.append(outcome)
            yield outcome
        if cohort.summary is not None and cohort.summary.shard is not None:
            shards = cohort.summary.shard.count
            if table := unite_shares(cohort.summary.path.parent, shards, cohort.everyone):
                observer.united(table)
    finally:
        if cohort.report_dir is not None:
            from mmccd_cli.outputs.report.cohort import write_cohort_page

            inputs = [path for job in cohort.jobs for path in job.input_files]
            tables = cohort.summary.path.parent.glob("summary*.tsv") if cohort.summary else ()
            write_cohort_page(cohort.report_dir, outcomes, inputs=inputs, tables=tables)


def preview_cohort(
    cohort: Cohort,
    load: Callable[[], Pipeline],
    *,
    settings: RunSettings,
    policy: RunPolicy,
) -> Generator[Outcome, None, None]:
    """Tell what `segment_cohort` would do, from the files' names alone; nothing is written.

    It takes and raises what `segment_cohort` does.

    Yields:
        An outcome for each subject, whose status is "planned", "skipped" or "failed".
    """
    cohort.check(settings, policy)
    yield from cohort.failures
    steps = JobSteps(pipeline=load(), settings=settings)
    for job in cohort.jobs:
        try:
            plan = steps.describe_plan(job, resume=policy.resume)
            _refuse_to_replace(job, policy)
            yield plan
        except (MmccdError, OSError) as error:
            yield Outcome(job.subject.id, "failed", error=error)


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
            yield _failure(first, error)
    else:
        return
    # Not within the try: without weights or device, no other subject can be done either.
    steps = JobSteps(pipeline=load(), settings=settings)
    runner = _Runner(
        steps=steps,
        policy=policy,
        observer=observer,
        workers=choose_workers(len(jobs) - 1) if policy.workers is None else policy.workers,
        already_read={} if scans is None else {first.subject.id: scans},
    )
    del scans
    for job, wait in prefetch(chain([first], remaining), runner.prepare, runner.workers):
        observer.began(job)
        yield runner.outcome(job, wait)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Runner:
    """What happens to each job of a cohort, before (in `workers` threads) and on the device.

    `already_read` holds the scans of the subject that was read before the weights were loaded.
    """

    steps: JobSteps
    policy: RunPolicy
    observer: Observer
    workers: int
    already_read: dict[str, Scans]
    threads: int = field(default_factory=threads_in_all)

    def prepare(self, job: Job) -> PreparedJob | PreviousResult:
        """Do what comes before the device, or find that it is not needed; safe in a thread."""
        if self.workers:
            hold_threads(self.threads)
        if self.policy.resume and (previous := self.steps.find_previous(job)) is not None:
            return previous
        _refuse_to_replace(job, self.policy)
        return self.steps.prepare(
            job,
            scans=self.already_read.pop(job.subject.id, None),
            threads=max(1, self.threads // max(1, self.workers)),
        )

    def outcome(self, job: Job, wait: Callable[[], PreparedJob | PreviousResult]) -> Outcome:
        """Wait for a job and finish it; only what concerns all subjects is raised.

        No large array is held by anything but this call, so none is while the next job is waited
        for.
        """
        try:
            return self._finish(job, wait())
        except OutputExistsError as error:
            return _failure(job, error)
        except (WeightsError, UsageError):
            raise
        except Exception as error:  # a bug met on one subject must not lose the others
            return _failure(job, error)

    def _finish(self, job: Job, ready: PreparedJob | PreviousResult) -> Outcome:
        name, force = job.subject.id, _may_replace(job, self.policy)
        if isinstance(ready, PreparedJob):
            segmented = self.steps.finish(ready, force=force, advance=self.observer.advance)
            return Outcome(name, "done", segmented.record)
        if ready.is_current:
            return Outcome(name, "skipped", {**ready.record, "status": "skipped"})
        segmented = self.steps.redo_mask(job, ready, force=force)
        return Outcome(name, "done", segmented.record, from_map=True)


def _may_replace(job: Job, policy: RunPolicy) -> bool:
    return policy.force or (policy.resume and is_ours(job))


def _refuse_to_replace(job: Job, policy: RunPolicy) -> None:
    """Refuse what `Cohort.check` leaves to each subject's turn: outputs that nobody knows."""
    refuse_to_overwrite(
        job.targets.values(),
        job.input_files,
        force=_may_replace(job, policy),
        make_folders=job.makes_folder,
        next_step="Move it away, or run again with --force and without --resume.",
    )


def choose_workers(others: int) -> int:
    """Return how many subjects are prepared ahead.

    As many as there are processor cores, because registration takes one thread and most of the
    time; at most what half of the free memory holds; and none on a single core.

    Args:
        others: How many subjects there are beside the first.
    """
    import torch

    from mmccd_cli.translation.devices import free_memory

    cores = threads_in_all()
    if cores < 2:
        return 0
    free = free_memory(torch.device("cpu"))
    fits = MOST_WORKERS if free is None else max(1, free // (2 * MEMORY_OF_A_SUBJECT))
    return min(others, cores, MOST_WORKERS, fits)


def _failure(job: Job, error: Exception) -> Outcome:
    """Return what became of a job, without the variables of a traceback: whole images, mostly."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    return Outcome(job.subject.id, "failed", error=error)
