"""The space in which the networks see brains, and the geometry of voxel grids.

Shared by the image side and the model side, so nothing here knows files or networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

Box = tuple[slice, slice, slice]
"""A part of a voxel grid: one slice of indices along each axis."""

_ONE_SIGMA_PERCENTILE = 68.0  # share of a normal distribution within one sigma of its middle


@dataclass(frozen=True, eq=False)
class NormalRange:
    """What healthy tissue of one modality looks like at each voxel of the template.

    Attributes:
        mean: (I, J, K) float32, normalised intensity.
        spread: (I, J, K) float32, standard deviation in the same unit.
    """

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Template:
    """A mean brain and the grid that it lies on.

    Args:
        images: Modality -> (I, J, K) float32 mean image, normalised; empty for a bare grid.
        mask: (I, J, K) bool, the mean brain.
        affine: (4, 4) float64 from indices to RAS+ mm; the axes run right, anterior, superior.
        normal: Modality -> range of healthy tissue; empty where none was learnt.
    """

    images: Mapping[str, NDArray[np.float32]]
    mask: NDArray[np.bool_]
    affine: NDArray[np.float64]
    normal: Mapping[str, NormalRange] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each axis."""
        i, j, k = self.mask.shape
        return (i, j, k)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along each axis."""
        x, y, z = np.diag(self.affine)[:3]
        return float(x), float(y), float(z)


@dataclass(frozen=True)
class Quantisation:
    """Eight-bit storage of normalised intensities: value = minimum + step * level.

    Attributes:
        minimum: Value of level 0.
        step: Distance between levels.
    """

    minimum: float = -4.0
    step: float = 8.0 / 255

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Round values to levels; what lies beyond the range takes the last level."""
        return np.clip(np.rint((values - self.minimum) / self.step), 0, 255).astype(np.uint8)

    def decode(self, levels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn levels into values."""
        return (levels * np.float32(self.step) + np.float32(self.minimum)).astype(np.float32)


def median_and_deviation(
    values: NDArray[np.floating], *, overwrite: bool = False
) -> tuple[float, float]:
    """Return the median of values and their robust standard deviation.

    The latter is the 68th percentile of the absolute deviations: one standard deviation where
    values are normal, and hardly moved by a lesion.

    Args:
        values: Any shape, not empty.
        overwrite: Whether this may be done in the memory of the values.
    """
    median = float(np.median(values, overwrite_input=overwrite))
    away = np.subtract(values, median, out=values if overwrite else None)
    np.abs(away, out=away)
    return median, float(np.percentile(away, _ONE_SIGMA_PERCENTILE, overwrite_input=True))


def correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float | None:
    """Return Pearson's correlation of two arrays of one shape; None where one is constant."""
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def spacing_of(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the distance in mm between neighbouring voxel centres along each axis."""
    i, j, k = np.linalg.norm(affine[:3, :3], axis=0)
    return (float(i), float(j), float(k))


def voxel_volume_mm3(affine: NDArray[np.float64]) -> float:
    """Return the volume of one voxel in cubic millimetres, exact under shear."""
    return float(abs(np.linalg.det(affine[:3, :3])))


def transform_points(matrix: NDArray[np.float64], points: ArrayLike) -> NDArray[np.float64]:
    """Apply a (4, 4) matrix to (..., 3) points: voxel indices to RAS mm, or any such map."""
    # Not "@": of many points BLAS makes work for all cores, which then wait for more of it, busily.
    turned = np.einsum("...k,lk->...l", np.asarray(points, dtype=np.float64), matrix[:3, :3])
    return turned + matrix[:3, 3]


def bounding_box(mask: NDArray[np.bool_], margin: int | Sequence[int] = 0) -> Box:
    """Find the smallest box that holds a mask.

    Args:
        mask: (I, J, K) bool.
        margin: Voxels to add on both sides, for all axes or one number an axis; the box ends at
            the volume's edge.

    Returns:
        One slice an axis; empty slices where the mask is empty.
    """
    margins = np.broadcast_to(np.asarray(margin, dtype=int), (3,))
    slices = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        found = np.flatnonzero(mask.any(axis=others))
        if found.size == 0:
            return (slice(0, 0), slice(0, 0), slice(0, 0))
        start = max(int(found[0]) - int(margins[axis]), 0)
        slices.append(slice(start, min(int(found[-1]) + 1 + int(margins[axis]), mask.shape[axis])))
    return (slices[0], slices[1], slices[2])


def affine_of_box(affine: NDArray[np.float64], box: Box) -> NDArray[np.float64]:
    """Return the affine of the part of a grid that a box cuts out, so that no voxel moves.

    Args:
        affine: (4, 4) of the whole grid.
        box: With a start on each axis.
    """
    shifted = affine.copy()
    shifted[:, 3] = affine @ np.array([*(part.start for part in box), 1.0])
    return shifted
