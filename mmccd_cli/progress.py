"""How far a piece of work is, how long its stages took, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

Progress = Callable[[int, int], None]
"""Called with the number of parts that are done, and their number in all."""


def silent(*_: object) -> None:
    """A `Progress`, or any other report, that tells nobody."""


_listener: ContextVar[Callable[[str], None]] = ContextVar("listener", default=silent)


@contextmanager
def heard_by(listener: Callable[[str], None]) -> Iterator[None]:
    """Call a listener with the name of each stage that begins inside the `with`, in this thread."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


@dataclass
class Pace:
    """How long equal parts of a work took, and how long those that remain will.

    Attributes:
        total: Parts in all.
        done: Those that are through.
        spared: Those of them that took no time, such as results that were there.
        began: When the first began, on the clock of `time.monotonic`.
        known_left: Seconds that remain, where somebody knows it.
    """

    total: int
    done: int = 0
    spared: int = 0
    began: float = field(default_factory=lambda: time.monotonic())
    known_left: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the first part began."""
        return time.monotonic() - self.began

    def left(self, share: float = 0.0) -> float | None:
        """Estimate the seconds that remain; None before anything can be told.

        Args:
            share: How much of the part that is being done is through, in [0, 1].
        """
        if self.known_left is not None:
            return self.known_left
        worked = self.done - self.spared + share
        return self.elapsed / worked * (self.total - self.done - share) if worked > 0 else None


def duration(seconds: float) -> str:
    """Say a time as people do: 8 s, 12 min, 3 h 20 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


@dataclass(frozen=True)
class Stopwatch:
    """Seconds of each stage of a piece of work.

    Attributes:
        seconds: Stage -> seconds, in the order in which the stages ended first.
    """

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add what happens inside the `with` to a stage; what raises does not count."""
        _listener.get()(name)
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
