"""What the restoration network learns: healthy tissue under coarse noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmccd_cli.config import MODALITIES, RestorationConfig, TrainingConfig
from mmccd_cli.training.runtime import Runtime
from mmccd_cli.training.samples import SliceDataset
from mmccd_cli.training.trainer import draw_batch, squared_error
from mmccd_cli.translation.restoration import restoration_input
from mmccd_cli.weights.bundle import RESTORATION

NOISE_MARGIN = 16
"""Pixels by which enlarged noise is larger than a slice, so that its grid lies anywhere."""
GAIN, OFFSET = (0.85, 1.15), (-0.2, 0.2)
"""Ranges of each scan's random factor and shift, the latter in robust standard deviations."""


@dataclass(frozen=True)
class RestorationSpec:
    """What the restoration network learns.

    Attributes:
        config: Its architecture and its noise.
    """

    config: RestorationConfig

    @property
    def name(self) -> str:
        """Name in checkpoints and bundles."""
        return RESTORATION


class Drawn(NamedTuple):
    """One noisy sample, or a batch of them.

    Attributes:
        inputs: (N, C, H, W) float32, what the network is given.
        target: (N, M, H, W) float32, the scans without noise.
        weight: (N, M, H, W) float32, 1 where the error counts: healthy tissue of shown scans.
    """

    inputs: Tensor
    target: Tensor
    weight: Tensor


@dataclass(frozen=True, kw_only=True)
class RestorationLoss:
    """The squared error of restored healthy tissue.

    Attributes:
        spec: The network.
        dataset: Slices with healthy tissue.
        scale: Factor of the normalisation, which turns values into robust standard deviations.
        config: Whether to augment, and the like.
        runtime: Device and precision.
    """

    spec: RestorationSpec
    dataset: SliceDataset
    scale: float
    config: TrainingConfig
    runtime: Runtime

    def __call__(
        self, network: nn.Module, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Summed error over a batch, and the pixels it is summed over."""
        batch, device = Drawn(*draw_batch(self.draw, generators)), self.runtime.device
        inputs = batch.inputs.to(device, memory_format=torch.channels_last)
        with self.runtime.autocast():
            restored = network(inputs)
        return squared_error(restored, batch.target.to(device), batch.weight.to(device))

    def draw(self, generator: torch.Generator) -> Drawn:
        """One sample, all of batch size one."""
        index = int(torch.randint(len(self.dataset), (), generator=generator))
        pick = slice(index, index + 1)
        scans = [self.dataset.values(modality, pick) for modality in MODALITIES]
        images, healthy = torch.cat(scans, dim=1) / self.scale, self.dataset.healthy[pick].float()
        if self.config.augment:
            images = _vary(images, generator)
            if torch.rand((), generator=generator) < 0.5:
                images, healthy = images.flip(2), healthy.flip(2)
        shown = draw_shown(self.spec.config.shown_fraction, generator)
        height, width = images.shape[-2:]
        noise = coarse_noise(self.spec.config, height, width, generator=generator)
        inputs = restoration_input((images + noise) * healthy, shown)
        return Drawn(inputs=inputs, target=images, weight=healthy * shown[:, :, None, None])


def coarse_noise(
    config: RestorationConfig, height: int, width: int, *, generator: torch.Generator
) -> Tensor:
    """Gaussian noise on a coarse grid, enlarged, moved and scaled at random for each scan.

    Returns:
        (1, M, height, width) float32 in robust standard deviations.
    """
    scans = len(MODALITIES)
    choice = int(torch.randint(len(config.noise_grids), (), generator=generator))
    points = config.noise_grids[choice]
    coarse = torch.randn(1, scans, points, points, generator=generator)
    size = (height + NOISE_MARGIN, width + NOISE_MARGIN)
    noise = F.interpolate(coarse, size, mode="bilinear", align_corners=True)
    row, column = torch.randint(NOISE_MARGIN, (2,), generator=generator).tolist()
    noise = noise[:, :, row : row + height, column : column + width]
    low, high = config.noise_amplitude
    return noise * (low + (high - low) * torch.rand(1, scans, 1, 1, generator=generator))


def _vary(images: Tensor, generator: torch.Generator) -> Tensor:
    """Multiply and shift each scan at random."""
    draw = torch.rand(2, 1, images.shape[1], 1, 1, generator=generator)
    gain = GAIN[0] + (GAIN[1] - GAIN[0]) * draw[0]
    offset = OFFSET[0] + (OFFSET[1] - OFFSET[0]) * draw[1]
    return images * gain + offset


def draw_shown(fraction: float, generator: torch.Generator) -> Tensor:
    """(1, M), 1 for each scan that is shown; at least one is."""
    shown = (torch.rand(1, len(MODALITIES), generator=generator) < fraction).float()
    any_one = int(torch.randint(len(MODALITIES), (), generator=generator))
    if not shown.any():
        shown[0, any_one] = 1.0
    return shown
