"""Axial slices of a volume as a stack, cropped to the brain, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.errors import DataError, GeometryError


@dataclass(frozen=True, eq=False, kw_only=True)
class SliceStack:
    """Slices along the last axis of a volume; H runs along its I axis and W along J.

    Args:
        data: (N, 1, H, W) float32 values.
        brain: (N, 1, H, W) bool, where there is brain.
        levels: (N,) index of each slice along the volume's last axis, ascending.
        corner: First I and J of the crop; negative where the crop begins outside the volume.
        shape: (I, J, K) of the volume.
    """

    data: NDArray[np.float32]
    brain: NDArray[np.bool_]
    levels: NDArray[np.int64]
    corner: tuple[int, int]
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.levels)


def to_slices(
    volume: NDArray[np.floating],
    brain: NDArray[np.bool_],
    *,
    multiple: int = 8,
    fill: float = 0.0,
) -> SliceStack:
    """Cut a volume into the axial slices that hold brain, cropped to the brain's box.

    Args:
        volume: (I, J, K) values on a RAS+ grid.
        brain: (I, J, K) bool.
        multiple: H and W are made multiples of this many pixels.
        fill: Value of pixels that the crop adds outside the volume.

    Returns:
        The stack; stacks made with one brain mask have the same crop.

    Raises:
        DataError: No slice holds brain.
        GeometryError: The shapes differ or are not three-dimensional.
    """
    if volume.ndim != 3 or volume.shape != brain.shape:
        raise GeometryError(f"Volume {volume.shape} and brain mask {brain.shape} do not fit.")
    levels = np.flatnonzero(brain.any(axis=(0, 1)))
    if levels.size == 0:
        raise DataError("No slice of the volume holds brain.")
    flat = np.asarray(brain[:, :, levels].any(axis=2))
    spans = [_padded_span(np.asarray(flat.any(axis=1 - axis)), multiple) for axis in (0, 1)]
    (i, height), (j, width) = spans
    i_size, j_size, k_size = volume.shape
    return SliceStack(
        data=_crop(volume, levels, corner=(i, j), size=(height, width), fill=np.float32(fill)),
        brain=_crop(brain, levels, corner=(i, j), size=(height, width), fill=np.False_),
        levels=levels,
        corner=(i, j),
        shape=(i_size, j_size, k_size),
    )


def from_slices(
    values: NDArray[np.floating], stack: SliceStack, *, fill: float = 0.0
) -> NDArray[np.float32]:
    """Put slices back into the volume that they were cut from.

    Args:
        values: (N, 1, H, W) values in the order of `stack`.
        stack: The stack that `to_slices` returned.
        fill: Value wherever the volume has no slice pixel.

    Returns:
        (I, J, K) float32.

    Raises:
        GeometryError: The values do not have the shape of the stack.
    """
    if values.shape != stack.data.shape:
        raise GeometryError(f"Slices {values.shape} do not fit the stack {stack.data.shape}.")
    volume = np.full(stack.shape, fill, dtype=np.float32)
    inside, outside = _overlap(stack.corner, values.shape[2:], stack.shape[:2])
    volume[(*outside, stack.levels)] = np.moveaxis(values[(slice(None), 0, *inside)], 0, -1)
    return volume


def _padded_span(occupied: NDArray[np.bool_], multiple: int) -> tuple[int, int]:
    """First index and length of the occupied range, centred in a multiple."""
    indices = np.flatnonzero(occupied)
    length = int(indices[-1] - indices[0] + 1)
    padded = -(-length // multiple) * multiple
    return int(indices[0]) - (padded - length) // 2, padded


def _overlap(
    corner: tuple[int, int], size: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where crop and volume overlap, as slices of the crop and slices of the volume."""
    inside, outside = [], []
    for first, length, limit in zip(corner, size, shape, strict=True):
        low, high = max(first, 0), min(first + length, limit)
        inside.append(slice(low - first, high - first))
        outside.append(slice(low, high))
    return (inside[0], inside[1]), (outside[0], outside[1])


def _crop(
    volume: NDArray[np.generic],
    levels: NDArray[np.int64],
    *,
    corner: tuple[int, int],
    size: tuple[int, int],
    fill: np.generic,
) -> NDArray:
    crop = np.full((len(levels), 1, *size), fill)
    inside, outside = _overlap(corner, size, volume.shape[:2])
    crop[(slice(None), 0, *inside)] = np.moveaxis(volume[(*outside, levels)], -1, 0)
    return crop
