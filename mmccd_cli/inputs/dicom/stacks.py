"""From loose frames to stacks: which belong together, in which order, and where they lie.

A stack is what becomes a volume: frames of one series, echo, orientation and kind, in the order
of their place along the slices' normal. Names, instance numbers and the order of files say
nothing here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.errors import GeometryError
from mmccd_cli.inputs.dicom.files import DicomFile
from mmccd_cli.inputs.dicom.headers import DicomFrame
from mmccd_cli.inputs.dicom.recognition import Acquisition
from mmccd_cli.inputs.volume import problem_of_affine
from mmccd_cli.template import spacing_of

_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SAME_DIRECTION = 1e-3
_SAME_PLACE_MM = 0.01
_MAX_IRREGULARITY = 0.1  # of the distance between slices
_MAX_DRIFT_MM = 0.05  # over the whole stack: below, the slices are not tilted but rounded


@dataclass(frozen=True, eq=False)
class Stack:
    """Frames that make a volume.

    Args:
        frames: In the order of the third axis.
        affine: (4, 4) from column, row and slice index to RAS+ mm; sheared for a tilted stack.
        notes: What was found and mended.
    """

    frames: tuple[DicomFrame, ...]
    affine: NDArray[np.float64]
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows and slices."""
        return (*self.frames[0].shape, len(self.frames))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring columns, rows and slices."""
        return spacing_of(self.affine)

    @property
    def coverage_mm(self) -> float:
        """Extent of all slices."""
        return self.spacing_mm[2] * self.shape[2]

    @property
    def acquisition(self) -> Acquisition:
        """How it was acquired."""
        return self.frames[0].acquisition

    @property
    def label(self) -> str:
        """What it is called in records: no name of a file, and no description."""
        return self.frames[0].series_label.lower()


def group_frames(frames: Iterable[DicomFrame]) -> list[list[DicomFrame]]:
    """Split frames by series and, within one, by all that makes it more than one volume.

    Returns:
        Groups in the order of their series' numbers; copies of one instance are dropped.
    """
    kept: dict[tuple[str | DicomFile, int | None], DicomFrame] = {}
    for frame in frames:
        # Without an instance's UID, which some anonymisers take away, a file is its own.
        kept.setdefault((frame.instance or frame.file, frame.index), frame)
    groups: list[list[DicomFrame]] = []
    groups_of_key: dict[tuple, list[list[DicomFrame]]] = defaultdict(list)
    for frame in kept.values():
        alike = groups_of_key[_key(frame)]
        group = next((group for group in alike if _same_directions(group[0], frame)), None)
        if group is None:
            group = []
            alike.append(group)
            groups.append(group)
        group.append(frame)
    split = [part for group in groups for part in _split_repeats(group)]
    return sorted(split, key=lambda group: (group[0].series_order, group[0].series))


def arrange(frames: Sequence[DicomFrame]) -> Stack:
    """Put the frames of one group in order and find the affine.

    Raises:
        GeometryError: Slices are missing, double or not stacked in one direction.
    """
    row, column = _directions(frames[0])
    normal = _towards_positive(np.cross(row, column))
    places = np.array([frame.position for frame in frames]) @ normal
    order = sorted(range(len(frames)), key=lambda index: float(places[index]))
    ordered = tuple(frames[index] for index in order)
    _check_spacing(ordered, places[order])
    positions = np.array([frame.position for frame in ordered])
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    drift = step - (step @ normal) * normal
    tilted = float(np.linalg.norm(drift)) * (len(ordered) - 1) > _MAX_DRIFT_MM
    _check_straight(ordered, positions, step)
    affine = np.eye(4)
    affine[:3, 0] = row * ordered[0].spacing_mm[0]
    affine[:3, 1] = column * ordered[0].spacing_mm[1]
    affine[:3, 2] = step if tilted else (step @ normal) * normal
    affine[:3, 3] = positions[0]
    if problem := problem_of_affine(affine):
        raise GeometryError(
            f"{ordered[0].series_label} has no usable place in space: {problem}.",
            cause="Its PixelSpacing or its positions are damaged.",
            next_step="Export the series again.",
        )
    angle = np.degrees(np.arctan2(np.linalg.norm(drift), step @ normal))
    notes = (f"its slices are tilted by {angle:.1f} degrees",) if tilted else ()
    return Stack(ordered, _RAS_FROM_LPS @ affine, notes)


def _key(frame: DicomFrame) -> tuple:
    """All that frames of one volume share, but for the directions, which are rounded."""
    seen_with = frame.acquisition
    echo = None if seen_with.echo_ms is None else round(seen_with.echo_ms, 1)
    return (
        frame.series,
        frame.shape,
        tuple(round(value, 3) for value in frame.spacing_mm),
        seen_with.image_type,
        seen_with.echo_number,
        echo,
        seen_with.b_value,
    )


def _same_directions(frame: DicomFrame, other: DicomFrame) -> bool:
    return np.allclose(frame.directions, other.directions, atol=_SAME_DIRECTION)


def _split_repeats(group: list[DicomFrame]) -> list[list[DicomFrame]]:
    """Split a group whose slices come several times, by whatever tells the times apart."""
    if max(_count_places(group).values()) == 1:
        return [group]
    for element in range(len(group[0].repeat)):
        parts: dict[float, list[DicomFrame]] = defaultdict(list)
        for frame in group:
            parts[frame.repeat[element]].append(frame)
        if all(max(_count_places(part).values()) == 1 for part in parts.values()):
            return [parts[value] for value in sorted(parts)]
    return [group]


def _count_places(group: Sequence[DicomFrame]) -> Counter[tuple[int, ...]]:
    return Counter(
        tuple(round(value / _SAME_PLACE_MM) for value in frame.position) for frame in group
    )


def _directions(frame: DicomFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    row, column = np.array(frame.directions[:3]), np.array(frame.directions[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if min(lengths) < 0.9 or max(lengths) > 1.1 or abs(row @ column) > 0.01:
        raise GeometryError(
            f"{frame.series_label} states impossible directions of its rows and columns.",
            cause="ImageOrientationPatient is damaged.",
            next_step="Export the series again.",
        )
    row = row / lengths[0]
    column = column - (row @ column) * row
    return row, column / np.linalg.norm(column)


def _towards_positive(normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn a normal in LPS so that slices run to the right, front or top, as NIfTI files have it.

    DICOM leaves their order open, and images in one order give one result to the last bit.
    """
    in_ras = _RAS_FROM_LPS[:3, :3] @ normal
    return normal if in_ras[np.abs(in_ras).argmax()] > 0 else -normal


def _check_spacing(frames: Sequence[DicomFrame], places: NDArray[np.float64]) -> None:
    if len(frames) < 2:
        raise GeometryError(f"{frames[0].series_label} is a single slice.")
    gaps = np.diff(places)
    typical = float(np.median(gaps))
    double = int(np.count_nonzero(gaps < _SAME_PLACE_MM))
    if double:
        first = int(np.argmax(gaps < _SAME_PLACE_MM))
        raise GeometryError(
            f"{frames[0].series_label} has {double + 1} slices at places where one belongs, "
            f"such as its slices {first + 1} and {first + 2}.",
            cause="Two series, or points in time, were mixed under one identity.",
            next_step="Give a folder with one of them.",
        )
    wide = gaps > (1 + _MAX_IRREGULARITY) * typical
    if wide.any():
        missing = int(np.rint(gaps[wide] / typical - 1).sum())
        first = int(np.argmax(wide))
        raise GeometryError(
            f"{frames[0].series_label} lacks about {max(missing, 1)} of its "
            f"{len(frames) + max(missing, 1)} slices: of those that are there, {first + 1} and "
            f"{first + 2} are {gaps[first]:.2f} mm apart, most others {typical:.2f} mm.",
            cause="Files are missing or damaged; the copy was probably interrupted.",
            next_step="Export or copy the series again.",
        )
    if gaps.min() < (1 - _MAX_IRREGULARITY) * typical:
        raise GeometryError(
            f"{frames[0].series_label} has slices {gaps.min():.2f} to {gaps.max():.2f} mm "
            "apart; a volume needs even distances.",
            cause="It overlaps in parts, or was acquired in packages.",
            next_step="Give another series, or resample it to even slices first.",
        )


def _check_straight(
    frames: Sequence[DicomFrame], positions: NDArray[np.float64], step: NDArray[np.float64]
) -> None:
    expected = positions[0] + np.arange(len(frames))[:, None] * step
    off = np.linalg.norm(positions - expected, axis=1)
    if off.max() > 2 * _MAX_IRREGULARITY * np.linalg.norm(step):
        raise GeometryError(
            f"{frames[0].series_label} is not stacked in one direction: "
            f"slice {int(off.argmax()) + 1} lies {off.max():.1f} mm beside its place.",
            cause="The slices fan out, or belong to several stacks.",
            next_step="Give another series.",
        )
