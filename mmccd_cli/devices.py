"""Which device computes, how many threads and how large a batch."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from mmccd_cli.errors import ComputeError, UsageError

CPU_BATCH = 16
"""Slices a pass on the CPU: larger batches leave the caches and are slower."""
CUDA_BATCH_MAX = 1024


def choose_device(name: str) -> torch.device:
    """Turn the user's word into a device that works.

    Args:
        name: "auto", "cpu", "cuda", "cuda:N" or "mps".

    Returns:
        The device; "auto" takes the first of CUDA, MPS and CPU that works.

    Raises:
        UsageError: Another word.
        ComputeError: A device asked for by name cannot be used.
    """
    if name == "auto":
        for candidate in ("cuda", "mps"):
            try:
                return choose_device(candidate)
            except ComputeError:
                continue
        return torch.device("cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,3})?", name):
        raise UsageError(
            f"unknown device {name!r}", next_step="use --device auto, cpu, cuda, cuda:N or mps"
        )
    try:
        device = torch.device(name)
        # One operation tells more than any query: drivers can be present and kernels missing.
        torch.ones(8, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ComputeError(
            f"the device {name} cannot be used",
            cause=str(error).splitlines()[0],
            next_step="use --device auto, or --device cpu",
        ) from error
    return device


def describe_device(device: torch.device) -> str:
    """Name of the device for people, such as "cpu (8 threads)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def available_threads() -> int:
    """CPU cores that this process may use, by affinity, cgroup quota, SLURM and OpenMP."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    limits = [cores]
    for variable in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        value = os.environ.get(variable, "")
        if value.isdigit() and int(value) > 0:
            limits.append(int(value))
    quota = _cgroup_quota()
    if quota:
        limits.append(quota)
    return max(1, min(limits))


def _cgroup_quota() -> int | None:
    """Whole cores of the cgroup's CPU quota (version 2), rounded up, or None."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError):
        return None


def choose_batch_size(device: torch.device, pixels: int, channels: int) -> int:
    """Slices a pass for a device's free memory.

    Args:
        device: The device.
        pixels: Pixels of one slice.
        channels: Channels of the widest full-resolution feature map.
    """
    if device.type != "cuda":
        return CPU_BATCH
    free, _ = torch.cuda.mem_get_info(device)
    # A pass keeps about 16 full-resolution feature maps of four bytes at a time.
    each = 16 * 4 * pixels * channels
    return int(max(1, min(CUDA_BATCH_MAX, 0.5 * free // each)))
