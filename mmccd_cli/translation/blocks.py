"""Residual, attention, resampling and time-embedding blocks of the U-Net.

Source: the architecture of Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis",
NeurIPS 2021 (ADM), which the paper uses. Written anew.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def zero_initialised(layer: nn.Module) -> nn.Module:
    """Set all parameters of a layer to zero, so that a residual branch starts as identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class TimeEmbedding(nn.Module):
    """Sinusoidal features of the time step, followed by two linear layers.

    Args:
        features: Number of sinusoidal features (even).
        out_features: Number of embedding channels.
    """

    def __init__(self, features: int, out_features: int) -> None:
        super().__init__()
        half = features // 2
        # Computed on the CPU even where a network is built on the meta device, whose `arange` loads
        # sympy and the compiler: a second of a process's eleven.
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device="cpu") / half)
        self.register_buffer("frequencies", torch.tensor(frequencies.tolist()), persistent=False)
        self.first = nn.Linear(2 * half, out_features)
        self.second = nn.Linear(out_features, out_features)

    def forward(self, timesteps: Tensor) -> Tensor:
        """Embed time steps of shape (N,) as (N, out_features)."""
        angles = timesteps.float()[:, None] * self.get_buffer("frequencies")[None]
        features = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.second(F.silu(self.first(features)))


class Dropout(nn.Dropout):
    """Dropout that drops from a share of a batch what it would drop from it in the whole batch.

    Attributes:
        batch: Samples of the whole batch; None where it is never shared out.
        share: Which of them are given.
    """

    batch: int | None = None
    share = slice(None)

    def forward(self, x: Tensor) -> Tensor:
        """Drop values of (N, C, H, W), N being those of the share, and scale up the others."""
        if self.batch is None or not self.training or self.p == 0:
            return super().forward(x)
        layout = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
        ones = x.new_ones(self.batch, *x.shape[1:]).to(memory_format=layout)
        return x * super().forward(ones)[self.share]


class Pointwise(nn.Conv2d):
    """A convolution of 1 x 1 pixels, for which it does not matter what a slice is.

    With one thread, torch leaves it to oneDNN from 16 slices on only, which takes half the time of
    what it does otherwise. So on a CPU rows of pixels pass as slices, where none needs to be moved.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H, W)."""
        if torch.is_grad_enabled() or x.device.type != "cpu" or x.stride(1) != 1:
            return super().forward(x)
        n, _, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(n * height, 1, width, -1).permute(0, 3, 1, 2)
        mapped = super().forward(rows).permute(0, 2, 3, 1)
        return mapped.reshape(n, height, width, -1).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two normalised convolutions with a skip; a time embedding scales and shifts the second norm.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        embedding_channels: Channels of the time embedding; 0 for a block without time.
        groups: Groups of the group norms.
        dropout: Dropout probability before the second convolution.
        resample: Parameter-free change of resolution, applied to both branches.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_channels: int,
        groups: int,
        dropout: float,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = nn.GroupNorm(math.gcd(groups, in_channels), in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        modulates = embedding_channels > 0
        self.modulation = nn.Linear(embedding_channels, 2 * out_channels) if modulates else None
        self.norm2 = nn.GroupNorm(math.gcd(groups, out_channels), out_channels)
        self.dropout = Dropout(dropout)
        self.conv2 = zero_initialised(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else Pointwise(in_channels, out_channels)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Map (N, in, H, W) to (N, out, H', W'), H' and W' changed by `resample` only."""
        # Values are overwritten where no gradient needs them: memory that is new costs as much as
        # the arithmetic.
        overwrites = not torch.is_grad_enabled()
        h = F.silu(self.norm1(x), inplace=overwrites)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        if self.modulation is None or embedding is None:
            h = self.norm2(h)
        else:
            h = self._modulated(h, *self.modulation(F.silu(embedding)).chunk(2, dim=1))
        h = self.conv2(self.dropout(F.silu(h, inplace=overwrites)))
        return h.add_(self.skip(x)) if overwrites else self.skip(x) + h

    def _modulated(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """The second norm, scaled and shifted by (N, C), or by (1, C) without a further pass."""
        if len(scale) > 1:
            scale, shift = scale[:, :, None, None], shift[:, :, None, None]
            return torch.addcmul(shift, self.norm2(h), 1 + scale)
        weight = self.norm2.weight * (1 + scale[0])
        bias = torch.addcmul(shift[0], self.norm2.bias, 1 + scale[0])
        return F.group_norm(h, self.norm2.num_groups, weight, bias, self.norm2.eps)


class SelfAttention(nn.Module):
    """Self-attention over all pixels of a feature map, with a skip.

    Args:
        channels: Channels in and out.
        heads: Number of heads; must divide `channels`.
        groups: Groups of the group norm.
    """

    def __init__(self, channels: int, *, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(math.gcd(groups, channels), channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.projection = zero_initialised(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        n, c, height, width = x.shape
        qkv = self.query_key_value(self.norm(x))
        qkv = qkv.reshape(n, 3, self.heads, c // self.heads, height * width).transpose(3, 4)
        attended = F.scaled_dot_product_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2])
        return x + self.projection(attended.transpose(2, 3).reshape(n, c, height, width))
