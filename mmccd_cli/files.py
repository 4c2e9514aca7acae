"""Files that are written whole or not at all, and their hashes; standard library only."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write one file so that a reader sees the old content or all of the new, never a part.

    Args:
        path: Where to write; an existing file is replaced.
        content: All of the bytes.

    Raises:
        OSError: The folder cannot be written or is full; nothing is left behind.
    """
    write_all_atomically({path: content})


def write_all_atomically(contents: Mapping[Path, bytes]) -> None:
    """Write several files so that none of them appears unless all could be written.

    Each content goes to a temporary file in the folder of its target and is flushed to the disk
    before the first rename, because a rename is the only step that hardly fails.

    Args:
        contents: Target path to all of its bytes; existing files are replaced.

    Raises:
        OSError: A folder cannot be written or is full; no temporary file is left behind.
    """
    waiting: list[tuple[Path, Path]] = []
    try:
        for path, content in contents.items():
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            waiting.append((temporary, path))
            _write_and_flush(temporary, content)
        for temporary, path in waiting:
            os.replace(temporary, path)
    finally:
        for temporary, _ in waiting:
            temporary.unlink(missing_ok=True)
    for folder in {path.parent for path in contents}:
        _flush_folder(folder)


def remove_leftovers(path: Path) -> None:
    """Remove temporary files that a killed process left for a target of `write_all_atomically`."""
    leftover = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    with contextlib.suppress(OSError):
        for other in path.parent.iterdir():
            if leftover.fullmatch(other.name):
                other.unlink()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write_and_flush(path: Path, content: bytes) -> None:
    # os.open instead of tempfile: a file made by tempfile is readable by its owner only, and
    # would stay so after the rename.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    # Best effort: Windows cannot open a folder, and some network file systems refuse to sync one.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
