"""From signals to a score per voxel, and from a score to the anomaly map; numpy only, on any grid.

A score is an anomaly value in robust standard deviations of healthy tissue: a weighted sum of
signals, lowered where the other side of the brain scores as well, and smoothed by a median.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.components import BoolArray, FloatArray, erode
from mmccd_cli.anomaly.symmetry import (
    SIDES_SIGMA_MM,
    asymmetry,
    middle_plane,
    smooth_inside,
)
from mmccd_cli.config import ScoreConfig
from mmccd_cli.template import bounding_box


@dataclass(frozen=True, eq=False, kw_only=True)
class SmoothedScore:
    """A combined score before a threshold is found.

    Attributes:
        raw: (I, J, K) float32, in robust standard deviations.
        values: (I, J, K) float32, median filtered; 0 outside the brain.
        brain: (I, J, K) bool.
        region: (I, J, K) bool, the brain without its rim.
        spacing_mm: Voxel size.
        voxel_mm3: Volume of a voxel; None where the grid has no shear.
    """

    raw: NDArray[np.float32]
    values: NDArray[np.float32]
    brain: BoolArray
    region: BoolArray
    spacing_mm: tuple[float, float, float]
    voxel_mm3: float | None = None


def combine(signals: Mapping[str, FloatArray], weights: Mapping[str, float]) -> FloatArray:
    """Weighted sum of signals of shape (I, J, K)."""
    parts = [np.float32(w) * signals[name] for name, w in weights.items() if w != 0.0]
    return np.sum(parts, axis=0, dtype=np.float32)


def smooth(
    signals: Mapping[str, FloatArray],
    brain: BoolArray,
    *,
    spacing_mm: tuple[float, float, float],
    config: ScoreConfig,
    voxel_mm3: float | None = None,
) -> SmoothedScore:
    """Combine signals, compare both sides of the brain, and smooth.

    Args:
        signals: Name -> (I, J, K) float32, in robust standard deviations, positive where anomalous;
            the first axis runs from left to right.
        brain: (I, J, K) bool.
        spacing_mm: Voxel size.
        config: Weights, filter and erosion.
        voxel_mm3: Volume of a voxel; None where the grid has no shear.
    """
    raw = combine(signals, config.weights)
    if config.asymmetry_weight:
        image = smooth_inside(
            signals[f"intensity:{config.modalities[0]}"],
            brain,
            sigma_mm=SIDES_SIGMA_MM,
            spacing_mm=spacing_mm,
        )
        raw = asymmetry(
            raw,
            brain,
            spacing_mm,
            axis=0,
            centre=middle_plane(image, brain, axis=0),
            weight=config.asymmetry_weight,
        )
    return SmoothedScore(
        raw=raw,
        values=median_filter(raw, brain, size_mm=config.median_mm, spacing_mm=spacing_mm),
        brain=brain,
        region=erode(brain, config.erosion_mm, spacing_mm),
        spacing_mm=spacing_mm,
        voxel_mm3=voxel_mm3,
    )


def window_size(size_mm: float, spacing_mm: Sequence[float]) -> tuple[int, int, int]:
    """Convert a window in mm to the nearest odd number of voxels an axis, at least one."""
    i, j, k = (2 * max(round((size_mm / s - 1) / 2), 0) + 1 for s in spacing_mm)
    return (i, j, k)


def median_filter(
    score: FloatArray,
    brain: BoolArray,
    *,
    size_mm: float,
    spacing_mm: Sequence[float],
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


def map_from_score(
    values: FloatArray, threshold: float, config: ScoreConfig
) -> NDArray[np.float32]:
    """Bring a score to [0, 1], so that a value means the same in every scan.

    Args:
        values: (I, J, K), the score.
        threshold: The scan's threshold.
        config: Its `map_scale` and `map_offset`.

    Returns:
        (I, J, K) float32: 1 / (1 + exp(-(values - threshold) / scale - offset)).
    """
    exponent = np.clip((threshold - values) / config.map_scale - config.map_offset, -60.0, 60.0)
    return (1.0 / (1.0 + np.exp(exponent))).astype(np.float32)


def score_from_map(
    anomaly_map: FloatArray, threshold: float, config: ScoreConfig
) -> NDArray[np.float32]:
    """Bring a map back to scores; what rounds to 0 or 1 in float32 ends 16 scales away.

    Args:
        anomaly_map: Values of any shape in [0, 1].
        threshold: The scan's threshold, which the map was made with.
        config: Its `map_scale` and `map_offset`.
    """
    inside = np.clip(anomaly_map.astype(np.float32), 1e-7, 1 - 1e-7)
    logit = np.log(inside) - np.log1p(-inside) - np.float32(config.map_offset)
    return (np.float32(threshold) + np.float32(config.map_scale) * logit).astype(np.float32)


def score_of_foci(
    log_odds: FloatArray, threshold: float, config: ScoreConfig
) -> NDArray[np.float32]:
    """The score at which the map says of small foci what their network says.

    Args:
        log_odds: Values of any shape, of the network of small foci.
        threshold: The scan's threshold.
        config: Its `foci_weight`, `foci_bias`, `map_scale` and `map_offset`.
    """
    logit = np.float32(config.foci_weight) * log_odds + np.float32(config.foci_bias)
    beyond = np.float32(config.map_scale) * (logit - np.float32(config.map_offset))
    return (np.float32(threshold) + beyond).astype(np.float32)
