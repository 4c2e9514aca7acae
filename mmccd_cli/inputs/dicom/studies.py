"""From a folder or archive of one DICOM study to one stack for each modality, and why that one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmccd_cli.config import MODALITIES
from mmccd_cli.errors import DataError, GeometryError
from mmccd_cli.inputs.dicom.files import MAX_HEADER_BYTES, find_dicom_files, open_files
from mmccd_cli.inputs.dicom.headers import DicomFrame, NotUsable, read_frames
from mmccd_cli.inputs.dicom.recognition import Recognition, known_words, recognise
from mmccd_cli.inputs.dicom.stacks import Stack, arrange, group_frames
from mmccd_cli.inputs.names import ANY_MODALITY

_MIN_COVERAGE_MM = 60.0
_WHOLE_HEAD_MM = 100.0
_MIN_SLICES = 3
_FEW_SLICES = 10


@dataclass(frozen=True)
class Study:
    """What was found.

    Args:
        stacks: Modality -> the stack that was chosen, in the order of `MODALITIES`.
        reasons: Modality -> why it was taken for that, and preferred to others.
        ignored: Series, and numbers of files, that were left out, each with the reason.
    """

    stacks: dict[str, Stack]
    reasons: dict[str, str]
    ignored: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class _Candidate:
    """A group of frames, as a stack where they make one."""

    label: str
    recognition: Recognition
    stack: Stack | None = None
    error: GeometryError | None = None
    rank: tuple = ()


def read_study(source: Path) -> Study:
    """Find the series of a subject in a folder or archive and choose one for each modality.

    Raises:
        DataError: No DICOM, several studies, or no modality in them.
        GeometryError: The only series of a modality lacks slices, or is no stack.
    """
    frames, ignored = _read_headers(source)
    _check_one_study(source, frames)
    candidates = [_candidate(group) for group in group_frames(frames)]
    stacks: dict[str, Stack] = {}
    reasons: dict[str, str] = {}
    for modality in MODALITIES:
        ranked = [c for c in candidates if c.recognition.modality == modality]
        ranked.sort(key=lambda candidate: candidate.rank)
        if not ranked:
            continue
        best = ranked[0]
        if best.error is not None:
            raise best.error
        assert best.stack is not None
        stacks[modality] = best.stack
        reasons[modality] = _explain(best, ranked[1:])
        ignored += [(other.label, _why_not(other, best)) for other in ranked[1:]]
    ignored += [(c.label, c.recognition.reason) for c in candidates if not c.recognition.modality]
    if not stacks:
        raise _no_modality(source, ignored)
    return Study(stacks, reasons, tuple(ignored))


def read_single_series(source: Path) -> Stack:
    """Read the one stack under a folder or in an archive, whatever its modality.

    Raises:
        DataError: There is none, or more than one.
        GeometryError: It lacks slices, or is no stack.
    """
    frames, _ = _read_headers(source)
    groups = [group for group in group_frames(frames) if len(group) >= _MIN_SLICES]
    if len(groups) != 1:
        labels = ", ".join(_label(group[0]) for group in groups[:6])
        raise DataError(
            f"{source} holds {len(groups)} stacks of slices where one is needed"
            + (f": {labels}." if labels else "."),
            cause="An image was named by its folder, which must hold this series alone.",
            next_step="Give the folder of one series, or the whole study as SUBJECT.",
        )
    return arrange(groups[0])


def _read_headers(source: Path) -> tuple[list[DicomFrame], list[tuple[str, str]]]:
    """Read all headers; files that are of no use are counted, by their reason."""
    unread: list[str] = []
    frames: list[DicomFrame] = []
    files = find_dicom_files(source, unread)
    for file, stream in open_files(files, most_bytes=MAX_HEADER_BYTES):
        try:
            frames += read_frames(file, stream)
        except NotUsable as error:
            unread.append(str(error))
    ignored = [
        (f"{count} file{'' if count == 1 else 's'}", reason)
        for reason, count in Counter(unread).items()
    ]
    if not frames:
        raise _no_dicom(source, ignored)
    return frames, ignored


def _check_one_study(source: Path, frames: Sequence[DicomFrame]) -> None:
    studies = {frame.study for frame in frames}
    if len(studies) > 1:
        raise DataError(
            f"{source} holds {len(studies)} studies, of several people or several times.",
            cause="A subject is one examination here.",
            next_step="Give the folder of one study.",
        )


def _candidate(frames: Sequence[DicomFrame]) -> _Candidate:
    label = _label(frames[0])
    recognition = recognise(frames[0].acquisition)
    reason = recognition.reason
    if recognition.modality and len(frames) < _MIN_SLICES:
        reason = f"only {len(frames)} slices in this direction"
    elif recognition.modality:
        try:
            stack = arrange(frames)
        except GeometryError as error:
            if len(frames) >= _FEW_SLICES:
                # Last of all, so that it only counts where the modality has no other series.
                return _Candidate(label=label, recognition=recognition, error=error, rank=(9,))
            # A localizer that does not say so, rather than a damaged scan.
            reason = f"only {len(frames)} slices, unevenly placed"
        else:
            if stack.coverage_mm >= _MIN_COVERAGE_MM:
                rank = _rank(recognition, stack)
                return _Candidate(label=label, recognition=recognition, stack=stack, rank=rank)
            reason = f"covers only {stack.coverage_mm:.0f} mm"
    return _Candidate(label=label, recognition=Recognition(reason=reason))


def _rank(recognition: Recognition, stack: Stack) -> tuple:
    """Sort the best first: as acquired, whole head, no agent, fine voxels, many, early."""
    return (
        recognition.derived,
        stack.coverage_mm < _WHOLE_HEAD_MM,
        recognition.has_agent,
        round(max(stack.spacing_mm), 1),
        round(float(np.prod(stack.spacing_mm)), 1),
        -stack.shape[2],
        "NORM" not in stack.acquisition.image_type,
        stack.frames[0].series_order,
        stack.frames[0].repeat,
    )


def _label(frame: DicomFrame) -> str:
    """Name a series by its number and those words of its description that hold no name."""
    words = known_words(frame.acquisition)
    echo = frame.acquisition.echo_number
    told = ", ".join(filter(None, [words, f"echo {echo}" if echo and echo > 1 else ""]))
    label = frame.series_label.lower()
    return f"{label} ({told})" if told else label


def _explain(best: _Candidate, others: Sequence[_Candidate]) -> str:
    assert best.stack is not None
    stack = best.stack
    spacing = " x ".join(f"{value:.2g}" for value in stack.spacing_mm)
    text = f"{best.label}, {stack.shape[2]} slices, {spacing} mm: {best.recognition.reason}"
    if best.recognition.has_agent:
        text += "; after contrast agent"
    if best.recognition.derived == 2:
        text += "; reformatted, because the series it was made from is not there"
    if others:
        text += f"; preferred to {', '.join(other.label for other in others)}"
    return text


def _why_not(other: _Candidate, best: _Candidate) -> str:
    """Say in which respect a series of the same modality is worse than the one that was chosen."""
    modality = best.recognition.modality
    if other.error is not None:
        return f"another {modality}; {other.error.message}"
    reasons = (
        "processed or reformatted",
        "does not cover the whole head",
        "after contrast agent",
        "coarser",
        "larger voxels",
        "fewer slices",
        "not corrected for coil shading",
    )
    pairs = zip(reasons, other.rank, best.rank, strict=False)
    why = next((reason for reason, its, chosen in pairs if its != chosen), "acquired later")
    return f"another {modality}: {why}"


def _no_dicom(source: Path, ignored: Sequence[tuple[str, str]]) -> DataError:
    told = "; ".join(f"{files}: {reason}" for files, reason in ignored[:4])
    return DataError(
        f"{source} holds no DICOM image of MR.",
        cause=f"What was found: {told}." if told else None,
        next_step="Give a folder or zip of DICOM series of MR, or NIfTI files (.nii.gz).",
    )


def _no_modality(source: Path, ignored: Sequence[tuple[str, str]]) -> DataError:
    told = "; ".join(f"{label}: {reason}" for label, reason in ignored[:6])
    return DataError(
        f"No {ANY_MODALITY} series was recognised in {source}.",
        cause=f"What the headers say: {told}.",
        next_step="Name the series by their folders: --flair DIR --t2 DIR --t1 DIR.",
    )
