"""Training samples from slice shards, each drawn by a generator of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmccd_cli.config import TrainingConfig
from mmccd_cli.errors import DataError
from mmccd_cli.template import Quantisation
from mmccd_cli.training.slices import (
    Change,
    hash_slices,
    read_index,
    read_shard,
    read_volumes,
    subjects_of,
)

MINIMAL_HEALTHY_PIXELS = 64
"""Slices with less healthy brain teach nothing and are left out."""


@dataclass(frozen=True, kw_only=True)
class SliceDataset:
    """All slices of a set of subjects, in memory, in eight bits.

    Attributes:
        images: Modality -> (N, 1, H, W) uint8 levels.
        healthy: (N, 1, H, W) bool, healthy brain: what may teach.
        hidden: (N, 1, H, W) bool, the grown lesion: what must not be seen.
        subjects: Ids.
        quantisation: How levels become values.
        background: Value outside the brain.
        sha256: Hash of the files that they come from, see `hash_slices`; empty for slices that
            come from none.
    """

    images: dict[str, Tensor]
    healthy: Tensor
    hidden: Tensor
    subjects: tuple[str, ...]
    quantisation: Quantisation
    background: float
    sha256: str = ""

    def __len__(self) -> int:
        return len(self.healthy)

    def values(self, modality: str, index: int | slice | Tensor) -> Tensor:
        """Normalised intensities, float32, of the given slices."""
        levels = self.images[modality][index].float()
        return levels * self.quantisation.step + self.quantisation.minimum


def load_dataset(
    folder: Path,
    config: TrainingConfig,
    *,
    split: str = "train",
    subjects: Sequence[str] | None = None,
    change: Change | None = None,
) -> SliceDataset:
    """Read shards and keep the slices that teach something.

    Args:
        folder: What `prepare` wrote.
        config: Says how healthy tissue is told apart and how far lesions are grown in the slice.
        split: Only subjects of this split.
        subjects: Only these subjects, instead of a split.
        change: What is done to each of them first.

    Raises:
        DataError: A file is missing or damaged, or no slice is left.
    """
    index = read_index(folder)
    ids = tuple(subjects_of(index, split) if subjects is None else subjects)
    images: dict[str, list[Tensor]] = {modality: [] for modality in index["modalities"]}
    healthy, hidden, quantisation = [], [], Quantisation(**index["quantisation"])
    for subject in ids:
        if change is None:
            shard = read_shard(folder, subject)
        else:
            volumes = read_volumes(folder, subject, quantisation, change=change)
            shard = volumes.as_shard(quantisation)
        lesion = torch.from_numpy(shard.lesion)[:, None]
        grown = _dilate(lesion, config.lesion_dilation_mm, index["spacing_mm"])
        teaches = torch.from_numpy(shard.brain)[:, None] & ~grown
        keep = teaches.sum(dim=(1, 2, 3)) >= MINIMAL_HEALTHY_PIXELS
        if config.healthy_by == "slice":
            keep &= ~lesion.flatten(1).any(dim=1)
        for modality, stack in images.items():
            stack.append(torch.from_numpy(shard.images[modality])[:, None][keep])
        healthy.append(teaches[keep])
        hidden.append(grown[keep])
    if not healthy or not sum(map(len, healthy)):
        raise DataError(
            f"There is no healthy slice to train on in {folder}.",
            cause=f"{len(ids)} subjects match the split {split!r}.",
            next_step="Check the splits in its `dataset.json`.",
        )
    return SliceDataset(
        # Taken away one by one, so that not everything is there twice.
        images={modality: torch.cat(images.pop(modality)) for modality in list(images)},
        healthy=torch.cat(healthy),
        hidden=torch.cat(hidden),
        subjects=ids,
        quantisation=quantisation,
        background=float(index["background"]),
        sha256=hash_slices(folder, ids),
    )


def _dilate(lesion: Tensor, distance_mm: float, spacing_mm: list[float]) -> Tensor:
    """Grow (K, 1, H, W) bool masks by a distance within the slice, along both of its axes.

    The window is a square, so at corners it reaches 1.4 times as far; slices beside a lesion do not
    count. `healthy_tissue` takes the distance in space instead.
    """
    radius = round(distance_mm / float(np.mean(spacing_mm[:2])))
    if radius < 1 or not lesion.any():
        return lesion
    return F.max_pool2d(lesion.float(), 2 * radius + 1, stride=1, padding=radius) > 0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One augmented pair of slices.

    Attributes:
        source: (N, 1, H, W) float32.
        target: (N, 1, H, W) float32.
        healthy: (N, 1, H, W) bool.
        hidden: (N, 1, H, W) bool.
    """

    source: Tensor
    target: Tensor
    healthy: Tensor
    hidden: Tensor


def draw_sample(
    dataset: SliceDataset,
    source: str,
    target: str,
    *,
    generator: torch.Generator,
    augment: bool,
) -> Sample:
    """Draw one slice pair at random and augment it.

    Args:
        dataset: The slices.
        source: Modality that goes in.
        target: Modality that comes out.
        generator: Decides everything, so that a sample does not depend on its batch.
        augment: Whether to flip, move, bend, shade and rescale.
    """
    index = int(torch.randint(len(dataset), (), generator=generator))
    pick = slice(index, index + 1)
    images = torch.cat([dataset.values(source, pick), dataset.values(target, pick)], dim=1)
    masks = torch.cat([dataset.healthy[pick], dataset.hidden[pick]], dim=1)
    if augment:
        images, masks = _augment(images, masks, dataset=dataset, generator=generator)
    return Sample(
        source=images[:, :1], target=images[:, 1:], healthy=masks[:, :1], hidden=masks[:, 1:]
    )


def _augment(
    images: Tensor, masks: Tensor, *, dataset: SliceDataset, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Flip, move and bend both modalities alike; shade and rescale each on its own.

    Contrasts between tissues stay true: intensities change by a smooth field and a common factor.
    """
    background = dataset.background
    # Eight-bit levels meet the background's value only to within a step.
    outside = (images - background).abs() < dataset.quantisation.step
    images = _vary_intensity(images, generator)
    images = torch.where(outside, torch.full_like(images, background), images)
    if torch.rand((), generator=generator) < 0.5:
        images, masks = images.flip(2), masks.flip(2)
    grid = _deformation(images.shape[-2], images.shape[-1], generator)
    moved = F.grid_sample(images - background, grid, align_corners=False) + background
    masks = F.grid_sample(masks.float(), grid, mode="nearest", align_corners=False) > 0.5
    return moved, masks


def _vary_intensity(images: Tensor, generator: torch.Generator) -> Tensor:
    """Multiply by a smooth field around 1 and shift, for each modality on its own."""
    channels, height, width = images.shape[1:]
    coarse = 0.1 * torch.randn(1, channels, 3, 3, generator=generator)
    field = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    gain = 1 + 0.08 * torch.randn(1, channels, 1, 1, generator=generator)
    shift = 0.08 * torch.randn(1, channels, 1, 1, generator=generator)
    return images * gain + field + shift


def _deformation(height: int, width: int, generator: torch.Generator) -> Tensor:
    """(1, H, W, 2) sampling grid: small rotation, scaling, shift and elastic bending."""
    draw = torch.rand(5, generator=generator) * 2 - 1
    angle, scale = 0.15 * float(draw[0]), 1 + 0.1 * draw[1:3]
    ratio = height / width
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = torch.tensor(
        [
            [cos * float(scale[0]), -sin * ratio * float(scale[0]), 0.06 * float(draw[3])],
            [sin / ratio * float(scale[1]), cos * float(scale[1]), 0.06 * float(draw[4])],
        ],
        dtype=torch.float32,
    )
    grid = F.affine_grid(matrix[None], [1, 1, height, width], align_corners=False)
    coarse = 0.02 * torch.randn(1, 2, 5, 5, generator=generator)
    bend = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    return grid + bend.permute(0, 2, 3, 1)
