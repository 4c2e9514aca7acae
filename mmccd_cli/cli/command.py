"""Functions as commands: dataclasses become options, and exceptions become exit codes."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

import typer

from mmccd_cli.cli.console import Console
from mmccd_cli.errors import as_mmccd_error

INTERRUPTED = 130
READER_GONE = 141
"""What a shell reports of a program that wrote to a closed pipe."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function ready for Typer: its parameters may be dataclasses of options.

    Each field of such a dataclass, annotated as Typer wants it, becomes an option of its own; the
    function receives the whole. While it runs, stdout carries results only, which go through its
    parameter of the type `Console`; an exception becomes a message there and an exit code.

    Example:
        >>> @command
        ... def count(stop: int, model: ModelOptions, console: Console) -> None:
        ...     console.result(str(stop))
    """
    parameters = inspect.signature(function, eval_str=True).parameters
    groups: dict[str, Any] = {
        name: one.annotation for name, one in parameters.items() if is_dataclass(one.annotation)
    }
    (messages,) = (name for name, hint in groups.items() if issubclass(hint, Console))

    @functools.wraps(function)
    def run(**values: Any) -> None:
        console = _collect(groups[messages], values)
        with _exit_codes(console), console.computing():
            given = {name: value for name, value in values.items() if name in parameters}
            given |= {name: _collect(hint, values) for name, hint in groups.items()}
            function(**given | {messages: console})

    spread = [one for parameter in parameters.values() for one in _spread(parameter)]
    run.__signature__ = inspect.Signature(spread)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in spread}
    return run


def _spread(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """Return a parameter, or instead of a dataclass one for each of its fields."""
    if not is_dataclass(parameter.annotation):
        return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
    hints = get_type_hints(parameter.annotation, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(parameter.annotation)
        if field.init
    ]


def _collect(group: type, values: Mapping[str, Any]) -> Any:
    """Return a dataclass of options, filled with those values that are its fields."""
    return group(**{field.name: values[field.name] for field in fields(group) if field.init})


@contextlib.contextmanager
def _exit_codes(console: Console) -> Iterator[None]:
    """Turn every exception into a message on stderr and an exit code."""
    try:
        yield
        _tell_unprinted(console)
    except typer.Exit:
        _tell_unprinted(console)
        raise
    except BrokenPipeError:
        _abandon_stdout()
        raise typer.Exit(READER_GONE) from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        known = as_mmccd_error(error)
        console.error(known)
        _abandon_stdout()
        raise typer.Exit(known.exit_code) from None


def _tell_unprinted(console: Console) -> None:
    """End the command where a result could not be printed, whatever else it would end with."""
    if (error := console.unprinted) is not None:
        console.unprinted = None
        console.error(error)
        _abandon_stdout()
        raise typer.Exit(error.exit_code)


def _abandon_stdout() -> None:
    """Let the interpreter's last flush go nowhere instead of failing on the closed pipe."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
