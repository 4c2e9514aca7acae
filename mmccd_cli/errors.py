"""Every error that a user can meet, each with the exit code that it ends the program with."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_LEAST_ADDRESS_SPACE = 1_600_000_000
_BEFORE = r"(?<![\w.~/\\-])"
_ABSOLUTE = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\":]+[/\\])+")
_UPWARDS = re.compile(_BEFORE + r"(?:\.\.?/)+")


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

    def without_folders(self, known: Iterable[str]) -> MmccdError:
        """Return the same error as files may hold it; see the function `without_folders`."""
        known = list(known)
        message, cause, next_step = (
            text and without_folders(text, known)
            for text in (self.message, self.cause, self.next_step)
        )
        return type(self)(message or "", cause=cause, next_step=next_step)


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


class StorageError(ComputeError):
    """The disk is full or broken, which concerns every subject."""


class SomeSubjectsFailed(MmccdError):
    """At least one subject of many failed; the others are done."""

    exit_code = 6


CONCERNS_ALL = (WeightsError, UsageError, StorageError)
"""What no other subject would be spared, and so stops the work on many."""


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
    if isinstance(error, OSError) and error.errno in _DISK_IS_FULL:
        return unwritable("What was to be written could not be.", error)
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
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
    encoding = sys.getfilesystemencoding()
    if isinstance(error, UnicodeEncodeError) and error.encoding == encoding != "utf-8":
        return UsageError(
            f"The name of a file cannot be written as {encoding}.",
            cause="That is how this shell's locale, or PYTHONUTF8=0, has Python write names.",
            next_step="Set LC_ALL=C.UTF-8, and leave out PYTHONUTF8=0.",
        )
    said = " ".join(str(error).split())
    return MmccdError(
        f"Unexpected {type(error).__name__}{': ' + said if said else ''}",
        cause="This is a bug in mmccd.",
        next_step="Run again with -vv for the traceback, and report it.",
    )


def let_go(error: BaseException) -> None:
    """Clear the variables that a traceback holds: whole images, mostly."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def without_folders(text: str, known: Iterable[str] = ()) -> str:
    """Return a message in which paths have lost their folders: those may name a person.

    Args:
        text: The message.
        known: Paths that may occur in it, as they were typed, with or without blanks. Their
            folders and what lies in them may occur, too, and all in their absolute form.
    """
    for place in sorted(_places(known), key=len, reverse=True):
        pattern = _BEFORE + re.escape(place)
        text = re.sub(pattern + r"[/\\]+(?=[^\s'])", "", text)
        name = os.path.basename(place).replace("\\", r"\\")
        text = re.sub(pattern + r"[/\\]*(?![\w-])", name, text)
    return _ABSOLUTE.sub("", _UPWARDS.sub("", text))


def _places(known: Iterable[str]) -> set[str]:
    """Paths and all folders that they lie in, each also in its absolute form."""
    places: set[Path] = set()
    for text in known:
        for path in (Path(text), Path(os.path.abspath(text)), Path(os.path.realpath(text))):
            places |= {path, *path.parents}
    return {str(place) for place in places if place.name not in ("", "..")}


def unwritable(message: str, error: OSError, *, and_now: str = "") -> StorageError | UsageError:
    """The error for an output that the system does not let us write.

    Args:
        message: One sentence: what could not be written.
        error: What the system says; a full disk is another error than missing permissions.
        and_now: What became of the rest, at the end of the next step.
    """
    is_full = error.errno in _DISK_IS_FULL
    help = "Free some space (df -h shows it)" if is_full else "Check the permissions of its folder"
    return (StorageError if is_full else UsageError)(
        message,
        cause=f"The system says: {error.strerror or error}.",
        next_step=f"{help}{and_now}.",
    )


def _is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory ran out where the interpreter has no word for it, as in an import."""
    text = str(error).lower()
    return getattr(error, "errno", None) == errno.ENOMEM or any(
        words in text for words in ("failed to map segment", "cannot allocate memory")
    )


def check_address_space() -> None:
    """Refuse a limit of memory under which PyTorch ends the process without a word.

    Raises:
        ComputeError: The limit is lower than what it takes to load PyTorch.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if 0 <= limit < _LEAST_ADDRESS_SPACE:
        raise ComputeError(
            f"This process may use {limit / 1e9:.1f} GB of memory, and PyTorch needs "
            f"{_LEAST_ADDRESS_SPACE / 1e9:.1f}.",
            cause="A limit was set, by `ulimit -v` or by the system that runs jobs here.",
            next_step="Ask for more memory, or raise the limit: ulimit -v unlimited",
        )


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for an input that the system does not let us read."""
    return DataError(
        f"{path} cannot be read.",
        cause=f"The system says: {error.strerror}.",
        next_step=f"Check the permissions: ls -l '{path}'",
    )
