"""The next subjects' preparation in threads, while one is on the device."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Generic, TypeVar

J = TypeVar("J")
T = TypeVar("T")

_running: set[object] = set()


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
    waiting: deque[tuple[J, Callable[[], T]]] = deque()

    def begin() -> None:
        for job in islice(remaining, max(1, workers) - len(waiting)):
            call = partial(prepare, job)
            waiting.append((job, BackgroundCall(call).result if workers else call))

    def wait(result: Callable[[], T]) -> T:
        prepared = result()
        begin()  # so that the threads work while the device does
        return prepared

    begin()
    while waiting:
        job, result = waiting.popleft()
        yield job, partial(wait, result)
        begin()  # where nothing was prepared


class BackgroundCall(Generic[T]):
    """A computation in a thread of its own; its result or exception waits until it is asked for.

    The thread does not keep the process alive, and an interruption meets the main thread only.

    Args:
        compute: What to compute.
    """

    def __init__(self, compute: Callable[[], T]) -> None:
        self._value: T | None = None
        self._error: BaseException | None = None
        # Not Thread.join and is_alive: before Python 3.13, an interrupted join declares a running
        # thread dead.
        self._over = threading.Event()
        _running.add(self)
        threading.Thread(
            target=self._run, args=(compute,), name="mmccd-prefetch", daemon=True
        ).start()

    def result(self) -> T:
        """Wait, and give away what was computed or raise what was raised; to be called once."""
        self._over.wait()
        error, value = self._error, self._value
        self._error = self._value = None  # nothing large stays here
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # set where there is no error

    def _run(self, compute: Callable[[], T]) -> None:
        try:
            self._value = compute()
        except BaseException as error:
            self._error = error
        finally:
            _running.discard(self)
            self._over.set()


def is_anything_running() -> bool:
    """Tell whether a thread of this module still computes, so that leaving must not wait for it."""
    return bool(_running)
