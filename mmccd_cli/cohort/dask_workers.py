"""A cohort on the workers of a Dask cluster: the same jobs, records and files as in one process.

Paths travel and images do not, so every worker must see the same folders. A worker loads the
weights once. Where one is lost, Dask gives its jobs to another, which keeps what was finished.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmccd_cli import __version__
from mmccd_cli.cohort.jobs import Job, RunSettings
from mmccd_cli.cohort.plan import RunPolicy
from mmccd_cli.cohort.runner import Observer, Runner, failure
from mmccd_cli.cohort.steps import JobSteps
from mmccd_cli.cohort.workers import choose_workers
from mmccd_cli.errors import ComputeError, UsageError, as_mmccd_error
from mmccd_cli.files import remove_leftovers
from mmccd_cli.outputs.record import Outcome

if TYPE_CHECKING:
    from distributed import Client

    from mmccd_cli.pipeline import Pipeline

AHEAD = 2
"""Jobs that are on their way at a time, for each thread of the workers."""
_SECONDS_TO_CONNECT = 30
_loading = threading.Lock()
_device = threading.Lock()


def segment_jobs(
    jobs: Sequence[Job],
    load: Callable[[], Pipeline],
    settings: RunSettings,
    *,
    policy: RunPolicy,
    observer: Observer,
) -> Generator[Outcome, None, None]:
    """Segment subjects on workers, and yield an outcome of each as it is done; `load` is pickled.

    Raises:
        WeightsError: The weights cannot be loaded or used, which concerns every subject.
        UsageError: Dask is not installed, or no scheduler answers, or the workers lack mmccd.
        ComputeError: The device cannot be used.
    """
    if not jobs:
        return
    with _connected(jobs, policy) as client:
        from cloudpickle import dumps

        workers = len(client.nthreads())
        observer.note(f"{workers} Dask workers" + ("" if workers else "; waiting for the first"))
        # Jobs that a lost worker had finished are kept; that none was there has been checked.
        kept = replace(policy, resume=not policy.force, scheduler=None)
        task = dumps((load, settings, kept))
        for job, outcome in _gathered(client, jobs, task):
            observer.began(job)
            if outcome.status == "skipped" and not policy.resume:
                outcome = Outcome(outcome.name, "done", {**outcome.record, "status": "done"})
            yield outcome
        remove_leftovers(*(path for job in jobs for path in job.targets.values()))


@contextlib.contextmanager
def _connected(jobs: Sequence[Job], policy: RunPolicy) -> Iterator[Client]:
    """A client of the scheduler, which takes its jobs back when it is left."""
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise UsageError(
            "--scheduler needs the package distributed, which is not installed.",
            next_step="pip install 'mmccd[dask]'",
        ) from error
    where = policy.scheduler
    with contextlib.ExitStack() as stack:
        if where == "auto":
            processes, threads = _share_of_this_computer(jobs, policy.workers)
            where = stack.enter_context(
                LocalCluster(
                    n_workers=processes, threads_per_worker=threads, dashboard_address="127.0.0.1:0"
                )
            )
        named: dict[str, Any] = {"address": where}
        if isinstance(where, str) and where.endswith(".json"):
            named = {"scheduler_file": where}
        try:
            client = Client(**named, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"No Dask scheduler answers at {where}.",
                cause=f"It says: {' '.join(str(error).split())[:200]}",
                next_step="Start one (dask scheduler) and give its address, such as "
                "tcp://host:8786, or give --scheduler auto.",
            ) from error
        yield stack.enter_context(client)


def _share_of_this_computer(jobs: Sequence[Job], processes: int | None) -> tuple[int, int]:
    """How many processes, and threads of each: as many processes as cores and memory allow."""
    from mmccd_cli.host import available_threads

    cores = available_threads()
    chosen = processes or max(1, choose_workers(jobs, cores))
    return chosen, max(1, cores // chosen)


def _gathered(client: Client, jobs: Sequence[Job], task: bytes) -> Iterator[tuple[Job, Outcome]]:
    """Keep the workers busy with a few jobs each, and yield outcomes in the order of their end."""
    from distributed import as_completed

    remaining, running = iter(jobs), dict[Any, Job]()
    finished = as_completed(loop=client.loop)

    def submit() -> None:
        room = AHEAD * max(1, sum(client.nthreads().values())) - len(running)
        for _, job in zip(range(room), remaining, strict=False):
            future = client.submit(
                _segment_here, _absolute(job), task, version=__version__, pure=False
            )
            running[future] = job
            finished.add(future)

    submit()
    for future in finished:
        job = running.pop(future)
        yield job, _outcome(job, future)
        submit()


def _outcome(job: Job, future: Any) -> Outcome:
    from distributed.scheduler import KilledWorker

    error = future.exception()
    if isinstance(error, KilledWorker):
        return Outcome(
            job.subject.id,
            "failed",
            error=ComputeError(
                "The workers that segmented it ended, each of them.",
                cause="Their memory did not suffice, or the nodes were taken away.",
                next_step="Give the workers more memory, and run again with --resume.",
            ),
        )
    if isinstance(error, ModuleNotFoundError):
        raise UsageError(
            f"The workers cannot import {error.name}.",
            next_step=f"Install mmccd {__version__} with the same packages where they run.",
        ) from error
    if error is not None:
        raise error
    return future.result()


def _segment_here(job: Job, task: bytes, *, version: str) -> Outcome:
    """Segment one subject; this runs on a worker."""
    if version != __version__:
        raise UsageError(
            f"The workers have mmccd {__version__}, and this is mmccd {version}.",
            next_step="Install the same version on all.",
        )
    from distributed import get_worker

    threads = get_worker().state.nthreads
    with _loading:
        runner = _runner(task, threads)
    with contextlib.ExitStack() as stack:

        def prepare() -> Any:
            ready = runner.prepare(job)  # beside other threads; the device is for one at a time
            stack.enter_context(_device)
            return ready

        outcome = runner.outcome(job, prepare)
    if outcome.error is None:
        return outcome
    return failure(job, as_mmccd_error(outcome.error))  # others cannot always be pickled


@lru_cache(maxsize=1)
def _runner(task: bytes, threads: int) -> Runner:
    from cloudpickle import loads

    load, settings, policy = loads(task)
    steps = JobSteps(pipeline=load(), settings=settings)
    steps.pipeline.begin()
    return Runner(steps=steps, policy=policy, workers=threads, threads=threads)


def _absolute(value: Any) -> Any:
    """A job whose paths mean the same in every folder."""
    if isinstance(value, Path):
        return value.absolute()
    if isinstance(value, Mapping):
        return {key: _absolute(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_absolute(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {one.name: _absolute(getattr(value, one.name)) for one in fields(value)}
        return replace(value, **changed)
    return value
