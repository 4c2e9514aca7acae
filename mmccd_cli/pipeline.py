"""From the volumes of one subject to its anomaly map: where the image side meets the model side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly import Score, anomaly_map, score, segment
from mmccd_cli.bundle import Bundle
from mmccd_cli.config import SamplingConfig, ScoreConfig, to_dict
from mmccd_cli.devices import choose_device, describe_device
from mmccd_cli.postprocessing import Lesion, find_lesions
from mmccd_cli.preprocessing.prepare_subject import (
    PreparedSubject,
    prepare_subject,
    to_reference_grid,
)
from mmccd_cli.signals import SignalModel
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
        self._model = SignalModel(bundle, self.sampling, self.device, batch_size)

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
        config = self.bundle.choose_score(self.sampling.method, tuple(volumes))
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
            self.bundle.template,
            self.bundle.config.preprocessing,
            brain_mask=brain_mask,
            skull_strip=skull_strip,
            seed=self.sampling.seed,
            threads=threads,
        )
        clock.seconds.update(prepared.seconds)
        with clock.stage("inference"):
            values = self._model.signals(prepared.images, prepared.brain, config, advance)
        for name, signal in values.items():
            # What a modality does not show is no evidence, neither bright nor dark.
            signal[~prepared.covered[name.partition(":")[2]]] = 0.0
        return Signals(values, prepared)

    def score(self, signals: Signals, config: ScoreConfig) -> Score:
        """Combine a subject's signals; see `mmccd_cli.anomaly.score`."""
        return score(
            signals.values, signals.prepared.brain, self.bundle.template.spacing_mm, config
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
            result = anomaly_map(values, scored.threshold, final)
            result[~brain] = 0.0
            mask = segment(result, reference.spacing_mm, scored.threshold, final)
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
