"""From signals to a calibrated anomaly map and a mask; numpy only, on any grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.components import (
    BoolArray,
    FloatArray,
    adaptive_threshold,
    clean,
    erode,
    fill_holes,
    fill_holes_in_planes,
    grow_into_rim,
    median_filter_3d,
)
from mmccd_cli.anomaly.symmetry import asymmetry, middle_plane, smooth_inside
from mmccd_cli.anomaly.thresholds import (
    SeedRule,
    candidate_masks,
    edge_candidates,
    edge_profile,
    seeded,
    strongest_edge,
)
from mmccd_cli.config import ScoreConfig

SIDES_SIGMA_MM = 4.0
"""Blur under which the two sides of a brain are compared to find its middle plane."""


@dataclass(frozen=True)
class SmoothScore:
    """A combined score before a threshold is found.

    Attributes:
        raw: (I, J, K) float32, in robust standard deviations.
        values: (I, J, K) float32, median filtered; 0 outside the brain.
        brain: (I, J, K) bool.
        region: (I, J, K) bool, the brain without its rim.
        spacing_mm: Voxel size.
    """

    raw: NDArray[np.float32]
    values: NDArray[np.float32]
    brain: BoolArray
    region: BoolArray
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Score:
    """A smoothed score and the threshold that was found for its scan.

    Attributes:
        values: (I, J, K) float32, in robust standard deviations; 0 outside the brain and in its
            rim, except where the rim lies next to a lesion.
        threshold: The scan's threshold, in the score's unit.
    """

    values: NDArray[np.float32]
    threshold: float


def combine(signals: Mapping[str, FloatArray], weights: Mapping[str, float]) -> FloatArray:
    """Weighted sum of signals of shape (I, J, K)."""
    parts = [np.float32(w) * signals[name] for name, w in weights.items() if w != 0.0]
    return np.sum(parts, axis=0, dtype=np.float32)


def smooth(
    signals: Mapping[str, FloatArray],
    brain: BoolArray,
    spacing_mm: tuple[float, float, float],
    config: ScoreConfig,
) -> SmoothScore:
    """Combine signals, compare both sides of the brain, and smooth.

    Args:
        signals: Name -> (I, J, K) float32, in robust standard deviations, positive where anomalous;
            the first axis runs from left to right.
        brain: (I, J, K) bool.
        spacing_mm: Voxel size.
        config: Weights, filter and erosion.
    """
    raw = combine(signals, config.weights)
    if config.asymmetry_weight:
        image = signals[f"intensity:{config.modalities[0]}"]
        plane = middle_plane(smooth_inside(image, brain, SIDES_SIGMA_MM, spacing_mm), brain, 0)
        raw = asymmetry(
            raw, brain, spacing_mm, axis=0, centre=plane, weight=config.asymmetry_weight
        )
    region = erode(brain, config.erosion_mm, spacing_mm)
    values = median_filter_3d(raw, brain, config.median_mm, spacing_mm)
    return SmoothScore(raw, values, brain, region, spacing_mm)


def score(
    signals: Mapping[str, FloatArray],
    brain: BoolArray,
    spacing_mm: tuple[float, float, float],
    config: ScoreConfig,
) -> Score:
    """Combine signals, smooth them and find the scan's threshold without labels; see `smooth`."""
    smoothed = smooth(signals, brain, spacing_mm, config)
    threshold = _find_threshold(smoothed, config)
    (mask,) = masks_at(smoothed, [threshold], config)
    kept = smoothed.region | with_rim(smoothed, mask, threshold, config)
    return Score(np.where(kept, smoothed.values, np.float32(0)), threshold)


def masks_at(
    smoothed: SmoothScore, thresholds: Sequence[float], config: ScoreConfig
) -> list[BoolArray]:
    """The mask at each threshold: inside the region, the components that count, holes left."""
    return list(
        candidate_masks(
            smoothed.values, smoothed.region, smoothed.spacing_mm, thresholds, seed_rule(config)
        )
    )


def with_rim(
    smoothed: SmoothScore, mask: BoolArray, threshold: float, config: ScoreConfig
) -> BoolArray:
    """A mask of `masks_at`, with what the left-out rim holds next to it."""
    return grow_into_rim(
        mask,
        smoothed.values > threshold,
        smoothed.brain,
        smoothed.region,
        config.rim_mm,
        smoothed.spacing_mm,
    )


def _find_threshold(smoothed: SmoothScore, config: ScoreConfig) -> float:
    if config.threshold_rule == "fixed":
        return config.threshold_offset
    if config.threshold_rule == "otsu":
        return adaptive_threshold(
            smoothed.values[smoothed.region],
            config.threshold_offset,
            otsu_weight=config.otsu_weight,
        )
    candidates = edge_candidates(config.edge_low, config.edge_high).tolist()
    masks = masks_at(smoothed, candidates, config)
    profile = edge_profile(masks, smoothed.raw, smoothed.brain, smoothed.spacing_mm)
    return strongest_edge(candidates, profile)


def seed_rule(config: ScoreConfig) -> SeedRule:
    """The part of a score's settings that says which components count."""
    return SeedRule(config.seed_threshold, config.min_seed_mm3, config.min_fraction_of_largest)


def anomaly_map(values: FloatArray, threshold: float, config: ScoreConfig) -> NDArray[np.float32]:
    """Bring a score to [0, 1], so that 0.5 means the scan's threshold in every scan.

    Args:
        values: (I, J, K), the score.
        threshold: The scan's threshold.
        config: Its `map_scale` is the score units from 0.5 to 0.73.

    Returns:
        (I, J, K) float32: 1 / (1 + exp(-(values - threshold) / scale)).
    """
    exponent = np.clip((threshold - values) / config.map_scale, -60.0, 60.0)
    return (1.0 / (1.0 + np.exp(exponent))).astype(np.float32)


def segment(
    values: NDArray[np.float32],
    spacing_mm: Sequence[float],
    scan_threshold: float,
    config: ScoreConfig,
) -> BoolArray:
    """Threshold an anomaly map and clean the mask.

    Args:
        values: (I, J, K), the anomaly map in [0, 1].
        spacing_mm: Voxel size.
        scan_threshold: The scan's threshold in score units, which the map was made with.
        config: Threshold of the map, seeds, component sizes and holes.
    """
    mask = values > config.threshold
    if config.min_seed_mm3 > 0:
        seed = anomaly_map(np.array(config.seed_threshold), scan_threshold, config)
        mask = seeded(mask, values > seed, spacing_mm, min_seed_mm3=config.min_seed_mm3)
    kept = clean(
        mask,
        spacing_mm,
        min_fraction_of_largest=config.min_fraction_of_largest,
        min_volume_mm3=config.min_lesion_mm3,
        holes=False,
    )
    return fill(kept, config)


def fill(mask: BoolArray, config: ScoreConfig) -> BoolArray:
    """Fill the holes of a mask as a score's settings say."""
    if config.fill_holes == "planes":
        return fill_holes_in_planes(mask)
    return fill_holes(mask) if config.fill_holes == "volume" else mask
