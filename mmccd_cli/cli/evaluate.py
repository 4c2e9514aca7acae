"""`mmccd evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.console import Console, command
from mmccd_cli.cli.loading import Loading
from mmccd_cli.errors import DataError, UsageError

if TYPE_CHECKING:
    from mmccd_cli.subjects import Subject


@command
def evaluate(
    data_dir: Annotated[Path, typer.Argument(help="Folder of subjects with segmentations.")],
    out: Annotated[
        Path | None,
        typer.Option(help="CSV with one line a method and subject.", show_default=False),
    ] = None,
    split: Annotated[
        Path | None, typer.Option(help='JSON file: {"val": \\[ids], ...}.', show_default=False)
    ] = None,
    on: Annotated[str, typer.Option(help="Split to evaluate on, with --split.")] = "val",
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="mmccd or cyclic-unet (repeatable); both by default.", show_default=False
        ),
    ] = None,
    modalities: Annotated[
        list[str] | None,
        typer.Option(
            help="Give only these, such as FLAIR,T2w (repeatable); by default all, and each alone.",
            show_default=False,
        ),
    ] = None,
    rivals: Annotated[bool, typer.Option(help="Also score plain intensity thresholds.")] = True,
    weights: options.Weights = None,
    offline: options.Offline = False,
    preset: options.Preset = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = "auto",
    threads: options.Threads = "auto",
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Score the masks, as they are written, against reference segmentations."""
    console = Console(-1 if quiet else verbose)
    if out is not None and out.exists() and not force:
        raise UsageError(f"{out} exists already.", next_step="Use --force to replace it.")
    sets = [_modality_set(text) for text in modalities or ["all", "FLAIR", "T2w", "T1w"]]
    with console.computing(), console.progress() as progress:
        from mmccd_cli.evaluation import Method, evaluate_subjects, summarise_rows, write_rows

        methods = []
        for name in method or ["mmccd", "cyclic-unet"]:
            segmenter = Loading(
                weights, offline, device, batch_size, threads, preset, method=name
            ).load()
            for chosen in sets:
                label = "+".join(chosen) if chosen else "all"
                methods.append(Method(f"{name} ({label})", segmenter, chosen))
        progress.begin("evaluating")
        rows = evaluate_subjects(
            _subjects(data_dir, split, on),
            methods,
            rivals=rivals,
            report=lambda subject, done, total: progress.advance(done - 1, total),
        )
        if out is not None:
            write_rows(out, rows)
        console.result(f"{'method':28s} {'Dice':>6s} {'SD':>6s}  95 % interval  {'FP ml':>6s}  n")
        for name, scores in summarise_rows(rows).items():
            dice, wrong = scores["dice"], scores["false_positive_ml"]
            console.result(
                f"{name:28s} {dice.mean:6.3f} {dice.sd:6.3f}  {dice.low:.3f}..{dice.high:.3f}  "
                f"{wrong.mean:6.1f}  {dice.n}"
            )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate")(evaluate)


def _modality_set(text: str) -> tuple[str, ...] | None:
    from mmccd_cli.modalities import MODALITIES

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


def _subjects(data_dir: Path, split: Path | None, on: str) -> list[Subject]:
    from mmccd_cli.prepare import read_split
    from mmccd_cli.subjects import find_subjects

    found = [s for s in find_subjects(data_dir) if s.segmentation is not None]
    if split is not None:
        members = read_split(split)
        if on not in members:
            raise UsageError(f"--on {on}: {split} has {', '.join(members)}.")
        found = [s for s in found if s.id in members[on]]
    if not found:
        raise DataError(f"no subject with a segmentation in {data_dir}")
    return found
