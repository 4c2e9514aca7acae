"""`mmccd train-comparison`: the published methods that `mmccd evaluate` compares with."""

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
    from mmccd_cli.config import TrainingConfig
    from mmccd_cli.evaluation.comparison.networks import ComparisonConfig
    from mmccd_cli.training.trainer import Runtime


@command
def train_comparison(
    *,
    prepared: Annotated[Path, typer.Option(help="Slices from `prepare`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the models, one folder each.")] = Path(
        "comparison"
    ),
    kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ae|vae|dae|ddpm", help="Repeatable; all by default.", show_default=False
        ),
    ] = None,
    modality: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FLAIR|T2w|T1w", help="Repeatable; FLAIR by default.", show_default=False
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    iterations: Annotated[
        int | None, typer.Option(help="Steps of each model.", show_default=False)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed.", show_default=False)] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    force: options.Force = False,
    console: Console,
) -> None:
    """Train the published comparison (AE, VAE, DAE, DDPM) for `mmccd evaluate --comparison`."""
    with console.progress() as progress:
        from mmccd_cli.evaluation.comparison.files import INDEX
        from mmccd_cli.training.networks import make_runtime

        options.use_threads(threads)
        wanted = _wanted(prepared, kind, modality)
        refuse_to_overwrite(
            [out / config.name / INDEX for config in wanted],
            force=force,
            make_folders=True,
            next_step="Use --force to replace it, or --kind for the others.",
        )
        changes = {"iterations": iterations, "learning_rate": learning_rate, "seed": seed}
        training = _training(changes)
        runtime = make_runtime(device)
        for config in wanted:
            _train(prepared, out / config.name, config, training, split, runtime, console, progress)


def register(app: typer.Typer) -> None:
    """Add the command, under its present and its first name."""
    app.command("train-comparison")(train_comparison)
    app.command("train-rivals", hidden=True)(train_comparison)


def _wanted(prepared: Path, kinds: list[str] | None, sources: list[str] | None) -> list[Any]:
    """One configuration for each kind and modality, on the grid of the prepared slices."""
    from mmccd_cli.config import MODALITIES
    from mmccd_cli.evaluation.comparison.networks import KINDS, ComparisonConfig
    from mmccd_cli.training.slices import read_index

    for option, given, known in (("--kind", kinds, KINDS), ("--modality", sources, MODALITIES)):
        for word in given or ():
            if word not in known:
                raise UsageError(
                    f"{option} {word} is not known.", next_step=f"Use {', '.join(known)}."
                )
    height, width, _ = read_index(prepared)["shape"]
    return [
        ComparisonConfig(kind, modality, (height, width))  # type: ignore[arg-type]  # checked above
        for modality in sources or ["FLAIR"]
        for kind in kinds or KINDS
    ]


def _training(changes: dict[str, Any]) -> TrainingConfig:
    from mmccd_cli.config import with_changes
    from mmccd_cli.evaluation.comparison.training import DEFAULT_TRAINING

    return with_changes(DEFAULT_TRAINING, changes)


def _train(
    prepared: Path,
    folder: Path,
    config: ComparisonConfig,
    training: TrainingConfig,
    split: str,
    runtime: Runtime,
    console: Console,
    progress: Progress,
) -> None:
    import numpy as np

    from mmccd_cli.config import PreprocessingConfig, from_dict, to_dict
    from mmccd_cli.evaluation.comparison.files import ComparisonModel, save_comparison_model
    from mmccd_cli.evaluation.comparison.networks import build_network
    from mmccd_cli.evaluation.comparison.training import choose_thresholds, train_comparison_model
    from mmccd_cli.template import Template
    from mmccd_cli.training.samples import load_dataset
    from mmccd_cli.training.slices import read_index, read_template

    def report(state: Any) -> None:
        progress.begin(f"{state.network}: loss {state.loss:.4f}")
        progress.advance(state.iteration, state.iterations)
        console.detail(
            f"{state.network} {state.iteration}/{state.iterations}: loss {state.loss:.4f}, "
            f"{state.seconds_left / 60:.0f} min left"
        )

    index = read_index(prepared)
    dataset = load_dataset(prepared, training, split=split)
    network = build_network(config)
    network.load_state_dict(
        train_comparison_model(config, dataset, training, runtime, report=report)
    )
    network.eval().to(runtime.device)
    progress.begin(f"{config.name}: choosing thresholds")
    constants = choose_thresholds(
        network,
        config,
        prepared,
        dataset.subjects,
        runtime.device,
        report=lambda subject, done, total: progress.advance(done, total),
    )
    images, mask = read_template(prepared)
    affine = np.array(index["affine"], dtype=float).reshape(4, 4)
    model = ComparisonModel(
        config,
        network,
        Template(images, mask, affine),
        from_dict(PreprocessingConfig, index["preprocessing"]),
        {"settings": to_dict(training), "split": split, "subjects": list(dataset.subjects)},
        constants,
    )
    save_comparison_model(folder, model)
    console.info(f"Wrote {folder}. Compare with it: mmccd evaluate DATA --comparison {folder}")
