"""Reconstruction methods that ours is compared with: AE, VAE, DAE and diffusion, of one modality.

Each learns to give back healthy slices; what it cannot give back is suspicious. All of them see the
slices of `prepare`, at a size that a CPU trains in minutes. Where a recipe takes bias fields off,
our networks learn from what is left of these slices; the comparison models, as published, do not.
No image library is needed.

| kind | how it keeps a lesion from coming through                                   | passes |
|------|------------------------------------------------------------------------------|--------|
| ae   | 128 numbers for a slice                                                      | 1      |
| vae  | 128 numbers for a slice, kept near a normal distribution; their mean is used | 1      |
| dae  | learnt to remove coarse noise, and takes the lesion for some                 | 1      |
| ddpm | noise up to an intermediate time step, then the way back in few steps        | 5      |
"""

from __future__ import annotations

import itertools
import math
from dataclasses import field
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from mmccd_cli.config import (
    CHECKED,
    Count,
    DiffusionConfig,
    Modality,
    NotNegative,
    UNetConfig,
)
from mmccd_cli.translation.sampler import sample_ddim
from mmccd_cli.translation.schedule import Schedule
from mmccd_cli.translation.unet import UNet

Side = Annotated[int, Field(ge=16, le=4096, multiple_of=16)]
Size = Annotated[int, Field(ge=1, le=4096)]
Kind = Literal["ae", "vae", "dae", "ddpm"]
KINDS: tuple[Kind, ...] = ("ae", "vae", "dae", "ddpm")
ComparisonResidual = Literal["signed", "absolute"]
RESIDUALS: tuple[ComparisonResidual, ...] = ("signed", "absolute")
BATCH = 16
"""Slices that are reconstructed at a time."""
STAGES = (1, 2, 4, 4)
"""Channels of an autoencoder's stages, as multiples of its width; each halves the resolution."""
BOTTLENECK_CHANNELS = 16
"""Channels of an autoencoder beside its dense layers."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ComparisonConfig:
    """One model's architecture and how it reconstructs.

    Attributes:
        kind: "ae", "vae", "dae" or "ddpm".
        modality: What it reconstructs.
        shape: Height and width of its slices, multiples of 16.
        width: Channels of an autoencoder's first stage.
        latent: Numbers that an autoencoder squeezes a slice into.
        kl_weight: Weight of a VAE's Kullback-Leibler divergence beside the squared error.
        base_channels: Channels of the first level of a U-Net (dae, ddpm).
        noise_std: Standard deviation of the coarse noise; the published 0.2 of the 99th percentile
            is 0.8 in normalised intensities (FLAIR and T2w of gliomas).
        noise_cell_px: Pixels that one value of the coarse noise spans.
        start_timestep: Up to where diffusion adds noise.
        denoising_steps: Steps on the way back.
        diffusion: The noise schedule.

    Source: Kascenas et al., MIDL 2022 (DAE; 128 x 128 slices with 16 x 16 noise); Wyatt et al.,
        CVPR workshops 2022 (AnoDDPM: 250 of 1000 steps; here with Gaussian noise, x_0 prediction
        and DDIM steps); Baur et al., Medical Image Analysis 2021 (AE and VAE).
    """

    kind: Kind
    modality: Modality
    shape: tuple[Side, Side]
    width: Size = 16
    latent: Size = 128
    kl_weight: NotNegative = 0.1
    base_channels: Size = 16
    noise_std: NotNegative = 0.8
    noise_cell_px: Size = 8
    start_timestep: Count = 250
    denoising_steps: Count = 5
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    def __post_init__(self) -> None:
        if self.denoising_steps > self.start_timestep:
            raise ValueError("denoising_steps must lie in 1..start_timestep")
        if self.start_timestep >= self.diffusion.num_train_timesteps:
            raise ValueError("start_timestep lies beyond the schedule")

    @property
    def name(self) -> str:
        """Name of its folder and row, such as "dae-FLAIR"."""
        return f"{self.kind}-{self.modality}"


class AutoEncoder(nn.Module):
    """A convolutional autoencoder with a dense bottleneck, variational where asked for.

    Args:
        config: Its sizes.
    """

    def __init__(self, config: ComparisonConfig) -> None:
        super().__init__()
        channels = [1, *(config.width * stage for stage in STAGES)]
        self.small = tuple(n >> len(STAGES) for n in config.shape)
        flat = BOTTLENECK_CHANNELS * self.small[0] * self.small[1]
        down: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            down += [nn.Conv2d(before, after, 5, stride=2, padding=2), *_norm_and_activation(after)]
        self.down = nn.Sequential(
            *down, nn.Conv2d(channels[-1], BOTTLENECK_CHANNELS, 1), nn.Flatten()
        )
        self.mean = nn.Linear(flat, config.latent)
        self.log_variance = nn.Linear(flat, config.latent) if config.kind == "vae" else None
        self.widen = nn.Linear(config.latent, flat)
        up: list[nn.Module] = [nn.Conv2d(BOTTLENECK_CHANNELS, channels[-1], 1)]
        for before, after in zip(channels[:0:-1], [*channels[-2:0:-1], config.width], strict=True):
            up += [nn.Upsample(scale_factor=2.0, mode="nearest")]
            up += [nn.Conv2d(before, after, 3, padding=1), *_norm_and_activation(after)]
        self.up = nn.Sequential(*up, nn.Conv2d(config.width, 1, 3, padding=1))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Squeeze and give back a batch of slices.

        Args:
            x: (N, 1, H, W).
            noise: (N, latent) standard normal, to draw from a VAE's posterior; None takes its mean.

        Returns:
            (N, 1, H, W), and the (N,) Kullback-Leibler divergence, 0 without a posterior.
        """
        features = self.down(x)
        latent = mean = self.mean(features)
        divergence = torch.zeros(len(x), device=x.device)
        if self.log_variance is not None:
            log_variance = self.log_variance(features).float().clamp(-10, 10)
            square = mean.float().square()
            divergence = 0.5 * (square + log_variance.exp() - 1 - log_variance).sum(dim=1)
            if noise is not None:
                latent = mean + (0.5 * log_variance).exp() * noise
        widened = self.widen(latent.to(features.dtype))
        return self.up(widened.unflatten(1, (BOTTLENECK_CHANNELS, *self.small))), divergence


def _norm_and_activation(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(math.gcd(8, channels), channels), nn.LeakyReLU(0.1)


def build_network(config: ComparisonConfig) -> nn.Module:
    """Build a model's network with fresh weights from torch's global generator."""
    if config.kind in ("ae", "vae"):
        return AutoEncoder(config)
    return UNet(
        UNetConfig(
            base_channels=config.base_channels,
            channel_multipliers=(1, 2, 3, 4),
            pixel_unshuffle=2,
            norm_groups=math.gcd(8, config.base_channels),
            time_conditioned=config.kind == "ddpm",
        )
    )


def coarse_noise(config: ComparisonConfig, count: int, generator: torch.Generator) -> Tensor:
    """Noise that is smooth over cells of several pixels, shifted at random.

    Returns:
        (count, 1, H, W) float32 with the standard deviation `noise_std` at the cells' corners.

    Source: Kascenas et al., MIDL 2022, Section 3.1.
    """
    height, width = config.shape
    cells = [-(-n // config.noise_cell_px) for n in config.shape]
    noise = config.noise_std * torch.randn(count, 1, *cells, generator=generator)
    noise = F.interpolate(
        noise,
        scale_factor=float(config.noise_cell_px),
        mode="bilinear",
        align_corners=False,
    )[..., :height, :width]
    shift = [int(torch.randint(n, (), generator=generator)) for n in (height, width)]
    return noise.roll(shift, dims=(2, 3))


def timesteps_back(config: ComparisonConfig) -> list[int]:
    """Falling time steps of the way back from `start_timestep`, which is the first."""
    steps = config.denoising_steps
    return [config.start_timestep * (steps - i) // steps for i in range(steps)]


@torch.inference_mode()
def reconstruct(
    network: nn.Module, config: ComparisonConfig, x: Tensor, *, noise: Tensor
) -> Tensor:
    """Give back slices as the network knows them from healthy brains.

    Args:
        network: From `build_network`, in evaluation mode.
        config: Its configuration.
        x: (N, 1, H, W) float32 normalised slices.
        noise: Same shape, standard normal; only diffusion uses it.

    Returns:
        (N, 1, H, W) float32.
    """
    if config.kind in ("ae", "vae"):
        return network(x)[0].float()
    if config.kind == "dae":
        return network(x).float()
    schedule = Schedule.from_config(config.diffusion)
    times = timesteps_back(config)
    noisy = schedule.add_noise(x, noise, torch.full((len(x),), times[0], device=x.device))
    return sample_ddim(lambda x_t, t: network(x_t, t).float(), noisy, schedule, timesteps=times)


def residual_of_volume(
    network: nn.Module,
    config: ComparisonConfig,
    image: NDArray[np.float32],
    *,
    brain: NDArray[np.bool_],
    scale: float,
    device: torch.device,
) -> NDArray[np.float32]:
    """Reconstruct every axial slice with brain, with noise that does not depend on the batch.

    Args:
        network: From `build_network`, in evaluation mode, on the device.
        config: Its configuration.
        image: (I, J, K) normalised, on the grid of its training.
        brain: (I, J, K) bool.
        scale: Value of one robust standard deviation.
        device: Where the network runs.

    Returns:
        (I, J, K) float32 in robust standard deviations: how much brighter a voxel is than
        reconstructed, or darker on T1w, where lesions are dark; 0 outside the brain.
    """
    levels = np.flatnonzero(brain.any(axis=(0, 1)))
    error = np.zeros(image.shape, dtype=np.float32)
    for start in range(0, len(levels), BATCH):
        batch = levels[start : start + BATCH]
        x = torch.from_numpy(np.moveaxis(image[:, :, batch], 2, 0)[:, None].copy())
        generators = [torch.Generator().manual_seed(level) for level in batch.tolist()]
        noise = torch.stack([torch.randn(1, *config.shape, generator=g) for g in generators])
        given_back = reconstruct(network, config, x.to(device), noise=noise.to(device)).cpu()
        error[:, :, batch] = np.moveaxis((x - given_back)[:, 0].numpy(), 0, 2) / scale
    if config.modality == "T1w":
        error = -error
    return np.where(brain, error, np.float32(0))
