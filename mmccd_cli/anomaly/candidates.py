"""Thresholds that are tried on one scan, the mask at each, and the one that is taken.

No label is seen: a threshold is a constant, or follows the contrast of the scan's own scores
("otsu"), or is the one whose contour runs along the strongest edges ("edge").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.anomaly.components import (
    BoolArray,
    FloatArray,
    JudgedComponents,
    erode,
    fill_holes,
    grow_into_rim,
    judge_components,
    straight_voxel_mm3,
)
from mmccd_cli.anomaly.score import SmoothedScore, score_of_foci, smooth
from mmccd_cli.config import ScoreConfig
from mmccd_cli.template import bounding_box

EDGE_STEP = 0.2
"""Distance of the thresholds that the edge rule tries, in the score's unit."""
EDGE_SIGMA_VOXELS = 0.5
"""Blur of the gradient along which contours are judged."""
EDGE_RIM_MM = 6.0
"""Contours so near to the outside of the brain do not count: they follow its edge."""
CORE_MM = 4.0
"""What lies deeper than this inside a mask is its core."""
COMPACTNESS_TOLERANCE = 0.05
"""From so much below the least compactness to so much above it the weight of a mask rises from none
to all, so that a small change of the scan cannot throw a threshold out."""
DOUBT_MM3 = 1000.0
"""Volume that counts as core, whatever a mask looks like: of one or two millilitres nobody can say
whether they are a net."""
EDGE_TOLERANCE = 0.02
"""Share of the strongest contour's strength by which another is still about as strong."""


@dataclass(frozen=True, eq=False)
class ScanScore:
    """A smoothed score and the threshold that was found for its scan.

    Attributes:
        values: (I, J, K) float32, in robust standard deviations; 0 outside the brain and in its
            rim, except where the rim lies next to a lesion.
        threshold: The scan's threshold, in the score's unit.
    """

    values: NDArray[np.float32]
    threshold: float


def score_scan(
    signals: Mapping[str, FloatArray],
    brain: BoolArray,
    *,
    spacing_mm: tuple[float, float, float],
    config: ScoreConfig,
) -> ScanScore:
    """Combine signals, smooth them and find the scan's threshold without labels; see `smooth`.

    The threshold is that of the smoothed score alone; small foci join it afterwards.
    """
    smoothed = smooth(signals, brain, spacing_mm=spacing_mm, config=config)
    threshold = find_threshold(smoothed, config)
    (mask,) = candidate_masks(smoothed, [threshold], config)
    kept = smoothed.region | with_rim(mask, smoothed, threshold=threshold, rim_mm=config.rim_mm)
    values = np.where(kept, smoothed.values, np.float32(0))
    if config.has_foci:
        foci = signals[config.foci_signal]
        with_foci = np.maximum(values, score_of_foci(foci, threshold, config))
        values = np.where(smoothed.region & (foci > 0), with_foci, values)
    return ScanScore(values, threshold)


def find_threshold(
    smoothed: SmoothedScore,
    config: ScoreConfig,
    *,
    known: Mapping[float, JudgedComponents] | None = None,
) -> float:
    """Find the threshold of one scan by the rule of a score's settings.

    Args:
        smoothed: The score.
        config: Its settings.
        known: Threshold, rounded by `edge_key`, -> what `judged_candidates` says of it, all that
            the edge rule tries among them; None to judge them here.

    Returns:
        The threshold, in the score's unit.
    """
    if config.threshold_rule == "fixed":
        return config.threshold_offset
    if config.threshold_rule == "otsu":
        inside = smoothed.values[smoothed.region]
        return adaptive_threshold(inside, config.threshold_offset, otsu_weight=config.otsu_weight)
    candidates = edge_candidates(config.edge_low, config.edge_high)
    if known is None:
        judged = judged_candidates(smoothed, candidates, config)
    else:
        judged = [known[edge_key(threshold)] for threshold in candidates]
    profile = edge_profile(judged, smoothed, least_compactness=config.edge_compactness)
    return strongest_edge(candidates, profile)


def candidate_masks(
    smoothed: SmoothedScore, thresholds: Sequence[float], config: ScoreConfig
) -> list[BoolArray]:
    """The mask at each threshold: inside the region, the components that count, holes left."""
    return [judged.mask for judged in judged_candidates(smoothed, thresholds, config)]


def judged_candidates(
    smoothed: SmoothedScore, thresholds: Sequence[float], config: ScoreConfig
) -> list[JudgedComponents]:
    """The components above each threshold inside the region, and which of them count."""
    seeds = None
    if config.min_seed_mm3 > 0:
        seeds = (smoothed.values > config.seed_threshold) & smoothed.region
    return [
        judge_components(
            (smoothed.values > threshold) & smoothed.region,
            smoothed.spacing_mm,
            voxel_mm3=smoothed.voxel_mm3,
            seeds=seeds,
            min_seed_mm3=config.min_seed_mm3,
            min_fraction_of_largest=config.min_fraction_of_largest,
        )
        for threshold in thresholds
    ]


def with_rim(
    mask: BoolArray, smoothed: SmoothedScore, *, threshold: float, rim_mm: float
) -> BoolArray:
    """A mask of `candidate_masks`, with what the left-out rim holds next to it."""
    return grow_into_rim(
        mask,
        bright=smoothed.values > threshold,
        brain=smoothed.brain,
        region=smoothed.region,
        distance_mm=rim_mm,
        spacing_mm=smoothed.spacing_mm,
    )


def mask_at(smoothed: SmoothedScore, threshold: float, config: ScoreConfig) -> BoolArray:
    """The whole mask at a threshold of the score: what counts, its rim, and its holes filled."""
    (mask,) = candidate_masks(smoothed, [threshold], config)
    return completed(mask, smoothed, threshold=threshold, config=config)


def completed(
    candidate: BoolArray, smoothed: SmoothedScore, *, threshold: float, config: ScoreConfig
) -> BoolArray:
    """A candidate with the rim that belongs to it, and its holes filled."""
    grown = with_rim(candidate, smoothed, threshold=threshold, rim_mm=config.rim_mm)
    return fill_holes(grown, config.fill_holes)


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


def edge_candidates(low: float, high: float) -> list[float]:
    """Thresholds between two bounds, both included."""
    return np.linspace(low, high, max(2, round((high - low) / EDGE_STEP) + 1)).tolist()


def edge_key(threshold: float) -> float:
    """A threshold without the rounding of how it was computed, to look it up by."""
    return round(threshold, 6)


def edge_profile(
    judged: Sequence[JudgedComponents], smoothed: SmoothedScore, *, least_compactness: float = 0.0
) -> NDArray[np.float64]:
    """Mean edge strength along the contour of the mask of each threshold.

    Contours count away from the brain's edge, which they would otherwise follow, and edges are
    those of the score before its median.

    Args:
        judged: Components of each threshold, as `judged_candidates` gives them.
        smoothed: The score that they were made of.
        least_compactness: Masks that are less compact do not count, and those that are about as
            compact count less; 0 lets all count.

    Returns:
        (len(judged),), for `strongest_edge`; 0 where no contour lies in the interior, or the mask
        does not count.
    """
    inside = np.where(smoothed.brain, smoothed.raw, 0).astype(np.float32)
    edges = ndimage.gaussian_gradient_magnitude(inside, EDGE_SIGMA_VOXELS).astype(np.float32)
    interior = erode(smoothed.brain, EDGE_RIM_MM, smoothed.spacing_mm)
    spacing_mm = smoothed.spacing_mm
    voxel_mm3 = smoothed.voxel_mm3 or straight_voxel_mm3(spacing_mm)
    strengths = []
    for found in judged:
        mask = found.mask
        volumes_mm3 = found.voxels[found.kept] * voxel_mm3
        compact = compactness(mask, volumes_mm3, spacing_mm, voxel_mm3=voxel_mm3)
        beyond = compact - least_compactness
        worth = _worth(beyond) if least_compactness > 0 else 1.0
        strengths.append(worth * _contour_strength(mask, edges, interior) if worth else 0.0)
    return np.array(strengths)


def _worth(beyond: float) -> float:
    """Weight of a mask that is so much more compact than it must be."""
    return min(max(0.5 + beyond / (2 * COMPACTNESS_TOLERANCE), 0.0), 1.0)


def compactness(
    mask: BoolArray,
    volumes_mm3: FloatArray,
    spacing_mm: Sequence[float],
    *,
    voxel_mm3: float | None = None,
) -> float:
    """Volume of the core of a mask, against the cores of balls as large as its components.

    Lesions of all sizes are nearly as compact as balls; healthy tissue that a low threshold lets
    run together is a net of thin sheets, however large it is. `DOUBT_MM3` is added to both.

    Args:
        mask: (I, J, K) bool.
        volumes_mm3: (N,) volume of each of its components.
        spacing_mm: Voxel size; the core's depth, `CORE_MM`, is taken in whole voxels.
        voxel_mm3: Volume of a voxel; None where the grid has no shear.

    Returns:
        Next to 0 for a large net without a core, 1 for balls; 1, too, where not even balls would
        have a core.
    """
    radii = np.cbrt(3 * volumes_mm3 / (4 * np.pi))
    balls = float((volumes_mm3 * np.clip(1 - CORE_MM / radii, 0, None) ** 3).sum())
    if balls == 0:
        return 1.0
    core = mask[bounding_box(mask, margin=1)]
    for _ in range(max(1, round(CORE_MM / float(np.mean(spacing_mm))))):
        core = _eroded_once(core)
    volume = float(core.sum() * (voxel_mm3 or straight_voxel_mm3(spacing_mm)))
    return (volume + DOUBT_MM3) / (balls + DOUBT_MM3)


def _contour_strength(mask: BoolArray, edges: FloatArray, interior: BoolArray) -> float:
    box = bounding_box(mask, margin=1)
    inside = mask[box]
    if inside.size == 0:
        return 0.0
    contour = inside & ~_eroded_once(inside) & interior[box]
    return float(edges[box][contour].mean()) if contour.any() else 0.0


def _eroded_once(mask: BoolArray) -> BoolArray:
    """Take off the voxels with a face to the outside; the array's border counts as inside.

    Twenty times faster than scipy.ndimage.binary_erosion, which calibration would feel.
    """
    result = mask.copy()
    for axis in range(3):
        inner, ahead = [slice(None)] * 3, [slice(None)] * 3
        inner[axis], ahead[axis] = slice(None, -1), slice(1, None)
        result[tuple(inner)] &= mask[tuple(ahead)]
        result[tuple(ahead)] &= mask[tuple(inner)]
    return result


def strongest_edge(candidates: Sequence[float], profile: NDArray[np.float64]) -> float:
    """Find the threshold of the strongest contour, slightly in favour of low ones.

    Contours of high thresholds lie inside a lesion, where its own texture is steep too; dividing
    by the fourth root makes up for that. Where several contours are about equally strong, the
    result lies between them: a small change of the scan must not move it from one to another.

    Args:
        candidates: Rising positive thresholds.
        profile: Their mean edge strength.

    Returns:
        The mean of the candidates, each with the weight exp((s / s_max - 1) / `EDGE_TOLERANCE`) of
        its strength s; the highest candidate where no mask has a contour.
    """
    if not profile.any():
        return float(candidates[-1])
    strength = profile / np.maximum(np.asarray(candidates), 0.1) ** 0.25
    weights = np.exp((strength / strength.max() - 1) / EDGE_TOLERANCE)
    return float(np.average(candidates, weights=weights))
