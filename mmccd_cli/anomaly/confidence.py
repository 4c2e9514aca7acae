"""How sure it is that a candidate is a lesion: from its score and its size, and nothing else.

So the confidences of a map that lies on the disk are those of a new run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.components import FloatArray
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
) -> NDArray[np.float64]:
    """Measure candidates.

    Args:
        labels: Integers of any shape, number of the candidate at each voxel; 0 is none.
        voxels: (N,) voxels of each candidate, number 1 first.
        scores: Float of the same shape, the score of each voxel.
        spacing_mm: Voxel size.

    Returns:
        (N, 3): what `ConfidenceConfig.weights` are for, of each.
    """
    voxel_mm3 = float(np.prod(np.asarray(spacing_mm, dtype=float)))
    inside = labels > 0
    numbers, values = labels[inside].astype(np.int64), scores[inside].astype(np.float64)
    order = np.lexsort((-values, numbers))  # candidate by candidate, the brightest voxel first
    numbers, values = numbers[order], values[order]
    starts = np.concatenate([[0], np.cumsum(voxels)[:-1]]).astype(np.int64)
    counts = np.maximum(voxels, 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    top = np.minimum(counts, max(1, round(PEAK_MM3 / voxel_mm3)))
    return np.stack(
        [
            np.log10(np.maximum(voxels * voxel_mm3 / 1000, LEAST_ML)),
            (sums[starts + top] - sums[starts]) / top,
            (sums[starts + counts] - sums[starts]) / counts,
        ],
        axis=1,
    )


def confidences(features: NDArray[np.float64], config: ConfidenceConfig) -> NDArray[np.float64]:
    """Confidence of each candidate.

    Args:
        features: (N, 3), from `describe_candidates`.
        config: The calibrated weights.

    Returns:
        (N,) in [0, 1].
    """
    logits = features @ np.asarray(config.weights, dtype=float) + config.bias
    return 1.0 / (1.0 + np.exp(-np.clip(logits, -60.0, 60.0)))
