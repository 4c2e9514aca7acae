"""The scripts that draw the speed plots run, and say what they should."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import speed_front
import speed_linearity
import speed_roofs
import torch
from bundles import choose_few_bands
from speed_roofs import Clock, cost_of_pass, elements_of, flops_of, measure_rates

from mmccd_cli.config import SamplingConfig, UNetConfig, choose_sampling
from mmccd_cli.evaluation.passes import counting_passes
from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.inputs.subjects import find_subject
from mmccd_cli.training.recipes import RECIPES
from mmccd_cli.translation.engine import Execution, band_work
from mmccd_cli.translation.slices import SliceStack, to_slices
from mmccd_cli.translation.unet import UNet
from mmccd_cli.weights.bundle import load_bundle

CPU = torch.device("cpu")
SMALL = UNetConfig(base_channels=4, channel_multipliers=(1, 2), norm_groups=2)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_linearity_varies_one_thing_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    tiny = UNetConfig(base_channels=2, channel_multipliers=(1,), norm_groups=1, pixel_unshuffle=4)
    command = [str(tmp_path / "lines"), "--device", "cpu", "--slices", "1", "2", "3", "4"]
    speed_linearity.main(command, tiny)
    rows = rows_of(tmp_path / "lines.csv")
    assert len(rows) == 12
    for row in rows:
        passes = int(row["slices"]) * int(row["bands"]) * (int(row["steps"]) + 1)
        assert int(row["passes"]) == passes
    assert (tmp_path / "lines.png").stat().st_size > 5000
    assert capsys.readouterr().out.count("R squared") == 3


def test_a_line_is_found() -> None:
    points = [speed_linearity.Point("steps", 1, 1, n, n, 0.5 + 2.0 * n) for n in (1, 2, 4)]
    assert speed_linearity.line_of(points) == pytest.approx((2.0, 0.5, 1.0))


def test_the_front_holds_what_nothing_beats() -> None:
    means = {"a": (10.0, 0.7), "b": (20.0, 0.6), "c": (20.0, 0.8), "d": (40.0, 0.8)}
    assert speed_front.front(means) == ["a", "c"]


def test_the_front_of_a_subject(
    tiny_phantom: Phantom,
    write_subject: Callable[..., Path],
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(speed_front, "POINTS", ((16, 16, 1), (32, 32, 2)))
    write_subject(tmp_path / "data", tiny_phantom, lesion=True)
    command = [str(tmp_path / "data"), str(tmp_path / "front"), "--weights", str(bundle)]
    speed_front.main([*command, "--device", "cpu"])
    rows = rows_of(tmp_path / "front.csv")
    assert [(row["method"], row["band_width"], row["steps"]) for row in rows] == [
        ("cyclic-unet", "0", "0"),
        ("mmccd", "16", "1"),
        ("mmccd", "32", "2"),
    ]
    passes = [int(row["passes"]) for row in rows]
    assert passes[0] < min(passes[1:])
    assert all(0 < float(row["dice"]) <= 1 for row in rows)
    assert (tmp_path / "front.png").stat().st_size > 5000
    assert "on the front: fast" in capsys.readouterr().out


def test_the_front_scores_each_subject_by_the_weights_of_its_fold(
    tiny_phantom: Phantom, write_subject: Callable[..., Path], tmp_path: Path
) -> None:
    for name in "abc":
        write_subject(tmp_path / "data", tiny_phantom, "brats", id=name, lesion=True)
    folds = tmp_path / "folds.json"
    folds.write_text('{"one": ["c"], "two": ["a", "b"]}')
    options = argparse.Namespace(data=tmp_path / "data", folds=folds)
    found = [(weights, [s.id for s in own]) for weights, own in speed_front.whom(options)]
    assert found == [(str(tmp_path / "one"), ["c"]), (str(tmp_path / "two"), ["a", "b"])]


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
    sampling = SamplingConfig(band_width=16, band_stride=8)
    costs = []
    for mask in (brain, np.pad(brain, [(n // 2, n // 2) for n in brain.shape])):
        stack = to_slices(mask.astype(np.float32), mask, multiple=16)
        pairs = band_work(torch.from_numpy(stack.brain), sampling).pairs
        costs.append((stack.data.shape, len(pairs)))
    assert costs[0] == costs[1]


# Roofs


def test_the_cost_of_a_pass_is_that_of_its_convolutions() -> None:
    """One layer is enough to say it by hand: 3 x 3 x 1 x 4 products a pixel in the stem."""
    cost = cost_of_pass(SMALL, 8, 8)
    assert cost.flops > 2 * 9 * 1 * 4 * 8 * 8
    assert cost_of_pass(SMALL, 16, 8).flops == 2 * cost.flops
    network = UNet(SMALL)
    assert cost.parameters == sum(p.numel() for p in network.parameters())
    with counting_passes() as count:
        network(torch.zeros(3, 1, 8, 8))
        network(torch.zeros(2, 1, 8, 8))
    assert flops_of(count) == 5 * cost.flops
    assert elements_of(count) == 5 * cost.elements + 2 * cost.parameters


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
    monkeypatch.setattr(speed_roofs, "COPIED_ELEMENTS", 1024)
    rates = measure_rates(SMALL, 16, 16, Execution(CPU, batch_size=2))
    assert min(vars(rates).values()) > 0
    layers = [m for m in UNet(SMALL).modules() if isinstance(m, torch.nn.Conv2d)]
    seconds = iter(range(1000))
    monkeypatch.setattr(Clock, "best_of", lambda self, compute, repeats=5: float(next(seconds)) + 1)
    counted = measure_rates(SMALL, 16, 16, Execution(CPU, batch_size=2))
    alone = sum(range(2, 2 + len(layers)))
    assert counted.network_gflops / counted.convolution_gflops == pytest.approx(alone)


def test_slices_that_are_measured_lie_around_the_largest_section() -> None:
    brain = np.zeros((16, 16, 10), dtype=bool)
    for k, half in enumerate((1, 2, 3, 5, 7, 6, 4, 2), start=1):
        brain[8 - half : 8 + half, 4:12, k] = True
    stack = to_slices(brain.astype(np.float32), brain)
    flops = np.full(len(stack), 10)
    assert speed_roofs.levels_within(stack, flops, 35).tolist() == [4, 5, 6]
    assert speed_roofs.levels_within(stack, flops, 9).tolist() == []
    assert len(speed_roofs.levels_within(stack, flops, 1e9)) == len(stack)
    lesion = np.zeros_like(brain)
    lesion[8, 8, 2:4] = lesion[7, 8, 3] = True
    assert speed_roofs.levels_within(stack, flops, 30, lesion).tolist() == [2, 3, 4]


@pytest.mark.parametrize("share", [0.0, 0.4, 10.0])
def test_paper_is_multiplied_from_the_slices_that_fit(
    tiny_phantom: Phantom,
    write_subject: Callable[..., Path],
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
) -> None:
    monkeypatch.setattr(speed_roofs, "choose_sampling", choose_few_bands)
    subject = find_subject(write_subject(tmp_path, tiny_phantom, lesion=True))
    study = speed_roofs.Study(subject, load_bundle(bundle), device=CPU, precision="fp32")
    flops, passes = study.expected("paper")
    rates = speed_roofs.DeviceRates(100.0, 50.0, 40.0, 10.0)
    seen = speed_roofs.levels_within

    def levels(stack: SliceStack, flops: np.ndarray, affordable: float, lesion: np.ndarray) -> Any:
        return seen(stack, flops, share * float(flops.sum()), lesion)

    monkeypatch.setattr(speed_roofs, "levels_within", levels)
    fast, balanced, paper = speed_roofs.measure(study, rates, 1.0)
    assert fast.passes == 2 * len(study.stack)
    assert (paper.flops, paper.passes) == (flops.sum(), passes)
    for column in (fast, balanced, paper):
        assert column.floor_seconds == pytest.approx(column.flops / 50e9, rel=1e-6)
        assert column.share_of_rate == pytest.approx(column.floor_seconds / column.seconds)
    if not share:
        assert (paper.correlation, paper.part_dice) == (None, None)
        assert "rate of balanced" in (paper.part or "")
        return
    assert (paper.part is None) == (share > 1)
    assert balanced.correlation == pytest.approx(1.0), "untrained networks all say the same"
    assert balanced.part_dice == pytest.approx(paper.part_dice, abs=0.02)
    assert 0.2 < (paper.part_dice or 0) < 1


def test_the_table_of_roofs_is_printed(
    tiny_phantom: Phantom,
    write_subject: Callable[..., Path],
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        speed_roofs, "measure_rates", lambda *a: speed_roofs.DeviceRates(100.0, 50.0, 40.0, 10.0)
    )
    monkeypatch.setattr(speed_roofs, "PUBLISHED_BATCH", 1)
    subject = write_subject(tmp_path, tiny_phantom)
    command = [str(subject), "--weights", str(bundle), "--device", "cpu", "--budget", "0"]
    speed_roofs.main(command)
    text = capsys.readouterr().out
    assert "operations at 50 GFLOP/s" in text
    assert "1,984,000 passes, 21.6 PFLOP" in text
    assert "paper: from the operations" in text
