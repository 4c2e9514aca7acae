"""How the scans of one head lie to each other: rigid, whatever their contrasts.

Two steps. `register` finds the way from anywhere, by all that two images show. `refine` ends where
their brains agree: scalp, neck and eyes move against the brain, and fat is displaced in the image
itself, which moved the end of the first step by half a millimetre to more than one.

SimpleITK's world is LPS+ where ours is RAS+; this is the only module that needs to know.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.errors import DataError
from mmccd_cli.inputs.volume import Volume, reorient_array
from mmccd_cli.preprocessing.spatial import (
    affine_transform,
    centre_of_mass,
    resample,
    steps_and_directions,
    working_grid,
)
from mmccd_cli.template import affine_of_box, bounding_box, transform_points

Matrix = NDArray[np.float64]

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Registration happens in units of a brain's radius: there a step of the optimiser means as much
# in a rotation as in a translation. (SimpleITK's own parameter scales do not do that: its step
# lengths are measured after scaling, and blow up once translations are found.)
_RADIUS_MM = 60.0
_UNIT_FROM_RAS = np.diag([1 / _RADIUS_MM] * 3 + [1.0]) @ _LPS_FROM_RAS
_RAS_FROM_UNIT = np.linalg.inv(_UNIT_FROM_RAS)

_START_DEGREES = (-20.0, 0.0, 20.0)
_STARTS_KEPT = 2
_PADDING_MM = 60.0
_MARGIN_MM = 10.0
_AROUND_BRAIN_MM = 3.0  # fluid and the edge of the brain say where it is
_WINSOR_PERCENTILES = (0.5, 99.5)
_HISTOGRAM_BINS = 32
_DECIMALS = 6  # of affines in mm; rounding of headers is smaller by far


@dataclass(frozen=True, kw_only=True)
class _Level:
    """One resolution of a registration: working spacing, sampling and optimiser steps."""

    spacing_mm: float
    samples: int
    step_mm: float
    iterations: int


_COARSE = _Level(spacing_mm=8.0, samples=2**31, step_mm=4.0, iterations=4)
_WHOLE = _Level(spacing_mm=4.0, samples=20_000, step_mm=2.0, iterations=12)
_IN_THE_BRAIN = _Level(spacing_mm=1.5, samples=30_000, step_mm=0.5, iterations=8)


def register(fixed: Volume, moving: Volume, *, seed: int = 0) -> Matrix:
    """Find how one image of a head lies in another, turned and shifted, whatever their contrasts.

    Mutual information, from several starts (the headers as they are, centres of mass, rotations
    of 20 degrees) at 8 mm, then at 4 mm: to a millimetre or two. Thick slices keep their own
    spacing. Only how the images lie to each other counts, not where the headers' origin is. One
    thread, so that the result is the same to the last bit; a second would not make it faster.

    Args:
        fixed: The image whose world the answer starts from.
        moving: The image whose world the answer leads to.
        seed: Seed of the sampled points.

    Returns:
        (4, 4) from the fixed image's world to the moving image's world, RAS+ mm.

    Raises:
        DataError: One of the images is constant.
    """
    there = _to_middle_of(fixed)
    pair = _Scan(_seen_from(there, fixed)), _Scan(_seen_from(there, moving))
    with _one_thread():
        start = _search_starts(*pair, seed)
        images = [scan.at(_WHOLE.spacing_mm) for scan in pair]
        matrix, _ = _Alignment(images, pair[0].centre, level=_WHOLE, seed=seed).optimise(start)
    return there @ matrix @ np.linalg.inv(there)


def refine(
    fixed: Volume, moving: Volume, matrix: Matrix, *, brain: NDArray[np.bool_], seed: int = 0
) -> Matrix:
    """Move a registration of two heads to where their brains agree.

    Mutual information of the brain and `_AROUND_BRAIN_MM` around it alone. Thick slices are
    interpolated: two scans with the same distance of slices would else be drawn to lie slice on
    slice. One thread, like `register`.

    Args:
        fixed: As `register` had it.
        moving: As `register` had it.
        matrix: What `register` found.
        brain: (I, J, K) bool on the grid of the fixed image, not empty; a millimetre does not
            matter.
        seed: Seed of the sampled points.

    Returns:
        (4, 4) like `matrix`, which it is where there is nothing to compare.
    """
    level, there = _IN_THE_BRAIN, _to_middle_of(fixed)
    box = bounding_box(brain, margin=2)
    if not fixed.data[box].any():  # as where a scan does not reach what another one shows
        return matrix
    part = fixed.cropped(box)
    shown = Volume(brain[box].astype(np.float32), part.affine)
    around = round(_AROUND_BRAIN_MM / level.spacing_mm)
    pair = [_Scan(_seen_from(there, image)) for image in (part, moving)]
    images = [scan.at(level.spacing_mm, keep_thick=False) for scan in pair]
    shape, affine = pair[0].grid(level.spacing_mm, keep_thick=False)
    inside = resample(_seen_from(there, shown), shape, affine, smooth=True).data >= 0.5
    inside = ndimage.binary_dilation(inside, iterations=around)
    task = _Alignment(images, pair[0].centre, level=level, seed=seed, inside=inside)
    with _one_thread():
        found, _ = task.optimise(np.linalg.inv(there) @ matrix @ there)
    return there @ found @ np.linalg.inv(there)


def _to_middle_of(volume: Volume) -> Matrix:
    """(4, 4) from a world whose origin is the middle of a volume's grid to the volume's."""
    there = np.eye(4)
    there[:3, 3] = transform_points(volume.affine, (np.array(volume.shape) - 1) / 2)
    return there


def _seen_from(there: Matrix, volume: Volume) -> Volume:
    """The volume with another origin of its world; a hair's difference of headers is rounded."""
    affine = volume.affine.copy()
    affine[:3, 3] -= there[:3, 3]
    return Volume(volume.data, affine.round(_DECIMALS))


class _Scan:
    """A scan that can be had at any working resolution, winsorised and cropped."""

    def __init__(self, volume: Volume) -> None:
        occupied = volume.data != 0
        if not occupied.any():
            raise DataError("An image to be registered is empty.")
        box = bounding_box(occupied)
        low, high = np.percentile(volume.data[occupied], _WINSOR_PERCENTILES)
        if not high > low:
            raise DataError("An image to be registered is constant.")
        background = min(low, 0.0)
        # One order of axes for all, so that the result does not depend on how voxels are stored.
        part, affine = reorient_array(volume.data[box], affine_of_box(volume.affine, box), "RAS")
        winsorised = np.clip(part, background, high, order="C")
        self.image = Volume(winsorised, affine)
        self.centre = centre_of_mass(winsorised - background, affine)

    def grid(
        self, spacing_mm: float, padding_mm: float = _MARGIN_MM, *, keep_thick: bool = True
    ) -> tuple[tuple[int, int, int], Matrix]:
        """Shape and affine of the grid that `at` has; see `working_grid`."""
        return working_grid(self.image, spacing_mm, padding_mm, keep_thick=keep_thick)

    def at(
        self, spacing_mm: float, padding_mm: float = _MARGIN_MM, *, keep_thick: bool = True
    ) -> sitk.Image:
        """The image on an orthonormal grid with a margin."""
        shape, affine = self.grid(spacing_mm, padding_mm, keep_thick=keep_thick)
        image = resample(self.image, shape, affine, smooth=True)
        return _to_sitk(image.data, affine)


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
        inside: NDArray[np.bool_] | None = None,
    ) -> None:
        self._images = images
        self._centre = (_UNIT_FROM_RAS[:3, :3] @ centre).tolist()
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetMetricAsMattesMutualInformation(_HISTOGRAM_BINS)
        method.SetMetricUseFixedImageGradientFilter(False)
        method.SetMetricUseMovingImageGradientFilter(False)
        voxels = images[0].GetNumberOfPixels()
        if inside is not None:
            mask = sitk.GetImageFromArray(inside.T.astype(np.uint8))
            mask.CopyInformation(images[0])
            method.SetMetricFixedMask(mask)
            voxels = int(inside.sum())
        share = level.samples / voxels
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

    def evaluate(self, matrix: Matrix) -> float:
        """Metric at a matrix, infinite where the images do not overlap."""
        self._start_from(matrix)
        try:
            return float(self._method.MetricEvaluate(*self._images))
        except RuntimeError:
            return float("inf")

    def optimise(self, matrix: Matrix) -> tuple[Matrix, float]:
        """Improve a matrix, and tell the metric there; infinite where there is no overlap."""
        transform = self._start_from(matrix)
        try:
            self._method.Execute(*self._images)
        except RuntimeError:
            return matrix, float("inf")
        return matrix @ _ras_matrix(transform), float(self._method.GetMetricValue())

    def _start_from(self, matrix: Matrix) -> sitk.Euler3DTransform:
        transform = sitk.Euler3DTransform()
        transform.SetCenter(self._centre)
        self._method.SetMovingInitialTransform(
            affine_transform(_UNIT_FROM_RAS @ matrix @ _RAS_FROM_UNIT)
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


def _search_starts(fixed: _Scan, moving: _Scan, seed: int) -> Matrix:
    """Try starts at a coarse resolution and return the best after a short optimisation."""
    # The moving image is padded with its background, so that all starts are compared over the
    # same points: mutual information over a small overlap can be high by chance.
    images = fixed.at(_COARSE.spacing_mm), moving.at(_COARSE.spacing_mm, _PADDING_MM)
    task = _Alignment(images, fixed.centre, level=_COARSE, seed=seed)
    starts = [np.eye(4)]
    for degrees in itertools.product(_START_DEGREES, repeat=3):
        starts.append(_rotation_about(fixed.centre, moving.centre, np.radians(degrees)))
    ranked = sorted(range(len(starts)), key=lambda n: (task.evaluate(starts[n]), n))
    # The headers as they are always get their chance: scans of one session mostly agree, and where
    # no other start is better, none needs to be tried.
    kept = [0] if ranked[0] == 0 else list(dict.fromkeys([0, 14, *ranked[:_STARTS_KEPT]]))
    return min((task.optimise(starts[n]) for n in kept), key=lambda ended: ended[1])[0]


def _rotation_about(
    fixed_centre: NDArray[np.float64],
    moving_centre: NDArray[np.float64],
    radians: NDArray[np.float64],
) -> Matrix:
    """(4, 4) that turns about the fixed centre and carries it to the moving centre."""
    rotation = sitk.Euler3DTransform()
    rotation.SetRotation(*[float(angle) for angle in radians])
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(rotation.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = moving_centre - matrix[:3, :3] @ fixed_centre
    return matrix


def _to_sitk(data: NDArray, affine: Matrix) -> sitk.Image:
    """An image in SimpleITK's world; shear cannot be said there and is dropped."""
    spacing, directions = steps_and_directions(_UNIT_FROM_RAS @ affine)
    image = sitk.GetImageFromArray(data.T)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((_UNIT_FROM_RAS @ affine)[:3, 3].tolist())
    image.SetDirection(directions.ravel().tolist())
    return image


def _ras_matrix(transform: sitk.Euler3DTransform) -> Matrix:
    matrix = np.eye(4)
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    centre = np.array(transform.GetCenter())
    matrix[:3, :3] = linear
    matrix[:3, 3] = np.array(transform.GetTranslation()) + centre - linear @ centre
    return _RAS_FROM_UNIT @ matrix @ _UNIT_FROM_RAS
