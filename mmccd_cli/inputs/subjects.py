"""From what a user points at (a folder, files, a data set) to one image for each modality.

Of NIfTI files only names are read here, never the images. Of DICOM files the headers are read, and
their names say nothing.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmccd_cli.config import MODALITIES
from mmccd_cli.errors import Caution, DataError, UsageError
from mmccd_cli.files import check_regular_file
from mmccd_cli.inputs.bids import (
    EVERYTHING,
    FILTER_HINT,
    BidsFilter,
    find_anat_folders,
    find_participants,
    read_bids_names,
)
from mmccd_cli.inputs.dicom.files import has_dicom_at_hand, has_dicom_files, is_archive
from mmccd_cli.inputs.names import (
    ANY_MODALITY,
    NameReading,
    how_to_convert,
    modality_of,
    names_modality,
    nifti_files,
    read_names,
    stem_of,
    tokens_of,
)
from mmccd_cli.inputs.sidecars import recognise_by_sidecar, says_agent, sidecar_of_image

if TYPE_CHECKING:
    from mmccd_cli.inputs.dicom.stacks import Stack

_REFERENCE = "taken for the reference segmentation, which is read to evaluate, not to segment"
_DICOM_BESIDE = (
    Path("DICOM"),
    "not read beside NIfTI files; name it by --flair, --t2 or --t1",
)
_OPTION_OF_MODALITY = {"T1w": "--t1", "T2w": "--t2", "FLAIR": "--flair"}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One subject's images.

    Args:
        id: A name that is safe as the name of a file.
        paths: Modality to file, in the order of `MODALITIES`; for DICOM the folder or archive of
            the series.
        segmentation: The lesion mask that lies beside the images, or None.
        ignored: Files that were left out, each with the reason; for DICOM what the series is
            called here, in place of a path.
        unclear: Those of them whose names do not say what they are.
        layout: How the images were found: "brats", "bids", "plain", "files" or "dicom".
        series: Modality to DICOM series; empty for NIfTI.
        reasons: Modality to why an image was chosen that no name decided.
    """

    id: str
    paths: dict[str, Path]
    segmentation: Path | None = None
    ignored: tuple[tuple[Path, str], ...] = ()
    unclear: tuple[Path, ...] = ()
    layout: str = "plain"
    series: Mapping[str, Stack] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def left_out(self) -> list[tuple[Path, str]]:
        """Every file beside the images that is not read for a map, each with the reason."""
        reference = [] if self.segmentation is None else [(self.segmentation, _REFERENCE)]
        return [*self.ignored, *reference]

    @property
    def files(self) -> list[Path]:
        """Every file that is read for the images."""
        stacked = [frame.file.path for stack in self.series.values() for frame in stack.frames]
        single = [path for modality, path in self.paths.items() if modality not in self.series]
        return list(dict.fromkeys([*single, *stacked]))


def find_subject(folder: Path) -> Subject:
    """Tell the modalities of a subject apart, of NIfTI by names and of DICOM by headers.

    Args:
        folder: Holds NIfTI files directly, or in a folder for each modality, or is a BIDS subject
            or session with a folder `anat`, or holds DICOM series at any depth, or is a zip archive
            of them.

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
    if _scan_files(image_folder):
        subject = _subject_of_names(image_folder)
        if len(subject.paths) < len(MODALITIES) and has_dicom_at_hand(image_folder):
            return replace(subject, ignored=(*subject.ignored, _DICOM_BESIDE))
        return subject
    if any(nifti_files(path) for path in _subfolders(folder)) or not has_dicom_files(folder):
        _refuse_other_formats(image_folder)
        raise _no_images(folder)
    return _dicom_subject(folder, folder.resolve().name)


def subject_from_files(files: Mapping[str, Path], *, id: str | None = None) -> Subject:
    """Make a subject of images whose modalities the user states; nothing else judges them.

    Each image is a NIfTI file, or the folder, archive or multi-frame file of one DICOM series.

    Args:
        files: Modality ("FLAIR", "T2w", "T1w") -> image; T1w is without contrast agent.
        id: The subject's name; by default taken from the file or, failing that, its folder.

    Raises:
        UsageError: No file, another modality, or one file for two modalities.
        DataError: A file does not exist, or a folder holds more than one series.
    """
    if unknown := sorted(set(files) - set(MODALITIES)):
        raise UsageError(
            f"There is no modality {', '.join(unknown)}.",
            next_step=f"Give files of {', '.join(MODALITIES)}.",
        )
    paths = {name: Path(files[name]) for name in MODALITIES if name in files}
    if not paths:
        raise UsageError("No image was given.", next_step="Give --flair, --t2 or --t1.")
    seen: dict[Path, str] = {}
    for modality, path in paths.items():
        if not path.exists():
            raise DataError(
                f"There is no file {path}, given as {_OPTION_OF_MODALITY[modality]}.",
                next_step="Check the name and the folder.",
            )
        check_regular_file(path)
        if other := seen.get(path.resolve()):
            raise UsageError(
                f"{path} was given both as {_OPTION_OF_MODALITY[other]} and as "
                f"{_OPTION_OF_MODALITY[modality]}.",
                next_step="Give each file once.",
            )
        seen[path.resolve()] = modality
    series = {}
    for modality, path in paths.items():
        _refuse_nifti_folder(path, _OPTION_OF_MODALITY[modality])
        if path.is_dir() or is_archive(path) or has_dicom_files(path):
            from mmccd_cli.inputs.dicom.studies import read_single_series

            series[modality] = read_single_series(path)
    name = _safe_name(id) if id else _id_of_file(next(iter(paths.values())))
    return Subject(id=name, paths=paths, layout="files", series=series)


def _refuse_nifti_folder(path: Path, option: str) -> None:
    """Refuse a folder of NIfTI files where one image is meant.

    Raises:
        DataError: It is one.
    """
    if path.is_dir() and (files := nifti_files(path)):
        raise DataError(
            f"{path}, given as {option}, is a folder of NIfTI files; {option} takes one image.",
            next_step=f"Name the file: {option} {shlex.quote(str(files[0]))}; or give the folder "
            "alone, as SUBJECT.",
        )


def name_doubts(subject: Subject) -> list[str]:
    """Say where the names of files leave a doubt whether they are what they are taken for.

    It is a `Caution` where the JSON beside an image, or of images that the user named their names,
    say something else. In a folder names decide, and what they do not tell may be the FLAIR that is
    missing.
    """
    named = {name: path for name, path in subject.paths.items() if name not in subject.series}
    contradicted = [*map(_sidecar_doubt, named, named.values())]
    return [*filter(None, contradicted), *_doubts_by_names(subject, named)]


def _sidecar_doubt(modality: str, path: Path) -> Caution | None:
    """A T1w that is none by the JSON beside it, or the other way round.

    FLAIR and T2w are not told apart: scanners do not always state an inversion.
    """
    found = recognise_by_sidecar(path)
    if found is None or not found.modality or "T1w" not in (modality, found.modality):
        return None
    if found.modality == modality:
        return None
    return Caution(
        f"{path.name} is taken for {modality}, but {sidecar_of_image(path).name} says "
        f"{found.modality} ({found.reason}): look which is right."
    )


def _doubts_by_names(subject: Subject, named: Mapping[str, Path]) -> list[str]:
    if subject.layout != "files":
        return [] if "FLAIR" in subject.paths else _maybe_flair(subject.unclear)
    files = list(named.values())
    doubts = []
    for number, (modality, path) in enumerate(named.items()):
        reading = read_names(files, path.resolve().parent.name)[number]
        start = f"{path.name} was given as {modality}, but its name says "
        if reading.has_agent or (modality == "T1w" and says_agent(path)):
            source = "name" if reading.has_agent else "JSON"
            doubts.append(
                f"{path.name} was given as {modality}, but its {source} says contrast agent: what "
                "takes that up may look like a lesion. Give the image without it, if any."
            )
        elif reading.is_lesion_mask:
            doubts.append(f"{start}lesion mask. Give the scan itself.")
        elif reading.modality not in (None, modality):
            doubts.append(f"{start}{reading.modality}: were two options exchanged?")
    return [Caution(text) for text in doubts]


def _maybe_flair(unclear: Sequence[Path]) -> list[str]:
    if not unclear:
        return []
    names = ", ".join(path.name for path in unclear[:3]) + (" ..." if len(unclear) > 3 else "")
    return [
        f"There is no FLAIR, but {names}, whose name says no modality: if it is one, name all "
        "images by --flair, --t2 and --t1."
    ]


def _dicom_subject(source: Path, name: str) -> Subject:
    from mmccd_cli.inputs.dicom.studies import read_study

    study = read_study(source)
    return Subject(
        id=_safe_name(name),
        paths={modality: _place_of(stack) for modality, stack in study.stacks.items()},
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
    """Make a name of bytes that are no text, or of control characters, one that can be written.

    Such a byte becomes its number, so that names which differ in it alone stay different.
    """
    text = os.fsencode(name).decode("utf-8", "surrogateescape")
    readable = re.sub("[\udc80-\udcff]", lambda byte: f"_{ord(byte[0]) - 0xDC00:02x}", text)
    return re.sub(r"[\x00-\x1f\x7f]", "_", readable)


def find_subjects(dataset: Path, *, skipped: list[tuple[Path, str]] | None = None) -> list[Subject]:
    """Find all subjects of a data set: one folder each, also grouped (HGG, LGG) or BIDS.

    Args:
        dataset: The folder of the subjects' folders.
        skipped: Folders that are no usable subject are appended here, each with the reason.

    Returns:
        The subjects in the order of their paths; each session of a BIDS subject is one.

    Raises:
        DataError: Not a folder, no subject in it, or two of one name.
    """
    dataset = Path(dataset)
    if dataset.is_file():
        raise DataError(
            f"{dataset} is a file; a data set is a folder.",
            next_step="Give the folder that holds one folder for each subject.",
        )
    _check_folder(dataset)
    skipped = skipped if skipped is not None else []
    subjects: list[Subject] = []
    folder_of_name: dict[str, Path] = {}
    for folder in _candidate_folders(dataset):
        try:
            subject = find_subject(folder)
        except DataError as error:
            skipped.append((folder, error.message))
            continue
        name = subject.id.casefold()  # file systems may not tell upper from lower case
        if (first := folder_of_name.setdefault(name, folder)) != folder:
            raise DataError(
                f"{first} and {folder} are both the subject {subject.id}.",
                cause="Subjects are told apart by their names, whatever group they are in.",
                next_step=f"Rename one of the two folders, or give one group: {folder.parent}",
            )
        subjects.append(subject)
    if not subjects:
        if nifti_files(dataset):
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


def find_sessions(
    dataset: Path, wanted: BidsFilter = EVERYTHING
) -> tuple[list[Subject], list[tuple[str, DataError]]]:
    """Find what can be segmented in a BIDS data set; see `read_bids_names` for the choice.

    Returns:
        One subject for each session (or participant, where there are no sessions) in the order of
        their names, and what cannot be segmented, each with the reason.

    Raises:
        DataError: Not a folder, or there are no participants.
        UsageError: No participant has a session of those that were asked for.
    """
    subjects: list[Subject] = []
    failures: list[tuple[str, DataError]] = []
    for participant in find_participants(Path(dataset), wanted):
        try:
            folders = find_anat_folders(participant, wanted.sessions)
        except DataError as error:
            failures.append((participant.name, error))
            continue
        for folder in folders:
            try:
                subjects.append(_subject_of_names(folder, wanted))
            except DataError as error:
                failures.append((_name_and_layout(folder)[0], error))
    if not subjects and not failures:
        raise UsageError(
            f"No participant of {dataset} has the session {' or '.join(wanted.sessions)}.",
            next_step=f"Look what there is: ls '{dataset}'/sub-*",
        )
    return subjects, failures


def _subject_of_names(folder: Path, wanted: BidsFilter = EVERYTHING) -> Subject:
    """Tell the modalities of the NIfTI files in one folder apart by their names."""
    files = _scan_files(folder)
    if not files:
        _refuse_other_formats(folder)
    name, is_bids = _name_and_layout(folder)
    if is_bids:
        readings = read_bids_names(files, wanted)
    else:
        inside = not nifti_files(folder)
        readings = read_names(files, folder.resolve().name, in_folders=inside)
        readings = _with_sidecars(readings)
    hint = FILTER_HINT if is_bids else ""
    candidates = {
        modality: [reading.path for reading in readings if reading.modality == modality]
        for modality in MODALITIES
    }
    for modality, paths in candidates.items():
        if len(paths) > 1:
            raise DataError(
                f"{folder} has {len(paths)} images for {modality}: {_listed(paths)}.",
                cause="Their names do not tell which one is meant.",
                next_step="Name all files instead of the folder, this one or another: "
                f"{_as_options(candidates)}{hint}",
            )
    found = {modality: paths[0] for modality, paths in candidates.items() if paths}
    for path in found.values():
        _check_content(path)
    if not found:
        reasons = "; ".join(f"{reading.path.name}: {reading.reason}" for reading in readings[:4])
        raise DataError(
            f"No {ANY_MODALITY} image was recognised in {folder}.",
            cause=f"What the names say: {reasons}." if reasons else "It holds no NIfTI image.",
            next_step=f"Name the modalities: --flair FILE --t2 FILE --t1 FILE{hint}",
        )
    lesions = [reading.path for reading in readings if reading.is_lesion_mask]
    segmentation = lesions[0] if len(lesions) == 1 else None
    starts = [path.name.lower().startswith(name.lower()) for path in found.values()]
    return Subject(
        id=name,
        paths=found,
        segmentation=segmentation,
        ignored=tuple(
            (reading.path, reading.reason)
            for reading in readings
            if reading.modality is None and reading.path != segmentation
        ),
        unclear=tuple(reading.path for reading in readings if reading.is_unclear),
        reasons={it.modality: it.reason for it in readings if it.modality and it.reason},
        layout="bids" if is_bids else "brats" if all(starts) else "plain",
    )


def _with_sidecars(readings: Sequence[NameReading]) -> list[NameReading]:
    """What names say, and the JSON beside an image of contrast agent or where its name is unclear.

    A modality that a name states is not looked for beyond it.
    """
    checked = [_unless_agent(reading) for reading in readings]
    stated = {reading.modality for reading in checked if reading.modality}
    return [_by_sidecar(it, stated) if it.is_unclear else it for it in checked]


def _unless_agent(reading: NameReading) -> NameReading:
    if reading.modality != "T1w" or not says_agent(reading.path):
        return reading
    reason = f"contrast-enhanced by {sidecar_of_image(reading.path).name}, which is not T1w"
    return NameReading(path=reading.path, has_agent=True, reason=reason)


def _by_sidecar(reading: NameReading, stated: Collection[str]) -> NameReading:
    found = recognise_by_sidecar(reading.path)
    if found is None or found.modality in stated:
        return reading
    reason = f"{found.reason}, by {sidecar_of_image(reading.path).name}"
    return NameReading(
        path=reading.path, modality=found.modality, has_agent=found.has_agent, reason=reason
    )


def _as_options(candidates: Mapping[str, Sequence[Path]]) -> str:
    """Write the first image of each modality as the options that name it."""
    return " ".join(
        f"{_OPTION_OF_MODALITY[modality]} {shlex.quote(str(paths[0]))}"
        for modality, paths in candidates.items()
        if paths
    )


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise DataError(
            f"{folder} is a file; a subject is a folder.",
            next_step="Give its folder (DATA/*/ names all folders of DATA), or name the modality: "
            "--flair, --t2 or --t1 FILE.",
        )
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", next_step="Check the name.")


def _image_folder(folder: Path) -> Path:
    """Go down to the folder `anat` of a BIDS subject or session."""
    if (folder / "anat").is_dir() and not nifti_files(folder):
        return folder / "anat"
    sessions = [path for path in _subfolders(folder) if _is_session_with_images(path)]
    if len(sessions) > 1:
        raise DataError(
            f"{folder} has {len(sessions)} sessions: {_listed(sessions)}.",
            cause="Each session is a subject of its own here.",
            next_step=f"Give one of them: {sessions[0]}",
        )
    return sessions[0] / "anat" if sessions else folder


def _scan_files(folder: Path) -> list[Path]:
    """List the NIfTI files in a folder, or else those in a folder for each modality in it.

    T1/FLAIR.nii.gz beside T2/FLAIR.nii.gz are no such folders, but points in time.
    """
    if files := nifti_files(folder):
        return files
    for place in _subfolders(folder):
        if modality := modality_of(tokens_of(place.name)):
            own = nifti_files(place)
            if any(modality_of(tokens_of(stem_of(path))) not in (None, modality) for path in own):
                return []
            files += own
    return files


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
        elif _scan_files(folder) or (folder / "anat").is_dir():
            candidates.append(folder)
        else:
            # Grouped data sets, such as BraTS 2018's HGG and LGG.
            candidates += [sub for sub in _subfolders(folder) if _scan_files(sub)] or [folder]
    return candidates


def _name_and_layout(image_folder: Path) -> tuple[str, bool]:
    """Return the subject's id and whether it lies in a BIDS tree, as named or behind a link."""
    resolved = image_folder.resolve()
    for place in (Path(os.path.abspath(image_folder)), resolved):
        entities = [part for part in place.parts[-3:-1] if part.startswith(("sub-", "ses-"))]
        if place.name == "anat" and entities:
            return _safe_name("_".join(entities)), True
    return _safe_name((resolved.parent if resolved.name == "anat" else resolved).name), False


def _check_content(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise DataError(
            f"The content of {path} is not here.",
            cause="It is a link to nowhere, as in a data set of DataLad or git-annex.",
            next_step=f"Get it: datalad get '{path}'",
        )
    check_regular_file(path)


def _refuse_other_formats(folder: Path) -> None:
    """Refuse a folder without NIfTI files that holds images in another format.

    Raises:
        DataError: It does.
    """
    others = {path: how_to_convert(path) for path in sorted(folder.iterdir()) if path.is_file()}
    known = [path for path, advice in others.items() if advice]
    if known:
        raise DataError(
            f"{folder} holds no scan that can be read: {_listed(known)}.",
            cause="These are named as images in the format of FreeSurfer or Analyze; NIfTI and "
            "DICOM are read.",
            next_step=others[known[0]],
        )


def _no_images(folder: Path) -> DataError:
    """The error for a folder without images of its own: it may hold those of whole subjects."""
    inside = _subfolders(folder)
    if any(_is_bids_subject(path) for path in inside):
        return DataError(
            f"{folder} is a BIDS data set; a subject is one folder of it.",
            next_step=f"Take all of it: mmccd bids {shlex.quote(str(folder))} OUT participant",
        )
    groups = [folder] if any(map(_holds_images, inside)) else inside
    groups = [group for group in groups if any(map(_holds_images, _subfolders(group)))]
    found = [path for group in groups for path in _subfolders(group) if _holds_images(path)]
    if found:
        all_of_them = " ".join(f"{shlex.quote(str(group))}/*/" for group in groups)
        own = f"Give the subject's own folder: {shlex.quote(str(found[0]))}"
        several = f"; or all of them: mmccd segment {all_of_them} --out-dir OUT"
        return DataError(
            f"{folder} holds no image itself.",
            cause=f"Folders in it do ({len(found)}), such as {found[0].relative_to(folder)}.",
            next_step=own + (several if len(found) > 1 else ""),
        )
    if others := sorted(path for path in folder.iterdir() if path.is_file()):
        number = "one other file" if len(others) == 1 else f"{len(others)} other files, such as"
        return DataError(
            f"{folder} holds no image.",
            cause=f"It holds {number} {others[0].name}; none is NIfTI by its name, or DICOM.",
            next_step="Give a folder of .nii.gz files or of DICOM series.",
        )
    if inside:
        return DataError(
            f"{folder} holds no image, and neither do the folders in it.",
            next_step="Give the folder that holds the subject's .nii.gz files or DICOM series.",
        )
    return DataError(
        f"{folder} is empty: no image in it.",
        next_step="Give the folder that holds the subject's .nii.gz files or DICOM series.",
    )


def _holds_images(folder: Path) -> bool:
    anat = folder / "anat"
    in_anat = anat.is_dir() and nifti_files(anat)
    return bool(_scan_files(folder) or in_anat) or _is_bids_subject(folder)


def _is_bids_subject(folder: Path) -> bool:
    if not folder.name.startswith("sub-"):
        return False
    return (folder / "anat").is_dir() or any(map(_is_session_with_images, _subfolders(folder)))


def _id_of_file(path: Path) -> str:
    """Return the start of the file's name that precedes the modality, else its folder's name."""
    tokens_kept: list[str] = []
    for part in re.split(r"(?<=[^A-Za-z0-9])", stem_of(path)):
        word = part.strip("_-. ").lower()
        if names_modality(word):
            break
        tokens_kept.append(part)
    start = "".join(tokens_kept).strip("_-. ")
    return _safe_name(start or path.resolve().parent.name) or "subject"


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _listed(paths: Sequence[Path]) -> str:
    names = [path.name for path in paths[:4]]
    return ", ".join(names) + (", ..." if len(paths) > 4 else "")
