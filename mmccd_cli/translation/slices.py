"""Axial slices of a volume as a stack, cropped to the brain, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
    i_size, j_size, k_size = volume.shape
    i, height = _padded_span(brain.any(axis=(1, 2)), multiple)
    j, width = _padded_span(brain.any(axis=(0, 2)), multiple)
    shape = (len(levels), 1, height, width)
    stack = SliceStack(
        data=np.full(shape, fill, dtype=np.float32),
        brain=np.zeros(shape, dtype=bool),
        levels=levels,
        corner=(i, j),
        shape=(i_size, j_size, k_size),
    )
    inside, outside = _overlap(stack)
    for crop, whole in ((stack.data, volume), (stack.brain, brain)):
        crop[inside] = np.moveaxis(whole[outside], -1, 0)
    return stack


def from_slices(values: NDArray[np.floating], stack: SliceStack) -> NDArray[np.float32]:
    """Put slices back into the volume that they were cut from.

    Args:
        values: (N, 1, H, W) values in the order of `stack`.
        stack: The stack that `to_slices` returned.

    Returns:
        (I, J, K) float32, 0 wherever the volume has no slice pixel.

    Raises:
        GeometryError: The values do not have the shape of the stack.
    """
    if values.shape != stack.data.shape:
        raise GeometryError(f"Slices {values.shape} do not fit the stack {stack.data.shape}.")
    volume = np.zeros(stack.shape, dtype=np.float32)
    inside, outside = _overlap(stack)
    volume[outside] = np.moveaxis(values[inside], 0, -1)
    return volume


def _padded_span(occupied: ArrayLike, multiple: int) -> tuple[int, int]:
    """First index and length of a multiple that holds the occupied range.

    It lies in the middle of the axis if it can: then networks that join pixels by twos see the same
    pairs in a brain and in its mirror image. Else it is centred on the range.
    """
    occupied = np.asarray(occupied)
    first, last = np.flatnonzero(occupied)[[0, -1]].tolist()
    length = last - first + 1
    padded = -(-length // multiple) * multiple
    start, odd = divmod(len(occupied) - padded, 2)
    if not odd and start <= first and last < start + padded:
        return start, padded
    return first - (padded - length) // 2, padded


def _overlap(stack: SliceStack) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Where slices and volume overlap, as an index of the slices and one of the volume."""
    inside, outside = [], []
    for first, length, limit in zip(stack.corner, stack.data.shape[2:], stack.shape, strict=False):
        low, high = max(first, 0), min(first + length, limit)
        inside.append(slice(low - first, high - first))
        outside.append(slice(low, high))
    return (slice(None), 0, *inside), (*outside, stack.levels)
