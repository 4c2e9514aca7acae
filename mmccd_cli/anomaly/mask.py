"""From an anomaly map to its mask and lesions: the step that needs no network.

The mask is a function of the map as it is written, its grid, the scan's threshold and the score's
settings, and of nothing else. All of them are in the result's files, so a new mask made from these
equals, voxel by voxel, the one of a new run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.components import (
    BoolArray,
    FloatArray,
    JudgedComponents,
    component_sizes,
    fill_holes,
    judge_components,
    label_components,
)
from mmccd_cli.anomaly.score import map_from_score
from mmccd_cli.config import ScoreConfig
from mmccd_cli.template import spacing_of, voxel_volume_mm3


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One connected component of a mask.

    Attributes:
        id: 1 for the largest, then by falling volume.
        volume_ml: Volume in millilitres.
        peak: Highest value of the anomaly map inside.
        mean: Mean value of the anomaly map inside.
        centroid_ras_mm: Centre of the voxels in RAS+ world coordinates, mm.
        box: Voxel indices ((i0, i1), (j0, j1), (k0, k1)), the end excluded.
    """

    id: int
    volume_ml: float
    peak: float
    mean: float
    centroid_ras_mm: tuple[float, float, float]
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class LeftOut(Lesion):
    """A candidate: what the map shows above its threshold and the mask does not hold.

    Attributes:
        reason: Which rule left it out, what it has and what it would need.
    """

    reason: str


@dataclass(frozen=True, kw_only=True)
class LeftOutSmall:
    """Candidates that are counted and not listed.

    Attributes:
        count: How many there are.
        volume_ml: Their volume in all.
    """

    count: int = 0
    volume_ml: float = 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskFindings:
    """All that a map shows above its threshold: each voxel is in the mask or left out.

    Attributes:
        mask: (I, J, K) bool.
        lesions: Its components, the largest first.
        left_out: Components above the threshold that are not in it, the largest first, numbered
            after the lesions; of those of `LEAST_LISTED_MM3`, the `MOST_LISTED` largest.
        left_out_small: All others that are not in it.
    """

    mask: BoolArray
    lesions: list[Lesion]
    left_out: list[LeftOut]
    left_out_small: LeftOutSmall


LEAST_LISTED_MM3 = 10.0
"""Below this volume a candidate that was left out is only counted."""
MOST_LISTED = 100


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """What the user may set of the way from map to mask; None takes the bundle's calibration.

    Attributes:
        threshold: Value of the map above which a voxel belongs to the mask.
        min_lesion_mm3: Smallest lesion.
    """

    threshold: float | None = None
    min_lesion_mm3: float | None = None

    def applied_to(self, config: ScoreConfig) -> ScoreConfig:
        """Return a score's settings with the user's choices in it."""
        chosen = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(config, **chosen)

    def describe(self) -> dict[str, Any]:
        """Return what was asked for, as a record holds it; "auto" is as calibrated."""
        return {name: "auto" if value is None else value for name, value in asdict(self).items()}


AS_CALIBRATED = MaskOptions()

MASK_SETTINGS = (
    "threshold",
    "min_lesion_mm3",
    "min_fraction_of_largest",
    "min_seed_mm3",
    "fill_holes",
)
"""What of a score's settings changes the mask and not the map."""


def mask_settings(config: ScoreConfig) -> dict[str, Any]:
    """Return the part of a score's settings that changes the mask and not the map."""
    return {name: getattr(config, name) for name in MASK_SETTINGS}


def mask_and_lesions(
    anomaly_map: NDArray[np.float32],
    config: ScoreConfig,
    *,
    affine: NDArray[np.float64],
    scan_threshold: float,
) -> MaskFindings:
    """Threshold a map, keep what counts, and list the lesions and what was left out.

    Args:
        anomaly_map: (I, J, K) float32 in [0, 1].
        config: Threshold, seeds, sizes and holes.
        affine: (4, 4), voxel index to RAS+ mm.
        scan_threshold: The scan's threshold in score units, which the map was made with.
    """
    seed_value = _seed_value(config, scan_threshold)
    judged = _judge(anomaly_map, config, spacing_mm=spacing_of(affine), seed_value=seed_value)
    mask = fill_holes(judged.mask, config.fill_holes)
    lesions = find_lesions(mask, anomaly_map, affine)
    outside = np.where(mask, judged.labels.dtype.type(0), judged.labels)
    voxels, boxes = component_sizes(outside)
    voxel_mm3 = voxel_volume_mm3(affine)
    order = [int(index) for index in np.argsort(-voxels, kind="stable") if voxels[index]]
    listed = [index for index in order if voxels[index] * voxel_mm3 >= LEAST_LISTED_MM3 - 1e-6]
    del listed[MOST_LISTED:]
    left_out = []
    for number, index in enumerate(listed, start=len(lesions) + 1):
        found = _measure(outside, index, boxes[index], anomaly_map=anomaly_map, affine=affine)
        reason = _reason(judged, index, config, seed_value=seed_value, voxel_mm3=voxel_mm3)
        left_out.append(LeftOut(id=number, **found, reason=reason))
    others = voxels[order[len(listed) :]]
    small = LeftOutSmall(
        count=len(others), volume_ml=round(float(others.sum() * voxel_mm3 / 1000), 6)
    )
    return MaskFindings(mask=mask, lesions=lesions, left_out=left_out, left_out_small=small)


def mask_from_map(
    anomaly_map: NDArray[np.float32],
    config: ScoreConfig,
    *,
    spacing_mm: Sequence[float],
    scan_threshold: float,
) -> BoolArray:
    """Threshold an anomaly map, keep the components that count and fill their holes.

    Args:
        anomaly_map: (I, J, K), in [0, 1].
        config: Threshold of the map, seeds, component sizes and holes.
        spacing_mm: Voxel size.
        scan_threshold: The scan's threshold in score units, which the map was made with.
    """
    seed_value = _seed_value(config, scan_threshold)
    judged = _judge(anomaly_map, config, spacing_mm=spacing_mm, seed_value=seed_value)
    return fill_holes(judged.mask, config.fill_holes)


def _seed_value(config: ScoreConfig, scan_threshold: float) -> np.float32:
    """Value of the map above which a voxel is a seed."""
    return np.float32(map_from_score(np.array(config.seed_threshold), scan_threshold, config))


def _judge(
    anomaly_map: NDArray[np.float32],
    config: ScoreConfig,
    *,
    spacing_mm: Sequence[float],
    seed_value: np.float32,
) -> JudgedComponents:
    return judge_components(
        anomaly_map > config.threshold,
        spacing_mm,
        seeds=anomaly_map > seed_value if config.min_seed_mm3 > 0 else None,
        min_seed_mm3=config.min_seed_mm3,
        min_fraction_of_largest=config.min_fraction_of_largest,
        min_volume_mm3=config.min_lesion_mm3,
    )


def _reason(
    judged: JudgedComponents,
    index: int,
    config: ScoreConfig,
    *,
    seed_value: np.float32,
    voxel_mm3: float,
) -> str:
    """Say which rule leaves a component out: of two that do, the one that asks for more."""
    if judged.seed_voxels is not None and not judged.has_seeds[index]:
        held = volume_in_words(judged.seed_voxels[index] * voxel_mm3)
        needed = volume_in_words(judged.least_seed_voxels * voxel_mm3)
        return f"its core above {_below_one(seed_value)} has {held}, {needed} are needed"
    own = volume_in_words(judged.voxels[index] * voxel_mm3)
    largest_mm3 = judged.largest_voxels * voxel_mm3
    if config.min_fraction_of_largest * largest_mm3 > config.min_lesion_mm3:
        share, largest = f"{100 * config.min_fraction_of_largest:g}%", volume_in_words(largest_mm3)
        return f"{own} is less than {share} of the largest component's {largest}"
    smallest = volume_in_words(config.min_lesion_mm3)
    return f"{own} is less than the smallest lesion of {smallest}"


def _below_one(value: np.float32) -> str:
    """Write a value of the map so that it can be told from 1."""
    digits = math.ceil(-math.log10(max(1.0 - float(value), 1e-7)))
    return f"{value:.{max(2, digits)}f}"


def volume_in_words(mm3: float) -> str:
    """Write a volume in mm3 where it is small, else in ml."""
    return f"{mm3:.3g} mm3" if mm3 < 100 else f"{mm3 / 1000:.2f} ml"


def find_lesions(
    mask: BoolArray, anomaly_map: FloatArray, affine: NDArray[np.float64]
) -> list[Lesion]:
    """List the components of a mask, the largest first.

    Args:
        mask: (I, J, K) bool.
        anomaly_map: (I, J, K) float on the same grid.
        affine: (4, 4), voxel index to RAS+ mm.

    Returns:
        The lesions; none for an empty mask.
    """
    labels, voxels, boxes = label_components(mask)
    order = np.argsort(-voxels, kind="stable")
    measured = (
        _measure(labels, index, boxes[index], anomaly_map=anomaly_map, affine=affine)
        for index in order
    )
    return [Lesion(id=number, **found) for number, found in enumerate(measured, start=1)]


def _measure(
    labels: NDArray[np.integer[Any]],
    index: int,
    box: Any,
    *,
    anomaly_map: FloatArray,
    affine: NDArray[np.float64],
) -> dict[str, Any]:
    """The fields of a `Lesion` but its id, of the component with the label `index` + 1."""
    inside = labels[box] == index + 1
    values = anomaly_map[box][inside].astype(np.float64)
    start = np.array([s.start for s in box], dtype=float)
    x, y, z = affine[:3, :3] @ (np.argwhere(inside).mean(axis=0) + start) + affine[:3, 3]
    return {
        "volume_ml": float(values.size * (voxel_volume_mm3(affine) / 1000)),
        "peak": float(values.max()),
        "mean": float(values.mean()),
        "centroid_ras_mm": (float(x), float(y), float(z)),
        "box": tuple((int(s.start), int(s.stop)) for s in box),
    }
