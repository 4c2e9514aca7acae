"""Images with their place in the world.

Convention: an affine maps voxel indices to RAS+ millimetres. The data stay in the index order of
their file; nothing is flipped or permuted on the way in, so nothing needs to be undone.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import DTypeLike, NDArray

from mmccd_cli.errors import DataError, GeometryError
from mmccd_cli.template import Box, affine_of_box, spacing_of, voxel_volume_mm3

MAX_VOXELS = 2**29  # a whole head at 0.25 mm
_MAX_SIDE = 2**15 - 1  # the longest axis that the header of a NIfTI-1 file can state
_MIN_ASPECT = 1e-4  # least |det| of the affine's unit columns: below, the voxels are flat


@dataclass(frozen=True, eq=False)
class Volume:
    """An image on a regular grid.

    Args:
        data: (I, J, K) real numbers, kept as float32.
        affine: (4, 4) float64 map from voxel indices to RAS+ mm; shear is allowed.

    Raises:
        DataError: The data are no real numbers.
        GeometryError: The data are not three-dimensional, or the affine is no invertible map.
    """

    data: NDArray[np.float32]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        given = np.asarray(self.data).dtype
        if given.kind not in "biuf":
            raise DataError(
                f"A volume holds real numbers; these are of the type {given}.",
                next_step="Give the magnitude of complex images, and one channel of colours.",
            )
        data = np.ascontiguousarray(self.data, dtype=np.float32)
        affine = np.array(self.affine, dtype=np.float64)
        if data.ndim != 3 or 0 in data.shape:
            raise GeometryError(f"A volume needs three axes; this one has the shape {data.shape}.")
        if problem := problem_of_affine(affine):
            raise GeometryError(f"The affine of the volume is unusable: {problem}.")
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each axis."""
        i, j, k = self.data.shape
        return (i, j, k)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along each axis, in mm."""
        return spacing_of(self.affine)

    @property
    def orientation(self) -> str:
        """Nearest world direction of each axis, for example "RAS" or "PIR"."""
        return "".join(nib.orientations.aff2axcodes(self.affine))

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel in cubic millimetres, exact under shear."""
        return voxel_volume_mm3(self.affine)

    def cropped(self, box: Box) -> Volume:
        """Return the part of the image that a box of voxels cuts out; no voxel moves."""
        return Volume(self.data[box], affine_of_box(self.affine, box))


def reorient(volume: Volume, codes: str) -> Volume:
    """Permute and flip the axes so that they point as `codes` says; no value is interpolated.

    Args:
        volume: Any volume.
        codes: Three of R/L, A/P, S/I in any order, for example "RAS".

    Returns:
        The same voxels at the same places in the world, in another index order.
    """
    return Volume(*reorient_array(volume.data, volume.affine, codes))


def reorient_array(
    data: NDArray, affine: NDArray[np.float64], codes: str
) -> tuple[NDArray, NDArray[np.float64]]:
    """Do what `reorient` does to voxels of any type; nothing is copied."""
    change = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = nib.orientations.apply_orientation(data, change)
    return turned, affine @ nib.orientations.inv_ornt_aff(change, data.shape)


def sparse_zeros(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """Return zeros that take memory only where something is written, whatever was freed before.

    numpy's own are spread over pages of 2 MB, or over memory that must be cleared.

    Args:
        shape: Not empty.
        dtype: Of numbers.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    pages = mmap.mmap(-1, size, access=mmap.ACCESS_COPY)  # shared ones are there once read
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # of a kernel that knows no other pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype).reshape(shape)


def is_too_large(shape: Sequence[int]) -> bool:
    """Tell whether an image has more voxels than any scan of a head, or a longer axis."""
    return max(shape) > _MAX_SIDE or math.prod(shape) > MAX_VOXELS


def problem_of_affine(affine: NDArray[np.float64]) -> str | None:
    """Say why an affine places no voxels, None where it does."""
    if affine.shape != (4, 4):
        return f"its shape is {affine.shape} instead of (4, 4)"
    if not np.all(np.isfinite(affine)):
        return "it holds values that are not finite"
    if not np.array_equal(affine[3], [0, 0, 0, 1]):
        return f"its last row is {affine[3].tolist()} instead of 0, 0, 0, 1"
    with np.errstate(over="ignore"):
        spacing = np.array(spacing_of(affine))
    if not np.all(np.isfinite(spacing)):
        return "the spacing of an axis is too large for a number"
    if np.any(spacing < 1e-9):
        return "the spacing of an axis is zero"
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < _MIN_ASPECT:
        return "two of its axes point the same way"
    return None
