"""How sure candidates are: learnt from real lesions, painted ones, and what is neither."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.candidates import score_scan
from mmccd_cli.anomaly.components import label_components
from mmccd_cli.anomaly.confidence import describe_candidates
from mmccd_cli.config import ConfidenceConfig, ScoreConfig
from mmccd_cli.training.calibration_data import CalibrationSubject
from mmccd_cli.training.fusion import fit_logistic

LEAST_OVERLAP = 0.3
"""Share of a candidate's voxels that a lesion must hold, for the candidate to be one."""
RIDGE = 1e-3
"""Penalty of large weights, of features in units of their spread, against the mean log loss."""
HALF = 0.5
"""Share of a voxel that a mask must hold, for the voxel to belong to it."""
LEAST_SPREAD = 1e-6
"""Below this spread a feature is the same for all candidates."""


def learn_confidence(
    subjects: Sequence[CalibrationSubject],
    config: ScoreConfig,
    *,
    spacing_mm: tuple[float, float, float],
) -> ConfidenceConfig | None:
    """Fit the confidence to all candidates of subjects at their scan's own threshold.

    Args:
        subjects: With lesions, real or painted.
        config: The score, with its rule.
        spacing_mm: Voxel size.

    Returns:
        The regression; None where all candidates are lesions, or none is.
    """
    found = [_candidates(subject, config, spacing_mm) for subject in subjects]
    features = np.concatenate([features for features, _ in found])
    truth = np.concatenate([truth for _, truth in found])
    if not truth.any() or truth.all():
        return None
    # By their radius: to lose a large lesion is worse than to lose a small one.
    share = 10 ** (features[:, 0] / 3)
    share /= share.sum()
    # The ridge asks for weights in units of what they are for.
    spread = features.std(axis=0)
    spread[spread < LEAST_SPREAD] = 1.0
    # Nothing makes a candidate less likely by being larger, brighter or rounder.
    bounds = [(0.0, None)] * features.shape[1]
    weights, bias = fit_logistic(features / spread, truth, share, bounds=bounds, ridge=RIDGE)
    volume, peak, mean, sphericity = (round(float(weight), 4) for weight in weights / spread)
    return ConfidenceConfig(
        weights=(volume, peak, mean),
        bias=round(bias, 4),
        above_threshold=counts_from_threshold(config),
        sphericity_weight=sphericity,
    )


def counts_from_threshold(config: ScoreConfig) -> bool:
    """Whether candidates are judged by how far they lie above the scan's threshold.

    So small foci do, which stand out by as much whatever the threshold. In version 0.6.0, of 17
    patients left out with FLAIR and T2w, this marked 0.8 healthy places a scan instead of 1.1, and
    found half of the painted lesions of 0.06 to 0.2 ml instead of 0.3. Without foci it was no
    better.
    """
    return config.has_foci


def _candidates(
    subject: CalibrationSubject, config: ScoreConfig, spacing_mm: tuple[float, float, float]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Features (N, 4) of a subject's candidates, and which of them are lesions.

    They are measured on a grid of half the spacing, which is about that of most scans: where small
    candidates have few voxels, all of them look round.
    """
    signals = subject.signals_for(config)
    scored = score_scan(signals, subject.brain, spacing_mm=spacing_mm, config=config)
    values = on_finer_grid(scored.values)
    above = values > scored.threshold
    labels, voxels, _ = label_components(above)
    start = np.float32(scored.threshold if counts_from_threshold(config) else 0.0)
    finer_mm = finer_spacing(spacing_mm)
    features = describe_candidates(labels, voxels, values[above] - start, spacing_mm=finer_mm)
    inside = above & finer_mask(subject.lesion)
    held = np.bincount(labels[inside], minlength=len(voxels) + 1)[1:]
    return features, held >= LEAST_OVERLAP * voxels


def on_finer_grid(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Put a voxel between every two neighbours, by linear interpolation.

    Args:
        volume: (I, J, K) float32.

    Returns:
        (2 I - 1, 2 J - 1, 2 K - 1) float32.
    """
    for axis in range(volume.ndim):
        lines = np.moveaxis(volume, axis, 0)
        finer = np.empty((2 * len(lines) - 1, *lines.shape[1:]), np.float32)
        finer[::2] = lines
        finer[1::2] = (lines[1:] + lines[:-1]) / 2
        volume = np.moveaxis(finer, 0, axis)
    return volume


def finer_spacing(spacing_mm: Sequence[float]) -> tuple[float, ...]:
    """Voxel size of the grid of `on_finer_grid`."""
    return tuple(size / 2 for size in spacing_mm)


def finer_mask(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask (I, J, K) on the grid of `on_finer_grid`: voxels of which it holds `HALF`."""
    return on_finer_grid(mask.astype(np.float32)) >= HALF
