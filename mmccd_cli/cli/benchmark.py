"""`mmccd benchmark`: the price list of the presets on this machine."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import Console, JsonConsole

if TYPE_CHECKING:
    from mmccd_cli.evaluation.benchmark import BenchmarkResult, BenchmarkSetup


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
    with tempfile.TemporaryDirectory(prefix="mmccd-") as folder:
        from mmccd_cli.evaluation.benchmark import run_benchmark

        setup = _setup(subject, model, Path(folder))
        with console.progress() as progress:
            result = run_benchmark(setup, budget_s=budget, report=progress.begin)
        if console.as_json:
            console.record(_record(result))
        else:
            _show(result, console)


def _setup(subject: Path | None, model: options.ModelOptions, folder: Path) -> BenchmarkSetup:
    from mmccd_cli.cohort.demo import plan_demo, write_scans
    from mmccd_cli.evaluation.benchmark import BenchmarkSetup
    from mmccd_cli.inputs.subjects import find_subject

    if subject is None:
        files = plan_demo(folder)
        write_scans(files)
        subject = files.scans["FLAIR"].parent
    segmenter = model.load()
    return BenchmarkSetup(
        subject=find_subject(subject),
        bundle=segmenter.bundle,
        device=segmenter.device,
        precision=segmenter.precision,
        arguments=[str(subject), *_arguments(model, segmenter.bundle.folder)],
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


def _record(result: BenchmarkResult) -> dict[str, Any]:
    record = asdict(result)
    for entry, cost in zip(record["presets"], result.presets, strict=True):
        entry["total_seconds"] = cost.total_seconds
    return record


def _show(result: BenchmarkResult, console: Console) -> None:
    """Lay a result out for people, one column a preset."""
    from mmccd_cli.evaluation.tables import text_table

    costs = result.presets
    stages = dict.fromkeys(stage for cost in costs for stage in cost.seconds)
    rows: dict[str, list[float | None]] = {
        "network passes": [cost.passes for cost in costs],
        **{
            f"  {stage.replace('_', ' ')}, s": [cost.seconds.get(stage) for cost in costs]
            for stage in stages
        },
        "whole process, s": [cost.total_seconds for cost in costs],
        "  of the CPU, s": [cost.cpu_seconds for cost in costs],
        "peak memory, MiB": [cost.peak_memory_mib for cost in costs],
        "Dice": [cost.dice for cost in costs],
    }
    title = (
        f"{result.subject}: {result.slices} slices with brain; {result.bundle}; "
        f"{result.device}, {result.precision}"
    )
    cells = [[name, *(_short(value) for value in values)] for name, values in rows.items()]
    console.result(text_table(title, ["", *(cost.preset for cost in costs)], cells))
    for cost in costs:
        if cost.estimated:
            console.info(f"{cost.preset} was not run: its seconds are estimated from its passes.")


def _short(value: float | None) -> str:
    """Whole numbers as they are, others with three figures."""
    if value is None or isinstance(value, int):
        return "-" if value is None else f"{value:,}"
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"
