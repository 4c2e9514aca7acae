"""From an anomaly map to its mask and lesions: the step that needs no network.

The mask is a function of the map as it is written, its grid, the scan's threshold and the score's
settings, and of nothing else. All of them are in the result's files, so a new mask made from these
equals, voxel by voxel, the one of a new run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.components import (
    BoolArray,
    FloatArray,
    fill_holes,
    keep_components,
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
) -> tuple[BoolArray, list[Lesion]]:
    """Threshold a map, keep what counts and list the lesions.

    Args:
        anomaly_map: (I, J, K) float32 in [0, 1].
        config: Threshold, seeds, sizes and holes.
        affine: (4, 4), voxel index to RAS+ mm.
        scan_threshold: The scan's threshold in score units, which the map was made with.

    Returns:
        (I, J, K) bool, and its components, the largest first.
    """
    mask = mask_from_map(
        anomaly_map, config, spacing_mm=spacing_of(affine), scan_threshold=scan_threshold
    )
    return mask, find_lesions(mask, anomaly_map, affine)


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
    seeds = None
    if config.min_seed_mm3 > 0:
        least = map_from_score(np.array(config.seed_threshold), scan_threshold, config)
        seeds = anomaly_map > least
    kept = keep_components(
        anomaly_map > config.threshold,
        spacing_mm,
        seeds=seeds,
        min_seed_mm3=config.min_seed_mm3,
        min_fraction_of_largest=config.min_fraction_of_largest,
        min_volume_mm3=config.min_lesion_mm3,
    )
    return fill_holes(kept, config.fill_holes)


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
    voxel_ml = voxel_volume_mm3(affine) / 1000
    lesions = []
    for number, index in enumerate(np.argsort(-voxels, kind="stable"), start=1):
        box = boxes[index]
        inside = labels[box] == index + 1
        values = anomaly_map[box][inside].astype(np.float64)
        start = np.array([s.start for s in box], dtype=float)
        x, y, z = affine[:3, :3] @ (np.argwhere(inside).mean(axis=0) + start) + affine[:3, 3]
        i, j, k = ((int(s.start), int(s.stop)) for s in box)
        lesion = Lesion(
            id=number,
            volume_ml=float(values.size * voxel_ml),
            peak=float(values.max()),
            mean=float(values.mean()),
            centroid_ras_mm=(float(x), float(y), float(z)),
            box=(i, j, k),
        )
        lesions.append(lesion)
    return lesions
