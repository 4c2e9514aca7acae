"""A second painter of lesions, which nothing is trained on: what is measured with it is not learnt.

It shares nothing with `training.painting` but the idea. A lesion is the level set of several
ellipsoids that run into each other in bent coordinates, with an edge between sharp and blurred and
partial volume on the grid. It *replaces* tissue: inside is the blurred tissue of the place, changed
by a contrast that is drawn for each scan on its own within what such lesions look like, and a
texture from elsewhere in the same scan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.anomaly.components import BoolArray
from mmccd_cli.anomaly.symmetry import smooth_inside

FloatImage = NDArray[np.float32]
Range = tuple[float, float]

KINDS: dict[str, tuple[float, dict[str, Range]]] = {
    # oedema, plaques, gliosis, most tumours
    "bright": (0.6, {"FLAIR": (0.5, 6.0), "T2w": (0.5, 6.0), "T1w": (-3.0, -0.2)}),
    # cysts, old infarcts, necrosis
    "fluid": (0.15, {"FLAIR": (-4.0, -1.0), "T2w": (2.0, 8.0), "T1w": (-4.0, -1.5)}),
    # old blood, lime
    "dark": (0.15, {"FLAIR": (-5.0, -1.0), "T2w": (-5.0, -1.0), "T1w": (-1.0, 2.0)}),
    # fat, protein, fresh blood
    "bright on T1w": (0.1, {"FLAIR": (0.0, 5.0), "T2w": (-3.0, 5.0), "T1w": (1.5, 4.0)}),
}
"""Kind -> how often, and modality -> least and largest change, in robust standard deviations."""
USUAL_SIGN = {"FLAIR": 1, "T2w": 1, "T1w": -1}
"""The direction in which most lesions differ."""
EDGE_MM = (0.5, 4.0)
"""Width of a lesion's edge, at most its radius."""
TISSUE_SIGMA_MM, TEXTURE_SIGMA_MM, TEXTURE = 6.0, 3.0, 0.7
"""Blur of the tissue that a lesion replaces, scale of the texture that it gets, and its share."""
ORDINARY = 2.5
"""A lesion is centred where every scan is within so many deviations of its median."""
ROOM = 0.85
"""Share of a lesion that must have room; what has none is left as it is."""
FINER, LARGE_MM = 2, 12.0
"""Points of the shape for each voxel and axis, for partial volume; one from this radius on."""
BENDS = 6
"""Points an axis at which the coordinates of a shape are bent."""
ATTEMPTS = 50
"""Places that are tried for one lesion."""


@dataclass(frozen=True, kw_only=True)
class PaintedLesion:
    """A lesion as it was painted.

    Attributes:
        kind: A key of `KINDS`.
        volume_ml: Volume of the voxels that it fills by half or more.
        contrast: Modality -> mean change in these voxels, in robust standard deviations.
    """

    kind: str
    volume_ml: float
    contrast: dict[str, float]

    def visible(self, modalities: Sequence[str]) -> float:
        """The largest change in any of these scans; negative where it is against the usual sign."""
        return max((USUAL_SIGN[m] * self.contrast[m] for m in modalities), key=abs)


@dataclass(frozen=True, eq=False, kw_only=True)
class Canvas:
    """Where lesions are painted.

    Attributes:
        images: Modality -> (I, J, K) normalised intensities.
        room: (I, J, K) bool, healthy tissue.
        spacing_mm: Voxel size.
        scale: What one robust standard deviation is in the images.
    """

    images: Mapping[str, FloatImage]
    room: BoolArray
    spacing_mm: tuple[float, float, float]
    scale: float

    @cached_property
    def layers(self) -> dict[str, tuple[FloatImage, FloatImage]]:
        """Modality -> blurred tissue and texture, each (I, J, K) float32, 0 where is no room."""
        found = {}
        for modality, image in self.images.items():
            blur, local = (
                smooth_inside(image, self.room, sigma_mm=sigma_mm, spacing_mm=self.spacing_mm)
                for sigma_mm in (TISSUE_SIGMA_MM, TEXTURE_SIGMA_MM)
            )
            found[modality] = blur, np.where(self.room, image - local, np.float32(0))
        return found


def paint_lesions(
    canvas: Canvas, volumes_ml: Sequence[float], generator: np.random.Generator
) -> tuple[dict[str, FloatImage], NDArray[np.int32], list[PaintedLesion]]:
    """Paint one lesion of each volume, the largest first, as far as there is room.

    Returns:
        The images with lesions; (I, J, K) int32, number of the lesion that fills a voxel by half or
        more; and the lesions, number 1 first. Those without room are missing.
    """
    painted = {modality: image.copy() for modality, image in canvas.images.items()}
    numbers, lesions = np.zeros(canvas.room.shape, np.int32), list[PaintedLesion]()
    free = canvas.room.copy()
    ordinary = np.all([np.abs(i) < ORDINARY * canvas.scale for i in painted.values()], axis=0)
    for volume_ml in sorted(volumes_ml, reverse=True):
        kind = str(generator.choice(list(KINDS), p=[often for often, _ in KINDS.values()]))
        placed = _place(
            free & ordinary,
            free,
            volume_mm3=1000 * volume_ml,
            spacing_mm=canvas.spacing_mm,
            generator=generator,
        )
        if placed is None:
            continue
        box, share = placed
        inside = share >= 0.5
        contrast = {}
        for modality, image in painted.items():
            change = generator.uniform(*KINDS[kind][1][modality])
            new = _tissue(canvas, modality, box) + np.float32(change * canvas.scale)
            before = image[box].copy()
            image[box] += share * (new - before)
            contrast[modality] = float((image[box] - before)[inside].mean()) / canvas.scale
        voxel_ml = float(np.prod(canvas.spacing_mm)) / 1000
        filled = float(np.count_nonzero(inside)) * voxel_ml
        lesions.append(PaintedLesion(kind=kind, volume_ml=filled, contrast=contrast))
        numbers[box][inside] = len(lesions)
        free[box] &= ndimage.maximum_filter(share, 3) <= 0
    return painted, numbers, lesions


def _place(
    middles: BoolArray,
    free: BoolArray,
    *,
    volume_mm3: float,
    spacing_mm: Sequence[float],
    generator: np.random.Generator,
) -> tuple[tuple[slice, ...], FloatImage] | None:
    """A box with room for a lesion, and how much of each voxel it fills; None without room."""
    places = np.argwhere(middles)
    whole = _shape(volume_mm3, np.asarray(spacing_mm, dtype=float), generator)
    reach = np.array(whole.shape) // 2
    for _ in range(ATTEMPTS if len(places) else 0):
        first = places[generator.integers(len(places))] - reach
        start, stop = np.maximum(first, 0), np.minimum(first + whole.shape, free.shape)
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        share = whole[tuple(slice(a, b) for a, b in zip(start - first, stop - first, strict=True))]
        if (inside := share >= 0.5).any() and free[box][inside].mean() >= ROOM:
            return box, np.where(free[box], share, np.float32(0))
    return None


def _shape(
    volume_mm3: float, spacing: NDArray[np.float64], generator: np.random.Generator
) -> FloatImage:
    """Share of each voxel that a lesion fills, around the middle of a box, float32 in [0, 1]."""
    radius_mm = (3 * volume_mm3 / (4 * np.pi)) ** (1 / 3)
    finer = FINER if radius_mm < LARGE_MM else 1
    reach = np.ceil((2 * radius_mm + EDGE_MM[1]) / spacing).astype(int)
    axes = [(np.arange(finer * (2 * r + 1)) + 0.5) / finer - 0.5 - r for r in reach]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) * spacing
    sizes = [points.shape[axis] / BENDS for axis in range(3)]
    bend = generator.standard_normal((BENDS, BENDS, BENDS, 3))
    points += 0.2 * radius_mm * ndimage.zoom(bend, (*sizes, 1), order=1)
    total = np.zeros(points.shape[:3])
    for number in range(int(generator.integers(1, 5))):
        turn, _ = np.linalg.qr(generator.standard_normal((3, 3)))
        middle = generator.normal(0.0, 0.55 * radius_mm, 3) if number else np.zeros(3)
        axis_mm = radius_mm * generator.uniform(0.5, 1.3, 3)
        total += np.exp(-4 * np.linalg.norm((points - middle) @ turn / axis_mm, axis=-1))
    level = -np.log(np.maximum(total, 1e-300)) / 4  # about the distance to the nearest, in radii
    fine_mm3 = float(np.prod(spacing)) / finer**3
    wanted = min(max(round(volume_mm3 / fine_mm3), 1), level.size) - 1
    contour = float(np.partition(level, wanted, axis=None)[wanted])
    edge_mm = min(generator.uniform(*EDGE_MM), radius_mm)
    fine = np.clip(0.5 + (contour - level) * radius_mm / edge_mm, 0.0, 1.0)
    i, j, k = (2 * reach + 1).tolist()
    blocks = fine.reshape(i, finer, j, finer, k, finer)
    return blocks.mean(axis=(1, 3, 5)).astype(np.float32)


def _tissue(canvas: Canvas, modality: str, box: tuple[slice, ...]) -> FloatImage:
    """What a lesion is made of before its contrast: blurred tissue, and texture from elsewhere."""
    blur, detail = canvas.layers[modality]
    # From the other side of the lesion, so that it is not that of the tissue which was there.
    texture = np.flip(detail[box])
    return (blur[box] + np.float32(TEXTURE) * texture).astype(np.float32)
