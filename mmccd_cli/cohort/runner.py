"""One job of a cohort after the other: what an error of one means, and what may be replaced."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from mmccd_cli.cohort.jobs import Job
from mmccd_cli.cohort.plan import RunPolicy
from mmccd_cli.cohort.resume import PreviousResult, is_ours
from mmccd_cli.cohort.steps import JobSteps, PreparedJob, hold_threads, threads_in_all
from mmccd_cli.errors import OutputExistsError, StorageError, UsageError, WeightsError
from mmccd_cli.files import refuse_to_overwrite
from mmccd_cli.inputs.scans import Scans
from mmccd_cli.outputs.record import Outcome
from mmccd_cli.progress import Progress, heard_by, silent

MOST_WORKERS = 8
MEMORY_OF_A_SUBJECT = 1 << 30
"""Bytes that one subject takes at most while it is prepared; skull stripping takes most of them."""


@dataclass(frozen=True, kw_only=True)
class Observer:
    """Hears how a cohort comes along between two outcomes; silent where nothing is given.

    Attributes:
        began: Called when a subject's turn has come.
        staged: Called when a stage of a subject's preparation begins, in any thread, and before
            its turn has come.
        advance: Called with how many passes of the networks are done for it, and their number.
        note: Called with a sentence about the cohort as a whole.
    """

    began: Callable[[Job], None] = silent
    staged: Callable[[Job, str], None] = silent
    advance: Progress = silent
    note: Callable[[str], None] = silent


@dataclass(frozen=True, eq=False, kw_only=True)
class Runner:
    """What happens to each job of a cohort, before (in `workers` threads) and on the device.

    `already_read` holds the scans of the subject that was read before the weights were loaded.
    """

    steps: JobSteps
    policy: RunPolicy
    workers: int
    staged: Callable[[Job, str], None] = silent
    advance: Progress = silent
    already_read: dict[str, Scans] = field(default_factory=dict)
    threads: int = field(default_factory=threads_in_all)

    def prepare(self, job: Job) -> PreparedJob | PreviousResult:
        """Do what comes before the device, or find that it is not needed; safe in a thread."""
        if self.workers:
            hold_threads(self.threads)
        if self.policy.resume and (previous := self.steps.find_previous(job)) is not None:
            return previous
        refuse_to_replace(job, self.policy)
        with heard_by(partial(self.staged, job)):
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
            return failure(job, error)
        except (WeightsError, UsageError, StorageError):
            raise
        except Exception as error:  # a bug met on one subject must not lose the others
            return failure(job, error)

    def _finish(self, job: Job, ready: PreparedJob | PreviousResult) -> Outcome:
        name, force = job.subject.id, partial(_may_replace, job, self.policy)
        if self.policy.resume and isinstance(ready, PreparedJob) and job.exists:
            ready = self.steps.find_previous(job) or ready  # another run may have been faster
        if isinstance(ready, PreparedJob):
            segmented = self.steps.finish(ready, force=force, advance=self.advance)
            return Outcome(name, "done", segmented.record)
        if ready.is_current:
            return Outcome(name, "skipped", {**ready.record, "status": "skipped"})
        segmented = self.steps.redo_mask(job, ready, force=force)
        return Outcome(name, "done", segmented.record, from_map=True)


def _may_replace(job: Job, policy: RunPolicy) -> bool:
    return policy.force or (policy.resume and is_ours(job))


def refuse_to_replace(job: Job, policy: RunPolicy) -> None:
    """Refuse what `Cohort.check` leaves to each subject's turn: outputs that nobody knows."""
    refuse_to_overwrite(
        job.targets.values(),
        job.input_files,
        force=_may_replace(job, policy),
        make_folders=job.makes_folder,
        next_step="Move it away, or run again with --force and without --resume.",
    )


def choose_workers(others: int) -> int:
    """Return how many subjects are prepared ahead, where there are so many beside the first.

    As many as there are processor cores, because registration takes one thread and most of the
    time; at most what half of the free memory holds; and none on a single core.
    """
    import torch

    from mmccd_cli.translation.devices import free_memory

    cores = threads_in_all()
    if cores < 2:
        return 0
    free = free_memory(torch.device("cpu"))
    fits = MOST_WORKERS if free is None else max(1, free // (2 * MEMORY_OF_A_SUBJECT))
    return min(others, cores, MOST_WORKERS, fits)


def failure(job: Job, error: Exception) -> Outcome:
    """Return what became of a job, without the variables of a traceback: whole images, mostly."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    return Outcome(job.subject.id, "failed", error=error, paths=job.paths)
