"""The streaming engine: slices x bands through a cycle in batches, into running sum and count."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

from mmccd_cli.config import SamplingConfig
from mmccd_cli.errors import ComputeError, DeviceMemoryError
from mmccd_cli.progress import silent
from mmccd_cli.translation.masking import band_masks
from mmccd_cli.translation.translators import Cycle

Residual = Literal["signed", "absolute", "squared"]
Batch = TypeVar("Batch")
Result = TypeVar("Result")
Turn = Callable[[Tensor], Tensor]

LEFT_RIGHT = 2
"""The axis of a batch of slices that runs from one side of the brain to the other."""


@dataclass(frozen=True)
class Execution:
    """Where and how networks run.

    Attributes:
        device: The device.
        batch_size: Slices a pass; halved on the way where memory does not suffice.
        autocast: Type of the convolutions, None for float32 throughout, without TF32.
        advance: Called with the number of (slice, band) pairs just done.
        threads: Passes beside each other, each by one thread of the CPU; 1 leaves a pass to as
            many threads as torch takes.
    """

    device: torch.device
    batch_size: int = 32
    autocast: torch.dtype | None = None
    advance: Callable[[int], None] = silent
    threads: int = 1

    def passing(self) -> ExitStack:
        """The context of a forward pass: no gradients, and the precision that was asked for."""
        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        if self.autocast is not None:
            stack.enter_context(torch.autocast(self.device.type, dtype=self.autocast))
        elif self.device.type == "cuda":
            # cuDNN rounds the inputs of float32 convolutions to ten bits unless told not to.
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        return stack

    def take(self, tensor: Tensor) -> Tensor:
        """Copy a tensor from the CPU to the device without waiting for the copy.

        The device works on one batch while the CPU draws the noise of the next.
        """
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def each(
        self, batches: Iterable[Batch], compute: Callable[[Batch], Result]
    ) -> Iterator[Result]:
        """Compute batches, and yield the results in the order of the batches.

        Threads of torch that share a pass of a small network wait for each other longer than they
        compute, and their number changes the last digits. A thread to itself does neither. Nor does
        the thread that takes the results share its work: those it wakes would wait busily.
        """
        if self.threads < 2:
            yield from map(compute, batches)
            return
        running: deque[Future[Result]] = deque()
        pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))
        torch.set_num_threads(1)
        try:
            for batch in batches:
                running.append(pool.submit(compute, batch))
                if len(running) > 2 * self.threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            torch.set_num_threads(self.threads)

    def gather(self, batches: Iterable[Batch], compute: Callable[[Batch], Tensor]) -> Tensor:
        """Compute batches of slices, report them, and join the results on the CPU."""
        results = []
        for result in self.each(batches, compute):
            results.append(result)
            self.advance(len(result))
        return torch.cat(results).cpu()


@dataclass(frozen=True)
class Work:
    """What is to be imagined: pairs of a slice and a mask.

    Attributes:
        pairs: (P, 2) int64, index of the slice and of the mask.
        masks: (M, 1, H, W) bool, True = seen.
    """

    pairs: Tensor
    masks: Tensor


def band_work(brain: Tensor, sampling: SamplingConfig) -> Work:
    """List the pairs of slice and band in which the band hides any brain.

    Args:
        brain: (N, 1, H, W) bool.
        sampling: Width and stride of the bands.
    """
    height, width = brain.shape[-2:]
    stride = sampling.band_stride
    masks = band_masks(height, width, band_width=sampling.band_width, stride=stride)
    inside, hidden = brain.flatten(1).float(), (~masks).flatten(1).float()
    return Work((inside @ hidden.T > 0).nonzero(), masks)


def masked_residual(
    x: Tensor,
    numbers: Tensor,
    work: Work,
    *,
    cycle: Cycle,
    seed: int,
    residual: Residual,
    execution: Execution,
) -> tuple[Tensor, Tensor]:
    """Imagine what is hidden, go back to the source, and average the error where it was hidden.

    Args:
        x: (N, 1, H, W) float32 source slices on the CPU.
        numbers: (N,) int64, each slice's number in the template, which seeds its noise.
        work: Which mask is laid over which slice.
        cycle: The networks, on the device.
        seed: Seed of all noise.
        residual: "signed" is x - imagined.
        execution: Device, batch size and precision.

    Returns:
        The sum of errors and the number of times a pixel was hidden, (N, 1, H, W) float32 each, on
        the CPU. Memory does not grow with the number of masks.

    Source: the paper, Section 3: a = sum_r m_r (g(f(x_r)) - x)^2 / sum_r m_r.
    """
    if cycle.imagine is None:
        raise ValueError("this cycle has no masked translator")
    total = torch.zeros(x.shape, device=execution.device)
    count = torch.zeros(x.shape, device=execution.device)
    on_device, masks = execution.take(x), execution.take(work.masks)
    imagine, backward = cycle.imagine, cycle.backward

    def compute(batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index, mask = execution.take(batch.T.contiguous())
        drawn = _noise(numbers[batch[:, 0]], batch[:, 1], x.shape[-2:], seed=seed)
        noise = execution.take(drawn)
        truth, seen = on_device[index], masks[mask]
        with execution.passing():
            imagined = backward(imagine(truth, seen, noise[:, :1], noise[:, 1:]))
        return index, _error(truth, imagined.float(), residual) * ~seen, (~seen).float()

    for index, error, hidden in execution.each(work.pairs.split(execution.batch_size), compute):
        total.index_add_(0, index, error)
        count.index_add_(0, index, hidden)
        execution.advance(len(index))
    return total.cpu(), count.cpu()


def from_both_sides(compute: Callable[[Turn], Tensor], *, mirrored: bool = True) -> Tensor:
    """Mean of what networks say of a head and of its mirror image, turned back.

    Args:
        compute: Takes what turns slices (N, C, H, W) round, or leaves them, and returns the result
            for slices so turned.
        mirrored: Whether to look at the mirror image at all.
    """
    found = compute(lambda slices: slices)
    if not mirrored:
        return found
    again = compute(lambda slices: slices.flip(LEFT_RIGHT))
    return (found + again.flip(LEFT_RIGHT)) / 2


def plain_residual(x: Tensor, cycle: Cycle, *, residual: Residual, execution: Execution) -> Tensor:
    """Translate there and back without hiding anything ("Cyclic U-Net").

    Args:
        x: (N, 1, H, W) float32 on the CPU.
        cycle: The networks, on the device.
        residual: "signed" is x - translated.
        execution: Device, batch size and precision.

    Returns:
        (N, 1, H, W) float32 on the CPU.
    """
    forward, backward = cycle.forward, cycle.backward
    if forward is None:
        raise ValueError("this cycle has no plain translator")

    def compute(truth: Tensor) -> Tensor:
        with execution.passing():
            imagined = backward(forward(truth))
        return _error(truth, imagined.float(), residual)

    return execution.gather(execution.take(x).split(execution.batch_size), compute)


def _error(truth: Tensor, imagined: Tensor, residual: Residual) -> Tensor:
    difference = truth - imagined
    if residual == "signed":
        return difference
    return difference.abs() if residual == "absolute" else difference.square()


def _noise(numbers: Tensor, masks: Tensor, shape: torch.Size, *, seed: int) -> Tensor:
    """(P, 2, H, W) standard normal: every pair of slice and mask has a generator of its own.

    So neither the batch size nor the order nor the device changes what is drawn.
    """
    noise = torch.empty(len(numbers), 2, *shape)
    for row, (number, mask) in enumerate(zip(numbers.tolist(), masks.tolist(), strict=True)):
        state = (seed * 1_000_003 + number) * 65_537 + mask
        torch.randn(2, *shape, generator=torch.Generator().manual_seed(state), out=noise[row])
    return noise


def run_within_memory(compute: Callable[[Execution], Result], execution: Execution) -> Result:
    """Run, halving the batch as long as the device's memory does not suffice.

    Progress is reported once: what a failed attempt had done does not count again.

    Raises:
        DeviceMemoryError: Not even one slice at a time fits.
        ComputeError: The device stopped computing.
    """
    size, reported = execution.batch_size, 0
    while True:
        done = 0

        def advance(count: int) -> None:
            nonlocal done, reported
            done += count
            if done > reported:
                execution.advance(done - reported)
                reported = done

        try:
            return compute(replace(execution, batch_size=size, advance=advance))
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_memory_exhausted(error):
                with explaining_device(execution.device, "a single slice"):
                    raise
            size //= 2
        release_memory(execution.device)


@contextmanager
def explaining_device(device: torch.device, what: str) -> Iterator[None]:
    """Say plainly that a device's memory is full, or that it has stopped computing.

    Args:
        device: The device.
        what: What its memory should hold.

    Raises:
        DeviceMemoryError: Memory ran out in the block.
        ComputeError: The device failed there.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_memory_exhausted(error):
            raise DeviceMemoryError(
                f"The memory of {device} does not suffice for {what}.",
                cause="Other programs occupy the device.",
                next_step="Free it, or use --device cpu.",
            ) from error
        if device.type == "cpu" or not _is_device_failure(error):
            raise
        raise ComputeError(
            f"The device {device} stopped computing.",
            cause=str(error).splitlines()[0],
            next_step="Look at `nvidia-smi` and `mmccd doctor`, or use --device cpu.",
        ) from error


def _is_device_failure(error: BaseException) -> bool:
    """Whether a driver or its libraries failed: not all have a type of their own."""
    words = ("CUDA error", "CUDA driver error", "cuDNN", "CUDNN", "CUBLAS", "MPS backend")
    own = getattr(torch, "AcceleratorError", ())  # which torch has since 2.8
    return isinstance(error, own) or any(word in str(error) for word in words)


def release_memory(device: torch.device) -> None:
    """Give back what the allocator keeps after a failed attempt."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def is_memory_exhausted(error: BaseException) -> bool:
    """Whether memory ran out: only CUDA has an exception of its own for it."""
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )
