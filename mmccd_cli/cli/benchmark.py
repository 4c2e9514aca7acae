"""`mmccd benchmark`: the price list of the presets on this machine."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import JsonConsole

if TYPE_CHECKING:
    from mmccd_cli.evaluation.benchmark import BenchmarkResult, Workplace

_LABEL, _CELL = 42, 11


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
            help="Seconds for the networks of paper: it is run on as many slices as fit, "
            "and multiplied.",
        ),
    ] = 180.0,
    model: options.ModelOptions,
    console: JsonConsole,
) -> None:
    """Measure what fast, balanced and paper cost on this machine, beside what they must cost."""
    with tempfile.TemporaryDirectory(prefix="mmccd-") as folder:
        from mmccd_cli.evaluation.benchmark import run_benchmark
        from mmccd_cli.outputs.record import to_json

        place = _workplace(subject, model, Path(folder))
        with console.progress() as progress:
            result = run_benchmark(place, budget_s=budget, report=progress.begin)
        if console.as_json:
            console.result(to_json(_record(result)))
        else:
            for line in table(result):
                console.result(line)


def _workplace(subject: Path | None, model: options.ModelOptions, folder: Path) -> Workplace:
    from mmccd_cli.cohort.demo import plan_demo, write_scans
    from mmccd_cli.evaluation.benchmark import Workplace
    from mmccd_cli.inputs.subjects import find_subject

    if subject is None:
        files = plan_demo(folder)
        write_scans(files)
        subject = files.scans["FLAIR"].parent
    segmenter = model.load()
    return Workplace(
        subject=find_subject(subject),
        bundle=segmenter.bundle,
        device=segmenter.device,
        precision=segmenter.precision,
        arguments=[str(subject), *_arguments(model, segmenter.bundle.folder)],
        folder=folder,
        batch_size=model.batch_size,
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
        entry["share_of_rate"] = cost.share_of_rate
        entry["run"]["total_seconds"] = cost.run.total_seconds
    return record


def table(result: BenchmarkResult) -> list[str]:
    """Lay a result out for people, one column a preset."""
    costs, rates = result.presets, result.rates
    convolutions, copies = rates.convolution_gflops, rates.copy_gbytes
    lines = [
        f"{result.subject}: {result.slices} slices with brain; {result.bundle}; "
        f"{result.device}, {result.precision}",
        _row("", [cost.preset for cost in costs]),
        _row("network passes", [f"{cost.passes:,}" for cost in costs]),
        _row("TFLOP", [_short(cost.flops / 1e12) for cost in costs]),
    ]
    stages = dict.fromkeys(stage for cost in costs for stage in cost.run.seconds)
    for stage in stages:
        times = [cost.run.seconds.get(stage, 0.0) for cost in costs]
        lines.append(_row(f"  {stage.replace('_', ' ')}, s", [_short(t) for t in times]))
    further: dict[str, list[float | None]] = {
        "whole process, s": [cost.run.total_seconds for cost in costs],
        "  of the CPU, s": [cost.run.cpu_seconds for cost in costs],
        "peak memory, MiB": [cost.run.peak_memory_mib for cost in costs],
        "networks, device busy, s": [cost.inference_seconds for cost in costs],
        f"floor: operations at {convolutions:.0f} GFLOP/s, s": [c.floor_seconds for c in costs],
        f"floor: bytes at {copies:.0f} GB/s, s": [cost.memory_floor_seconds for cost in costs],
        "share of the convolutions' rate": [cost.share_of_rate for cost in costs],
        "Dice": [cost.run.dice for cost in costs],
        "correlation with paper, before smoothing": [cost.correlation for cost in costs],
        "Dice in the slices in which paper ran": [cost.part_dice for cost in costs],
    }
    lines += [_row(name, [_short(value) for value in values]) for name, values in further.items()]
    lines += [f"{cost.preset}: {cost.part}." for cost in costs if cost.part]
    lines += [
        f"Device: matrices {rates.matrix_gflops:,.0f} GFLOP/s, the network's convolutions alone "
        f"{convolutions:,.0f}, the whole network {rates.network_gflops:,.0f}.",
        f"As published (155 slices x 128 bands x 100 steps, a network ten times as large): "
        f"{result.published.passes:,} passes, {result.published.flops / 1e15:.1f} PFLOP, "
        f"{result.published.seconds / 3600:,.1f} hours; {result.published.measured_passes} passes "
        "were measured and multiplied.",
    ]
    return lines


def _row(label: str, cells: list[str]) -> str:
    return f"{label:{_LABEL}}" + "".join(f"{cell:>{_CELL}}" for cell in cells)


def _short(value: float | None) -> str:
    """Three figures."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("benchmark")(benchmark)
