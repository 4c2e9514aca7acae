"""From the volumes of one subject to its anomaly map: where the image side meets the model side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.candidates import ScanScore, score_scan
from mmccd_cli.anomaly.components import voxel_mm3_of
from mmccd_cli.anomaly.contour import refine_contour
from mmccd_cli.anomaly.mask import (
    AS_CALIBRATED,
    LeftOut,
    LeftOutSmall,
    Lesion,
    MaskOptions,
    mask_and_lesions,
    mask_from_map,
    mask_settings,
)
from mmccd_cli.anomaly.score import map_from_score
from mmccd_cli.anomaly.unshown import UnshownPlace, unshown_places
from mmccd_cli.config import SamplingConfig, ScoreConfig, Space, check_space, to_dict
from mmccd_cli.errors import Caution, DataError, UsageError
from mmccd_cli.host import available_threads, give_back_freed_memory
from mmccd_cli.inputs.nifti import make_grid
from mmccd_cli.inputs.volume import Volume, sparse_zeros
from mmccd_cli.preprocessing.reference_grid import to_reference_grid
from mmccd_cli.preprocessing.spatial import LARGE
from mmccd_cli.preprocessing.subject import (
    PreparedSubject,
    prepare_subject,
)
from mmccd_cli.progress import Progress, Stopwatch, silent
from mmccd_cli.template import bounding_box, spacing_of, transform_points
from mmccd_cli.weights.bundle import Bundle

if TYPE_CHECKING:
    import torch

    from mmccd_cli.signals import ComputedSignals, SignalModel

UNSHOWN_KINDS = {
    "fluid": "fluid where healthy brains have none: a cyst, a cavity, an old infarct, or a "
    "ventricle that is wide or displaced",
    "dark": "darker than healthy tissue: old blood, calcification, or an artefact",
}
"""What may lie where the map shows nothing, in words."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SegmentationResult:
    """What `Pipeline.segment` returns.

    Attributes:
        anomaly_map: (I, J, K) float32 in [0, 1] on the grid of `shown`.
        mask: (I, J, K) bool on the same grid.
        brain: (I, J, K) bool on the same grid.
        reference: Modality of the reference scan.
        shown: The reference scan on the grid of the map: its own, or the template's.
        lesions: Components of the mask, the largest first.
        left_out: What the map shows above the threshold and the mask does not hold, with reasons.
        left_out_small: How much of that is not listed.
        threshold: Value of the map above which a voxel belongs to the mask.
        settings: Everything that changes a number, as plain values.
        device: What the networks ran on, in words.
        notes: Sentences of what happened; each `Caution` among them is a warning.
        seconds: Stage -> seconds.
        prepared: The subject in template space; None where only the mask was made anew.
    """

    anomaly_map: NDArray[np.float32]
    mask: NDArray[np.bool_]
    brain: NDArray[np.bool_]
    reference: str
    shown: Volume
    lesions: list[Lesion]
    left_out: list[LeftOut]
    left_out_small: LeftOutSmall
    threshold: float
    settings: dict[str, Any]
    device: str
    notes: list[str]
    seconds: dict[str, float]
    prepared: PreparedSubject | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class _ShownScore:
    """A score on the grid that the user gets.

    Attributes:
        values: (I, J, K) float32, in robust standard deviations; 0 outside the brain.
        brain: (I, J, K) bool.
        shown: The reference scan on the same grid.
    """

    values: NDArray[np.float32]
    brain: NDArray[np.bool_]
    shown: Volume


def _count(name: str, value: object, *, least: int) -> int | None:
    """A number that may be None, as Python's own int."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise UsageError(
            f"{name} cannot be {value!r}.",
            next_step=f"Give a whole number from {least} on, or None for the default.",
        )
    return int(value)


class Pipeline:
    """A loaded bundle on a device, ready for any number of subjects.

    torch, which takes as long to import as a subject to prepare, is imported by `begin`.

    Args:
        bundle: The weights.
        device: "auto", "cpu", "cuda[:N]" or "mps".
        sampling: Sampling instead of the bundle's.
        batch_size: Slices a pass; None chooses by free memory.
        precision: "auto", "fp32", "bf16" or "fp16"; see `choose_precision`.
        threads: Threads of the CPU; None leaves torch's number, 0 takes all that there are.

    Raises:
        UsageError: `batch_size` or `threads` is no such number.

    Attributes:
        bundle: The weights.
        sampling: How slices are imagined.
        asked_precision: The `precision` that was given.

    Example:
        >>> segmenter = Pipeline(load_bundle(folder), device="cpu")
        >>> result = segmenter.segment({"FLAIR": read_nifti(path)[0]})
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "auto",
        sampling: SamplingConfig | None = None,
        batch_size: int | None = None,
        precision: str = "auto",
        threads: int | None = None,
    ) -> None:
        self.bundle = bundle
        self.sampling = sampling or bundle.config.sampling
        self.asked_precision = precision
        self._asked_device = device
        self._batch_size = _count("batch_size", batch_size, least=1)
        self._threads = _count("threads", threads, least=0)
        if self._threads == 0:
            self._threads = available_threads()

    @cached_property
    def _model(self) -> SignalModel:
        import torch

        from mmccd_cli.signals import SignalModel
        from mmccd_cli.translation.devices import choose_device

        if self._threads is not None:
            torch.set_num_threads(self._threads)
        self.bundle.check_networks()
        return SignalModel(
            self.bundle,
            self.sampling,
            choose_device(self._asked_device),
            batch_size=self._batch_size,
            precision=self.asked_precision,
            may_use_cpu=self._asked_device == "auto",
        )

    def begin(self, modalities: Sequence[str] = ()) -> None:
        """Try the device, and read the networks that a subject needs.

        What is not done here is done when it is first needed.

        Args:
            modalities: Those of the subject; none reads no network.

        Raises:
            WeightsError: The networks cannot be built, or the file of one is damaged.
            ComputeError: The device cannot be used.
            UsageError: There is no such device or precision.
        """
        model = self._model
        if modalities:
            with suppress(DataError):  # of the subject, which its own preparation will tell
                model.load(self.bundle.choose_score(self.sampling.method, tuple(modalities)))

    @cached_property
    def threads(self) -> int:
        """Threads of the CPU, of all subjects that are segmented beside each other."""
        if self._threads is not None:
            return self._threads
        import torch

        return torch.get_num_threads()

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return self._model.place.device

    def describe_device(self, device: torch.device | None = None) -> str:
        """Name of a device for people; by default of that of the next subject."""
        from mmccd_cli.translation.devices import describe_device

        return describe_device(device or self.device, self.threads)

    @property
    def precision(self) -> str:
        """In what arithmetic subjects begin: "fp32", "bf16" or "fp16"."""
        return self._model.place.precision

    def segment(
        self,
        volumes: Mapping[str, Volume],
        *,
        options: MaskOptions = AS_CALIBRATED,
        brain_mask: Volume | None = None,
        skull_strip: str = "auto",
        space: Space = "native",
        threads: int = 1,
        advance: Progress = silent,
    ) -> SegmentationResult:
        """Segment one subject: `prepare`, then `infer`.

        Args:
            volumes: Modality -> volume; any subset for which the bundle has a calibrated score.
            options: Threshold and cleaning instead of the calibrated ones.
            brain_mask: Brain mask on any grid in the reference's world space.
            skull_strip: "auto", "never" or a method's name.
            space: Whether the map lies on the reference's grid or on the template's.
            threads: Threads of registration; one is bit-identical.
            advance: Called with the pairs of slice and band done, and their number in all.

        Raises:
            DataError: No usable modality, or no brain.
            GeometryError: Contradictory geometry.
            WeightsError: The bundle has no cycle for the subject's modalities.
            ComputeError: Device or memory fails.
            UsageError: There is no such space or skull stripper.
        """
        check_space(space)
        prepared = self.prepare(
            volumes, brain_mask=brain_mask, skull_strip=skull_strip, threads=threads
        )
        return self.infer(prepared, options=options, space=space, advance=advance)

    def prepare(
        self,
        volumes: Mapping[str, Volume],
        *,
        brain_mask: Volume | None = None,
        skull_strip: str = "auto",
        threads: int = 1,
    ) -> PreparedSubject:
        """Align, strip, resample and normalise a subject; the device is not touched.

        Another thread may do this for the next subject while this one is inferred.

        Args:
            volumes: See `segment`, like all others.
            brain_mask: See `segment`.
            skull_strip: See `segment`.
            threads: See `segment`.

        Raises:
            DataError: No usable modality, or no brain.
            GeometryError: Contradictory geometry.
        """
        self.bundle.choose_score(self.sampling.method, tuple(volumes))  # fails before the work
        return prepare_subject(
            dict(volumes),
            self.bundle.template,
            self.bundle.config.preprocessing,
            brain_mask=brain_mask,
            skull_strip=skull_strip,
            seed=self.sampling.seed,
            threads=threads,
        )

    def infer(
        self,
        prepared: PreparedSubject,
        *,
        options: MaskOptions = AS_CALIBRATED,
        space: Space = "native",
        advance: Progress = silent,
    ) -> SegmentationResult:
        """Run the networks on a prepared subject, and bring the map to its grid.

        Args:
            prepared: What `prepare` returned.
            options: See `segment`.
            space: See `segment`.
            advance: See `segment`.

        Raises:
            WeightsError: The bundle has no cycle for the subject's modalities.
            ComputeError: Device or memory fails.
            UsageError: There is no such space.
        """
        check_space(space)
        calibrated = self.bundle.choose_score(self.sampling.method, tuple(prepared.images))
        chosen = options.applied_to(calibrated)
        watch = Stopwatch(dict(prepared.seconds))
        with watch.stage("inference"):
            computed = self._compute(prepared, calibrated, advance)
        with watch.stage("score"):
            score = score_scan(
                computed.values,
                prepared.brain,
                spacing_mm=self.bundle.template.spacing_mm,
                config=calibrated,
            )
            unshown = self._unshown(prepared, score, calibrated, space=space)
        with watch.stage("output_grid"):
            output = self._on_output_grid(prepared, score, space)
            anomaly_map = _calibrated_map(output, score.threshold, calibrated)
            brain, shown = output.brain, output.shown
            if shown.data.size > LARGE:
                give_back_freed_memory()
            found = mask_and_lesions(
                anomaly_map, chosen, affine=shown.affine, scan_threshold=score.threshold
            )
        return SegmentationResult(
            anomaly_map=anomaly_map,
            mask=found.mask,
            brain=brain,
            reference=prepared.reference,
            shown=shown,
            lesions=found.lesions,
            left_out=found.left_out,
            left_out_small=found.left_out_small,
            threshold=chosen.threshold,
            settings={
                "sampling": to_dict(self.sampling),
                "score": to_dict(chosen),
                "calibrated_mask": mask_settings(calibrated),
                "score_threshold_of_this_scan": score.threshold,
                "space": space if space == "native" else self.bundle.config.template.space,
                "reference_to_template": prepared.to_reference.tolist(),
                "precision": computed.place.precision,
            },
            device=self.describe_device(computed.place.device),
            notes=[
                *prepared.notes,
                *computed.place.notes,
                *_unused(prepared, calibrated),
                *unshown,
            ],
            seconds=watch.seconds,
            prepared=prepared,
        )

    def signals(
        self,
        prepared: PreparedSubject,
        config: ScoreConfig,
        advance: Progress = silent,
    ) -> dict[str, NDArray[np.float32]]:
        """Compute all signals that a score combines.

        Returns:
            Name -> (I, J, K) float32 on the template's grid, in robust standard deviations,
            positive where anomalous.
        """
        return self._compute(prepared, config, advance).values

    def _compute(
        self, prepared: PreparedSubject, config: ScoreConfig, advance: Progress
    ) -> ComputedSignals:
        """All `signals` of a subject, and how they were computed."""
        computed = self._model.compute(prepared.images, prepared.brain, config, advance=advance)
        for name, signal in computed.values.items():
            # What a modality does not show is no evidence, neither bright nor dark.
            signal[~prepared.covered[name.partition(":")[2]]] = 0.0
        return computed

    def _unshown(
        self, prepared: PreparedSubject, score: ScanScore, calibrated: ScoreConfig, *, space: Space
    ) -> list[Caution]:
        """Say which places far from healthy tissue the map does not show."""
        places = unshown_places(
            prepared.images,
            self.bundle.template.normal,
            within=np.all([prepared.brain, *prepared.covered.values()], axis=0),
            shown=map_from_score(score.values, score.threshold, calibrated) > calibrated.threshold,
            affine=prepared.affine,
        )
        to_world = np.eye(4)
        if space == "native":
            to_world[:] = np.linalg.inv(prepared.to_reference)
        return [_in_words(place, to_world) for place in places]

    def _on_output_grid(
        self, prepared: PreparedSubject, score: ScanScore, space: Space
    ) -> _ShownScore:
        """Bring a score from the template to the grid of the reference scan, or leave it there."""
        if space == "native":
            return _ShownScore(
                values=to_reference_grid(score.values, prepared),
                brain=prepared.reference_brain,
                shown=prepared.reference_volume,
            )
        # Rounded as in the file, so that a mask made from the file is the same.
        affine = make_grid(self.bundle.template.shape, prepared.affine).affine
        shown = Volume(prepared.images[prepared.reference], affine)
        inside = np.where(prepared.brain, score.values, np.float32(0))
        return _ShownScore(values=inside, brain=prepared.brain, shown=shown)


def _calibrated_map(
    output: _ShownScore, scan_threshold: float, calibrated: ScoreConfig
) -> NDArray[np.float32]:
    """The anomaly map of a score: in [0, 1], 0 outside the brain, its contour refined.

    All by the calibrated mask: the map must not depend on what the user cuts out of it. It takes
    the score's place: two arrays of a fine scan are large.
    """
    if output.shown.data.size > LARGE:
        give_back_freed_memory()
    # There is nothing outside the brain's box, which is a small part of a raw head.
    box, spacing = bounding_box(output.brain, margin=3), spacing_of(output.shown.affine)
    brain, anomaly_map = output.brain[box], output.values[box]
    for plane, inside in zip(anomaly_map, brain, strict=True):
        plane[inside] = map_from_score(plane[inside], scan_threshold, calibrated)
    candidates = bounding_box(anomaly_map > calibrated.threshold)
    if calibrated.refine_mm > 0 and anomaly_map[candidates].size:
        mask = sparse_zeros(anomaly_map.shape, bool)
        mask[candidates] = mask_from_map(
            anomaly_map[candidates],
            calibrated,
            spacing_mm=spacing,
            voxel_mm3=voxel_mm3_of(output.shown.affine),
            scan_threshold=scan_threshold,
        )
        refine_contour(
            anomaly_map,
            mask,
            image=output.shown.data[box],
            brain=brain,
            spacing_mm=spacing,
            reach_mm=calibrated.refine_mm,
            threshold=calibrated.threshold,
            overwrite=True,
        )
    return output.values


def _in_words(place: UnshownPlace, matrix: NDArray[np.float64]) -> Caution:
    """A place that the map does not show, in the world of the map."""
    x, y, z = transform_points(matrix, place.middle_ras_mm)
    size = abs(float(np.linalg.det(matrix[:3, :3])))
    return Caution(
        f"Not in the map: {size * place.volume_ml:.1f} ml about ({x:.0f}, {y:.0f}, {z:.0f}) mm, "
        f"{UNSHOWN_KINDS[place.kind]}."
    )


def _unused(prepared: PreparedSubject, config: ScoreConfig) -> list[str]:
    """A note on the modalities that were given and do not count."""
    unused = [modality for modality in prepared.images if modality not in config.modalities]
    return [f"{', '.join(unused)}: not used by the calibrated score"] if unused else []
