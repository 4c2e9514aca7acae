"""The one training loop: any network with any loss, resumable and on any number of processes."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from mmccd_cli.config import TrainingConfig
from mmccd_cli.errors import ComputeError, UsageError, WeightsError
from mmccd_cli.files import atomic_path, remove_leftovers
from mmccd_cli.progress import silent
from mmccd_cli.translation.devices import choose_device, cpu_computes_bf16

VALIDATION_BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where and how a training runs.

    Attributes:
        device: The device.
        precision: "fp32" or "bf16" (autocast).
        rank: Number of this process.
        world_size: Number of processes; the batch is split evenly over them.
        report_every: Steps between reports.
        checkpoint_every: Steps between checkpoints.
    """

    device: torch.device
    precision: str = "fp32"
    rank: int = 0
    world_size: int = 1
    report_every: int = 50
    checkpoint_every: int = 500

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def barrier(self) -> None:
        """Wait until every process has come here."""
        if self.world_size > 1:
            dist.barrier()

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """Add up a tensor's values over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values


def make_runtime(device: str, precision: str = "auto") -> Runtime:
    """Choose device and precision; join the process group that `torchrun` announces.

    Args:
        device: "auto", "cpu", "cuda[:N]" or "mps".
        precision: "fp32", "bf16", or "auto": bf16 on CUDA and on CPUs that compute with it.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), os.environ.get("LOCAL_RANK", "0")
    if world_size > 1 and device == "auto" and torch.cuda.is_available():
        device = f"cuda:{local}"
    chosen = choose_device(device)
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    if precision == "auto":
        fast = chosen.type == "cuda" or (chosen.type == "cpu" and cpu_computes_bf16())
        precision = "bf16" if fast else "fp32"
    return Runtime(device=chosen, precision=precision, rank=rank, world_size=world_size)


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """State of a running training, for a progress display.

    Attributes:
        network: Name of the network.
        iteration: Steps done.
        iterations: Steps in all.
        loss: Mean training loss since the last report.
        validation: Latest validation loss, or None.
        seconds_left: Estimate for this network.
    """

    network: str
    iteration: int
    iterations: int
    loss: float
    validation: float | None
    seconds_left: float


Report = Callable[[TrainingProgress], None]


LossOfBatch = Callable[[nn.Module, Sequence[torch.Generator]], tuple[Tensor, Tensor]]
"""Draws a batch and compares what a network makes of it with what it should.

It is called with the network, on the device, and with one generator for each sample, which decides
all that is random in it. It returns the error summed over the batch, and the number of pixels that
it is summed over.
"""


def squared_error(output: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error summed where it counts, and how much counts: what a `LossOfBatch` returns.

    Args:
        output: What a network made, any float type.
        target: What it should, float32 of the same shape.
        weight: How much each pixel counts, float32 of the same shape.
    """
    return ((output.float() - target).square() * weight).sum(), weight.sum()


def fit(
    network: nn.Module,
    loss: LossOfBatch,
    config: TrainingConfig,
    *,
    name: str,
    recipe: Mapping[str, Any],
    runtime: Runtime,
    folder: Path,
    validation: LossOfBatch | None = None,
    report: Report = silent,
) -> dict[str, Tensor]:
    """Train one network, continuing from its checkpoint where there is one.

    Every sample is drawn by a generator of its own, seeded by (seed, iteration, index in the
    batch). So a run that was killed continues bit for bit, and n processes see what one would.

    Args:
        network: With its first weights; they change in place.
        loss: Its loss.
        config: Steps, batch, rates, averaging and seed.
        name: Name of the network in files and messages.
        recipe: All that decides the result, as plain values; a checkpoint of another is refused.
        runtime: Device, precision and processes.
        folder: Where `NAME.checkpoint.pt` and `NAME.csv` are kept.
        validation: A loss that is watched; nothing is chosen by it.
        report: Called every `runtime.report_every` steps on the first process.

    Returns:
        The averaged (EMA) weights, float32 on the CPU.

    Raises:
        UsageError: More processes than samples in a batch.
        ComputeError: The loss or a weight is no longer finite.
        WeightsError: A checkpoint of another recipe, or a damaged one, lies in the folder.
    """
    if runtime.world_size > config.batch_size:
        raise UsageError(
            f"{runtime.world_size} processes cannot share batches of {config.batch_size}.",
            next_step="Start fewer processes, or use a larger --batch-size.",
        )
    network.to(runtime.device).train()
    path = checkpoint_path(folder, name)
    state = _TrainingState(network, config, runtime)
    state.restore(path, recipe)
    log = TrainingLog(folder / f"{name}.csv", state.done, config, runtime=runtime, report=report)
    model, mean = _distributed(network, runtime), _MeanLoss(runtime)
    while state.done < config.iterations:
        # Dropout draws from the global generator: a resumed run must find it as it was.
        torch.manual_seed(_seed_of_sample(config.seed, state.done, runtime.rank))
        total, count = loss(model, _generators(config, runtime, state.done))
        mean.add(total, count)
        # The mean of all processes' gradients becomes that of the batch's mean loss.
        everywhere = runtime.sum_over_processes(count.clone()).clamp_min(1)
        state.step(total * (runtime.world_size / everywhere))
        done, last = state.done, state.done == config.iterations
        if done % runtime.report_every == 0 or last:
            value = None
            if validation is not None and done % (10 * runtime.report_every) == 0:
                value = _validate(network, validation, config, runtime=runtime)
            log.add(done, mean.take(), value)
        if done % runtime.checkpoint_every == 0 or last:
            state.save(path, recipe)
    return {key: value.detach().float().cpu() for key, value in state.average.items()}


def checkpoint_path(folder: Path, name: str) -> Path:
    """The file from which the training of a network would continue."""
    return folder / f"{name}.checkpoint.pt"


def learning_rate_at(iteration: int, config: TrainingConfig) -> float:
    """Learning rate of one step: linear warm-up, then cosine decay to zero or constant."""
    if iteration < config.warmup_iterations:
        return config.learning_rate * (iteration + 1) / config.warmup_iterations
    if config.schedule == "constant":
        return config.learning_rate
    span = max(1, config.iterations - config.warmup_iterations)
    progress = (iteration - config.warmup_iterations) / span
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def sample_generator(seed: int, iteration: int, index: int) -> torch.Generator:
    """The generator of one training sample, independent of batch and process."""
    return torch.Generator().manual_seed(_seed_of_sample(seed, iteration, index))


def _seed_of_sample(seed: int, iteration: int, index: int) -> int:
    return (seed * 1_000_003 + iteration) * 65_537 + index


def _generators(config: TrainingConfig, runtime: Runtime, iteration: int) -> list[torch.Generator]:
    """The generators of this process's share of a batch."""
    share = range(runtime.rank, config.batch_size, runtime.world_size)
    return [sample_generator(config.seed, iteration, index) for index in share]


def _validate(
    network: nn.Module, loss: LossOfBatch, config: TrainingConfig, *, runtime: Runtime
) -> float:
    """Loss on the same samples each time."""
    mean = _MeanLoss(runtime)
    network.eval()
    with torch.no_grad():
        for index in range(VALIDATION_BATCHES):
            mean.add(*loss(network, _generators(config, runtime, -1 - index)))
    network.train()
    return mean.take()


def _distributed(network: nn.Module, runtime: Runtime) -> nn.Module:
    if runtime.world_size == 1:
        return network
    devices = [runtime.device] if runtime.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=devices)


class _MeanLoss:
    """Errors and pixels summed up, on the device, until somebody asks for their ratio."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.sums = torch.zeros(2, device=runtime.device)

    def add(self, total: Tensor, count: Tensor) -> None:
        """Count a batch in."""
        self.sums += torch.stack([total.detach(), count])

    def take(self) -> float:
        """Mean loss since the last call, over all processes."""
        total, count = self.runtime.sum_over_processes(self.sums)
        mean = float(total / count.clamp_min(1))
        self.sums.zero_()
        return mean


class _TrainingState:
    """What changes from step to step, and the file that a killed training continues from.

    Attributes:
        done: Steps taken.
        average: Exponential moving average of the weights.
    """

    def __init__(self, network: nn.Module, config: TrainingConfig, runtime: Runtime) -> None:
        self.network, self.config, self.runtime, self.done = network, config, runtime, 0
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.average = {name: value.clone() for name, value in network.state_dict().items()}

    def step(self, loss: Tensor) -> None:
        """Follow the gradient of a loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.done, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.gradient_clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        # The decay rises from 0.1, so that early weights fade.
        decay = min(self.config.ema_decay, (self.done + 1) / (self.done + 10))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)
        self.done += 1

    def save(self, path: Path, recipe: Mapping[str, Any]) -> None:
        """Replace the older checkpoint, whole or not at all, by a sound one."""
        weights = self.network.state_dict()
        if not all(bool(value.isfinite().all()) for value in weights.values()):
            raise _diverged(f"Weights of {path.name} are no longer finite", self.done)
        if self.runtime.rank:
            return
        content = {
            "recipe": dict(recipe),
            "network": weights,
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "iteration": self.done,
        }
        with atomic_path(path) as temporary:
            torch.save(content, temporary)

    def restore(self, path: Path, recipe: Mapping[str, Any]) -> None:
        """Load a checkpoint of the same recipe, where there is one."""
        if self.runtime.rank == 0:
            remove_leftovers(path)
        if not path.exists():
            return
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            its_recipe = found["recipe"]
        except (OSError, RuntimeError, EOFError, ValueError, LookupError, UnpicklingError) as error:
            raise WeightsError(
                f"The checkpoint {path} cannot be read.",
                cause=" ".join(str(error).split())[:200],
                next_step="Delete it to train that network from the start.",
            ) from error
        if its_recipe != recipe:
            raise WeightsError(
                f"The checkpoint {path} comes from another recipe.",
                cause="Architecture, training settings, seed or training subjects differ.",
                next_step="Train into an empty folder, or delete the old checkpoints.",
            )
        self.network.load_state_dict(found["network"])
        self.optimizer.load_state_dict(found["optimizer"])
        for name, value in found["average"].items():
            self.average[name].copy_(value)
        self.done = int(found["iteration"])


class TrainingLog:
    """Keeps the log, tells how long it will take, and stops a training that has gone wrong.

    Lines of the file after the step `start`, where this run begins, are dropped.
    """

    def __init__(
        self, path: Path, start: int, config: TrainingConfig, *, runtime: Runtime, report: Report
    ) -> None:
        self.path, self.name, self.start = path, path.stem, start
        self.iterations, self.runtime, self.report = config.iterations, runtime, report
        self.validation: float | None = None
        self.began = time.monotonic()
        if runtime.rank:
            return
        rows = [["iteration", "loss", "validation_loss"]]
        if path.exists():
            with path.open(newline="") as file:
                found = [row for row in csv.reader(file) if row and row[0].isdigit()]
            rows += [row for row in found if int(row[0]) <= start]
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)

    def add(self, done: int, loss: float, validation: float | None) -> None:
        """Write the mean loss since the last line, and the validation loss where there is one."""
        if not math.isfinite(loss):
            raise _diverged(f"The loss of {self.name} is no longer finite", done)
        self.validation = validation if validation is not None else self.validation
        if self.runtime.rank:
            return
        with self.path.open("a", newline="") as file:
            text = "" if validation is None else f"{validation:.6g}"
            csv.writer(file).writerow([done, f"{loss:.6g}", text])
        pace = (time.monotonic() - self.began) / max(1, done - self.start)
        self.report(
            TrainingProgress(
                network=self.name,
                iteration=done,
                iterations=self.iterations,
                loss=loss,
                validation=self.validation,
                seconds_left=pace * (self.iterations - done),
            )
        )


def _diverged(what: str, iteration: int) -> ComputeError:
    return ComputeError(
        f"{what} at iteration {iteration}.",
        cause="The learning rate is too high, or the data hold extreme values.",
        next_step="Train again with a lower --learning-rate or --precision fp32.",
    )
