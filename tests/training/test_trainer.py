"""Training resumes bit for bit, is the same on two processes, and stops when it goes wrong."""

from __future__ import annotations

import csv
import errno
import itertools
import math
import os
import socket
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing, nn
from torch import distributed as dist
from training_data import SMALL, SMALL_DENOISER, make_dataset

from mmccd_cli.config import TrainingConfig
from mmccd_cli.errors import ComputeError, UsageError, WeightsError
from mmccd_cli.training import runtime as runtimes
from mmccd_cli.training.networks import NetworkSpec, train_network
from mmccd_cli.training.recipes import RECIPES
from mmccd_cli.training.runtime import Runtime, make_runtime
from mmccd_cli.training.samples import SliceDataset
from mmccd_cli.training.trainer import (
    TrainingProgress,
    _distributed,
    learning_rate_at,
    sample_generator,
)
from mmccd_cli.translation.blocks import Dropout
from mmccd_cli.translation.unet import UNet

PLAIN = NetworkSpec(kind="unet", source="FLAIR", target="T2w", unet=SMALL)
MASKED = replace(PLAIN, kind="diffusion", unet=SMALL_DENOISER)
CONFIG = TrainingConfig(
    iterations=6, batch_size=4, learning_rate=3e-3, warmup_iterations=2, blob_radius_px=6.0
)
RUNTIME = Runtime(device=torch.device("cpu"), report_every=1, checkpoint_every=2)


class Killed(Exception):
    """Stands in for the end of a job's time."""


def train(
    folder: Path,
    spec: NetworkSpec = MASKED,
    config: TrainingConfig = CONFIG,
    runtime: Runtime = RUNTIME,
    *,
    dataset: SliceDataset | None = None,
    stop_at: int | None = None,
    validation: SliceDataset | None = None,
) -> tuple[dict[str, Tensor], list[TrainingProgress]]:
    reports: list[TrainingProgress] = []

    def report(progress: TrainingProgress) -> None:
        reports.append(progress)
        if progress.iteration == stop_at:
            raise Killed

    folder.mkdir(exist_ok=True)
    weights = train_network(
        spec,
        dataset or make_dataset(),
        replace(RECIPES["compact"], training=config),
        runtime=runtime,
        folder=folder,
        validation=validation,
        report=report,
    )
    return weights, reports


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def log_of(folder: Path, spec: NetworkSpec = MASKED) -> list[list[str]]:
    with (folder / f"{spec.name}.csv").open(newline="") as file:
        return list(csv.reader(file))


# Resuming


@pytest.mark.parametrize(
    "spec",
    [PLAIN, MASKED, replace(MASKED, unet=replace(MASKED.unet, dropout=0.3))],
    ids=["plain", "masked", "dropout"],
)
def test_a_killed_training_continues_bit_for_bit(tmp_path: Path, spec: NetworkSpec) -> None:
    straight, _ = train(tmp_path / "straight", spec)
    with pytest.raises(Killed):
        train(tmp_path / "killed", spec, stop_at=5)  # the last checkpoint is at 4
    half_written = f".{spec.name}.checkpoint.pt.01234567.tmp"
    (tmp_path / "killed" / half_written).write_bytes(b"half of a checkpoint")
    resumed, reports = train(tmp_path / "killed", spec)
    assert [report.iteration for report in reports] == [5, 6]
    assert_equal(straight, resumed)
    assert log_of(tmp_path / "killed", spec) == log_of(tmp_path / "straight", spec)
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert left == {f"{spec.name}.checkpoint.pt", f"{spec.name}.csv"}


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first, _ = train(tmp_path)
    again, reports = train(tmp_path)
    assert reports == []
    assert_equal(first, again)


def test_a_checkpoint_of_another_recipe_or_of_other_subjects_is_refused(tmp_path: Path) -> None:
    """A fold's folder must not go on from networks that know the fold's subjects."""
    config = replace(CONFIG, iterations=1)
    train(tmp_path, config=config)
    others: list[dict[str, Any]] = [
        {"config": replace(config, seed=1)},
        {"config": replace(config, learning_rate=1e-3)},
        {"config": replace(config, iterations=8)},
        {"config": replace(config, band_width=8)},
        {"spec": replace(MASKED, unet=replace(MASKED.unet, residual_blocks=2))},
        {"dataset": replace(make_dataset(), subjects=("somebody else",))},
        {"dataset": replace(make_dataset(), sha256="of other slices of the same subjects")},
    ]
    parts = ["training"] * 4 + ["network", "subjects", "slices"]
    for other, part in zip(others, parts, strict=True):
        with pytest.raises(WeightsError, match="another recipe or other data") as caught:
            train(tmp_path, **{"config": config, **other})
        assert caught.value.cause == f"Not the same: {part}."


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / f"{MASKED.name}.checkpoint.pt"
    for content in (b"", b"not a checkpoint", b"PK\x03\x04 cut off"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"checkpoint\.pt cannot be read"):
            train(tmp_path)
    for value in ({"weights": 1}, ["weights"], 1, None):
        torch.save(value, path)
        with pytest.raises(WeightsError, match="cannot be read"):
            train(tmp_path)


@pytest.mark.parametrize("key", ["network", "optimizer", "average", "iteration"])
def test_a_checkpoint_that_lacks_something_is_refused(tmp_path: Path, key: str) -> None:
    """Each part gone, of another kind, or without what it should hold."""
    config = replace(CONFIG, iterations=1)
    train(tmp_path, config=config)
    path = tmp_path / f"{MASKED.name}.checkpoint.pt"
    sound = torch.load(path, weights_only=True)
    for value in (None, "nothing", {}):
        torch.save(sound | {key: value}, path)
        with pytest.raises(WeightsError, match="cannot be read") as caught:
            train(tmp_path, config=config)
        assert caught.value.exit_code == 4
        assert "Delete it" in (caught.value.next_step or "")
    del sound[key]
    torch.save(sound, path)
    with pytest.raises(WeightsError, match="cannot be read"):
        train(tmp_path, config=config)


def test_what_a_kill_left_of_the_log_is_dropped(tmp_path: Path) -> None:
    """A half line may look like one of an earlier step."""
    train(tmp_path / "straight")
    with pytest.raises(Killed):
        train(tmp_path / "killed", stop_at=5)
    log = tmp_path / "killed" / f"{MASKED.name}.csv"
    for rest in ("1", "1,0.2", "9,0.11,\n2,", "\x00\xff,1,\n", "\u00b2,1,\n"):
        log.write_text(log.read_text() + rest)
        half = log.with_name(f".{log.name}.01234567.tmp")
        half.touch()
        train(tmp_path / "killed")
        assert log_of(tmp_path / "killed") == log_of(tmp_path / "straight"), rest
        assert not half.exists()


def test_the_log_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        train(tmp_path, stop_at=5)
    log = tmp_path / f"{MASKED.name}.csv"
    before = log.read_text()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            train(tmp_path)
    assert log.read_text() == before


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_dropout_in_a_share_is_that_of_the_whole_batch(layout: torch.memory_format) -> None:
    x = torch.randn(5, 6, 4, 4).to(memory_format=layout)  # type: ignore[call-overload]
    dropout = Dropout(0.4)
    torch.manual_seed(1)
    expected = dropout(x)
    assert (expected == 0).any()
    for rank in (0, 1):
        dropout.batch, dropout.share = 5, slice(rank, None, 2)
        torch.manual_seed(1)
        assert torch.equal(dropout(x[rank::2]), expected[rank::2])
    assert torch.equal(dropout.eval()(x), x)


def test_a_checkpoint_is_data_and_never_code(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"recipe": Attack()}, tmp_path / f"{MASKED.name}.checkpoint.pt")
    with pytest.raises(WeightsError, match="cannot be read"):
        train(tmp_path)
    assert not (tmp_path / "executed").exists()


# What a training does


def test_the_loss_falls(tmp_path: Path) -> None:
    """T2w is the negative of FLAIR here, which a plain network learns fast."""
    config = replace(CONFIG, iterations=60, learning_rate=1e-2, augment=False, ema_decay=0.5)
    runtime = replace(RUNTIME, report_every=10, checkpoint_every=1000)
    weights, reports = train(tmp_path, PLAIN, config, runtime)
    assert reports[-1].loss < 0.3 * reports[0].loss
    network = UNet(SMALL).eval()
    network.load_state_dict(weights)
    dataset = make_dataset()
    x, y = dataset.values("FLAIR", slice(1, 6)), dataset.values("T2w", slice(1, 6))
    with torch.no_grad():
        error = (network(x) - y)[dataset.healthy[1:]].square().mean()
    assert error < 0.3 * y[dataset.healthy[1:]].square().mean()


def test_the_averaged_weights_are_what_is_saved(tmp_path: Path) -> None:
    """Against the average computed by hand from a checkpoint at every step."""
    config = replace(CONFIG, iterations=5, ema_decay=0.25)
    runtime = replace(RUNTIME, checkpoint_every=1)
    torch.manual_seed(config.seed)
    expected = {n: v.double() for n, v in UNet(MASKED.unet).state_dict().items()}
    path = tmp_path / f"{MASKED.name}.checkpoint.pt"
    for k in range(1, 6):
        if k < 5:
            with pytest.raises(Killed):
                train(tmp_path, config=config, runtime=replace(runtime), stop_at=k + 1)
        else:
            final, _ = train(tmp_path, config=config, runtime=runtime)
        state = torch.load(path, weights_only=True)
        assert state["iteration"] == k
        decay = min(0.25, k / (k + 9))
        for name, value in state["network"].items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    for name, value in final.items():
        torch.testing.assert_close(value.double(), expected[name], atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(final[n], v) for n, v in state["network"].items())


def test_learning_rate() -> None:
    config = TrainingConfig(iterations=110, warmup_iterations=10, learning_rate=1.0)
    rates = [learning_rate_at(i, config) for i in range(110)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[109] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    constant = replace(config, schedule="constant")
    assert learning_rate_at(109, constant) == 1.0
    published = replace(constant, warmup_iterations=0)
    assert learning_rate_at(0, published) == 1.0
    only_warm = replace(config, warmup_iterations=500)
    assert learning_rate_at(109, only_warm) == pytest.approx(0.22)


def test_log_progress_and_validation(tmp_path: Path) -> None:
    config = replace(CONFIG, iterations=12)
    _, reports = train(tmp_path, PLAIN, config, validation=make_dataset(3))
    header, *rows = log_of(tmp_path, PLAIN)
    assert header == ["iteration", "loss", "validation_loss"]
    assert [int(row[0]) for row in rows] == list(range(1, 13))
    assert [bool(row[2]) for row in rows] == [i == 10 for i in range(1, 13)]
    assert [float(row[1]) for row in rows] == pytest.approx([r.loss for r in reports], rel=1e-5)
    assert [r.validation is None for r in reports] == [True] * 9 + [False] * 3
    last = reports[-1]
    assert (last.network, last.iteration, last.iterations) == (PLAIN.name, 12, 12)
    assert last.seconds_left == 0.0 < reports[0].seconds_left


def test_validation_changes_nothing(tmp_path: Path) -> None:
    config = replace(CONFIG, iterations=11)
    dropout = replace(PLAIN, unet=replace(SMALL, dropout=0.2))
    watched, _ = train(tmp_path / "a", dropout, config, validation=make_dataset(3))
    alone, _ = train(tmp_path / "b", dropout, config)
    assert_equal(watched, alone)


def test_generators_of_samples_do_not_repeat() -> None:
    seeds = {
        sample_generator(seed, iteration, index).initial_seed()
        for seed in range(3)
        for iteration in (0, 1, 2, 99_999)
        for index in range(32)
    }
    assert len(seeds) == 3 * 4 * 32


# Going wrong


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    config = replace(CONFIG, learning_rate=1e30, warmup_iterations=0, gradient_clip=0.0)
    with pytest.raises(ComputeError, match="no longer finite") as caught:
        train(tmp_path, config=config)
    assert "learning-rate" in (caught.value.next_step or "")


def test_broken_weights_never_replace_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        train(tmp_path, stop_at=3)
    before = (tmp_path / f"{MASKED.name}.checkpoint.pt").read_bytes()
    step = torch.optim.AdamW.step

    def breaking(self: torch.optim.AdamW, *args: object) -> None:
        step(self)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(float("nan"))

    monkeypatch.setattr(torch.optim.AdamW, "step", breaking)
    runtime = replace(RUNTIME, report_every=100)
    with pytest.raises(ComputeError, match=r"Weights of .* no longer finite at iteration 4"):
        train(tmp_path, runtime=runtime)
    assert (tmp_path / f"{MASKED.name}.checkpoint.pt").read_bytes() == before


def test_more_processes_than_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot share"):
        train(tmp_path, runtime=replace(RUNTIME, world_size=5))


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_asks_once_whether_the_cpu_has_bf16(
    monkeypatch: pytest.MonkeyPatch, fast: bool, precision: str
) -> None:
    monkeypatch.setattr(runtimes, "cpu_computes_bf16", lambda: fast)
    assert make_runtime("cpu").precision == precision
    assert make_runtime("cpu", "fp32").precision == "fp32"


# Several processes

# Five samples cannot be shared evenly; steps are long, so that a wrong gradient shows.
SHARED = replace(CONFIG, iterations=4, batch_size=5, learning_rate=0.1, gradient_clip=0.0)


def plain_descent(
    parameters: Iterator[nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Instead of AdamW, which would not notice gradients of the wrong length."""
    return torch.optim.SGD(parameters, lr=lr)


def run_worker(rank: int, port: int, folder: Path) -> None:
    """What `torchrun` starts, with the environment that it sets."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    warnings.simplefilter("error", FutureWarning)
    torch.set_num_threads(1)
    torch.optim.AdamW = plain_descent  # type: ignore[assignment,misc]
    runtime = replace(make_runtime("cpu", "fp32"), report_every=1, checkpoint_every=2)
    assert (runtime.rank, runtime.world_size) == (rank, 2)
    weights, reports = train(folder, config=SHARED, runtime=runtime)
    losses = [report.loss for report in reports]
    torch.save({"weights": weights, "losses": losses}, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


class OlderParallel(nn.Module):
    """What torch called DistributedDataParallel before 2.13."""

    def __init__(
        self, module: nn.Module, device_ids: object = None, broadcast_buffers: bool = True
    ) -> None:
        super().__init__()
        self.module, self.broadcast_buffers = module, broadcast_buffers


@pytest.mark.parametrize("older", [False, True])
def test_no_torch_warns_of_how_buffers_are_left_alone(
    older: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if older:
        monkeypatch.setattr(nn.parallel, "DistributedDataParallel", OlderParallel)
    dist.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made: Any = _distributed(nn.Linear(2, 2), CONFIG, replace(RUNTIME, world_size=2))
    finally:
        dist.destroy_process_group()
    assert not made.broadcast_buffers


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim, "AdamW", plain_descent)
    alone, reports = train(tmp_path / "alone", config=SHARED)
    shared = tmp_path / "shared"
    shared.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(run_worker, (port, shared), nprocs=2)
    first, second = (torch.load(shared / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    assert max(first["losses"]) > 1.05 * min(first["losses"]), "it moves"
    assert first["losses"] == pytest.approx([report.loss for report in reports], rel=1e-4)
    assert second["losses"] == [], "only the first process reports"
    for name, value in alone.items():
        torch.testing.assert_close(first["weights"][name], value, atol=1e-5, rtol=1e-4)
        assert torch.equal(first["weights"][name], second["weights"][name])
    assert len(log_of(shared)) == 1 + SHARED.iterations
