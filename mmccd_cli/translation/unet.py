"""The 2-D U-Net of the translators."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmccd_cli.config import UNetConfig
from mmccd_cli.translation.blocks import (
    ResidualBlock,
    SelfAttention,
    TimeEmbedding,
    zero_initialised,
)


class Stage(nn.Module):
    """A residual block, its attention where there is one, and a change of resolution after it."""

    def __init__(
        self,
        block: ResidualBlock,
        attention: SelfAttention | None = None,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.block = block
        self.attention = attention
        self.resample = resample

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Apply the parts that exist, in order."""
        x = self.block(x, embedding)
        if self.attention is not None:
            x = self.attention(x)
        if isinstance(self.resample, ResidualBlock):
            return self.resample(x, embedding)
        return x if self.resample is None else self.resample(x)


class UNet(nn.Module):
    """A U-Net that maps slices to slices, with or without a time step.

    Args:
        config: The architecture.

    Source: Section 3 of the paper uses the ADM U-Net; `UNetConfig` can express it exactly. The
        pixel-unshuffle stem is ours: it folds 2 x 2 pixels into channels, a quarter of the cost.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        base, fold = config.base_channels, config.pixel_unshuffle**2
        self.embedding_channels = 4 * base if config.time_conditioned else 0
        self.time_embedding = (
            TimeEmbedding(base, self.embedding_channels) if config.time_conditioned else None
        )
        self.stem = nn.Conv2d(config.in_channels * fold, base, 3, padding=1)
        skips = self._build_down(base)
        channels = base * config.channel_multipliers[-1]
        attention = self._attention(channels, wanted=config.middle_attention)
        first = Stage(self._residual(channels, channels), attention)
        self.middle = nn.ModuleList([first, Stage(self._residual(channels, channels))])
        self._build_up(channels, skips)
        out_channels = base * config.channel_multipliers[0]
        self.head_norm = nn.GroupNorm(config.norm_groups, out_channels)
        self.head = zero_initialised(
            nn.Conv2d(out_channels, config.out_channels * fold, 3, padding=1)
        )

    def forward(self, x: Tensor, timesteps: Tensor | None = None) -> Tensor:
        """Map a batch of slices.

        Args:
            x: (N, in_channels, H, W), H and W multiples of `config.stride`.
            timesteps: (N,) time steps, or (1,) of all slices; required exactly when the network is
                time conditioned.

        Returns:
            (N, out_channels, H, W).

        Raises:
            ValueError: A shape that does not fit, or a time step missing or unexpected.
        """
        stride = self.config.stride
        if x.shape[-2] % stride or x.shape[-1] % stride:
            raise ValueError(f"height and width must be multiples of {stride}, got {x.shape[-2:]}")
        if (timesteps is None) == self.config.time_conditioned:
            raise ValueError("timesteps must be given exactly when the network is time conditioned")
        embedding = None
        if self.time_embedding is not None and timesteps is not None:
            embedding = self.time_embedding(timesteps).to(x.dtype)
        if self.config.pixel_unshuffle > 1:
            x = F.pixel_unshuffle(x, self.config.pixel_unshuffle)
        h = self.stem(x)
        skips = [h]
        for stage in self.down:
            takes_time = isinstance(stage, (Stage, ResidualBlock))
            h = stage(h, embedding) if takes_time else stage(h)
            skips.append(h)
        for stage in self.middle:
            h = stage(h, embedding)
        for stage in self.up:
            h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
        h = self.head(F.silu(self.head_norm(h), inplace=not torch.is_grad_enabled()))
        if self.config.pixel_unshuffle > 1:
            h = F.pixel_shuffle(h, self.config.pixel_unshuffle)
        return h

    def _residual(
        self, in_channels: int, out_channels: int, resample: nn.Module | None = None
    ) -> ResidualBlock:
        return ResidualBlock(
            in_channels,
            out_channels,
            embedding_channels=self.embedding_channels,
            groups=self.config.norm_groups,
            dropout=self.config.dropout,
            resample=resample,
        )

    def _resampling(self, channels: int, change: nn.Module) -> nn.Module:
        """A change of resolution, inside a residual block where these are configured."""
        residual = self.config.resample == "residual"
        return self._residual(channels, channels, change) if residual else change

    def _attention(self, channels: int, *, wanted: bool) -> SelfAttention | None:
        heads, groups = self.config.attention_heads, self.config.norm_groups
        return SelfAttention(channels, heads=heads, groups=groups) if wanted else None

    def _build_down(self, channels: int) -> list[int]:
        """Build the way down; return the channels of every skip, in order."""
        config = self.config
        self.down = nn.ModuleList()
        skips = [channels]
        for level, multiplier in enumerate(config.channel_multipliers):
            out = config.base_channels * multiplier
            for _ in range(config.residual_blocks):
                attention = self._attention(out, wanted=level in config.attention_levels)
                self.down.append(Stage(self._residual(channels, out), attention))
                channels = out
                skips.append(channels)
            if level < len(config.channel_multipliers) - 1:
                self.down.append(self._resampling(channels, nn.AvgPool2d(2)))
                skips.append(channels)
        return skips

    def _build_up(self, channels: int, skips: list[int]) -> None:
        """Build the way up; every skip is used once, last in first out."""
        config = self.config
        self.up = nn.ModuleList()
        for level in reversed(range(len(config.channel_multipliers))):
            out = config.base_channels * config.channel_multipliers[level]
            for index in range(config.residual_blocks + 1):
                block = self._residual(channels + skips.pop(), out)
                attention = self._attention(out, wanted=level in config.attention_levels)
                last = index == config.residual_blocks and level > 0
                resample = self._resampling(out, nn.Upsample(scale_factor=2)) if last else None
                self.up.append(Stage(block, attention, resample))
                channels = out
