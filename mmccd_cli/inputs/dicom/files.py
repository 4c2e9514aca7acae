"""The DICOM files of a folder or of a zip archive, whatever their names.

No message repeats the name of a file, which may be that of a person.

An archive is never unpacked to the disk: its members are read in memory, so that no name in it
can point anywhere, and only after its table of contents was found to be of a plausible size.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mmccd_cli.errors import DataError, unreadable

MAX_FILES = 100_000
MAX_FILE_BYTES = 2**29  # a multi-frame image of 512 slices of 512 x 512 voxels, and as much again
MAX_HEADER_BYTES = 2**24  # of several thousand frames
MAX_ARCHIVE_BYTES = 16 * 2**30

_AT_HAND = 10  # files of a folder that are looked at where it should hold none
_START_BYTES = 132
# A file without the preamble starts with an element of group 2 or 8, little endian.
_GROUPS_AT_START = (b"\x02\x00", b"\x08\x00")
_TOO_LARGE = "too large for an image of a head"
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what DICOM allows, and can be bounded
_BROKEN_MEMBER = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


@dataclass(frozen=True, order=True)
class DicomFile:
    """One file, or one member, by its name, of an archive."""

    path: Path
    member: str = ""


def is_archive(path: Path) -> bool:
    """Tell whether a path is meant as a zip archive; whether it is sound shows when it is read."""
    return path.suffix.lower() == ".zip" and path.is_file()


def find_dicom_files(source: Path, unread: list[str]) -> list[DicomFile]:
    """List everything under a folder or in an archive that looks like DICOM, in a fixed order.

    Args:
        source: A folder, searched to any depth, a zip archive or a file.
        unread: Why a file could not be read is appended here, once for each.

    Raises:
        DataError: The archive is broken, encrypted or suspiciously large, or there are too many
            files.
    """
    if is_archive(source):
        with _archive(source) as archive:
            return list(_members(source, archive, unread))
    return [file for file in _files_below(source) if _looks_like_dicom(file, unread)]


def has_dicom_files(source: Path) -> bool:
    """Tell whether a file, or anything under a folder, looks like DICOM."""
    return any(_looks_like_dicom(file, []) for file in _files_below(source))


def has_dicom_at_hand(folder: Path) -> bool:
    """Tell whether some of the first files of a folder, or of one right in it, look like DICOM."""
    try:
        folders = sorted(path for path in folder.iterdir() if path.is_dir())
        places = [folder, *(path for path in folders if not _is_other(path.name))]
        return any(
            _looks_like_dicom(DicomFile(path), [])
            for place in places
            for path in islice((p for p in place.iterdir() if not _is_other(p.name)), _AT_HAND)
        )
    except OSError:
        return False


def open_files(
    files: Iterable[DicomFile], *, most_bytes: int = MAX_FILE_BYTES
) -> Iterator[tuple[DicomFile, BinaryIO]]:
    """Open files one after the other; an archive is opened once for a run of its members.

    Args:
        files: As `find_dicom_files` lists them.
        most_bytes: How much of each is read.

    Raises:
        DataError: A file cannot be read any more, or a member is damaged.
    """
    for path, group in groupby(files, key=lambda file: file.path):
        entries = list(group)
        if not entries[0].member:
            with _open(path) as stream:
                large = os.fstat(stream.fileno()).st_size > most_bytes
                yield entries[0], io.BytesIO(stream.read(most_bytes)) if large else stream
            continue
        with _archive(path) as archive:
            for entry in entries:
                yield entry, io.BytesIO(_content_of_member(archive, entry, most_bytes))


def sha256_of_files(files: Iterable[DicomFile]) -> str:
    """Return one SHA-256 over the contents of all files, whatever their names and order."""
    return combined_sha256(
        hashlib.sha256(stream.read()).hexdigest() for _, stream in open_files(files)
    )


def combined_sha256(digests: Iterable[str]) -> str:
    """Return one SHA-256 over those of several files, whatever their order."""
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _files_below(folder: Path) -> list[DicomFile]:
    """List files to any depth; links are followed, but no folder is entered twice."""
    if folder.is_file():
        return [] if _is_other(folder.name) else [DicomFile(folder)]
    found: list[DicomFile] = []
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not _is_other(name))
        found += [DicomFile(Path(place, name)) for name in sorted(names) if not _is_other(name)]
        if len(found) > MAX_FILES:
            raise DataError(
                f"{folder} holds more than {MAX_FILES} files.",
                cause="It is more than one subject's folder.",
                next_step="Give a subject's own folder.",
            )
    return found


def _is_other(name: str) -> bool:
    """Tell by its name what is no DICOM image: hidden files, the index of a disc, NIfTI."""
    hidden = name.startswith(".") or name == "__MACOSX" or name.upper() == "DICOMDIR"
    return hidden or name.lower().endswith((".nii", ".nii.gz"))


def _looks_like_dicom(file: DicomFile, unread: list[str]) -> bool:
    try:
        if not file.path.is_file():  # a socket or pipe would block
            return False
        with file.path.open("rb") as stream:
            found = _starts_like_dicom(stream.read(_START_BYTES))
            if found and os.fstat(stream.fileno()).st_size > MAX_FILE_BYTES:
                unread.append(_TOO_LARGE)
                return False
            return found
    except OSError as error:
        unread.append(f"cannot be read: {error.strerror}")
        return False


def _starts_like_dicom(start: bytes) -> bool:
    if start[128:132] == b"DICM":
        return True
    # The element's number is small and its value short, or its type is two letters.
    return start[:2] in _GROUPS_AT_START and start[3:4] == b"\0" and b"\0" in start[4:8]


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{path} is no zip archive, or breaks off.",
            cause="The copy or download was probably interrupted.",
            next_step=f"Copy it again and check it with: unzip -t '{path}'",
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _members(path: Path, archive: zipfile.ZipFile, unread: list[str]) -> Iterator[DicomFile]:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    _check_size(path, entries)
    for entry in sorted(entries, key=lambda entry: entry.filename):
        place = PurePosixPath(entry.filename.replace("\\", "/"))
        if any(_is_other(part) for part in place.parts if part != ".."):
            continue
        if place.is_absolute() or ".." in place.parts:
            unread.append("its name points out of the archive")
            continue
        if entry.flag_bits & 1:
            raise DataError(
                f"{path} is encrypted.", next_step="Unpack it with its password, give the folder."
            )
        if entry.compress_type not in _COMPRESSIONS:
            unread.append("compressed in another way than DICOM allows in archives")
            continue
        try:
            with archive.open(entry) as stream:
                looks_right = _starts_like_dicom(stream.read(_START_BYTES))
        except _BROKEN_MEMBER:
            unread.append("damaged in the archive")
            continue
        if looks_right and entry.file_size > MAX_FILE_BYTES:
            unread.append(_TOO_LARGE)
        elif looks_right:
            yield DicomFile(path, entry.filename)


def _check_size(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive that takes too long; zipfile reads no more than is announced here."""
    total = sum(entry.file_size for entry in entries)
    if total > MAX_ARCHIVE_BYTES or len(entries) > MAX_FILES:
        raise DataError(
            f"{path} unpacks to {total / 2**30:.1f} GiB in {len(entries)} files, which is too much "
            "for one subject.",
            cause="It holds more than one study, or is damaged, or was made to fill a disk.",
            next_step="Unpack what is needed into a folder and give that.",
        )


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(
            f"A DICOM file in {path.parent} cannot be read.",
            cause=f"The system says: {error.strerror}.",
            next_step="Check whether the folder is still being copied.",
        ) from error


def _content_of_member(archive: zipfile.ZipFile, file: DicomFile, most_bytes: int) -> bytes:
    try:
        with archive.open(file.member) as stream:
            return stream.read(most_bytes)
    except _BROKEN_MEMBER as error:
        raise DataError(
            f"A DICOM file in {file.path} is damaged.",
            cause="The copy or download was probably interrupted.",
            next_step=f"Copy the archive again and check it with: unzip -t '{file.path}'",
        ) from error
