"""What healthy tissue looks like at each place of the template, learnt from healthy voxels only.

A translator knows which intensities belong together, but not that fluid belongs into the
ventricles. The atlas does: it holds mean and standard deviation of the healthy training tissue at
every voxel, and tells how far a scan lies beyond them. Numpy and scipy only.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.anomaly.components import BoolArray, FloatArray
from mmccd_cli.template import NormalRange

SIGMA_MM = 3.0
"""Blur of the atlas: brains agree with each other to a few millimetres only."""
MIN_SUBJECTS = 0.3
"""Blurred number of healthy subjects under which the mean is pulled towards zero."""
GREY, WHITE = -0.2, 0.5
"""Mean of healthy T1w, in robust standard deviations, where a place of the brain is grey matter,
and where it is white matter; in between it is partly so."""
RARER_IN_GREY = 2.0
"""Log odds by which small lesions are rarer in grey matter: insula, hippocampus and the walls of
the third ventricle are bright on FLAIR in healthy brains; plaques are mostly in white matter."""


class NormalRangeFit:
    """Running sums from which a modality's normal range is found; both sides count as one.

    Args:
        shape: Shape of the template.
        spacing_mm: Its voxel size.
    """

    def __init__(self, shape: tuple[int, int, int], spacing_mm: Iterable[float]) -> None:
        self._sigma = [SIGMA_MM / spacing for spacing in spacing_mm]
        self._count, self._sum, self._squares = (np.zeros(shape) for _ in range(3))

    def add(self, image: FloatArray, healthy: BoolArray) -> None:
        """Count one subject in.

        Args:
            image: (I, J, K) normalised intensities.
            healthy: (I, J, K) bool, brain away from any lesion.
        """
        inside = np.where(healthy, image, 0.0)
        self._count += self._blurred(healthy.astype(np.float64))
        self._sum += self._blurred(inside)
        self._squares += self._blurred(inside**2)

    def result(self) -> NormalRange:
        """Mean and spread over all subjects and their mirror images (axis 0 is left to right)."""
        count, total, squares = (a + a[::-1] for a in (self._count, self._sum, self._squares))
        count = np.maximum(count, MIN_SUBJECTS)
        mean = total / count
        variance = np.maximum(squares / count - mean**2, 0.0)
        return NormalRange(mean.astype(np.float32), np.sqrt(variance).astype(np.float32))

    def _blurred(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return ndimage.gaussian_filter(values, self._sigma)


def deviation(image: FloatArray, normal: NormalRange, sign: int) -> NDArray[np.float32]:
    """How far an image lies beyond the usual range of healthy tissue.

    Args:
        image: (I, J, K) normalised intensities on the template grid.
        normal: The modality's normal range, in the same unit.
        sign: 1 where anomalies are bright, -1 where they are dark, 0 where they may be either.

    Returns:
        (I, J, K) float32 in the image's unit: distance from the mean in the anomaly's direction,
        less one standard deviation.
    """
    distance = image - normal.mean
    distance = np.abs(distance) if sign == 0 else sign * distance
    return (distance - normal.spread).astype(np.float32)


def rarer_in_grey(t1w: FloatArray) -> NDArray[np.float32]:
    """How much rarer small lesions are at each place than in white matter.

    Args:
        t1w: (I, J, K) mean of healthy T1w, in robust standard deviations.

    Returns:
        (I, J, K) float32, log odds from 0 in white matter to `RARER_IN_GREY`.
    """
    white = np.clip((t1w - GREY) / (WHITE - GREY), 0, 1)
    return (RARER_IN_GREY * (1 - white)).astype(np.float32)
