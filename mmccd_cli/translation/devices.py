"""Which device computes, how many threads and how large a batch."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

from mmccd_cli.errors import ComputeError, UsageError

CPU_BATCH = 8
"""Slices a pass on the CPU: the rate is the same from 4 to 32, and smaller takes less memory."""
ACCELERATOR_BATCH_MAX = 1024
FEATURE_MAPS = 16
"""Full-resolution feature maps of four bytes that a pass keeps at a time, about."""

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Arithmetic of the convolutions: its name, and what autocast calls it."""


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
            f"The device {name!r} is not known.",
            next_step="Use --device auto, cpu, cuda, cuda:N or mps.",
        )
    try:
        device = torch.device(name)
        # One operation tells more than any query: drivers can be present and kernels missing.
        torch.ones(8, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ComputeError(
            f"The device {name} cannot be used.",
            cause=str(error).splitlines()[0],
            next_step="Use --device auto, or --device cpu.",
        ) from error
    return device


def describe_device(device: torch.device) -> str:
    """Name of the device for people, such as "cpu (8 threads)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def available_threads() -> int:
    """CPU cores that this process may use, by affinity, cgroup quota, SLURM and OpenMP."""
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    limits = [len(affinity(0))]
    for variable in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        value = os.environ.get(variable, "")
        if value.isdigit() and int(value) > 0:
            limits.append(int(value))
    return max(1, min(*limits, _cgroup_quota() or limits[0]))


def _cgroup_quota() -> int | None:
    """Whole cores of the cgroup's CPU quota (version 2), rounded up, or None."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError):
        return None


def choose_precision(name: str, device: torch.device) -> str:
    """Turn the user's word into an arithmetic that the device has.

    Args:
        name: "auto", "fp32", "bf16" or "fp16".
        device: Where the networks run.

    Returns:
        A key of `PRECISIONS`. "auto" is fp16 on CUDA devices with tensor cores and fp32 elsewhere.
        Rounding to the ten bits of fp16 moved a BraTS subject's map by 0.002 at most; the seven
        bits of bf16 moved one voxel of a thousand by more than 0.005, and some at the brain's rim
        across the threshold. So bf16, half as fast again on CPUs that have it, must be asked for.

    Raises:
        UsageError: Another word.
        ComputeError: The device does not compute with it.
    """
    if name == "auto":
        fast_halves = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)
        return "fp16" if fast_halves else "fp32"
    if name not in PRECISIONS:
        raise UsageError(
            f"The precision {name!r} is not known.",
            next_step=f"Use auto, {', '.join(PRECISIONS)}.",
        )
    if name not in _precisions_of(device):
        raise ComputeError(
            f"{describe_device(device)} does not compute with {name}.",
            next_step="Use --precision auto or fp32.",
        )
    return name


def _precisions_of(device: torch.device) -> set[str]:
    if device.type == "cuda":
        return {"fp32", "fp16"} | ({"bf16"} if torch.cuda.is_bf16_supported() else set())
    return {"fp32", "bf16"} if device.type == "cpu" and cpu_computes_bf16() else {"fp32"}


def cpu_computes_bf16() -> bool:
    """Whether the CPU multiplies bf16 numbers itself; without that they are slower than fp32."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        # On other machines this one is also true where bf16 is only emulated.
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    queries = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, query, lambda: False)() for query in queries)


def choose_batch_size(device: torch.device, pixels: int, channels: int) -> int:
    """Slices a pass for a device's free memory.

    Args:
        device: The device.
        pixels: Pixels of one slice.
        channels: Channels of the widest full-resolution feature map.
    """
    most = CPU_BATCH if device.type == "cpu" else ACCELERATOR_BATCH_MAX
    free = free_memory(device)
    each = FEATURE_MAPS * 4 * pixels * channels
    return most if free is None else int(max(1, min(most, 0.5 * free // each)))


def free_memory(device: torch.device) -> int | None:
    """Bytes that a device has left, None where nobody says."""
    if device.type == "cuda":
        try:
            return int(torch.cuda.mem_get_info(device)[0])
        except RuntimeError:
            return None
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    limits = [_available_memory(), _cgroup_memory()]
    return min((limit for limit in limits if limit is not None), default=None)


def _available_memory() -> int | None:
    """What Linux can give out without swapping."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def cgroup_memory_limit() -> int | None:
    """Bytes that the cgroup (version 2) lets this process use, None without a limit."""
    return _cgroup_number("memory.max")


def _cgroup_memory() -> int | None:
    """What the cgroup's limit leaves."""
    limit, used = cgroup_memory_limit(), _cgroup_number("memory.current")
    return None if limit is None or used is None else max(0, limit - used)


def _cgroup_number(name: str) -> int | None:
    """Return what a file of the cgroup holds; None for "max", or where there is no such file."""
    try:
        return int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
