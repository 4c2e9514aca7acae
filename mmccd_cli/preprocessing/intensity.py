"""Intensities that mean the same in every scan, whatever its scanner and its lesions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.config import IntensityConfig
from mmccd_cli.errors import DataError
from mmccd_cli.template import median_and_deviation

_PUBLISHED_PERCENTILE = 90.0
_MIN_VOXELS = 10
_MOST_NEGATIVE = 0.05  # share of the brain; where more is below 0, 0 is not "no signal"


def normalise(
    data: NDArray[np.floating],
    mask: NDArray[np.bool_],
    settings: IntensityConfig,
    *,
    name: str = "The image",
) -> NDArray[np.float32]:
    """Rescale a scan by robust statistics of the voxels in a mask.

    Median and median deviation move little when a lesion covers a part of the brain: with a
    lesion of 15 % of the brain's volume, tissue shifts by about 0.2 deviations.

    Args:
        data: Values of any shape and unit.
        mask: bool, same shape; where there is brain that was imaged.
        settings: Method, scale, clipping and background.
        name: How errors call the scan.

    Returns:
        float32 array of the same shape, `settings.background` outside the mask.

    Raises:
        DataError: The mask is (nearly) empty or the values in it are constant.

    Source: "percentile" is (I - u/2) / u * 6 of the paper; u is taken inside the brain mask,
        where the published code takes it where the image is positive.
    """
    values = data[mask]
    if values.size < _MIN_VOXELS:
        raise DataError(
            f"{name} shows only {values.size} voxels of the brain.",
            cause="Its field of view misses the brain, or the brain mask is wrong.",
            next_step="Look at it in a viewer, or give a mask: --skull-strip MASK.nii.gz",
        )
    center, width = center_and_width(values, settings.method)
    if not (np.isfinite(width) and width > 0):
        raise DataError(
            f"{name} has no contrast inside the brain.",
            cause="Most of its brain voxels have one and the same value, as in a mask.",
            next_step="Look at it in a viewer and give the scan itself.",
        )
    values = (values.astype(np.float32) - np.float32(center)) / np.float32(width / settings.scale)
    if settings.clip is not None:
        np.clip(values, -settings.clip, settings.clip, out=values)
    normalised = np.full(data.shape, settings.background, dtype=np.float32)
    normalised[mask] = values
    return normalised


def is_standardised(values: NDArray[np.floating]) -> bool:
    """Tell whether so many values are negative that 0 is not the absence of signal.

    Args:
        values: Of a brain, not empty; the ripples of interpolation are fewer.
    """
    return bool((values < 0).mean() > _MOST_NEGATIVE)


def center_and_width(values: NDArray[np.floating], method: str) -> tuple[float, float]:
    """What `normalise` takes off values, and what it divides them by, before its scale."""
    if method == "percentile":
        upper = float(np.percentile(values, _PUBLISHED_PERCENTILE))
        return upper / 2, upper / 6
    return median_and_deviation(values)
