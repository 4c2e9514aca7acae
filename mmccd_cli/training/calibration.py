"""Calibration of a bundle on prepared subjects: weights, threshold rule and scale of the map.

Everything here works on shards, so it needs neither an image reader nor a device of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mmccd_cli.anomaly.candidates import (
    adaptive_threshold,
    candidate_masks,
    edge_profile,
    score_scan,
    strongest_edge,
    with_rim,
)
from mmccd_cli.anomaly.components import fill_holes
from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.anomaly.score import map_from_score, smooth
from mmccd_cli.config import MODALITIES, SamplingConfig, ScoreConfig, describe_rule
from mmccd_cli.errors import DataError
from mmccd_cli.signals import SignalModel
from mmccd_cli.template import Quantisation
from mmccd_cli.training.slices import read_index, read_shard
from mmccd_cli.weights.bundle import Bundle, BundleConfig

THRESHOLDS = tuple(round(0.2 * i, 1) for i in range(2, 22))
OFFSETS = tuple(round(0.1 * i, 1) for i in range(-4, 26))
EDGE_LOWS = tuple(round(0.2 * i, 1) for i in range(2, 9))
EDGE_WIDTHS = (0.6, 1.0, 1.4, 1.8, 2.2)
SEED_THRESHOLDS = (1.6, 4.0, 6.0, 7.0, 8.0)
SEED_BONUS = 0.0025
"""Dice that stricter seeds may cost, for each unit of their threshold: none of the subjects is
healthy, so Dice alone would not know what lax seeds do to a healthy brain."""
MAP_SCALES = (0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
ATLAS_WEIGHTS = (0.5, 1.0, 2.0)
INTENSITY_WEIGHTS = {"FLAIR": (0.5, 1.0), "T2w": (0.25, 0.5), "T1w": (-0.25, -0.5)}
OTHER_CYCLE_WEIGHTS = (0.25, 0.5)
OTHER_ATLAS_WEIGHTS = (0.25, 0.5)
REFINE_MM = {"FLAIR": 3.0}
"""How far contours may move, by the reference scan. At full resolution 3 mm gained 0.006 Dice on
the training subjects with FLAIR (13 of 17 better), and lost with T2w, where fluid is as bright."""
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
        fold_configs: For each fold, what is chosen without its subjects.
    """

    method: str
    config: ScoreConfig
    dice: float
    left_out_dice: float
    trials: list[dict[str, Any]]
    fold_configs: list[ScoreConfig] = field(default_factory=list)


@dataclass(frozen=True)
class Fold:
    """A bundle and training subjects that its networks and atlas have not seen."""

    bundle: Bundle
    subjects: Sequence[str]


@dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Attributes:
        config: The bundle's configuration with the new scores.
        folds: The folds' configurations, each with scores chosen without its own subjects.
        rows: One for each method and set of modalities.
    """

    config: BundleConfig
    folds: list[BundleConfig]
    rows: list[CalibrationRow]


def calibrate(
    bundle: Bundle,
    shards: Path,
    *,
    split: str = "train",
    methods: Sequence[Method] = METHODS,
    folds: Sequence[Fold] = (),
    device: torch.device | None = None,
    false_positive_budget_ml: float = 1.0,
    report: Callable[[str], None] = lambda line: None,
) -> Calibration:
    """Choose all numbers of a bundle's scores on prepared subjects.

    With labelled lesions the mean Dice decides. With healthy subjects only, the threshold is the
    lowest that leaves at most `false_positive_budget_ml` on average; weights then stay as they are.

    Args:
        bundle: The bundle.
        shards: What `prepare` wrote.
        split: Split of the subjects to calibrate on, where there are no folds.
        methods: What to calibrate; the scores of other methods stay as they are.
        folds: Bundles that have not seen some of the training subjects, who then stand for unseen
            ones. Without them, networks are calibrated on scans that they know.
        device: Where networks run; the CPU by default.
        false_positive_budget_ml: Only for healthy subjects.
        report: Called with a line for every method and set of modalities.

    Raises:
        DataError: No subject to calibrate on.
    """
    rows: list[CalibrationRow] = []
    scores = dict(bundle.config.scores)
    fold_scores = [dict(fold.bundle.config.scores) for fold in folds]
    labelled, ids = False, []
    for method in methods:
        sampling = replace(bundle.config.sampling, method=method)
        subjects = load_subjects(
            folds or [Fold(bundle, subjects_of(shards, split))],
            shards,
            sampling,
            device or torch.device("cpu"),
        )
        ids = [s.id for s in subjects]
        labelled = any(bool(s.lesion.any()) for s in subjects)
        known: dict[str, list[_Trial]] = {}
        chosen: list[CalibrationRow] = []
        for modalities in _sets(bundle):
            row = (
                choose_by_dice(subjects, modalities, bundle, method, folds, known)
                if labelled
                else choose_by_budget(
                    subjects, modalities, bundle, method, false_positive_budget_ml
                )
            )
            chosen.append(row)
            report(
                f"{method:12s} {'+'.join(modalities):16s} Dice {row.dice:.3f}, "
                f"left out {row.left_out_dice:.3f}"
            )
        rows += chosen
        # What does not gain by a further modality does not ask for it.
        chosen = _distinct(sorted(chosen, key=lambda row: -row.left_out_dice))
        scores[method] = tuple(row.config for row in chosen)
        for number, own in enumerate(fold_scores):
            if labelled:
                own[method] = tuple(row.fold_configs[number] for row in chosen)
    about = {
        "split": split,
        "subjects": ids,
        "folds": [list(fold.subjects) for fold in folds],
        "criterion": "mean Dice on the training grid"
        if labelled
        else f"at most {false_positive_budget_ml} ml of false positives in healthy subjects",
        "rows": [*_rows_of_others(bundle, methods), *(_describe(row, bool(folds)) for row in rows)],
    }
    fold_configs = []
    for fold, own in zip(folds, fold_scores, strict=True):
        others = [subject for subject in ids if subject not in fold.subjects]
        chosen_on = {"split": split, "subjects": others, "criterion": about["criterion"]}
        fold_configs.append(
            replace(fold.bundle.config, scores=own, calibration={**chosen_on, "rows": []})
        )
    return Calibration(
        replace(bundle.config, scores=scores, calibration=about),
        fold_configs,
        rows,
    )


def _describe(row: CalibrationRow, unseen: bool) -> dict[str, Any]:
    """A row as plain values, for the model card."""
    return {
        "method": row.method,
        "modalities": list(row.config.modalities),
        "dice": round(row.dice, 4),
        "left_out_dice": round(row.left_out_dice, 4),
        "networks_know_the_subjects": not unseen,
        "trials": row.trials,
    }


def _rows_of_others(bundle: Bundle, methods: Sequence[str]) -> list[dict[str, Any]]:
    """What an earlier calibration said of the methods whose scores stay as they are."""
    rows = bundle.config.calibration.get("rows", [])
    return [row for row in rows if row["method"] not in methods]


def _distinct(rows: Sequence[CalibrationRow]) -> list[CalibrationRow]:
    """The first row of each set of modalities; a set may have dropped one that does not help."""
    first: dict[tuple[str, ...], CalibrationRow] = {}
    for row in rows:
        first.setdefault(row.config.modalities, row)
    return list(first.values())


def subjects_of(shards: Path, split: str) -> list[str]:
    """Ids of a split's prepared subjects.

    Raises:
        DataError: There are none.
    """
    ids = [e["id"] for e in read_index(shards)["subjects"] if e.get("split") == split]
    if not ids:
        raise DataError(f"no subject of the split {split!r} in {shards}")
    return ids


def load_subjects(
    folds: Sequence[Fold], shards: Path, sampling: SamplingConfig, device: torch.device
) -> list[CalibrationSubject]:
    """Read subjects and compute all their signals, each by its own fold's networks."""
    quantisation = Quantisation(**read_index(shards)["quantisation"])
    found = []
    for fold in folds:
        model = SignalModel(fold.bundle, sampling, device)
        everything = _everything(fold.bundle)
        for subject in fold.subjects:
            shard = read_shard(shards, subject)
            images = {
                name: np.moveaxis(quantisation.decode(levels), 0, 2)
                for name, levels in shard.images.items()
            }
            brain, lesion = np.moveaxis(shard.brain, 0, 2), np.moveaxis(shard.lesion, 0, 2)
            signals = model.signals(images, brain, everything)
            found.append(CalibrationSubject(subject, brain, lesion, signals))
    return found


def _everything(bundle: Bundle) -> ScoreConfig:
    """A score that asks for every signal that a bundle can give."""
    weights = {f"cycle:{source}": 1.0 for source in bundle.sources}
    weights |= {f"atlas:{m}": 1.0 for m in bundle.sources if m in bundle.template.normal}
    return ScoreConfig(modalities=bundle.sources, weights=weights)


def choose_by_dice(
    subjects: Sequence[CalibrationSubject],
    modalities: tuple[str, ...],
    bundle: Bundle,
    method: str,
    folds: Sequence[Fold] = (),
    known: dict[str, list[_Trial]] | None = None,
) -> CalibrationRow:
    """Search weights, seeds and threshold rules one after the other; keep the best Dice left out.

    The settings of a fold are chosen among everything that was tried, without the fold's own
    subjects.

    Args:
        subjects: Whom to calibrate on.
        modalities: What a subject is taken to have.
        bundle: The bundle.
        method: For the row's name.
        folds: Who is left out together.
        known: Trials of other sets of modalities, by their settings; this one's are added.
    """
    trials: list[_Trial] = []
    known = {} if known is None else known
    everyone = np.ones(len(subjects), dtype=bool)

    def best_of(configs: Iterable[ScoreConfig]) -> ScoreConfig:
        for config in configs:
            if repr(config) not in known:
                known[repr(config)] = _try(config, subjects, bundle)
            trials.extend(t for t in known[repr(config)] if t not in trials)
        return _without_rule(_choose(trials, everyone)[1])

    first = next(m for m in MODALITIES if m in modalities)
    best = best_of([ScoreConfig(modalities=(first,), weights={f"cycle:{first}": 1.0})])
    for signal, weights in signal_choices(modalities, bundle):
        best = best_of(_with_weight(best, signal, weight) for weight in weights)
    best = best_of(replace(best, seed_threshold=value) for value in SEED_THRESHOLDS)
    best = best_of([replace(best, asymmetry_weight=0.0)])

    chosen, config = _choose(trials, everyone)
    scale, reach = _choose_scale(subjects, bundle, config), _reach(config)
    fold_configs = []
    for fold in folds:
        others = np.array([s.id not in fold.subjects for s in subjects])
        fold_configs.append(replace(_choose(trials, others)[1], map_scale=scale, refine_mm=reach))
    config = replace(config, map_scale=scale, refine_mm=reach)
    return CalibrationRow(
        method,
        config,
        float(chosen.dice.mean(axis=0).max()),
        chosen.left_out_dice(everyone),
        [trial.describe() for trial in trials],
        fold_configs,
    )


def signal_choices(
    modalities: tuple[str, ...], bundle: Bundle
) -> list[tuple[str, tuple[float, ...]]]:
    """Signals that may join the first modality's cycle, and the weights to try for each."""
    first = next(m for m in MODALITIES if m in modalities)
    known = bundle.template.normal
    choices: list[tuple[str, tuple[float, ...]]] = []
    if first in known:
        choices.append((f"atlas:{first}", ATLAS_WEIGHTS))
    choices.append((f"intensity:{first}", INTENSITY_WEIGHTS[first]))
    for modality in modalities:
        if modality != first:
            choices.append((f"cycle:{modality}", OTHER_CYCLE_WEIGHTS))
            if modality in known:
                choices.append((f"atlas:{modality}", OTHER_ATLAS_WEIGHTS))
    return choices


def _with_weight(config: ScoreConfig, signal: str, weight: float) -> ScoreConfig:
    """A score with one weight changed, that asks for no modality which it does not use."""
    weights = {name: w for name, w in {**config.weights, signal: weight}.items() if w}
    used = {name.partition(":")[2] for name in weights}
    return replace(config, weights=weights, modalities=tuple(m for m in MODALITIES if m in used))


@dataclass(frozen=True, eq=False)
class _Trial:
    """One kind of threshold rule for one combination of signals.

    Attributes:
        settings: The settings of the rule that were tried.
        dice: (subjects, settings).
    """

    settings: list[ScoreConfig]
    dice: NDArray[np.float64]

    def left_out_dice(self, rows: NDArray[np.bool_]) -> float:
        """Mean Dice where each subject's setting is the best one of all others."""
        dice = self.dice[rows]
        if len(dice) == 1:
            return float(dice.max())
        rest = dice.sum(axis=0) - dice
        return float(dice[np.arange(len(dice)), rest.argmax(axis=1)].mean())

    def best(self, rows: NDArray[np.bool_]) -> ScoreConfig:
        """The setting with the best mean Dice."""
        return self.settings[int(self.dice[rows].mean(axis=0).argmax())]

    def describe(self) -> dict[str, Any]:
        """As plain values, for the model card."""
        everyone = np.ones(len(self.dice), dtype=bool)
        config = self.best(everyone)
        return {
            "weights": config.weights,
            "asymmetry": config.asymmetry_weight,
            "rule": describe_rule(config),
            "seed": config.seed_threshold,
            "dice": round(float(self.dice.mean(axis=0).max()), 4),
            "left_out_dice": round(self.left_out_dice(everyone), 4),
        }


def _choose(trials: Sequence[_Trial], rows: NDArray[np.bool_]) -> tuple[_Trial, ScoreConfig]:
    """The trial with the best Dice left out among some subjects, and its best setting for them."""

    def worth(trial: _Trial) -> float:
        return trial.left_out_dice(rows) + SEED_BONUS * trial.settings[0].seed_threshold

    trial = max(trials, key=worth)
    return trial, trial.best(rows)


def _reach(config: ScoreConfig) -> float:
    reference = next(m for m in MODALITIES if m in config.modalities)
    return REFINE_MM.get(reference, 0.0)


def _without_rule(config: ScoreConfig) -> ScoreConfig:
    plain = ScoreConfig(modalities=config.modalities, weights=config.weights)
    return replace(
        plain, seed_threshold=config.seed_threshold, asymmetry_weight=config.asymmetry_weight
    )


def _try(
    config: ScoreConfig, subjects: Sequence[CalibrationSubject], bundle: Bundle
) -> list[_Trial]:
    """Every kind of threshold rule for one combination of signals."""
    tables = [_table(subject, bundle, config) for subject in subjects]
    return [_Trial(settings, dice) for settings, dice in _rules(config, tables)]


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
    smoothed = [smooth(s.signals, s.brain, spacing_mm=spacing, config=config) for s in subjects]
    for offset in OFFSETS:
        volumes = []
        for item in smoothed:
            threshold = adaptive_threshold(item.values[item.region], offset, otsu_weight=0.5)
            (mask,) = candidate_masks(item, [threshold], config)
            mask = with_rim(mask, item, threshold=threshold, rim_mm=config.rim_mm)
            mask = fill_holes(mask, config.fill_holes)
            volumes.append(float(mask.sum()) * voxel_ml)
        if float(np.mean(volumes)) <= budget_ml:
            break
    config = replace(config, threshold_rule="otsu", threshold_offset=offset)
    trials = [{"weights": weights, "offset": offset, "false_positive_ml": float(np.mean(volumes))}]
    return CalibrationRow(method, config, float("nan"), float("nan"), trials)


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
    smoothed = smooth(subject.signals, subject.brain, spacing_mm=spacing, config=config)
    masks = candidate_masks(smoothed, THRESHOLDS, config)
    dice = []
    for threshold, mask in zip(THRESHOLDS, masks, strict=True):
        grown = with_rim(mask, smoothed, threshold=threshold, rim_mm=config.rim_mm)
        dice.append(overlap(fill_holes(grown, config.fill_holes), subject.lesion).dice)
    inside = smoothed.values[smoothed.region]
    otsu = adaptive_threshold(inside, 0.0, otsu_weight=config.otsu_weight)
    profile = edge_profile(masks, smoothed)
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


def _choose_scale(
    subjects: Sequence[CalibrationSubject], bundle: Bundle, config: ScoreConfig
) -> float:
    """The scale at which the map is most like a probability (least mean log loss)."""
    losses = np.zeros(len(MAP_SCALES))
    for subject in subjects:
        scored = score_scan(
            subject.signals, subject.brain, spacing_mm=bundle.template.spacing_mm, config=config
        )
        truth, inside = subject.lesion[subject.brain], scored.values[subject.brain]
        for index, scale in enumerate(MAP_SCALES):
            trial = replace(config, map_scale=scale)
            p = np.clip(map_from_score(inside, scored.threshold, trial), 1e-6, 1 - 1e-6)
            losses[index] -= float(np.where(truth, np.log(p), np.log1p(-p)).mean())
    return MAP_SCALES[int(losses.argmin())]
