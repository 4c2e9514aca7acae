"""The noise schedule: numbers only, never a network.

| name here             | symbol in Ho et al. 2020   |
|-----------------------|----------------------------|
| `betas`               | beta_t                     |
| `alphas_cumprod`      | alpha-bar_t                |
| `num_train_timesteps` | T                          |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmccd_cli.config import DiffusionConfig


@dataclass(frozen=True)
class Schedule:
    """A linear noise schedule.

    Attributes:
        alphas_cumprod: (T,) float64 on the CPU, falling, in (0, 1).
    """

    alphas_cumprod: Tensor

    @classmethod
    def from_config(cls, config: DiffusionConfig) -> Schedule:
        """Build the schedule with linearly rising betas."""
        betas = torch.linspace(
            config.beta_start, config.beta_end, config.num_train_timesteps, dtype=torch.float64
        )
        return cls(torch.cumprod(1 - betas, dim=0))

    @property
    def num_train_timesteps(self) -> int:
        """T: training time steps run from 0 (almost clean) to T - 1 (almost pure noise)."""
        return len(self.alphas_cumprod)

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Sample x_t given x_0.

        Args:
            x0: (N, C, H, W) clean slices.
            noise: Same shape, standard normal.
            timesteps: (N,) integer time steps in [0, T).

        Returns:
            (N, C, H, W): sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) noise.

        Source: Ho et al. 2020, equation 4.
        """
        signal = self.alphas_cumprod.to(x0.device)[timesteps][:, None, None, None]
        return (signal.sqrt() * x0 + (1 - signal).sqrt() * noise).to(x0.dtype)

    def inference_timesteps(self, num_inference_steps: int) -> list[int]:
        """Time steps of the sampler, falling, the first always T - 1.

        Spaced from the end ("trailing"), so that any number of steps from 1 to T works and one
        step is a regression from pure noise; spacing from the start would make one step begin at
        time 0, where the network expects an almost clean image.

        Raises:
            ValueError: Fewer than one step or more than T.

        Source: Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed".
        """
        total = self.num_train_timesteps
        if not 1 <= num_inference_steps <= total:
            raise ValueError(
                f"num_inference_steps must lie in 1..{total}, got {num_inference_steps}"
            )
        return [
            (total * (num_inference_steps - i) + num_inference_steps // 2) // num_inference_steps
            - 1
            for i in range(num_inference_steps)
        ]
