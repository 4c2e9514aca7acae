"""Which part of a slice is hidden. In every mask of this package True means seen."""

from __future__ import annotations

import torch
from torch import Tensor


def band_masks(height: int, width: int, *, band_width: int, stride: int) -> Tensor:
    """Masks that each hide one full-height or full-width band.

    A band that leaves on one side comes in on the other, so that every pixel is hidden equally
    often and a 128 x 128 slice at stride 2 takes exactly the 64 + 64 bands of the paper.

    Args:
        height: Pixels along the second last axis.
        width: Pixels along the last axis.
        band_width: Hidden pixels across a band.
        stride: Distance between the starts of neighbouring bands; must divide `band_width`.

    Returns:
        (B, 1, height, width) bool, True = seen. Every pixel is hidden by `band_width / stride`
        bands an axis (fewer only where the axis is not longer than a band).

    Raises:
        ValueError: The stride does not divide the band width.

    Source: the paper, Section 3; its published code starts bands at 0..126, which hides the
    corner pixels twice and the centre 16 times.
    """
    if stride < 1 or band_width % stride:
        raise ValueError(f"stride {stride} must divide the band width {band_width}")
    columns = _bands(width, band_width, stride)[:, None, None, :].expand(-1, 1, height, -1)
    rows = _bands(height, band_width, stride)[:, None, :, None].expand(-1, 1, -1, width)
    return torch.cat([columns, rows])


def _bands(length: int, band_width: int, stride: int) -> Tensor:
    """(B, length) bool, False inside each band, cyclic over the length rounded up to the stride."""
    cycle = -(-length // stride) * stride
    starts = torch.arange(0, cycle, stride)[:, None]
    return (torch.arange(length)[None] - starts) % cycle >= band_width


def random_band_masks(
    count: int, height: int, width: int, *, band_width: int, generator: torch.Generator
) -> Tensor:
    """One random band a sample, as in training.

    Returns:
        (count, 1, height, width) bool, True = seen; half of the bands (at random) are columns.
    """
    columns = torch.rand(count, generator=generator) < 0.5
    length = torch.where(columns, width, height)
    # Starts from -band_width + 1, so that pixels at the border are hidden as often as others.
    span = length + band_width - 1
    start = (torch.rand(count, generator=generator) * span).long() - band_width + 1
    rows_at = torch.arange(height)[None, :, None]
    columns_at = torch.arange(width)[None, None, :]
    position = torch.where(columns[:, None, None], columns_at, rows_at)
    first = start[:, None, None]
    return ((position < first) | (position >= first + band_width))[:, None]


def random_blob_masks(
    count: int, height: int, width: int, *, radius_px: float, generator: torch.Generator
) -> Tensor:
    """One random ellipse a sample, for networks that must imagine regions and not only bands.

    Args:
        count: Number of masks.
        height: Pixels along the second last axis.
        width: Pixels along the last axis.
        radius_px: Largest semi-axis.
        generator: Source of randomness, on the CPU.

    Returns:
        (count, 1, height, width) bool, True = seen.
    """
    draw = torch.rand(count, 5, 1, 1, generator=generator)
    centre_row, centre_column = draw[:, 0] * height, draw[:, 1] * width
    semi_axes = radius_px * (0.25 + 0.75 * draw[:, 2:4])
    angle = torch.pi * draw[:, 4]
    rows = torch.arange(height)[None, :, None] - centre_row
    columns = torch.arange(width)[None, None, :] - centre_column
    along = rows * angle.cos() + columns * angle.sin()
    across = columns * angle.cos() - rows * angle.sin()
    return ((along / semi_axes[:, 0]) ** 2 + (across / semi_axes[:, 1]) ** 2 > 1)[:, None]


def hide(x: Tensor, seen: Tensor, noise: Tensor) -> Tensor:
    """Replace what is not seen by noise.

    Args:
        x: (N, 1, H, W) slices.
        seen: (N, 1, H, W) bool, True = seen.
        noise: (N, 1, H, W) standard normal.

    Returns:
        (N, 1, H, W): m x + (1 - m) noise with m = seen.

    Source: the paper, Section 3 (its m is our "hidden").
    """
    return torch.where(seen, x, noise)
