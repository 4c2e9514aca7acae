"""The price list: counted, not timed, wherever a number can be checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bundles import choose_few_bands
from typer.testing import CliRunner

from mmccd_cli.cli.app import app
from mmccd_cli.config import FociConfig, RestorationConfig, ScoreConfig, UNetConfig
from mmccd_cli.errors import ComputeError
from mmccd_cli.evaluation import benchmark
from mmccd_cli.evaluation.benchmark import (
    BenchmarkSetup,
    PresetCost,
    benchmark_presets,
    expected_passes,
    run_process,
)
from mmccd_cli.evaluation.passes import counting_passes
from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.inputs.scans import read_scans
from mmccd_cli.inputs.subjects import find_subject
from mmccd_cli.pipeline import Pipeline
from mmccd_cli.translation.unet import UNet
from mmccd_cli.weights.bundle import load_bundle

SMALL = UNetConfig(base_channels=4, channel_multipliers=(1, 2), norm_groups=2)


def test_passes_are_counted_by_slices_and_by_calls_only_while_counting() -> None:
    network = UNet(SMALL)
    with counting_passes() as count:
        network(torch.zeros(3, 1, 8, 8))
        network(torch.zeros(2, 1, 8, 8))
    network(torch.zeros(7, 1, 8, 8))
    assert count.passes == 5
    assert count.slices == {(SMALL, 8, 8): 5}
    assert count.batches == {(SMALL, 8, 8): 2}


@pytest.fixture
def setup(
    bundle: Path, tiny_phantom: Phantom, write_subject: Callable[..., Path], tmp_path: Path
) -> BenchmarkSetup:
    subject = write_subject(tmp_path, tiny_phantom, lesion=True)
    arguments = [str(subject), "--weights", str(bundle), "--device", "cpu", "--threads", "1"]
    return BenchmarkSetup(
        subject=find_subject(subject),
        bundle=load_bundle(bundle),
        arguments=arguments,
        folder=tmp_path,
    )


@pytest.fixture
def without_processes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace what is slow; returns the presets that were run as processes."""
    ran: list[str] = []

    def run(setup: BenchmarkSetup, preset: str) -> PresetCost:
        ran.append(preset)
        return PresetCost(
            preset=preset,
            seconds=6.0,
            inference_seconds=2.0,
            cpu_seconds=4.0,
            peak_memory_mib=500.0,
            dice=0.5,
            device="a device",
        )

    monkeypatch.setattr(benchmark, "choose_sampling", choose_few_bands)
    monkeypatch.setattr(benchmark, "run_process", run)
    return ran


def test_the_passes_that_are_told_have_the_ratio_of_those_that_are_made(
    setup: BenchmarkSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "choose_sampling", choose_few_bands)
    told = expected_passes(setup.bundle, tuple(setup.subject.paths))
    assert tuple(told) == benchmark.BENCHMARKED
    volumes, made = read_scans(setup.subject).volumes, {}
    for preset in told:
        sampling = choose_few_bands(setup.bundle.config.sampling, preset)
        with counting_passes() as count:
            Pipeline(setup.bundle, device="cpu", sampling=sampling).segment(volumes)
        made[preset] = count.passes
    for preset in told:
        assert told[preset] / told["fast"] == pytest.approx(made[preset] / made["fast"], rel=0.15)


def with_score(setup: BenchmarkSetup, score: ScoreConfig) -> BenchmarkSetup:
    """The setup with another score, the only one of every method."""
    config = setup.bundle.config
    scores = {method: (score,) for method in config.scores}
    networks = {
        "restoration": RestorationConfig(unet=replace(SMALL, in_channels=6, out_channels=3)),
        "foci": FociConfig(unet=replace(SMALL, in_channels=15)),
    }
    return replace(
        setup, bundle=replace(setup.bundle, config=replace(config, scores=scores, **networks))
    )


def test_all_networks_of_a_preset_count(setup: BenchmarkSetup) -> None:
    """Restoration and small foci are passes as well, and a mirrored head is seen twice."""
    cycle = ScoreConfig(modalities=("FLAIR",), weights={"cycle:FLAIR": 1.0})
    restored = replace(cycle, weights={"restoration:FLAIR": 1.0})
    with_foci = replace(restored, foci_weight=1.0)
    told = {}
    for name, score in {
        "cycle": cycle,
        "mirrored cycle": replace(cycle, mirrored=("cycle",)),
        "restoration": restored,
        "mirrored restoration": replace(restored, mirrored=("restoration",)),
        "foci": with_foci,
    }.items():
        other = with_score(setup, score).bundle
        told[name] = expected_passes(other, ("FLAIR",))["fast"]
    slices = told["restoration"]
    assert slices > 0
    assert told["mirrored restoration"] == 2 * slices
    assert told["foci"] == 3 * slices
    assert told["mirrored cycle"] == 2 * told["cycle"]


def test_presets_without_a_cycle_are_estimated_and_those_without_networks_run(
    setup: BenchmarkSetup, without_processes: list[str]
) -> None:
    restored = ScoreConfig(modalities=("FLAIR",), weights={"restoration:FLAIR": 1.0})
    costs = [*benchmark_presets(with_score(setup, restored), budget_s=0.0)]
    assert without_processes == ["fast"]
    assert {cost.inference_seconds for cost in costs} == {2.0}
    without_processes.clear()
    plain = replace(restored, weights={"intensity:FLAIR": 1.0})
    costs = [*benchmark_presets(with_score(setup, plain), budget_s=0.0)]
    assert without_processes == ["fast", "balanced", "paper"]
    assert not any(cost.estimated for cost in costs)


@pytest.mark.parametrize("budget_s", [0.0, 1e6])
def test_what_takes_too_long_is_estimated_from_its_passes(
    setup: BenchmarkSetup, without_processes: list[str], budget_s: float
) -> None:
    fast, balanced, paper = benchmark_presets(setup, budget_s=budget_s)
    if budget_s:
        assert without_processes == ["fast", "balanced", "paper"]
        assert not paper.estimated
        assert paper.seconds == 6.0
        return
    assert without_processes == ["fast"]
    assert (fast.estimated, balanced.estimated, paper.estimated) == (False, True, True)
    passes = expected_passes(setup.bundle, tuple(setup.subject.paths))
    assert paper.inference_seconds == pytest.approx(2.0 * passes["paper"] / passes["fast"])
    assert paper.seconds - paper.inference_seconds == pytest.approx(4.0)
    assert (paper.dice, paper.cpu_seconds, paper.peak_memory_mib) == (None, None, None)


def test_each_preset_is_told_before_the_next_is_run(
    setup: BenchmarkSetup, without_processes: list[str]
) -> None:
    costs = benchmark_presets(setup, budget_s=1e6)
    next(costs)
    assert without_processes == ["fast"]


def test_a_process_is_timed_and_scored(setup: BenchmarkSetup) -> None:
    cost = run_process(setup, "fast")
    assert cost.seconds > cost.inference_seconds > 0
    assert (cost.cpu_seconds or 0) > 0
    assert (cost.peak_memory_mib or 0) > 10
    assert 0 < (cost.dice or 0) <= 1
    wrong = replace(setup, arguments=[*setup.arguments, "--threads", "none"])
    with pytest.raises(ComputeError, match="--preset fast") as caught:
        run_process(wrong, "fast")
    assert "--threads" in (caught.value.cause or "")


def test_the_table_and_the_record_say_the_same(
    setup: BenchmarkSetup, without_processes: list[str]
) -> None:
    command = ["benchmark", *setup.arguments, "--budget", "0"]
    record = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert [entry["preset"] for entry in record["presets"]] == ["fast", "balanced", "paper"]
    shown = CliRunner().invoke(app, command)
    assert "process of its own" in shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()[-3:]]
    assert rows[0] == ["fast", "6.0", "4.0", "500", "MiB", "0.500"]
    assert rows[2][:5] == ["paper", f"{record['presets'][2]['seconds']:,.1f}", "-", "-", "-"]
    assert "not run" in shown.stdout
    unknown = CliRunner().invoke(app, [*command, "--precision", "int8"])
    assert unknown.exit_code == 2
    assert "int8" in unknown.stderr
