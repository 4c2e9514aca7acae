"""Translators: what maps a stack of slices of one modality to a stack of another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmccd_cli.translation.masking import hide
from mmccd_cli.translation.sampler import sample_ddim
from mmccd_cli.translation.schedule import Schedule

Translator = Callable[[Tensor], Tensor]
"""Maps slices of one modality, (N, 1, H, W), to as many of another."""


def network_name(kind: str, source: str, target: str) -> str:
    """Name of a network in bundles and checkpoints, such as "FLAIR-T2w.diffusion"."""
    return f"{source}-{target}.{kind}"


@dataclass(frozen=True)
class MaskedTranslator:
    """Imagines the target modality from a source slice of which a part is hidden.

    Attributes:
        network: Predicts x_0 from (x_t, condition), time conditioned.
        schedule: The noise schedule of its training.
        num_inference_steps: DDIM steps.

    Source: the paper, Section 3, "masked conditional diffusion".
    """

    network: nn.Module
    schedule: Schedule
    num_inference_steps: int

    def __call__(
        self, x: Tensor, seen: Tensor, condition_noise: Tensor, start_noise: Tensor
    ) -> Tensor:
        """Imagine the target slices.

        Args:
            x: (N, 1, H, W) source slices.
            seen: (N, 1, H, W) bool, True = seen.
            condition_noise: (N, 1, H, W) standard normal, stands in for what is hidden. It stays
                the same over all steps.
            start_noise: (N, 1, H, W) standard normal, x_T.

        Returns:
            (N, 1, H, W) imagined target slices.
        """
        condition = hide(x, seen, condition_noise)

        def denoiser(x_t: Tensor, timesteps: Tensor) -> Tensor:
            return self.network(torch.cat([x_t, condition], dim=1), timesteps)

        timesteps = self.schedule.inference_timesteps(self.num_inference_steps)
        return sample_ddim(denoiser, start_noise, self.schedule, timesteps=timesteps)


@dataclass(frozen=True)
class Cycle:
    """A modality cycle: there by one of two ways, and back by a plain U-Net.

    Attributes:
        backward: Target to source.
        forward: Source to target, the plain way ("Cyclic U-Net"), where the bundle has it.
        imagine: Source to target with a part hidden ("MMCCD"), where the bundle has it.
    """

    backward: Translator
    forward: Translator | None = None
    imagine: MaskedTranslator | None = None
