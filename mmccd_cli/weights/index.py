"""The files of a bundle: `bundle.json`, which lists them, their sizes and their hashes.

`resolve` checks a bundle with this before anything imports torch; `bundle` reads through it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from mmccd_cli.config import CHECKED
from mmccd_cli.errors import WeightsError
from mmccd_cli.files import check_json, open_regular, parse_json, sha256_of_file

FORMAT = 1
INDEX = "bundle.json"
CARD = "README.md"
FRONT_MATTER = (
    "---\nlibrary_name: mmccd\nlicense: other\npipeline_tag: image-segmentation\n"
    "tags: [medical, mri, brain, anomaly-segmentation, diffusion]\n---\n\n"
)
"""What the Hub sorts models by; the first lines of a model card."""

MAX_FILES = 64
MAX_FILE_BYTES = 2 << 30
MAX_INDEX_BYTES = 4 << 20

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

_AGAIN = "Download or copy the bundle again, then run `mmccd weights verify`."


@checked_dataclass(frozen=True, config=CHECKED)
class FileEntry:
    """Hash and bytes of one file of a bundle."""

    sha256: Sha256
    size: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]


@checked_dataclass(frozen=True, config=CHECKED)
class IndexDocument:
    """`bundle.json` as it stands on the disk."""

    format: Literal[1]
    bundle: Any
    files: Annotated[dict[FileName, FileEntry], Field(max_length=MAX_FILES)]

    def __post_init__(self) -> None:
        if any(name.lower() == INDEX for name in self.files):
            raise ValueError(f"files must not list {INDEX} itself")


@dataclass(frozen=True, kw_only=True)
class BundleIndex:
    """What `bundle.json` says, checked as far as that goes without torch.

    Attributes:
        folder: The bundle's folder.
        sha256: Hash of `bundle.json`, which holds the hashes of all other files.
        size: Bytes of `bundle.json`.
        files: Name -> hash and bytes of every other file.
        bundle: The configuration as it stands in the file, not yet checked.
    """

    folder: Path
    sha256: str
    size: int
    files: dict[str, FileEntry]
    bundle: Any

    @property
    def all_files(self) -> dict[str, FileEntry]:
        """Name -> hash and bytes of every file, `bundle.json` among them."""
        return {INDEX: FileEntry(self.sha256, self.size), **self.files}

    @property
    def total_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.all_files.values())

    @property
    def modalities(self) -> list[str]:
        """Modalities that it has a cycle for, as far as its configuration can be read."""
        cycles = self._value("cycles", list) or []
        return [str(cycle.get("source")) for cycle in cycles if isinstance(cycle, dict)]

    @property
    def licence(self) -> str:
        """Licence of the weights."""
        return self.text("licence") or "unknown"

    @property
    def accuracy(self) -> str:
        """One line of the calibration's accuracy and on whom, or nothing where there is none.

        It is the calibration's, often on training subjects, and must say so: it is no test result.
        """
        about = self._value("calibration", dict) or {}
        rows, subjects = about.get("rows"), about.get("subjects")
        row = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}
        dice, modalities = row.get("left_out_dice"), row.get("modalities")
        if not (
            isinstance(dice, float) and isinstance(modalities, list) and isinstance(subjects, list)
        ):
            return ""
        return (
            f"Dice {dice:.2f} in calibration on {len(subjects)} subjects of the split "
            f"{about.get('split')!r} ({row.get('method')}, {'+'.join(map(str, modalities))})"
        )

    def text(self, key: str) -> str | None:
        """Return a text of the configuration, or None where there is none."""
        return self._value(key, str)

    def _value(self, key: str, kind: type) -> Any:
        value = self.bundle.get(key) if isinstance(self.bundle, dict) else None
        return value if isinstance(value, kind) else None


def read_index(folder: Path) -> BundleIndex:
    """Read and check `bundle.json`.

    Raises:
        WeightsError: It is missing, too large, or says something that it must not.
    """
    try:
        with open_regular(folder / INDEX) as stream:
            raw = stream.read(MAX_INDEX_BYTES + 1)
        document = check_json(IndexDocument, parse_json(raw, most_bytes=MAX_INDEX_BYTES), INDEX)
    except OSError as error:
        raise not_a_bundle(folder, f"{INDEX} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise not_a_bundle(folder, str(error)) from error
    return BundleIndex(
        folder=folder,
        sha256=hashlib.sha256(raw).hexdigest(),
        size=len(raw),
        files=document.files,
        bundle=document.bundle,
    )


def read_checked(folder: Path, name: str, entry: FileEntry) -> bytes:
    """Read one file whole and compare it with its entry.

    Raises:
        WeightsError: It cannot be read, or is not the file that the bundle lists.
    """
    path = folder / name
    with _reading(path, entry), open_regular(path) as stream:
        raw = stream.read()
    _check_hash(path, entry, hashlib.sha256(raw).hexdigest())
    return raw


def check_file(folder: Path, name: str, entry: FileEntry) -> None:
    """Compare one file with its entry, a block at a time.

    Raises:
        WeightsError: It cannot be read, or is not the file that the bundle lists.
    """
    path = folder / name
    with _reading(path, entry):
        digest = sha256_of_file(path)
    _check_hash(path, entry, digest)


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
    """Return the error for a folder that cannot be used as a bundle; the cause is a clause."""
    return WeightsError(
        f"{folder} is not a usable mmccd bundle.",
        cause=f"What is wrong: {cause[:400]}.",
        next_step="Run `mmccd weights list` to see what can be used.",
    )


def wrong_file(path: Path, *, expected: str, found: str) -> WeightsError:
    """Return the error for a file that is not the one that it should be."""
    return WeightsError(
        f"{path} is not the file that its bundle lists.",
        cause=f"Expected was SHA-256 {expected}, found {found}.",
        next_step=_AGAIN,
    )


@contextlib.contextmanager
def _reading(path: Path, entry: FileEntry) -> Iterator[None]:
    """Let a file be read, unless it is of another size; say so where it cannot be read."""
    try:
        size = path.stat().st_size
        if size != entry.size:
            expected = f"{entry.sha256} ({entry.size} bytes)"
            raise wrong_file(path, expected=expected, found=f"{size} bytes")
        yield
    except OSError as error:
        cause = f"The system says: {error.strerror or error}."
        raise WeightsError(f"{path} cannot be read.", cause=cause, next_step=_AGAIN) from error


def _check_hash(path: Path, entry: FileEntry, found: str) -> None:
    if found != entry.sha256:
        raise wrong_file(path, expected=entry.sha256, found=found)
