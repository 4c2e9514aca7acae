"""`mmccd benchmark`: the price list of the presets on this machine."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import JsonConsole

if TYPE_CHECKING:
    from mmccd_cli.evaluation.benchmark import BenchmarkSetup, PresetCost


@command
def benchmark(
    *,
    subject: Annotated[
        Path | None,
        typer.Argument(
            metavar="SUBJECT",
            help="Folder of a subject. By default a synthetic one on the grid of BraTS.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds that the networks of a preset may take; longer ones are estimated from "
            "their passes.",
        ),
    ] = 180.0,
    model: options.ModelOptions,
    console: JsonConsole,
) -> None:
    """Measure seconds, memory and Dice of the presets on this machine.

    Examples:
      mmccd benchmark
      mmccd benchmark SUBJECT --device cpu --json
    """
    console.info("Each preset segments a subject in a process of its own; fast is the first.")
    with tempfile.TemporaryDirectory(prefix="mmccd-") as folder:
        from mmccd_cli.evaluation.benchmark import benchmark_presets

        setup = _setup(subject, model, Path(folder))
        weights = setup.bundle.config
        costs: list[PresetCost] = []
        for cost in benchmark_presets(setup, budget_s=budget):
            if not console.as_json:
                if not costs:
                    console.result(f"{setup.subject.id}: {weights.name} {weights.version}")
                    console.result(f"{cost.device}\n{_HEADING}")
                console.result(_row(cost))
            costs.append(cost)
    if console.as_json:
        named = {"subject": setup.subject.id, "bundle": f"{weights.name} {weights.version}"}
        console.record({**named, "presets": [asdict(cost) for cost in costs]})


def _setup(subject: Path | None, model: options.ModelOptions, folder: Path) -> BenchmarkSetup:
    from mmccd_cli.cohort.demo import plan_demo, write_scans
    from mmccd_cli.evaluation.benchmark import BenchmarkSetup
    from mmccd_cli.inputs.subjects import find_subject

    if subject is None:
        files = plan_demo(folder)
        write_scans(files)
        subject = files.scans["FLAIR"].parent
    bundle = model.load().bundle
    return BenchmarkSetup(
        subject=find_subject(subject),
        bundle=bundle,
        arguments=[str(subject), *_arguments(model, bundle.folder)],
        folder=folder,
    )


def _arguments(model: options.ModelOptions, bundle: Path) -> list[str]:
    """Options of `mmccd segment` with which it does what is measured here."""
    given = {
        "--weights": str(bundle),
        "--device": model.device,
        "--batch-size": model.batch_size or "auto",
        "--threads": model.threads or "auto",
        "--precision": model.precision,
    }
    return ["--offline", *(str(text) for pair in given.items() for text in pair)]


_HEADING = f"{'preset':<10}{'seconds':>9}{'of the CPU':>12}{'memory':>10}{'Dice':>7}"


def _row(cost: PresetCost) -> str:
    """A line under `_HEADING`."""
    cpu = "-" if cost.cpu_seconds is None else f"{cost.cpu_seconds:.1f}"
    memory = "-" if cost.peak_memory_mib is None else f"{cost.peak_memory_mib:,.0f} MiB"
    dice = "-" if cost.dice is None else f"{cost.dice:.3f}"
    note = "  not run: estimated from its passes" if cost.estimated else ""
    return f"{cost.preset:<10}{cost.seconds:>9,.1f}{cpu:>12}{memory:>10}{dice:>7}{note}"
