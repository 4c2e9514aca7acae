"""The one training loop: any network with any loss, resumable and on any number of processes."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from mmccd_cli.config import TrainingConfig
from mmccd_cli.errors import ComputeError, UsageError, WeightsError
from mmccd_cli.files import atomic_path, remove_leftovers, write_atomically
from mmccd_cli.progress import silent
from mmccd_cli.training.runtime import Runtime
from mmccd_cli.translation.blocks import Dropout

VALIDATION_BATCHES = 4
"""The same ones each time."""
_ROW = re.compile(r"([0-9]+),[^,]*,[^,]*")
"""A whole line of a log."""
_UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    UnpicklingError,
)
"""What a file raises that is no checkpoint of this network, or not whole."""


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


TrainingListener = Callable[[TrainingProgress], None]
"""Told now and then how far the training of a network is."""

LossOfBatch = Callable[[nn.Module, Sequence[torch.Generator]], tuple[Tensor, Tensor]]
"""Draws a batch and compares what a network makes of it with what it should.

It is called with the network, on the device, and with one generator for each sample, which decides
all that is random in it. It returns the error summed over the batch, and the number of pixels that
it is summed over.
"""


def draw_batch(
    draw: Callable[[torch.Generator], tuple[Tensor, ...]], generators: Sequence[torch.Generator]
) -> list[Tensor]:
    """Draw samples of batch size one, one for each generator, and join them field by field."""
    return [torch.cat(parts) for parts in zip(*map(draw, generators), strict=True)]


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
    report: TrainingListener = silent,
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
        UsageError: More processes than samples in a batch, or processes that find different
            checkpoints.
        ComputeError: The loss or a weight is no longer finite, memory ran out, or another process
            has ended.
        WeightsError: A checkpoint of another recipe or of other data, or a damaged one, lies in the
            folder.
    """
    if runtime.world_size > config.batch_size:
        raise UsageError(
            f"{runtime.world_size} processes cannot share batches of {config.batch_size}.",
            next_step="Start fewer processes, or use a larger --batch-size.",
        )
    path = checkpoint_path(folder, name)
    with runtime.explaining():
        network.to(runtime.device).train()
        state = _TrainingState(network, config, runtime)
        state.restore(path, recipe)
        log = TrainingLog(
            folder / f"{name}.csv", state.done, config, runtime=runtime, report=report
        )
        _take_steps(state, loss, log, validation=validation, path=path, recipe=recipe)
    return {key: value.detach().float().cpu() for key, value in state.average.items()}


def _take_steps(
    state: _TrainingState,
    loss: LossOfBatch,
    log: TrainingLog,
    *,
    validation: LossOfBatch | None,
    path: Path,
    recipe: Mapping[str, Any],
) -> None:
    """Take all steps that are left, and keep the checkpoint at `path`."""
    network, config, runtime = state.network, state.config, state.runtime
    model, mean = _distributed(network, config, runtime), _MeanLoss(runtime)
    while state.done < config.iterations:
        # Dropout draws from the global generator: a resumed run must find it as it was, and every
        # process as the only one would.
        torch.manual_seed(_seed_of_sample(config.seed, state.done, 0))
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
    share = range(config.batch_size)[_share(runtime)]
    return [sample_generator(config.seed, iteration, index) for index in share]


def _share(runtime: Runtime) -> slice:
    """Which samples of a batch are this process's."""
    return slice(runtime.rank, None, runtime.world_size)


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


def _distributed(network: nn.Module, config: TrainingConfig, runtime: Runtime) -> nn.Module:
    if runtime.world_size == 1:
        return network
    for module in network.modules():
        if isinstance(module, Dropout):
            module.batch, module.share = config.batch_size, _share(runtime)
    devices = [runtime.device] if runtime.device.type == "cuda" else None
    parallel: Any = nn.parallel.DistributedDataParallel
    # Buffers are constants. Since 2.13 torch has a new name for this, and warns of the old one.
    is_new = "forward_sync_buffers" in signature(parallel).parameters
    unsynced = {"forward_sync_buffers" if is_new else "broadcast_buffers": False}
    distributed: nn.Module = parallel(network, device_ids=devices, **unsynced)
    return distributed


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
        if path.exists():
            self._load(path, recipe)
        done = self.runtime.gather(self.done)
        if len(set(done)) > 1:
            raise UsageError(
                f"The processes of this training do not find the same {path.name}.",
                cause=f"In {path.parent} they find {', '.join(map(str, done))} iterations done.",
                next_step="Give --work a folder that all machines share.",
            )

    def _load(self, path: Path, recipe: Mapping[str, Any]) -> None:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            if found["recipe"] != recipe:
                raise WeightsError(
                    f"The checkpoint {path} comes from another recipe or other data.",
                    cause=f"Not the same: {_differences(found['recipe'], recipe)}.",
                    next_step="Train into an empty folder, or delete the old checkpoints.",
                )
            self._take_over(found)
        except _UNREADABLE as error:
            raise WeightsError(
                f"The checkpoint {path} cannot be read.",
                cause=" ".join(str(error).split())[:200],
                next_step="Delete it to train that network from the start.",
            ) from error

    def _take_over(self, found: Mapping[str, Any]) -> None:
        """Continue from the content of a checkpoint.

        Raises:
            LookupError, RuntimeError, TypeError, ValueError: It lacks something.
        """
        self.network.load_state_dict(found["network"])
        self.optimizer.load_state_dict(found["optimizer"])
        for name, value in self.average.items():
            value.copy_(found["average"][name])
        self.done = int(found["iteration"])


def _differences(found: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """What differs between two recipes, in words: architecture, settings, subjects, slices."""
    names = {**recipe, **found}
    return ", ".join(n.replace("_", " ") for n in names if found.get(n) != recipe.get(n))


class TrainingLog:
    """Keeps the log, tells how long it will take, and stops a training that has gone wrong.

    Lines of the file after the step `start`, where this run begins, are dropped, and so are those
    that a killed run left half.
    """

    def __init__(
        self,
        path: Path,
        start: int,
        config: TrainingConfig,
        *,
        runtime: Runtime,
        report: TrainingListener,
    ) -> None:
        self.path, self.name, self.start = path, path.stem, start
        self.iterations, self.runtime, self.report = config.iterations, runtime, report
        self.validation: float | None = None
        self.began = time.monotonic()
        if runtime.rank:
            return
        remove_leftovers(path)
        lines = ["iteration,loss,validation_loss"]
        if path.exists():
            found = map(_ROW.fullmatch, path.read_text(errors="replace").splitlines())
            lines += [row[0] for row in found if row and int(row[1]) <= start]
        write_atomically(path, "".join(f"{line}\n" for line in lines).encode())

    def add(self, done: int, loss: float, validation: float | None) -> None:
        """Write the mean loss since the last line, and the validation loss where there is one."""
        if not math.isfinite(loss):
            raise _diverged(f"The loss of {self.name} is no longer finite", done)
        self.validation = validation if validation is not None else self.validation
        if self.runtime.rank:
            return
        text = "" if validation is None else f"{validation:.6g}"
        with self.path.open("a", encoding="ascii") as file:
            file.write(f"{done},{loss:.6g},{text}\n")
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
