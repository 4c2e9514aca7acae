"""What segmenting a subject costs on this machine, preset by preset, beside what it must cost.

A preset is run as a user runs it, in a process of its own, and once more in this process, where its
passes are counted. What would take too long is measured on a part and multiplied, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mmccd_cli.anomaly.candidates import score_scan
from mmccd_cli.anomaly.mask import mask_from_map
from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.anomaly.score import combine, map_from_score
from mmccd_cli.config import SamplingConfig, ScoreConfig, choose_sampling
from mmccd_cli.evaluation.benchmark_costs import (
    Clock,
    DeviceRates,
    Tally,
    cost_of_pass,
    counting_passes,
    example,
    measure_rates,
)
from mmccd_cli.evaluation.benchmark_process import ProcessRun, run_process
from mmccd_cli.inputs.scans import read_scans
from mmccd_cli.inputs.subjects import Subject
from mmccd_cli.preprocessing.subject import PreparedSubject, prepare_subject
from mmccd_cli.signals import SignalModel
from mmccd_cli.training.dataset import lesion_on_template
from mmccd_cli.training.recipes import RECIPES
from mmccd_cli.translation.devices import PRECISIONS, choose_batch_size, describe_device
from mmccd_cli.translation.engine import Execution, band_work
from mmccd_cli.translation.slices import SliceStack, to_slices
from mmccd_cli.translation.unet import UNet
from mmccd_cli.weights.bundle import Bundle

MEASURED = ("fast", "balanced")
PAPER = "paper"
PUBLISHED_PIXELS = 128
PUBLISHED_SLICES, PUBLISHED_BANDS, PUBLISHED_STEPS = 155, 128, 100
_PUBLISHED_BATCH = 8


@dataclass(frozen=True)
class Workplace:
    """What is measured, and where.

    Attributes:
        subject: Its files; the Dice is told where a segmentation lies beside them.
        bundle: The weights.
        device: Where networks run.
        precision: A key of `PRECISIONS`.
        arguments: Of `mmccd segment`: the subject's folder, and the options that lead to this
            bundle, device and precision.
        folder: Where results may be written.
        batch_size: Slices a pass; None as chosen by free memory.
    """

    subject: Subject
    bundle: Bundle
    device: torch.device
    precision: str
    arguments: Sequence[str]
    folder: Path
    batch_size: int | None = None


@dataclass(frozen=True)
class PresetCost:
    """One column of the table.

    Attributes:
        preset: Its name.
        passes: Slices through networks.
        flops: Their floating-point operations.
        inference_seconds: Seconds for which the device was busy with them; see `Clock`.
        floor_seconds: The operations at the measured rate of the networks' convolutions.
        memory_floor_seconds: The bytes at the measured bandwidth.
        run: The whole process.
        correlation: Of the combined residuals with those of `paper` where that was run, or None.
        part_dice: Overlap with the segmentation in the slices in which `paper` was run, each preset
            with its own threshold for them, on the template's grid; None without either.
        part: What was measured and multiplied, where that is not all.
    """

    preset: str
    passes: int
    flops: int
    inference_seconds: float
    floor_seconds: float
    memory_floor_seconds: float
    run: ProcessRun
    correlation: float | None = None
    part_dice: float | None = None
    part: str | None = None

    @property
    def share_of_rate(self) -> float:
        """Which part of the convolutions' rate inference reaches."""
        return self.floor_seconds / self.inference_seconds


@dataclass(frozen=True)
class PublishedCost:
    """The published network and schedule over a volume of 155 slices, on this device.

    Attributes:
        passes: 155 slices x 128 bands x 100 steps.
        flops: Their floating-point operations.
        seconds: What they would take.
        measured_passes: How many were measured; the rest is multiplication.
    """

    passes: int
    flops: int
    seconds: float
    measured_passes: int


@dataclass(frozen=True)
class BenchmarkResult:
    """All that `mmccd benchmark` prints."""

    subject: str
    bundle: str
    device: str
    precision: str
    slices: int
    rates: DeviceRates
    presets: list[PresetCost]
    published: PublishedCost


def run_benchmark(
    place: Workplace, *, budget_s: float, report: Callable[[str], None] = lambda text: None
) -> BenchmarkResult:
    """Measure all presets.

    Args:
        place: What and where.
        budget_s: Seconds that the networks of `paper` may take: as many slices are done as fit.
        report: Called with what is done next.

    Raises:
        MmccdError: As `mmccd segment` does.
    """
    report("preparing the subject")
    session = Session(place)
    report("measuring the device")
    rates = session.measure_rates()
    runs, found = {}, {}
    for preset in MEASURED:
        report(f"{preset}: a whole process")
        runs[preset] = run_process(place.subject, preset, place.arguments, place.folder)
        report(f"{preset}: its passes")
        found[preset] = session.infer(preset)
    work = session.expected_flops(PAPER)
    affordable = budget_s * found["balanced"].flops / found["balanced"].seconds
    levels = levels_within(session.stack, work, affordable, session.lesion)
    report(f"paper: {len(levels)} of {len(work)} slices")
    comparison = _Comparison(session, levels, work)
    presets = [
        comparison.add(_cost(preset, found[preset], rates, runs[preset])) for preset in MEASURED
    ]
    presets.append(comparison.paper_cost(rates, presets[-1]))
    report("the published schedule: a few passes")
    return BenchmarkResult(
        subject=place.subject.id,
        bundle=f"{place.bundle.config.name} {place.bundle.config.version}",
        device=describe_device(place.device),
        precision=place.precision,
        slices=len(session.stack),
        rates=rates,
        presets=presets,
        published=published_cost(place.device, place.precision),
    )


@dataclass(frozen=True, eq=False)
class Inference:
    """What the networks of a preset gave, and took.

    Attributes:
        signals: Name -> (I, J, K) float32.
        score: How they are combined.
        tally: The passes.
        flops: Their operations.
        seconds: Seconds for which the device was busy.
        bytes_moved: What their convolutions read and write.
    """

    signals: dict[str, NDArray[np.float32]]
    score: ScoreConfig
    tally: Tally
    flops: int
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
        scored = score_scan(self.signals, brain, spacing_mm=spacing_mm, config=self.score)
        return mask_from_map(
            map_from_score(scored.values, scored.threshold, self.score),
            self.score,
            spacing_mm=spacing_mm,
            scan_threshold=scored.threshold,
        )


class Session:
    """A prepared subject whose inference can be measured, as a whole or on some slices.

    Args:
        place: What and where.
    """

    def __init__(self, place: Workplace) -> None:
        self.place = place
        bundle = place.bundle.config
        volumes = dict(read_scans(place.subject).volumes)
        self.prepared: PreparedSubject = prepare_subject(
            volumes, place.bundle.template, bundle.preprocessing, seed=bundle.sampling.seed
        )
        multiple = int(np.lcm(bundle.unet.stride, bundle.denoiser.stride))
        brain = self.prepared.brain
        self.stack: SliceStack = to_slices(brain.astype(np.float32), brain, multiple=multiple)
        self.pixels: tuple[int, int] = self.stack.data.shape[-2:]
        self.lesion = lesion_on_template(place.subject, self.prepared, place.bundle.template)

    def measure_rates(self) -> DeviceRates:
        """Measure the device with the network that most passes go through."""
        place, denoiser = self.place, self.place.bundle.config.denoiser
        batch = place.batch_size or choose_batch_size(
            place.device, int(np.prod(self.pixels)), denoiser.base_channels
        )
        batch = min(batch, len(self.stack))
        execution = Execution(place.device, batch, PRECISIONS[place.precision])
        return measure_rates(denoiser, *self.pixels, execution)

    def sampling(self, preset: str) -> SamplingConfig:
        """The sampling of a preset."""
        return choose_sampling(self.place.bundle.config.sampling, preset)

    def score_config(self, preset: str) -> ScoreConfig:
        """The calibrated score of a preset for the subject's modalities."""
        method = self.sampling(preset).method
        return self.place.bundle.choose_score(method, tuple(self.prepared.images))

    def infer(self, preset: str, levels: NDArray[np.int64] | None = None) -> Inference:
        """Run the networks of a preset over all slices, or over those of some levels only."""
        place, config = self.place, self.score_config(preset)
        model = SignalModel(
            place.bundle,
            self.sampling(preset),
            place.device,
            batch_size=place.batch_size,
            precision=place.precision,
        )
        brain, clock = self.brain_of(levels), Clock(place.device)
        with counting_passes() as tally:
            began = clock()
            values = model.signals(self.prepared.images, brain, config)
            seconds = clock() - began
        width = 4 if place.precision == "fp32" else 2
        return Inference(values, config, tally, tally.flops, seconds, width * tally.elements)

    def brain_of(self, levels: NDArray[np.int64] | None) -> NDArray[np.bool_]:
        """The brain, or what lies of it in some levels."""
        if levels is None or len(levels) == len(self.stack):
            return self.prepared.brain
        part = np.zeros_like(self.prepared.brain)
        part[:, :, levels] = self.prepared.brain[:, :, levels]
        return part

    def expected_flops(self, preset: str) -> NDArray[np.int64]:
        """(N,) operations of each slice's first pass over all cycles, without running any."""
        bundle, sampling = self.place.bundle.config, self.sampling(preset)
        backward = cost_of_pass(bundle.unet, *self.pixels).flops
        denoiser = cost_of_pass(bundle.denoiser, *self.pixels).flops
        pairs = band_work(torch.from_numpy(self.stack.brain), sampling).pairs[:, 0]
        each = sampling.num_inference_steps * denoiser + backward
        cycles = len(self.score_config(preset).sources)
        return np.bincount(pairs.numpy(), minlength=len(self.stack)) * each * cycles


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


class _Comparison:
    """`paper` on as many slices as there is time for, and the other presets on the same."""

    def __init__(
        self, session: Session, levels: NDArray[np.int64], flops: NDArray[np.int64]
    ) -> None:
        self.session, self.levels, self.flops = session, levels, int(flops.sum())
        self.whole = len(levels) == len(session.stack)
        self.inside = session.brain_of(levels)
        self.paper = session.infer(PAPER, levels) if len(levels) else None

    def add(self, cost: PresetCost) -> PresetCost:
        """Say of a preset how it compares with `paper` on the same slices."""
        if self.paper is None:
            return cost
        own, inside = self.session.infer(cost.preset, self.levels), self.inside
        both = np.corrcoef(own.combined[inside], self.paper.combined[inside])
        return replace(cost, correlation=float(both[0, 1]), part_dice=self._dice(own))

    def _dice(self, found: Inference) -> float | None:
        truth = self.session.lesion & self.inside
        if not truth.any():
            return None
        spacing = self.session.place.bundle.template.spacing_mm
        return float(overlap(found.mask(self.inside, spacing), truth).dice)

    def paper_cost(self, rates: DeviceRates, balanced: PresetCost) -> PresetCost:
        """The column of `paper`: measured, or the part that was, multiplied by its operations."""
        place = self.session.place
        if self.whole and self.paper is not None:
            run = run_process(place.subject, PAPER, place.arguments, place.folder)
            return self._of_paper(_cost(PAPER, self.paper, rates, run))
        if self.paper is None:
            measured, part = balanced, "from the operations and the rate of balanced"
        else:
            measured = self._of_paper(_cost(PAPER, self.paper, rates, balanced.run))
            count, all_slices = len(self.levels), len(self.session.stack)
            part = f"networks on {count} of {all_slices} slices, multiplied"
        factor = self.flops / measured.flops
        inference = factor * measured.inference_seconds
        steps = self.session.sampling(PAPER).num_inference_steps
        bundle = place.bundle.config
        pair = steps * cost_of_pass(bundle.denoiser, *self.session.pixels).flops
        pair += cost_of_pass(bundle.unet, *self.session.pixels).flops
        return replace(
            measured,
            preset=PAPER,
            passes=self.flops // pair * (steps + 1),
            flops=self.flops,
            inference_seconds=inference,
            floor_seconds=factor * measured.floor_seconds,
            memory_floor_seconds=factor * measured.memory_floor_seconds,
            run=ProcessRun({**balanced.run.seconds, "inference": inference}),
            part=part,
        )

    def _of_paper(self, cost: PresetCost) -> PresetCost:
        assert self.paper is not None
        return replace(cost, correlation=1.0, part_dice=self._dice(self.paper))


def _cost(preset: str, found: Inference, rates: DeviceRates, run: ProcessRun) -> PresetCost:
    return PresetCost(
        preset=preset,
        passes=found.tally.passes,
        flops=found.flops,
        inference_seconds=found.seconds,
        floor_seconds=found.flops / rates.convolution_gflops / 1e9,
        memory_floor_seconds=found.bytes_moved / rates.copy_gbytes / 1e9,
        run=run,
    )


def published_cost(device: torch.device, precision: str) -> PublishedCost:
    """Time the published network on a few passes and multiply by its schedule."""
    config, size = RECIPES[PAPER].denoiser, PUBLISHED_PIXELS
    network = UNet(config).eval().to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs
    batch = _PUBLISHED_BATCH if device.type == "cpu" else 32 * _PUBLISHED_BATCH
    arguments, repeats = example(config, batch, size, size, device), 2
    with Execution(device, batch, PRECISIONS[precision]).passing():
        seconds = Clock(device).best_of(lambda: network(*arguments), repeats)
    passes = PUBLISHED_SLICES * PUBLISHED_BANDS * PUBLISHED_STEPS
    return PublishedCost(
        passes=passes,
        flops=passes * cost_of_pass(config, size, size).flops,
        seconds=seconds * passes / batch,
        measured_passes=repeats * batch,
    )
