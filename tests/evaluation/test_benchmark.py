"""The price list: counted, not timed, wherever a number can be checked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import write_tiny_bundle

from mmccd_cli.config import SamplingConfig, UNetConfig, choose_sampling
from mmccd_cli.errors import ComputeError
from mmccd_cli.evaluation import benchmark, benchmark_costs
from mmccd_cli.evaluation.benchmark_costs import (
    Clock,
    DeviceRates,
    cost_of_pass,
    counting_passes,
    measure_rates,
)
from mmccd_cli.evaluation.benchmark_process import REST, ProcessRun, run_process
from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.inputs.subjects import find_subject
from mmccd_cli.training.recipes import RECIPES
from mmccd_cli.translation.engine import Execution, band_work
from mmccd_cli.translation.slices import to_slices
from mmccd_cli.translation.unet import UNet
from mmccd_cli.weights.bundle import load_bundle

CPU = torch.device("cpu")
SMALL = UNetConfig(base_channels=4, channel_multipliers=(1, 2), norm_groups=2)
RATES = DeviceRates(100.0, 50.0, 40.0, 10.0)


# Guards: counts that may fall, but must not rise


@pytest.mark.parametrize(("network", "gflops"), [("unet", 0.508), ("denoiser", 0.512)])
def test_a_pass_of_the_compact_network_costs_no_more(network: str, gflops: float) -> None:
    """Half a GFLOP a slice of 80 x 96 pixels, at which it sees a brain at 2 mm."""
    cost = cost_of_pass(getattr(RECIPES["compact"], network), 80, 96)
    assert 0.9 * gflops < cost.flops / 1e9 < gflops


def test_a_pass_of_the_published_network_costs_what_the_paper_says() -> None:
    cost = cost_of_pass(RECIPES["paper"].denoiser, 128, 128)
    assert cost.flops / 1e9 == pytest.approx(10.9, abs=0.05)
    assert cost.parameters == 6_600_257


@pytest.mark.parametrize(
    ("preset", "pairs", "passes_a_pair"), [("balanced", 8, 2), ("paper", 88, 101)]
)
def test_presets_make_no_more_passes(preset: str, pairs: int, passes_a_pair: int) -> None:
    """Of a slice full of brain: bands on both axes of 80 x 96 pixels, steps forward, one back."""
    sampling = choose_sampling(RECIPES["compact"].sampling, preset)
    brain = torch.ones(1, 1, 80, 96, dtype=torch.bool)
    assert len(band_work(brain, sampling).pairs) <= pairs
    assert sampling.num_inference_steps + 1 <= passes_a_pair


def test_background_around_the_brain_costs_nothing(tiny_phantom: Phantom) -> None:
    """Doubling every side of the volume outside the brain leaves slices and bands as they are."""
    brain = tiny_phantom.brain
    padded = np.pad(brain, [(n // 2, n // 2) for n in brain.shape])
    sampling = SamplingConfig(band_width=16, band_stride=8)
    shapes, pairs = [], []
    for mask in (brain, padded):
        stack = to_slices(mask.astype(np.float32), mask, multiple=16)
        shapes.append(stack.data.shape)
        pairs.append(len(band_work(torch.from_numpy(stack.brain), sampling).pairs))
    assert shapes[0] == shapes[1]
    assert pairs[0] == pairs[1]


# Counting


def test_passes_are_counted_by_slices_and_by_calls() -> None:
    network = UNet(SMALL)
    with counting_passes() as tally:
        network(torch.zeros(3, 1, 8, 8))
        network(torch.zeros(2, 1, 8, 8))
    network(torch.zeros(7, 1, 8, 8))
    cost = cost_of_pass(SMALL, 8, 8)
    assert tally.passes == 5
    assert tally.flops == 5 * cost.flops
    assert tally.elements == 5 * cost.elements + 2 * cost.parameters


def test_the_cost_of_a_pass_is_that_of_its_convolutions() -> None:
    """One layer is enough to say it by hand: 3 x 3 x 1 x 4 products a pixel in the stem."""
    cost = cost_of_pass(SMALL, 8, 8)
    stem = 2 * 9 * 1 * 4 * 8 * 8
    assert cost.flops > stem
    assert cost_of_pass(SMALL, 16, 8).flops == 2 * cost.flops
    assert cost.parameters == sum(p.numel() for p in UNet(SMALL).parameters())


def test_the_best_of_several_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 5.0, 10.0, 12.0, 20.0, 29.0])
    monkeypatch.setattr(Clock, "__call__", lambda self: next(ticks))
    calls: list[int] = []
    assert Clock(CPU).best_of(lambda: calls.append(1), repeats=3) == 2.0
    assert len(calls) == 4


def test_the_clock_of_a_cpu_counts_what_all_threads_do() -> None:
    began = Clock(CPU)()
    sum(range(200_000))
    assert Clock(CPU)() > began


def test_a_network_is_no_faster_than_its_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts calls: the network is one, each of its layers another."""
    monkeypatch.setattr(benchmark_costs, "_COPIED_ELEMENTS", 1024)
    rates = measure_rates(SMALL, 16, 16, Execution(CPU, batch_size=2))
    assert min(vars(rates).values()) > 0
    layers = [m for m in UNet(SMALL).modules() if isinstance(m, torch.nn.Conv2d)]
    seconds = iter(range(1000))
    monkeypatch.setattr(Clock, "best_of", lambda self, compute, repeats=5: float(next(seconds)) + 1)
    counted = measure_rates(SMALL, 16, 16, Execution(CPU, batch_size=2))
    alone = sum(range(2, 2 + len(layers)))
    assert counted.network_gflops / counted.convolution_gflops == pytest.approx(alone)


# A part of paper


def test_slices_that_are_measured_lie_around_the_largest_section() -> None:
    brain = np.zeros((16, 16, 10), dtype=bool)
    for k, half in enumerate((1, 2, 3, 5, 7, 6, 4, 2), start=1):
        brain[8 - half : 8 + half, 4:12, k] = True
    stack = to_slices(brain.astype(np.float32), brain)
    flops = np.full(len(stack), 10)
    assert benchmark.levels_within(stack, flops, 35).tolist() == [4, 5, 6]
    assert benchmark.levels_within(stack, flops, 9).tolist() == []
    assert len(benchmark.levels_within(stack, flops, 1e9)) == len(stack)
    lesion = np.zeros_like(brain)
    lesion[8, 8, 2:4] = lesion[7, 8, 3] = True
    assert benchmark.levels_within(stack, flops, 30, lesion).tolist() == [2, 3, 4]


# The whole


@pytest.fixture(scope="module")
def tiny_place(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., benchmark.Workplace]:
    folder = tmp_path_factory.mktemp("benchmark")
    bundle = load_bundle(write_tiny_bundle(folder / "tiny"))

    def make(subject: Path) -> benchmark.Workplace:
        arguments = [str(subject), "--weights", str(bundle.folder), "--device", "cpu"]
        return benchmark.Workplace(
            find_subject(subject), bundle, CPU, "fp32", [*arguments, "--threads", "1"], folder
        )

    return make


@pytest.fixture
def without_timing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace what is slow; returns the presets that were run as processes."""
    ran: list[str] = []

    def run(subject: Any, preset: str, arguments: Any, folder: Any) -> ProcessRun:
        ran.append(preset)
        return ProcessRun({"read": 1.0, "inference": 2.0, REST: 3.0}, 4.0, 500.0, 0.5)

    monkeypatch.setattr(benchmark, "run_process", run)
    monkeypatch.setattr(benchmark, "measure_rates", lambda *arguments: RATES)
    cost = benchmark.PublishedCost(1_984_000, 10**15, 3600.0, 16)
    monkeypatch.setattr(benchmark, "published_cost", lambda *arguments: cost)
    four_bands = {"num_inference_steps": 2, "band_width": 32, "band_stride": 16}

    def choose(default: SamplingConfig, preset: str) -> SamplingConfig:
        chosen = choose_sampling(default, preset)
        return replace(chosen, **four_bands) if preset == "paper" else chosen

    monkeypatch.setattr(benchmark, "choose_sampling", choose)
    return ran


def test_paper_is_multiplied_from_the_slices_that_fit(
    tiny_place: Any,
    tiny_phantom: Phantom,
    write_subject: Callable[..., Path],
    tmp_path: Path,
    without_timing: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tiny_place(write_subject(tmp_path, tiny_phantom, lesion=True))
    kept: list[Any] = []
    choose = benchmark.levels_within

    def three(stack: Any, flops: Any, affordable: float, lesion: Any) -> Any:
        kept.extend((flops, choose(stack, flops, float(np.sort(flops)[-3:].sum()), lesion)))
        return kept[1]

    monkeypatch.setattr(benchmark, "levels_within", three)
    result = benchmark.run_benchmark(place, budget_s=1.0)
    fast, balanced, paper = result.presets
    assert without_timing == ["fast", "balanced"]
    assert fast.passes == 2 * result.slices
    assert paper.flops == kept[0].sum()
    assert paper.passes % 3 == 0, "two steps forward, one back"
    assert f"{len(kept[1])} of {result.slices} slices" in (paper.part or "")
    assert paper.correlation == 1.0
    assert balanced.correlation == pytest.approx(1.0), "untrained networks all say the same"
    assert balanced.part_dice == pytest.approx(paper.part_dice, abs=0.02)
    assert 0.2 < (paper.part_dice or 0) < 1
    assert paper.run.seconds["inference"] == paper.inference_seconds
    assert paper.run.seconds["read"] == balanced.run.seconds["read"]
    for cost in result.presets:
        assert cost.floor_seconds == pytest.approx(cost.flops / 50e9, rel=1e-6)
        assert cost.share_of_rate == pytest.approx(cost.floor_seconds / cost.inference_seconds)


@pytest.mark.parametrize(("budget_s", "ran"), [(0.0, False), (1e6, True)])
def test_paper_is_run_whole_or_not_at_all(
    tiny_place: Any,
    tiny_phantom: Phantom,
    write_subject: Callable[..., Path],
    tmp_path: Path,
    without_timing: list[str],
    budget_s: float,
    ran: bool,
) -> None:
    place = tiny_place(write_subject(tmp_path, tiny_phantom))
    fast, _, paper = benchmark.run_benchmark(place, budget_s=budget_s).presets
    assert ("paper" in without_timing) is ran
    assert (fast.correlation is not None) is ran
    assert fast.part_dice is None, "without a segmentation"
    assert (paper.part is None) is ran
    session = benchmark.Session(place)
    assert paper.flops == session.expected_flops("paper").sum(), "what was expected is what it took"


def test_a_process_is_timed_and_scored(
    tiny_place: Any,
    tiny_phantom: Phantom,
    write_subject: Callable[..., Path],
    tmp_path: Path,
) -> None:
    subject = write_subject(tmp_path, tiny_phantom, lesion=True)
    place = tiny_place(subject)
    run = run_process(place.subject, "fast", place.arguments, tmp_path)
    assert {"read", "inference", REST} <= set(run.seconds)
    assert run.total_seconds > run.seconds[REST] > 0
    assert run.cpu_seconds is not None
    assert run.cpu_seconds > 0
    assert 0 < (run.dice or 0) <= 1
    with pytest.raises(ComputeError, match="--preset fast") as caught:
        run_process(place.subject, "fast", [*place.arguments, "--threads", "none"], tmp_path)
    assert "--threads" in (caught.value.cause or "")


def test_the_table_and_the_record_say_the_same(
    tiny_phantom: Phantom,
    write_subject: Callable[..., Path],
    tmp_path: Path,
    without_timing: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mmccd_cli.cli.benchmark import benchmark as command

    bundle = write_tiny_bundle(tmp_path / "tiny")
    subject = write_subject(tmp_path, tiny_phantom)
    given = {"weights": str(bundle), "device": "cpu", "threads": "1", "budget": 0.0}
    command(subject, **given, as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert [entry["preset"] for entry in record["presets"]] == ["fast", "balanced", "paper"]
    assert record["presets"][0]["run"]["total_seconds"] == 6.0
    command(subject, **given)
    text = capsys.readouterr().out
    assert f"{record['presets'][1]['passes']:,}" in text
    assert "1,984,000 passes, 1.0 PFLOP, 1.0 hours" in text
    assert "paper: from the operations" in text


def test_an_unknown_precision_is_a_usage_error(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    command = [sys.executable, "-m", "mmccd_cli", "benchmark", str(tmp_path)]
    command += ["--weights", str(bundle), "--precision", "int8"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "precision 'int8'" in done.stderr
