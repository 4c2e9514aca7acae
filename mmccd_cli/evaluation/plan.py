"""Whole evaluations: who is scored by what, with which constants, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mmccd_cli.config import METHODS
from mmccd_cli.errors import DataError, MmccdError, UsageError
from mmccd_cli.evaluation.baselines import BASELINES, describe_cleaning
from mmccd_cli.evaluation.cases import (
    Case,
    CaseRow,
    Method,
    PlannedCase,
    Prediction,
    SubjectListener,
    evaluate_cases,
)
from mmccd_cli.evaluation.comparison.files import find_comparison_models, load_comparison_model
from mmccd_cli.evaluation.comparison.networks import ComparisonResidual
from mmccd_cli.evaluation.folds import (
    OTHER_FOLDS,
    check_unseen,
    choose_on,
    constants_by_fold,
    measure_curves,
    read_constants,
    read_folds,
    shipped_constants,
)
from mmccd_cli.evaluation.free_response import FreeResponse, curves_path, write_curves
from mmccd_cli.evaluation.free_response_picture import draw_curves
from mmccd_cli.evaluation.methods import BundleMethod, ComparisonScorer, IntensityScorer, Scorer
from mmccd_cli.evaluation.published_protocol import PublishedProtocol
from mmccd_cli.evaluation.tables import summary_path, write_rows, write_summary
from mmccd_cli.files import write_atomically
from mmccd_cli.inputs.subjects import Subject, find_subject, find_subjects
from mmccd_cli.pipeline import Pipeline
from mmccd_cli.progress import silent
from mmccd_cli.training.dataset import read_split


@dataclass(frozen=True, kw_only=True)
class EvaluationSubjects:
    """The subjects of an evaluation; folders are read when it is asked who is there.

    Attributes:
        data_dir: Folder of subjects with segmentations.
        split_file: JSON file of lists of ids; without it, whoever has a segmentation is scored.
        on: The list that is scored.
        healthy_dir: Folder of healthy subjects, or of one.
        skipped: Folders in there that are no subject, each with the reason.
    """

    data_dir: Path
    split_file: Path | None = None
    on: str = "val"
    healthy_dir: Path | None = None

    skipped: list[tuple[Path, str]] = field(default_factory=list)

    @cached_property
    def found(self) -> list[Subject]:
        """All subjects of the folder."""
        return find_subjects(self.data_dir, skipped=self.skipped)

    @property
    def files(self) -> list[Path]:
        """Every file that is read of them, and the split file."""
        everyone = [*self.found, *self.healthy()]
        references = [s.segmentation for s in everyone]
        scans = [path for s in everyone for path in s.files]
        return [*filter(None, [self.split_file, *references]), *scans]

    @property
    def labelled(self) -> dict[str, Subject]:
        """Id -> subject, of all with a segmentation."""
        return {s.id: s for s in self.found if s.segmentation is not None}

    def of_split(self, name: str, option: str) -> list[Subject]:
        """The labelled subjects of one split, which an option asked for.

        Raises:
            UsageError: There is no such split.
            DataError: One of its subjects is not there.
        """
        if self.split_file is None:
            raise UsageError(f"{option} {name} needs --split.")
        members = read_split(self.split_file)
        if name not in members:
            raise UsageError(
                f"{option} {name}: {self.split_file} has no such split.",
                cause=f"It has {', '.join(members)}.",
                next_step=f"Give one of them: {option} {next(iter(members), name)}",
            )
        return self.named(members[name])

    def named(self, ids: Sequence[str]) -> list[Subject]:
        """The labelled subjects of these ids.

        Raises:
            DataError: One of them is not there: leaving it out would change what is measured.
        """
        found = self.labelled
        missing = [i for i in ids if i not in found]
        if missing:
            raise DataError(
                f"{', '.join(missing[:3])} ({len(missing)} of {len(ids)}) cannot be evaluated.",
                cause=f"Not with a segmentation in {self.data_dir}.",
                next_step="Give a split file of subjects that are there.",
            )
        return [found[i] for i in ids]

    def scored(self) -> list[Subject]:
        """The labelled subjects to score.

        Raises:
            DataError: There is none.
        """
        labelled = list(self.labelled.values())
        chosen = self.of_split(self.on, "--on") if self.split_file else labelled
        if not chosen:
            raise DataError(
                f"There is no subject with a segmentation in {self.data_dir}.",
                next_step="Give a folder of subjects that have a *_seg.nii.gz.",
            )
        return chosen

    def healthy(self) -> list[Subject]:
        """The healthy subjects."""
        if self.healthy_dir is None:
            return []
        try:
            return find_subjects(self.healthy_dir)
        except DataError as error:
            try:
                return [find_subject(self.healthy_dir)]
            except DataError:
                raise error from None


@dataclass(frozen=True, kw_only=True)
class ComparedMethods:
    """Methods that are compared with each other, and what each of them is given.

    Attributes:
        load: Called with a method's name and the weights; gives a loaded bundle.
        weights: Name, folder or place of the weights; None for the default ones.
        methods: Names of our methods.
        modality_sets: What each of them is given; None for all that a subject has.
        thresholds: Whether plain intensity thresholds are compared.
        models: Folders of trained comparison models.
        residuals: How their errors count.
        device: Where their networks run.
    """

    load: Callable[[str, str | None], Pipeline]
    weights: str | None = None
    methods: Sequence[str] = METHODS
    modality_sets: Sequence[tuple[str, ...] | None] = (None, ("FLAIR",), ("T2w",), ("T1w",))
    thresholds: bool = True
    models: Sequence[Path] = ()
    residuals: Sequence[ComparisonResidual] = ("signed",)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def bundle_methods(self, weights: str | None) -> list[Method]:
        """One row for each of our methods and set of modalities."""
        loaded = {name: self.load(name, weights) for name in self.methods}
        return [
            BundleMethod(f"{name} ({'+'.join(chosen) if chosen else 'all'})", pipeline, chosen)
            for name, pipeline in loaded.items()
            for chosen in self.modality_sets
        ]

    def scorers(self) -> list[Scorer]:
        """The scores that need a threshold: intensities and comparison models."""
        scorers: list[Scorer] = [IntensityScorer(name) for name in BASELINES if self.thresholds]
        for folder in (one for given in self.models for one in find_comparison_models(given)):
            trained = load_comparison_model(folder)
            scorers += [
                ComparisonScorer(trained, residual, self.device) for residual in self.residuals
            ]
        return scorers


@dataclass
class Failures:
    """Collects the subjects that cannot be scored; a `Fail`.

    Attributes:
        of: Id -> what failed first.
    """

    of: dict[str, MmccdError] = field(default_factory=dict)
    _typed: dict[str, list[str]] = field(default_factory=dict, repr=False)

    def __call__(self, subject: Subject, error: MmccdError) -> None:
        """Remember one; of several errors of a subject, the first."""
        if subject.id not in self.of:
            self.of[subject.id] = error
            files = [*subject.paths.values(), *filter(None, [subject.segmentation])]
            self._typed[subject.id] = list(map(str, files))

    def check(self, measured: object) -> None:
        """Stop where nothing was measured because of failures.

        Raises:
            MmccdError: The first failure, or that of the only subject.
        """
        if measured or not self.of:
            return
        (name, first), *others = self.of.items()
        if not others:
            raise first
        raise type(first)(
            f"None of the {len(self.of)} subjects can be scored. {name}: {first.message}",
            cause=first.cause,
            next_step=first.next_step,
        )

    def describe(self) -> dict[str, str]:
        """Id -> what failed, without folders."""
        return {
            name: error.without_folders(self._typed[name]).message
            for name, error in self.of.items()
        }


@dataclass(frozen=True)
class EvaluationPlan:
    """Who is scored by what, what a reader must know about it, and who failed before."""

    cases: Sequence[PlannedCase]
    about: dict[str, Any]
    failed: Failures = field(default_factory=Failures)

    def seen(self) -> dict[str, set[str]]:
        """Weights -> the subjects that they were made with, whose rows therefore flatter."""
        known: dict[str, set[str]] = {}
        for subject, _, methods in self.cases:
            for one in methods:
                if one.weights and subject.id in one.seen:
                    known.setdefault(one.weights, set()).add(subject.id)
        return known


def plan_evaluation(
    subjects: EvaluationSubjects,
    compared: ComparedMethods,
    *,
    constants_from: str = "shipped",
    report: SubjectListener = silent,
) -> EvaluationPlan:
    """Plan an evaluation by one set of weights for all subjects.

    Args:
        subjects: Who is scored.
        compared: What is compared.
        constants_from: Where constants of threshold rows come from: "shipped", the name of a
            split to choose them on, or an earlier run's summary (FILE.json).
        report: Told of each subject that they are chosen on.

    Raises:
        UsageError: The options contradict each other.
        DataError: A subject or a file cannot be used.
    """
    scored, scorers, failed = subjects.scored(), compared.scorers(), Failures()
    if constants_from == "shipped":
        constants = shipped_constants(scorers)
    elif constants_from.endswith(".json"):
        constants = read_constants(Path(constants_from), scorers)
    else:
        chosen = subjects.of_split(constants_from, "--constants-from")
        ids = frozenset(s.id for s in chosen)
        both = sorted(ids & {s.id for s in scored})
        if both:
            raise UsageError(
                f"--constants-from {constants_from}: {', '.join(both[:3])} would be scored with "
                "thresholds chosen on themselves.",
                next_step="Choose a split that shares no subject with --on.",
            )
        curves = measure_curves(chosen, scorers, fail=failed, report=report)
        failed.check(curves)
        ids -= failed.of.keys()
        source = f"chosen in this run on {len(ids)} subjects of the split {constants_from}"
        constants = choose_on(curves, ids, source)
    methods = [*compared.bundle_methods(compared.weights), *constants.methods(scorers)]
    about = {
        "constants_source": constants.source,
        "constants_subjects": sorted(constants.subjects),
        "constants": constants.values,
    }
    cases: list[PlannedCase] = [(s, False, methods) for s in scored]
    cases += [(s, True, methods) for s in subjects.healthy()]
    return EvaluationPlan(cases, about, failed)


def plan_folds(
    path: Path,
    subjects: EvaluationSubjects,
    compared: ComparedMethods,
    *,
    report: SubjectListener = silent,
) -> EvaluationPlan:
    """Plan an evaluation of each fold's subjects by its bundle, with the other folds' thresholds.

    The weights of `compared` do not count.

    Raises:
        DataError: A bundle has seen a subject that it would score, or a file cannot be used.
    """
    folds = read_folds(path)
    own = {fold: subjects.named(members) for fold, members in folds.items()}
    everyone = [subject for members in own.values() for subject in members]
    methods = {fold: compared.bundle_methods(fold) for fold in folds}
    for fold, members in folds.items():
        for one in methods[fold]:
            check_unseen(fold, members, one.seen)
    scorers = compared.scorers()
    failed = Failures()
    curves = measure_curves(everyone, scorers, fail=failed, report=report)
    failed.check(curves)
    constants = constants_by_fold(curves, folds)
    for fold in folds:
        methods[fold] += constants[fold].methods(scorers)
    names = {fold: Path(fold).name for fold in folds}
    shown = names if len(set(names.values())) == len(folds) else {fold: fold for fold in folds}
    about = {
        "folds": {shown[fold]: members for fold, members in folds.items()},
        "constants_source": OTHER_FOLDS,
        "constants": {shown[fold]: chosen.values for fold, chosen in constants.items()},
    }
    cases = [(subject, False, methods[fold]) for fold in folds for subject in own[fold]]
    return EvaluationPlan(cases, about, failed)


@dataclass(frozen=True)
class Evaluation:
    """What came of a plan: all rows, what the summary says beside, and who could not be scored."""

    rows: list[CaseRow]
    about: dict[str, Any]
    failed: dict[str, MmccdError]


def run_evaluation(
    plan: EvaluationPlan,
    *,
    protocol: str = "deployed",
    out: Path | None = None,
    report: SubjectListener = silent,
) -> Evaluation:
    """Carry out a plan.

    Args:
        plan: Who is scored by what.
        protocol: "deployed", "published" or "both".
        out: CSV, which is written after every subject; summary and free-response curves lie
            beside it.
        report: Told of each subject.

    Raises:
        DataError: Nobody can be scored, or has the scans that are compared.
    """
    published = PublishedProtocol()
    responses = FreeResponse()

    def inspect(case: Case, prediction: Prediction, row: CaseRow) -> None:
        if protocol != "deployed":
            published(case, prediction, row)  # first: it may refuse the case
        if protocol != "published":
            responses(case, prediction, row)

    left_out: dict[str, list[str]] = {}

    def leave_out(method: Method, subject: Subject) -> None:
        left_out.setdefault(method.name, []).append(subject.id)

    rows: list[CaseRow] = []
    for new in evaluate_cases(
        plan.cases, inspect=inspect, leave_out=leave_out, fail=plan.failed, report=report
    ):
        rows += new
        if out is not None:
            write_rows(out, rows)
    plan.failed.check(rows)
    if not rows:
        raise DataError(
            "None of the subjects has the scans that are asked for.",
            next_step="Give others by --modalities, or leave it out.",
        )
    rows = [*(rows if protocol != "published" else []), *published.rows()]
    about = {
        **plan.about,
        "cleaning": f"comparison models and thresholds: {describe_cleaning()}; ours: as calibrated",
        "lacking_scans": left_out,
        "failed": plan.failed.describe(),
        "published_without_tumour": sorted(published.without_tumour),
        "free_response": [curve.describe() for curve in responses.curves()],
    }
    if out is not None:
        write_rows(out, rows)
        write_summary(summary_path(out), rows, about)
        curves = list(responses.curves())
        write_curves(curves_path(out), curves)
        picture = curves_path(out).with_suffix(".svg")
        write_atomically(picture, draw_curves(curves).encode())
    return Evaluation(rows, about, plan.failed.of)
