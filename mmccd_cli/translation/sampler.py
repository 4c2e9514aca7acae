"""DDIM sampling for a model that predicts x_0."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmccd_cli.translation.schedule import Schedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Maps (x_t of shape (N, C, H, W), their one time step of shape (1,)) to a prediction of x_0."""


def sample_ddim(
    denoiser: Denoiser, noisy: Tensor, schedule: Schedule, *, timesteps: Sequence[int]
) -> Tensor:
    """Walk from a noisy x_t to x_0 without adding noise on the way (eta = 0).

    Args:
        denoiser: Predicts x_0 from x_t.
        noisy: (N, C, H, W), the x_t to start from: standard normal at the last time step.
        schedule: The schedule of training.
        timesteps: Falling, the first is that of `noisy`; with a single one the result is the first
            prediction.

    Returns:
        (N, C, H, W), the imagined x_0.

    Source: Song et al. 2021 (DDIM), equation 12 with sigma = 0, written for x_0 prediction.
    """
    signal = [float(schedule.alphas_cumprod[t]) for t in timesteps]
    x, x0 = noisy, noisy
    for index, timestep in enumerate(timesteps):
        t = torch.full((1,), timestep, device=x.device, dtype=torch.long)
        x0 = denoiser(x, t)
        if index + 1 < len(timesteps):
            now, then = signal[index], signal[index + 1]
            epsilon = (x - now**0.5 * x0) / (1 - now) ** 0.5
            x = then**0.5 * x0 + (1 - then) ** 0.5 * epsilon
    return x0
