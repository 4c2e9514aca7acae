"""Calibration of a bundle on prepared subjects: weights, threshold rule and scale of the map.

Everything here works on shards, so it needs neither an image reader nor a device of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mmccd_cli.anomaly import (
    anomaly_map,
    fill,
    masks_at,
    score,
    smooth,
    with_rim,
)
from mmccd_cli.bundle import Bundle, BundleConfig
from mmccd_cli.config import SamplingConfig, ScoreConfig
from mmccd_cli.errors import DataError
from mmccd_cli.metrics import overlap
from mmccd_cli.modalities import MODALITIES
from mmccd_cli.postprocessing import adaptive_threshold
from mmccd_cli.shards import Quantisation, read_index, read_shard
from mmccd_cli.signals import SignalModel
from mmccd_cli.thresholding import edge_profile, strongest_edge

THRESHOLDS = tuple(round(0.2 * i, 1) for i in range(2, 18))
OFFSETS = tuple(round(0.1 * i, 1) for i in range(-4, 26))
EDGE_LOWS = tuple(round(0.2 * i, 1) for i in range(2, 9))
EDGE_WIDTHS = (0.6, 1.0, 1.4, 1.8)
SEED_THRESHOLDS = (1.6, 2.4, 3.2)
MAP_SCALES = (0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
OTHER_CYCLE_WEIGHTS = {"T2w": (0.0, 0.25, 0.5), "T1w": (0.25,)}
OWN_INTENSITY_WEIGHTS = (0.0, 0.5)
T2W_INTENSITY_WEIGHTS = (0.0, 0.25)
Method = Literal["mmccd", "cyclic-unet"]
METHODS: tuple[Method, ...] = ("mmccd", "cyclic-unet")
MODALITY_SETS = (("FLAIR", "T2w", "T1w"), ("FLAIR", "T2w"), ("FLAIR",), ("T2w",), ("T1w",))


@dataclass(frozen=True)
class CalibrationSubject:
    """One subject on the training grid.

    Attributes:
        id: Its id.
        brain: (I, J, K) bool.
        lesion: (I, J, K) bool.
        signals: Name -> (I, J, K) float32, see `SignalModel.signals`.
    """

    id: str
    brain: NDArray[np.bool_]
    lesion: NDArray[np.bool_]
    signals: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class CalibrationRow:
    """Result of one method on one set of modalities.

    Attributes:
        method: "mmccd" or "cyclic-unet".
        config: The chosen score.
        dice: Mean Dice on the calibration subjects, on the training grid.
        left_out_dice: The same with the threshold chosen on the other subjects each time.
        trials: (weights, rule, mean Dice) of everything that was tried.
    """

    method: str
    config: ScoreConfig
    dice: float
    left_out_dice: float
    trials: list[dict[str, Any]]


def calibrate(
    bundle: Bundle,
    shards: Path,
    *,
    split: str = "train",
    methods: Sequence[Method] = METHODS,
    device: torch.device | None = None,
    false_positive_budget_ml: float = 1.0,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[BundleConfig, list[CalibrationRow]]:
    """Choose all numbers of a bundle's scores on prepared subjects.

    With labelled lesions the mean Dice decides. With healthy subjects only, the threshold is the
    lowest that leaves at most `false_positive_budget_ml` on average; weights then stay as they are.

    Args:
        bundle: The bundle.
        shards: What `prepare` wrote.
        split: Split of the subjects to calibrate on.
        methods: What to calibrate; the scores of other methods stay as they are.
        device: Where networks run; the CPU by default.
        false_positive_budget_ml: Only for healthy subjects.
        report: Called with a line for every method and set of modalities.

    Returns:
        The bundle's configuration with the new scores, and one row for each of them.

    Raises:
        DataError: No subject in the split.
    """
    rows: list[CalibrationRow] = []
    scores = dict(bundle.config.scores)
    labelled = False
    for method in methods:
        sampling = replace(bundle.config.sampling, method=method, second_pass=False)
        subjects = load_subjects(bundle, shards, split, sampling, device or torch.device("cpu"))
        labelled = any(bool(s.lesion.any()) for s in subjects)
        chosen = []
        for modalities in _sets(bundle):
            row = (
                choose_by_dice(subjects, modalities, bundle, method)
                if labelled
                else choose_by_budget(
                    subjects, modalities, bundle, method, false_positive_budget_ml
                )
            )
            rows.append(row)
            chosen.append(row.config)
            report(
                f"{method:12s} {'+'.join(modalities):16s} Dice {row.dice:.3f}, "
                f"left out {row.left_out_dice:.3f}"
            )
        # What does not gain by a further modality does not ask for it.
        order = sorted(range(len(chosen)), key=lambda i: -rows[i - len(chosen)].left_out_dice)
        scores[method] = tuple(chosen[i] for i in order)
    about = {
        "split": split,
        "subjects": [s.id for s in subjects],
        "criterion": "mean Dice on the training grid"
        if labelled
        else f"at most {false_positive_budget_ml} ml of false positives in healthy subjects",
        "rows": [
            {
                "method": row.method,
                "modalities": list(row.config.modalities),
                "dice": round(row.dice, 4),
                "left_out_dice": round(row.left_out_dice, 4),
                "trials": row.trials,
            }
            for row in rows
        ],
    }
    return replace(bundle.config, scores=scores, calibration=about), rows


def load_subjects(
    bundle: Bundle, shards: Path, split: str, sampling: SamplingConfig, device: torch.device
) -> list[CalibrationSubject]:
    """Read a split's subjects and compute all their signals."""
    index = read_index(shards)
    quantisation = Quantisation(**index["quantisation"])
    ids = [e["id"] for e in index["subjects"] if e.get("split") == split]
    if not ids:
        raise DataError(f"no subject of the split {split!r} in {shards}")
    model = SignalModel(bundle, sampling, device)
    everything = ScoreConfig(
        modalities=bundle.sources, weights={f"cycle:{s}": 1.0 for s in bundle.sources}
    )
    subjects = []
    for subject in ids:
        shard = read_shard(shards, subject)
        images = {
            name: np.moveaxis(quantisation.decode(levels), 0, 2)
            for name, levels in shard.images.items()
        }
        brain = np.moveaxis(shard.brain, 0, 2)
        signals = model.signals(images, brain, everything)
        subjects.append(
            CalibrationSubject(subject, brain, np.moveaxis(shard.lesion, 0, 2), signals)
        )
    return subjects


def choose_by_dice(
    subjects: Sequence[CalibrationSubject], modalities: tuple[str, ...], bundle: Bundle, method: str
) -> CalibrationRow:
    """Try all combinations of weights, seeds and threshold rules; keep the best Dice left out."""
    seeds = (SEED_THRESHOLDS[1],) if "FLAIR" in modalities else SEED_THRESHOLDS
    configs = [
        ScoreConfig(modalities=modalities, weights=weights, seed_threshold=seed)
        for weights, seed in itertools.product(candidate_weights(modalities, bundle), seeds)
    ]
    trials = [trial for config in configs for trial in _try(config, subjects, bundle)]
    best = max(trials, key=lambda trial: trial.left_out_dice)
    trials += _try(replace(best.config, asymmetry_weight=0.0), subjects, bundle)
    best = max(trials, key=lambda trial: trial.left_out_dice)
    config = replace(best.config, map_scale=_choose_scale(subjects, bundle, best.config))
    described = [trial.describe() for trial in trials]
    return CalibrationRow(method, config, best.dice, best.left_out_dice, described)


@dataclass(frozen=True)
class _Trial:
    """One kind of threshold rule of one combination of signals, at its best setting."""

    config: ScoreConfig
    dice: float
    left_out_dice: float

    def describe(self) -> dict[str, Any]:
        """As plain values, for the model card."""
        config = self.config
        return {
            "weights": config.weights,
            "asymmetry": config.asymmetry_weight,
            "rule": describe_rule(config),
            "seed": config.seed_threshold,
            "dice": round(self.dice, 4),
            "left_out_dice": round(self.left_out_dice, 4),
        }


def _try(
    config: ScoreConfig, subjects: Sequence[CalibrationSubject], bundle: Bundle
) -> list[_Trial]:
    """Every kind of threshold rule for one combination of signals."""
    tables = [_table(subject, bundle, config) for subject in subjects]
    trials = []
    for settings, dice in _rules(config, tables):
        mean = dice.mean(axis=0)
        chosen = settings[int(mean.argmax())]
        trials.append(_Trial(chosen, float(mean.max()), _left_out(dice)))
    return trials


def choose_by_budget(
    subjects: Sequence[CalibrationSubject],
    modalities: tuple[str, ...],
    bundle: Bundle,
    method: str,
    budget_ml: float,
) -> CalibrationRow:
    """The lowest threshold that keeps false positives in healthy subjects within a budget."""
    spacing = bundle.template.spacing_mm
    voxel_ml = float(np.prod(spacing)) / 1000
    weights = {f"cycle:{m}": 1.0 for m in modalities if m in bundle.sources}
    config = ScoreConfig(modalities=modalities, weights=weights)
    smoothed = [smooth(s.signals, s.brain, spacing, config) for s in subjects]
    for offset in OFFSETS:
        volumes = []
        for item in smoothed:
            threshold = adaptive_threshold(item.values[item.region], offset, otsu_weight=0.5)
            (mask,) = masks_at(item, [threshold], config)
            mask = fill(with_rim(item, mask, threshold, config), config)
            volumes.append(float(mask.sum()) * voxel_ml)
        if float(np.mean(volumes)) <= budget_ml:
            break
    config = replace(config, threshold_rule="otsu", threshold_offset=offset)
    trials = [{"weights": weights, "offset": offset, "false_positive_ml": float(np.mean(volumes))}]
    return CalibrationRow(method, config, float("nan"), float("nan"), trials)


def candidate_weights(modalities: tuple[str, ...], bundle: Bundle) -> list[dict[str, float]]:
    """Combinations of signals that use every modality; the first one's cycle always counts 1."""
    first = next(m for m in MODALITIES if m in modalities)
    signs = {c.source: c.sign or 1 for c in bundle.config.cycles}
    choices: dict[str, tuple[float, ...]] = {
        f"cycle:{m}": OTHER_CYCLE_WEIGHTS[m] for m in modalities if m != first
    }
    choices[f"intensity:{first}"] = tuple(w * signs[first] for w in OWN_INTENSITY_WEIGHTS)
    if "T2w" in modalities and first != "T2w":
        choices["intensity:T2w"] = T2W_INTENSITY_WEIGHTS
    combinations = []
    for values in itertools.product(*choices.values()):
        weights = {f"cycle:{first}": 1.0}
        weights |= {n: w for n, w in zip(choices, values, strict=True) if w}
        if all(any(name.endswith(f":{m}") for name in weights) for m in modalities):
            combinations.append(weights)
    return combinations


def _sets(bundle: Bundle) -> list[tuple[str, ...]]:
    return [m for m in MODALITY_SETS if set(m) <= set(bundle.sources)]


@dataclass(frozen=True)
class _Table:
    """What one subject's score yields at every threshold of `THRESHOLDS`."""

    dice: NDArray[np.float64]
    edges: NDArray[np.float64]
    half_otsu: float


def _table(subject: CalibrationSubject, bundle: Bundle, config: ScoreConfig) -> _Table:
    spacing = bundle.template.spacing_mm
    smoothed = smooth(subject.signals, subject.brain, spacing, config)
    masks = masks_at(smoothed, THRESHOLDS, config)
    dice = [
        overlap(fill(with_rim(smoothed, mask, t, config), config), subject.lesion).dice
        for t, mask in zip(THRESHOLDS, masks, strict=True)
    ]
    inside = smoothed.values[smoothed.region]
    otsu = adaptive_threshold(inside, 0.0, otsu_weight=config.otsu_weight)
    profile = edge_profile(masks, smoothed.raw, smoothed.brain, spacing)
    return _Table(np.array(dice), profile, otsu)


def _rules(
    config: ScoreConfig, tables: Sequence[_Table]
) -> list[tuple[list[ScoreConfig], NDArray[np.float64]]]:
    """For each kind of rule: its settings, and the Dice (subjects, settings)."""

    def at(table: _Table, threshold: float) -> float:
        return float(np.interp(threshold, THRESHOLDS, table.dice))

    fixed = [replace(config, threshold_rule="fixed", threshold_offset=t) for t in THRESHOLDS]
    otsu = [replace(config, threshold_rule="otsu", threshold_offset=t) for t in OFFSETS]
    edge = [
        replace(config, threshold_rule="edge", edge_low=low, edge_high=round(low + width, 1))
        for low, width in itertools.product(EDGE_LOWS, EDGE_WIDTHS)
    ]
    return [
        (fixed, np.array([[at(t, c.threshold_offset) for c in fixed] for t in tables])),
        (otsu, np.array([[at(t, c.threshold_offset + t.half_otsu) for c in otsu] for t in tables])),
        (edge, np.array([[at(t, _edge_choice(t, c)) for c in edge] for t in tables])),
    ]


def _edge_choice(table: _Table, config: ScoreConfig) -> float:
    candidates = np.array(THRESHOLDS)
    window = (candidates > config.edge_low - 0.01) & (candidates < config.edge_high + 0.01)
    return strongest_edge(candidates[window].tolist(), table.edges[window])


def describe_rule(config: ScoreConfig) -> str:
    """A score's threshold rule in words."""
    return {
        "fixed": f"{config.threshold_offset:g}",
        "otsu": f"{config.threshold_offset:g} + {config.otsu_weight:g} Otsu",
        "edge": f"strongest edge in {config.edge_low:g}..{config.edge_high:g}",
    }[config.threshold_rule]


def _left_out(dice: NDArray[np.float64]) -> float:
    """Mean Dice where each subject's offset is the best one of all others."""
    if len(dice) == 1:
        return float(dice.max())
    rest = [np.delete(dice, row, axis=0).mean(axis=0).argmax() for row in range(len(dice))]
    return float(np.mean([dice[row, column] for row, column in enumerate(rest)]))


def _choose_scale(
    subjects: Sequence[CalibrationSubject], bundle: Bundle, config: ScoreConfig
) -> float:
    """The scale at which the map is most like a probability (least mean log loss)."""
    losses = np.zeros(len(MAP_SCALES))
    for subject in subjects:
        scored = score(subject.signals, subject.brain, bundle.template.spacing_mm, config)
        truth, inside = subject.lesion[subject.brain], scored.values[subject.brain]
        for index, scale in enumerate(MAP_SCALES):
            trial = replace(config, map_scale=scale)
            p = np.clip(anomaly_map(inside, scored.threshold, trial), 1e-6, 1 - 1e-6)
            losses[index] -= float(np.where(truth, np.log(p), np.log1p(-p)).mean())
    return MAP_SCALES[int(losses.argmin())]
