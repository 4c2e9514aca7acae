"""What a restoration network takes away from a subject's slices.

A denoising network, trained on healthy tissue under coarse noise, sees whatever scans there are
and gives back what healthy tissue would look like. What it takes away is anomalous.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmccd_cli.translation.engine import Execution


def restoration_input(images: Tensor, shown: Tensor) -> Tensor:
    """What a restoration network is given.

    Args:
        images: (N, M, H, W) float32, the scans of `MODALITIES` in robust standard deviations, 0
            outside the brain.
        shown: (N, M) float32, 1 where a scan is there; others count as 0 everywhere.

    Returns:
        (N, 2 M, H, W): the scans, then which of them are there.
    """
    there = shown[:, :, None, None].expand_as(images)
    return torch.cat([images * there, there], dim=1)


def restoration_residual(
    network: nn.Module, images: Tensor, shown: Tensor, *, execution: Execution
) -> Tensor:
    """Scan less restoration, of all slices of a subject.

    Args:
        network: On the device of `execution`.
        images: (N, M, H, W) float32 on the CPU, see `restoration_input`.
        shown: (M,) float32, 1 where the subject has a scan.
        execution: Device, batch size and precision.

    Returns:
        (N, M, H, W) float32 on the CPU, positive where a scan is too bright.
    """

    def compute(truth: Tensor) -> Tensor:
        there = shown.to(truth.device).expand(len(truth), -1)
        with execution.passing():
            restored = network(restoration_input(truth, there))
        return truth - restored.float()

    return execution.gather(execution.take(images).split(execution.batch_size), compute)
