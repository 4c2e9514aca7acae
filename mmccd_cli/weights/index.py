"""The files of a bundle: their index, sizes and hashes; standard library only.

`weights` checks a bundle with this before anything imports torch, `bundle` reads through it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmccd_cli.errors import WeightsError

FORMAT = 1
INDEX = "bundle.json"
CARD = "README.md"
MAX_FILES = 64
MAX_FILE_BYTES = 2 << 30
MAX_INDEX_BYTES = 4 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class BundleIndex:
    """What `bundle.json` says, checked as far as that goes without torch.

    Attributes:
        folder: The bundle's folder.
        sha256: Hash of `bundle.json`, which holds the hashes of all other files.
        size: Bytes of `bundle.json`.
        files: Name -> {"sha256", "size"} of every other file.
        bundle: The configuration as it stands in the file, not yet checked.
    """

    folder: Path
    sha256: str
    size: int
    files: dict[str, dict[str, Any]]
    bundle: Any

    @property
    def total_bytes(self) -> int:
        """Bytes of all files together."""
        return self.size + sum(entry["size"] for entry in self.files.values())

    def text(self, key: str) -> str | None:
        """Return a text of the configuration, or None where there is none."""
        value = self.bundle.get(key) if isinstance(self.bundle, dict) else None
        return value if isinstance(value, str) else None


def read_index(folder: Path) -> BundleIndex:
    """Read and check `bundle.json`.

    Raises:
        WeightsError: It is missing, too large, or says something that it must not.
    """
    path = folder / INDEX
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_INDEX_BYTES + 1)
    except OSError as error:
        raise not_a_bundle(folder, f"{INDEX} cannot be read: {error.strerror}") from error
    if len(raw) > MAX_INDEX_BYTES:
        raise not_a_bundle(folder, f"{INDEX} is larger than {MAX_INDEX_BYTES} bytes")
    try:
        document = json.loads(raw, parse_constant=_refuse_constant, parse_float=_finite)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        if set(document) != {"format", "bundle", "files"}:
            raise ValueError("it needs exactly a format, a bundle and files")
        files = check_files(document["files"])
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise not_a_bundle(folder, _short(error)) from error
    digest = hashlib.sha256(raw).hexdigest()
    return BundleIndex(folder, digest, len(raw), files, document["bundle"])


def check_files(files: Any) -> dict[str, dict[str, Any]]:
    """Check names, sizes and hashes of a list of files as it came from JSON.

    Raises:
        ValueError: A name that could leave the folder, or a size or hash that is none.
    """
    if not isinstance(files, dict) or len(files) > MAX_FILES:
        raise ValueError(f"files must be an object of at most {MAX_FILES} names")
    for name, entry in files.items():
        if not _FILE_NAME.fullmatch(name) or name.lower() == INDEX:
            raise ValueError(f"{name!r} is not a file name within the bundle")
        if not isinstance(entry, dict) or set(entry) != {"sha256", "size"}:
            raise ValueError(f"{name} needs exactly a sha256 and a size")
        size, digest = entry["size"], entry["sha256"]
        if type(size) is not int or not 0 <= size <= MAX_FILE_BYTES:
            raise ValueError(f"the size of {name} is out of range")
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise ValueError(f"the sha256 of {name} is not one")
    return files


def read_checked(folder: Path, name: str, entry: Mapping[str, Any]) -> bytes:
    """Read one file whole and compare it with its entry.

    Raises:
        WeightsError: It cannot be read, or is not the file that the bundle lists.
    """
    path = folder / name
    try:
        size = path.stat().st_size
        # A file of another size is never read, however large it is.
        raw = path.read_bytes() if size == entry["size"] else None
    except OSError as error:
        raise _unreadable(path, error) from error
    found = f"{size} bytes" if raw is None else hashlib.sha256(raw).hexdigest()
    if raw is None or found != entry["sha256"]:
        raise wrong_file(path, entry, found)
    return raw


def check_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Compare one file with its entry, a block at a time.

    Raises:
        WeightsError: It cannot be read, or is not the file that the bundle lists.
    """
    path = folder / name
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            raise wrong_file(path, entry, f"{size} bytes")
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise _unreadable(path, error) from error
    if digest.hexdigest() != entry["sha256"]:
        raise wrong_file(path, entry, digest.hexdigest())


def check_folder(folder: Path) -> BundleIndex:
    """Read the index of a bundle and compare every file with it.

    Raises:
        WeightsError: Not a bundle, or the first file that is missing or is another one.
    """
    index = read_index(folder)
    for name, entry in index.files.items():
        check_file(folder, name, entry)
    return index


def not_a_bundle(folder: Path, cause: str) -> WeightsError:
    """Return the error for a folder that cannot be used as a bundle."""
    return WeightsError(
        f"{folder} is not a usable mmccd bundle",
        cause=cause,
        next_step="run `mmccd weights list` to see what can be used",
    )


def wrong_file(path: Path, entry: Mapping[str, Any], found: str) -> WeightsError:
    """Return the error for a file that is not the one that its bundle lists."""
    return WeightsError(
        f"{path} is not the file that its bundle lists",
        cause=f"expected SHA-256 {entry['sha256']} ({entry['size']} bytes), found {found}",
        next_step="download or copy the bundle again, then run `mmccd weights verify`",
    )


def _unreadable(path: Path, error: OSError) -> WeightsError:
    return WeightsError(
        f"cannot read {path}",
        cause=error.strerror or str(error),
        next_step="download or copy the bundle again, then run `mmccd weights verify`",
    )


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a number that fits")
    return value


def _short(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= 400 else text[:400] + "..."
