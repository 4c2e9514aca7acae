"""One job of a cohort after the other: what an error of one means, and what may be replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from mmccd_cli.cohort.jobs import Job
from mmccd_cli.cohort.plan import RunPolicy
from mmccd_cli.cohort.prefetch import in_background
from mmccd_cli.cohort.resume import PreviousResult, foreign_outputs
from mmccd_cli.cohort.steps import JobSteps, PreparedJob, hold_threads
from mmccd_cli.errors import CONCERNS_ALL, OutputExistsError, let_go
from mmccd_cli.files import only_writer, refuse_to_overwrite
from mmccd_cli.inputs.scans import Scans
from mmccd_cli.outputs.record import Outcome
from mmccd_cli.outputs.segmented import SegmentedSubject
from mmccd_cli.progress import heard_by, silent

if TYPE_CHECKING:
    from concurrent.futures import Future

    from mmccd_cli.pipeline import Pipeline

Ready = PreparedJob | SegmentedSubject | PreviousResult


@dataclass(frozen=True, kw_only=True)
class Observer:
    """Hears how a cohort comes along between two outcomes; silent where nothing is given.

    Attributes:
        loaded: Called with the weights when they are on their device.
        began: Called when a subject's turn has come.
        staged: Called when a stage of a subject begins, in any thread, and before its turn has
            come.
        advance: Called likewise with how many passes of the networks are done for a subject, and
            their number.
        note: Called with a sentence about the cohort as a whole.
    """

    loaded: Callable[[Pipeline], None] = silent
    began: Callable[[Job], None] = silent
    staged: Callable[[Job, str], None] = silent
    advance: Callable[[Job, int, int], None] = silent
    note: Callable[[str], None] = silent


@dataclass(frozen=True, eq=False, kw_only=True)
class Runner:
    """What happens to each job of a cohort, before (in `workers` threads) and on the device.

    Attributes:
        steps: The steps of a job.
        policy: What may be replaced.
        workers: Threads in which jobs are prepared; 0 for none.
        threads: Threads of the CPU in all.
        staged: See `Observer`.
        advance: See `Observer`.
        begun: The subject whose preparation began before the device was there.
        side_by_side: Subjects whose networks run where they were prepared, each on a share of the
            threads: on a CPU several subjects beside each other take less time than one after the
            other, each on all threads.
    """

    steps: JobSteps
    policy: RunPolicy
    workers: int
    threads: int
    staged: Callable[[Job, str], None] = silent
    advance: Callable[[Job, int, int], None] = silent
    begun: dict[str, Future[Ready]] = field(default_factory=dict)
    side_by_side: frozenset[str] = frozenset()

    def begin(self, job: Job, scans: Scans | None) -> None:
        """Prepare a job in a thread, beside the import of torch; `prepare` will wait for it.

        Args:
            job: The first job.
            scans: What was read of it; None to read it.
        """
        self.begun[job.subject.id] = in_background(partial(self._prepared, job, [scans]))

    def prepare(self, job: Job) -> Ready:
        """Do what comes before the device, or find that it is not needed; safe in a thread."""
        if (begun := self.begun.pop(job.subject.id, None)) is not None:
            ready = begun.result()
            hold_threads(self.threads)  # a skull stripper may have left another number
        else:
            if self.workers:
                hold_threads(self.threads)
            ready = self._prepared(job, [None])
        if job.subject.id not in self.side_by_side or not isinstance(ready, PreparedJob):
            return ready
        hold_threads(self._share)
        return self._inferred(ready)

    @property
    def _share(self) -> int:
        """Threads for one of the subjects that are prepared at a time."""
        return max(1, self.threads // max(1, self.workers))

    def _inferred(self, ready: PreparedJob) -> SegmentedSubject:
        """Run the networks on a prepared job."""
        with heard_by(partial(self.staged, ready.job)):
            return self.steps.infer(ready, advance=partial(self.advance, ready.job))

    def _prepared(self, job: Job, held: list[Scans | None]) -> Ready:
        """What `prepare` returns; the scans are let go of as soon as they are not needed."""
        previous = self.steps.find_previous(job) if self.policy.resume else None
        if previous is None or not previous.is_current:
            refuse_to_replace(job, self.policy)
        if previous is not None:
            return previous
        with heard_by(partial(self.staged, job)):
            return self.steps.prepare(
                job,
                scans=held.pop(),
                threads=self._share,
                only_files=True,
            )

    def outcome(self, job: Job, wait: Callable[[], Ready]) -> Outcome:
        """Wait for a job and finish it; only what concerns all subjects is raised.

        No large array is held by anything but this call, so none is while the next job is waited
        for.
        """
        try:
            return self._finish(job, wait())
        except OutputExistsError as error:
            return failure(job, error)
        except CONCERNS_ALL:
            raise
        except Exception as error:  # a bug met on one subject must not lose the others
            return failure(job, error)

    def _finish(self, job: Job, ready: Ready) -> Outcome:
        name, force = job.subject.id, partial(_may_replace, job, self.policy)
        if self.policy.resume and not isinstance(ready, PreviousResult) and job.exists:
            ready = self.steps.find_previous(job) or ready  # another run may have been faster
        if isinstance(ready, PreparedJob):
            if self.workers:
                hold_threads(self.threads)
            ready = self._inferred(ready)
        if isinstance(ready, SegmentedSubject):
            return Outcome(name, "done", self.steps.write(job, ready, force=force).record)
        if ready.is_current:
            return Outcome(name, "skipped", {**ready.record, "status": "skipped"})
        segmented = self.steps.redo_mask(job, ready, force=force)
        return Outcome(name, "done", segmented.record, from_map=True)


def _may_replace(job: Job, policy: RunPolicy) -> bool:
    return policy.force or (policy.resume and not foreign_outputs(job))


def refuse_to_replace(job: Job, policy: RunPolicy) -> None:
    """Refuse what `Cohort.check` leaves to each subject's turn: outputs that nobody knows.

    Who writes them just now is waited for, because the record that names them comes last.
    """
    with only_writer(job.targets["sidecar"].parent):
        targets = list(job.targets.values())
        refuse_to_overwrite(targets, job.input_files, force=True, make_folders=job.makes_folder)
        refuse_to_overwrite(
            foreign_outputs(job) if policy.resume else targets,
            force=policy.force,
            make_folders=job.makes_folder,
            next_step="Move it away, or run again with --force and without --resume.",
        )


def failure(job: Job, error: Exception) -> Outcome:
    """Return what became of a job; the error holds no images."""
    let_go(error)
    return Outcome(job.subject.id, "failed", error=error, paths=job.paths)
