"""Whole evaluations: constants chosen first, then every subject scored by what has not seen it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmccd_cli.errors import DataError, UsageError
from mmccd_cli.evaluation.cases import Case, load_case
from mmccd_cli.evaluation.methods import RuleMethod, Scorer
from mmccd_cli.evaluation.thresholds import (
    Constants,
    DiceCurve,
    choose_constants,
    dice_curve,
    rules_of,
)
from mmccd_cli.inputs.subjects import Subject

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ChosenConstants:
    """Constants of the threshold rows, and where they come from.

    Attributes:
        values: Score -> rule -> constant.
        subjects: Ids of the subjects that they were chosen on.
        source: The same in words.
    """

    values: Constants
    subjects: frozenset[str]
    source: str

    def methods(self, scorers: Sequence[Scorer]) -> list[RuleMethod]:
        """Build the threshold rows of these scores.

        Raises:
            UsageError: A score has no constants.
        """
        missing = [scorer.name for scorer in scorers if scorer.name not in self.values]
        if missing:
            raise UsageError(
                f"There are no thresholds for {', '.join(missing)}.",
                next_step="Choose them in this run: --split FILE --constants-from train.",
            )
        return [
            RuleMethod(scorer, rules_of(scorer.name, self.values[scorer.name]), self.subjects)
            for scorer in scorers
        ]


def shipped_constants(scorers: Sequence[Scorer]) -> ChosenConstants:
    """The constants that come with mmccd and with trained comparison models."""
    values = {s.name: s.constants for s in scorers if s.constants is not None}
    source = (
        "chosen beforehand: intensities on 17 gliomas (shipped), "
        "comparison models on their training"
    )
    return ChosenConstants(values, frozenset(), source)


@dataclass
class CurveBook:
    """Dice curves of subjects, from which constants are chosen for any group of them.

    Attributes:
        curves: Score -> subject -> curve.
    """

    curves: dict[str, dict[str, DiceCurve]] = field(default_factory=dict)

    def add(self, case: Case, scorers: Sequence[Scorer]) -> None:
        """Measure one labelled subject.

        Raises:
            DataError: It is healthy: without a lesion no threshold is better than the highest.
        """
        if case.reference is None:
            raise DataError(f"{case.subject} has no lesion to choose a threshold by")
        for scorer in scorers:
            scored = scorer.score(case)
            if scored is not None:
                curve = dice_curve(case.subject, scored.score, case.reference, scorer.cleaning)
                self.curves.setdefault(scorer.name, {})[case.subject] = curve

    def choose(self, subjects: frozenset[str], source: str) -> ChosenConstants:
        """Choose the constants of every score on some of the subjects."""
        values = {}
        for score, curves in self.curves.items():
            chosen = [curve for subject, curve in curves.items() if subject in subjects]
            if chosen:
                values[score] = choose_constants(chosen)
        return ChosenConstants(values, subjects, source)


def measure_curves(
    subjects: Sequence[Subject], scorers: Sequence[Scorer], report: Report
) -> CurveBook:
    """Measure all subjects, see `CurveBook`."""
    book = CurveBook()
    for number, subject in enumerate(subjects, start=1):
        report(subject.id, number, len(subjects))
        book.add(load_case(subject), scorers)
    return book


def read_folds(path: Path) -> dict[str, list[str]]:
    """Read a file of folds: JSON, folder of a bundle -> ids of the subjects it has not seen.

    Relative folders are relative to the file.

    Raises:
        DataError: Not such a file, or a subject stands in two folds.
    """
    try:
        folds = json.loads(path.read_text(encoding="utf-8"))
        good = isinstance(folds, dict) and all(
            isinstance(ids, list) and ids and all(isinstance(i, str) for i in ids)
            for ids in folds.values()
        )
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the folds {path}", cause=str(error)) from error
    if not good or len(folds) < 2:
        raise DataError(
            f"{path} is not a file of folds",
            cause='expected at least two of {"bundle folder": ["id", ...], ...}',
        )
    ids = [i for members in folds.values() for i in members]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise DataError(f"{', '.join(twice)} in {path}: every subject belongs to one fold")
    return {str(path.parent / folder): members for folder, members in folds.items()}


def check_unseen(fold: str, members: Sequence[str], seen: frozenset[str]) -> None:
    """Refuse a fold whose bundle was made with one of its subjects.

    Raises:
        DataError: It was.
    """
    leaked = sorted(set(members) & seen)
    if leaked:
        raise DataError(
            f"the bundle {fold} was trained or calibrated on {', '.join(leaked)}",
            cause="a subject must be scored by a bundle that has not seen it",
            next_step="move the subject to another fold, or train the bundle without it",
        )


def constants_by_fold(
    book: CurveBook, folds: Mapping[str, Sequence[str]]
) -> dict[str, ChosenConstants]:
    """Choose each fold's constants on the subjects of all other folds."""
    everyone = frozenset(i for members in folds.values() for i in members)
    return {
        fold: book.choose(everyone - set(members), "chosen in this run on the other folds")
        for fold, members in folds.items()
    }


def read_constants(path: Path, scorers: Sequence[Scorer]) -> ChosenConstants:
    """Read the constants of an earlier run from its summary.

    Args:
        path: The summary.
        scorers: Those that the earlier run did not have use the constants that they come with.

    Raises:
        DataError: Not such a file.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        values = {
            str(score): {rule: float(numbers[rule]) for rule in ("fixed", "adaptive")}
            for score, numbers in document["constants"].items()
        }
        chosen_on = frozenset(map(str, document.get("constants_subjects", ())))
        source = str(document["constants_source"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"cannot read the constants in {path}",
            cause=f"expected OUT.summary.json of mmccd evaluate --constants-from SPLIT: {error}",
        ) from error
    own = {s.name: s.constants for s in scorers if s.constants is not None and s.name not in values}
    words = f"{source} (read from {path.name})"
    if own:
        words += f"; {', '.join(own)}: their own, chosen beforehand"
    return ChosenConstants({**values, **own}, chosen_on, words)
