"""Which device computes, in what arithmetic and with how large a batch."""

from __future__ import annotations

import platform
import re

import torch

from mmccd_cli.errors import ComputeError, UsageError
from mmccd_cli.host import free_memory as free_memory_of_host

CPU_BATCH = 4
"""Slices a pass on the CPU: the rate is the same from 4 to 32, and smaller takes less memory."""
ACCELERATOR_BATCH_MAX = 1024
FEATURE_MAPS = 16
"""Full-resolution feature maps of four bytes that a pass keeps at a time, about."""

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Arithmetic of the convolutions: its name, and what autocast calls it."""


def choose_device(name: str | torch.device) -> torch.device:
    """Turn the user's word into a device that works.

    Args:
        name: "auto", "cpu", "cuda", "cuda:N" or "mps"; or what torch calls a device.

    Returns:
        The device; "auto" takes the first of CUDA, MPS and CPU that works.

    Raises:
        UsageError: Another word.
        ComputeError: A device asked for by name cannot be used.
    """
    name = str(name)
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


def describe_device(device: torch.device, threads: int | None = None) -> str:
    """Name of the device for people, such as "cpu (8 threads)"; by default of this thread's."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type != "cpu":
        return str(device)
    return f"cpu ({threads or torch.get_num_threads()} threads)"


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
        return bool(getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)())
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
        largest = getattr(torch.mps, "recommended_max_memory", None)  # since torch 2.5
        return None if largest is None else int(largest() - torch.mps.driver_allocated_memory())
    return free_memory_of_host()
