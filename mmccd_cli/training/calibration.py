"""Calibration of a bundle on prepared subjects: weights, threshold rule and scale of the map.

Everything here works on what `prepare` wrote, so it needs no image library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mmccd_cli.anomaly.candidates import adaptive_threshold, mask_at, score_scan
from mmccd_cli.anomaly.mask import mask_from_map
from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.anomaly.score import SmoothedScore, map_from_score, smooth
from mmccd_cli.config import METHODS, MODALITIES, ConfidenceConfig, FociConfig, ScoreConfig
from mmccd_cli.errors import DataError
from mmccd_cli.progress import silent
from mmccd_cli.training.calibration_data import (
    CalibrationSubject,
    Fold,
    load_subjects,
    mirrored_kinds,
    sets_of,
)
from mmccd_cli.training.confidence import (
    finer_mask,
    finer_spacing,
    learn_confidence,
    on_finer_grid,
)
from mmccd_cli.training.fusion import EVERY, Fusion, fit_foci, fit_logistic
from mmccd_cli.training.painting import Painter
from mmccd_cli.training.reliability import Reliability
from mmccd_cli.training.slices import read_index, subjects_of
from mmccd_cli.training.trials import (
    CLEARLY_BETTER,
    Trial,
    choose_trial,
    dice_of_rules,
    threshold_rules,
)
from mmccd_cli.weights.bundle import Bundle, BundleConfig

T = TypeVar("T")

Looks = tuple[
    Sequence[CalibrationSubject], Sequence[CalibrationSubject], Sequence[CalibrationSubject]
]
"""The same subjects in each of `LOOKS`; none where a look is of no use."""

OFFSETS = tuple(round(0.1 * i, 1) for i in range(-4, 26))
"""What is tried as the constant of the rule "otsu", where there are healthy subjects only."""
RIDGES = (1e-2, 1e-4)
"""Weights that are nearly even hold better on other scanners; others must be clearly better."""
MAP_SLOPE_BOUNDS, MAP_OFFSET_RANGE = (0.1, None), (-4.0, 4.0)
"""Bounds of the logistic regression that makes the map a probability."""
REFINE_MM = {"FLAIR": 3.0}
"""How far contours may move, by the reference scan. In version 0.2.0, at full resolution, 3 mm
gained 0.006 Dice on the training subjects with FLAIR (13 of 17 better), and lost with T2w, where
fluid is as bright."""
EVEN_ODDS = 0.5
"""As a probability."""
MIN_CONFIDENCES = (0.25, 0.3, 0.4, EVEN_ODDS)
"""Never more than even odds: what suits large tumours would hide small lesions."""
FOCI_ARE_SEEN_ON = "FLAIR"
"""On T2w fluid is as bright as small foci are; in version 0.6.0 a healthy head had 2 ml marked."""
LOOKS: tuple[dict[str, Any], ...] = (
    {},
    {"painter": Painter()},
    {"painter": Painter(), "other_scanner": True},
)
"""How every subject may be looked at: as it is, with painted lesions, and with these as if from
another scanner."""
MOST_SUBJECTS = 32
"""All signals of so many subjects, three times, lie in memory at a time: about 65 MB each."""
FALSE_POSITIVES_ML = 1.0
"""Mean volume of a mask in healthy subjects, where no others are there to calibrate on."""


@dataclass(frozen=True, kw_only=True)
class CalibrationRow:
    """Result of one method on one set of modalities.

    Attributes:
        method: "mmccd" or "cyclic-unet".
        config: The chosen score.
        dice: Mean Dice on the calibration subjects, on the training grid; NaN without lesions.
        false_positive_ml: Mean volume of the masks of healthy subjects; NaN with lesions.
        left_out_dice: The same with ridge and rule chosen on the other subjects each time.
        trials: (weights, rule, mean Dice) of everything that was tried.
        fold_configs: For each fold, what is chosen without its subjects.
        reliability: Of the maps of subjects left out, but for slope and offset of the map, which
            are fitted to all; see `Reliability.describe`.
        dice_by_confidence: Mean Dice where lesions need each of `MIN_CONFIDENCES`; empty without
            lesions.
    """

    method: str
    config: ScoreConfig
    dice: float = float("nan")
    left_out_dice: float = float("nan")
    false_positive_ml: float = float("nan")
    trials: list[dict[str, Any]]
    fold_configs: list[ScoreConfig] = field(default_factory=list)
    reliability: dict[str, Any] | None = None
    dice_by_confidence: tuple[float, ...] = ()

    def needing(self, confidence: float) -> CalibrationRow:
        """The same where lesions need this confidence."""
        return replace(
            self,
            config=replace(self.config, min_confidence=confidence),
            fold_configs=[replace(own, min_confidence=confidence) for own in self.fold_configs],
        )

    @property
    def healthy(self) -> bool:
        """Whether it was found on healthy subjects, who have no Dice."""
        return math.isnan(self.dice)

    @property
    def in_words(self) -> str:
        """What was found."""
        if not self.healthy:
            return f"Dice {self.dice:.3f}, left out {self.left_out_dice:.3f}"
        found = f"{self.false_positive_ml:.2f} ml of false positives"
        if self.false_positive_ml <= FALSE_POSITIVES_ML:
            return found
        return f"{found}: no threshold that is tried leaves {FALSE_POSITIVES_ML:g} ml or less"

    def describe(self, *, unseen: bool) -> dict[str, Any]:
        """As plain values, all of them finite."""
        about = {
            "method": self.method,
            "modalities": list(self.config.modalities),
            "networks_know_the_subjects": not unseen,
            "trials": self.trials,
        }
        if self.healthy:
            return {**about, "false_positive_ml": round(self.false_positive_ml, 4)}
        return {
            **about,
            "dice": round(self.dice, 4),
            "left_out_dice": round(self.left_out_dice, 4),
            "reliability": self.reliability,
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
    lowest that leaves at most `FALSE_POSITIVES_ML` on average, or the highest that is tried, and a
    line says so; all signals of the restoration network count alike, or all cycles where there is
    none. So they do for a fold where nobody else has a lesion.

    Args:
        bundle: The bundle.
        shards: What `prepare` wrote.
        split: Split of the subjects to calibrate on, where there are no folds.
        folds: Bundles that have not seen some of the training subjects, who then stand for unseen
            ones. Without them, networks are calibrated on scans that they know. Of more than
            `MOST_SUBJECTS` in all, as many are taken.
        device: Where networks run; the CPU by default.
        report: Called with a line for every method and set of modalities.

    Raises:
        DataError: No subject to calibrate on.
    """
    known_by = _at_most(
        MOST_SUBJECTS, folds or [Fold(bundle, subjects_to_calibrate(shards, split))]
    )
    device = device or torch.device("cpu")
    scores = dict(bundle.config.scores)
    fold_scores = [dict(fold.bundle.config.scores) for fold in folds]
    rows: list[CalibrationRow] = []
    looks: Looks = ((), (), ())
    for method in METHODS:
        sampling = replace(bundle.config.sampling, method=method)  # type: ignore[arg-type]  # one of METHODS
        load = partial(load_subjects, known_by, shards, sampling=sampling, device=device)
        subjects, painted, elsewhere = looks = _look(load, looks, foci=bundle.config.foci)
        search = Search(
            subjects=subjects,
            bundle=bundle,
            method=method,
            folds=folds,
            painted=painted,
            elsewhere=elsewhere,
        )
        found = []
        for modalities in sets_of(bundle):
            found.append(row := search.choose(modalities))
            report(f"{method:12s} {'+'.join(modalities):16s} {row.in_words}")
        found = with_least_confidences(found)
        # What does not gain by a further modality does not ask for it.
        chosen: dict[tuple[str, ...], CalibrationRow] = {}
        for row in sorted(found, key=lambda row: -row.left_out_dice):
            chosen.setdefault(row.config.modalities, row)
        scores[method] = tuple(row.config for row in chosen.values())
        for number, own in enumerate(fold_scores):
            own[method] = tuple(row.fold_configs[number] for row in chosen.values())
        rows += found
    taught = {entry["id"] for entry in bundle.config.training.get("subjects", ())}
    unseen = bool(folds or (taught and taught.isdisjoint(search.ids)))
    about = {
        "split": split,
        "subjects": search.ids,
        "folds": [list(fold.subjects) for fold in folds],
        "criterion": search.criterion,
        # The model card shows the Dice of these.
        "rows": [row.describe(unseen=unseen) for row in rows if not row.healthy],
        "healthy_rows": [row.describe(unseen=unseen) for row in rows if row.healthy],
    }
    of_folds = []
    for fold, own in zip(folds, fold_scores, strict=True):
        others = [subject for subject in search.ids if subject not in fold.subjects]
        told = {**about, "subjects": others, "rows": [], "healthy_rows": []}
        del told["folds"]
        of_folds.append(replace(fold.bundle.config, scores=own, calibration=told))
    return Calibration(replace(bundle.config, scores=scores, calibration=about), of_folds, rows)


def with_least_confidences(rows: Sequence[CalibrationRow]) -> list[CalibrationRow]:
    """Choose the confidence that lesions need for all sets of modalities of one method.

    It is even odds, unless another gives clearly better masks. Where small foci count, it is the
    lowest whose masks are not clearly worse than the best, for small lesions hardly weigh in a mean
    Dice of large ones, and one for all sets: their means differ by chance.
    """
    shared = np.mean(
        [row.dice_by_confidence for row in rows if row.config.has_foci] or [(0.0,)], axis=0
    )
    chosen = []
    for row in rows:
        dice, even = np.array(row.dice_by_confidence), MIN_CONFIDENCES.index(EVEN_ODDS)
        if row.config.has_foci:
            index = int((shared >= shared.max() - CLEARLY_BETTER).argmax())
        elif dice.size and dice.max() > dice[even] + CLEARLY_BETTER:
            index = int(dice.argmax())
        else:
            index = even
        chosen.append(row.needing(MIN_CONFIDENCES[index]) if dice.size else row)
    return chosen


def _look(
    load: Callable[..., list[CalibrationSubject]], known: Looks, *, foci: FociConfig | None
) -> Looks:
    """Load every subject in each of `LOOKS` that is of use.

    Without lesions nothing is learnt from painted ones; without a network of small foci nothing is
    learnt from another scanner.

    Args:
        load: As `load_subjects`.
        known: The same looks with another method's cycles, which are computed anew.
        foci: The network of small foci, if there is one.
    """
    subjects = load(**LOOKS[0], known=known[0])
    if not has_lesions(subjects):
        return subjects, (), ()
    painted = load(**LOOKS[1], known=known[1])
    return subjects, painted, load(**LOOKS[2], known=known[2]) if foci is not None else ()


def has_lesions(subjects: Sequence[CalibrationSubject]) -> bool:
    """Whether any subject has a lesion."""
    return any(bool(subject.lesion.any()) for subject in subjects)


def _at_most(count: int, folds: Sequence[Fold]) -> list[Fold]:
    """The folds with so many subjects in all, evenly taken."""
    step = max(1, math.ceil(sum(len(fold.subjects) for fold in folds) / count))
    return [Fold(fold.bundle, list(fold.subjects)[::step]) for fold in folds]


def subjects_to_calibrate(shards: Path, split: str) -> list[str]:
    """Find the subjects of a split; an error where there are none, best before anything is trained.

    Raises:
        DataError: The split holds no subject.
    """
    ids = subjects_of(read_index(shards), split)
    if not ids:
        raise DataError(
            f"There is no subject of the split {split!r} in {shards}.",
            next_step="Choose another with --calibrate-on, or `none`.",
        )
    return ids


@dataclass(frozen=True, kw_only=True)
class _Weighted:
    """Weights of one set of modalities, fitted with one ridge.

    Attributes:
        ridge: The ridge.
        modalities: The set.
        of_all: Signal -> weight, fitted to everybody.
        of_folds: For each fold, fitted without its subjects.
    """

    ridge: float
    modalities: tuple[str, ...]
    of_all: dict[str, float]
    of_folds: list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search for one method's scores.

    Attributes:
        subjects: Whom to calibrate on.
        bundle: The bundle.
        method: Name of the method.
        folds: Who is left out together.
        painted: The same subjects with painted lesions, for small foci and the confidence.
        elsewhere: The same as if from another scanner, for the confidence.
    """

    subjects: Sequence[CalibrationSubject]
    bundle: Bundle
    method: str
    folds: Sequence[Fold] = ()
    painted: Sequence[CalibrationSubject] = ()
    elsewhere: Sequence[CalibrationSubject] = ()

    @property
    def ids(self) -> list[str]:
        """Ids of the subjects."""
        return [subject.id for subject in self.subjects]

    @property
    def labelled(self) -> bool:
        """Whether any subject has a lesion."""
        return has_lesions(self.subjects)

    @property
    def criterion(self) -> str:
        """What decides, in words."""
        if self.labelled:
            return "mean Dice on the training grid"
        return (
            f"the lowest threshold with at most {FALSE_POSITIVES_ML} ml of false positives in "
            "healthy subjects, or the highest that was tried"
        )

    def choose(self, modalities: tuple[str, ...]) -> CalibrationRow:
        """Choose the score of a subject that has these modalities."""
        if self.labelled:
            return self._choose_by_dice(modalities)
        return self._choose_by_false_positives(modalities)

    def _choose_by_dice(self, modalities: tuple[str, ...]) -> CalibrationRow:
        """Fit weights with each ridge, and try the rules that find a scan's threshold.

        Each subject is scored with weights that were fitted without its fold, so that ridge and
        rule are chosen, and `left_out_dice` is measured, on subjects whose labels and networks had
        no part in them.
        """
        everyone = np.ones(len(self.subjects), dtype=bool)
        weighted = [self._weighted(modalities, ridge) for ridge in RIDGES]
        trials = [trial for options in weighted for trial in self._tried(options)]
        chosen, config = choose_trial(trials, everyone)
        options = next(o for o in weighted if o.ridge == chosen.ridge)
        own = [replace(config, weights=weights) for weights in options.of_folds]
        probability = self._as_probability([*own, replace(config, weights=options.of_all)])
        reference = next(m for m in MODALITIES if m in config.modalities)
        foci: dict[str, float] = {}
        if FOCI_ARE_SEEN_ON in config.modalities:
            spacing = self.bundle.template.spacing_mm
            foci = fit_foci(self.subjects, self.painted, config, spacing_mm=spacing)
        finish = partial(replace, **probability, **foci, refine_mm=REFINE_MM.get(reference, 0.0))
        of_folds, reliability = [], Reliability()
        for number, fold in enumerate(self.folds):
            rows = np.array([subject not in fold.subjects for subject in self.ids])
            trial, best = choose_trial(trials, rows)
            its = next(o for o in weighted if o.ridge == trial.ridge)
            best = finish(best, weights=its.of_folds[number])
            self._count_map(best, fold.subjects, reliability)
            of_folds.append(replace(best, confidence=self._confidence(best, fold.subjects)))
        config = finish(config, weights=options.of_all)
        config = replace(config, confidence=self._confidence(config))
        return CalibrationRow(
            method=self.method,
            config=config,
            dice=float(chosen.dice.mean(axis=0).max()),
            left_out_dice=chosen.left_out_dice(everyone),
            trials=[trial.describe() for trial in trials],
            fold_configs=of_folds,
            reliability=reliability.describe() if self.folds else None,
            dice_by_confidence=self._dice_by_confidence([*of_folds, config]),
        )

    def _weighted(self, modalities: tuple[str, ...], ridge: float) -> _Weighted:
        fit, alike = partial(self.fusion.weights, modalities, ridge=ridge), self._alike(modalities)
        return _Weighted(
            ridge=ridge,
            modalities=modalities,
            of_all=fit() or alike,
            of_folds=[fit(left_out=fold.subjects) or alike for fold in self.folds],
        )

    def _alike(self, modalities: tuple[str, ...]) -> dict[str, float]:
        """Weights where no lesion tells which signals count more."""
        kind = "cycle" if self.bundle.config.restoration is None else "restoration"
        return {f"{kind}:{modality}": 1.0 for modality in modalities}

    def _weights_for(self, subject: CalibrationSubject, of_all: T, of_folds: Sequence[T]) -> T:
        """What was found without a subject, where there are folds."""
        for fold, own in zip(self.folds, of_folds, strict=bool(self.folds)):
            if subject.id in fold.subjects:
                return own
        return of_all

    def _count_map(
        self, config: ScoreConfig, subjects: Sequence[str], reliability: Reliability
    ) -> None:
        """Compare the maps of some subjects with the truth."""
        for subject in self.subjects:
            if subject.id in subjects:
                signals = subject.signals_for(config)
                spacing = self.bundle.template.spacing_mm
                found = score_scan(signals, subject.brain, spacing_mm=spacing, config=config)
                inside = found.values[subject.brain]
                values = map_from_score(inside, found.threshold, config)
                reliability.add(values, subject.lesion[subject.brain])

    def _confidence(
        self, config: ScoreConfig, left_out: Sequence[str] = ()
    ) -> ConfidenceConfig | None:
        everyone = [*self.subjects, *self.painted]
        if config.has_foci:
            everyone += self.elsewhere
        learners = [subject for subject in everyone if subject.id not in left_out]
        return learn_confidence(learners, config, spacing_mm=self.bundle.template.spacing_mm)

    def _dice_by_confidence(self, configs: Sequence[ScoreConfig]) -> tuple[float, ...]:
        """Mean Dice where lesions need each of `MIN_CONFIDENCES`, on the grid of `on_finer_grid`.

        Args:
            configs: The score of each fold, and last the one of everybody.
        """
        dice, spacing = np.zeros(len(MIN_CONFIDENCES)), self.bundle.template.spacing_mm
        for subject in self.subjects:
            config = self._weights_for(subject, configs[-1], configs[:-1])
            signals = subject.signals_for(config)
            scored = score_scan(signals, subject.brain, spacing_mm=spacing, config=config)
            values = on_finer_grid(scored.values)
            anomaly_map = map_from_score(values, scored.threshold, config)
            lesion = finer_mask(subject.lesion)
            for index, least in enumerate(MIN_CONFIDENCES):
                mask = mask_from_map(
                    anomaly_map,
                    replace(config, min_confidence=least),
                    spacing_mm=finer_spacing(spacing),
                    scan_threshold=scored.threshold,
                )
                dice[index] += overlap(mask, lesion).dice / len(self.subjects)
        return tuple(dice.tolist())

    @cached_property
    def fusion(self) -> Fusion:
        """Fits weights to all subjects."""
        smoothing = ScoreConfig(modalities=("FLAIR",), weights={"intensity:FLAIR": 1.0})
        return Fusion(
            subjects=self.subjects,
            spacing_mm=self.bundle.template.spacing_mm,
            smoothing=smoothing,
        )

    def _tried(self, options: _Weighted) -> list[Trial]:
        """Every kind of threshold rule with the weights of one ridge."""
        rules = threshold_rules(self._score(options.modalities, options.of_all))
        dice = []
        for subject in self.subjects:
            weights = self._weights_for(subject, options.of_all, options.of_folds)
            smoothed = self._smooth(subject, self._score(options.modalities, weights))
            dice.append(dice_of_rules(smoothed, subject.lesion, rules))
        by_rule = zip(rules, zip(*dice, strict=True), strict=True)
        return [Trial(options.ridge, settings, np.array(rows)) for settings, rows in by_rule]

    def _score(self, modalities: tuple[str, ...], weights: dict[str, float]) -> ScoreConfig:
        return ScoreConfig(
            modalities=modalities,
            weights=weights,
            mirrored=mirrored_kinds(self.method),
            min_seed_mm3=0.0,
        )

    def _smooth(self, subject: CalibrationSubject, config: ScoreConfig) -> SmoothedScore:
        spacing_mm = self.bundle.template.spacing_mm
        signals = subject.signals_for(config)
        return smooth(signals, subject.brain, spacing_mm=spacing_mm, config=config)

    def _choose_by_false_positives(self, modalities: tuple[str, ...]) -> CalibrationRow:
        """The lowest threshold that keeps false positives within a budget, else the highest."""
        voxel_ml = float(np.prod(self.bundle.template.spacing_mm)) / 1000
        weights, mirrored = self._alike(modalities), mirrored_kinds(self.method)
        config = ScoreConfig(modalities=modalities, weights=weights, mirrored=mirrored)
        smoothed = [self._smooth(subject, config) for subject in self.subjects]

        @cache
        def volumes_ml(offset: float) -> NDArray[np.float64]:
            volumes = []
            for item in smoothed:
                threshold = adaptive_threshold(item.values[item.region], offset, otsu_weight=0.5)
                volumes.append(float(mask_at(item, threshold, config).sum()) * voxel_ml)
            return np.array(volumes)

        def chosen(left_out: Sequence[str] = ()) -> tuple[ScoreConfig, float]:
            rows = np.array([subject not in left_out for subject in self.ids])
            for offset in OFFSETS:
                mean = float(volumes_ml(offset)[rows].mean())
                if mean <= FALSE_POSITIVES_ML:
                    break
            return replace(config, threshold_rule="otsu", threshold_offset=offset), mean

        best, mean = chosen()
        offset = best.threshold_offset
        return CalibrationRow(
            method=self.method,
            config=best,
            false_positive_ml=mean,
            trials=[{"weights": weights, "offset": offset, "false_positive_ml": mean}],
            fold_configs=[chosen(fold.subjects)[0] for fold in self.folds],
        )

    def _as_probability(self, configs: Sequence[ScoreConfig]) -> dict[str, float]:
        """How a score becomes a probability: logistic regression on subjects left out.

        The mask's threshold becomes the probability at the scan's own threshold.

        Args:
            configs: The score of each fold, and last the one of everybody.

        Returns:
            Fields of `ScoreConfig` and their values.
        """
        beyond, truth = [], []
        for subject in self.subjects:
            config = self._weights_for(subject, configs[-1], configs[:-1])
            signals, spacing = subject.signals_for(config), self.bundle.template.spacing_mm
            scored = score_scan(signals, subject.brain, spacing_mm=spacing, config=config)
            inside = scored.values[subject.brain][::EVERY]
            beyond.append(inside.astype(np.float64) - scored.threshold)
            truth.append(subject.lesion[subject.brain][::EVERY])
        share = [np.full(len(part), 1 / (len(part) * len(truth))) for part in truth]
        (slope,), offset = fit_logistic(
            np.concatenate(beyond)[:, None],
            np.concatenate(truth),
            np.concatenate(share),
            bounds=[MAP_SLOPE_BOUNDS],
            ridge=0.0,
        )
        offset = round(float(np.clip(offset, *MAP_OFFSET_RANGE)), 4)
        return {
            "map_scale": round(1 / float(slope), 4),
            "map_offset": offset,
            "threshold": round(1 / (1 + math.exp(-offset)), 4),
        }
