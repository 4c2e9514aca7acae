"""Training of one translator network after another, resumable and distributable."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from mmccd_cli.config import DiffusionConfig, TrainingConfig, UNetConfig, to_dict
from mmccd_cli.errors import ComputeError, UsageError, WeightsError
from mmccd_cli.training.samples import Sample, SliceDataset, draw_sample
from mmccd_cli.translation.masking import hide, random_band_masks, random_blob_masks
from mmccd_cli.translation.schedule import Schedule
from mmccd_cli.translation.translators import network_name
from mmccd_cli.translation.unet import UNet


@dataclass(frozen=True)
class NetworkSpec:
    """What one network learns.

    Attributes:
        kind: "unet" or "diffusion".
        source: Modality that goes in.
        target: Modality that comes out.
        unet: Its architecture.
    """

    kind: str
    source: str
    target: str
    unet: UNetConfig

    @property
    def name(self) -> str:
        """Name in checkpoints and bundles."""
        return network_name(self.kind, self.source, self.target)


@dataclass(frozen=True)
class Progress:
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


@dataclass(frozen=True)
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


def train_network(
    spec: NetworkSpec,
    dataset: SliceDataset,
    config: TrainingConfig,
    diffusion: DiffusionConfig,
    runtime: Runtime,
    folder: Path,
    *,
    validation: SliceDataset | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Tensor]:
    """Train one network, continuing from its checkpoint where there is one.

    Every sample is drawn by a generator of its own, seeded by (seed, iteration, index in the
    batch). So a run that was killed continues bit for bit, and n processes see what one would.

    Args:
        spec: The network.
        dataset: Slices with healthy tissue.
        config: The recipe.
        diffusion: The noise schedule.
        runtime: Device, precision and processes.
        folder: Where `NAME.checkpoint.pt` and `NAME.csv` are kept.
        validation: Slices on which the loss is watched; nothing is chosen by it.
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
            f"{runtime.world_size} processes cannot share batches of {config.batch_size}",
            next_step="start fewer processes, or use a larger --batch-size",
        )
    torch.manual_seed(config.seed)
    network = UNet(spec.unet).to(runtime.device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    average = {name: value.clone() for name, value in network.state_dict().items()}
    checkpoint = folder / f"{spec.name}.checkpoint.pt"
    recipe = {
        "network": to_dict(spec),
        "training": to_dict(config),
        "diffusion": to_dict(diffusion),
        "subjects": list(dataset.subjects),
    }
    start = _restore(checkpoint, recipe, network, optimizer, average)
    step = _Step(spec, Schedule.from_config(diffusion), config, runtime)
    watch = _Watch(spec.name, config.iterations, start, folder, runtime, report)
    model = _distributed(network, runtime)
    network.train()
    for iteration in range(start, config.iterations):
        _set_learning_rate(optimizer, learning_rate_at(iteration, config))
        if spec.unet.dropout:
            # Dropout draws from the global generator: a resumed run must find it as it was.
            torch.manual_seed(_dropout_seed(config.seed, iteration, runtime.rank))
        loss, weight = step.loss(model, dataset, iteration)
        optimizer.zero_grad(set_to_none=True)
        (loss * _share(weight, runtime)).backward()
        if config.gradient_clip:
            nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
        optimizer.step()
        _update_average(average, network, min(config.ema_decay, (iteration + 1) / (iteration + 10)))
        done = iteration + 1
        if done % runtime.report_every == 0 or done == config.iterations:
            value = None
            if validation is not None and (done % (10 * runtime.report_every) == 0):
                value = _validate(step, network, validation)
            watch.report(done, step.mean_loss(), value)
        if done % runtime.checkpoint_every == 0 or done == config.iterations:
            _save(checkpoint, recipe, network, optimizer, average, done, runtime)
    return {name: value.detach().float().cpu() for name, value in average.items()}


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
    return torch.Generator().manual_seed((seed * 1_000_003 + iteration) * 65_537 + index)


def _dropout_seed(seed: int, iteration: int, rank: int) -> int:
    return (seed * 1_000_003 + iteration) * 65_537 + rank


class _Step:
    """One step's batch and loss, for either kind of network."""

    def __init__(
        self, spec: NetworkSpec, schedule: Schedule, config: TrainingConfig, runtime: Runtime
    ) -> None:
        self.spec, self.schedule, self.config, self.runtime = spec, schedule, config, runtime
        self._loss_sum = torch.zeros((), device=runtime.device)
        self._weight_sum = torch.zeros((), device=runtime.device)

    def loss(
        self,
        model: nn.Module,
        dataset: SliceDataset,
        iteration: int,
        *,
        augment: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Summed error over this process's share of the batch, and the pixels it is summed over."""
        augment = self.config.augment if augment is None else augment
        share = range(self.runtime.rank, self.config.batch_size, self.runtime.world_size)
        drawn = [self._draw(dataset, iteration, index, augment) for index in share]
        inputs = torch.cat([item[0] for item in drawn])
        target = torch.cat([item[1] for item in drawn])
        region = torch.cat([item[2] for item in drawn])
        timesteps = torch.cat([item[3] for item in drawn])
        device = self.runtime.device
        inputs = inputs.to(device, memory_format=torch.channels_last)
        with self.runtime.autocast():
            times = timesteps.to(device) if self.spec.kind == "diffusion" else None
            prediction = model(inputs, times)
        difference = prediction.float() - target.to(device)
        error = difference.square()
        weight = region.to(device)
        total, count = (error * weight).sum(), weight.sum()
        self._loss_sum += total.detach()
        self._weight_sum += count
        return total, count

    def mean_loss(self) -> float:
        """Mean loss since the last call, over all processes."""
        sums = torch.stack([self._loss_sum, self._weight_sum])
        if self.runtime.world_size > 1:
            dist.all_reduce(sums)
        self._loss_sum.zero_()
        self._weight_sum.zero_()
        return float(sums[0] / sums[1].clamp_min(1))

    def _draw(
        self, dataset: SliceDataset, iteration: int, index: int, augment: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input, target, region and time step of one sample, all of batch size one."""
        generator = sample_generator(self.config.seed, iteration, index)
        sample = draw_sample(
            dataset, self.spec.source, self.spec.target, generator, augment=augment
        )
        noise = torch.randn(2, 1, *sample.source.shape[1:], generator=generator)
        seen = ~sample.hidden
        region = sample.healthy if self.config.loss_region == "brain" else seen
        if self.spec.kind == "unet":
            inputs = hide(sample.source, seen, noise[0])
            return inputs, sample.target, region.float(), torch.zeros(1, dtype=torch.long)
        seen = seen & self._random_mask(sample, generator)
        condition = hide(sample.source, seen, noise[0])
        timesteps = self._random_timestep(generator)
        # The lesion's own contrast must not reach the network through x_t either.
        clean = hide(sample.target, ~sample.hidden, noise[1])
        noisy = self.schedule.add_noise(clean, noise[1], timesteps)
        return torch.cat([noisy, condition], dim=1), sample.target, region.float(), timesteps

    def _random_mask(self, sample: Sample, generator: torch.Generator) -> Tensor:
        height, width = sample.source.shape[-2:]
        config = self.config
        if config.blob_radius_px and torch.rand((), generator=generator) < 0.5:
            radius = config.blob_radius_px
            return random_blob_masks(1, height, width, radius_px=radius, generator=generator)
        band = config.band_width
        if config.widest_band > band:
            band += int(torch.randint(config.widest_band - band + 1, (), generator=generator))
        return random_band_masks(1, height, width, band_width=band, generator=generator)

    def _random_timestep(self, generator: torch.Generator) -> Tensor:
        total = self.schedule.num_train_timesteps
        timestep = torch.randint(total, (1,), generator=generator)
        if torch.rand((), generator=generator) < self.config.last_timestep_fraction:
            timestep.fill_(total - 1)
        return timestep


class _Watch:
    """Keeps the log and tells how long it will take; stops a training that has gone wrong."""

    def __init__(
        self,
        name: str,
        iterations: int,
        start: int,
        folder: Path,
        runtime: Runtime,
        report: Callable[[Progress], None],
    ) -> None:
        self.name, self.iterations, self.start = name, iterations, start
        self.path, self.runtime, self.callback = folder / f"{name}.csv", runtime, report
        self.began = time.monotonic()
        self.validation: float | None = None
        if runtime.rank == 0:
            self._trim_log()

    def _trim_log(self) -> None:
        """Drop lines after the checkpoint that this run continues from."""
        rows = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.reader(file) if row and row[0].isdigit()]
        with self.path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["iteration", "loss", "validation_loss"])
            writer.writerows(row for row in rows if int(row[0]) <= self.start)

    def report(self, done: int, loss: float, validation: float | None) -> None:
        """Write a line and call back; raise where the loss is no longer finite."""
        if not math.isfinite(loss):
            raise _diverged(f"the loss of {self.name} is no longer finite at iteration {done}")
        self.validation = validation if validation is not None else self.validation
        if self.runtime.rank:
            return
        with self.path.open("a", newline="") as file:
            text = "" if validation is None else f"{validation:.6g}"
            csv.writer(file).writerow([done, f"{loss:.6g}", text])
        pace = (time.monotonic() - self.began) / max(1, done - self.start)
        left = pace * (self.iterations - done)
        self.callback(Progress(self.name, done, self.iterations, loss, self.validation, left))


def _diverged(message: str) -> ComputeError:
    return ComputeError(
        message,
        cause="the learning rate is too high, or the data hold extreme values",
        next_step="train again with a lower --learning-rate or --precision fp32",
    )


def _validate(step: _Step, network: UNet, validation: SliceDataset) -> float:
    """Loss on fixed samples without augmentation."""
    watched = _Step(step.spec, step.schedule, step.config, step.runtime)
    network.eval()
    with torch.no_grad():
        for index in range(4):
            watched.loss(network, validation, -1 - index, augment=False)
    network.train()
    return watched.mean_loss()


def _share(weight: Tensor, runtime: Runtime) -> Tensor:
    """Factor that turns the mean of all processes' gradients into that of the batch's mean loss."""
    total = weight.clone()
    if runtime.world_size > 1:
        dist.all_reduce(total)
    return runtime.world_size / total.clamp_min(1)


def _distributed(network: UNet, runtime: Runtime) -> nn.Module:
    if runtime.world_size == 1:
        return network
    devices = [runtime.device] if runtime.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=devices)


def _set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def _update_average(average: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    """Move the exponential moving average; its decay rises from 0.1, so early weights fade."""
    for name, value in network.state_dict().items():
        average[name].lerp_(value, 1 - decay)


def _save(
    path: Path,
    recipe: dict[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    iteration: int,
    runtime: Runtime,
) -> None:
    """Write a checkpoint, replacing the older one only when complete and sound."""
    if not all(bool(value.isfinite().all()) for value in network.state_dict().values()):
        raise _diverged(f"weights of {path.name} are no longer finite at iteration {iteration}")
    if runtime.rank:
        return
    state = {
        "recipe": recipe,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average,
        "iteration": iteration,
    }
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def _restore(
    path: Path,
    recipe: dict[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
) -> int:
    """Load a checkpoint of the same recipe; return the steps already done."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["recipe"]
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, UnpicklingError) as error:
        raise WeightsError(
            f"the checkpoint {path} cannot be read",
            cause=" ".join(str(error).split())[:200],
            next_step="delete it to train that network from the start",
        ) from error
    if found != recipe:
        raise WeightsError(
            f"the checkpoint {path} comes from another recipe",
            cause="architecture, training settings, seed or training subjects differ",
            next_step="train into an empty folder, or delete the old checkpoints",
        )
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    for name, value in state["average"].items():
        average[name].copy_(value)
    return int(state["iteration"])
