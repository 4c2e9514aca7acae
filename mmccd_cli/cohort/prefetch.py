"""The next subjects' preparation in threads, while one is on the device."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import islice
from typing import TypeVar

J = TypeVar("J")
T = TypeVar("T")


def prefetch(
    jobs: Iterable[J], prepare: Callable[[J], T], workers: int
) -> Iterator[tuple[J, Callable[[], T]]]:
    """Go through jobs while those that follow are prepared in threads.

    Beside the job that was yielded last, no more than `workers` are prepared or being prepared.

    Args:
        jobs: What to do, in order.
        prepare: Does all of a job that can be done beside others.
        workers: Number of threads; 0 prepares a job when it is waited for.

    Yields:
        Each job, with a function that waits for it and returns what was prepared or raises what
        was raised, once.
    """
    remaining = iter(jobs)
    waiting: deque[tuple[J, list[Callable[[], T]]]] = deque()

    def begin() -> None:
        for job in islice(remaining, max(1, workers) - len(waiting)):
            call = partial(prepare, job)
            waiting.append((job, [in_background(call).result if workers else call]))

    def wait(held: list[Callable[[], T]]) -> T:
        prepared = held.pop()()  # nothing large stays here
        begin()  # so that the threads work while the device does
        return prepared

    begin()
    while waiting:
        job, held = waiting.popleft()
        yield job, partial(wait, held)
        begin()  # where nothing was prepared


def in_background(compute: Callable[[], T]) -> Future[T]:
    """Compute in a thread of its own, as no executor does: it does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(compute())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="mmccd-prefetch", daemon=True).start()
    return future
