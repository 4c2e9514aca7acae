"""Constants of threshold rows, and folds: every subject scored by what has not seen it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmccd_cli.errors import DataError, UsageError
from mmccd_cli.evaluation.baselines import Constants
from mmccd_cli.evaluation.cases import Fail, SubjectListener, load_case, stop, tolerating
from mmccd_cli.evaluation.methods import RuleMethod, Scorer
from mmccd_cli.evaluation.thresholds import DiceCurve, choose_constants, dice_curve
from mmccd_cli.files import read_json_as
from mmccd_cli.inputs.subjects import Subject
from mmccd_cli.progress import silent

OTHER_FOLDS = "chosen in this run on the other folds"

DiceCurves = Mapping[str, Mapping[str, DiceCurve]]
"""Score -> subject -> its Dice by threshold, from which constants are chosen for any group."""


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
        return [RuleMethod(s, self.values[s.name], self.subjects) for s in scorers]


def shipped_constants(scorers: Sequence[Scorer]) -> ChosenConstants:
    """The constants that come with mmccd and with trained comparison models."""
    values = {s.name: s.constants for s in scorers if s.constants is not None}
    source = (
        "chosen beforehand: intensities on 17 gliomas (shipped), "
        "comparison models on their training"
    )
    return ChosenConstants(values, frozenset(), source)


def measure_curves(
    subjects: Sequence[Subject],
    scorers: Sequence[Scorer],
    *,
    fail: Fail = stop,
    report: SubjectListener = silent,
) -> DiceCurves:
    """Measure labelled subjects by every score that they have the scans for.

    Raises:
        MmccdError: A subject has no reference, unless `fail` takes it.
    """
    curves: dict[str, dict[str, DiceCurve]] = {}
    for number, subject in enumerate(subjects, start=1):
        report("choosing thresholds", number, len(subjects))
        with tolerating(subject, fail):
            case = load_case(subject)
            assert case.reference is not None
            for scorer in scorers:
                raw = scorer.score(case)
                if raw is not None:
                    curve = dice_curve(raw.smoothed, case.reference, scorer.config)
                    curves.setdefault(scorer.name, {})[subject.id] = curve
    return curves


def choose_on(curves: DiceCurves, subjects: frozenset[str], source: str) -> ChosenConstants:
    """Choose the constants of every score on some of the subjects; `source` says it in words."""
    own = {score: [of[i] for i in of if i in subjects] for score, of in curves.items()}
    values = {score: choose_constants(chosen) for score, chosen in own.items() if chosen}
    return ChosenConstants(values, subjects, source)


def read_folds(path: Path) -> dict[str, list[str]]:
    """Read a file of folds: JSON, folder of a bundle -> ids of the subjects it has not seen.

    Relative folders are relative to the file.

    Raises:
        DataError: Not such a file, or a subject stands in two folds.
    """
    step = 'Write at least two of {"bundle folder": ["id", ...], ...}.'
    folds = read_json_as(path, dict[str, list[str]], what="a file of folds", next_step=step)
    if len(folds) < 2 or not all(folds.values()):
        raise DataError(f"{path} is not a file of folds.", cause="One is empty.", next_step=step)
    times = Counter(i for members in folds.values() for i in members)
    twice = sorted(i for i, n in times.items() if n > 1)
    if twice:
        raise DataError(
            f"{', '.join(twice)} in {path}: a subject stands in two folds.",
            next_step="Let every subject belong to one fold.",
        )
    return {str(path.parent / folder): members for folder, members in folds.items()}


def check_unseen(fold: str, members: Sequence[str], seen: frozenset[str]) -> None:
    """Refuse a fold whose bundle was made with one of its subjects.

    Raises:
        DataError: It was.
    """
    leaked = sorted(set(members) & seen)
    if leaked:
        raise DataError(
            f"The bundle {fold} was trained or calibrated on {', '.join(leaked)}.",
            cause="A subject must be scored by a bundle that has not seen it.",
            next_step="Move the subject to another fold, or train the bundle without it.",
        )


def constants_by_fold(
    curves: DiceCurves, folds: Mapping[str, Sequence[str]]
) -> dict[str, ChosenConstants]:
    """Choose each fold's constants on the subjects of all other folds."""
    everyone = frozenset(i for members in folds.values() for i in members)
    return {
        fold: choose_on(curves, everyone - set(members), OTHER_FOLDS)
        for fold, members in folds.items()
    }


def read_constants(path: Path, scorers: Sequence[Scorer]) -> ChosenConstants:
    """Read the constants of an earlier run from its summary.

    Scorers that the earlier run did not have use the constants that they come with.

    Raises:
        DataError: Not such a file.
    """
    found = read_json_as(
        path,
        _Summary,
        what="a summary with constants",
        next_step="Give OUT.summary.json of mmccd evaluate --constants-from SPLIT.",
    )
    values = {score: asdict(constants) for score, constants in found.constants.items()}
    own = shipped_constants([s for s in scorers if s.name not in values]).values
    words = f"{found.constants_source} (read from {path.name})"
    if own:
        words += f"; {', '.join(own)}: their own, chosen beforehand"
    return ChosenConstants({**values, **own}, frozenset(found.constants_subjects), words)


@dataclass(frozen=True)
class _RuleConstants:
    """Constants of one score."""

    fixed: float
    adaptive: float


@dataclass(frozen=True)
class _Summary:
    """What is read of an earlier run's summary."""

    constants: dict[str, _RuleConstants]
    constants_source: str
    constants_subjects: list[str] = field(default_factory=list)
