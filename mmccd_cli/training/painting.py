"""Lesions painted into healthy tissue, so that small and faint ones can be counted on.

A painter knows nothing of what networks do. It draws irregular blobs with soft edges: bright on
FLAIR and T2w and dark on T1w, as most lesions are, or the other way round for a share of them that
is none unless asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.anomaly.components import BoolArray
from mmccd_cli.template import Box

CONTRASTS = {"FLAIR": (1.5, 6.0), "T2w": (1.0, 5.0), "T1w": (-3.0, -0.5)}
"""Range of each modality's change in the middle of a lesion, in robust standard deviations."""
ROUGHNESS_MM = 3.0
"""Blur of the noise that makes a lesion's outline irregular."""
EDGE_MM = 1.0
"""Blur of a lesion's outline."""
ATTEMPTS = 50
"""Places that are tried for one lesion."""


@dataclass(frozen=True, kw_only=True)
class Painter:
    """What is painted.

    Attributes:
        count: Lesions a scan; fewer where there is no room.
        volumes_ml: Least and largest volume; drawn evenly in the logarithm.
        dark_fraction: Share of lesions with the opposite contrast.
    """

    count: int = 8
    volumes_ml: tuple[float, float] = (0.05, 10.0)
    dark_fraction: float = 0.0


def paint(
    images: Mapping[str, NDArray[np.float32]],
    healthy: BoolArray,
    painter: Painter,
    *,
    spacing_mm: Sequence[float],
    generator: np.random.Generator,
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int32]]:
    """Paint lesions into a subject.

    Args:
        images: Modality -> (I, J, K) float32, in robust standard deviations; in any order.
        healthy: (I, J, K) bool, where lesions may lie.
        painter: What is painted.
        spacing_mm: Voxel size.
        generator: Source of all randomness.

    Returns:
        The images with lesions, and (I, J, K) int32: the number of the lesion at each voxel where
        it reaches half its contrast, 0 elsewhere.
    """
    painted = {modality: image.copy() for modality, image in images.items()}
    numbers, free = np.zeros(healthy.shape, np.int32), healthy.copy()
    low, high = np.log(painter.volumes_ml)
    for number in range(1, painter.count + 1):
        volume_mm3 = 1000 * float(np.exp(generator.uniform(low, high)))
        blob = draw_blob(free, volume_mm3, spacing_mm=spacing_mm, generator=generator)
        sign = -1.0 if generator.random() < painter.dark_fraction else 1.0
        changes = {m: sign * generator.uniform(*CONTRASTS[m]) for m in CONTRASTS if m in painted}
        if blob is None:
            continue
        box, values = blob
        for modality, change in changes.items():
            painted[modality][box] += np.float32(change) * values
        numbers[box][values >= 0.5] = number
        free[box] &= values < 0.05
    return painted, numbers


class Blob(NamedTuple):
    """A soft shape in a volume.

    Attributes:
        box: Where in the volume.
        profile: Values in [0, 1] in that box, float32.
    """

    box: Box
    profile: NDArray[np.float32]


def draw_blob(
    free: BoolArray,
    volume_mm3: float,
    *,
    spacing_mm: Sequence[float],
    generator: np.random.Generator,
    places: BoolArray | None = None,
) -> Blob | None:
    """Draw a blob of about the volume around a random place; it is cut where there is no room.

    Args:
        free: (I, J, K) bool, where there is room.
        volume_mm3: Its volume, at least one voxel.
        spacing_mm: Voxel size.
        generator: Source of all randomness.
        places: (I, J, K) bool, where its centre may lie; None: wherever there is room.

    Returns:
        The blob; None where no place is found at which most of it has room.
    """
    centres = np.argwhere(free if places is None else places)
    spacing = np.asarray(spacing_mm, dtype=float)
    radius_mm = (3 * volume_mm3 / (4 * np.pi)) ** (1 / 3)
    reach = np.ceil((2 * radius_mm + 4 * EDGE_MM) / spacing).astype(int)
    for _ in range(ATTEMPTS if len(centres) else 0):
        centre = centres[generator.integers(len(centres))]
        start = np.maximum(centre - reach, 0)
        stop = np.minimum(centre + reach + 1, free.shape)
        box = (slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2]))
        offsets = np.indices(free[box].shape).reshape(3, -1).T + start - centre
        stretch = generator.uniform(0.7, 1.4, size=3)
        distance = np.linalg.norm(offsets * spacing / stretch, axis=1).reshape(free[box].shape)
        rough = ndimage.gaussian_filter(
            generator.standard_normal(free[box].shape), ROUGHNESS_MM / spacing, mode="wrap"
        )
        level = distance / radius_mm + 0.35 * rough / max(float(rough.std()), 1e-6)
        inside = level <= _level_of_volume(level, volume_mm3 / float(np.prod(spacing)))
        if free[box][inside].mean() < 0.9:
            continue
        soft = ndimage.gaussian_filter(inside.astype(np.float32), EDGE_MM / spacing)
        soft /= max(float(soft.max()), 1e-6)
        return Blob(box, np.where(free[box], soft, np.float32(0)).astype(np.float32))
    return None


def _level_of_volume(level: NDArray[np.float64], voxels: float) -> float:
    """The level under which so many voxels lie, at least one."""
    ordered = np.sort(level, axis=None)
    return float(ordered[min(max(round(voxels), 1), ordered.size) - 1])
