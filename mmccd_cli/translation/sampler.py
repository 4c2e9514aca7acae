"""DDIM sampling for a model that predicts x_0."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmccd_cli.translation.schedule import Schedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Maps (x_t of shape (N, C, H, W), time steps of shape (N,)) to a prediction of x_0."""


def sample_ddim(
    denoiser: Denoiser, noise: Tensor, schedule: Schedule, num_inference_steps: int
) -> Tensor:
    """Walk from pure noise to x_0 without adding noise on the way (eta = 0).

    Args:
        denoiser: Predicts x_0 from x_t.
        noise: (N, C, H, W) standard normal, the x_T to start from.
        schedule: The schedule of training.
        num_inference_steps: Steps from 1 up; with one step the result is the first prediction.

    Returns:
        (N, C, H, W), the imagined x_0.

    Source: Song et al. 2021 (DDIM), equation 12 with sigma = 0, written for x_0 prediction.
    """
    timesteps = schedule.inference_timesteps(num_inference_steps)
    signal = [float(schedule.alphas_cumprod[t]) for t in timesteps] + [1.0]
    x = noise
    for index, timestep in enumerate(timesteps):
        t = torch.full((len(x),), timestep, device=x.device, dtype=torch.long)
        x0 = denoiser(x, t)
        now, then = signal[index], signal[index + 1]
        if then == 1.0:
            return x0
        epsilon = (x - now**0.5 * x0) / (1 - now) ** 0.5
        x = then**0.5 * x0 + (1 - then) ** 0.5 * epsilon
    return x
