"""Calibration of a bundle on prepared subjects: weights, threshold rule and scale of the map.

Everything here works on shards, so it needs neither an image reader nor a device of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmccd_cli.anomaly import anomaly_map, score, segment
from mmccd_cli.bundle import Bundle, BundleConfig
from mmccd_cli.config import SamplingConfig, ScoreConfig
from mmccd_cli.errors import DataError
from mmccd_cli.metrics import overlap
from mmccd_cli.modalities import MODALITIES
from mmccd_cli.postprocessing import adaptive_threshold
from mmccd_cli.shards import Quantisation, read_index, read_shard
from mmccd_cli.signals import SignalModel

OFFSETS = tuple(round(0.1 * i, 1) for i in range(-4, 36))
OTSU_WEIGHTS = (0.0, 0.5)
MAP_SCALES = (0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
OTHER_CYCLE_WEIGHTS = (0.0, 0.25, 0.5)
INTENSITY_WEIGHTS = (0.0, 0.25, 0.5)
METHODS = ("mmccd", "cyclic-unet")
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
        device: Where networks run; the CPU by default.
        false_positive_budget_ml: Only for healthy subjects.
        report: Called with a line for every method and set of modalities.

    Returns:
        The bundle's configuration with the new scores, and one row for each of them.

    Raises:
        DataError: No subject in the split.
    """
    rows: list[CalibrationRow] = []
    scores: dict[str, tuple[ScoreConfig, ...]] = {}
    labelled = False
    for method in METHODS:
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
        scores[method] = tuple(chosen)
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
    """Try all combinations of weights and threshold rule; keep the best mean Dice left out."""
    best: tuple[float, ScoreConfig, NDArray[np.float64]] | None = None
    trials = []
    for weights in candidate_weights(modalities, bundle):
        config = ScoreConfig(modalities=modalities, weights=weights)
        for otsu_weight, dice in _dice_by_offset(subjects, bundle, config).items():
            left_out = _left_out(dice)
            mean = dice.mean(axis=0)
            index = int(mean.argmax())
            trials.append(
                {
                    "weights": weights,
                    "otsu_weight": otsu_weight,
                    "offset": OFFSETS[index],
                    "dice": round(float(mean[index]), 4),
                    "left_out_dice": round(left_out, 4),
                }
            )
            if best is None or left_out > best[0]:
                found = replace(config, threshold_offset=OFFSETS[index], otsu_weight=otsu_weight)
                best = left_out, found, dice
    assert best is not None  # candidate_weights yields at least one
    left_out, config, dice = best
    config = replace(config, map_scale=_choose_scale(subjects, bundle, config))
    return CalibrationRow(method, config, float(dice.mean(axis=0).max()), left_out, trials)


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
    scored = [score(s.signals, s.brain, spacing, config) for s in subjects]
    for offset in OFFSETS:
        volumes = []
        for item in scored:
            threshold = adaptive_threshold(item.values[item.region], offset, otsu_weight=0.5)
            volumes.append(float(_mask(item.values, threshold, spacing, config).sum()) * voxel_ml)
        if float(np.mean(volumes)) <= budget_ml:
            break
    config = replace(config, threshold_offset=offset, otsu_weight=0.5)
    trials = [{"weights": weights, "offset": offset, "false_positive_ml": float(np.mean(volumes))}]
    return CalibrationRow(method, config, float("nan"), float("nan"), trials)


def candidate_weights(modalities: tuple[str, ...], bundle: Bundle) -> list[dict[str, float]]:
    """Combinations of signals: the preferred source's cycle always counts 1."""
    first = next(m for m in MODALITIES if m in modalities)
    signs = {c.source: c.sign or 1 for c in bundle.config.cycles}
    names: list[str] = []
    choices: list[tuple[float, ...]] = []
    for modality in modalities:
        if modality != first and modality in bundle.sources:
            names.append(f"cycle:{modality}")
            choices.append(OTHER_CYCLE_WEIGHTS)
        # A modality's own intensity is worth most where its cycle is all there is.
        if modality == first or modality == "T2w":
            names.append(f"intensity:{modality}")
            choices.append(tuple(w * signs.get(modality, 1) for w in INTENSITY_WEIGHTS))
    combinations = []
    for values in itertools.product(*choices):
        weights = {f"cycle:{first}": 1.0}
        weights |= {n: w for n, w in zip(names, values, strict=True) if w}
        unused = [m for m in modalities if not any(n.endswith(f":{m}") for n in weights)]
        if not unused:
            combinations.append(weights)
    return combinations


def _sets(bundle: Bundle) -> list[tuple[str, ...]]:
    return [m for m in MODALITY_SETS if set(m) <= set(bundle.sources)]


def _dice_by_offset(
    subjects: Sequence[CalibrationSubject], bundle: Bundle, config: ScoreConfig
) -> dict[float, NDArray[np.float64]]:
    """Otsu weight -> (subjects, offsets) Dice."""
    spacing = bundle.template.spacing_mm
    table = {w: np.zeros((len(subjects), len(OFFSETS))) for w in OTSU_WEIGHTS}
    for row, subject in enumerate(subjects):
        scored = score(subject.signals, subject.brain, spacing, config)
        inside = scored.values[scored.region]
        for otsu_weight, dice in table.items():
            base = adaptive_threshold(inside, 0.0, otsu_weight=otsu_weight)
            for column, offset in enumerate(OFFSETS):
                mask = _mask(scored.values, base + offset, spacing, config)
                dice[row, column] = overlap(mask, subject.lesion).dice
    return table


def _mask(
    values: NDArray[np.float32],
    threshold: float,
    spacing: tuple[float, float, float],
    config: ScoreConfig,
) -> NDArray[np.bool_]:
    return segment(
        values,
        spacing,
        threshold=threshold,
        min_fraction_of_largest=config.min_fraction_of_largest,
        min_lesion_mm3=config.min_lesion_mm3,
        fill_holes=config.fill_holes,
    )


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
        truth = subject.lesion[scored.region]
        inside = scored.values[scored.region]
        for index, scale in enumerate(MAP_SCALES):
            p = np.clip(anomaly_map(inside, scored.threshold, scale), 1e-6, 1 - 1e-6)
            losses[index] -= float(np.where(truth, np.log(p), np.log1p(-p)).mean())
    return MAP_SCALES[int(losses.argmin())]


