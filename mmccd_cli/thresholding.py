"""Thresholds that adapt to a scan without seeing labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.postprocessing import (
    BoolArray,
    FloatArray,
    bounding_box,
    erode,
    label_components,
)

EDGE_STEP = 0.1
EDGE_SIGMA_VOXELS = 0.5
EDGE_RIM_MM = 6.0
"""Contours this near to the outside of the brain follow the brain's edge, not the lesion's."""


def edge_strength(raw: FloatArray, brain: BoolArray) -> NDArray[np.float32]:
    """Gradient magnitude of an image, per voxel.

    Args:
        raw: (I, J, K) float, not yet smoothed by the median.
        brain: (I, J, K) bool; the outside counts as 0.
    """
    inside = np.where(brain, raw, 0).astype(np.float32)
    return ndimage.gaussian_gradient_magnitude(inside, EDGE_SIGMA_VOXELS).astype(np.float32)


def edge_profile(
    values: FloatArray,
    region: BoolArray,
    edges: FloatArray,
    brain: BoolArray,
    spacing_mm: Sequence[float],
    candidates: Sequence[float],
    *,
    seed_threshold: float,
    min_seed_mm3: float,
    min_fraction_of_largest: float,
) -> NDArray[np.float64]:
    """Mean edge strength along the contour of each candidate's mask.

    Args:
        values: (I, J, K) smoothed score.
        region: (I, J, K) bool, where masks may lie.
        edges: (I, J, K), see `edge_strength`.
        brain: (I, J, K) bool.
        spacing_mm: Voxel size.
        candidates: Thresholds.
        seed_threshold: A component counts only where its score exceeds this somewhere,
        min_seed_mm3: over at least this volume.
        min_fraction_of_largest: A component needs this share of the largest one's volume.

    Returns:
        (len(candidates),); 0 where a mask is empty or has no contour inside the brain.
    """
    box = bounding_box(region & (values > min(candidates)), margin=2)
    if values[box].size == 0:
        return np.zeros(len(candidates))
    values, region, edges = values[box], region[box], edges[box]
    interior = erode(brain, EDGE_RIM_MM, spacing_mm)[box]
    profile = np.zeros(len(candidates))
    for index, threshold in enumerate(candidates):
        mask = seeded(
            (values > threshold) & region,
            values > seed_threshold,
            spacing_mm,
            min_seed_mm3=min_seed_mm3,
            min_fraction_of_largest=min_fraction_of_largest,
        )
        contour = mask & ~ndimage.binary_erosion(mask) & interior
        if contour.any():
            profile[index] = float(edges[contour].mean())
    return profile


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
