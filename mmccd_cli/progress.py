"""How far a piece of work is, and how long its stages took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Progress = Callable[[int, int], None]
"""Called with the number of parts that are done, and their number in all."""


def silent(*_: object) -> None:
    """A `Progress`, or any other report, that tells nobody."""


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
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
