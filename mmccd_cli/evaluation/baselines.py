"""Segmentation by intensity alone: what a learned method has to beat to be worth its cost.

A score is a weighted sum of robust z-scores, smoothed and thresholded exactly as a learned map is.
Nothing here is learned; the threshold's one number is chosen on other subjects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.candidates import (
    adaptive_threshold,
    candidate_masks,
    edge_candidates,
    edge_profile,
    strongest_edge,
)
from mmccd_cli.anomaly.components import (
    BoolArray,
    FloatArray,
    erode,
    fill_holes,
    keep_components,
)
from mmccd_cli.anomaly.score import SmoothedScore, median_filter
from mmccd_cli.errors import DataError
from mmccd_cli.template import bounding_box

# The share of a normal distribution within one standard deviation of its middle.
ONE_SIGMA_PERCENTILE = 68.0


class ThresholdRule(Protocol):
    """Finds the threshold of one scan from its score, without labels."""

    def find(self, score: SmoothedScore) -> float:
        """Return the threshold, in the score's unit."""

    def describe(self) -> str:
        """Say the rule and its constants in a few words."""


@dataclass(frozen=True)
class FixedThreshold:
    """The same threshold for every scan."""

    value: float

    def find(self, score: SmoothedScore) -> float:
        """Return the value, whatever the score."""
        return self.value

    def describe(self) -> str:
        """Name the value."""
        return f"fixed {self.value:g}"


@dataclass(frozen=True)
class AdaptiveThreshold:
    """A constant plus a share of Otsu's threshold over the upper part of the scan's scores."""

    constant: float
    otsu_weight: float = 0.5
    upper: float = 0.5

    def find(self, score: SmoothedScore) -> float:
        """Return the threshold from the scores of the region."""
        scores = score.values[score.region]
        return adaptive_threshold(
            scores, self.constant, otsu_weight=self.otsu_weight, upper=self.upper
        )

    def describe(self) -> str:
        """Name the constant."""
        return f"adaptive {self.constant:g}"


@dataclass(frozen=True)
class EdgeThreshold:
    """Between two bounds, the threshold whose contour runs along the strongest edges.

    Components without a bright core are left out while looking (see `keep_components`), as they
    are from the mask.

    Attributes:
        low: Lowest threshold considered.
        high: Highest threshold considered.
        seed_threshold: A component counts only where its score exceeds this,
        min_seed_mm3: over at least this volume.
        min_fraction_of_largest: A component needs this share of the largest one's volume.
    """

    low: float = 0.9
    high: float = 1.9
    seed_threshold: float = 2.4
    min_seed_mm3: float = 80.0
    min_fraction_of_largest: float = 0.2

    def find(self, score: SmoothedScore) -> float:
        """Return the threshold with the strongest contour."""
        candidates = edge_candidates(self.low, self.high)
        masks = candidate_masks(score, candidates, self)
        return strongest_edge(candidates, edge_profile(masks, score))

    def describe(self) -> str:
        """Name the bounds."""
        return f"edge {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Cleaning:
    """From a raw score to a mask: what every method that is compared with ours goes through.

    Attributes:
        erosion_mm: Rim of the brain that is left out.
        median_mm: Edge of the median filter's box; 0 for none.
        seed_threshold: A component counts only where its score exceeds this,
        min_seed_mm3: over at least this volume; 0 turns seeds off.
        min_fraction_of_largest: Components need this share of the largest one's volume.
        min_volume_mm3: Components need this volume.
    """

    erosion_mm: float = 3.0
    median_mm: float = 5.0
    seed_threshold: float = 2.4
    min_seed_mm3: float = 0.0
    min_fraction_of_largest: float = 0.2
    min_volume_mm3: float = 0.0

    def smooth(
        self, raw: NDArray[np.float32], brain: BoolArray, spacing_mm: Sequence[float]
    ) -> SmoothedScore:
        """Smooth a raw score.

        Args:
            raw: (I, J, K) float32, in robust standard deviations; 0 outside the brain.
            brain: (I, J, K) bool.
            spacing_mm: Voxel size, mm.
        """
        i, j, k = (float(s) for s in spacing_mm)
        return SmoothedScore(
            values=median_filter(raw, brain, size_mm=self.median_mm, spacing_mm=(i, j, k)),
            raw=raw,
            brain=brain,
            region=erode(brain, self.erosion_mm, (i, j, k)),
            spacing_mm=(i, j, k),
        )

    def segment(self, score: SmoothedScore, rule: ThresholdRule) -> BoolArray:
        """Turn a smoothed score into a cleaned mask.

        Args:
            score: From `smooth`.
            rule: Finds the threshold.

        Returns:
            (I, J, K) bool, a subset of the region but for filled holes.
        """
        mask = np.zeros(score.region.shape, dtype=bool)
        box = bounding_box(score.region, margin=1)
        values = score.values[box]
        above = (values > rule.find(score)) & score.region[box]
        kept = keep_components(
            above,
            score.spacing_mm,
            seeds=values > self.seed_threshold if self.min_seed_mm3 > 0 else None,
            min_seed_mm3=self.min_seed_mm3,
            min_fraction_of_largest=self.min_fraction_of_largest,
            min_volume_mm3=self.min_volume_mm3,
        )
        mask[box] = fill_holes(kept)
        return mask

    def describe(self) -> str:
        """Say it in a sentence, for tables."""
        parts = [
            f"{self.median_mm:g} mm median",
            f"{self.erosion_mm:g} mm rim left out",
            f"components of at least {self.min_fraction_of_largest:g} of the largest one's volume",
            "holes filled",
        ]
        return ", ".join(parts)


SHARED_CLEANING = Cleaning()
"""The cleaning of every row that is compared with ours."""


@dataclass(frozen=True)
class IntensityBaseline:
    """A weighted sum of z-scores.

    Attributes:
        name: What tables call it.
        weights: Weight by modality; negative where lesions are darker than the brain.
        cleaning: From the sum to a mask.
    """

    name: str
    weights: Mapping[str, float] = field(hash=False)
    cleaning: Cleaning = SHARED_CLEANING

    def score(
        self,
        images: Mapping[str, FloatArray],
        brain: BoolArray,
        spacing_mm: Sequence[float],
    ) -> SmoothedScore:
        """Compute the smoothed score of one subject.

        Args:
            images: (I, J, K) float by modality, in any unit, all on one grid; more than needed
                is no error.
            brain: (I, J, K) bool on that grid.
            spacing_mm: Voxel size, mm.

        Returns:
            The score and the region in which it may be thresholded.

        Raises:
            DataError: A modality is missing, or the brain is empty.
        """
        missing = [m for m in self.weights if m not in images]
        if missing:
            raise DataError(
                f"The baseline {self.name} needs {' and '.join(missing)}, which was not given.",
                next_step="Choose a baseline of the modalities at hand.",
            )
        total = np.zeros(brain.shape, dtype=np.float32)
        for modality, weight in self.weights.items():
            total += np.float32(weight) * robust_z(images[modality], brain)
        return self.cleaning.smooth(total, brain, spacing_mm)


BASELINES: Mapping[str, IntensityBaseline] = MappingProxyType(
    {
        b.name: b
        for b in (
            IntensityBaseline("flair-z", {"FLAIR": 1.0}),
            IntensityBaseline("t2w-z", {"T2w": 1.0}),
            # Oedema and tumour are dark on T1w, so the sign is turned.
            IntensityBaseline("t1w-z", {"T1w": -1.0}),
            IntensityBaseline("flair-t2w-z", {"FLAIR": 1.0, "T2w": 0.5}),
        )
    }
)
"""The baselines that every evaluation shows, by name."""


def robust_z(image: FloatArray, brain: BoolArray) -> NDArray[np.float32]:
    """Express intensities as distances from the brain's median.

    The unit is the 68th percentile of the absolute deviations: one standard deviation where
    intensities are normal, and hardly moved by a lesion.

    Args:
        image: (I, J, K) float, any unit.
        brain: (I, J, K) bool.

    Returns:
        (I, J, K) float32, 0 outside the brain.

    Raises:
        DataError: The brain is empty, or more than two thirds of it have one intensity.
    """
    inside = np.asarray(image[brain], dtype=np.float64)
    if inside.size == 0:
        raise DataError("The brain mask is empty.", next_step="Give a mask of the brain.")
    median = np.median(inside)
    deviation = np.percentile(np.abs(inside - median), ONE_SIGMA_PERCENTILE)
    if not deviation > 0:
        raise DataError(
            "The image has hardly any contrast inside the brain.",
            cause="Most of its voxels have one and the same intensity.",
        )
    z = np.zeros(image.shape, dtype=np.float32)
    z[brain] = (inside - median) / deviation
    return z
