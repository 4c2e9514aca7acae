"""Every error that a user can meet, each with the exit code that it ends the program with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class MmccdError(Exception):
    """An error with a sentence of what happened, its likely cause and what to do next.

    Args:
        message: One sentence: what failed and on which file.
        cause: One sentence of the likely cause, or None where the message says it all.
        next_step: The command or action that helps, or None.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, cause: str | None = None, next_step: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.next_step = next_step


class UsageError(MmccdError):
    """The command line contradicts itself or would overwrite something."""

    exit_code = 2


class OutputExistsError(UsageError):
    """An output exists already; of many subjects, this stops none of the others."""


class DataError(MmccdError):
    """The input data cannot be used: missing, unreadable, empty, of the wrong kind."""

    exit_code = 3


class GeometryError(DataError):
    """The position, orientation or spacing of an image is missing, broken or contradictory."""


class WeightsError(MmccdError):
    """A bundle is missing, damaged, of the wrong kind, or lacks what the subject needs."""

    exit_code = 4


class ComputeError(MmccdError):
    """The device cannot be used, or memory ran out after all fallbacks."""

    exit_code = 5


class DeviceMemoryError(ComputeError):
    """A device cannot hold a single slice's pass."""


class SomeSubjectsFailed(MmccdError):
    """At least one subject of many failed; the others are done."""

    exit_code = 6


class Caution(str):
    """A sentence to read before trusting a result, among others that only say what happened."""

    __slots__ = ()


def notes_and_warnings(sentences: Iterable[str]) -> tuple[list[str], list[str]]:
    """Part sentences into those that say what happened, and each `Caution` among them."""
    said = list(sentences)
    return (
        [text for text in said if not isinstance(text, Caution)],
        [str(text) for text in said if isinstance(text, Caution)],
    )


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


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for an input that the system does not let us read."""
    return DataError(
        f"{path} cannot be read.",
        cause=f"The system says: {error.strerror}.",
        next_step=f"Check the permissions: ls -l '{path}'",
    )
