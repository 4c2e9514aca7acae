"""What the user sees: messages and progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from mmccd_cli.errors import MmccdError, UsageError

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

    def remarks(self, record: Mapping[str, Any]) -> None:
        """Say a record's warnings, then its notes."""
        for text in record["warnings"]:
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
    def progress(self) -> Iterator[Progress]:
        """Show progress while the block runs: a bar on a terminal, nothing elsewhere."""
        if self.verbosity < 0 or not sys.stderr.isatty():
            yield Progress()
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(text_format_no_percentage=""),
            TimeElapsedColumn(),
        )
        bar = RichProgress(*columns, console=RichConsole(stderr=True), transient=True)
        with bar:
            self._bar = bar
            try:
                yield Progress(bar)
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

    def answer(self, data: Any, *lines: str, indent: int | None = 1) -> None:
        """Print a result: as JSON where that was asked for, else as lines for people."""
        for text in [json.dumps(data, indent=indent)] if self.as_json else lines:
            self.result(text)

    def record(self, record: Any) -> None:
        """Print what is meant for programs, as one line of JSON, where that was asked for."""
        if self.as_json:
            from mmccd_cli.outputs.record import to_json

            self.result(to_json(record))


def lesions_of(record: Mapping[str, Any]) -> str:
    """Say how many lesions a subject's record holds, and their volume."""
    return f"{_counted(record['lesions'], 'lesion')}, {record['lesion_volume_ml']:.2f} ml"


def left_out_of(record: Mapping[str, Any]) -> str:
    """Say how much the map shows that is not in the mask, as the end of a sentence."""
    if not (left_out := record.get("left_out")):
        return ""
    volume = sum(candidate["volume_ml"] for candidate in left_out)
    outputs = record["outputs"]
    where = outputs.get("table", outputs["sidecar"])
    return f"; {_counted(left_out, 'candidate')} left out ({volume:.2f} ml), see {where}"


def _counted(items: Sized, name: str) -> str:
    return f"{len(items)} {name}{'' if len(items) == 1 else 's'}"


class Progress:
    """One bar of rich that is reused from step to step; without one, nothing is shown."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None) if bar else None

    def begin(self, description: str) -> None:
        """Begin a step of unknown length."""
        if self._bar:
            self._bar.reset(self._task, description=description, total=None)

    def advance(self, done: int, total: int) -> None:
        """Show that so much of the step is done."""
        if self._bar:
            self._bar.update(self._task, completed=done, total=total)
