"""What is painted into healthy slices for the network of small foci: lesions, and what is none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.components import BoolArray
from mmccd_cli.config import MODALITIES
from mmccd_cli.training.foci_subjects import REACH, Spacing
from mmccd_cli.training.painting import Blob, draw_blob

LESIONS, FAINT_PATCHES = (0, 8), (0, 4)
"""Least number of what is painted into a sample, and one more than the most."""
CONTRASTS = {"FLAIR": (2.0, 7.0), "T2w": (0.7, 6.0), "T1w": (-2.5, 0.0)}
"""Change in the middle of a lesion, in robust standard deviations; bright ones by the logarithm."""
CONTRASTS_IN_WHITE = {**CONTRASTS, "FLAIR": (1.4, 7.0)}
"""White matter is so even that fainter ones stand out in it."""
FAINT = {"FLAIR": (0.3, 1.4), "T2w": (0.0, 1.4), "T1w": (-1.2, 0.0)}
"""That of faint patches, which are no lesions: what bright grey matter looks like."""
FAINT_SHARE_IN_WHITE = 0.65
"""Of that, where most of a patch lies in white matter."""
VOLUMES_MM3, LARGE_VOLUMES_MM3, FAINT_VOLUMES_MM3 = (15.0, 2000.0), (15.0, 10000.0), (60.0, 6000.0)
"""Least and largest volume of lesions, of those that may be large, and of faint patches."""
LARGE_FRACTION, FLUID_FRACTION, WHITE_FRACTION = 0.15, 0.13, 0.85
"""Shares of lesions that may be large, that are dark on FLAIR and no lesions, and that lie in white
matter, as most do; bright spots of grey matter are mostly healthy."""
PAIRED_FRACTION, PAIR_SHIFT_MM = 0.3, 6.0
"""Share of lesions that have another on the other side of the brain, and how far from its mirror
image that may lie: plaques beside the ventricles come in pairs, and are lesions all the same."""
BESIDE_FRACTION = 0.4
"""Share of white matter's lesions that lie beside the ventricles, as most plaques of multiple
sclerosis do."""
DOUBTFUL_WEIGHT = 0.1
"""How much brightness counts as healthy that may not be."""
SMALL_MM3, MOST_WEIGHT = 400.0, 6.0
"""Smaller lesions weigh more, by their surface, up to this much."""


class PaintedSlab:
    """A few slices, and what is painted into them.

    Attributes:
        images: (M, I, J, L) float32 in robust standard deviations; changed in place.
        target: (I, J, L) float32, how much of a voxel is painted lesion.
        weight: (I, J, L) float32, how much a voxel counts.
    """

    def __init__(
        self,
        images: NDArray[np.float32],
        *,
        free: BoolArray,
        white: BoolArray,
        beside: BoolArray,
        doubtful: BoolArray,
        spacing_mm: Spacing,
        middle: float,
    ) -> None:
        self.images, self.target = images, np.zeros(free.shape, np.float32)
        self.weight = np.where(doubtful, np.float32(DOUBTFUL_WEIGHT), np.float32(1))
        self._beside = beside
        self._free, self._white, self._spacing_mm = free, white, spacing_mm
        self._middle = middle
        self._near = np.zeros(free.shape, dtype=bool)
        self._near[..., REACH - 2 : REACH + 3] = True

    def paint(self, rng: np.random.Generator) -> None:
        """Paint faint patches, which are no lesions, and then lesions and fluid."""
        for _ in range(rng.integers(*FAINT_PATCHES)):
            blob = self._blob(self._free, FAINT_VOLUMES_MM3, rng)
            if blob is not None:
                inside = self._white[blob.box][blob.profile > 0.5]
                share = FAINT_SHARE_IN_WHITE if inside.any() and inside.mean() > 0.5 else 1.0
                self._change(blob, [share * rng.uniform(*FAINT[m]) for m in MODALITIES])
        for _ in range(rng.integers(*LESIONS)):
            volumes = LARGE_VOLUMES_MM3 if rng.random() < LARGE_FRACTION else VOLUMES_MM3
            in_white = rng.random() < WHITE_FRACTION
            places = self._white if in_white else self._free
            if in_white and rng.random() < BESIDE_FRACTION:
                places = self._beside
            contrasts = CONTRASTS_IN_WHITE if in_white else CONTRASTS
            changes = [_contrast(contrasts[m], rng) for m in MODALITIES]
            texture, fluid = rng.uniform(0, 0.9), rng.random() < FLUID_FRACTION
            blob = self._blob(places & self._near, volumes, rng)
            if blob is None:
                continue
            if fluid:
                changes[MODALITIES.index("FLAIR")] *= -1
            self._change(blob, changes, evened=texture)
            if fluid:
                self.target[blob.box] *= 1 - blob.profile
                continue
            self._count(blob)
            other = self._opposite(blob, rng) if rng.random() < PAIRED_FRACTION else None
            if other is not None:
                self._change(other, [c * rng.uniform(0.7, 1.3) for c in changes], evened=texture)
                self._count(other)

    def _opposite(self, blob: Blob, rng: np.random.Generator) -> Blob | None:
        """A blob of about the same size near the mirror image of one."""
        centre = [(part.start + part.stop - 1) / 2 for part in blob.box]
        centre[0] = 2 * self._middle - centre[0]
        near = np.zeros_like(self._free)
        near[
            tuple(
                slice(max(round(c - PAIR_SHIFT_MM / mm), 0), max(round(c + PAIR_SHIFT_MM / mm), 0))
                for c, mm in zip(centre, self._spacing_mm, strict=True)
            )
        ] = True
        volume = float(blob.profile.sum() * np.prod(self._spacing_mm)) * rng.uniform(0.5, 1.5)
        return self._blob(self._white & near & self._near, (volume, volume), rng)

    def _blob(
        self, places: BoolArray, volumes_mm3: tuple[float, float], rng: np.random.Generator
    ) -> Blob | None:
        volume = float(np.exp(rng.uniform(*np.log(volumes_mm3))))
        return draw_blob(
            self._free, volume, places=places, spacing_mm=self._spacing_mm, generator=rng
        )

    def _change(self, blob: Blob, changes: Sequence[float], evened: float = 0.0) -> None:
        """Add to each scan, and take away some of the texture below."""
        total = max(float(blob.profile.sum()), 1e-3)
        for image, change in zip(self.images, changes, strict=True):
            values = image[blob.box]
            mean = np.float32((values * blob.profile).sum() / total)
            image[blob.box] = values + blob.profile * (
                np.float32(change) + np.float32(evened) * (mean - values)
            )

    def _count(self, blob: Blob) -> None:
        """Make a lesion of a blob."""
        volume = float((blob.profile >= 0.5).sum() * np.prod(self._spacing_mm))
        weight = np.clip((SMALL_MM3 / max(volume, 1.0)) ** (2 / 3), 1.0, MOST_WEIGHT)
        inside = blob.profile >= 0.5
        self.weight[blob.box][inside] = weight
        self.target[blob.box] = np.maximum(self.target[blob.box], blob.profile)


def _contrast(ends: tuple[float, float], rng: np.random.Generator) -> float:
    """Between two ends; by the logarithm where both are positive."""
    if ends[0] > 0:
        return float(np.exp(rng.uniform(*np.log(ends))))
    return float(rng.uniform(*ends))
