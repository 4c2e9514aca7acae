"""Lesions painted into healthy tissue, so that small and faint ones can be counted on.

A painter knows nothing of what networks do. It draws irregular blobs with soft edges: bright on
FLAIR and T2w and dark on T1w, as most lesions are, or, now and then, the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.anomaly.components import BoolArray

CONTRASTS = {"FLAIR": (1.5, 6.0), "T2w": (1.0, 5.0), "T1w": (-3.0, -0.5)}
"""Range of each modality's change in the middle of a lesion, in robust standard deviations."""
ROUGHNESS_MM = 3.0
"""Blur of the noise that makes a lesion's outline irregular."""
EDGE_MM = 1.0
"""Blur of a lesion's outline."""
ATTEMPTS = 50


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
    scale: float,
    generator: np.random.Generator,
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int32]]:
    """Paint lesions into a subject.

    Args:
        images: Modality -> (I, J, K) normalised intensities.
        healthy: (I, J, K) bool, where lesions may lie.
        painter: What is painted.
        spacing_mm: Voxel size.
        scale: Factor of the normalisation, which turns robust standard deviations into values.
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
        profile = _blob(free, volume_mm3, spacing_mm=spacing_mm, generator=generator)
        sign = -1.0 if generator.random() < painter.dark_fraction else 1.0
        changes = {m: sign * scale * generator.uniform(*CONTRASTS[m]) for m in painted}
        if profile is None:
            continue
        box, values = profile
        for modality, change in changes.items():
            painted[modality][box] += np.float32(change) * values
        numbers[box][values >= 0.5] = number
        free[box] &= values < 0.05
    return painted, numbers


def _blob(
    free: BoolArray,
    volume_mm3: float,
    *,
    spacing_mm: Sequence[float],
    generator: np.random.Generator,
) -> tuple[tuple[slice, slice, slice], NDArray[np.float32]] | None:
    """A blob of about the volume around a random free place: its box, and values in [0, 1].

    None where no place is found at which most of the blob would be free.
    """
    places, spacing = np.argwhere(free), np.asarray(spacing_mm, dtype=float)
    radius_mm = (3 * volume_mm3 / (4 * np.pi)) ** (1 / 3)
    reach = np.ceil((2 * radius_mm + 4 * EDGE_MM) / spacing).astype(int)
    for _ in range(ATTEMPTS if len(places) else 0):
        centre = places[generator.integers(len(places))]
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
        return box, np.where(free[box], soft, np.float32(0)).astype(np.float32)
    return None


def _level_of_volume(level: NDArray[np.float64], voxels: float) -> float:
    """The level under which so many voxels lie, at least one."""
    ordered = np.sort(level, axis=None)
    return float(ordered[min(max(round(voxels), 1), ordered.size) - 1])
