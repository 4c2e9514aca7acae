"""Moving images in space: resampling and registration, both with SimpleITK.

The only module that knows SimpleITK, and that SimpleITK's world is LPS+ where ours is RAS+.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.special import ive

from mmccd_cli.errors import DataError
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.template import Box, affine_of_box, bounding_box, transform_points

Interpolation = Literal["nearest", "linear"]

_INTERPOLATORS = {
    "nearest": sitk.sitkNearestNeighbor,
    "linear": sitk.sitkLinear,
}
_SAME_GRID_MM = 0.01
_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Registration happens in units of a brain's radius: there a step of the optimiser means as much
# in a rotation, a scale or a shear as in a translation. (SimpleITK's own parameter scales do not
# do that: its step lengths are measured after scaling, and blow up once translations are found.)
_RADIUS_MM = 60.0
_UNIT_FROM_RAS = np.diag([1 / _RADIUS_MM] * 3 + [1.0]) @ _LPS_FROM_RAS
_RAS_FROM_UNIT = np.linalg.inv(_UNIT_FROM_RAS)

_REVERSED = np.eye(4)[[2, 1, 0, 3]]  # exchanges the first index and the third

_COARSE_MM = 8.0
_START_DEGREES = (-20.0, 0.0, 20.0)
_STARTS_KEPT = 2
_PADDING_MM = 60.0
_MARGIN_MM = 10.0
_WINSOR_PERCENTILES = (0.5, 99.5)
_HISTOGRAM_BINS = 32
_DECIMALS = 6  # of affines in mm; rounding of headers is smaller by far
LARGE = 2**25
"""Voxels of a scan beyond which memory counts: a head in voxels of 0.6 mm."""
_SLAB_VOXELS = 2**22  # of such a scan that are handled at a time
_GAUSSIAN_FWHM = 2.3548  # full width at half maximum of a Gaussian, in standard deviations
_LEAST_SIGMA = 0.1  # in voxels; less than this changes nothing
_KEPT_WEIGHT = 0.99  # of a Gaussian
_MOST_WEIGHTS = 64  # on each side


def same_grid(a: Volume, b: Volume) -> bool:
    """Whether two volumes have the same shape and, to 0.01 mm, the same voxel positions."""
    if a.shape != b.shape:
        return False
    corners = _corners(a.shape)
    difference = corners @ (a.affine - b.affine).T
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
    resampler.SetTransform(_affine_transform(_REVERSED @ index_from_index @ _REVERSED))
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


@dataclass(frozen=True, eq=False, kw_only=True)
class RegistrationResult:
    """Where a registration ended.

    Args:
        matrix: (4, 4) from the fixed image's world to the moving image's world, RAS+ mm.
        metric: Negative Mattes mutual information at the end; lower is better.
        iterations: Optimiser iterations over all levels.
        stop: What the optimiser said when it stopped.
    """

    matrix: NDArray[np.float64]
    metric: float
    iterations: int
    stop: str


@dataclass(frozen=True, kw_only=True)
class _Level:
    """One resolution of a registration: working spacing, sampling and optimiser steps."""

    spacing_mm: float
    samples: int
    step_mm: float
    iterations: int


_COARSE = _Level(spacing_mm=_COARSE_MM, samples=2**31, step_mm=4.0, iterations=4)
_LEVELS = (
    _Level(spacing_mm=4.0, samples=20_000, step_mm=2.0, iterations=12),
    _Level(spacing_mm=2.0, samples=30_000, step_mm=0.5, iterations=8),
)


def register(fixed: Volume, moving: Volume, *, seed: int = 0) -> RegistrationResult:
    """Find how one image of a head lies in another, turned and shifted, whatever their contrasts.

    Mutual information, from several starts (the headers as they are, centres of mass, rotations
    of 20 degrees) at 8 mm down to 2 mm. Thick slices keep their own spacing. Only how the images
    lie to each other counts, not where the headers' origin is. One thread, so that the result is
    the same to the last bit; a second would not make it faster.

    Args:
        fixed: The image whose world the answer starts from.
        moving: The image whose world the answer leads to.
        seed: Seed of the sampled points.

    Returns:
        The matrix, and how the search ended.

    Raises:
        DataError: One of the images is constant.
    """
    origin = transform_points(fixed.affine, (np.array(fixed.shape) - 1) / 2)
    pair = _Scan(_seen_from(fixed, origin)), _Scan(_seen_from(moving, origin))
    with _one_thread():
        found = _search_starts(*pair, seed)
        for level in _LEVELS:
            images = [scan.at(level.spacing_mm) for scan in pair]
            ended = _Alignment(images, pair[0].centre, level=level, seed=seed).optimise(
                found.matrix
            )
            found = replace(ended, iterations=found.iterations + ended.iterations)
    there = np.eye(4)
    there[:3, 3] = origin
    return replace(found, matrix=there @ found.matrix @ np.linalg.inv(there))


def _seen_from(volume: Volume, origin: NDArray[np.float64]) -> Volume:
    """The volume with another origin of its world; a hair's difference of headers is rounded."""
    affine = volume.affine.copy()
    affine[:3, 3] -= origin
    return Volume(volume.data, affine.round(_DECIMALS))


class _Scan:
    """A scan that can be had at any working resolution, winsorised and cropped."""

    def __init__(self, volume: Volume) -> None:
        occupied = volume.data != 0
        if not occupied.any():
            raise DataError("An image to be registered is empty.")
        box = bounding_box(occupied)
        part = volume.cropped(box)
        low, high = np.percentile(part.data[occupied[box]], _WINSOR_PERCENTILES)
        if not high > low:
            raise DataError("An image to be registered is constant.")
        background = min(low, 0.0)
        winsorised = np.clip(part.data, background, high)
        self.image = Volume(winsorised, part.affine)
        self.centre = centre_of_mass(winsorised - background, part.affine)

    def at(self, spacing_mm: float, padding_mm: float = _MARGIN_MM) -> sitk.Image:
        """The image on an orthonormal grid, no finer than the scan or the given spacing."""
        shape, affine = working_grid(self.image, spacing_mm, padding_mm)
        image = resample(self.image, shape, affine, smooth=True)
        return _to_sitk(image.data, _UNIT_FROM_RAS @ affine)


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


class _Alignment:
    """A pair of working images and how to compare them.

    The transform that is optimised starts at the identity, before the matrix known so far.
    """

    def __init__(
        self,
        images: Sequence[sitk.Image],
        centre: NDArray[np.float64],
        *,
        level: _Level,
        seed: int,
    ) -> None:
        self._images = images
        self._centre = (_UNIT_FROM_RAS[:3, :3] @ centre).tolist()
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetMetricAsMattesMutualInformation(_HISTOGRAM_BINS)
        method.SetMetricUseFixedImageGradientFilter(False)
        method.SetMetricUseMovingImageGradientFilter(False)
        share = level.samples / images[0].GetNumberOfPixels()
        if share < 1:
            method.SetMetricSamplingStrategy(method.RANDOM)
            # SimpleITK takes the time of day as the seed when it is given 0.
            method.SetMetricSamplingPercentage(share, 1 + seed % (2**31))
        # Powell's method needs no derivative: that of mutual information is inaccurate enough
        # to stop line searches and gradient descent millimetres away from the optimum.
        method.SetOptimizerAsPowell(
            numberOfIterations=level.iterations,
            maximumLineIterations=12,
            stepLength=level.step_mm / _RADIUS_MM,
            stepTolerance=0.01 / _RADIUS_MM,
            valueTolerance=1e-4,
        )
        self._method = method

    def evaluate(self, matrix: NDArray[np.float64]) -> float:
        """Metric at a matrix, infinite where the images do not overlap."""
        self._start_from(matrix)
        try:
            return float(self._method.MetricEvaluate(*self._images))
        except RuntimeError:
            return float("inf")

    def optimise(self, matrix: NDArray[np.float64]) -> RegistrationResult:
        """Improve a matrix."""
        transform = self._start_from(matrix)
        try:
            self._method.Execute(*self._images)
        except RuntimeError as problem:
            reason = str(problem).splitlines()[-1].strip()
            return RegistrationResult(matrix=matrix, metric=np.inf, iterations=0, stop=reason)
        return RegistrationResult(
            matrix=matrix @ _ras_matrix(transform),
            metric=float(self._method.GetMetricValue()),
            iterations=int(self._method.GetOptimizerIteration()),
            stop=self._method.GetOptimizerStopConditionDescription(),
        )

    def _start_from(self, matrix: NDArray[np.float64]) -> sitk.Transform:
        transform = sitk.Euler3DTransform()
        transform.SetCenter(self._centre)
        self._method.SetMovingInitialTransform(
            _affine_transform(_UNIT_FROM_RAS @ matrix @ _RAS_FROM_UNIT)
        )
        self._method.SetInitialTransform(transform, inPlace=True)
        return transform


_held: list[int] = []
_held_lock = threading.Lock()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Hold the metric, which has no setting of its own, to one thread.

    Several registrations may run at once: the last one to end puts the number back.
    """
    with _held_lock:
        _held.append(sitk.ProcessObject.GetGlobalDefaultNumberOfThreads())
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        with _held_lock:
            before = _held.pop()  # the first comes last
            if not _held:
                sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _search_starts(fixed: _Scan, moving: _Scan, seed: int) -> RegistrationResult:
    """Try starts at a coarse resolution and return the best after a short optimisation."""
    # The moving image is padded with its background, so that all starts are compared over the
    # same points: mutual information over a small overlap can be high by chance.
    images = fixed.at(_COARSE_MM), moving.at(_COARSE_MM, _PADDING_MM)
    task = _Alignment(images, fixed.centre, level=_COARSE, seed=seed)
    starts = [np.eye(4)]
    for degrees in itertools.product(_START_DEGREES, repeat=3):
        starts.append(_rotation_about(fixed.centre, moving.centre, np.radians(degrees)))
    ranked = sorted(range(len(starts)), key=lambda n: (task.evaluate(starts[n]), n))
    # The headers as they are always get their chance: scans of one session mostly agree, and where
    # no other start is better, none needs to be tried.
    kept = [0] if ranked[0] == 0 else list(dict.fromkeys([0, 14, *ranked[:_STARTS_KEPT]]))
    return min((task.optimise(starts[n]) for n in kept), key=lambda ended: ended.metric)


def _rotation_about(
    fixed_centre: NDArray[np.float64],
    moving_centre: NDArray[np.float64],
    radians: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(4, 4) that turns about the fixed centre and carries it to the moving centre."""
    rotation = sitk.Euler3DTransform()
    rotation.SetRotation(*[float(angle) for angle in radians])
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(rotation.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = moving_centre - matrix[:3, :3] @ fixed_centre
    return matrix


def working_grid(
    scan: Volume, spacing_mm: float, padding_mm: float
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Lay an orthonormal grid along a scan's axes, with a margin.

    Args:
        scan: Only its shape and affine matter.
        spacing_mm: Voxel size wanted; axes that are coarser keep their own.
        padding_mm: Margin on each side.

    Returns:
        Shape and affine of the grid.
    """
    steps, directions = _steps_and_directions(scan.affine)
    spacing = np.maximum(steps, spacing_mm)
    corners = (_corners(scan.shape) @ scan.affine.T)[:, :3] @ directions
    low, high = corners.min(axis=0) - padding_mm, corners.max(axis=0) + padding_mm
    # A whole number of steps stays one where the affine is a hair off.
    counts = np.maximum(1, np.ceil((high - low) / spacing - 1e-3).astype(int) + 1)
    start = (low + high) / 2 - (counts - 1) / 2 * spacing
    working = np.eye(4)
    working[:3, :3] = directions * spacing
    working[:3, 3] = directions @ start
    return (int(counts[0]), int(counts[1]), int(counts[2])), working


def _to_sitk(data: NDArray, affine: NDArray[np.float64]) -> sitk.Image:
    """An image in SimpleITK's world; shear cannot be said there and is dropped."""
    spacing, directions = _steps_and_directions(affine)
    image = sitk.GetImageFromArray(data.T)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection(directions.ravel().tolist())
    return image


def _ras_matrix(transform: sitk.Euler3DTransform) -> NDArray[np.float64]:
    matrix = np.eye(4)
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    centre = np.array(transform.GetCenter())
    matrix[:3, :3] = linear
    matrix[:3, 3] = np.array(transform.GetTranslation()) + centre - linear @ centre
    return _RAS_FROM_UNIT @ matrix @ _UNIT_FROM_RAS


def _steps_and_directions(
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


def _affine_transform(matrix: NDArray[np.float64]) -> sitk.AffineTransform:
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    return transform


def _corners(shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """(8, 4) homogeneous voxel indices of a grid's corners."""
    axes = np.meshgrid(*[(0.0, n - 1.0) for n in shape], indexing="ij")
    return np.stack([*(a.ravel() for a in axes), np.ones(8)], axis=1)
