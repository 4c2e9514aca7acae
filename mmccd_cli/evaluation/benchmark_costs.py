"""What network passes cost: counted operations and bytes, and the rates that a device reaches."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from mmccd_cli.config import UNetConfig
from mmccd_cli.translation.engine import Execution
from mmccd_cli.translation.unet import UNet

_MATRIX = 1024
_COPIED_ELEMENTS = 1 << 25
_REPEATS = 5
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class PassCost:
    """One slice through one network.

    Attributes:
        flops: Floating-point operations; a multiplication and an addition are two.
        elements: Numbers that its convolutions read and write, each once.
        parameters: Numbers that a batch reads besides.
    """

    flops: int
    elements: int
    parameters: int


@cache
def cost_of_pass(config: UNetConfig, height: int, width: int) -> PassCost:
    """Count a pass of one slice of height x width through an architecture."""
    network = UNet(config).eval()
    elements = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal elements
        elements += inputs[0].numel() + output.numel()

    for module in _products(network):
        module.register_forward_hook(add)
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        network(*example(config, 1, height, width, torch.device("cpu")))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return PassCost(int(counter.get_total_flops()), elements, parameters)


def example(
    config: UNetConfig, n: int, height: int, width: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Arguments with which an architecture can be called."""
    x = torch.zeros(n, config.in_channels, height, width, device=device)
    if not config.time_conditioned:
        return (x,)
    return x, torch.zeros(n, dtype=torch.long, device=device)


@dataclass
class Tally:
    """The network passes that were made.

    Attributes:
        slices: (Architecture, height, width) -> slices that passed.
        batches: The same -> calls.
    """

    slices: Counter[tuple[UNetConfig, int, int]] = field(default_factory=Counter)
    batches: Counter[tuple[UNetConfig, int, int]] = field(default_factory=Counter)

    @property
    def passes(self) -> int:
        """Slices through networks."""
        return sum(self.slices.values())

    @property
    def flops(self) -> int:
        """Floating-point operations."""
        return sum(cost_of_pass(*kind).flops * n for kind, n in self.slices.items())

    @property
    def elements(self) -> int:
        """Numbers that have to be read or written."""
        moved = sum(cost_of_pass(*kind).elements * n for kind, n in self.slices.items())
        return moved + sum(cost_of_pass(*kind).parameters * n for kind, n in self.batches.items())


@contextmanager
def counting_passes() -> Iterator[Tally]:
    """Count every pass through a `UNet` while the block runs."""
    tally = Tally()

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, UNet):
            n, _, height, width = inputs[0].shape
            tally.slices[module.config, height, width] += n
            tally.batches[module.config, height, width] += 1

    handle = register_module_forward_hook(add)
    try:
        yield tally
    finally:
        handle.remove()


class Clock:
    """Seconds for which a device was busy.

    On the CPU these are the seconds of all threads by their number, so that other programs on the
    same cores do not count; elsewhere the wall clock, once all queued work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self) -> float:
        """Return the time."""
        if self._device.type == "cpu":
            return time.process_time() / torch.get_num_threads()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def best_of(self, compute: Callable[[], object], repeats: int = _REPEATS) -> float:
        """Least seconds of several repetitions, after one to warm up."""
        compute()
        found = []
        for _ in range(repeats):
            began = self()
            compute()
            found.append(self() - began)
        return max(min(found), 1e-9)


@dataclass(frozen=True)
class DeviceRates:
    """What a device reaches at best, in the precision that the networks run in.

    Attributes:
        matrix_gflops: Product of two square matrices.
        convolution_gflops: The network's own convolutions, each alone.
        network_gflops: The whole network, with norms, activations and copies.
        copy_gbytes: Bytes read and written by a large copy.
    """

    matrix_gflops: float
    convolution_gflops: float
    network_gflops: float
    copy_gbytes: float


def measure_rates(config: UNetConfig, height: int, width: int, execution: Execution) -> DeviceRates:
    """Measure a device with an architecture at the size of its slices; takes seconds.

    Args:
        config: The architecture.
        height: Pixels along the second last axis.
        width: Pixels along the last axis.
        execution: Device, batch size and precision.
    """
    device, clock = execution.device, Clock(execution.device)
    network = UNet(config).eval().to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs
    arguments = example(config, execution.batch_size, height, width, device)
    with execution.passing():
        whole = clock.best_of(lambda: network(*arguments))
        alone = sum(clock.best_of(call) for call in _calls_of_products(network, arguments))
        matrix = torch.ones(_MATRIX, _MATRIX, device=device)
        product = clock.best_of(lambda: matrix @ matrix)
        source = torch.zeros(_COPIED_ELEMENTS, device=device)
        target = torch.empty_like(source)
        copy = clock.best_of(lambda: target.copy_(source))
    flops = execution.batch_size * cost_of_pass(config, height, width).flops
    return DeviceRates(
        matrix_gflops=2 * _MATRIX**3 / product / 1e9,
        convolution_gflops=flops / alone / 1e9,
        network_gflops=flops / whole / 1e9,
        copy_gbytes=2 * _FLOAT_BYTES * _COPIED_ELEMENTS / copy / 1e9,
    )


def _products(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def _calls_of_products(
    network: nn.Module, arguments: tuple[Tensor, ...]
) -> list[Callable[[], object]]:
    """Each convolution and linear layer on the input that it has within the network."""
    calls: list[Callable[[], object]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        calls.append(lambda: type(module).forward(module, x))

    handles = [module.register_forward_pre_hook(keep) for module in _products(network)]
    network(*arguments)
    for handle in handles:
        handle.remove()
    return calls
