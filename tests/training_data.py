"""Slices to train on, made of numbers, and a recipe that takes no time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from mmccd_cli.config import UNetConfig
from mmccd_cli.template import Quantisation
from mmccd_cli.training.recipes import RECIPES, Recipe
from mmccd_cli.training.samples import SliceDataset

SMALL = UNetConfig(base_channels=4, channel_multipliers=(1, 2), norm_groups=2)
SMALL_DENOISER = replace(SMALL, in_channels=2, time_conditioned=True)


def tiny_recipe(**changes: Any) -> Recipe:
    """The compact recipe in small, two steps a network."""
    compact = RECIPES["compact"]
    training = replace(compact.training, iterations=2, batch_size=2)
    small = replace(compact, unet=SMALL, denoiser=SMALL_DENOISER, training=training)
    return replace(small, **changes)


def make_dataset(n: int = 6, size: int = 16) -> SliceDataset:
    generator = torch.Generator().manual_seed(0)
    brain = torch.zeros(n, 1, size, size, dtype=torch.bool)
    brain[:, :, 2:-2, 2:-2] = True
    levels = (128 + 40 * torch.randn(n, 1, size, size, generator=generator)).clamp(0, 255)
    flair = torch.where(brain, levels, torch.tensor(32.0)).to(torch.uint8)
    hidden = torch.zeros_like(brain)
    hidden[0, :, 5:9, 5:9] = True
    return SliceDataset(
        images={"FLAIR": flair, "T2w": torch.where(brain, 255 - flair, flair)},
        healthy=brain & ~hidden,
        hidden=hidden,
        subjects=tuple(map(str, range(n))),
        quantisation=Quantisation(),
        background=-3.0,
    )
