"""From what a user points at (a folder, files, a data set) to one image for each modality.

Of NIfTI files only names are read here, never the images. A name is split into tokens, and the
tokens of the subject's own name are dropped first, so that an id such as TCGA-FA-0001 is not read
as a fractional anisotropy. Of DICOM files the headers are read, and their names say nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mmccd_cli.config import MODALITIES
from mmccd_cli.errors import DataError, UsageError
from mmccd_cli.inputs.dicom.files import has_dicom_files, is_archive
from mmccd_cli.inputs.names import (
    BRAIN_WORDS,
    LESION_WORDS,
    MASK_WORDS,
    OTHER_IMAGE_WORDS,
    T1_WITH_AGENT,
    agent_in,
    modality_of,
    tokens_of,
)

if TYPE_CHECKING:
    from mmccd_cli.inputs.dicom.stacks import Stack

_OPTION_OF_MODALITY = {"T1w": "--t1", "T2w": "--t2", "FLAIR": "--flair"}


@dataclass(frozen=True)
class Subject:
    """One subject's images.

    Args:
        id: A name that is safe as the name of a file.
        paths: Modality to file, in the order of `MODALITIES`; for DICOM the folder or archive of
            the series.
        segmentation: The lesion mask that lies beside the images, or None.
        ignored: Files that were left out, each with the reason; for DICOM what the series is
            called here, in place of a path.
        layout: How the images were found: "brats", "bids", "plain", "files" or "dicom".
        series: Modality to DICOM series; empty for NIfTI.
        reasons: Modality to why a DICOM series was chosen.
    """

    id: str
    paths: dict[str, Path]
    segmentation: Path | None = None
    ignored: tuple[tuple[Path, str], ...] = ()
    layout: str = "plain"
    series: Mapping[str, Stack] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """Every file that is read for the images."""
        stacked = [frame.file.path for stack in self.series.values() for frame in stack.frames]
        single = [path for modality, path in self.paths.items() if modality not in self.series]
        return list(dict.fromkeys([*single, *stacked]))


@dataclass(frozen=True)
class _Reading:
    """What one file name says."""

    path: Path
    modality: str | None = None
    is_lesion: bool = False
    reason: str = ""


def find_subject(folder: Path) -> Subject:
    """Tell the modalities of a subject apart, of NIfTI by names and of DICOM by headers.

    Args:
        folder: Holds NIfTI files directly, or is a BIDS subject or session with a folder `anat`,
            or holds DICOM series at any depth, or is a zip archive of them.

    Returns:
        The subject, with at least one modality.

    Raises:
        DataError: Not a folder, no image, no modality recognised, or two files for one modality.
    """
    folder = Path(folder)
    if is_archive(folder):
        return _dicom_subject(folder, folder.stem)
    _check_folder(folder)
    image_folder = _image_folder(folder)
    files = _nifti_files(image_folder)
    if not files:
        if any(_nifti_files(path) for path in _subfolders(folder)) or not has_dicom_files(folder):
            raise _no_images(folder)
        return _dicom_subject(folder, folder.resolve().name)
    name, is_bids = _subject_name(image_folder)
    readings = _read_names(files, image_folder.resolve().name, is_bids)
    paths = _one_file_each(folder, readings)
    if not paths:
        raise _no_modality(folder, readings)
    segmentation, ignored = _segmentation_and_rest(readings)
    starts = [file.name.lower().startswith(name.lower()) for file in paths.values()]
    layout = "bids" if is_bids else "brats" if all(starts) else "plain"
    return Subject(name, paths, segmentation, ignored, layout)


def subject_from_files(
    *,
    t1: Path | None = None,
    t2: Path | None = None,
    flair: Path | None = None,
    id: str | None = None,
) -> Subject:
    """Make a subject of images whose modalities the user states; nothing else judges them.

    Each image is a NIfTI file, or the folder, archive or multi-frame file of one DICOM series.

    Args:
        t1: T1-weighted image without contrast agent.
        t2: T2-weighted image.
        flair: FLAIR image.
        id: The subject's name; by default taken from the file or, failing that, its folder.

    Raises:
        UsageError: No file, or one file for two modalities.
        DataError: A file does not exist, or a folder holds more than one series.
    """
    given = {"FLAIR": flair, "T2w": t2, "T1w": t1}
    paths = {name: Path(path) for name, path in given.items() if path is not None}
    if not paths:
        raise UsageError("No image was given.", next_step="Give --flair, --t2 or --t1.")
    seen: dict[Path, str] = {}
    for modality, path in paths.items():
        if not path.exists():
            raise DataError(
                f"There is no file {path}, given as {_OPTION_OF_MODALITY[modality]}.",
                next_step="Check the name and the folder.",
            )
        if other := seen.get(path.resolve()):
            raise UsageError(
                f"{path} was given both as {_OPTION_OF_MODALITY[other]} and as "
                f"{_OPTION_OF_MODALITY[modality]}.",
                next_step="Give each file once.",
            )
        seen[path.resolve()] = modality
    series = {name: _single_series(path) for name, path in paths.items() if _is_dicom(path)}
    name = _safe_name(id) if id else _id_of_file(next(iter(paths.values())))
    return Subject(name, paths, layout="files", series=series)


def _is_dicom(path: Path) -> bool:
    return path.is_dir() or is_archive(path) or has_dicom_files(path)


def _single_series(path: Path) -> Stack:
    from mmccd_cli.inputs.dicom.studies import read_single_series

    return read_single_series(path)


def _dicom_subject(source: Path, name: str) -> Subject:
    from mmccd_cli.inputs.dicom.studies import read_study

    study = read_study(source)
    return Subject(
        _safe_name(name),
        {modality: _place_of(stack) for modality, stack in study.stacks.items()},
        ignored=tuple((Path(label), reason) for label, reason in study.ignored),
        layout="dicom",
        series=study.stacks,
        reasons=study.reasons,
    )


def _place_of(stack: Stack) -> Path:
    """The archive or the innermost folder that holds a series."""
    first = stack.frames[0].file
    if first.member:
        return first.path
    return Path(os.path.commonpath([frame.file.path.parent for frame in stack.frames]))


def _safe_name(name: str) -> str:
    """Make a name of bytes that are no text, or of control characters, one that can be written."""
    readable = os.fsencode(name).decode("utf-8", "replace").replace("\ufffd", "_")
    return re.sub(r"[\x00-\x1f\x7f]", "_", readable)


def find_subjects(dataset: Path, *, skipped: list[tuple[Path, str]] | None = None) -> list[Subject]:
    """Find all subjects of a data set: one folder each, also grouped (HGG, LGG) or BIDS.

    Args:
        dataset: The folder of the subjects' folders.
        skipped: Folders that are no usable subject are appended here, each with the reason.

    Returns:
        The subjects in the order of their paths; each session of a BIDS subject is one.

    Raises:
        DataError: Not a folder, or no subject in it.
    """
    dataset = Path(dataset)
    _check_folder(dataset)
    skipped = skipped if skipped is not None else []
    subjects: list[Subject] = []
    for folder in _candidate_folders(dataset):
        try:
            subjects.append(find_subject(folder))
        except DataError as error:
            skipped.append((folder, error.message))
    if not subjects:
        if _nifti_files(dataset):
            raise DataError(
                f"{dataset} holds images directly; a data set holds a folder for each subject.",
                next_step="Give the folder above.",
            )
        raise DataError(
            f"No subject was found in {dataset}.",
            cause=f"The first folder was skipped: {skipped[0][1]}" if skipped else None,
            next_step="Give a folder that holds one folder of .nii.gz files for each subject.",
        )
    return subjects


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise DataError(
            f"{folder} is a file; a subject is a folder.",
            next_step="Give its folder, or name the modality: --flair, --t2 or --t1 FILE.",
        )
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", next_step="Check the name.")


def _image_folder(folder: Path) -> Path:
    """Go down to the folder `anat` of a BIDS subject or session."""
    if (folder / "anat").is_dir() and not _nifti_files(folder):
        return folder / "anat"
    sessions = [path for path in _subfolders(folder) if _is_session_with_images(path)]
    if len(sessions) > 1:
        raise DataError(
            f"{folder} has {len(sessions)} sessions: {_listed(sessions)}.",
            cause="Each session is a subject of its own here.",
            next_step=f"Give one of them: {sessions[0]}",
        )
    return sessions[0] / "anat" if sessions else folder


def _is_session_with_images(folder: Path) -> bool:
    return folder.name.startswith("ses-") and (folder / "anat").is_dir()


def _candidate_folders(dataset: Path) -> list[Path]:
    candidates: list[Path] = []
    for folder in _subfolders(dataset):
        if folder.name in ("derivatives", "sourcedata", "code", "stimuli"):
            continue
        sessions = [path for path in _subfolders(folder) if _is_session_with_images(path)]
        if sessions:
            candidates += sessions
        elif _nifti_files(folder) or (folder / "anat").is_dir():
            candidates.append(folder)
        else:
            # Grouped data sets, such as BraTS 2018's HGG and LGG.
            candidates += [sub for sub in _subfolders(folder) if _nifti_files(sub)] or [folder]
    return candidates


def _subject_name(image_folder: Path) -> tuple[str, bool]:
    """Return the subject's id and whether it lies in a BIDS tree."""
    parts = image_folder.resolve().parts
    if parts[-1] == "anat":
        entities = [part for part in parts[-3:-1] if part.startswith(("sub-", "ses-"))]
        return (_safe_name("_".join(entities) or parts[-2]), bool(entities))
    return _safe_name(parts[-1]), False


def _read_names(files: Sequence[Path], folder_name: str, is_bids: bool) -> list[_Reading]:
    if is_bids:
        return [_read_bids_name(path) for path in files]
    tokens = {path: tokens_of(_stem(path)) for path in files}
    own_name = tokens_of(folder_name)
    for path, words in tokens.items():
        if words[: len(own_name)] == own_name and len(words) > len(own_name):
            tokens[path] = words[len(own_name) :]
    shared = _shared_start(list(tokens.values()))
    return [_read_name(path, words[shared:]) for path, words in tokens.items()]


def _shared_start(names: Sequence[list[str]]) -> int:
    """Count the leading tokens that all files share and that name no modality."""
    if len(names) < 2:
        return 0
    count = 0
    for column in zip(*(name[:-1] for name in names), strict=False):
        if len(set(column)) > 1 or modality_of(column[:1]) or T1_WITH_AGENT.fullmatch(column[0]):
            break
        count += 1
    return count


def _read_bids_name(path: Path) -> _Reading:
    *entities, suffix = _stem(path).split("_")
    keys = dict(entity.split("-", 1) for entity in entities if "-" in entity)
    if suffix.lower() in ("mask", "dseg", "roi"):
        return _read_mask(path, set(tokens_of(_stem(path))))
    by_lower_name = {name.lower(): name for name in MODALITIES}
    modality = by_lower_name.get(suffix.lower())
    if modality is None:
        return _Reading(path, reason=f"its suffix {suffix} is none of {', '.join(MODALITIES)}")
    if "ce" in keys:
        return _Reading(path, reason=_agent_reason(f"ce-{keys['ce']}"))
    if "phase" in keys.get("part", ""):
        return _Reading(path, reason="a phase image")
    return _Reading(path, modality)


def _read_name(path: Path, tokens: Sequence[str]) -> _Reading:
    words = set(tokens)
    if words & (LESION_WORDS | MASK_WORDS):
        return _read_mask(path, words)
    if other := sorted(words & OTHER_IMAGE_WORDS):
        return _Reading(path, reason=f"another kind of image ({', '.join(other)})")
    if agent := agent_in(tokens):
        return _Reading(path, reason=_agent_reason(agent))
    modality = modality_of(tokens)
    if modality is None:
        return _Reading(path, reason="its name states no modality")
    return _Reading(path, modality)


def _read_mask(path: Path, words: set[str]) -> _Reading:
    if words & LESION_WORDS and not words & BRAIN_WORDS:
        return _Reading(path, is_lesion=True, reason="one of several lesion masks")
    return _Reading(path, reason="a mask, not an image")


def _agent_reason(word: str) -> str:
    return f"contrast-enhanced ({word}), which is not T1w"


def _one_file_each(folder: Path, readings: Sequence[_Reading]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for modality in MODALITIES:
        files = [reading.path for reading in readings if reading.modality == modality]
        if len(files) > 1:
            raise DataError(
                f"{folder} has {len(files)} files for {modality}: {_listed(files)}.",
                cause="Their names do not tell which one is meant.",
                next_step=f"Name the file: {_OPTION_OF_MODALITY[modality]} '{files[0]}'",
            )
        if files:
            paths[modality] = files[0]
    return paths


def _segmentation_and_rest(
    readings: Sequence[_Reading],
) -> tuple[Path | None, tuple[tuple[Path, str], ...]]:
    lesions = [reading.path for reading in readings if reading.is_lesion]
    segmentation = lesions[0] if len(lesions) == 1 else None
    ignored = tuple(
        (reading.path, reading.reason)
        for reading in readings
        if reading.modality is None and reading.path != segmentation
    )
    return segmentation, ignored


def _no_images(folder: Path) -> DataError:
    others = sorted(path for path in folder.iterdir() if path.is_file())
    if others:
        return DataError(
            f"{folder} holds no image.",
            cause=f"It holds {len(others)} other files, such as {others[0].name}, and none of them "
            "is DICOM.",
            next_step="Give a folder of .nii.gz files or of DICOM series.",
        )
    with_images = [path for path in _subfolders(folder) if _nifti_files(path)]
    if with_images:
        return DataError(
            f"{folder} holds no image itself.",
            cause=f"Its {len(with_images)} subfolders do, such as {with_images[0].name}.",
            next_step=f"Give the subject's own folder: {with_images[0]}",
        )
    return DataError(
        f"{folder} is empty: no image in it.",
        next_step="Give the folder that holds the subject's .nii.gz files or DICOM series.",
    )


def _no_modality(folder: Path, readings: Sequence[_Reading]) -> DataError:
    reasons = "; ".join(f"{reading.path.name}: {reading.reason}" for reading in readings[:4])
    return DataError(
        f"No {', '.join(MODALITIES[:-1])} or {MODALITIES[-1]} image was recognised in {folder}.",
        cause=f"What the names say: {reasons}.",
        next_step="Name the modalities: --flair FILE --t2 FILE --t1 FILE.",
    )


def _id_of_file(path: Path) -> str:
    """Return the start of the file's name that precedes the modality, else its folder's name."""
    tokens_kept: list[str] = []
    for part in re.split(r"(?<=[^A-Za-z0-9])", _stem(path)):
        word = part.strip("_-. ").lower()
        if modality_of([word]) or T1_WITH_AGENT.fullmatch(word):
            break
        tokens_kept.append(part)
    start = "".join(tokens_kept).strip("_-. ")
    return _safe_name(start or path.resolve().parent.name) or "subject"


def _stem(path: Path) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def _nifti_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if re.search(r"\.nii(\.gz)?$", path.name, re.IGNORECASE)
        and not path.name.startswith(".")
        and path.is_file()
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _listed(paths: Sequence[Path]) -> str:
    names = [path.name for path in paths[:4]]
    return ", ".join(names) + (", ..." if len(paths) > 4 else "")
