"""`mmccd prepare` and `mmccd train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import Console, Progress
from mmccd_cli.errors import UsageError
from mmccd_cli.files import refuse_to_overwrite

if TYPE_CHECKING:
    from mmccd_cli.training.recipes import Recipe

DATA_KINDS = ("brats2021", "brats", "folder")

DataKind = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="brats2021|brats|folder",
        help="What the data set is: BraTS of any year, or a folder of healthy subjects.",
    ),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder with one folder for each subject.", show_default=False)
]
PresetName = Annotated[
    str, typer.Option("--preset", metavar="compact|paper", help="Which recipe to train.")
]
Split = Annotated[
    Path | None,
    typer.Option(
        help='JSON file: {"train": \\[ids], "val": \\[ids]}. By default drawn from the ids.',
        show_default=False,
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first subject that cannot be used.")
]
Template = Annotated[
    str | None,
    typer.Option(
        metavar="WEIGHTS",
        help="Register every subject to this bundle's template. "
        "By default subjects are trusted to share a space, as those of BraTS do.",
        show_default=False,
    ),
]


@command
def prepare(
    *,
    data_dir: DataDir = None,
    out: Annotated[Path, typer.Option(help="Folder for the slices.")] = Path("prepared"),
    data: DataKind = "brats2021",
    preset: PresetName = "compact",
    split: Split = None,
    template: Template = None,
    strict: Strict = False,
    console: Console,
) -> None:
    """Turn a data set into slices that `train` reads without any image library."""
    with console.progress() as progress:
        _prepare(data_dir, out, data, _recipe(preset), split, template, strict, console, progress)


@command
def train(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.", show_default=False)],
    data: DataKind = "brats2021",
    data_dir: DataDir = None,
    prepared: Annotated[
        Path | None,
        typer.Option(help="Slices from `prepare`, instead of --data-dir.", show_default=False),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Checkpoints and logs; by default OUT.work.", show_default=False),
    ] = None,
    preset: PresetName = "compact",
    split: Split = None,
    template: Template = None,
    strict: Strict = False,
    network: Annotated[
        list[str] | None,
        typer.Option(
            help="Train only this network (repeatable), to spread them over machines.",
            show_default=False,
        ),
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Steps of each network.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Slices a step, over all processes.", show_default=False)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed.", show_default=False)] = None,
    device: options.Device = "auto",
    precision: Annotated[str, typer.Option(metavar="auto|fp32|bf16", help="Arithmetic.")] = "auto",
    threads: options.Threads = None,
    calibrate_on: Annotated[
        str, typer.Option(help="Split to calibrate on; `none` leaves the scores uncalibrated.")
    ] = "train",
    folds: Annotated[
        int,
        typer.Option(
            help="Train this many more sets of networks, each without a share of the subjects, and "
            "calibrate on the subjects that they have not seen; 0 for none.",
        ),
    ] = 0,
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "1",
    licence: Annotated[str, typer.Option(help="Licence of the weights.")] = "research use only",
    about_data: Annotated[
        str, typer.Option(help="A sentence on the data, for the model card.", show_default=False)
    ] = "",
    force: options.Force = False,
    console: Console,
) -> None:
    """Train all networks of a bundle, resuming where an earlier run stopped, and calibrate it.

    Runs in several processes under `torchrun`.
    """
    work = work or out.with_name(out.name + ".work")
    _check_train(out, data_dir, prepared, precision, force)
    recipe = _changed(
        _recipe(preset),
        iterations=iterations,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )
    with console.progress() as progress:
        from mmccd_cli.training.networks import BundleText, make_runtime
        from mmccd_cli.training.run import Training

        options.use_threads(threads)
        shards = prepared or work / "slices"
        runtime = make_runtime(device, precision)
        if prepared is None and not (shards / "dataset.json").exists() and runtime.rank == 0:
            _prepare(data_dir, shards, data, recipe, split, template, strict, console, progress)
        runtime.barrier()
        training = Training(
            shards,
            work,
            recipe,
            runtime,
            text=BundleText(out.name, version=version, licence=licence, data=about_data),
            folds=folds,
            only=network,
            report=_reporter(console, progress),
        )
        networks = training.train()
        if runtime.rank:
            return
        if network:
            console.info(f"Trained {', '.join(networks)}; checkpoints are in {work}.")
            return
        bundle = training.write(out, networks)
        if calibrate_on != "none":
            progress.begin("calibrating")
            training.calibrate(bundle, split=calibrate_on, report=console.info)
        console.info(f"Wrote {out}. Use it: mmccd segment SUBJECT --weights {out} --out map.nii.gz")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("prepare")(prepare)
    app.command("train")(train)


def _recipe(name: str) -> Recipe:
    from mmccd_cli.training.recipes import RECIPES

    if name not in RECIPES:
        raise UsageError(
            f"--preset {name} is not known.", next_step=f"Use --preset {' or '.join(RECIPES)}."
        )
    return RECIPES[name]


def _changed(recipe: Recipe, **changes: Any) -> Recipe:
    from dataclasses import replace

    from mmccd_cli.config import with_changes

    return replace(recipe, training=with_changes(recipe.training, changes))


def _check_train(
    out: Path, data_dir: Path | None, prepared: Path | None, precision: str, force: bool
) -> None:
    if (data_dir is None) == (prepared is None):
        raise UsageError(
            "Give either --data-dir or --prepared.",
            next_step="mmccd train --data brats2021 --data-dir DIR --out weights/NAME",
        )
    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"--precision {precision} is not known.", next_step="Use fp32 or bf16.")
    refuse_to_overwrite([out / "bundle.json"], force=force, make_folders=True)


def _prepare(
    data_dir: Path | None,
    out: Path,
    data: str,
    recipe: Recipe,
    split: Path | None,
    template: str | None,
    strict: bool,
    console: Console,
    progress: Progress,
) -> None:
    from mmccd_cli.training.dataset import PrepareSettings, prepare_dataset, read_split

    if data not in DATA_KINDS:
        raise UsageError(f"--data {data} is not known.", next_step=f"Use {', '.join(DATA_KINDS)}.")
    if data_dir is None:
        raise UsageError("--data-dir is missing.", next_step="Give the folder of the subjects.")
    settings = PrepareSettings(
        spacing_mm=recipe.spacing_mm,
        preprocessing=recipe.preprocessing,
        require_segmentation=data != "folder",
        strict=strict,
    )
    progress.begin("preparing slices")
    result = prepare_dataset(
        data_dir,
        out,
        settings,
        split=read_split(split) if split else None,
        template=_template(template),
        report=lambda subject, done, total: progress.advance(done, total),
    )
    for name, reason in result.skipped:
        console.note(f"{name} was left out: {reason}")
    console.info(f"Prepared {len(result.subjects)} subjects in {out}.")


def _template(weights: str | None) -> Any:
    if weights is None:
        return None
    from mmccd_cli.weights.bundle import load_bundle
    from mmccd_cli.weights.resolve import resolve_weights

    return load_bundle(resolve_weights(weights)).template


def _reporter(console: Console, progress: Progress) -> Any:
    def report(state: Any) -> None:
        progress.begin(f"{state.network}: loss {state.loss:.4f}")
        progress.advance(state.iteration, state.iterations)
        console.detail(
            f"{state.network} {state.iteration}/{state.iterations}: loss {state.loss:.4f}, "
            f"{state.seconds_left / 60:.0f} min left"
        )

    return report
