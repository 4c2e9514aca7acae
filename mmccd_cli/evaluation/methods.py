"""What an evaluation compares: bundles, intensity thresholds and trained comparison models."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from mmccd_cli.anomaly.candidates import find_threshold, mask_at
from mmccd_cli.anomaly.components import voxel_mm3_of
from mmccd_cli.anomaly.mask import number_candidates
from mmccd_cli.anomaly.score import SmoothedScore, smooth
from mmccd_cli.config import ScoreConfig
from mmccd_cli.evaluation.baselines import (
    BASELINES,
    SHIPPED_CONSTANTS,
    Z_SCORE,
    describe_threshold,
    plain_score,
    threshold_rows,
)
from mmccd_cli.evaluation.cases import Candidates, Case, Prediction
from mmccd_cli.evaluation.comparison.files import ComparisonModel
from mmccd_cli.evaluation.comparison.networks import ComparisonResidual, residual_of_volume
from mmccd_cli.evaluation.passes import counting_passes
from mmccd_cli.pipeline import Pipeline, SegmentationResult
from mmccd_cli.preprocessing.brain import find_brain
from mmccd_cli.preprocessing.intensity import normalise
from mmccd_cli.preprocessing.reference_grid import to_reference_grid
from mmccd_cli.preprocessing.spatial import same_grid
from mmccd_cli.preprocessing.subject import prepare_subject


@dataclass(frozen=True)
class BundleMethod:
    """A bundle on some or all modalities, exactly as `mmccd segment` runs it."""

    name: str
    pipeline: Pipeline
    modalities: tuple[str, ...] | None = None

    @property
    def weights(self) -> str:
        """Name and version of the bundle."""
        config = self.pipeline.bundle.config
        return f"{config.name} {config.version}"

    @property
    def seen(self) -> frozenset[str]:
        """Subjects that the bundle was trained or calibrated on."""
        config = self.pipeline.bundle.config
        trained = (entry.get("id", "") for entry in config.training.get("subjects", ()))
        return frozenset([*trained, *config.calibration.get("subjects", ())])

    def predict(self, case: Case) -> Iterator[Prediction]:
        """Segment the case; nothing where it lacks one of the modalities."""
        wanted = self.modalities or tuple(case.volumes)
        if not set(wanted) <= set(case.volumes):
            return
        chosen = {m: v for m, v in case.volumes.items() if m in wanted}
        began = time.perf_counter()
        with counting_passes() as count:
            result = self.pipeline.segment(chosen)
        seconds = time.perf_counter() - began
        yield Prediction(
            method=self.name,
            score=self.name,
            rule="as calibrated",
            mask=result.mask,
            values=result.anomaly_map,
            brain=result.brain,
            spacing_mm=chosen[result.reference].spacing_mm,
            voxel_mm3=voxel_mm3_of(chosen[result.reference].affine),
            seconds=seconds,
            passes=count.passes,
            candidates=find_candidates(self.pipeline, result),
        )


def find_candidates(pipeline: Pipeline, result: SegmentationResult) -> Candidates | None:
    """All that the mask of a result could hold; None where the bundle knows no confidence."""
    assert result.prepared is not None
    given = tuple(result.prepared.images)
    config = pipeline.bundle.choose_score(pipeline.sampling.method, given)
    labels, confidence = number_candidates(
        result.anomaly_map,
        config,
        spacing_mm=result.shown.spacing_mm,
        voxel_mm3=voxel_mm3_of(result.shown.affine),
        scan_threshold=result.settings["score_threshold_of_this_scan"],
    )
    if confidence is None:
        return None
    return Candidates(
        labels=labels,
        confidence=confidence,
        min_confidence=config.min_confidence,
        modalities=given,
    )


@dataclass(frozen=True, eq=False)
class RawScore:
    """A smoothed score before any threshold, its seconds from volumes in memory, and its passes."""

    smoothed: SmoothedScore
    seconds: float
    passes: int = 0


class Scorer(ABC):
    """Makes a score that needs a threshold.

    Attributes:
        name: Name of its map.
        config: How it is smoothed and its masks are cleaned.
        constants: Rule -> the constant that comes with it; None where there are none.
        weights: Name of its weights; empty where nothing is learned.
        seen: Ids of the subjects that its weights were made with.
    """

    name: str
    config: ScoreConfig
    constants: Mapping[str, float] | None
    weights: str = ""
    seen: frozenset[str] = frozenset()

    @abstractmethod
    def score(self, case: Case) -> RawScore | None:
        """Score a case; None where it lacks a modality, or has it on another grid."""


class IntensityScorer(Scorer):
    """A weighted sum of z-scores, named as in `BASELINES`; nothing is learned."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.config = BASELINES[name]
        self.constants = SHIPPED_CONSTANTS.get(name)

    def score(self, case: Case) -> RawScore | None:
        """Score the scans as they lie."""
        grid = case.grid
        on_grid = {m: v for m, v in case.volumes.items() if same_grid(grid, v)}
        if not set(self.config.modalities) <= set(on_grid):
            return None
        brain, seconds = case.shared("brain", lambda: find_brain(on_grid).mask)
        began = time.perf_counter()
        signals = {
            f"intensity:{modality}": normalise(on_grid[modality].data, brain, Z_SCORE)
            for modality in self.config.modalities
        }
        smoothed = smooth(
            signals,
            brain,
            spacing_mm=grid.spacing_mm,
            config=self.config,
            voxel_mm3=voxel_mm3_of(grid.affine),
        )
        return RawScore(smoothed, seconds + time.perf_counter() - began)


class ComparisonScorer(Scorer):
    """A trained comparison model's residual, smoothed and cleaned as the baselines are.

    Its constants were chosen after its training, on the subjects of its training.

    Args:
        model: The trained model.
        residual: "signed" counts what is brighter than reconstructed, or darker on T1w, where
            lesions are dark; "absolute" counts both, as published. (A squared residual orders
            voxels like the absolute one, also after a median filter.)
        device: Where its network runs; the CPU by default.
    """

    def __init__(
        self,
        model: ComparisonModel,
        residual: ComparisonResidual = "signed",
        device: torch.device | None = None,
    ) -> None:
        self.weights = model.config.name
        self.name = model.config.name + ("" if residual == "signed" else f", {residual}")
        self.config = plain_score({f"cycle:{model.config.modality}": 1.0})
        self.constants = model.constants.get(residual)
        self.seen = model.subjects
        self._model, self._residual = model, residual
        self._device = device or torch.device("cpu")

    def score(self, case: Case) -> RawScore | None:
        """Reconstruct the case's slices."""
        model, modality = self._model, self._model.config.modality
        if modality not in case.volumes:
            return None
        template, settings = model.template, model.preprocessing
        grid = (template.shape, template.affine.tobytes(), template.mask.tobytes())
        prepared, seconds = case.shared(
            (modality, settings, grid),  # models of one training share it
            lambda: prepare_subject({modality: case.volumes[modality]}, template, settings),
        )
        began = time.perf_counter()
        with counting_passes() as count:
            residual = residual_of_volume(
                model.network.to(self._device),
                model.config,
                prepared.images[modality],
                brain=prepared.brain,
                scale=settings.intensity.scale,
                device=self._device,
            )
        residual[~prepared.covered[modality]] = 0.0
        if self._residual == "absolute":
            residual = np.abs(residual)
        smoothed = smooth(
            {f"cycle:{modality}": to_reference_grid(residual, prepared)},
            prepared.reference_brain,
            spacing_mm=prepared.reference_volume.spacing_mm,
            config=self.config,
            voxel_mm3=voxel_mm3_of(prepared.reference_volume.affine),
        )
        return RawScore(smoothed, seconds + time.perf_counter() - began, count.passes)


@dataclass(frozen=True)
class RuleMethod:
    """A score with a row for each threshold rule, whose constants were chosen on some subjects."""

    scorer: Scorer
    constants: Mapping[str, float]
    chosen_on: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Name of the score."""
        return self.scorer.name

    @property
    def weights(self) -> str:
        """Name of the score's weights."""
        return self.scorer.weights

    @property
    def seen(self) -> frozenset[str]:
        """Subjects that weights or constants were made with."""
        return self.scorer.seen | self.chosen_on

    def predict(self, case: Case) -> Iterator[Prediction]:
        """Score the case once and threshold it by every rule."""
        raw = self.scorer.score(case)
        if raw is None:
            return
        rules = threshold_rows(self.scorer.name, self.scorer.config, self.constants)
        for rule, config in rules.items():
            began = time.perf_counter()
            mask = mask_at(raw.smoothed, find_threshold(raw.smoothed, config), config)
            yield Prediction(
                method=f"{self.scorer.name} ({rule})",
                score=self.scorer.name,
                rule=describe_threshold(config),
                mask=mask,
                values=raw.smoothed.values,
                brain=raw.smoothed.brain,
                spacing_mm=raw.smoothed.spacing_mm,
                voxel_mm3=raw.smoothed.voxel_mm3,
                seconds=raw.seconds + time.perf_counter() - began,
                passes=raw.passes,
            )
