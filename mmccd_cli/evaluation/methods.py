"""What an evaluation compares: bundles, intensity thresholds and comparison models."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mmccd_cli.anomaly.score import SmoothedScore
from mmccd_cli.evaluation.baselines import (
    SHARED_CLEANING,
    Cleaning,
    IntensityBaseline,
    ThresholdRule,
)
from mmccd_cli.evaluation.cases import Case, Prediction
from mmccd_cli.evaluation.comparison.files import ComparisonModel
from mmccd_cli.evaluation.comparison.networks import (
    AutoEncoder,
    ComparisonResidual,
    residual_of_volume,
)
from mmccd_cli.evaluation.thresholds import SHIPPED_CONSTANTS
from mmccd_cli.pipeline import Pipeline
from mmccd_cli.preprocessing.brain import find_brain
from mmccd_cli.preprocessing.subject import (
    PreparedSubject,
    prepare_subject,
    to_reference_grid,
)
from mmccd_cli.translation.unet import UNet


class PassCounter:
    """Counts the slices that go through any network of ours or of the comparison models."""

    def __init__(self) -> None:
        self.passes = 0

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Count one forward pass; torch calls this before each."""
        if isinstance(module, (UNet, AutoEncoder)):
            self.passes += len(inputs[0])


@contextmanager
def counted_passes() -> Iterator[PassCounter]:
    """Count passes while the block runs."""
    counter = PassCounter()
    handle = torch.nn.modules.module.register_module_forward_pre_hook(counter)
    try:
        yield counter
    finally:
        handle.remove()


@dataclass(frozen=True)
class BundleMethod:
    """A segmenter on some of the modalities, exactly as `mmccd segment` runs it.

    Attributes:
        name: Name of the row.
        segmenter: The segmenter.
        modalities: Given to it; None for all that a subject has.
    """

    name: str
    segmenter: Pipeline
    modalities: tuple[str, ...] | None = None

    @property
    def weights(self) -> str:
        """Name and version of the bundle."""
        config = self.segmenter.bundle.config
        return f"{config.name} {config.version}"

    @property
    def seen(self) -> frozenset[str]:
        """Subjects that the bundle was trained or calibrated on."""
        return subjects_of_bundle(self.segmenter)

    def predict(self, case: Case) -> Iterator[Prediction]:
        """Segment the case."""
        chosen = {
            m: v for m, v in case.volumes.items() if self.modalities is None or m in self.modalities
        }
        began = time.perf_counter()
        with counted_passes() as counter:
            result = self.segmenter.segment(chosen)
        yield Prediction(
            method=self.name,
            score=self.name,
            rule="as calibrated",
            mask=result.mask,
            values=result.anomaly_map,
            brain=result.brain,
            affine=chosen[result.reference].affine,
            seconds=time.perf_counter() - began,
            passes=counter.passes,
        )


def subjects_of_bundle(segmenter: Pipeline) -> frozenset[str]:
    """Ids of the subjects that a bundle says it was trained or calibrated on."""
    config = segmenter.bundle.config
    trained = (entry.get("id", "") for entry in config.training.get("subjects", ()))
    return frozenset([*trained, *config.calibration.get("subjects", ())])


@dataclass(frozen=True, eq=False)
class Scored:
    """A smoothed score and what it cost.

    Attributes:
        score: The score, on the grid of `affine`.
        affine: (4, 4).
        seconds: From volumes in memory to the score.
        passes: Slices through a network.
    """

    score: SmoothedScore
    affine: NDArray[np.float64]
    seconds: float
    passes: int = 0


class Scorer(Protocol):
    """Something that turns a case into a score without a threshold."""

    @property
    def name(self) -> str:
        """Name of the score."""

    @property
    def cleaning(self) -> Cleaning:
        """From score to mask."""

    @property
    def weights(self) -> str:
        """Name of its weights."""

    @property
    def seen(self) -> frozenset[str]:
        """Subjects that its weights were made with."""

    @property
    def constants(self) -> Mapping[str, float] | None:
        """Constants of its threshold rules that come with it; None where there are none."""

    def score(self, case: Case) -> Scored | None:
        """Score a case; None where it lacks a modality."""


@dataclass(frozen=True)
class IntensityScorer:
    """A weighted sum of z-scores; nothing is learned."""

    baseline: IntensityBaseline
    weights: str = ""
    seen: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Name of the baseline."""
        return self.baseline.name

    @property
    def cleaning(self) -> Cleaning:
        """Cleaning of the baseline."""
        return self.baseline.cleaning

    @property
    def constants(self) -> Mapping[str, float] | None:
        """The shipped ones."""
        return SHIPPED_CONSTANTS.get(self.name)

    def score(self, case: Case) -> Scored | None:
        """Score the scans as they lie; None where one is missing or lies on another grid."""
        shape = case.grid.shape
        images = {m: v.data for m, v in case.volumes.items() if v.shape == shape}
        if not set(self.baseline.weights) <= set(images):
            return None
        brain, seconds = case.shared("brain", lambda: find_brain(case.volumes).mask)
        grid = case.grid
        began = time.perf_counter()
        score = self.baseline.score(images, brain, grid.spacing_mm)
        return Scored(score, grid.affine, seconds + time.perf_counter() - began)


@dataclass(frozen=True)
class ComparisonScorer:
    """A comparison model's residual.

    Attributes:
        model: The trained model.
        residual: "signed" (brighter than reconstructed; darker for T1w) or "absolute" (published).
        device: Where its network runs.
        cleaning: From score to mask, as for the intensity thresholds.
        seed: Seed of the diffusion's noise.
    """

    model: ComparisonModel
    residual: ComparisonResidual = "signed"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cleaning: Cleaning = SHARED_CLEANING
    seed: int = 0

    @property
    def name(self) -> str:
        """Name of the model, with the residual where it is not signed."""
        suffix = "" if self.residual == "signed" else f", {self.residual}"
        return f"{self.model.config.name}{suffix}"

    @property
    def weights(self) -> str:
        """Name of the model."""
        return self.model.config.name

    @property
    def seen(self) -> frozenset[str]:
        """Subjects that it was trained on."""
        return self.model.subjects

    @property
    def constants(self) -> Mapping[str, float] | None:
        """Those that were chosen after its training, on the subjects of its training."""
        return self.model.constants.get(self.residual)

    def score(self, case: Case) -> Scored | None:
        """Reconstruct the case's slices; None where it lacks the modality."""
        config = self.model.config
        if config.modality not in case.volumes:
            return None
        prepared, seconds = case.shared(self._preparation, lambda: self._prepare(case))
        began = time.perf_counter()
        with counted_passes() as counter:
            residual = residual_of_volume(
                self.model.network.to(self.device),
                config,
                prepared.images[config.modality],
                prepared.brain,
                self.model.preprocessing.intensity.scale,
                self.residual,
                device=self.device,
                seed=self.seed,
            )
        residual[~prepared.covered[config.modality]] = 0.0
        grid = prepared.reference_volume
        raw = to_reference_grid(residual, prepared, "linear")
        smooth = self.cleaning.smooth(raw, prepared.reference_brain, grid.spacing_mm)
        seconds += time.perf_counter() - began
        return Scored(smooth, grid.affine, seconds, counter.passes)

    @property
    def _preparation(self) -> tuple[object, ...]:
        """What decides how a case is prepared: models of one training share it."""
        model, template = self.model, self.model.template
        grid = (template.shape, template.affine.tobytes(), template.mask.tobytes())
        return (model.config.modality, model.preprocessing, grid)

    def _prepare(self, case: Case) -> PreparedSubject:
        modality = self.model.config.modality
        return prepare_subject(
            {modality: case.volumes[modality]}, self.model.template, self.model.preprocessing
        )


@dataclass(frozen=True)
class RuleMethod:
    """A score with a row for each threshold rule.

    Attributes:
        scorer: Makes the score.
        rules: Name -> rule.
        chosen_on: Subjects that the rules' constants were chosen on.
    """

    scorer: Scorer
    rules: Mapping[str, ThresholdRule]
    chosen_on: frozenset[str] = frozenset()

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
        scored = self.scorer.score(case)
        if scored is None:
            return
        for name, rule in self.rules.items():
            began = time.perf_counter()
            mask = self.scorer.cleaning.segment(scored.score, rule)
            yield Prediction(
                method=f"{self.scorer.name} ({name})",
                score=self.scorer.name,
                rule=rule.describe(),
                mask=mask,
                values=scored.score.values,
                brain=scored.score.brain,
                affine=scored.affine,
                seconds=scored.seconds + time.perf_counter() - began,
                passes=scored.passes,
            )
