"""Where a training runs: device, precision, and the processes that share its batches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from mmccd_cli.errors import ComputeError, UsageError
from mmccd_cli.translation.devices import choose_device, cpu_computes_bf16
from mmccd_cli.translation.engine import is_memory_exhausted

STEP_TIMEOUT = timedelta(minutes=10)
"""Longest wait for the others within a step, of which all take the same time."""
WORK_TIMEOUT = timedelta(days=7)
"""Longest wait while the first process works alone: it prepares slices or writes a bundle."""


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
        patient: The processes once more, as a group that waits longer; None for all.
    """

    device: torch.device
    precision: str = "fp32"
    rank: int = 0
    world_size: int = 1
    report_every: int = 50
    checkpoint_every: int = 500
    patient: Any = None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def barrier(self) -> None:
        """Wait until every process has come here, however long one of them works alone."""
        self.gather(None)

    def gather(self, value: object) -> list[Any]:
        """Every process's value, in the order of their ranks; waits as `barrier` does."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with self.explaining():
            dist.all_gather_object(values, value, group=self.patient)
        return values

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """Add up a tensor's values over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def leave(self) -> None:
        """Part from the other processes, after the last step that they take together."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Say plainly that another process has gone, or that memory has run out.

        Raises:
            ComputeError: One of the two happened in the block.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if is_memory_exhausted(error):
                raise ComputeError(
                    f"The memory of {self.device} does not suffice for a step of the training.",
                    cause=_first_line(error),
                    next_step="Use more processes, or a smaller --batch-size and another --out.",
                ) from error
            if self.world_size == 1 or not _is_lost(error):
                raise
            raise ComputeError(
                "Another process of this training has ended or does not answer.",
                cause=_first_line(error),
                next_step="Read what it said, then start all of them again with the same command: "
                "the training goes on from its last checkpoint.",
            ) from error


def make_runtime(device: str, precision: str = "auto") -> Runtime:
    """Choose device and precision; join the process group that `torchrun` announces.

    Args:
        device: "auto", "cpu", "cuda[:N]" or "mps".
        precision: "fp32", "bf16", or "auto": bf16 on CUDA and on CPUs that compute with it.

    Raises:
        UsageError: The variables of `torchrun` are not whole, or there are fewer devices than
            processes.
        ComputeError: The device does not work, or the processes cannot reach each other.
    """
    rank, world_size, local = map(_from_torchrun, ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    chosen = choose_device(_own_device(device, local) if world_size > 1 else device)
    patient = _join(chosen) if world_size > 1 else None
    if precision == "auto":
        fast = chosen.type == "cuda" or (chosen.type == "cpu" and cpu_computes_bf16())
        precision = "bf16" if fast else "fp32"
    return Runtime(
        device=chosen, precision=precision, rank=rank, world_size=world_size, patient=patient
    )


def _from_torchrun(name: str) -> int:
    text = os.environ.get(name, "1" if name == "WORLD_SIZE" else "0")
    if not text.isdecimal():
        raise _not_from_torchrun(f"{name} is {text!r}")
    return int(text)


def _not_from_torchrun(cause: str) -> UsageError:
    return UsageError(
        "The processes of this training cannot be told apart.",
        cause=f"The environment is not what torchrun sets: {cause}.",
        next_step="Start it as `torchrun --nproc-per-node N -m mmccd_cli train ...`, or unset "
        "WORLD_SIZE for one process.",
    )


def _own_device(name: str, local: int) -> str:
    """The device of one of several processes on a machine: each has a GPU of its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cuda":
        return name
    there = torch.cuda.device_count()
    if local >= there:
        raise UsageError(
            f"Process {local + 1} of this machine has no GPU of its own: there are {there}.",
            next_step=f"Start torchrun with --nproc-per-node {max(1, there)}, or use --device cpu.",
        )
    return f"cuda:{local}"


def _join(device: torch.device) -> Any:
    """Join the other processes; return a group of all that waits longer, on the CPU."""
    if device.type not in ("cpu", "cuda"):
        raise UsageError(
            f"Several processes cannot share a training on {device}.",
            next_step="Start one process, or use --device cpu.",
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        if not dist.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=STEP_TIMEOUT)
        return dist.new_group(backend="gloo", timeout=WORK_TIMEOUT)
    except ValueError as error:
        raise _not_from_torchrun(_first_line(error)) from error
    except RuntimeError as error:
        raise ComputeError(
            "The processes of this training do not find each other.",
            cause=_first_line(error),
            next_step="Check that all of them were started, and torchrun's --rdzv-endpoint.",
        ) from error


def _is_lost(error: BaseException) -> bool:
    """Whether an error comes from the connection of processes: Gloo has no type of its own."""
    words = ("gloo", "Connection", "Socket", "Broken pipe", "NCCL")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
