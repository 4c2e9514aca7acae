"""What the networks of each preset must cost on this machine, beside what they do cost.

python speed_roofs.py SUBJECT
python speed_roofs.py SUBJECT --weights DIR --device cuda --budget 600

Prints a table: operations and bytes of all passes, the seconds that they would take at the rate of
the networks' own convolutions and at the bandwidth of a large copy (two floors), and the seconds
for which the device was busy. `paper` is run on as many slices as fit into --budget seconds and
multiplied; the other presets are run on the same slices too, and compared with it. The network and
schedule as published are timed on a few passes and multiplied. `mmccd benchmark` tells what users
ask: whole processes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmccd_cli.anomaly.candidates import find_threshold, mask_at
from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.anomaly.score import combine, smooth
from mmccd_cli.config import SamplingConfig, ScoreConfig, UNetConfig, choose_sampling
from mmccd_cli.evaluation.passes import PassCount, counting_passes
from mmccd_cli.evaluation.tables import text_table
from mmccd_cli.host import available_threads
from mmccd_cli.inputs.scans import read_scans
from mmccd_cli.inputs.subjects import Subject, find_subject
from mmccd_cli.preprocessing.subject import prepare_subject
from mmccd_cli.signals import SignalModel
from mmccd_cli.training.dataset import lesion_on_template
from mmccd_cli.training.recipes import RECIPES
from mmccd_cli.translation.devices import (
    PRECISIONS,
    choose_batch_size,
    choose_device,
    choose_precision,
    describe_device,
)
from mmccd_cli.translation.engine import Execution, band_work
from mmccd_cli.translation.slices import SliceStack, to_slices
from mmccd_cli.translation.unet import UNet
from mmccd_cli.weights.bundle import Bundle, load_bundle
from mmccd_cli.weights.resolve import resolve_weights

MEASURED = ("fast", "balanced")
PAPER = "paper"
PUBLISHED_PIXELS = 128
PUBLISHED_SLICES, PUBLISHED_BANDS, PUBLISHED_STEPS = 155, 128, 100
PUBLISHED_BATCH = 8

MATRIX = 1024
COPIED_ELEMENTS = 1 << 25
REPEATS = 5
FLOAT_BYTES = 4


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
    return x, torch.zeros(1, dtype=torch.long, device=device)


@contextmanager
def pass_by_pass(device: torch.device) -> Iterator[int]:
    """Give torch one thread on a CPU, as each pass has; yields how many run beside each other."""
    if device.type != "cpu":
        yield 1
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


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

    def best_of(self, compute: Callable[[], object], repeats: int = REPEATS) -> float:
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
        copy_gbytes: Bytes read and written by a large copy, of one thread.
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
    with execution.passing(), pass_by_pass(device) as threads:
        whole = clock.best_of(lambda: network(*arguments)) / threads
        products = _calls_of_products(network, arguments)
        alone = sum(clock.best_of(call) for call in products) / threads
        matrix = torch.ones(MATRIX, MATRIX, device=device)
        product = clock.best_of(lambda: matrix @ matrix) / threads
        source = torch.zeros(COPIED_ELEMENTS, device=device)
        target = torch.empty_like(source)
        copy = clock.best_of(lambda: target.copy_(source))
    flops = execution.batch_size * cost_of_pass(config, height, width).flops
    return DeviceRates(
        matrix_gflops=2 * MATRIX**3 / product / 1e9,
        convolution_gflops=flops / alone / 1e9,
        network_gflops=flops / whole / 1e9,
        copy_gbytes=2 * FLOAT_BYTES * COPIED_ELEMENTS / copy / 1e9,
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


def flops_of(count: PassCount) -> int:
    """Floating-point operations of counted passes."""
    return sum(cost_of_pass(*kind).flops * n for kind, n in count.slices.items())


def elements_of(count: PassCount) -> int:
    """Numbers that counted passes have to read or write."""
    moved = sum(cost_of_pass(*kind).elements * n for kind, n in count.slices.items())
    return moved + sum(cost_of_pass(*kind).parameters * n for kind, n in count.batches.items())


@dataclass(frozen=True, eq=False, kw_only=True)
class Inference:
    """What the networks of a preset gave, and took.

    Attributes:
        signals: Name -> (I, J, K) float32.
        score: How they are combined.
        count: The passes.
        seconds: Seconds for which the device was busy.
        bytes_moved: What their convolutions read and write.
    """

    signals: dict[str, NDArray[np.float32]]
    score: ScoreConfig
    count: PassCount
    seconds: float
    bytes_moved: int

    @property
    def combined(self) -> NDArray[np.float32]:
        """(I, J, K) the weighted sum of the signals, not smoothed."""
        return combine(self.signals, self.score.weights)

    def mask(
        self, brain: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
    ) -> NDArray[np.bool_]:
        """(I, J, K) what the brain's own threshold cuts out, on the template's grid."""
        smoothed = smooth(self.signals, brain, spacing_mm=spacing_mm, config=self.score)
        return mask_at(smoothed, find_threshold(smoothed, self.score), self.score)


@dataclass(frozen=True, kw_only=True)
class Roofs:
    """One column of the table.

    Attributes:
        preset: Its name.
        passes: Slices through networks.
        flops: Their floating-point operations.
        seconds: Seconds for which the device was busy with them.
        floor_seconds: The operations at the measured rate of the networks' convolutions.
        memory_floor_seconds: The bytes at the measured bandwidth.
        correlation: Of the combined residuals with those of `paper` on the same slices.
        part_dice: Overlap with the segmentation in these slices, each preset with its own
            threshold for them, on the template's grid.
        part: What was measured and multiplied, where that is not all.
    """

    preset: str
    passes: int
    flops: int
    seconds: float
    floor_seconds: float
    memory_floor_seconds: float
    correlation: float | None = None
    part_dice: float | None = None
    part: str | None = None

    @property
    def share_of_rate(self) -> float:
        """Which part of the convolutions' rate the networks reach."""
        return self.floor_seconds / self.seconds


class Study:
    """A prepared subject whose inference can be measured, as a whole or on some slices.

    Args:
        subject: Its files.
        bundle: The weights.
        device: Where networks run.
        precision: A key of `PRECISIONS`.
    """

    def __init__(
        self, subject: Subject, bundle: Bundle, *, device: torch.device, precision: str
    ) -> None:
        self.bundle, self.device, self.precision = bundle, device, precision
        config = bundle.config
        self.prepared = prepare_subject(
            dict(read_scans(subject).volumes),
            bundle.template,
            config.preprocessing,
            seed=config.sampling.seed,
        )
        multiple = int(np.lcm(config.unet.stride, config.denoiser.stride))
        brain = self.prepared.brain
        self.stack: SliceStack = to_slices(brain.astype(np.float32), brain, multiple=multiple)
        self.pixels: tuple[int, int] = self.stack.data.shape[-2:]
        self.lesion = lesion_on_template(subject, self.prepared, bundle.template)

    def rates(self) -> DeviceRates:
        """Measure the device with the network that most passes go through."""
        denoiser = self.bundle.config.denoiser
        batch = choose_batch_size(self.device, int(np.prod(self.pixels)), denoiser.base_channels)
        batch = min(batch, len(self.stack))
        execution = Execution(self.device, batch, PRECISIONS[self.precision])
        return measure_rates(denoiser, *self.pixels, execution)

    def sampling(self, preset: str) -> SamplingConfig:
        """The sampling of a preset."""
        return choose_sampling(self.bundle.config.sampling, preset)

    def score(self, preset: str) -> ScoreConfig:
        """The calibrated score of a preset for the subject's modalities."""
        return self.bundle.choose_score(self.sampling(preset).method, tuple(self.prepared.images))

    def infer(self, preset: str, levels: NDArray[np.int64] | None = None) -> Inference:
        """Run the networks of a preset over all slices, or over those of some levels only."""
        score, clock = self.score(preset), Clock(self.device)
        model = SignalModel(
            self.bundle, self.sampling(preset), self.device, precision=self.precision
        )
        with counting_passes() as count:
            began = clock()
            signals = model.signals(self.prepared.images, self.brain_of(levels), score)
            seconds = clock() - began
        width = FLOAT_BYTES if self.precision == "fp32" else 2
        return Inference(
            signals=signals,
            score=score,
            count=count,
            seconds=seconds,
            bytes_moved=width * elements_of(count),
        )

    def brain_of(self, levels: NDArray[np.int64] | None) -> NDArray[np.bool_]:
        """The brain, or what lies of it in some levels."""
        if levels is None or len(levels) == len(self.stack):
            return self.prepared.brain
        part = np.zeros_like(self.prepared.brain)
        part[:, :, levels] = self.prepared.brain[:, :, levels]
        return part

    def expected(self, preset: str) -> tuple[NDArray[np.int64], int]:
        """(N,) operations of each slice over all cycles of a masked preset, and its passes."""
        bundle, sampling = self.bundle.config, self.sampling(preset)
        steps = sampling.num_inference_steps
        pairs = band_work(torch.from_numpy(self.stack.brain), sampling).pairs[:, 0].numpy()
        each = steps * cost_of_pass(bundle.denoiser, *self.pixels).flops
        each += cost_of_pass(bundle.unet, *self.pixels).flops
        cycles = len(self.score(preset).sources)
        flops = np.bincount(pairs, minlength=len(self.stack)) * each * cycles
        return flops, len(pairs) * (steps + 1) * cycles

    def column(self, preset: str, found: Inference, rates: DeviceRates) -> Roofs:
        """The measurement of a preset beside its floors."""
        flops = flops_of(found.count)
        return Roofs(
            preset=preset,
            passes=found.count.passes,
            flops=flops,
            seconds=found.seconds,
            floor_seconds=flops / rates.convolution_gflops / 1e9,
            memory_floor_seconds=found.bytes_moved / rates.copy_gbytes / 1e9,
        )

    def compared(self, own: Inference, paper: Inference, levels: NDArray[np.int64]) -> dict:
        """How a preset compares with `paper` on the same slices."""
        inside = self.brain_of(levels)
        truth, dice = self.lesion & inside, None
        if truth.any():
            mask = own.mask(inside, self.bundle.template.spacing_mm)
            dice = float(overlap(mask, truth).dice)
        both = np.corrcoef(own.combined[inside], paper.combined[inside])
        return {"correlation": float(both[0, 1]), "part_dice": dice}


def levels_within(
    stack: SliceStack,
    flops: NDArray[np.int64],
    affordable: float,
    lesion: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """The slices around the largest section that fit into so many operations.

    Args:
        stack: The slices that hold brain.
        flops: (N,) operations of each.
        affordable: Operations that there is time for.
        lesion: (I, J, K) bool; its largest section is taken, or the brain's where it has none.

    Returns:
        Their places in the volume, ascending.
    """
    area = stack.brain.sum(axis=(1, 2, 3))
    if lesion is not None and lesion.any():
        area = lesion.sum(axis=(0, 1))[stack.levels]
    nearest_first = np.argsort(np.abs(np.arange(len(stack)) - int(area.argmax())), kind="stable")
    count = int((np.cumsum(flops[nearest_first]) <= affordable).sum())
    return np.sort(stack.levels[nearest_first[:count]])


def measure(study: Study, rates: DeviceRates, budget_s: float) -> Iterator[Roofs]:
    """Measure all presets, `paper` on as many slices as fit into so many seconds."""
    found = {preset: study.infer(preset) for preset in MEASURED}
    columns = {preset: study.column(preset, own, rates) for preset, own in found.items()}
    known = columns[MEASURED[-1]]
    flops, passes = study.expected(PAPER)
    affordable = budget_s * known.flops / known.seconds
    levels = levels_within(study.stack, flops, affordable, study.lesion)
    part: str | None = "from the operations and the rate of balanced"
    if len(levels):
        paper = study.infer(PAPER, levels)
        for preset, column in columns.items():
            same = study.compared(study.infer(preset, levels), paper, levels)
            columns[preset] = replace(column, **same)
        known = replace(study.column(PAPER, paper, rates), **study.compared(paper, paper, levels))
        part = f"{len(levels)} of {len(study.stack)} slices, multiplied"
    yield from columns.values()
    factor = int(flops.sum()) / known.flops
    yield replace(
        known,
        preset=PAPER,
        passes=passes,
        flops=int(flops.sum()),
        seconds=factor * known.seconds,
        floor_seconds=factor * known.floor_seconds,
        memory_floor_seconds=factor * known.memory_floor_seconds,
        part=part if len(levels) < len(study.stack) else None,
    )


def published_schedule(device: torch.device, precision: str) -> str:
    """Time the published network on a few passes and multiply by its schedule, in words."""
    config, size = RECIPES[PAPER].denoiser, PUBLISHED_PIXELS
    network = UNet(config).eval().to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs
    batch = PUBLISHED_BATCH if device.type == "cpu" else 32 * PUBLISHED_BATCH
    arguments, repeats = example(config, batch, size, size, device), 2
    execution = Execution(device, batch, PRECISIONS[precision])
    with execution.passing(), pass_by_pass(device) as threads:
        seconds = Clock(device).best_of(lambda: network(*arguments), repeats) / threads
    passes = PUBLISHED_SLICES * PUBLISHED_BANDS * PUBLISHED_STEPS
    flops = passes * cost_of_pass(config, size, size).flops
    return (
        f"As published ({PUBLISHED_SLICES} slices x {PUBLISHED_BANDS} bands x {PUBLISHED_STEPS} "
        f"steps, a network ten times as large): {passes:,} passes, {flops / 1e15:.1f} PFLOP, "
        f"{seconds * passes / batch / 3600:,.1f} hours; {repeats * batch} passes were measured and "
        "multiplied."
    )


def table(columns: Sequence[Roofs], rates: DeviceRates) -> list[list[str]]:
    """Rows of the table, one column a preset."""
    rows: dict[str, list[float | None]] = {
        "network passes": [c.passes for c in columns],
        "TFLOP": [c.flops / 1e12 for c in columns],
        "networks, device busy, s": [c.seconds for c in columns],
        f"floor: operations at {rates.convolution_gflops:.0f} GFLOP/s, s": [
            c.floor_seconds for c in columns
        ],
        f"floor: bytes at {rates.copy_gbytes:.0f} GB/s, s": [
            c.memory_floor_seconds for c in columns
        ],
        "share of the convolutions' rate": [c.share_of_rate for c in columns],
        "correlation with paper, before smoothing": [c.correlation for c in columns],
        "Dice in the slices in which paper ran": [c.part_dice for c in columns],
    }
    return [[name, *map(_short, values)] for name, values in rows.items()]


def _short(value: float | None) -> str:
    """Three figures."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subject", type=Path, help="folder of a subject")
    parser.add_argument("--weights", help="name, folder or place on the Hub")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--budget", type=float, default=180.0, help="seconds for paper's networks")
    options = parser.parse_args(arguments)
    torch.set_num_threads(available_threads())
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    bundle = load_bundle(resolve_weights(options.weights))
    study = Study(find_subject(options.subject), bundle, device=device, precision=precision)
    rates = study.rates()
    columns = list(measure(study, rates, options.budget))
    title = f"{options.subject.name}: {len(study.stack)} slices with brain; "
    title += f"{bundle.config.name} {bundle.config.version}; {describe_device(device)}, {precision}"
    header = ["", *(column.preset for column in columns)]
    print(text_table(title, header, table(columns, rates)))
    for column in columns:
        if column.part:
            print(f"{column.preset}: {column.part}.")
    print(
        f"Device: matrices {rates.matrix_gflops:,.0f} GFLOP/s, the network's convolutions alone "
        f"{rates.convolution_gflops:,.0f}, the whole network {rates.network_gflops:,.0f}."
    )
    print(published_schedule(device, precision))


if __name__ == "__main__":
    main()
