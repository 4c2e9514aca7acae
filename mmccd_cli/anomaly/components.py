"""From a score per voxel to a mask and a list of lesions, in millimetres on any grid.

What a learned map and a plain intensity threshold share: the rim of the brain is left out, the
score is smoothed by a median, a threshold is found without labels, and the mask is cleaned. Every
array is (I, J, K) in its file's own index order; `spacing_mm` is one voxel's size along I, J, K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.template import Box, bounding_box, voxel_volume_mm3

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.floating[Any]]

# Voxels that share a corner belong together; a hole leaks only through a face.
LESION_CONNECTIVITY: Literal[26] = 26
HOLE_CONNECTIVITY: Literal[6] = 6
PLANE_CONNECTIVITY: Literal[4] = 4


@dataclass(frozen=True)
class Lesion:
    """One connected component of a mask.

    Attributes:
        id: 1 for the largest, then by falling volume.
        volume_ml: Volume in millilitres.
        peak: Highest value of the anomaly map inside.
        mean: Mean value of the anomaly map inside.
        centroid_ras_mm: Centre of the voxels in RAS+ world coordinates, mm.
        box: Voxel indices ((i0, i1), (j0, j1), (k0, k1)), the end excluded.
    """

    id: int
    volume_ml: float
    peak: float
    mean: float
    centroid_ras_mm: tuple[float, float, float]
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def erode(mask: BoolArray, distance_mm: float, spacing_mm: Sequence[float]) -> BoolArray:
    """Take off all that lies within a distance of the outside.

    The distance is measured between voxel centres and is Euclidean. The edge of the volume is not
    an outside: where the field of view ends inside the brain, there is no rim to remove.

    Args:
        mask: (I, J, K) bool.
        distance_mm: Rim to remove; 0 removes nothing.
        spacing_mm: Voxel size, mm.

    Returns:
        (I, J, K) bool, a subset of `mask`.
    """
    if distance_mm <= 0 or not mask.any():
        return mask.astype(bool)
    box = bounding_box(mask, margin=1)
    eroded = np.zeros(mask.shape, dtype=bool)
    if mask[box].all():
        return mask.astype(bool)
    depth = ndimage.distance_transform_edt(mask[box], sampling=tuple(spacing_mm))
    # A distance of exactly `distance_mm` belongs to the rim; the slack is for float32 spacings.
    eroded[box] = depth > distance_mm * (1 + 1e-5)
    return eroded


def window_size(size_mm: float, spacing_mm: Sequence[float]) -> tuple[int, int, int]:
    """Convert a window in mm to the nearest odd number of voxels an axis, at least one."""
    i, j, k = (2 * max(round((size_mm / s - 1) / 2), 0) + 1 for s in spacing_mm)
    return (i, j, k)


def median_filter_3d(
    score: FloatArray,
    brain: BoolArray,
    size_mm: float,
    spacing_mm: Sequence[float],
    *,
    outside: float = 0.0,
) -> NDArray[np.float32]:
    """Replace every score of the brain by the median of the box around it.

    Args:
        score: (I, J, K) float.
        brain: (I, J, K) bool; only these voxels are computed.
        size_mm: Edge of the box, rounded to an odd number of voxels an axis: 3 mm is 3 voxels at
            1 mm and a single one across slices of 5 mm.
        spacing_mm: Voxel size, mm.
        outside: What voxels outside the brain and outside the volume count as: the score of
            ordinary tissue.

    Returns:
        (I, J, K) float32, `outside` where there is no brain.
    """
    result = np.full(score.shape, outside, dtype=np.float32)
    size = window_size(size_mm, spacing_mm)
    if size == (1, 1, 1) or not brain.any():
        result[brain] = score[brain]
        return result
    box = bounding_box(brain)
    inside = brain[box]
    # Gathering the windows of the brain's voxels and partitioning them is four times faster than
    # scipy.ndimage.median_filter on a whole box; one plane at a time keeps that to a few MB.
    padded = np.full(inside.shape, outside, dtype=np.float32)
    padded[inside] = score[box][inside]
    padded = np.pad(padded, [(n // 2, n // 2) for n in size], constant_values=outside)
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)
    middle = (size[0] * size[1] * size[2]) // 2
    target = result[box]
    for i, plane in enumerate(inside):
        if plane.any():
            values = windows[i][plane].reshape(int(plane.sum()), -1)
            values.partition(middle, axis=1)
            target[i][plane] = values[:, middle]
    return result


def otsu_threshold(values: FloatArray) -> float:
    """Find the cut that separates values into two classes of the least inner variance.

    Exact: every gap between two sorted values is tried, so no number of bins and no far outlier
    changes the resolution.

    Args:
        values: Any shape, finite.

    Returns:
        The middle of the best gap; the value itself where all are equal; 0 for no values.

    Source:
        Otsu, IEEE Trans. SMC 9 (1979) 62, eq. 18.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=None)
    if ordered.size == 0:
        return 0.0
    if ordered[0] == ordered[-1]:
        return float(ordered[0])
    below = np.arange(1, ordered.size, dtype=np.float64)
    above = ordered.size - below
    sums = np.cumsum(ordered)
    mean_below = sums[:-1] / below
    mean_above = (sums[-1] - sums[:-1]) / above
    between = below * above * (mean_above - mean_below) ** 2
    between[np.diff(ordered) == 0] = -1.0  # no cut between equal values
    best = int(np.argmax(between))
    return float(ordered[best] + ordered[best + 1]) / 2


def adaptive_threshold(
    scores: FloatArray, constant: float, *, otsu_weight: float = 0.5, upper: float = 0.5
) -> float:
    """Find a threshold for one scan without labels: a constant plus a share of Otsu's.

    Otsu's threshold moves with the scan's own contrast; the constant, chosen on other subjects,
    keeps it from marking the brighter half of a healthy brain.

    Args:
        scores: The scores inside the (eroded) brain, any shape.
        constant: Added to the share of Otsu's threshold, in the score's unit.
        otsu_weight: The share.
        upper: The fraction of the scores, from the top, in which Otsu's threshold is looked for;
            0.5 is the brighter half.

    Returns:
        The threshold, in the score's unit.
    """
    if scores.size == 0 or otsu_weight == 0:
        return float(constant)
    brighter = scores[scores > np.quantile(scores, 1 - upper)]
    return float(constant + otsu_weight * otsu_threshold(brighter))


def fill_holes(mask: BoolArray) -> BoolArray:
    """Fill the cavities of a mask: background that no path through faces leads out of.

    Args:
        mask: (I, J, K) bool.

    Returns:
        (I, J, K) bool, a superset of `mask`.
    """
    if not mask.any():
        return mask.astype(bool)
    box = bounding_box(mask)
    background = np.pad(~mask[box], 1, constant_values=True)
    labels = cc3d.connected_components(background, connectivity=HOLE_CONNECTIVITY)
    filled = mask.astype(bool)
    filled[box] = (labels != labels[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return filled


def fill_holes_in_planes(mask: BoolArray) -> BoolArray:
    """Fill what a mask encloses in any plane of the grid: necrosis open at one end is filled too.

    Args:
        mask: (I, J, K) bool.

    Returns:
        (I, J, K) bool, a superset of `mask`.
    """
    filled = mask.astype(bool)
    if not mask.any():
        return filled
    box = bounding_box(mask)
    inside = mask[box]
    for axis in range(3):
        background = ~np.moveaxis(inside, axis, 0)
        background = np.pad(background, ((0, 0), (1, 1), (1, 1)), constant_values=True)
        for index, plane in enumerate(background):
            labels = cc3d.connected_components(plane, connectivity=PLANE_CONNECTIVITY)
            hole = plane & (labels != labels[0, 0])
            np.moveaxis(filled[box], axis, 0)[index] |= hole[1:-1, 1:-1]
    return filled


def grow_into_rim(
    mask: BoolArray,
    candidates: BoolArray,
    brain: BoolArray,
    region: BoolArray,
    distance_mm: float,
    spacing_mm: Sequence[float],
) -> BoolArray:
    """Give a lesion back what the eroded rim of the brain took from it.

    The rim is left out because the brain's edge is bright on its own; next to a lesion that was
    found without it, a bright rim is the lesion's.

    Args:
        mask: (I, J, K) bool, found inside `region`.
        candidates: (I, J, K) bool, above the threshold.
        brain: (I, J, K) bool.
        region: (I, J, K) bool, the brain without its rim.
        distance_mm: How far from the mask the rim may be taken.
        spacing_mm: Voxel size, mm.

    Returns:
        (I, J, K) bool, `mask` and the candidates of the rim near it.
    """
    if not mask.any():
        return mask.astype(bool)
    box = bounding_box(mask, margin=[int(np.ceil(distance_mm / float(s))) + 1 for s in spacing_mm])
    away = ndimage.distance_transform_edt(~mask[box], sampling=tuple(spacing_mm))
    grown = mask.astype(bool)
    near = away <= distance_mm * (1 + 1e-5)
    grown[box] |= near & candidates[box] & brain[box] & ~region[box]
    return grown


def clean(
    mask: BoolArray,
    spacing_mm: Sequence[float],
    *,
    min_fraction_of_largest: float = 0.2,
    min_volume_mm3: float = 0.0,
    holes: bool = True,
) -> BoolArray:
    """Keep the components that are large enough and fill their holes.

    Args:
        mask: (I, J, K) bool.
        spacing_mm: Voxel size, mm.
        min_fraction_of_largest: A component needs this share of the largest one's volume.
        min_volume_mm3: A component needs this volume, mm3, before its holes are filled.
        holes: Whether to fill holes.

    Returns:
        (I, J, K) bool.
    """
    labels, voxels, _ = label_components(mask)
    least = max(
        min_fraction_of_largest * float(voxels.max(initial=0)),
        min_volume_mm3 / float(np.prod(np.asarray(spacing_mm, dtype=float))),
    )
    keep = np.concatenate([[False], voxels >= least * (1 - 1e-6)])
    kept = keep[labels]
    return fill_holes(kept) if holes else kept


def label_components(mask: BoolArray) -> tuple[NDArray[np.integer[Any]], NDArray[np.int64], Any]:
    """Number the 26-connected components of a mask.

    Args:
        mask: (I, J, K) bool.

    Returns:
        labels (I, J, K), 0 for the background; voxels of each component (N,), label 1 first;
        and one box of slices for each component (N).
    """
    labels = cc3d.connected_components(
        np.ascontiguousarray(mask, dtype=np.uint8), connectivity=LESION_CONNECTIVITY
    )
    statistics: Any = cc3d.statistics(labels)
    voxels = np.asarray(statistics["voxel_counts"], dtype=np.int64)[1:]
    return labels, voxels, statistics["bounding_boxes"][1:]


def find_lesions(
    mask: BoolArray, anomaly_map: FloatArray, affine: NDArray[np.float64]
) -> list[Lesion]:
    """List the components of a mask, the largest first.

    Args:
        mask: (I, J, K) bool.
        anomaly_map: (I, J, K) float on the same grid.
        affine: (4, 4), voxel index to RAS+ mm.

    Returns:
        The lesions; none for an empty mask.
    """
    labels, voxels, boxes = label_components(mask)
    voxel_ml = voxel_volume_mm3(affine) / 1000
    order = np.argsort(-voxels, kind="stable")
    return [
        _describe(number, labels, int(label) + 1, boxes[label], anomaly_map, affine, voxel_ml)
        for number, label in enumerate(order, start=1)
    ]


def _describe(
    number: int,
    labels: NDArray[np.integer[Any]],
    label: int,
    box: Box,
    anomaly_map: FloatArray,
    affine: NDArray[np.float64],
    voxel_ml: float,
) -> Lesion:
    inside = labels[box] == label
    values = anomaly_map[box][inside].astype(np.float64)
    start = np.array([s.start for s in box], dtype=float)
    centre = affine[:3, :3] @ (np.argwhere(inside).mean(axis=0) + start) + affine[:3, 3]
    i, j, k = ((int(s.start), int(s.stop)) for s in box)
    return Lesion(
        id=number,
        volume_ml=float(values.size * voxel_ml),
        peak=float(values.max()),
        mean=float(values.mean()),
        centroid_ras_mm=(float(centre[0]), float(centre[1]), float(centre[2])),
        box=(i, j, k),
    )
