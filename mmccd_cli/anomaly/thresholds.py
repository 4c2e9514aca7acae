"""Thresholds that adapt to a scan without seeing labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.anomaly.components import BoolArray, FloatArray, erode, label_components
from mmccd_cli.template import bounding_box

EDGE_STEP = 0.2
EDGE_SIGMA_VOXELS = 0.5
EDGE_RIM_MM = 6.0


def edge_strength(raw: FloatArray, brain: BoolArray) -> NDArray[np.float32]:
    """Gradient magnitude of an image, per voxel.

    Args:
        raw: (I, J, K) float, not yet smoothed by the median.
        brain: (I, J, K) bool; the outside counts as 0.
    """
    inside = np.where(brain, raw, 0).astype(np.float32)
    return ndimage.gaussian_gradient_magnitude(inside, EDGE_SIGMA_VOXELS).astype(np.float32)


@dataclass(frozen=True)
class SeedRule:
    """Which components of a mask count.

    Attributes:
        threshold: A component counts only where its score exceeds this,
        min_volume_mm3: over at least this volume.
        min_fraction_of_largest: Share of the largest component's volume that it needs.
    """

    threshold: float
    min_volume_mm3: float
    min_fraction_of_largest: float


def candidate_masks(
    values: FloatArray,
    region: BoolArray,
    spacing_mm: Sequence[float],
    candidates: Sequence[float],
    rule: SeedRule,
) -> Iterator[BoolArray]:
    """Yield the mask of each candidate threshold, with the components that count.

    Args:
        values: (I, J, K) smoothed score.
        region: (I, J, K) bool, where masks may lie.
        spacing_mm: Voxel size.
        candidates: Thresholds.
        rule: Which components count.
    """
    seeds = (values > rule.threshold) & region
    for threshold in candidates:
        yield seeded(
            (values > threshold) & region,
            seeds,
            spacing_mm,
            min_seed_mm3=rule.min_volume_mm3,
            min_fraction_of_largest=rule.min_fraction_of_largest,
        )


def contour_strength(mask: BoolArray, edges: FloatArray, interior: BoolArray) -> float:
    """Mean edge strength along a mask's inner contour.

    Args:
        mask: (I, J, K) bool.
        edges: (I, J, K), see `edge_strength`.
        interior: (I, J, K) bool, where contours count, see `contour_interior`.

    Returns:
        The mean; 0 where no contour lies in the interior.
    """
    box = bounding_box(mask, margin=1)
    inside = mask[box]
    if inside.size == 0:
        return 0.0
    contour = inside & ~_eroded_once(inside) & interior[box]
    return float(edges[box][contour].mean()) if contour.any() else 0.0


def edge_profile(
    masks: Sequence[BoolArray], raw: FloatArray, brain: BoolArray, spacing_mm: Sequence[float]
) -> NDArray[np.float64]:
    """Mean edge strength along the contour of each mask.

    Args:
        masks: (I, J, K) bool each, as `candidate_masks` yields them.
        raw: (I, J, K) float, the score before the median.
        brain: (I, J, K) bool.
        spacing_mm: Voxel size.

    Returns:
        (len(masks),), for `strongest_edge`.
    """
    edges, interior = edge_strength(raw, brain), contour_interior(brain, spacing_mm)
    return np.array([contour_strength(mask, edges, interior) for mask in masks])


def contour_interior(brain: BoolArray, spacing_mm: Sequence[float]) -> BoolArray:
    """The brain without the rim in which contours follow the brain's edge, not the lesion's."""
    return erode(brain, EDGE_RIM_MM, spacing_mm)


def _eroded_once(mask: BoolArray) -> BoolArray:
    """Take off the voxels with a face to the outside; the array's border counts as inside."""
    result = mask.copy()
    for axis in range(3):
        inner, ahead = [slice(None)] * 3, [slice(None)] * 3
        inner[axis], ahead[axis] = slice(None, -1), slice(1, None)
        result[tuple(inner)] &= mask[tuple(ahead)]
        result[tuple(ahead)] &= mask[tuple(inner)]
    return result


def edge_candidates(low: float, high: float) -> NDArray[np.float64]:
    """Thresholds between two bounds, both included."""
    return np.linspace(low, high, max(2, round((high - low) / EDGE_STEP) + 1))


def strongest_edge(candidates: Sequence[float], profile: NDArray[np.float64]) -> float:
    """The candidate with the strongest contour, slightly in favour of low ones.

    Contours of high thresholds lie inside a lesion, where its own texture is steep too; dividing
    by the fourth root makes up for that. Where no mask has a contour, the highest is returned.

    Args:
        candidates: Rising positive thresholds.
        profile: Their mean edge strength.
    """
    if not profile.any():
        return float(candidates[-1])
    weighted = profile / np.maximum(np.asarray(candidates), 0.1) ** 0.25
    return float(candidates[int(weighted.argmax())])


def seeded(
    mask: BoolArray,
    seeds: BoolArray,
    spacing_mm: Sequence[float],
    *,
    min_seed_mm3: float,
    min_fraction_of_largest: float = 0.0,
) -> BoolArray:
    """Keep the components of a mask that hold enough seeds and are large enough.

    Args:
        mask: (I, J, K) bool.
        seeds: (I, J, K) bool.
        spacing_mm: Voxel size.
        min_seed_mm3: Volume of seeds that a component needs.
        min_fraction_of_largest: Share of the largest kept component's volume that it needs.
    """
    labels, voxels, _ = label_components(mask)
    if len(voxels) == 0:
        return mask
    inside = np.bincount(labels[seeds & mask].ravel(), minlength=len(voxels) + 1)[1:]
    needed = max(1.0, min_seed_mm3 / float(np.prod(np.asarray(spacing_mm, dtype=float))))
    sizes = np.where(inside >= needed * (1 - 1e-6), voxels, 0)
    keep = (sizes > 0) & (sizes >= min_fraction_of_largest * sizes.max() * (1 - 1e-6))
    return np.concatenate([[False], keep])[labels]
