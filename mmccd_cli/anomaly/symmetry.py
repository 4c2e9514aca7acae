"""What one side of the brain says about the other: healthy brightness is mostly on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.anomaly.components import BoolArray, FloatArray
from mmccd_cli.template import Template, bounding_box

Scalar = TypeVar("Scalar", bound=np.generic)

SIDES_SIGMA_MM = 4.0
"""Blur under which the two sides of a brain are compared to find its middle plane."""
OTHER_SIDE_SIGMA_MM = 2.4
"""Blur of the other side's image, for no brain is its own mirror image to the millimetre."""


def smooth_inside(
    score: FloatArray, brain: BoolArray, *, sigma_mm: float, spacing_mm: Sequence[float]
) -> NDArray[np.float32]:
    """Blur a score with a Gaussian without letting the outside of the brain in.

    Args:
        score: (I, J, K) float.
        brain: (I, J, K) bool.
        sigma_mm: Standard deviation of the Gaussian.
        spacing_mm: Voxel size, mm.

    Returns:
        (I, J, K) float32, 0 outside the brain.
    """
    smooth = np.zeros(score.shape, dtype=np.float32)
    box = bounding_box(brain)
    inside = brain[box]
    if inside.size == 0:
        return smooth
    sigma = [sigma_mm / float(s) for s in spacing_mm]
    weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma, mode="constant")
    total = np.where(inside, score[box], 0).astype(np.float32)
    total = ndimage.gaussian_filter(total, sigma, mode="constant")
    smooth[box] = np.where(inside, total / np.maximum(weight, 1e-3), 0)
    return smooth


def mirror(values: NDArray[Scalar], axis: int, centre: float) -> NDArray[Scalar]:
    """Reflect a volume at a plane across one axis, to the nearest voxel.

    Args:
        values: (I, J, K).
        axis: The axis that runs from left to right.
        centre: Index of the plane along it; a multiple of a half is exact.

    Returns:
        (I, J, K), 0 where the reflection would lie outside the volume.
    """
    size = values.shape[axis]
    source = round(2 * centre) - np.arange(size)
    valid = (source >= 0) & (source < size)
    reflected = np.zeros_like(values)
    np.moveaxis(reflected, axis, 0)[valid] = np.moveaxis(values, axis, 0)[source[valid]]
    return reflected


def middle_plane(image: FloatArray, brain: BoolArray, axis: int) -> float:
    """Find the plane across one axis at which a brain is most like its mirror image.

    Args:
        image: (I, J, K) float, best a smooth one (see `smooth_inside`).
        brain: (I, J, K) bool.
        axis: The axis that runs from left to right; the head must not be tilted to it by much.

    Returns:
        Index of the plane along the axis, a multiple of a half; the middle of the box that holds
        the brain where no plane is better.
    """
    box = bounding_box(brain)
    middle = (box[axis].start + box[axis].stop - 1) / 2
    best, plane = -np.inf, middle
    reach = max((box[axis].stop - box[axis].start) // 20, 1)
    for half_steps in range(-2 * reach, 2 * reach + 1):
        centre = middle + half_steps / 2
        shared = brain & mirror(brain, axis, centre)
        if np.count_nonzero(shared) < 2:
            continue
        pair = np.stack([image[shared], mirror(image, axis, centre)[shared]]).astype(np.float64)
        if (pair.std(axis=1) == 0).any():
            continue
        correlation = float(np.asarray(np.corrcoef(pair))[0, 1])
        likeness = correlation * np.count_nonzero(shared) / np.count_nonzero(brain)
        if likeness > best:
            best, plane = likeness, centre
    return plane


def asymmetry(
    score: FloatArray,
    brain: BoolArray,
    spacing_mm: Sequence[float],
    *,
    axis: int,
    centre: float,
    weight: float = 0.25,
    sigma_mm: float = 8.0,
) -> NDArray[np.float32]:
    """Lower a score where the other side of the brain scores high as well.

    Bright cortex, coil shading and the rims of the ventricles are on both sides; most lesions are
    on one. The other side is blurred, for no brain is its own mirror image to the millimetre.

    Args:
        score: (I, J, K) float, 0 where tissue is ordinary.
        brain: (I, J, K) bool.
        spacing_mm: Voxel size, mm.
        axis: The axis that runs from left to right.
        centre: Index of the middle plane along it.
        weight: How much of the other side's score is taken off.
        sigma_mm: Blur of the other side.

    Returns:
        (I, J, K) float32, 0 outside the brain.
    """
    blurred = smooth_inside(score, brain, sigma_mm=sigma_mm, spacing_mm=spacing_mm)
    other = mirror(blurred, axis, centre)
    return np.where(brain, score - weight * other, 0).astype(np.float32)


def middle_of_template(template: Template) -> float:
    """The plane between the sides of a template whose first axis runs from left to right.

    Returns:
        Its index along that axis, a multiple of a half.
    """
    first = next(iter(template.images.values()), template.mask.astype(np.float32))
    image = smooth_inside(
        first, template.mask, sigma_mm=SIDES_SIGMA_MM, spacing_mm=template.spacing_mm
    )
    return middle_plane(image, template.mask, axis=0)


def other_side(
    image: FloatArray, brain: BoolArray, *, centre: float, spacing_mm: Sequence[float]
) -> NDArray[np.float32]:
    """What lies on the other side of the brain, slightly blurred.

    Args:
        image: (I, J, K) float; the first axis runs from left to right.
        brain: (I, J, K) bool.
        centre: Index of the middle plane along the first axis.
        spacing_mm: Voxel size, mm.

    Returns:
        (I, J, K) float32, 0 where there is no brain on the other side.
    """
    blurred = smooth_inside(image, brain, sigma_mm=OTHER_SIDE_SIGMA_MM, spacing_mm=spacing_mm)
    return mirror(blurred, 0, centre)
