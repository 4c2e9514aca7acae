"""Moving images in space: resampling, registration and bias correction, all with SimpleITK.

The only module that knows SimpleITK, and that SimpleITK's world is LPS+ where ours is RAS+.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from mmccd_cli.volume import Volume

Interpolation = Literal["nearest", "linear", "bspline"]

_INTERPOLATORS = {
    "nearest": sitk.sitkNearestNeighbor,
    "linear": sitk.sitkLinear,
    "bspline": sitk.sitkBSpline,
}
_SAME_GRID_MM = 0.01
_GAUSSIAN_FWHM = 2.3548  # full width at half maximum of a Gaussian, in standard deviations


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
    threads: int = 1,
) -> Volume:
    """Interpolate a volume at the voxel centres of another grid, once.

    Everything happens between voxel indices, where no affine can be refused or bent: shear,
    oblique axes and mirrored axes are exact.

    Args:
        volume: What to interpolate.
        shape: (I, J, K) of the new grid.
        affine: (4, 4) from indices of the new grid to its world, RAS+ mm.
        interpolation: "nearest", "linear" or "bspline" (cubic).
        matrix: (4, 4) from the new grid's world to the volume's world, RAS+ mm; None: identity.
        fill: Value of voxels whose centre lies outside the volume.
        threads: Number of threads; the result does not depend on it.

    Returns:
        The volume on the new grid.
    """
    affine = np.asarray(affine, dtype=np.float64)
    matrix = np.eye(4) if matrix is None else np.asarray(matrix, dtype=np.float64)
    index_from_index = np.linalg.inv(volume.affine) @ matrix @ affine
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(n) for n in shape])
    resampler.SetTransform(_affine_transform(index_from_index))
    resampler.SetInterpolator(_INTERPOLATORS[interpolation])
    resampler.SetDefaultPixelValue(float(fill))
    resampler.SetNumberOfThreads(threads)
    image = resampler.Execute(sitk.GetImageFromArray(volume.data.T))
    return Volume(sitk.GetArrayViewFromImage(image).T, affine)


def smooth_for(volume: Volume, affine: ArrayLike, *, threads: int = 1) -> Volume:
    """Blur a volume just enough to be sampled on a coarser grid without aliasing.

    Args:
        volume: What will be resampled.
        affine: (4, 4) from indices of the coarser grid to the volume's world, RAS+ mm.
        threads: Number of threads.

    Returns:
        The volume, blurred along those of its axes that are finer than the grid's samples.
    """
    spacing = _sample_spacing(volume.affine, np.asarray(affine, dtype=np.float64))
    ratio = spacing / np.asarray(volume.spacing_mm)
    sigma = np.sqrt(np.maximum(ratio**2 - 1, 0)) / _GAUSSIAN_FWHM
    if sigma.max() < 0.1:
        return volume
    image = sitk.GetImageFromArray(volume.data.T)
    gaussian = sitk.DiscreteGaussianImageFilter()
    gaussian.SetVariance([float(s) ** 2 for s in sigma])
    gaussian.SetMaximumKernelWidth(64)
    gaussian.SetUseImageSpacing(False)
    gaussian.SetNumberOfThreads(threads)
    return Volume(sitk.GetArrayViewFromImage(gaussian.Execute(image)).T, volume.affine)


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
