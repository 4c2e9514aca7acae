"""Pull the contour of an anomaly map to where the scan itself changes.

The map is computed on the template's coarse grid and smoothed. Near its contour the scan knows
better: intensities well inside the mask and around it give two histograms, and every voxel near
the contour goes to the one that it fits, unless it lies too far on the other side. Voxels that
stay on their side keep their values: what the map says of a lesion must not depend on whether it
was in the mask before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.anomaly.components import BoolArray, FloatArray, label_components
from mmccd_cli.template import bounding_box, median_and_deviation

SHELL_MM = 12.0
"""How far around the mask the surroundings are sampled."""
CORE_MM = 1.0
"""How far from the contour a voxel is sure to be inside, or outside."""
SLACK_MM = 0.01
"""Distances are often whole voxels: a header's rounding must not decide on which side they are."""
MIN_VOXELS = 200
"""Voxels that either histogram needs."""
LAYER_VOXELS = 2**21
"""Voxels of a mask whose distances are found at a time."""
BINS = 48
MOST_LOG_ODDS = 1.0
"""How far below the threshold a voxel lands that leaves the mask."""
LOWEST, HIGHEST = -4.0, 8.0
"""Range of the histograms, in robust standard deviations of the brain."""


def refine_contour(
    anomaly_map: NDArray[np.float32],
    mask: BoolArray,
    *,
    image: FloatArray,
    brain: BoolArray,
    spacing_mm: Sequence[float],
    reach_mm: float,
    threshold: float = 0.5,
    overwrite: bool = False,
) -> NDArray[np.float32]:
    """Change a map near the contour of its mask.

    Args:
        anomaly_map: (I, J, K) float32 in [0, 1].
        mask: (I, J, K) bool, the map's mask.
        image: (I, J, K) float, the reference scan on the same grid, any unit.
        brain: (I, J, K) bool.
        spacing_mm: Voxel size.
        reach_mm: How far from the contour the map may change.
        threshold: Value of the map that separates inside from outside.
        overwrite: Whether the map itself may be changed.

    Returns:
        (I, J, K) float32 in [0, 1]. Within reach, a voxel's side of the threshold is that of its
        log-likelihood ratio of inside against outside less the distance to the contour in mm
        (negative inside). One that joins the mask gets the mean log odds of the mask around it,
        one that leaves it gets its evidence, all others stay as they are. The map itself where the
        mask is too small to tell what its inside looks like.
    """
    if reach_mm <= 0 or not mask.any():
        return anomaly_map
    margin = [int(np.ceil((SHELL_MM + 2) / s)) for s in spacing_mm]
    box = bounding_box(mask, margin=margin)
    levels = _levels(image, brain, box)  # first, for it needs more memory than it leaves
    distance = _signed_distance(mask[box], spacing_mm, max(SHELL_MM, reach_mm) + SLACK_MM)
    inside = mask[box] & (distance <= SLACK_MM - CORE_MM)
    outside = brain[box] & (distance >= CORE_MM - SLACK_MM) & (distance <= SHELL_MM + SLACK_MM)
    if min(np.count_nonzero(inside), np.count_nonzero(outside)) < MIN_VOXELS:
        return anomaly_map
    ratio = np.log(_density(levels[inside])) - np.log(_density(levels[outside]))
    del inside, outside  # of a fine scan they are large, and so is what follows
    near = brain[box] & (distance <= reach_mm + SLACK_MM)
    near &= distance >= -reach_mm - SLACK_MM
    evidence = ratio[levels[near]] - distance[near]
    del distance, levels
    refined = anomaly_map if overwrite else anomaly_map.copy()
    values = refined[box]  # a view
    above, lesion = values[near] > threshold, evidence > 0
    joins = np.zeros_like(near)
    joins[near] = lesion & ~above
    values[joins] = _mean_around(
        joins, values=values, mask=mask[box], reach=reach_mm / np.asarray(spacing_mm) - SLACK_MM
    )
    leaves = np.zeros_like(near)
    leaves[near] = left = above & ~lesion
    against = np.maximum(evidence[left], -MOST_LOG_ODDS)
    values[leaves] = 1 / (1 + np.exp(-against) * (1 - threshold) / threshold)
    return refined


def _mean_around(
    chosen: BoolArray,
    *,
    values: NDArray[np.float32],
    mask: BoolArray,
    reach: NDArray[np.float64],
) -> NDArray[np.float32]:
    """(N,) mean of the log odds of a mask's voxels in the box around each of the chosen voxels.

    The box reaches so many voxels, enough to hold some of the mask. It is done in layers, and only
    around what was chosen.
    """
    around = np.ceil(reach).astype(int)
    thickness = max(2 * int(around[0]), LAYER_VOXELS // mask[0].size)
    means = [np.zeros(0, np.float32)]
    for first in range(0, len(mask), thickness):
        start = max(0, first - int(around[0]))
        layer = slice(start, first + thickness + int(around[0]))
        wanted = np.zeros_like(chosen[layer])
        wanted[first - start :][:thickness] = chosen[first : first + thickness]
        box = bounding_box(wanted, margin=around.tolist())
        if wanted[box].size:
            inside, held = values[layer][box].clip(1e-6, 1 - 1e-6), mask[layer][box]
            odds = np.where(held, np.log(inside) - np.log1p(-inside), np.float32(0))
            total, share = (
                ndimage.uniform_filter(part, tuple(2 * around + 1))
                for part in (odds, held.astype(np.float32))
            )
            mean = 1 / (1 + np.exp(-total / np.maximum(share, 1e-6)))
            means.append(mean[wanted[box]].astype(np.float32))
    return np.concatenate(means)


def _signed_distance(
    mask: BoolArray, spacing_mm: Sequence[float], most_mm: float
) -> NDArray[np.float32]:
    """Distance in mm to the nearest voxel on the other side of the contour; negative inside.

    Exact up to `most_mm`, and larger than that beyond. So it is enough to look around each
    component, unless there are so many that all of the mask is less.
    """
    distance = np.where(mask, np.float32(-np.inf), np.float32(np.inf))
    margin = [int(np.ceil(most_mm / s)) + 1 for s in spacing_mm]
    around = [
        tuple(
            slice(max(0, side.start - m), side.stop + m)
            for side, m in zip(box, margin, strict=True)
        )
        for box in label_components(mask)[2]
    ]
    whole = (slice(None),) * 3
    for part in around if sum(mask[box].size for box in around) < mask.size else [whole]:
        found, known = _distance_in_layers(mask[part], spacing_mm, margin[0]), distance[part]
        np.copyto(known, found, where=np.abs(found) < np.abs(known))
    return distance


def _distance_in_layers(
    mask: BoolArray, spacing_mm: Sequence[float], around: int
) -> NDArray[np.float32]:
    """`_signed_distance`, of a large mask in layers, each with so many planes around it."""
    distance = np.empty(mask.shape, np.float32)
    thickness = max(around, LAYER_VOXELS // mask[0].size)
    for first in range(0, len(mask), thickness):
        start, stop = max(0, first - around), first + thickness + around
        layer, end = mask[start:stop], min(first + thickness, len(mask))
        if layer.all() or not layer.any():  # scipy's distance to nothing means nothing
            distance[first:end] = -np.inf if layer.all() else np.inf
            continue
        inner = slice(first - start, end - start)
        distance[first:end] = _distance_to_outside(~layer, spacing_mm, inner)
        distance[first:end] -= _distance_to_outside(layer, spacing_mm, inner)
    return distance


def _distance_to_outside(
    mask: BoolArray, spacing_mm: Sequence[float], planes: slice
) -> NDArray[np.float32]:
    """Distance in mm to the nearest voxel outside, in some planes; 0 outside.

    scipy says where that voxel is in a fifth of the 60 bytes a voxel that its distances take.
    """
    nearest = ndimage.distance_transform_edt(
        mask, sampling=tuple(spacing_mm), return_distances=False, return_indices=True
    )[:, planes]
    distance = np.empty(nearest.shape[1:], np.float32)
    rows, columns = np.ogrid[: mask.shape[1], : mask.shape[2]]
    for number, places in enumerate(np.moveaxis(nearest, 1, 0)):
        away = zip(places, (planes.start + number, rows, columns), spacing_mm, strict=True)
        distance[number] = np.sqrt(sum(((there - here) * mm) ** 2 for there, here, mm in away))
    return distance


def _levels(image: FloatArray, brain: BoolArray, box: tuple[slice, ...]) -> NDArray[np.uint8]:
    """Histogram bins of the image in a box, a little smoothed."""
    center, deviation = median_and_deviation(image[brain], overwrite=True)
    share = image[box] - center
    share /= deviation or 1.0
    ndimage.gaussian_filter(share, 0.5, output=share)
    share -= LOWEST
    share /= HIGHEST - LOWEST
    share *= BINS
    return np.clip(share, 0, BINS - 1, out=share).astype(np.uint8)


def _density(levels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share of each bin, smoothed and never zero."""
    counts = ndimage.gaussian_filter1d(np.bincount(levels, minlength=BINS).astype(float), 1.5)
    return (counts + 1e-3 * counts.sum()) / counts.sum()
