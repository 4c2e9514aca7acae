"""Lists of subjects' folders, from stdin, a file or a pipe."""

from __future__ import annotations

import codecs
import os
import stat
import sys
import time
from pathlib import Path

from mmccd_cli.errors import DataError, UsageError, unreadable

MOST_BYTES = 64 << 20
PATIENCE_S = 10.0
"""How long somebody may take to open the other end of a pipe."""


def read_list(path: Path | None, *, null: bool) -> list[Path]:
    """Read a list of folders from a file, a pipe or, where there is none, stdin.

    Raises:
        DataError: It cannot be read.
        UsageError: It does not end, nobody writes into the pipe, or it ends its lines otherwise.
    """
    what = "stdin" if path is None else str(path)
    content = _content(path)
    if len(content) > MOST_BYTES:
        raise UsageError(
            f"The list in {what} has more than {MOST_BYTES >> 20} MiB.",
            next_step="Give a list of folders; is this a device?",
        )
    text = _text(content)
    if "\0" in text and not null:
        raise UsageError("The lines of the list of subjects end with NUL.", next_step="Add --null.")
    lines = text.split("\0") if null else text.replace("\r\n", "\n").split("\n")
    return [Path(line) for line in lines if line.strip()]


def _text(content: bytes) -> str:
    """Decode a list; names need not be valid in any encoding."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # PowerShell 5 writes it
        return content.decode("utf-16", errors="replace")
    return os.fsdecode(content.removeprefix(codecs.BOM_UTF8))


def _content(path: Path | None) -> bytes:
    if path is None:
        if sys.stdin is None:
            raise UsageError("stdin is closed.", next_step="Give --from FILE, or the folders.")
        return sys.stdin.buffer.read(MOST_BYTES + 1)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UsageError(
                f"--from takes a list of folders, and {path} is itself a folder.",
                next_step=f"Give it as a subject, or what it holds: {path}/*",
            )
        if stat.S_ISFIFO(mode):
            return _content_of_pipe(path)
        with path.open("rb") as stream:
            return stream.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise DataError(
            f"There is no list {path}.", next_step="Check the name and the folder."
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _content_of_pipe(path: Path) -> bytes:
    """Read a pipe once there is a writer; to open it waits for one, and may wait for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        until, start = time.monotonic() + PATIENCE_S, b""
        while not start:
            try:
                start = os.read(descriptor, 1)
            except BlockingIOError:  # there is a writer, who has not written yet
                break
            if not start and time.monotonic() > until:
                raise UsageError(
                    f"Nothing was written into the pipe {path}.",
                    next_step="Start what fills it, or give a file.",
                )
            time.sleep(0 if start else 0.05)
        os.set_blocking(descriptor, True)
        return start + stream.read(MOST_BYTES)
