"""How much each signal of a score counts: a logistic regression on healthy and lesion voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from mmccd_cli.anomaly.components import erode
from mmccd_cli.anomaly.score import median_filter
from mmccd_cli.config import SIGNALS, ScoreConfig
from mmccd_cli.training.calibration_data import FROM_LESIONS_MM, CalibrationSubject

EVERY = 4
"""Of the voxels of the brain, one in so many is looked at."""
RANGE = 8.0
"""Signals beyond this many robust standard deviations count as this many."""
BIAS_RANGE = (-10.0, 10.0)
"""What `foci_bias` may be; log odds."""
OF_NETWORKS, LEAST_SHARE = ("cycle", "restoration"), 0.05
"""Kinds of signals that take passes, and the share of all weights below which they do not pay: in
version 0.14.0 the cycle of FLAIR alone took a third of the passes for a fiftieth of the weights."""
SCORE_AT_EVEN_ODDS = 2.0
"""Weights are scaled so that this score means even odds of a lesion."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Fusion:
    """Fits weights to subjects; each smoothed signal is sampled once.

    Attributes:
        subjects: Whom to learn from.
        spacing_mm: Voxel size.
        smoothing: Filter and rim of the scores that the weights are for.
    """

    subjects: Sequence[CalibrationSubject]
    spacing_mm: tuple[float, float, float]
    smoothing: ScoreConfig
    _samples: dict[tuple[str, tuple[str, ...], str], NDArray[np.float32]] = field(
        default_factory=dict, repr=False
    )

    def weights(
        self, modalities: tuple[str, ...], *, ridge: float, left_out: Sequence[str] = ()
    ) -> dict[str, float]:
        """Find the weights of a set of modalities.

        Anomalies are positive in all signals but intensities, whose weights alone may be negative.
        Each subject counts the same. Networks that hardly count do not count at all.

        Args:
            modalities: Which scans there are.
            ridge: Penalty of large weights, against the mean log loss.
            left_out: Ids of subjects not to learn from.

        Returns:
            Signal -> weight, of the signals that count; none where no learner has a lesion that is
            sampled.
        """
        learners = [subject for subject in self.subjects if subject.id not in left_out]
        if not any(self._inside(subject, subject.lesion).any() for subject in learners):
            return {}
        names = self._names(learners[0], modalities)
        found = self._fit(learners, modalities, names, ridge=ridge)
        least = LEAST_SHARE * sum(map(abs, found.values()))
        paying = [n for n in names if not n.startswith(OF_NETWORKS) or found[n] >= least]
        if len(paying) < len(names):
            found = self._fit(learners, modalities, paying, ridge=ridge)
        return {name: weight for name, weight in found.items() if weight}

    def _fit(
        self,
        learners: Sequence[CalibrationSubject],
        modalities: tuple[str, ...],
        names: Sequence[str],
        *,
        ridge: float,
    ) -> dict[str, float]:
        """Signal -> weight, of each that is named."""
        columns = [self._columns(subject, modalities, names) for subject in learners]
        truth = [self._inside(subject, subject.lesion) for subject in learners]
        share = [np.full(len(y), 1 / (len(y) * len(learners))) for y in truth]
        bounds = [(None if name.startswith("intensity") else 0.0, None) for name in names]
        found, bias = fit_logistic(
            np.concatenate(columns),
            np.concatenate(truth),
            np.concatenate(share),
            bounds=bounds,
            ridge=ridge,
        )
        factor = SCORE_AT_EVEN_ODDS / max(-bias, 1e-3)
        return {name: round(float(w) * factor, 4) for name, w in zip(names, found, strict=True)}

    def _names(self, subject: CalibrationSubject, modalities: tuple[str, ...]) -> list[str]:
        known = {**subject.signals, **subject.of_sets.get(modalities, {})}
        wanted = [f"{kind}:{modality}" for kind in SIGNALS for modality in modalities]
        return [name for name in wanted if name in known]

    def _columns(
        self, subject: CalibrationSubject, modalities: tuple[str, ...], names: Sequence[str]
    ) -> NDArray[np.float32]:
        """(voxels, signals), sampled."""
        seen = subject.of_sets.get(modalities, {})
        columns = []
        for name in names:
            key = (subject.id, modalities if name in seen else (), name)
            if key not in self._samples:
                signal = seen.get(name, subject.signals.get(name))
                assert signal is not None  # names are taken from what there is
                smooth = median_filter(
                    signal,
                    subject.brain,
                    size_mm=self.smoothing.median_mm,
                    spacing_mm=self.spacing_mm,
                )
                self._samples[key] = np.clip(self._inside(subject, smooth), -RANGE, RANGE)
            columns.append(self._samples[key])
        return np.stack(columns, axis=1)

    def _inside(self, subject: CalibrationSubject, values: NDArray) -> NDArray:
        """The sampled voxels of a subject's brain without its rim."""
        region = erode(subject.brain, self.smoothing.erosion_mm, self.spacing_mm)
        return values[region][::EVERY]


def fit_foci(
    subjects: Sequence[CalibrationSubject],
    painted: Sequence[CalibrationSubject],
    config: ScoreConfig,
    *,
    spacing_mm: tuple[float, float, float],
) -> dict[str, float]:
    """Find what the log odds of the network of small foci are worth, on painted lesions.

    Args:
        subjects: As they are; their own lesions are left out.
        painted: The same ones with painted lesions.
        config: The score.
        spacing_mm: Voxel size.

    Returns:
        `foci_weight` and `foci_bias` of the score; nothing where the network says nothing.
    """
    columns, truth = [], []
    for subject, other in zip(subjects, painted, strict=True):
        signal = other.signals_for(config).get(config.foci_signal)
        if signal is None:
            return {}
        region = erode(other.brain, config.erosion_mm, spacing_mm)
        region &= erode(~subject.lesion, FROM_LESIONS_MM, spacing_mm)
        region &= signal > 0
        if region.any():
            columns.append(signal[region].astype(np.float64))
            truth.append(other.lesion[region])
    inside = np.concatenate(truth) if truth else np.zeros(0, dtype=bool)
    if not inside.any() or inside.all():
        return {}
    share = [np.full(len(y), 1 / (len(y) * len(truth))) for y in truth]
    (weight,), bias = fit_logistic(
        np.concatenate(columns)[:, None],
        inside,
        np.concatenate(share),
        bounds=[(0.0, None)],
        ridge=0.0,
    )
    return {
        "foci_weight": round(float(weight), 4),
        "foci_bias": round(float(np.clip(bias, *BIAS_RANGE)), 4),
    }


def fit_logistic(
    columns: NDArray[np.floating],
    truth: NDArray[np.bool_],
    share: NDArray[np.float64],
    *,
    bounds: Sequence[tuple[float | None, float | None]],
    ridge: float,
) -> tuple[NDArray[np.float64], float]:
    """Find weights and bias of the least mean log loss.

    Args:
        columns: (N, F) features.
        truth: (N,) bool.
        share: (N,) how much each row counts; they add up to 1.
        bounds: Least and largest value of each weight; None for no bound.
        ridge: Factor of the sum of squared weights in the loss.

    Returns:
        (F,) weights, and the bias.
    """
    count = columns.shape[1]

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, bias = parameters[:count], parameters[count]
        logit = columns @ weights + bias
        losses = np.logaddexp(0, np.where(truth, -logit, logit))
        gradient = share * (1 / (1 + np.exp(-np.clip(logit, -60, 60))) - truth)
        slope = np.append(columns.T @ gradient + 2 * ridge * weights, gradient.sum())
        return float(share @ losses + ridge * weights @ weights), slope

    start = np.append(np.full(count, 0.1), -3.0)
    found = optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=[*bounds, (None, None)]
    )
    return found.x[:count], float(found.x[count])
