"""Calibration of a bundle on prepared subjects: weights, threshold rule and scale of the map.

Everything here works on shards, so it needs neither an image reader nor a device of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmccd_cli.anomaly.candidates import (
    adaptive_threshold,
    candidate_masks,
    completed,
    edge_profile,
    mask_at,
    score_scan,
    strongest_edge,
)
from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.anomaly.score import SmoothedScore, map_from_score, smooth
from mmccd_cli.config import METHODS, MODALITIES, ConfidenceConfig, ScoreConfig
from mmccd_cli.errors import DataError
from mmccd_cli.progress import silent
from mmccd_cli.training.calibration_data import (
    CalibrationSubject,
    Fold,
    load_subjects,
    sets_of,
)
from mmccd_cli.training.confidence import learn_confidence
from mmccd_cli.training.fusion import Fusion
from mmccd_cli.training.painting import Painter
from mmccd_cli.training.slices import read_index, subjects_of
from mmccd_cli.weights.bundle import Bundle, BundleConfig

THRESHOLDS = tuple(round(0.2 * i, 1) for i in range(2, 22))
OFFSETS = tuple(round(0.1 * i, 1) for i in range(-4, 26))
EDGE_LOWS = tuple(round(0.2 * i, 1) for i in range(2, 9))
EDGE_WIDTHS = (0.6, 1.0, 1.4, 1.8, 2.2)
MAP_SCALES = (0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
ASYMMETRY_WEIGHTS = (0.25, 0.0)
REFINE_MM = {"FLAIR": 3.0}
"""How far contours may move, by the reference scan. At full resolution 3 mm gained 0.006 Dice on
the training subjects with FLAIR (13 of 17 better), and lost with T2w, where fluid is as bright."""
FALSE_POSITIVES_ML = 1.0
"""Mean volume of a mask in healthy subjects, where no others are there to calibrate on."""


@dataclass(frozen=True, kw_only=True)
class CalibrationRow:
    """Result of one method on one set of modalities.

    Attributes:
        method: "mmccd" or "cyclic-unet".
        config: The chosen score.
        dice: Mean Dice on the calibration subjects, on the training grid; NaN without lesions.
        left_out_dice: The same with the threshold chosen on the other subjects each time.
        trials: (weights, rule, mean Dice) of everything that was tried.
        fold_configs: For each fold, what is chosen without its subjects.
    """

    method: str
    config: ScoreConfig
    dice: float = float("nan")
    left_out_dice: float = float("nan")
    trials: list[dict[str, Any]]
    fold_configs: list[ScoreConfig] = field(default_factory=list)

    def describe(self, *, unseen: bool) -> dict[str, Any]:
        """As plain values, for the model card."""
        return {
            "method": self.method,
            "modalities": list(self.config.modalities),
            "dice": round(self.dice, 4),
            "left_out_dice": round(self.left_out_dice, 4),
            "networks_know_the_subjects": not unseen,
            "trials": self.trials,
        }


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
    folds: Sequence[Fold] = (),
    device: torch.device | None = None,
    report: Callable[[str], None] = silent,
) -> Calibration:
    """Choose all numbers of a bundle's scores on prepared subjects.

    With labelled lesions the mean Dice decides. With healthy subjects only, the threshold is the
    lowest that leaves at most `FALSE_POSITIVES_ML` on average; weights then stay as they are.

    Args:
        bundle: The bundle.
        shards: What `prepare` wrote.
        split: Split of the subjects to calibrate on, where there are no folds.
        folds: Bundles that have not seen some of the training subjects, who then stand for unseen
            ones. Without them, networks are calibrated on scans that they know.
        device: Where networks run; the CPU by default.
        report: Called with a line for every method and set of modalities.

    Raises:
        DataError: No subject to calibrate on.
    """
    known_by = folds or [Fold(bundle, _subjects_of(shards, split))]
    device = device or torch.device("cpu")
    scores = dict(bundle.config.scores)
    fold_scores = [dict(fold.bundle.config.scores) for fold in folds]
    rows: list[CalibrationRow] = []
    for method in METHODS:
        sampling = replace(bundle.config.sampling, method=method)  # type: ignore[arg-type]  # one of METHODS
        load = partial(load_subjects, known_by, shards, sampling=sampling, device=device)
        search = Search(
            subjects=load(),
            bundle=bundle,
            method=method,
            folds=folds,
            painted=load(painter=Painter()),
        )
        found = []
        for modalities in sets_of(bundle):
            found.append(row := search.choose(modalities))
            report(
                f"{method:12s} {'+'.join(modalities):16s} Dice {row.dice:.3f}, "
                f"left out {row.left_out_dice:.3f}"
            )
        # What does not gain by a further modality does not ask for it.
        chosen: dict[tuple[str, ...], CalibrationRow] = {}
        for row in sorted(found, key=lambda row: -row.left_out_dice):
            chosen.setdefault(row.config.modalities, row)
        scores[method] = tuple(row.config for row in chosen.values())
        for number, own in enumerate(fold_scores):
            if search.labelled:
                own[method] = tuple(row.fold_configs[number] for row in chosen.values())
        rows += found
    about = {
        "split": split,
        "subjects": search.ids,
        "folds": [list(fold.subjects) for fold in folds],
        "criterion": search.criterion,
        "rows": [row.describe(unseen=bool(folds)) for row in rows],
    }
    of_folds = []
    for fold, own in zip(folds, fold_scores, strict=True):
        others = [subject for subject in search.ids if subject not in fold.subjects]
        told = {**about, "subjects": others, "rows": []}
        del told["folds"]
        of_folds.append(replace(fold.bundle.config, scores=own, calibration=told))
    return Calibration(replace(bundle.config, scores=scores, calibration=about), of_folds, rows)


def _subjects_of(shards: Path, split: str) -> list[str]:
    ids = subjects_of(read_index(shards), split)
    if not ids:
        raise DataError(
            f"There is no subject of the split {split!r} in {shards}.",
            next_step="Choose another with --calibrate-on, or `none`.",
        )
    return ids


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search for one method's scores.

    Attributes:
        subjects: Whom to calibrate on.
        bundle: The bundle.
        method: Name of the method.
        folds: Who is left out together.
        painted: The same subjects with painted lesions, for the confidence.
        known: Trials by their settings, which other sets of modalities may have tried already.
    """

    subjects: Sequence[CalibrationSubject]
    bundle: Bundle
    method: str
    folds: Sequence[Fold] = ()
    painted: Sequence[CalibrationSubject] = ()
    known: dict[str, list[Trial]] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """Ids of the subjects."""
        return [subject.id for subject in self.subjects]

    @property
    def labelled(self) -> bool:
        """Whether any subject has a lesion."""
        return any(bool(subject.lesion.any()) for subject in self.subjects)

    @property
    def criterion(self) -> str:
        """What decides, in words."""
        if self.labelled:
            return "mean Dice on the training grid"
        return f"at most {FALSE_POSITIVES_ML} ml of false positives in healthy subjects"

    def choose(self, modalities: tuple[str, ...]) -> CalibrationRow:
        """Choose the score of a subject that has these modalities."""
        if self.labelled:
            return self._choose_by_dice(modalities)
        return self._choose_by_false_positives(modalities)

    def _choose_by_dice(self, modalities: tuple[str, ...]) -> CalibrationRow:
        """Fit the weights, then try the rules that find a scan's threshold.

        Each fold has weights of its own, fitted without its subjects, and the rule that is best for
        all others: `left_out_dice` is of subjects who had no part in anything.
        """
        base = self._with_weights(modalities)
        variants = [replace(base, asymmetry_weight=share) for share in ASYMMETRY_WEIGHTS]
        trials = [trial for variant in variants for trial in self._tried(variant)]
        everyone = np.ones(len(self.subjects), dtype=bool)
        chosen, config = choose_trial(trials, everyone)
        reference = next(m for m in MODALITIES if m in config.modalities)
        scale, reach = self._choose_scale(config), REFINE_MM.get(reference, 0.0)
        finish = partial(replace, map_scale=scale, refine_mm=reach)
        of_folds, left_out = [], []
        for fold in self.folds:
            rows = np.array([subject not in fold.subjects for subject in self.ids])
            own = self._with_weights(modalities, fold.subjects)
            own = replace(choose_trial(trials, rows)[1], weights=own.weights)
            left_out += [self._dice(s, own) for s in self.subjects if s.id in fold.subjects]
            of_folds.append(finish(own, confidence=self._confidence(own, fold.subjects)))
        return CalibrationRow(
            method=self.method,
            config=finish(config, confidence=self._confidence(config)),
            dice=float(chosen.dice.mean(axis=0).max()),
            left_out_dice=float(np.mean(left_out or [chosen.left_out_dice(everyone)])),
            trials=[trial.describe() for trial in trials],
            fold_configs=of_folds,
        )

    def _dice(self, subject: CalibrationSubject, config: ScoreConfig) -> float:
        """Dice of one subject with one setting."""
        (dice,) = dice_of_rules(self._smooth(subject, config), subject.lesion, [[config]])
        return float(dice[0])

    def _confidence(
        self, config: ScoreConfig, left_out: Sequence[str] = ()
    ) -> ConfidenceConfig | None:
        learners = [s for s in (*self.subjects, *self.painted) if s.id not in left_out]
        return learn_confidence(learners, config, spacing_mm=self.bundle.template.spacing_mm)

    def _with_weights(
        self, modalities: tuple[str, ...], left_out: Sequence[str] = ()
    ) -> ScoreConfig:
        return ScoreConfig(modalities=modalities, weights=self.fusion.weights(modalities, left_out))

    @cached_property
    def fusion(self) -> Fusion:
        """Fits weights to all subjects."""
        smoothing = ScoreConfig(modalities=("FLAIR",), weights={"intensity:FLAIR": 1.0})
        return Fusion(self.subjects, self.bundle.template.spacing_mm, smoothing)

    def _tried(self, config: ScoreConfig) -> list[Trial]:
        """Every kind of threshold rule for one combination of signals."""
        key = repr(config)
        if key not in self.known:
            rules = _rules(config)
            dice = [
                dice_of_rules(self._smooth(subject, config), subject.lesion, rules)
                for subject in self.subjects
            ]
            by_rule = zip(rules, zip(*dice, strict=True), strict=True)
            self.known[key] = [Trial(settings, np.array(rows)) for settings, rows in by_rule]
        return self.known[key]

    def _smooth(self, subject: CalibrationSubject, config: ScoreConfig) -> SmoothedScore:
        spacing_mm = self.bundle.template.spacing_mm
        signals = subject.signals_for(config)
        return smooth(signals, subject.brain, spacing_mm=spacing_mm, config=config)

    def _choose_by_false_positives(self, modalities: tuple[str, ...]) -> CalibrationRow:
        """The lowest threshold that keeps false positives in healthy subjects within a budget."""
        voxel_ml = float(np.prod(self.bundle.template.spacing_mm)) / 1000
        weights = {f"cycle:{m}": 1.0 for m in modalities if m in self.bundle.sources}
        config = ScoreConfig(modalities=modalities, weights=weights)
        smoothed = [self._smooth(subject, config) for subject in self.subjects]
        for offset in OFFSETS:
            volumes = []
            for item in smoothed:
                threshold = adaptive_threshold(item.values[item.region], offset, otsu_weight=0.5)
                volumes.append(float(mask_at(item, threshold, config).sum()) * voxel_ml)
            mean = float(np.mean(volumes))
            if mean <= FALSE_POSITIVES_ML:
                break
        return CalibrationRow(
            method=self.method,
            config=replace(config, threshold_rule="otsu", threshold_offset=offset),
            trials=[{"weights": weights, "offset": offset, "false_positive_ml": mean}],
        )

    def _choose_scale(self, config: ScoreConfig) -> float:
        """The scale at which the map is most like a probability (least mean log loss)."""
        losses, spacing = np.zeros(len(MAP_SCALES)), self.bundle.template.spacing_mm
        for subject in self.subjects:
            signals = subject.signals_for(config)
            scored = score_scan(signals, subject.brain, spacing_mm=spacing, config=config)
            truth, inside = subject.lesion[subject.brain], scored.values[subject.brain]
            for index, scale in enumerate(MAP_SCALES):
                trial = replace(config, map_scale=scale)
                p = np.clip(map_from_score(inside, scored.threshold, trial), 1e-6, 1 - 1e-6)
                losses[index] -= float(np.where(truth, np.log(p), np.log1p(-p)).mean())
        return MAP_SCALES[int(losses.argmin())]


@dataclass(frozen=True, eq=False)
class Trial:
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
            "rule": config.rule_in_words,
            "dice": round(float(self.dice.mean(axis=0).max()), 4),
            "left_out_dice": round(self.left_out_dice(everyone), 4),
        }


def choose_trial(trials: Sequence[Trial], rows: NDArray[np.bool_]) -> tuple[Trial, ScoreConfig]:
    """The trial with the best Dice left out among some subjects, and its best setting for them."""
    trial = max(trials, key=lambda trial: trial.left_out_dice(rows))
    return trial, trial.best(rows)


def _rules(config: ScoreConfig) -> list[list[ScoreConfig]]:
    """For each kind of rule, a score with every setting of it that is tried."""
    return [
        [replace(config, threshold_rule="fixed", threshold_offset=t) for t in THRESHOLDS],
        [replace(config, threshold_rule="otsu", threshold_offset=t) for t in OFFSETS],
        [
            replace(config, threshold_rule="edge", edge_low=low, edge_high=round(low + width, 1))
            for low, width in itertools.product(EDGE_LOWS, EDGE_WIDTHS)
        ],
    ]


def dice_of_rules(
    smoothed: SmoothedScore, lesion: NDArray[np.bool_], rules: Sequence[Sequence[ScoreConfig]]
) -> list[NDArray[np.float64]]:
    """Dice of one subject at the threshold that each setting finds.

    Masks are made at every threshold of `THRESHOLDS` only, between which Dice is interpolated. The
    settings differ in their rule alone; the result is (settings,) for each kind of rule.
    """
    config = rules[0][0]
    masks = candidate_masks(smoothed, THRESHOLDS, config)
    dice = [
        overlap(completed(mask, smoothed, threshold=threshold, config=config), lesion).dice
        for threshold, mask in zip(THRESHOLDS, masks, strict=True)
    ]
    inside = smoothed.values[smoothed.region]
    otsu = adaptive_threshold(inside, 0.0, otsu_weight=config.otsu_weight)
    candidates, edges = np.array(THRESHOLDS), edge_profile(masks, smoothed)

    def found(setting: ScoreConfig) -> float:
        if setting.threshold_rule != "edge":
            return setting.threshold_offset + otsu * (setting.threshold_rule == "otsu")
        window = (candidates > setting.edge_low - 0.01) & (candidates < setting.edge_high + 0.01)
        return strongest_edge(candidates[window].tolist(), edges[window])

    return [np.interp([found(s) for s in settings], THRESHOLDS, dice) for settings in rules]
