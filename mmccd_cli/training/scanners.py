"""Scans as another scanner would have made them: other contrast, thick slices, noise, shading."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

KNOTS = np.array([-8.0, -3.0, -1.5, -0.5, 0.5, 1.5, 3.0, 6.0, 12.0])
"""Robust standard deviations between which the contrast of tissues is stretched at random."""
LEAST_SLOPE, MOST_SLOPE = 0.35, 2.8
"""Bounds of the slopes of that curve."""
MOST_THICKNESS_MM = 5.0
"""Of the thick slices of another scanner."""
THICK_FRACTION, NOISY_FRACTION = 0.4, 0.5
"""Shares of images with thick slices, and with noise."""
GAIN, OFFSET, SHADE, NOISE = (0.75, 1.3), (-0.25, 0.25), 0.15, 0.25
"""Ranges of an image's factor and shift, standard deviation of its shading and the largest one of
its noise; all but the factor in robust standard deviations."""


def stretch_contrast(
    values: NDArray[np.float32], strength: float, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Map intensities by a random rising curve through 0.

    Args:
        values: Any shape, in robust standard deviations.
        strength: Standard deviation of the logarithm of the curve's slopes.
        generator: Source of all randomness.
    """
    slopes = np.exp(strength * generator.standard_normal(len(KNOTS) - 1))
    steps = np.clip(slopes, LEAST_SLOPE, MOST_SLOPE) * np.diff(KNOTS)
    curve = np.concatenate([[0.0], np.cumsum(steps)])
    curve -= np.interp(0.0, KNOTS, curve)
    return np.interp(values, KNOTS, curve).astype(np.float32)


def acquire(
    image: NDArray[np.float32], spacing_mm: Sequence[float], generator: np.random.Generator
) -> NDArray[np.float32]:
    """Blur across slices, add noise and shading, and change the range of an image at random.

    Args:
        image: (I, J, K) in robust standard deviations.
        spacing_mm: Voxel size.
        generator: Source of all randomness.
    """
    if generator.random() < THICK_FRACTION:
        axis = int(generator.choice([0, 1, 2, 2, 2]))  # most slices are axial
        sigma = 0.35 * generator.uniform(0, MOST_THICKNESS_MM) / spacing_mm[axis]
        image = ndimage.gaussian_filter1d(image, sigma, axis=axis, mode="nearest")
    if generator.random() < NOISY_FRACTION:
        noise = generator.standard_normal(image.shape, dtype=np.float32)
        image = image + np.float32(generator.uniform(0, NOISE)) * noise
    height, width = image.shape[:2]
    coarse = SHADE * generator.standard_normal((4, 4))
    shade = ndimage.zoom(coarse, (height / 4, width / 4), order=1).astype(np.float32)
    gain, offset = np.float32(generator.uniform(*GAIN)), np.float32(generator.uniform(*OFFSET))
    return image * gain + offset + shade[..., None]
