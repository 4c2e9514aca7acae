"""From the volumes of one subject to its anomaly map: where the image side meets the model side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmccd_cli.anomaly import Score, anomaly_map, score, segment
from mmccd_cli.bundle import Bundle
from mmccd_cli.config import CycleConfig, SamplingConfig, ScoreConfig, to_dict
from mmccd_cli.devices import choose_batch_size, choose_device, describe_device
from mmccd_cli.errors import DataError
from mmccd_cli.inference import (
    Execution,
    band_work,
    masked_residual,
    plain_residual,
    run_within_memory,
    suspicion_work,
)
from mmccd_cli.postprocessing import Lesion, find_lesions
from mmccd_cli.preprocessing.prepare_subject import (
    PreparedSubject,
    Template,
    prepare_subject,
    to_reference_grid,
)
from mmccd_cli.slices import SliceStack, from_slices, to_slices
from mmccd_cli.translation import Cycle
from mmccd_cli.volume import Volume


@dataclass(frozen=True)
class SegmentationResult:
    """What `Segmenter.segment` returns.

    Attributes:
        anomaly_map: (I, J, K) float32 in [0, 1] on the reference's grid.
        mask: (I, J, K) bool on the same grid.
        brain: (I, J, K) bool on the same grid.
        reference: Modality whose grid it is.
        lesions: Components of the mask, the largest first.
        threshold: Value of the map above which a voxel belongs to the mask.
        settings: Everything that changes a number, as plain values.
        notes: Sentences for the user.
        seconds: Stage -> seconds.
    """

    anomaly_map: NDArray[np.float32]
    mask: NDArray[np.bool_]
    brain: NDArray[np.bool_]
    reference: str
    lesions: list[Lesion]
    threshold: float
    settings: dict[str, Any]
    notes: list[str]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Signals:
    """The signals of one subject in template space.

    Attributes:
        values: Name -> (I, J, K) float32, robust standard deviations, positive where anomalous.
        prepared: The subject in template space.
    """

    values: dict[str, NDArray[np.float32]]
    prepared: PreparedSubject


@dataclass(frozen=True)
class MaskOptions:
    """What the user may set of the way from map to mask; None takes the bundle's calibration."""

    threshold: float | None = None
    min_lesion_mm3: float | None = None
    min_fraction_of_largest: float | None = None


@dataclass
class _Clock:
    """Seconds of each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


class Segmenter:
    """A loaded bundle on a device, ready for any number of subjects.

    Args:
        bundle: The weights.
        device: "auto", "cpu", "cuda[:N]" or "mps".
        sampling: Sampling instead of the bundle's.
        batch_size: Slices a pass; None chooses by free memory.

    Example:
        >>> segmenter = Segmenter(load_bundle(folder), device="cpu")
        >>> result = segmenter.segment({"FLAIR": read_nifti(path)[0]})
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "auto",
        sampling: SamplingConfig | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.bundle = bundle
        self.sampling = sampling or bundle.config.sampling
        self.device = choose_device(device)
        self.batch_size = batch_size
        template = bundle.template
        self.template = Template(template.images, template.mask, template.affine)
        self._cycles: dict[str, Cycle] = {}

    def segment(
        self,
        volumes: Mapping[str, Volume],
        *,
        options: MaskOptions = MaskOptions(),
        brain_mask: Volume | None = None,
        skull_strip: str = "auto",
        threads: int = 1,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> SegmentationResult:
        """Segment one subject.

        Args:
            volumes: Modality -> volume; any subset for which the bundle has a calibrated score.
            options: Threshold and cleaning instead of the calibrated ones.
            brain_mask: Brain mask on any grid in the reference's world space.
            skull_strip: "auto", "never" or a method's name.
            threads: Threads of registration; one is bit-identical.
            advance: Called with the pairs of slice and band done, and their number in all.

        Raises:
            DataError: No usable modality, or no brain.
            GeometryError: Contradictory geometry.
            WeightsError: The bundle has no cycle for the subject's modalities.
            ComputeError: Device or memory fails.
        """
        clock = _Clock()
        config = self.choose_score(tuple(volumes))
        signals = self.signals(
            volumes,
            config,
            clock=clock,
            brain_mask=brain_mask,
            skull_strip=skull_strip,
            threads=threads,
            advance=advance,
        )
        with clock.stage("score"):
            scored = self.score(signals, config)
        return self._finish(signals, scored, config, options, clock)

    def choose_score(self, modalities: tuple[str, ...]) -> ScoreConfig:
        """The calibrated score of the bundle that fits the modalities at hand.

        Raises:
            DataError: The bundle has none for them.
        """
        scores = self.bundle.config.scores.get(self.sampling.method, ())
        for candidate in scores:
            if set(candidate.modalities) <= set(modalities):
                return candidate
        known = " or ".join("+".join(c.modalities) for c in scores) or "nothing"
        raise DataError(
            f"the modalities {', '.join(modalities) or '(none)'} do not suffice",
            cause=f"the bundle {self.bundle.config.name} is calibrated for {known}",
            next_step="add one of these modalities, or choose other --weights",
        )

    def signals(
        self,
        volumes: Mapping[str, Volume],
        config: ScoreConfig,
        *,
        clock: _Clock | None = None,
        brain_mask: Volume | None = None,
        skull_strip: str = "auto",
        threads: int = 1,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> Signals:
        """Prepare a subject and compute all signals that a score needs; see `segment`."""
        clock = clock or _Clock()
        prepared = prepare_subject(
            dict(volumes),
            self.template,
            self.bundle.config.preprocessing,
            brain_mask=brain_mask,
            skull_strip=skull_strip,
            seed=self.sampling.seed,
            threads=threads,
        )
        clock.seconds.update(prepared.seconds)
        with clock.stage("inference"):
            values = self.infer(prepared, config, advance)
        return Signals(values, prepared)

    def infer(
        self,
        prepared: PreparedSubject,
        config: ScoreConfig,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, NDArray[np.float32]]:
        """Compute the signals of a prepared subject: cycle residuals and normalised images."""
        scale = self.bundle.config.preprocessing.intensity.scale
        outside = ~prepared.brain
        values: dict[str, NDArray[np.float32]] = {}
        for modality in config.modalities:
            image = prepared.images[modality] / np.float32(scale)
            image[outside] = 0.0
            values[f"intensity:{modality}"] = image
        runs = [self._run(source, prepared, config) for source in config.sources]
        total = sum(run.count for run in runs)
        done = 0

        def count(pairs: int) -> None:
            nonlocal done
            done += pairs
            advance(done, total)

        for run in runs:
            values[f"cycle:{run.cycle.source}"] = run.first_pass(count)
        if self.sampling.second_pass and self.sampling.method == "mmccd":
            scored = score(values, prepared.brain, self._spacing_mm, config)
            suspected = scored.values > scored.threshold
            for run in runs:
                name = f"cycle:{run.cycle.source}"
                values[name] = run.second_pass(values[name], suspected)
        return values

    def score(self, signals: Signals, config: ScoreConfig) -> Score:
        """Combine a subject's signals; see `mmccd_cli.anomaly.score`."""
        return score(signals.values, signals.prepared.brain, self._spacing_mm, config)

    @property
    def _spacing_mm(self) -> tuple[float, float, float]:
        x, y, z = np.diag(self.bundle.template.affine)[:3]
        return float(x), float(y), float(z)

    def _run(self, source: str, prepared: PreparedSubject, config: ScoreConfig) -> _CycleRun:
        bundle = self.bundle.config
        if source not in self._cycles:
            self._cycles[source] = self.bundle.cycle(source, self.sampling, self.device)
        stack = to_slices(prepared.images[source], prepared.brain, multiple=_stride(self.bundle))
        pixels = int(np.prod(stack.data.shape[-2:]))
        batch = self.batch_size or choose_batch_size(
            self.device, pixels, bundle.denoiser.base_channels
        )
        settings = next(c for c in bundle.cycles if c.source == source)
        precision = torch.bfloat16 if self.device.type == "cuda" else None
        execution = Execution(self.device, batch, precision)
        scale = bundle.preprocessing.intensity.scale
        return _CycleRun(
            settings, self._cycles[source], stack, self.sampling, config, execution, scale
        )

    def _finish(
        self,
        signals: Signals,
        scored: Score,
        config: ScoreConfig,
        options: MaskOptions,
        clock: _Clock,
    ) -> SegmentationResult:
        """Bring the score to the reference's grid, calibrate, threshold and describe it."""
        prepared = signals.prepared
        reference, brain = prepared.reference_volume, prepared.reference_brain
        chosen = {name: value for name, value in asdict(options).items() if value is not None}
        final = replace(config, **chosen)
        with clock.stage("output_grid"):
            values = to_reference_grid(scored.values, prepared, "linear")
            result = anomaly_map(values, scored.threshold, config.map_scale)
            result[~brain] = 0.0
            mask = segment(
                result,
                reference.spacing_mm,
                threshold=final.threshold,
                min_fraction_of_largest=final.min_fraction_of_largest,
                min_lesion_mm3=final.min_lesion_mm3,
                fill_holes=final.fill_holes,
            )
            lesions = find_lesions(mask, result, reference.affine)
        settings = {
            "sampling": to_dict(self.sampling),
            "score": to_dict(final),
            "score_threshold_of_this_scan": scored.threshold,
            "device": describe_device(self.device),
        }
        unused = [m for m in prepared.images if m not in config.modalities]
        notes = list(prepared.notes)
        if unused:
            notes.append(f"{', '.join(unused)}: not used by the calibrated score")
        return SegmentationResult(
            result,
            mask,
            brain,
            prepared.reference,
            lesions,
            final.threshold,
            settings,
            notes,
            clock.seconds,
        )


@dataclass(frozen=True)
class _CycleRun:
    """One source's cycle over one subject."""

    cycle: CycleConfig
    networks: Cycle
    stack: SliceStack
    sampling: SamplingConfig
    config: ScoreConfig
    execution: Execution
    scale: float

    @property
    def count(self) -> int:
        """Pairs of slice and band, or slices, in all."""
        if self.sampling.method == "cyclic-unet":
            return len(self.stack.data)
        return len(band_work(torch.from_numpy(self.stack.brain), self.sampling).pairs)

    def first_pass(self, advance: Callable[[int], None]) -> NDArray[np.float32]:
        """The residual of every voxel, (I, J, K), in robust standard deviations."""
        x = torch.from_numpy(self.stack.data)
        execution = replace(self.execution, advance=advance)
        if self.sampling.method == "cyclic-unet":
            kind = self.config.residual
            mean = run_within_memory(
                lambda e: plain_residual(x, self.networks, residual=kind, execution=e), execution
            )
        else:
            total, count = self._masked(torch.from_numpy(self.stack.brain), None, execution)
            mean = total / count.clamp_min(1)
        return self._to_volume(mean)

    def second_pass(
        self, first: NDArray[np.float32], suspected: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """The residual again where the first pass was suspicious, with all of that hidden."""
        brain = torch.from_numpy(self.stack.brain)
        marks = self.stack.stack_like(suspected.astype(np.float32)) > 0.5
        hidden = torch.nn.functional.max_pool2d(torch.from_numpy(marks).float(), 5, 1, 2) > 0
        total, count = self._masked(brain, hidden & brain, self.execution)
        again = self._to_volume(total / count.clamp_min(1))
        counted = from_slices(count.numpy(), self.stack) > 0
        return np.where(counted, again, first).astype(np.float32)

    def _masked(
        self, brain: torch.Tensor, suspected: torch.Tensor | None, execution: Execution
    ) -> tuple[torch.Tensor, torch.Tensor]:
        work = band_work(brain, self.sampling) if suspected is None else suspicion_work(suspected)
        return run_within_memory(
            lambda e: masked_residual(
                torch.from_numpy(self.stack.data),
                torch.from_numpy(self.stack.numbers),
                work,
                self.networks,
                seed=self.sampling.seed,
                residual=self.config.residual,
                execution=e,
            ),
            execution,
        )

    def _to_volume(self, residual: torch.Tensor) -> NDArray[np.float32]:
        values = residual.numpy() / np.float32(self.scale)
        values[~self.stack.brain] = 0.0
        if self.config.residual == "signed":
            values *= self.cycle.sign if self.cycle.sign else 1
        return from_slices(values, self.stack)


def _stride(bundle: Bundle) -> int:
    """Multiple that height and width of slices must have for every network of a bundle."""
    return int(np.lcm(bundle.config.unet.stride, bundle.config.denoiser.stride))
