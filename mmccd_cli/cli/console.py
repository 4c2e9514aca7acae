"""What the user sees: messages and progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from mmccd_cli.errors import MmccdError, UsageError
from mmccd_cli.progress import Pace, duration, heard_by, silent

MESSAGES = "Messages"
# Names of files may hold them; a terminal would obey.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def switch(*names: str, help: str, panel: str | None = None) -> Any:
    """Declare an option that takes no value, such as --force."""
    return typer.Option(*names, metavar="", help=help, show_default=False, rich_help_panel=panel)


@dataclass
class Console:
    """Messages of one command, and the options that say how many there are."""

    quiet: Annotated[bool, switch("--quiet", "-q", help="Only errors.", panel=MESSAGES)] = False
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            metavar="",
            help="More details; -vv with tracebacks.",
            show_default=False,
            rich_help_panel=MESSAGES,
        ),
    ] = 0

    def __post_init__(self) -> None:
        self.verbosity = -1 if self.quiet else self.verbose
        self._stdout = sys.stdout
        self.unprinted: UsageError | None = None
        self._bar: Any = None

    def info(self, text: str) -> None:
        """Say what was done."""
        if self.verbosity >= 0:
            self._say(text)

    def detail(self, text: str) -> None:
        """Say something that only some want to know."""
        if self.verbosity >= 1:
            self._say(text)

    def note(self, text: str) -> None:
        """Say what happened that was not asked for."""
        if self.verbosity >= 0:
            self._say(f"  note: {text}")

    def warning(self, text: str) -> None:
        """Say what should be read before a result is trusted."""
        if self.verbosity >= 0:
            self._say(text, prefix=typer.style("  warning:", fg="yellow") + " ")

    def remarks(self, record: Mapping[str, Any], folder: Path = Path()) -> None:
        """Say a record's warnings, which files in its folder show another mask, and its notes."""
        from mmccd_cli.outputs.remask import describe_stale

        for text in [*record["warnings"], *describe_stale(record, folder)]:
            self.warning(text)
        for text in record.get("notes", ()):
            self.note(text)

    def error(self, error: MmccdError, *, about: str = "") -> None:
        """Say what failed, why, and what to do next."""
        prefix = typer.style("error:", fg="red", bold=True)
        self._say(f"{about + ': ' if about else ''}{error.message}", prefix=prefix + " ")
        if error.cause:
            self._say(f"  cause: {error.cause}")
        if error.next_step:
            self._say(f"  next:  {error.next_step}")
        if self.verbosity >= 2:
            self._say("".join(traceback.format_exception(error)).rstrip())

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        """List what failed, also when quiet."""
        width = max(len(name) for name, _ in rows)
        for name, text in rows:
            self._say(f"  {name:<{width}}  {text}")

    def result(self, text: str) -> None:
        """Write a line to stdout at once, so that a pipe sees it as soon as it is there.

        Where stdout is closed or full, the work goes on, and `unprinted` is told in the end.

        Raises:
            BrokenPipeError: The reader has left.
        """
        if self.unprinted is not None:
            return
        try:
            encoding = self._stdout.encoding or "utf-8"
            self._stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")
            self._stdout.flush()
        except BrokenPipeError:
            raise
        except (OSError, ValueError, AttributeError) as error:  # full, closed, or none at all
            self.unprinted = UsageError(
                "A result could not be printed to stdout.",
                cause=f"The system says: {getattr(error, 'strerror', None) or 'it is closed'}.",
                next_step="Files that were written stay; look where stdout leads.",
            )

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Keep other packages' chatter off stdout, and their warnings off the terminal."""
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            if self.verbosity < 1:
                warnings.simplefilter("ignore")
            yield

    @contextlib.contextmanager
    def progress(self) -> Iterator[ProgressDisplay]:
        """Show progress while the block runs: a bar on a terminal, a line at times elsewhere."""
        if self.verbosity < 0 or not sys.stderr.isatty():
            progress = ProgressDisplay(say=self.info)
            with heard_by(progress.stage):
                yield progress
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        bar = RichProgress(*columns, console=RichConsole(stderr=True), transient=True)
        with bar:
            self._bar = bar
            try:
                progress = ProgressDisplay(bar)
                with heard_by(progress.stage):
                    yield progress
            finally:
                self._bar = None

    def _say(self, text: str, *, prefix: str = "") -> None:
        text = prefix + _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
        if self._bar is not None:  # above the bar, instead of through it
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            with contextlib.suppress(OSError, ValueError):  # a full or closed stderr stops nothing
                typer.echo(text, err=True)


@dataclass
class JsonConsole(Console):
    """Messages of a command whose results can be had as JSON, too."""

    as_json: Annotated[
        bool,
        switch(
            "--json",
            help="Print the results to stdout as JSON; for subjects, one record a line.",
            panel=MESSAGES,
        ),
    ] = False

    def answer(self, data: Any, *lines: str) -> None:
        """Print a result: as a line of JSON where that was asked for, else as lines for people."""
        for text in [json.dumps(data)] if self.as_json else lines:
            self.result(text)

    def record(self, record: Any) -> None:
        """Print what is meant for programs, as one line of JSON, where that was asked for."""
        if self.as_json:
            from mmccd_cli.outputs.record import to_json

            self.result(to_json(record))


def lesions_of(record: Mapping[str, Any]) -> str:
    """Say how many lesions a subject's record holds, and their volume."""
    return f"{counted(len(record['lesions']), 'lesion')}, {record['lesion_volume_ml']:.2f} ml"


def left_out_of(record: Mapping[str, Any]) -> str:
    """Say how much the map shows that is not in the mask, as the end of a sentence.

    All of it counts, as in the table that is named: what is listed, and what is only counted.
    """
    left_out, small = record.get("left_out", ()), record.get("left_out_small", {})
    number = len(left_out) + small.get("count", 0)
    if not number:
        return ""
    volume = sum(candidate["volume_ml"] for candidate in left_out) + small.get("volume_ml", 0.0)
    outputs = record["outputs"]
    where = outputs.get("table", outputs["sidecar"])
    return f"; {counted(number, 'candidate')} left out ({volume:.2f} ml), see {where}"


def counted(number: int, name: str) -> str:
    """Say a number of things, whose name becomes plural where there is not one of them."""
    return f"{number} {name}{'' if number == 1 else 's'}"


class ProgressDisplay:
    """How a command comes along: one bar of rich where there is one, else a line now and then.

    A step may be one of several, such as the subjects of a cohort, and may have stages; how far it
    is itself is told by `advance`.
    """

    SECONDS_BETWEEN_LINES = 30.0
    _SHARE_BETWEEN_LINES = 0.05

    def __init__(self, bar: Any = None, say: Callable[[str], None] = silent) -> None:
        self._bar, self._say = bar, say
        self._task = bar.add_task("", total=None, count="", left="") if bar else None
        self._step = self._stage = ""
        self._steps: Pace | None = None
        self._parts = Pace(0)
        self._said = time.monotonic()

    def expect(self, number: int) -> None:
        """Say of how many steps that take about equally long those are that begin from now on."""
        self._steps = Pace(number)

    def begin(self, description: str, *, told: bool = True) -> None:
        """Begin a step of unknown length; without a bar a line tells of it, unless not `told`."""
        if description == self._step:
            return
        self._step, self._stage, self._parts = description, "", Pace(0)
        if told and not self._bar:
            self._tell(description)
        self._draw()

    def stage(self, name: str) -> None:
        """Show what is being done of the step."""
        self._stage = name.replace("_", " ")
        self._draw()

    def advance(
        self, done: int, total: int, *, left: float | None = None, told: bool = False
    ) -> None:
        """Show that so much of the step is done; without a bar as a line at times.

        Args:
            done: Parts that are through.
            total: Parts in all.
            left: Seconds that they still take, where that is known better than from their pace.
            told: Whether a line is due in any case.
        """
        self._parts.done, self._parts.total, self._parts.known_left = done, total, left
        self._draw()
        waited = time.monotonic() - self._said
        least = max(self.SECONDS_BETWEEN_LINES, self._SHARE_BETWEEN_LINES * self._parts.elapsed)
        if not self._bar and done and (told or waited >= least):
            self._tell(f"{self._description}: {_how_far(self._parts)}")

    def passes(self, done: int, total: int) -> None:
        """Show that so many passes of the networks of a step are done, as `advance` does.

        Their pace is measured from the first one: to read and to register takes another time.
        """
        if self._parts.total == 0 or done < self._parts.done:  # begun anew, as on another device
            self._parts = Pace(total, done=done, spared=done)
        self.advance(done, total)

    def end(self, *, spared: bool = False) -> str:
        """End one of the expected steps; return how far all are, or nothing where the bar says it.

        Args:
            spared: Whether it took no time, so that it says nothing about the others.
        """
        self._step, self._parts = "", Pace(0)
        if self._steps is None:
            return ""
        self._steps.done += 1
        self._steps.spared += spared
        self._said = time.monotonic()
        self._draw()
        return "" if self._bar or self._steps.total < 2 else _how_far(self._steps)

    @property
    def _description(self) -> str:
        return ": ".join(part for part in (self._step, self._stage) if part)

    def _tell(self, text: str) -> None:
        self._said = time.monotonic()
        self._say(text)

    def _draw(self) -> None:
        if not self._bar:
            return
        parts, steps = self._parts, self._steps
        share = parts.done / parts.total if parts.total else 0.0
        several = steps is not None and steps.total > 1
        pace = steps if steps is not None and several else parts
        # Passes alone do not tell how long a whole step takes; one that is through does.
        known = several and pace.done > pace.spared
        left = pace.left(share if known else 0.0)
        whole = None if pace.total == 0 else pace.total
        self._bar.update(
            self._task,
            description=self._description,
            total=whole,
            completed=pace.done + (share if several else 0.0),
            count=f"{min(pace.done + several, pace.total)} of {pace.total}" if whole else "",
            left="" if left is None else f"{duration(left)} left",
        )


def _how_far(pace: Pace) -> str:
    """Say how much is done, and how long that took and the rest will take."""
    text = f"{pace.done} of {pace.total}"
    if pace.elapsed >= 1:
        text += f", {duration(pace.elapsed)} so far"
    left = None if pace.done == pace.total else pace.left()
    return text if left is None else f"{text}, about {duration(left)} left"
