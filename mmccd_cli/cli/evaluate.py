"""`mmccd evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import Console, Progress
from mmccd_cli.cli.evaluation_report import show_tables
from mmccd_cli.errors import DataError, UsageError
from mmccd_cli.files import refuse_to_overwrite

if TYPE_CHECKING:
    from mmccd_cli.evaluation.cases import CaseRow, Method
    from mmccd_cli.evaluation.folds import ChosenConstants, Report
    from mmccd_cli.evaluation.methods import Scorer
    from mmccd_cli.inputs.subjects import Subject

PROTOCOLS = ("deployed", "published", "both")
RESIDUALS = ("signed", "absolute")
COMPARED = "What is compared"
SUBJECTS = "Subjects"


@command
def evaluate(
    *,
    data_dir: Annotated[Path, typer.Argument(help="Folder of subjects with segmentations.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="CSV with one line a method and subject; means and intervals go to "
            "OUT.summary.json.",
            show_default=False,
        ),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            metavar="deployed|published|both",
            help="deployed: whole volumes, every threshold fixed beforehand. published: of the "
            "slices 70-89 of the BraTS grid the one with most tumour, and the best threshold for "
            "the very subjects that are scored (an ORACLE).",
        ),
    ] = "deployed",
    split: Annotated[
        Path | None,
        typer.Option(
            help='JSON file: {"val": \\[ids], ...}.', show_default=False, rich_help_panel=SUBJECTS
        ),
    ] = None,
    on: Annotated[
        str, typer.Option(help="Split to evaluate on, with --split.", rich_help_panel=SUBJECTS)
    ] = "val",
    healthy: Annotated[
        Path | None,
        typer.Option(
            help="Folder of healthy subjects, or of one: scored by false-positive volume only.",
            show_default=False,
            rich_help_panel=SUBJECTS,
        ),
    ] = None,
    folds: Annotated[
        Path | None,
        typer.Option(
            help='JSON file: {"bundle folder": \\[ids], ...}. Every subject is scored by the '
            "bundle that has not seen it, with thresholds chosen on the other folds' subjects.",
            show_default=False,
            rich_help_panel=SUBJECTS,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="mmccd or cyclic-unet (repeatable); both by default. `none` for neither.",
            show_default=False,
            rich_help_panel=COMPARED,
        ),
    ] = None,
    modalities: Annotated[
        list[str] | None,
        typer.Option(
            help="Give only these, such as FLAIR,T2w (repeatable); by default all, and each alone.",
            show_default=False,
            rich_help_panel=COMPARED,
        ),
    ] = None,
    thresholds: Annotated[
        bool,
        typer.Option(
            help="Also score plain intensity thresholds, fixed and adaptive.",
            rich_help_panel=COMPARED,
        ),
    ] = True,
    comparison: Annotated[
        list[Path] | None,
        typer.Option(
            "--comparison",
            "--rival",
            help="Also score comparison models: a folder of `mmccd train-comparison`, or one of "
            "its folders (repeatable).",
            show_default=False,
            rich_help_panel=COMPARED,
        ),
    ] = None,
    comparison_residual: Annotated[
        list[str] | None,
        typer.Option(
            "--comparison-residual",
            "--rival-residual",
            metavar="signed|absolute",
            help="How their errors count (repeatable): brighter than reconstructed, or both ways "
            "as published. signed by default.",
            show_default=False,
            rich_help_panel=COMPARED,
        ),
    ] = None,
    constants_from: Annotated[
        str,
        typer.Option(
            metavar="shipped|SPLIT|FILE.json",
            help="Where the constants of the threshold rows and comparison models come from: those "
            "that mmccd and the models come with, chosen in this run on a split, or an earlier "
            "run's summary.",
            rich_help_panel=COMPARED,
        ),
    ] = "shipped",
    model: options.ModelOptions,
    preset: options.Preset = None,
    force: options.Force = False,
    console: Console,
) -> None:
    """Score the masks, as they are written, against reference segmentations.

    Both masks empty counts as perfect, one of them empty as a complete miss (overlaps 0, distances
    the diagonal of the volume). Intervals are bootstrapped over subjects.
    """
    _check_choice("--protocol", protocol, PROTOCOLS)
    for word in comparison_residual or ():
        _check_choice("--comparison-residual", word, RESIDUALS)
    if out is not None:
        refuse_to_overwrite([out, summary_path(out)], force=force)
    named = model.weights is not None or constants_from != "shipped"
    if folds is not None and (split or healthy or comparison or named):
        raise UsageError(
            "--folds says itself which weights score which subjects.",
            next_step="Leave out --split, --healthy, --weights, --comparison and --constants-from.",
        )
    compared = _Compared(
        model,
        preset,
        method or ["mmccd", "cyclic-unet"],
        [_modality_set(text) for text in modalities or ["all", "FLAIR", "T2w", "T1w"]],
        thresholds,
        comparison or [],
        comparison_residual or ["signed"],
    )
    with console.progress() as progress:
        chosen = _Subjects(data_dir, split, on, healthy)
        if folds is not None:
            plan = _plan_folds(folds, chosen, compared, progress)
        else:
            plan = _plan(chosen, compared, constants_from, progress)
        _tell_who_is_left_out(chosen, plan, console)
        _tell_what_was_seen(plan, console)
        _run(plan, protocol, out, console, progress)


@dataclass(frozen=True)
class _Plan:
    """Who is scored by what, and what a reader must know about it.

    Attributes:
        cases: Subjects, each with whether it is healthy.
        methods_of: Subject's id -> what scores it.
        about: Part of the summary.
        constants: Where the threshold rows' constants come from, in words.
    """

    cases: list[tuple[Subject, bool]]
    methods_of: Callable[[str], Sequence[Method]]
    about: dict[str, Any]
    constants: str


@dataclass(frozen=True)
class _Compared:
    """What the options ask to compare."""

    model: options.ModelOptions
    preset: str | None
    names: list[str]
    sets: list[tuple[str, ...] | None]
    thresholds: bool
    comparison: list[Path]
    residuals: list[str]

    def bundle_methods(self, weights: str | None) -> list[Method]:
        """One method for each name and set of modalities."""
        from dataclasses import replace

        from mmccd_cli.evaluation.methods import BundleMethod

        methods: list[Method] = []
        for name in self.names:
            if name == "none":
                continue
            segmenter = replace(self.model, weights=weights).load(preset=self.preset, method=name)
            for chosen in self.sets:
                label = "+".join(chosen) if chosen else "all"
                methods.append(BundleMethod(f"{name} ({label})", segmenter, chosen))
        return methods

    def scorers(self) -> list[Scorer]:
        """The scores that need a threshold: intensities and comparison models."""
        from mmccd_cli.evaluation.baselines import BASELINES
        from mmccd_cli.evaluation.comparison.files import (
            find_comparison_models,
            load_comparison_model,
        )
        from mmccd_cli.evaluation.methods import ComparisonScorer, IntensityScorer
        from mmccd_cli.translation.devices import choose_device

        scorers: list[Scorer] = []
        if self.thresholds:
            scorers += [IntensityScorer(baseline) for baseline in BASELINES.values()]
        device = choose_device(self.model.device)
        for folder in (one for given in self.comparison for one in find_comparison_models(given)):
            trained = load_comparison_model(folder)
            scorers += [
                ComparisonScorer(trained, residual, device)  # type: ignore[arg-type]  # checked
                for residual in self.residuals
            ]
        return scorers


@dataclass(frozen=True)
class _Subjects:
    """The subjects that the options point at."""

    data_dir: Path
    split_file: Path | None
    on: str
    healthy_dir: Path | None

    @cached_property
    def found(self) -> list[Subject]:
        """All subjects of the folder."""
        from mmccd_cli.inputs.subjects import find_subjects

        return find_subjects(self.data_dir)

    def labelled(self) -> list[Subject]:
        """All subjects with a segmentation."""
        return [s for s in self.found if s.segmentation is not None]

    def of_split(self, name: str, option: str) -> list[Subject]:
        """The labelled subjects of one split.

        Raises:
            UsageError: There is no such split.
            DataError: One of its subjects is not there.
        """
        from mmccd_cli.training.dataset import read_split

        if self.split_file is None:
            raise UsageError(f"{option} {name} needs --split.")
        members = read_split(self.split_file)
        if name not in members:
            raise UsageError(f"{option} {name}: {self.split_file} has {', '.join(members)}.")
        return self.named(members[name])

    def named(self, ids: Sequence[str]) -> list[Subject]:
        """The labelled subjects of these ids.

        Raises:
            DataError: One of them is not there: leaving it out would change what is measured.
        """
        found = {s.id: s for s in self.labelled()}
        missing = [i for i in ids if i not in found]
        if missing:
            raise DataError(
                f"{', '.join(missing[:3])} ({len(missing)} of {len(ids)}) cannot be evaluated",
                cause=f"not with a segmentation in {self.data_dir}",
                next_step="give a split file of subjects that are there",
            )
        return [found[i] for i in ids]

    def scored(self) -> list[Subject]:
        """The labelled subjects to score.

        Raises:
            DataError: There is none.
        """
        chosen = self.of_split(self.on, "--on") if self.split_file else self.labelled()
        if not chosen:
            raise DataError(f"no subject with a segmentation in {self.data_dir}")
        return chosen

    def healthy(self) -> list[Subject]:
        """The healthy subjects: a folder of them, or a single one's folder."""
        from mmccd_cli.inputs.subjects import find_subject, find_subjects

        if self.healthy_dir is None:
            return []
        try:
            return find_subjects(self.healthy_dir)
        except DataError:
            return [find_subject(self.healthy_dir)]


def _plan(
    subjects: _Subjects, compared: _Compared, constants_from: str, progress: Progress
) -> _Plan:
    """One set of weights for all subjects."""
    scored, scorers = subjects.scored(), compared.scorers()
    constants = _constants(subjects, scored, scorers, constants_from, progress)
    methods = [*compared.bundle_methods(compared.model.weights), *constants.methods(scorers)]
    about = {
        "constants_source": constants.source,
        "constants_subjects": sorted(constants.subjects),
        "constants": constants.values,
    }
    cases = [(s, False) for s in scored] + [(s, True) for s in subjects.healthy()]
    return _Plan(cases, lambda subject: methods, about, constants.source)


def _constants(
    subjects: _Subjects,
    scored: list[Subject],
    scorers: list[Scorer],
    constants_from: str,
    progress: Progress,
) -> ChosenConstants:
    from mmccd_cli.evaluation.folds import measure_curves, read_constants, shipped_constants

    if constants_from == "shipped":
        return shipped_constants(scorers)
    if constants_from.endswith(".json"):
        return read_constants(Path(constants_from), scorers)
    chosen = subjects.of_split(constants_from, "--constants-from")
    ids = frozenset(s.id for s in chosen)
    both = sorted(ids & {s.id for s in scored})
    if both:
        raise UsageError(
            f"--constants-from {constants_from}: {', '.join(both[:3])} would be scored with "
            "thresholds chosen on themselves.",
            next_step="Choose a split that shares no subject with --on.",
        )
    progress.begin("choosing thresholds")
    book = measure_curves(chosen, scorers, _reporter(progress))
    return book.choose(
        ids, f"chosen in this run on {len(ids)} subjects of the split {constants_from}"
    )


def _plan_folds(path: Path, subjects: _Subjects, compared: _Compared, progress: Progress) -> _Plan:
    """Each fold's subjects by its bundle, with thresholds from the other folds."""
    from mmccd_cli.evaluation.folds import (
        check_unseen,
        constants_by_fold,
        measure_curves,
        read_folds,
    )

    folds = read_folds(path)
    labelled = {i: subjects.named(members) for i, members in folds.items()}
    methods = {fold: compared.bundle_methods(fold) for fold in folds}
    for fold, members in folds.items():
        for one in methods[fold]:
            check_unseen(fold, members, one.seen)
    scorers = compared.scorers()
    progress.begin("choosing thresholds")
    everyone = [s for members in labelled.values() for s in members]
    book = measure_curves(everyone, scorers, _reporter(progress))
    constants = constants_by_fold(book, folds)
    for fold in folds:
        methods[fold] += constants[fold].methods(scorers)
    fold_of = {i: fold for fold, members in folds.items() for i in members}
    source = "chosen in this run on the other folds"
    names = {fold: Path(fold).name for fold in folds}
    shown = names if len(set(names.values())) == len(folds) else {fold: fold for fold in folds}
    about = {
        "folds": {shown[fold]: members for fold, members in folds.items()},
        "constants_source": source,
        "constants": {shown[fold]: chosen.values for fold, chosen in constants.items()},
    }
    return _Plan([(s, False) for s in everyone], lambda i: methods[fold_of[i]], about, source)


def _run(
    plan: _Plan, protocol: str, out: Path | None, console: Console, progress: Progress
) -> None:
    """Score, write after every subject what is there, and show the tables."""
    from mmccd_cli.evaluation.baselines import SHARED_CLEANING
    from mmccd_cli.evaluation.cases import evaluate_cases
    from mmccd_cli.evaluation.published_protocol import PublishedProtocol
    from mmccd_cli.evaluation.tables import write_rows, write_summary

    published = PublishedProtocol()
    further = {} if protocol == "deployed" else {"observe": published}
    rows: list[CaseRow] = []
    progress.begin("evaluating")
    for new in evaluate_cases(plan.cases, plan.methods_of, report=_reporter(progress), **further):
        rows += new
        if out is not None:
            write_rows(out, rows)
    if protocol == "published":
        rows = published.rows()
    elif protocol == "both":
        rows += published.rows()
    about = {
        **plan.about,
        "cleaning": f"comparison models and thresholds: {SHARED_CLEANING.describe()}; "
        "ours: as calibrated",
        "published_without_tumour": sorted(published.without_tumour),
    }
    if out is not None:
        write_rows(out, rows)
        write_summary(summary_path(out), rows, about)
    show_tables(
        rows,
        console,
        [f"Constants of thresholds: {plan.constants}.", f"Cleaning of {about['cleaning']}."],
    )
    if published.without_tumour:
        console.note(
            f"{', '.join(sorted(published.without_tumour))}: no tumour in the slices 70-89, left "
            "out of the published protocol"
        )


def summary_path(out: Path) -> Path:
    """Where the summary of a CSV is written."""
    return out.with_suffix(".summary.json")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate")(evaluate)


def _tell_who_is_left_out(subjects: _Subjects, plan: _Plan, console: Console) -> None:
    """Without a split or folds, what has a segmentation is scored."""
    unlabelled = [s.id for s in subjects.found if s.segmentation is None]
    if unlabelled and subjects.split_file is None and "folds" not in plan.about:
        console.note(
            f"{len(unlabelled)} without a segmentation are left out "
            f"({', '.join(unlabelled[:3])}); give healthy ones by --healthy"
        )


def _tell_what_was_seen(plan: _Plan, console: Console) -> None:
    """Warn where a row would flatter because its weights know the subjects."""
    known: dict[str, set[str]] = {}
    for subject, _ in plan.cases:
        for one in plan.methods_of(subject.id):
            if one.weights and subject.id in one.seen:
                known.setdefault(one.weights, set()).add(subject.id)
    for weights, ids in known.items():
        console.note(
            f"{weights} was trained or calibrated on {len(ids)} of these subjects: its rows "
            "flatter (column `seen`)"
        )


def _check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{option} {value} is not known.", next_step=f"Use {' or '.join(known)}.")


def _reporter(progress: Progress) -> Report:
    return lambda subject, done, total: progress.advance(done - 1, total)


def _modality_set(text: str) -> tuple[str, ...] | None:
    from mmccd_cli.config import MODALITIES

    if text == "all":
        return None
    chosen = tuple(part.strip() for part in text.split(","))
    unknown = [part for part in chosen if part not in MODALITIES]
    if unknown:
        raise UsageError(
            f"--modalities {text}: {', '.join(unknown)} is not known.",
            next_step=f"Use {', '.join(MODALITIES)} or all.",
        )
    return chosen
