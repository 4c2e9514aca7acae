"""Where a network that was taught by painted lesions sees small foci.

Signals of single voxels must be smoothed before they mean something, and a median of 6 mm wipes
out a plaque of 4 mm. This network has learnt what small lesions look like instead: it sees each
slice, its two neighbours, and the other side of the brain, where healthy brightness recurs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmccd_cli.translation.engine import Execution, from_both_sides

LARGEST_INPUT, INPUT_SCALE = 10.0, 3.0
"""Scans are cut at this many robust standard deviations and divided by the other."""


def with_neighbours(images: Tensor) -> Tensor:
    """Put the slices below and above beside each slice.

    Args:
        images: (N, C, H, W), slices in the order of their height.

    Returns:
        (N, 3 C, H, W): the slices below, the slices, the slices above; 0 beyond both ends.
    """
    padded = F.pad(images, (0, 0, 0, 0, 0, 0, 1, 1))
    return torch.cat([padded[:-2], images, padded[2:]], dim=1)


def foci_input(slabs: Tensor, mirrored: Tensor, shown: Tensor) -> Tensor:
    """What the network is given.

    Args:
        slabs: (N, 3 M, H, W) float32, see `with_neighbours`: the scans of `MODALITIES` in robust
            standard deviations, 0 outside the brain.
        mirrored: (N, M, H, W) float32, the blurred other side of the brain.
        shown: (N, M) float32, 1 where a scan is there; others count as 0 everywhere.

    Returns:
        (N, 5 M, H, W): slabs, the other side, and which scans are there.
    """
    there = shown[:, :, None, None].expand_as(mirrored)
    values = torch.cat([slabs, mirrored], dim=1) * there.repeat(1, 4, 1, 1)
    values = values.clamp(-LARGEST_INPUT, LARGEST_INPUT) / INPUT_SCALE
    return torch.cat([values, there], dim=1)


def foci_log_odds(
    network: nn.Module,
    images: Tensor,
    *,
    mirrored: Tensor,
    shown: Tensor,
    execution: Execution,
) -> Tensor:
    """Log odds of a small lesion at every pixel, as in the training's painted slices.

    It is the mean of what the network says of a head and of its mirror image, so that it does not
    depend on the side on which a lesion lies.

    Args:
        network: On the device of `execution`.
        images: (N, M, H, W) float32 on the CPU, slices in the order of their height.
        mirrored: (N, M, H, W) float32 on the CPU.
        shown: (M,) float32.
        execution: Device, batch size and precision.

    Returns:
        (N, 1, H, W) float32 on the CPU.
    """

    def compute(batch: tuple[Tensor, Tensor]) -> Tensor:
        slab, other = (execution.take(part) for part in batch)
        there = shown.to(slab.device).expand(len(slab), -1)
        inputs = foci_input(slab, other, there)
        with execution.passing():
            return from_both_sides(lambda turn: network(turn(inputs)).float())

    size = execution.batch_size
    slabs = with_neighbours(images).split(size)
    return execution.gather(zip(slabs, mirrored.split(size), strict=True), compute)
