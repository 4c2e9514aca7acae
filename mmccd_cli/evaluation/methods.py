"""What an evaluation compares: bundles, intensity thresholds and trained comparison models."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mmccd_cli.anomaly.candidates import find_threshold, mask_at
from mmccd_cli.anomaly.score import SmoothedScore, smooth
from mmccd_cli.config import ScoreConfig
from mmccd_cli.evaluation.baselines import (
    BASELINES,
    SHIPPED_CONSTANTS,
    Z_SCORE,
    describe_threshold,
    plain_score,
    threshold_rules,
)
from mmccd_cli.evaluation.cases import Case, Prediction
from mmccd_cli.evaluation.comparison.files import ComparisonModel
from mmccd_cli.evaluation.comparison.networks import ComparisonResidual, residual_of_volume
from mmccd_cli.evaluation.passes import counting_passes
from mmccd_cli.pipeline import Pipeline
from mmccd_cli.preprocessing.brain import find_brain
from mmccd_cli.preprocessing.intensity import normalise
from mmccd_cli.preprocessing.subject import (
    PreparedSubject,
    prepare_subject,
    to_reference_grid,
)
from mmccd_cli.weights.bundle import BundleConfig


@dataclass(frozen=True)
class BundleMethod:
    """A bundle on some of the modalities, exactly as `mmccd segment` runs it.

    Attributes:
        name: Name of the row.
        pipeline: The loaded bundle.
        modalities: Given to it; None for all that a subject has.
    """

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
        return subjects_of_bundle(self.pipeline.bundle.config)

    def predict(self, case: Case) -> Iterator[Prediction]:
        """Segment the case."""
        chosen = {
            m: v for m, v in case.volumes.items() if self.modalities is None or m in self.modalities
        }
        began = time.perf_counter()
        with counting_passes() as count:
            result = self.pipeline.segment(chosen)
        yield Prediction(
            method=self.name,
            score=self.name,
            rule="as calibrated",
            mask=result.mask,
            values=result.anomaly_map,
            brain=result.brain,
            affine=chosen[result.reference].affine,
            seconds=time.perf_counter() - began,
            passes=count.passes,
        )


def subjects_of_bundle(config: BundleConfig) -> frozenset[str]:
    """Ids of the subjects that a bundle says it was trained or calibrated on."""
    trained = (entry.get("id", "") for entry in config.training.get("subjects", ()))
    return frozenset([*trained, *config.calibration.get("subjects", ())])


@dataclass(frozen=True, eq=False, kw_only=True)
class RawScore:
    """A smoothed score before any threshold, and what it cost.

    Attributes:
        smoothed: The score, on the grid of `affine`.
        affine: (4, 4).
        seconds: From volumes in memory to the score.
        passes: Slices through a network.
    """

    smoothed: SmoothedScore
    affine: NDArray[np.float64]
    seconds: float
    passes: int = 0


class Scorer(Protocol):
    """Makes a score that needs a threshold."""

    @property
    def name(self) -> str:
        """Name of its map."""

    @property
    def weights(self) -> str:
        """Name of its weights; empty where nothing is learned."""

    @property
    def seen(self) -> frozenset[str]:
        """Ids of the subjects that its weights were made with."""

    @property
    def config(self) -> ScoreConfig:
        """How it is smoothed and its masks are cleaned."""

    @property
    def constants(self) -> Mapping[str, float] | None:
        """Rule -> the constant that comes with it; None where there are none."""

    def score(self, case: Case) -> RawScore | None:
        """Score a case; None where it lacks a modality."""


@dataclass(frozen=True)
class IntensityScorer:
    """A weighted sum of z-scores; nothing is learned.

    Attributes:
        name: A key of `BASELINES`.
    """

    name: str
    weights: str = ""
    seen: frozenset[str] = frozenset()

    @property
    def config(self) -> ScoreConfig:
        """The baseline's settings."""
        return BASELINES[self.name]

    @property
    def constants(self) -> Mapping[str, float] | None:
        """The shipped ones."""
        return SHIPPED_CONSTANTS.get(self.name)

    def score(self, case: Case) -> RawScore | None:
        """Score the scans as they lie; None where one is missing or lies on another grid."""
        grid = case.grid
        images = {m: v.data for m, v in case.volumes.items() if v.shape == grid.shape}
        if not set(self.config.modalities) <= set(images):
            return None
        brain, seconds = case.shared("brain", lambda: find_brain(case.volumes).mask)
        began = time.perf_counter()
        signals = {
            f"intensity:{modality}": normalise(images[modality], brain, Z_SCORE)[0]
            for modality in self.config.modalities
        }
        smoothed = smooth(signals, brain, spacing_mm=grid.spacing_mm, config=self.config)
        seconds += time.perf_counter() - began
        return RawScore(smoothed=smoothed, affine=grid.affine, seconds=seconds)


@dataclass(frozen=True)
class ComparisonScorer:
    """A trained comparison model's residual.

    Attributes:
        model: The trained model.
        residual: "signed" (brighter than reconstructed; darker for T1w) or "absolute" (published).
        device: Where its network runs.
    """

    model: ComparisonModel
    residual: ComparisonResidual = "signed"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

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
    def config(self) -> ScoreConfig:
        """Its residual is smoothed and cleaned as the baselines are."""
        return plain_score({f"cycle:{self.model.config.modality}": 1.0})

    @property
    def constants(self) -> Mapping[str, float] | None:
        """Those that were chosen after its training, on the subjects of its training."""
        return self.model.constants.get(self.residual)

    def score(self, case: Case) -> RawScore | None:
        """Reconstruct the case's slices; None where it lacks the modality."""
        modality = self.model.config.modality
        if modality not in case.volumes:
            return None
        prepared, seconds = case.shared(self._preparation, lambda: self._prepare(case))
        began = time.perf_counter()
        with counting_passes() as count:
            residual = residual_of_volume(
                self.model.network.to(self.device),
                self.model.config,
                prepared.images[modality],
                brain=prepared.brain,
                scale=self.model.preprocessing.intensity.scale,
                residual=self.residual,
                device=self.device,
            )
        residual[~prepared.covered[modality]] = 0.0
        grid = prepared.reference_volume
        signals = {f"cycle:{modality}": to_reference_grid(residual, prepared)}
        smoothed = smooth(
            signals, prepared.reference_brain, spacing_mm=grid.spacing_mm, config=self.config
        )
        seconds += time.perf_counter() - began
        return RawScore(smoothed=smoothed, affine=grid.affine, seconds=seconds, passes=count.passes)

    @property
    def _preparation(self) -> tuple[object, ...]:
        """What decides how a case is prepared: models of one training share it."""
        rival, template = self.model, self.model.template
        grid = (template.shape, template.affine.tobytes(), template.mask.tobytes())
        return (rival.config.modality, rival.preprocessing, grid)

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
        constants: Rule -> constant, see `threshold_rules`.
        chosen_on: Subjects that the constants were chosen on.
    """

    scorer: Scorer
    constants: Mapping[str, float]
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
        raw = self.scorer.score(case)
        if raw is None:
            return
        rules = threshold_rules(self.scorer.name, self.scorer.config, self.constants)
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
                affine=raw.affine,
                seconds=raw.seconds + time.perf_counter() - began,
                passes=raw.passes,
            )
