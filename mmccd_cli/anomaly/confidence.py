"""How sure it is that a candidate is a lesion: from its score, its size and its shape alone.

So the confidences of a map that lies on the disk are those of a new run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.components import (
    FloatArray,
    component_surfaces,
    straight_voxel_mm3,
)
from mmccd_cli.config import ConfidenceConfig

PEAK_MM3 = 80.0
"""The peak of a candidate is the mean score of its brightest voxels of this volume."""
LEAST_ML = 0.001
"""A candidate counts as at least this large."""


def describe_candidates(
    labels: NDArray[np.integer[Any]],
    voxels: NDArray[np.int64],
    scores: FloatArray,
    *,
    spacing_mm: Sequence[float],
    voxel_mm3: float | None = None,
) -> NDArray[np.float64]:
    """Measure candidates.

    Args:
        labels: (I, J, K) integers, number of the candidate at each voxel; 0 is none.
        voxels: (N,) voxels of each candidate, number 1 first.
        scores: (V,) float, the score of each voxel of a candidate, in the order of `labels`.
        spacing_mm: Voxel size.
        voxel_mm3: Volume of a voxel; None where the grid has no shear.

    Returns:
        (N, 4): what `ConfidenceConfig` has weights for, of each.
    """
    voxel_mm3 = voxel_mm3 or straight_voxel_mm3(spacing_mm)
    numbers, values = labels[labels > 0].astype(np.int64), scores.astype(np.float64)
    order = np.lexsort((-values, numbers))  # candidate by candidate, the brightest voxel first
    numbers, values = numbers[order], values[order]
    starts = np.concatenate([[0], np.cumsum(voxels)[:-1]]).astype(np.int64)
    counts = np.maximum(voxels, 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    top = np.minimum(counts, max(1, round(PEAK_MM3 / voxel_mm3)))
    volumes_mm3 = counts * voxel_mm3
    surfaces_mm2 = component_surfaces(labels, len(voxels), spacing_mm, voxel_mm3=voxel_mm3)
    return np.stack(
        [
            np.log10(np.maximum(voxels * voxel_mm3 / 1000, LEAST_ML)),
            (sums[starts + top] - sums[starts]) / top,
            (sums[starts + counts] - sums[starts]) / counts,
            sphericities(volumes_mm3, surfaces_mm2),
        ],
        axis=1,
    )


def sphericities(
    volumes_mm3: NDArray[np.float64], surfaces_mm2: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Surface of the ball of the same volume over that of each shape: 1 for a ball.

    Source: Wadell, Journal of Geology 40 (1932) 443.
    """
    return (36 * np.pi * volumes_mm3**2) ** (1 / 3) / surfaces_mm2


def confidences(features: NDArray[np.float64], config: ConfidenceConfig) -> NDArray[np.float64]:
    """Confidence of each candidate.

    Args:
        features: (N, 4), from `describe_candidates`.
        config: The calibrated weights.

    Returns:
        (N,) in [0, 1].
    """
    weights = np.array([*config.weights, config.sphericity_weight], dtype=float)
    logits = features @ weights + config.bias
    return 1.0 / (1.0 + np.exp(-np.clip(logits, -60.0, 60.0)))
