"""What the user sees: messages and progress on stderr, records on stdout, errors as exit codes."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import typer

from mmccd_cli.errors import ComputeError, DataError, MmccdError

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130
READER_GONE = 141
"""What a shell reports of a program that wrote to a closed pipe."""


class Console:
    """Messages of one command.

    Args:
        verbosity: -1 errors only, 0 results and warnings, 1 also details, 2 also tracebacks.
    """

    def __init__(self, verbosity: int = 0) -> None:
        self.verbosity = verbosity
        self._stdout = sys.stdout
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
        """Say what the user should know about a result."""
        if self.verbosity >= 0:
            self._say(f"  note: {text}")

    def error(self, error: MmccdError, *, about: str = "") -> None:
        """Say what failed, why, and what to do next."""
        prefix = typer.style("error:", fg="red", bold=True)
        self._say(f"{prefix} {about + ': ' if about else ''}{error.message}")
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
        """Write a line to stdout at once, so that a pipe sees it as soon as it is there."""
        self._stdout.write(text + "\n")
        self._stdout.flush()

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

    def _say(self, text: str) -> None:
        if self._bar is not None:  # above the bar, instead of through it
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(text, err=True)


class Progress:
    """One bar that is reused from step to step.

    Args:
        bar: A progress display of rich, or None to show nothing.
    """

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


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Turn every exception of a command into a message on stderr and an exit code.

    The command's options `quiet` and `verbose`, where it has them, say how much is shown.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except typer.Exit:
            raise
        except BrokenPipeError:
            _abandon_stdout()
            raise typer.Exit(READER_GONE) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            known = as_mmccd_error(error)
            Console(_verbosity(kwargs)).error(known)
            raise typer.Exit(known.exit_code) from None

    return run


def as_mmccd_error(error: Exception) -> MmccdError:
    """Turn any exception into one that has a sentence for people and an exit code."""
    if isinstance(error, MmccdError):
        return error
    known = _translated(error)
    known.__cause__ = error
    return known


def _translated(error: Exception) -> MmccdError:
    if isinstance(error, MemoryError):
        return ComputeError(
            "The memory of this computer does not suffice.",
            cause="Other programs occupy it, or an image is very large.",
            next_step="Close other programs, or use a computer with more memory.",
        )
    if isinstance(error, OSError) and error.filename is not None:
        return DataError(
            f"{error.filename} cannot be used: {error.strerror}.",
            next_step="Check that it exists and that its permissions allow it.",
        )
    said = " ".join(str(error).split())
    return MmccdError(
        f"Unexpected {type(error).__name__}{': ' + said if said else ''}",
        cause="This is a bug in mmccd.",
        next_step="Run again with -vv for the traceback, and report it.",
    )


def _verbosity(options: dict[str, Any]) -> int:
    return -1 if options.get("quiet") else int(options.get("verbose") or 0)


def _abandon_stdout() -> None:
    """Let the interpreter's last flush go nowhere instead of failing on the closed pipe."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
