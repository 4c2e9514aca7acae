"""Slices to train on, made of numbers, and a recipe that takes no time."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmccd_cli.config import MODALITIES, FociConfig, RestorationConfig, UNetConfig, to_dict
from mmccd_cli.template import Quantisation, Template
from mmccd_cli.training.recipes import RECIPES, Recipe
from mmccd_cli.training.samples import SliceDataset
from mmccd_cli.training.slices import SubjectVolumes, write_index, write_shard, write_template

SHAPE = (24, 24, 12)  # I, J, K
SUBJECTS = ["s0", "s1", "s2", "s3"]
LESION_LEVEL = 3.5
SMALL = UNetConfig(base_channels=4, channel_multipliers=(1, 2), norm_groups=2)
SMALL_DENOISER = replace(SMALL, in_channels=2, time_conditioned=True)
SMALL_RESTORATION = RestorationConfig(unet=replace(SMALL, in_channels=6, out_channels=3))
SMALL_FOCI = FociConfig(unet=replace(SMALL, in_channels=15))


def tiny_recipe(**changes: Any) -> Recipe:
    """The compact recipe in small, two steps a network."""
    compact = RECIPES["compact"]
    training = replace(compact.training, iterations=2, batch_size=2)
    small = replace(
        compact,
        unet=SMALL,
        denoiser=SMALL_DENOISER,
        restoration=SMALL_RESTORATION,
        training=training,
        restoration_training=training,
        foci=SMALL_FOCI,
        foci_training=training,
    )
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


def brain() -> np.ndarray:
    centre = (np.array(SHAPE) - 1) / 2
    axes = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    distance = sum(((a - c) / (0.45 * n)) ** 2 for a, c, n in zip(axes, centre, SHAPE, strict=True))
    return np.asarray(distance < 1)


def lesion_of(number: int) -> np.ndarray:
    lesion = np.zeros(SHAPE, dtype=bool)
    lesion[5 + number : 10 + number, 7:13, 4:8] = True
    return lesion & brain()


def write_shards(folder: Path, *, lesions: bool = True) -> Path:
    folder.mkdir()
    entries = []
    for number, subject in enumerate(SUBJECTS):
        generator = np.random.default_rng(number)
        inside, where, images = brain(), lesion_of(number) & lesions, {}
        for modality in MODALITIES:
            values = np.where(inside, 0.3 * generator.standard_normal(SHAPE), -3.0)
            images[modality] = np.where(where, LESION_LEVEL, values).astype(np.float32)
        volumes = SubjectVolumes(images, inside, where)
        write_shard(folder, subject, volumes.as_shard(Quantisation()))
        counts = {"slices": SHAPE[2], "healthy_slices": 6}
        entries.append({"id": subject, "split": "train", "files": {}, **counts})
    flat = np.where(brain(), 0.0, -3.0).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    write_template(folder, Template(dict.fromkeys(MODALITIES, flat), brain(), affine))
    index = {
        "modalities": list(MODALITIES),
        "spacing_mm": [2.0, 2.0, 2.0],
        "affine": affine.ravel().tolist(),
        "shape": list(SHAPE),
        "background": -3.0,
        "preprocessing": to_dict(tiny_recipe().preprocessing),
        "quantisation": asdict(Quantisation()),
        "subjects": entries,
    }
    write_index(folder, index)
    return folder
