"""Slices to train on, made of numbers."""

from __future__ import annotations

import torch

from mmccd_cli.template import Quantisation
from mmccd_cli.training.samples import SliceDataset


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
