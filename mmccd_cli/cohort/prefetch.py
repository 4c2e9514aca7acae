"""The next subject's preparation in a thread, while this one is on the device."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_running: set[object] = set()


class Ahead(Generic[T]):
    """A computation in a thread of its own; its result or exception waits until it is asked for.

    The thread does not keep the process alive, and an interruption meets the main thread only.

    Args:
        compute: What to compute.
    """

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._value: T | None = None
        self._error: BaseException | None = None
        # Not Thread.join and is_alive: before Python 3.13, an interrupted join declares a running
        # thread dead.
        self._over = threading.Event()
        _running.add(self)
        threading.Thread(target=self._run, name="mmccd-ahead", daemon=True).start()

    def result(self) -> T:
        """Wait, and return what was computed or raise what was raised."""
        self._over.wait()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # set where there is no error

    def _run(self) -> None:
        try:
            self._value = self._compute()
        except BaseException as error:
            self._error = error
        finally:
            _running.discard(self)
            self._over.set()


def is_anything_running() -> bool:
    """Tell whether a thread of this module still computes, so that leaving must not wait for it."""
    return bool(_running)
