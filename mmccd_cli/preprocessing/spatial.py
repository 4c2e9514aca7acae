"""Images on other grids: resampling with SimpleITK, between voxel indices alone."""

from __future__ import annotations

from typing import Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.special import ive

from mmccd_cli.inputs.volume import Volume, reorient_array
from mmccd_cli.template import Box, affine_of_box, bounding_box

Interpolation = Literal["nearest", "linear"]

_INTERPOLATORS = {
    "nearest": sitk.sitkNearestNeighbor,
    "linear": sitk.sitkLinear,
}
_SAME_GRID_MM = 0.01

_REVERSED = np.eye(4)[[2, 1, 0, 3]]  # exchanges the first index and the third

LARGE = 2**25
"""Voxels of a scan beyond which memory counts: a head in voxels of 0.6 mm."""
_SLAB_VOXELS = 2**22  # of such a scan that are handled at a time
_GAUSSIAN_FWHM = 2.3548  # full width at half maximum of a Gaussian, in standard deviations
_LEAST_SIGMA = 0.1  # in voxels; less than this changes nothing
_KEPT_WEIGHT = 0.99  # of a Gaussian
_MOST_WEIGHTS = 64  # on each side


def same_grid(a: Volume, b: Volume) -> bool:
    """Whether two volumes have the same shape and, to 0.01 mm, the same voxel positions."""
    return _coincide(a.affine, b.affine, shapes=(a.shape, b.shape))


def same_voxels(a: Volume, b: Volume) -> bool:
    """Whether two volumes have voxels at the same places, in whatever order they are stored."""
    turned, affine = reorient_array(b.data, b.affine, a.orientation)  # a view: nothing is copied
    return _coincide(a.affine, affine, shapes=(a.shape, turned.shape))


def _coincide(
    a: NDArray[np.float64], b: NDArray[np.float64], *, shapes: tuple[tuple[int, ...], ...]
) -> bool:
    """Whether two grids of these shapes have the same voxels at the same indices."""
    if shapes[0] != shapes[1]:
        return False
    difference = _corners(shapes[0]) @ (a - b).T
    return bool(np.abs(difference[:, :3]).max() <= _SAME_GRID_MM)


def resample(
    volume: Volume,
    shape: tuple[int, int, int],
    affine: ArrayLike,
    *,
    interpolation: Interpolation = "linear",
    matrix: ArrayLike | None = None,
    fill: float = 0.0,
    smooth: bool = False,
    overwrite: bool = False,
    threads: int = 1,
) -> Volume:
    """Interpolate a volume at the voxel centres of another grid, once.

    Everything happens between voxel indices, where no affine can be refused or bent: shear,
    oblique axes and mirrored axes are exact.

    Args:
        volume: What to interpolate.
        shape: (I, J, K) of the new grid.
        affine: (4, 4) from indices of the new grid to its world, RAS+ mm.
        interpolation: "nearest" or "linear".
        matrix: (4, 4) from the new grid's world to the volume's world, RAS+ mm; None: identity.
        fill: Value of voxels whose centre lies outside the volume.
        smooth: Whether to blur first, just enough to be sampled on a coarser grid without
            aliasing: along those of the volume's axes that are finer than the grid's samples.
        overwrite: Whether the volume may be blurred in its own memory.
        threads: Number of threads; the result does not depend on it.

    Returns:
        The volume on the new grid.
    """
    affine = np.asarray(affine, dtype=np.float64)
    matrix = np.eye(4) if matrix is None else np.asarray(matrix, dtype=np.float64)
    if smooth and volume.data.size > LARGE:
        volume = _thinned(volume.data, volume.affine, samples=matrix @ affine)
    index_from_index = np.linalg.inv(volume.affine) @ matrix @ affine
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(n) for n in reversed(shape)])
    # SimpleITK's first axis is numpy's last; indices in its order spare two transpositions.
    resampler.SetTransform(affine_transform(_REVERSED @ index_from_index @ _REVERSED))
    resampler.SetInterpolator(_INTERPOLATORS[interpolation])
    resampler.SetDefaultPixelValue(float(fill))
    resampler.SetNumberOfThreads(threads)
    data = volume.data
    if smooth:
        ratio = _sample_spacing(volume.affine, matrix @ affine) / np.asarray(volume.spacing_mm)
        data = _smoothed(data, ratio, out=data if overwrite else None)
    image = resampler.Execute(sitk.GetImageFromArray(data))
    return Volume(sitk.GetArrayFromImage(image), affine)


def cut_out(
    data: NDArray, mask: NDArray[np.bool_], affine: NDArray[np.float64], *, samples: ArrayLike
) -> Volume:
    """Return what a mask leaves of an image that is to be blurred and sampled on a coarser grid.

    Of a very fine image it is means of blocks of voxels, made without a copy of the image.

    Args:
        data: (I, J, K) bool or float32.
        mask: (I, J, K) bool; what lies outside becomes 0.
        affine: (4, 4) of both.
        samples: (4, 4) from indices of the coarser grid to the image's world.
    """
    if data.size > LARGE:
        return _thinned(data, affine, samples=np.asarray(samples), mask=mask)
    return Volume(np.where(mask, data, np.float32(0)), affine)


def doubled(volume: Volume, box: Box | None = None) -> Volume:
    """Interpolate a volume by cubic B-splines on a grid of half its spacing.

    Linear interpolation cuts off peaks and takes half the volume of what is one or two voxels
    wide; splines hardly do, and what lies between samples 1 mm apart may be linear.

    Args:
        volume: (I, J, K), mirrored beyond its ends.
        box: The part that is wanted; None wants all. The rest of the volume counts all the same.

    Returns:
        (2 I - 1, 2 J - 1, 2 K - 1) of the part, float32: every second sample along each axis is
        one of the volume's own.

    Source:
        Unser, "Splines: a perfect fit for signal and image processing", IEEE Signal Processing
        Magazine 16 (1999) 22, eqs. 3 and 8.
    """
    data = volume.data
    box = box or bounding_box(np.ones(volume.shape, dtype=bool))
    for axis, wanted in enumerate(box):
        weights = ndimage.spline_filter1d(data, 3, axis, output=np.float32, mode="mirror")
        weights = np.moveaxis(weights, axis, 0)
        count = wanted.stop - wanted.start
        # The neighbours that the ends lack are mirrored.
        near = np.abs(np.arange(wanted.start - 1, wanted.stop + 1))
        near = np.minimum(near, 2 * len(weights) - 2 - near)
        around = weights[near]
        sides = list(data.shape)
        sides[axis] = 2 * count - 1
        result = np.empty(sides, np.float32)
        finer = np.moveaxis(result, axis, 0)
        finer[::2] = np.moveaxis(data, axis, 0)[wanted]
        outer, inner = around[:-3] + around[3:], around[1:-2] + around[2:-1]
        finer[1::2] = (outer + 23 * inner) / 48
        data = result
    affine = affine_of_box(volume.affine, box)
    return Volume(data, affine @ np.diag([0.5, 0.5, 0.5, 1.0]))


def _thinned(
    data: NDArray,
    affine: NDArray[np.float64],
    *,
    samples: NDArray[np.float64],
    mask: NDArray[np.bool_] | None = None,
) -> Volume:
    """Means of blocks of voxels, at most half as wide as the samples that are to be taken.

    What lies outside a mask counts as 0. A few planes are handled at a time.
    """
    ratios = _sample_spacing(affine, samples) / np.linalg.norm(affine[:3, :3], axis=0)
    blocks = [min(max(1, int(r / 2)), n) for r, n in zip(ratios, data.shape, strict=True)]
    shape = [-(-n // block) for n, block in zip(data.shape, blocks, strict=True)]
    thinned = np.empty(shape, np.float32)
    planes = max(1, _SLAB_VOXELS // (blocks[0] * data[0].size))
    for first in range(0, shape[0], planes):
        slab = slice(first * blocks[0], (first + planes) * blocks[0])
        part: NDArray = data[slab]
        if mask is not None:
            part = np.where(mask[slab], part, np.float32(0))
        for axis, block in enumerate(blocks):
            part = _means(part, axis, block)
        thinned[first : first + planes] = part
    change = np.diag([*blocks, 1.0])
    change[:3, 3] = (np.array(blocks) - 1) / 2
    return Volume(thinned, affine @ change)


def _means(data: NDArray, axis: int, block: int) -> NDArray:
    """Means of so many neighbours along an axis; of fewer at its end."""
    if block == 1:
        return data
    starts = np.arange(0, data.shape[axis], block)
    counts = np.diff(starts, append=data.shape[axis]).astype(np.float32)
    sums = np.add.reduceat(data, starts, axis=axis)
    sums /= counts.reshape([-1 if n == axis else 1 for n in range(3)])
    return sums


def _smoothed(
    data: NDArray[np.float32],
    ratio: NDArray[np.float64],
    *,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Blur an image for samples that lie `ratio` of its voxels apart along each of its axes."""
    sigmas = np.sqrt(np.maximum(ratio**2 - 1, 0)) / _GAUSSIAN_FWHM
    if sigmas.max() < _LEAST_SIGMA:
        return data
    for axis, sigma in enumerate(sigmas):
        if sigma > 0:
            weights = _gaussian(float(sigma) ** 2)
            out = np.empty_like(data) if out is None else out
            data = ndimage.correlate1d(data, weights, axis, output=out, mode="nearest")
    return data


def _gaussian(variance: float) -> NDArray[np.float64]:
    """Weights of a Gaussian between whole voxels, up to a hundredth of their sum.

    Source: Lindeberg, "Scale-space for discrete signals", IEEE Trans. PAMI 12 (1990) 234, eq. 2;
        SimpleITK's DiscreteGaussian has the same weights and takes twice the time.
    """
    half = ive(np.arange(_MOST_WEIGHTS), variance)
    sums = 2 * np.cumsum(half) - half[0]
    half = half[: max(2, 1 + int(np.searchsorted(sums, _KEPT_WEIGHT)))]
    weights = np.concatenate([half[:0:-1], half])
    return weights / weights.sum()


def centre_of_mass(weights: NDArray, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centre of mass of a grid's voxels in RAS+ mm.

    Args:
        weights: (I, J, K) bool or numbers that are not negative; not all zero.
        affine: (4, 4) of the grid.
    """
    total = float(weights.sum(dtype=np.float64))
    index = [
        float((weights.sum(axis=axes, dtype=np.float64) * np.arange(n)).sum()) / total
        for axes, n in zip(((1, 2), (0, 2), (0, 1)), weights.shape, strict=True)
    ]
    return (affine @ np.array([*index, 1.0]))[:3]


def working_grid(
    scan: Volume, spacing_mm: float, padding_mm: float, *, keep_thick: bool = True
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Lay an orthonormal grid along a scan's axes, with a margin.

    Args:
        scan: Only its shape and affine matter.
        spacing_mm: Voxel size wanted.
        padding_mm: Margin on each side.
        keep_thick: Whether axes that are coarser keep their own spacing.

    Returns:
        Shape and affine of the grid.
    """
    steps, directions = steps_and_directions(scan.affine)
    spacing = np.maximum(steps * keep_thick, spacing_mm)
    corners = (_corners(scan.shape) @ scan.affine.T)[:, :3] @ directions
    low, high = corners.min(axis=0) - padding_mm, corners.max(axis=0) + padding_mm
    # A whole number of steps stays one where the affine is a hair off.
    counts = np.maximum(1, np.ceil((high - low) / spacing - 1e-3).astype(int) + 1)
    start = (low + high) / 2 - (counts - 1) / 2 * spacing
    working = np.eye(4)
    working[:3, :3] = directions * spacing
    working[:3, 3] = directions @ start
    return (int(counts[0]), int(counts[1]), int(counts[2])), working


def steps_and_directions(
    affine: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Spacing of a grid, and the orthonormal matrix nearest to the directions of its axes."""
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / steps)
    return steps, left @ right


def _sample_spacing(fine: NDArray[np.float64], coarse: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spacing of a grid's samples along each axis of a finer grid, in mm."""
    steps = fine[:3, :3] / np.linalg.norm(fine[:3, :3], axis=0)
    lengths = np.linalg.norm(coarse[:3, :3], axis=0)
    directions = coarse[:3, :3] / lengths
    weights = (steps.T @ directions) ** 2
    return np.sqrt((weights * lengths**2).sum(axis=1) / weights.sum(axis=1))


def affine_transform(matrix: NDArray[np.float64]) -> sitk.AffineTransform:
    """A (4, 4) matrix as SimpleITK has it."""
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    return transform


def _corners(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """(8, 4) homogeneous voxel indices of a grid's corners."""
    axes = np.meshgrid(*[(0.0, n - 1.0) for n in shape], indexing="ij")
    return np.stack([*(a.ravel() for a in axes), np.ones(8)], axis=1)
