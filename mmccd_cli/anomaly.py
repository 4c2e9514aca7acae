"""From signals to a calibrated anomaly map and a mask; numpy only, on any grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.config import ScoreConfig
from mmccd_cli.postprocessing import (
    BoolArray,
    FloatArray,
    adaptive_threshold,
    clean,
    erode,
    median_filter_3d,
)
from mmccd_cli.thresholding import (
    SeedRule,
    candidate_masks,
    contour_interior,
    contour_strength,
    edge_candidates,
    edge_strength,
    seeded,
    strongest_edge,
)


@dataclass(frozen=True)
class Score:
    """A smoothed score and the threshold that was found for its scan.

    Attributes:
        values: (I, J, K) float32, in robust standard deviations; 0 outside the region.
        region: (I, J, K) bool, the brain without its rim.
        threshold: The scan's threshold, in the score's unit.
    """

    values: NDArray[np.float32]
    region: BoolArray
    threshold: float


def combine(signals: Mapping[str, FloatArray], weights: Mapping[str, float]) -> FloatArray:
    """Weighted sum of signals of shape (I, J, K)."""
    parts = [np.float32(w) * signals[name] for name, w in weights.items() if w != 0.0]
    return np.sum(parts, axis=0, dtype=np.float32)


def score(
    signals: Mapping[str, FloatArray],
    brain: BoolArray,
    spacing_mm: Sequence[float],
    config: ScoreConfig,
) -> Score:
    """Combine signals, smooth them and find the scan's threshold without labels.

    Args:
        signals: Name -> (I, J, K) float32, in robust standard deviations, positive where anomalous.
        brain: (I, J, K) bool.
        spacing_mm: Voxel size.
        config: Weights, filter, erosion and threshold rule.
    """
    raw = combine(signals, config.weights)
    region = erode(brain, config.erosion_mm, spacing_mm)
    values = median_filter_3d(raw, brain, config.median_mm, spacing_mm)
    values[~region] = 0.0
    return Score(values, region, _find_threshold(raw, values, region, brain, spacing_mm, config))


def _find_threshold(
    raw: FloatArray,
    values: FloatArray,
    region: BoolArray,
    brain: BoolArray,
    spacing_mm: Sequence[float],
    config: ScoreConfig,
) -> float:
    if config.threshold_rule == "fixed":
        return config.threshold_offset
    if config.threshold_rule == "otsu":
        return adaptive_threshold(
            values[region], config.threshold_offset, otsu_weight=config.otsu_weight
        )
    candidates = edge_candidates(config.edge_low, config.edge_high)
    edges, interior = edge_strength(raw, brain), contour_interior(brain, spacing_mm)
    masks = candidate_masks(values, region, spacing_mm, candidates, seed_rule(config))
    profile = np.array([contour_strength(mask, edges, interior) for mask in masks])
    return strongest_edge(candidates, profile)


def seed_rule(config: ScoreConfig) -> SeedRule:
    """The part of a score's settings that says which components count."""
    return SeedRule(config.seed_threshold, config.min_seed_mm3, config.min_fraction_of_largest)


def anomaly_map(
    values: FloatArray, threshold: float, config: ScoreConfig
) -> NDArray[np.float32]:
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
    return clean(
        mask,
        spacing_mm,
        min_fraction_of_largest=config.min_fraction_of_largest,
        min_volume_mm3=config.min_lesion_mm3,
        holes=config.fill_holes,
    )
