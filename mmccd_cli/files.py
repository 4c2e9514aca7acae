"""Files: written whole or not at all and never over an input, their hashes, and checked JSON."""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import hashlib
import importlib
import json
import math
import operator
import os
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TypeVar

from mmccd_cli.errors import DataError, MmccdError, OutputExistsError, UsageError, unwritable

if TYPE_CHECKING:
    from pydantic import ValidationError

T = TypeVar("T")

_fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None

MAX_JSON_BYTES = 64 << 20
_TRYING = threading.Lock()  # held by who tries whether a folder can be written
_LONGEST_START = 128
"""Bytes of a file's name that the name of its temporary file repeats."""


def refuse_to_overwrite(
    targets: Iterable[Path],
    inputs: Iterable[Path] = (),
    *,
    force: bool,
    make_folders: bool = False,
    next_step: str = "Add --force to overwrite, or choose another name.",
) -> None:
    """Refuse, before anything is computed, targets that cannot or must not be written.

    Args:
        targets: All files that are going to be written.
        inputs: All files that are read; none of them is ever overwritten.
        force: Whether other existing files may be overwritten.
        make_folders: Whether folders of targets are made where they are missing.
        next_step: What helps where a target exists.

    Raises:
        OutputExistsError: A target exists; the first one in the way is named.
        UsageError: A target is an input or a folder, or its folder is unusable.
        StorageError: The disk is full.
    """
    targets = list(targets)
    known = {_identity(path): path for path in inputs}
    for path in targets:
        if same := known.get(_identity(path)):
            raise UsageError(
                f"The output {path} is the input {same}; an input is never overwritten.",
                next_step="Give the output another name or folder.",
            )
        if path.is_dir():
            raise UsageError(f"The output {path} is a folder.", next_step="Give a file name.")
    for folder in dict.fromkeys(path.parent for path in targets):
        _check_folder(folder, make_folders)
    existing = [path for path in targets if path.exists()]
    if existing and not force:
        others = f" and {len(existing) - 1} more exist" if len(existing) > 1 else " exists"
        message = f"The output {existing[0]}{others} already."
        raise OutputExistsError(message, next_step=next_step)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Lend a temporary path to a writer that wants one; what it wrote then becomes `path`.

    Where the block raises, `path` is as it was before.

    Args:
        path: Where to write; an existing file is replaced.

    Yields:
        A path in the same folder, of an empty file that is locked until the block ends.

    Raises:
        OSError: The folder cannot be written or is full; nothing is left behind.
    """
    temporary, held = _open_temporary(path)
    with held:
        try:
            yield temporary
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            if _fcntl is None:  # Windows renames no file that is open
                held.close()
            os.replace(temporary, path)
        finally:
            if _fcntl is None:
                held.close()
            temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Write one file so that a reader sees the old content or all of the new, never a part.

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
    with contextlib.ExitStack() as held:
        try:
            for path, content in contents.items():
                temporary, stream = _open_temporary(path)
                waiting.append((temporary, path))
                held.enter_context(stream)
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
                if _fcntl is None:  # Windows renames no file that is open
                    stream.close()
            for temporary, path in waiting:
                os.replace(temporary, path)
        finally:
            for temporary, _ in waiting:
                temporary.unlink(missing_ok=True)
    for folder in {path.parent for path in contents}:
        _flush_folder(folder)


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other processes and threads that call this for the folder waiting until the block ends.

    For what looks at files and then writes them. Where the system has no locks, nothing waits.
    """
    descriptor = None
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        _lock(descriptor, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)  # which ends the lock


def remove_leftovers(*paths: Path) -> None:
    """Remove temporary files that a killed process left for targets of this module's writers.

    Those that a living process is writing, as another run in the same folder may be, are locked.
    """
    starts = {path.with_name(_start_of_temporary(path)) for path in paths}
    for folder in {path.parent for path in paths}:
        with contextlib.suppress(OSError):
            for other in folder.iterdir():
                match = re.fullmatch(r"(\..*\.)[0-9a-f]{8}\.tmp", other.name)
                if match and folder / match[1] in starts and _is_abandoned(other):
                    other.unlink(missing_ok=True)


def end_process(code: int) -> NoReturn:
    """End the process at once, except that a thread that tries a folder leaves nothing in it."""
    _TRYING.acquire(timeout=1)
    os._exit(code)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; a pipe or device, which may never end, is an `OSError`."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return path.open("rb")


def check_regular_file(path: Path) -> None:
    """Refuse what may never end, or can be read only once.

    Raises:
        DataError: It is there, but a pipe, a socket or a device.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(
            f"{path} is a pipe, a socket or a device; only regular files are read.",
            cause="It may never end, and an input is read more than once.",
            next_step="Write its content into a file and give that.",
        )


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits.

    Raises:
        DataError: It is not a regular file.
        OSError: The file cannot be read.
    """
    check_regular_file(path)
    with path.open("rb") as stream:
        return sha256_of_stream(stream)


def sha256_of_stream(stream: BinaryIO) -> str:
    """Return the SHA-256 of all that is left in a stream."""
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def read_json(path: Path, *, most_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file of a bounded size, strictly.

    Raises:
        OSError: It cannot be read.
        ValueError: It is too large, is not JSON, or holds a number that is none; the text is a
            clause that says which.
    """
    with open_regular(path) as stream:
        return parse_json(stream.read(most_bytes + 1), most_bytes=most_bytes)


def parse_json(raw: bytes, *, most_bytes: int = MAX_JSON_BYTES) -> Any:
    """Parse JSON strictly; see `read_json`."""
    if len(raw) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes} bytes")
    try:
        return json.loads(raw, parse_constant=_finite, parse_float=_finite, parse_int=_whole)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError("it is not JSON: it is no text in UTF-8") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json_as(
    path: Path,
    kind: type[T],
    *,
    what: str,
    error: type[MmccdError] = DataError,
    next_step: str | None = None,
) -> T:
    """Read a JSON file and check that it holds what is expected.

    Args:
        path: The file.
        kind: The expected type, such as `dict[str, list[str]]` or a dataclass of `config`.
        what: What the file should be, for the message: "a split file".
        error: Class of the error.
        next_step: What helps where the file is not what it should be.

    Raises:
        MmccdError: Of the class `error`: the file cannot be read or holds something else.
    """
    try:
        return check_json(kind, read_json(path))
    except OSError as failure:
        cause = f"The system says: {failure.strerror}."
        raise error(f"{path} cannot be read.", cause=cause, next_step=next_step) from failure
    except ValueError as failure:
        cause = f"What is wrong: {failure}."
        raise error(f"{path} is not {what}.", cause=cause, next_step=next_step) from failure


def check_json(
    kind: type[T], values: Any, where: str = "", *, retired: Mapping[str, Any] | None = None
) -> T:
    """Turn what JSON holds into a type: lists into tuples, objects into dataclasses, all checked.

    Args:
        kind: The type.
        values: What was read from JSON.
        where: Name of the values in messages.
        retired: Unknown keys that are left out where they have exactly the value given here.

    Raises:
        ValueError: An unknown key, a value of the wrong type or out of range; the text is a clause
            that names the field, what is possible, and what was got.
    """
    from pydantic import TypeAdapter, ValidationError

    adapter = TypeAdapter(kind)
    try:
        # As JSON once more, because only there a list may stand for a tuple.
        return adapter.validate_json(json.dumps(values), strict=True)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValidationError as error:
        known = _without(values, error, retired) if retired else None
        if known is None:
            raise ValueError(explain_invalid(error, where)) from error
    return check_json(kind, known, where)


def explain_invalid(error: ValidationError, where: str = "") -> str:
    """Say in one clause what pydantic found wrong first: field, what is possible, what was got."""
    problems = error.errors(include_url=False)
    first = problems[0]
    unknown = [p["loc"] for p in problems if p["type"] == "unexpected_keyword_argument"]
    if unknown and first["type"] != "json_invalid":
        owner = _place(unknown[0][:-1], where)
        return f"{owner} has unknown keys: {', '.join(str(loc[-1]) for loc in unknown)}"
    place = _place(first["loc"], where)
    if first["type"] in ("missing", "missing_argument"):
        return f"{_place(first['loc'][:-1], where)} is incomplete: {first['loc'][-1]} is missing"
    if first["type"] == "value_error":
        return f"{place}: {first['ctx']['error']}".removeprefix("it: ")
    must = re.sub(r"^\w+ should", "must", first["msg"])
    got = repr(first["input"])
    return f"{place} {must}, got {got if len(got) <= 80 else got[:80] + '...'}"


def _without(values: Any, error: ValidationError, retired: Mapping[str, Any]) -> Any:
    """Return the values less their retired keys, or None where there is no such key."""
    unknown = [p for p in error.errors() if p["type"] == "unexpected_keyword_argument"]
    gone = [p["loc"] for p in unknown if (p["loc"][-1], p["input"]) in retired.items()]
    known = copy.deepcopy(values)
    for *path, key in gone:
        del functools.reduce(operator.getitem, path, known)[key]
    return known if gone else None


def _place(loc: tuple[int | str, ...], where: str) -> str:
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in loc)
    return (where + path).removeprefix(".") or "it"


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def _whole(text: str) -> int:
    """A whole number; like a fraction, not one that no float can hold."""
    _finite(text)
    return int(text)


def resolved(path: Path) -> Path:
    """Follow the links of a path as far as they lead; unlike `Path.resolve`, loops are no error."""
    return Path(os.path.realpath(path))


def _identity(path: Path) -> object:
    """Return what two paths to one file share, through symbolic and hard links too."""
    try:
        status = path.stat()
    except OSError:
        return resolved(path)
    return status.st_dev, status.st_ino


def _check_folder(folder: Path, make: bool) -> None:
    existing = folder
    if make:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise UsageError(
                f"The output folder {folder} cannot be made: {existing} is a file.",
                next_step="Give another folder.",
            )
    elif not folder.is_dir():
        raise UsageError(
            f"The output folder {folder} does not exist.", next_step=f"Make it: mkdir -p '{folder}'"
        )
    probe = _temporary(existing / "mmccd")
    try:  # permissions alone do not tell: a file system may refuse what they allow
        with _TRYING:
            try:
                probe.mkdir()
            finally:  # also where the process is interrupted just now
                with contextlib.suppress(OSError):
                    probe.rmdir()
    except OSError as error:
        message = f"The output folder {folder} cannot be written."
        raise unwritable(message, error, and_now=", or give another folder") from error


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_start_of_temporary(path)}{secrets.token_hex(4)}.tmp")


def _start_of_temporary(path: Path) -> str:
    """How the names of a target's temporary files start; a long name gives way to its hash."""
    name = os.fsencode(path.name)
    return f".{path.name if len(name) <= _LONGEST_START else hashlib.sha256(name).hexdigest()}."


def _open_temporary(path: Path) -> tuple[Path, BinaryIO]:
    """Make a temporary file for a target, and hold a lock on it as long as it is open."""
    while True:
        temporary = _temporary(path)
        # os.open instead of tempfile: a file made by tempfile is readable by its owner only, and
        # would stay so after the rename.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        stream = os.fdopen(descriptor, "wb")
        _lock(stream, wait=True)
        if temporary.exists():  # another run may have taken it for abandoned until just now
            return temporary, stream
        stream.close()


def _is_abandoned(temporary: Path) -> bool:
    with contextlib.suppress(OSError), temporary.open("rb") as stream:
        return _lock(stream, wait=False)
    return False


def _lock(stream: BinaryIO | int, *, wait: bool) -> bool:
    """Lock a file until it is closed; False where another process holds it."""
    if _fcntl is None:
        return True
    try:
        _fcntl.flock(stream, _fcntl.LOCK_EX | (0 if wait else _fcntl.LOCK_NB))
    except OSError as error:  # some network file systems have no locks
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _flush_folder(folder: Path) -> None:
    # Best effort: Windows cannot open a folder, and some network file systems refuse to sync one.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
