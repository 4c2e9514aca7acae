"""What a restoration network sees, and what it takes away."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mmccd_cli.config import RestorationConfig, UNetConfig
from mmccd_cli.translation.engine import Execution
from mmccd_cli.translation.restoration import restoration_input, restoration_residual

ALL = torch.ones(3)


class Scans(nn.Module):
    """Gives back the scans that it sees, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x[:, :3]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_scans_that_are_not_there_are_not_seen() -> None:
    images, shown = random(2, 3, 4, 4), torch.tensor([[1.0, 0.0, 1.0]]).expand(2, -1)
    channels = restoration_input(images, shown)
    assert channels.shape == (2, 6, 4, 4)
    assert torch.equal(channels[:, 0], images[:, 0])
    assert not channels[:, 1].any()
    assert torch.equal(channels[:, 3:, 0, 0], shown)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_residual_is_the_scan_less_its_restoration(batch: int) -> None:
    images, done = random(5, 3, 4, 6), []
    execution = Execution(torch.device("cpu"), batch_size=batch, advance=done.append)
    nothing = restoration_residual(Scans(1.0), images, ALL, execution=execution)
    torch.testing.assert_close(nothing, torch.zeros(5, 3, 4, 6))
    assert sum(done) == 5
    half = restoration_residual(Scans(0.5), images, ALL, execution=execution)
    torch.testing.assert_close(half, images / 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_amplitude": (2.0, 1.0)},
        {"noise_grids": ()},
        {"shown_fraction": 0.0},
        {"unet": UNetConfig(in_channels=6, out_channels=3, time_conditioned=True)},
        {"unet": UNetConfig(in_channels=6, out_channels=1)},
        {"unet": UNetConfig(in_channels=3, out_channels=3)},
    ],
)
def test_contradictory_settings_are_refused(changes: dict) -> None:
    unet = UNetConfig(in_channels=6, out_channels=3)
    assert RestorationConfig(unet=unet).noise_grids == (6, 9, 14, 22)
    with pytest.raises(ValidationError):
        RestorationConfig(**{"unet": unet, **changes})
