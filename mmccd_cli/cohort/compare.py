"""Two results of one subject: which lesions are new, gone, grown or shrunk.

The second result is brought to the grid of the first, by how the scans lie to each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.cohort.results import Matrix, Result
from mmccd_cli.errors import Caution, DataError
from mmccd_cli.files import sha256_of_file
from mmccd_cli.inputs.nifti import read_nifti
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.outputs.record import template_identity
from mmccd_cli.preprocessing.registration import refine, register
from mmccd_cli.preprocessing.spatial import resample, same_grid
from mmccd_cli.template import correlation, transform_points

Boxes = list[tuple[slice, slice, slice] | None]
"""Of each number of an image the box that holds it, the first one's first; None where it is not."""
Change = Literal["new", "gone", "grown", "shrunk", "same", "out of view"]

LEAST_OVERLAP = 0.1
"""Two lesions are one and the same if they share this much of the smaller one's volume."""
LEAST_CHANGE = 0.2
"""A lesion has grown or shrunk if its volume changed by more than this share of the smaller one,"""
LEAST_CHANGE_ML = 0.05
"""and by more than this."""

_MOST_UNSEEN = 0.5
_HEADERS = Caution(
    "The two were made from different scans, and how these lie to each other is not known: the "
    "positions in their headers are trusted. Give both reference scans: --scan-a and --scan-b."
)
_TEMPLATE = Caution(
    "The two were made from different scans, and were brought together by way of the template, "
    "which leaves some millimetres. Give both reference scans: --scan-a and --scan-b."
)


class Position(NamedTuple):
    """How two results lie to each other.

    Attributes:
        matrix: (4, 4) from the world of the first to that of the second, RAS+ mm.
        by: How it was found: "same scan", "registration", "template" or "headers".
        remark: What to read before trusting it; None where there is nothing.
    """

    matrix: Matrix
    by: Literal["same scan", "registration", "template", "headers"]
    remark: Caution | None = None


@dataclass(frozen=True, kw_only=True)
class LesionChange:
    """What became of a lesion; of several, where one has split or some have merged.

    Attributes:
        change: What became of it. "out of view" is what lies, by more than half, where the other
            examination shows no brain.
        ids_a: Its numbers in the first result; none where it is new.
        ids_b: Its numbers in the second result; none where it is gone.
        volume_a_ml: Its volume in the first result.
        volume_b_ml: Its volume in the second result.
        peak_a: Highest value of the first map where either result has it: a lesion that is new by
            a hair has one just below the threshold.
        peak_b: The same of the second map.
        centroid_ras_mm: Its centre in the world of the first result.
    """

    change: Change
    ids_a: list[int]
    ids_b: list[int]
    volume_a_ml: float
    volume_b_ml: float
    peak_a: float
    peak_b: float
    centroid_ras_mm: tuple[float, float, float]


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """Two results against each other.

    Attributes:
        dice: Overlap of the masks.
        correlation: Of the maps, where both show brain; None where one of them is constant.
        lesions: What became of each lesion, those that changed most first.
        difference: (I, J, K) float32 in [-1, 1] on the grid of the first: the second map minus the
            first, 0 where not both show brain.
    """

    dice: float
    correlation: float | None
    lesions: list[LesionChange]
    difference: NDArray[np.float32]


def find_position(a: Result, b: Result, scans: tuple[Path, Path] | None = None) -> Position:
    """Find how two results lie to each other.

    With both reference scans the second is registered rigidly to the first, by their brains;
    without, the way is that over the template.

    Raises:
        DataError: A scan cannot be read, or is not the one that a result was made from.
    """
    spaces = {result.record["settings"].get("space", "native") for result in (a, b)}
    same_scan = _reference_sha256(a) == _reference_sha256(b) is not None
    if same_scan and len(spaces) == 1:
        return Position(np.eye(4), "same scan")
    if scans is not None and spaces == {"native"}:
        fixed, moving = (_read_scan(*pair) for pair in zip(scans, (a, b), strict=True))
        matrix = register(fixed, moving)
        return Position(refine(fixed, moving, matrix, brain=a.map.data > 0), "registration")
    to_a, to_b = a.to_template, b.to_template
    templates = {template_identity(result.record["bundle"]) for result in (a, b)}
    if to_a is not None and to_b is not None and len(templates) == 1:
        exact = same_scan or spaces.isdisjoint({"native"})
        return Position(np.linalg.inv(to_b) @ to_a, "template", None if exact else _TEMPLATE)
    return Position(np.eye(4), "headers", _HEADERS)


def others_remark(a: Result, b: Result) -> Caution | None:
    """Say where two results are not of one subject, as far as their records tell.

    They tell where they have no scan in common and the labels of BIDS are two people's. Other names
    do not: those of two examinations of one person mostly differ.
    """
    inputs = [result.record["inputs"].values() for result in (a, b)]
    scans = [{it["sha256"] for it in each if it.get("sha256")} for each in inputs]
    labels = [str(result.record.get("subject", "")).partition("_")[0] for result in (a, b)]
    if scans[0] & scans[1] or labels[0] == labels[1]:
        return None
    if not all(label.startswith("sub-") for label in labels):
        return None
    return Caution(
        f"The two are of {labels[0]} and {labels[1]}: what differs is no change of one person."
    )


def compare(a: Result, b: Result, position: Position) -> Comparison:
    """Compare two results on the grid of the first."""
    moved = _moved_to(a, b, position)
    both = (a.map.data > 0) & (moved.map.data > 0)
    difference = np.where(both, moved.map.data - a.map.data, np.float32(0)).astype(np.float32)
    boxes = find_objects(a.numbered), find_objects(moved.numbered)
    lesions = [
        _change(members, a, moved, boxes=boxes)
        for members in match_lesions(a.numbered, moved.numbered, len(b.volumes_ml))
    ]
    lesions.sort(key=lambda found: -abs(found.volume_b_ml - found.volume_a_ml))
    return Comparison(
        dice=overlap(a.mask, moved.numbered > 0).dice,
        correlation=correlation(a.map.data[both], moved.map.data[both]),
        lesions=lesions,
        difference=difference,
    )


def match_lesions(
    a: NDArray[np.integer], b: NDArray[np.integer], number_b: int | None = None
) -> list[tuple[list[int], list[int]]]:
    """Tell which numbered lesions of two images on one grid are one and the same.

    Args:
        a: (I, J, K), 0 for the background.
        b: (I, J, K), 0 for the background.
        number_b: How many lesions `b` has, where some may have no voxel on this grid.

    Returns:
        Numbers in `a` and numbers in `b` of each lesion; several where one has split or some have
        merged, none where there is none.
    """
    number_a = int(a.max(initial=0))
    number_b = int(b.max(initial=0)) if number_b is None else number_b
    shared = (a > 0) & (b > 0)
    pairs, voxels = np.unique(np.stack([a[shared], b[shared]]), axis=1, return_counts=True)
    size_a, size_b = np.bincount(a.ravel()), np.bincount(b.ravel())
    smaller = np.minimum(size_a[pairs[0]], size_b[pairs[1]])
    rows, columns = pairs[:, voxels >= LEAST_OVERLAP * smaller].astype(np.int64)
    total = number_a + number_b
    graph = coo_matrix((np.ones(len(rows)), (rows - 1, number_a + columns - 1)), (total, total))
    _, group = connected_components(graph, directed=False)
    return [
        (
            [number + 1 for number in np.flatnonzero(group[:number_a] == which).tolist()],
            [number + 1 for number in np.flatnonzero(group[number_a:] == which).tolist()],
        )
        for which in dict.fromkeys(group.tolist())
    ]


class _Moved(NamedTuple):
    """The second result on the grid of the first."""

    map: Volume
    numbered: NDArray[np.uint16]
    volumes_ml: list[float]


def _moved_to(a: Result, b: Result, position: Position) -> _Moved:
    if np.array_equal(position.matrix, np.eye(4)) and same_grid(a.map, b.map):
        return _Moved(b.map, b.numbered, b.volumes_ml)
    shape, affine, matrix = a.map.shape, a.map.affine, position.matrix
    smooth = resample(b.map, shape, affine, matrix=matrix)
    brain = Volume((b.map.data > 0).astype(np.float32), b.map.affine)
    inside = resample(brain, shape, affine, matrix=matrix).data
    numbered = Volume(b.numbered.astype(np.float32), b.map.affine)
    nearest = resample(numbered, shape, affine, matrix=matrix, interpolation="nearest").data
    numbers = np.rint(nearest).astype(np.uint16)
    _keep_smallest(numbers, b, np.linalg.inv(affine) @ np.linalg.inv(matrix) @ b.map.affine)
    values = np.where(inside >= 0.5, smooth.data, np.float32(0))
    return _Moved(Volume(values, affine), numbers, b.volumes_ml)


def _keep_smallest(numbers: NDArray[np.uint16], b: Result, to_index: Matrix) -> None:
    """Give each lesion that fell between the voxels of a coarser grid the one at its centre."""
    boxes = find_objects(b.numbered)
    for lost in set(range(1, len(b.volumes_ml) + 1)) - set(np.unique(numbers).tolist()):
        centre = _voxels(([lost], []), (b.numbered, b.numbered), (boxes, [])).mean(axis=0)
        index = np.rint(transform_points(to_index, centre)).astype(int)
        if (index >= 0).all() and (index < numbers.shape).all() and not numbers[tuple(index)]:
            numbers[tuple(index)] = lost


def _change(
    members: tuple[list[int], list[int]], a: Result, moved: _Moved, *, boxes: tuple[Boxes, Boxes]
) -> LesionChange:
    ids_a, ids_b = members
    where = _voxels(members, (a.numbered, moved.numbered), boxes)
    index = tuple(where.T)
    before = sum(a.volumes_ml[number - 1] for number in ids_a)
    after = sum(moved.volumes_ml[number - 1] for number in ids_b)
    unseen = 0.0
    if len(where) == 0:
        unseen = 1.0  # it lies outside of the grid
    elif not (ids_a and ids_b):
        other = moved.map if ids_a else a.map
        unseen = float((other.data[index] == 0).mean())
    values = [float(data[index].max(initial=0)) for data in (a.map.data, moved.map.data)]
    centre = transform_points(a.map.affine, where.mean(axis=0)) if len(where) else np.zeros(3)
    x, y, z = (round(float(mm), 2) for mm in centre)
    return LesionChange(
        change="out of view" if unseen > _MOST_UNSEEN else _kind(before, after),
        ids_a=ids_a,
        ids_b=ids_b,
        volume_a_ml=round(before, 6),
        volume_b_ml=round(after, 6),
        peak_a=round(values[0], 6),
        peak_b=round(values[1], 6),
        centroid_ras_mm=(x, y, z),
    )


def _voxels(
    members: tuple[list[int], list[int]],
    numbered: tuple[NDArray[np.integer], NDArray[np.integer]],
    boxes: tuple[Boxes, Boxes],
) -> NDArray[np.intp]:
    """(N, 3) voxels of lesions in either of two images, found within their boxes."""
    found = [
        of[number - 1]
        for ids, of in zip(members, boxes, strict=True)
        for number in ids
        if number <= len(of)
    ]
    ends = np.array([[(s.start, s.stop) for s in box] for box in found if box is not None])
    if not len(ends):  # outside of the grid
        return np.empty((0, 3), dtype=np.intp)
    low, high = ends[:, :, 0].min(axis=0), ends[:, :, 1].max(axis=0)
    box = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
    of_a, of_b = (np.isin(n[box], ids) for n, ids in zip(numbered, members, strict=True))
    return np.argwhere(of_a | of_b) + low


def _kind(before: float, after: float) -> Change:
    if before == 0 or after == 0:
        return "new" if before == 0 else "gone"
    least = max(LEAST_CHANGE_ML, LEAST_CHANGE * min(before, after))
    if abs(after - before) <= least:
        return "same"
    return "grown" if after > before else "shrunk"


def _reference_sha256(result: Result) -> str | None:
    """Return the hash of the scan that a result lies on; None where the record does not say it."""
    record: Mapping[str, Any] = result.record
    return record["inputs"].get(record["reference"], {}).get("sha256") or None


def _read_scan(path: Path, result: Result) -> Volume:
    if sha256_of_file(path) != _reference_sha256(result):
        record = result.record
        wanted = record["inputs"].get(record["reference"], {}).get("file")
        raise DataError(
            f"{path} is not the {record['reference']} that {record['outputs']['map']} was made "
            "from.",
            cause=f"The record names {wanted} with another SHA-256.",
            next_step="Give the very file, or leave out --scan-a and --scan-b.",
        )
    return read_nifti(path)[0]
