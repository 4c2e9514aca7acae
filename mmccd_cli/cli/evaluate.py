"""`mmccd evaluate`."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import JsonConsole
from mmccd_cli.errors import SomeSubjectsFailed, UsageError
from mmccd_cli.files import refuse_to_overwrite

if TYPE_CHECKING:
    from mmccd_cli.evaluation.plan import ComparedMethods, Evaluation, EvaluationSubjects

_of_subjects = partial(typer.Option, rich_help_panel="Subjects", show_default=False)
_of_comparison = partial(typer.Option, rich_help_panel="What is compared", show_default=False)


@dataclass(frozen=True, kw_only=True)
class SubjectChoice:
    """Who is scored."""

    data_dir: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder of subjects with segmentations.")
    ]
    split: Annotated[
        Path | None,
        _of_subjects(help='JSON file: {"val": \\[ids], ...}.'),
    ] = None
    on: Annotated[
        str | None, _of_subjects(help="Split to evaluate on, with --split. \\[default: val]")
    ] = None
    healthy: Annotated[
        Path | None,
        _of_subjects(
            help="Folder of healthy subjects, or of one: scored by false-positive volume only."
        ),
    ] = None
    folds: Annotated[
        Path | None,
        _of_subjects(
            help='JSON file: {"bundle folder": \\[ids], ...}. Every subject is scored by the '
            "bundle that has not seen it, with thresholds chosen on the other folds' subjects."
        ),
    ] = None

    def subjects(self) -> EvaluationSubjects:
        """The subjects that the options name.

        Raises:
            UsageError: A split is named, but no file that holds splits.
        """
        if self.on is not None and self.split is None:
            raise UsageError(
                f"Who belongs to --on {self.on} is not known.",
                next_step="Add --split FILE.json, which says so, or leave out --on.",
            )
        from mmccd_cli.evaluation.plan import EvaluationSubjects

        return EvaluationSubjects(
            data_dir=self.data_dir,
            split_file=self.split,
            on=self.on or "val",
            healthy_dir=self.healthy,
        )


@dataclass(frozen=True, kw_only=True)
class ComparisonChoice:
    """What is compared."""

    method: Annotated[
        list[str] | None,
        _of_comparison(
            help="mmccd or cyclic-unet (repeatable); both by default. `none` for neither."
        ),
    ] = None
    modalities: Annotated[
        list[str] | None,
        _of_comparison(
            help="Give only these, such as FLAIR,T2w (repeatable); by default all, and each alone."
        ),
    ] = None
    thresholds: Annotated[
        bool,
        _of_comparison(
            help="Also score plain intensity thresholds, fixed and adaptive.", show_default=True
        ),
    ] = True
    comparison: Annotated[
        list[Path] | None,
        _of_comparison(
            "--comparison",
            "--rival",
            help="Also score comparison models: a folder of `mmccd train-comparison`, or one of "
            "its folders (repeatable).",
        ),
    ] = None
    comparison_residual: Annotated[
        list[str] | None,
        _of_comparison(
            "--comparison-residual",
            "--rival-residual",
            metavar="signed|absolute",
            parser=options.one_of("signed", "absolute"),
            help="How their errors count (repeatable): brighter than reconstructed, or both ways "
            "as published. signed by default.",
        ),
    ] = None
    constants_from: Annotated[
        str,
        _of_comparison(
            metavar="shipped|SPLIT|FILE.json",
            help="Where the constants of the threshold rows and comparison models come from: those "
            "that mmccd and the models come with, chosen in this run on a split, or an earlier "
            "run's summary.",
            show_default=True,
        ),
    ] = "shipped"
    preset: options.Preset = None

    def load_with(self, model: options.ModelOptions) -> ComparedMethods:
        """What the options ask for; weights are loaded when they are needed."""
        from mmccd_cli.config import MODALITIES
        from mmccd_cli.evaluation.plan import ComparedMethods
        from mmccd_cli.translation.devices import choose_device

        if self.comparison_residual and not self.comparison:
            raise UsageError(
                "--comparison-residual says how errors of comparison models count, and there are "
                "none.",
                next_step="Add --comparison FOLDER, or leave it out.",
            )
        methods = self.method or ["mmccd", "cyclic-unet"]
        return ComparedMethods(
            load=lambda name, weights: replace(model, weights=weights).load(
                preset=self.preset, method=name
            ),
            weights=model.weights,
            methods=[name for name in methods if name != "none"],
            modality_sets=[_modality_set(text) for text in self.modalities or ["all", *MODALITIES]],
            thresholds=self.thresholds,
            models=self.comparison or (),
            residuals=self.comparison_residual or ["signed"],  # type: ignore[arg-type]  # parsed
            device=choose_device(model.device),
        )


@command
def evaluate(
    *,
    chosen: SubjectChoice,
    out: Annotated[
        Path | None,
        typer.Option(
            help="CSV with one line a method and subject; means and intervals go to "
            "OUT.summary.json, lesions found by confidence to OUT.froc.tsv and .svg.",
            show_default=False,
        ),
    ] = None,
    protocol: Annotated[
        Literal["deployed", "published", "both"],
        typer.Option(
            metavar="deployed|published|both",
            help="deployed: whole volumes, every threshold fixed beforehand. published: of the "
            "slices 70-89 of the BraTS grid the one with most tumour, and the best threshold for "
            "the very subjects that are scored (an ORACLE).",
        ),
    ] = "deployed",
    compared: ComparisonChoice,
    model: options.ModelOptions,
    force: options.Force = False,
    console: JsonConsole,
) -> None:
    """Score masks against reference segmentations.

    The masks are those that `mmccd segment` writes. With --json the summary is printed, not tables.

    Both masks empty counts as perfect, one of them empty as a complete miss (overlaps 0, distances
    the diagonal of the volume). Intervals are bootstrapped over subjects. Whoever lacks a scan that
    a row needs is left out of it and named; where --modalities asked for it, the exit code is 6. So
    it is where a subject cannot be scored, such as by a damaged file: the others are.

    Examples:
      mmccd evaluate DATA --out scores.csv
      mmccd evaluate DATA --split split.json --constants-from train --out val.csv
    """
    named = model.weights is not None or compared.constants_from != "shipped"
    others = (chosen.split, chosen.on, chosen.healthy, compared.comparison)
    if chosen.folds and (named or any(others)):
        raise UsageError(
            "--folds says itself which weights score which subjects.",
            next_step="Leave out --split, --on, --healthy, --weights, --comparison and "
            "--constants-from.",
        )
    subjects = chosen.subjects()
    if out is not None:
        source = Path(compared.constants_from)
        options = [path for path in (chosen.folds, source) if path and path.is_file()]
        _refuse_to_overwrite(out, [*options, *subjects.files], force=force)
    comparison = compared.load_with(model)
    with console.progress() as progress:
        from mmccd_cli.evaluation.plan import plan_evaluation, plan_folds, run_evaluation

        def report(step: str, number: int, total: int) -> None:
            progress.begin(step)
            progress.advance(number - 1, total, told=True)

        if chosen.folds:
            plan = plan_folds(chosen.folds, subjects, comparison, report=report)
        else:
            plan = plan_evaluation(
                subjects, comparison, constants_from=compared.constants_from, report=report
            )
        unlabelled = [s.id for s in subjects.found if s.segmentation is None]
        if unlabelled and not (chosen.folds or chosen.split):
            console.note(
                f"{len(unlabelled)} without a segmentation are left out "
                f"({', '.join(unlabelled[:3])}); give healthy ones by --healthy"
            )
        for folder, reason in subjects.skipped:
            console.note(f"{folder.name} is left out: {reason}")
        for known, ids in plan.seen().items():
            console.note(
                f"{known} was trained or calibrated on {len(ids)} of these subjects: its rows "
                "flatter (column `seen`)"
            )
        result = run_evaluation(plan, protocol=protocol, out=out, report=report)
        _show(result, console)
    ours = tuple(comparison.methods) if compared.modalities else ()
    if result.failed or any(name.startswith(ours) for name in result.about["lacking_scans"]):
        raise typer.Exit(SomeSubjectsFailed.exit_code)


def _refuse_to_overwrite(out: Path, read: Iterable[Path], *, force: bool) -> None:
    """Refuse what an evaluation would write over what it reads, or without leave over a file."""
    from mmccd_cli.evaluation.free_response import curves_path
    from mmccd_cli.evaluation.tables import summary_path

    curves = curves_path(out)
    written = [out, summary_path(out), curves, curves.with_suffix(".svg")]
    refuse_to_overwrite(written, read, force=force)


def _show(result: Evaluation, console: JsonConsole) -> None:
    """Write tables or the summary to stdout, and what a reader must know to stderr."""
    from mmccd_cli.evaluation.tables import CONVENTIONS, describe_rows

    if console.as_json:
        console.record(describe_rows(result.rows, result.about))
    else:
        _show_tables(result, console)
    console.info(f"Constants of thresholds: {result.about['constants_source']}.")
    console.info(f"Cleaning of {result.about['cleaning']}.")
    console.detail(CONVENTIONS)
    for name, lacking in result.about["lacking_scans"].items():
        console.note(f"{name}: {', '.join(lacking)} left out, without a scan that it needs")
    for name, error in result.failed.items():
        console.error(error, about=name)
    if left_out := result.about["published_without_tumour"]:
        console.note(
            f"{', '.join(left_out)}: no tumour in the slices 70-89, left out of the published "
            "protocol"
        )


def _show_tables(result: Evaluation, console: JsonConsole) -> None:
    from mmccd_cli.evaluation.tables import WIDE, free_response_table, text_tables

    # Wide where there is no terminal, so that nothing is cut.
    width = shutil.get_terminal_size((WIDE, 24)).columns
    for table in text_tables(result.rows, width=width, details=console.verbosity > 0):
        console.result(table)
    if curves := result.about["free_response"]:
        console.result(free_response_table(curves, width=width))


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
