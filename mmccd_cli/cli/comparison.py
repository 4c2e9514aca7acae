"""`mmccd train-comparison`: the published methods that `mmccd evaluate` compares with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import Console
from mmccd_cli.cli.train import TrainingOptions, training_reporter
from mmccd_cli.files import refuse_to_overwrite


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
            metavar="ae|vae|dae|ddpm",
            parser=options.one_of("ae", "vae", "dae", "ddpm"),
            help="Repeatable; all by default.",
            show_default=False,
        ),
    ] = None,
    modality: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FLAIR|T2w|T1w",
            parser=options.one_of("FLAIR", "T2w", "T1w"),
            help="Repeatable; FLAIR by default.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    changes: TrainingOptions,
    device: options.Device = "auto",
    threads: options.Threads = None,
    force: options.Force = False,
    console: Console,
) -> None:
    """Train published methods (AE, VAE, DAE, DDPM) to compare with.

    They are for `mmccd evaluate --comparison`. A run that was stopped continues where it was.

    Examples:
      mmccd train-comparison --prepared prepared --out comparison
      mmccd train-comparison --prepared prepared --kind dae --modality FLAIR
    """
    with console.progress() as progress:
        from mmccd_cli.evaluation.comparison.files import INDEX
        from mmccd_cli.evaluation.comparison.networks import KINDS, ComparisonConfig
        from mmccd_cli.evaluation.comparison.training import (
            DEFAULT_TRAINING,
            make_comparison_model,
        )
        from mmccd_cli.training.runtime import make_runtime
        from mmccd_cli.training.slices import read_index

        options.use_threads(threads)
        height, width, _ = read_index(prepared)["shape"]
        wanted = [
            ComparisonConfig(
                kind=one,  # type: ignore[arg-type]  # the option knows no other
                modality=source,
                shape=(height, width),
            )
            for source in modality or ["FLAIR"]
            for one in kind or KINDS
        ]
        refuse_to_overwrite(
            [out / config.name / INDEX for config in wanted],
            force=force,
            make_folders=True,
            next_step="Use --force to replace it, or --kind for the others.",
        )

        def choosing(subject: str, done: int, total: int) -> None:
            progress.begin("choosing thresholds")
            progress.stage(subject)
            progress.advance(done, total, told=True)

        training, runtime = changes.change(DEFAULT_TRAINING), make_runtime(device)
        for config in wanted:
            folder = out / config.name
            make_comparison_model(
                config,
                prepared,
                folder,
                training=training,
                split=split,
                runtime=runtime,
                report=training_reporter(progress, [config.name for config in wanted]),
                report_subject=choosing,
            )
            if runtime.rank == 0:
                console.info(
                    f"Wrote {folder}. Compare with it: mmccd evaluate DATA --comparison {folder}"
                )
