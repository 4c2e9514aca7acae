"""The masked translator never sees what is hidden, and hands its network what training did."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmccd_cli.config import DiffusionConfig
from mmccd_cli.translation.schedule import Schedule
from mmccd_cli.translation.translators import MaskedTranslator

SCHEDULE = Schedule.from_config(DiffusionConfig())


class Recorder(nn.Module):
    """Keeps what it is given; predicts the condition, halved."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        self.calls.append((x, timesteps))
        return x[:, 1:] / 2


def stack() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, condition_noise, start_noise = torch.randn(
        3, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    seen = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    seen[0, :, :, :4] = False
    seen[1, :, 2:3] = False
    return x, seen, condition_noise, start_noise


def test_channels_are_the_noisy_target_and_the_condition() -> None:
    x, seen, condition_noise, start_noise = stack()
    network = Recorder()
    result = MaskedTranslator(network, SCHEDULE, 1)(x, seen, condition_noise, start_noise)
    ((given, timesteps),) = network.calls
    assert torch.equal(given[:, :1], start_noise)
    assert torch.equal(given[:, 1:][seen], x[seen])
    assert torch.equal(given[:, 1:][~seen], condition_noise[~seen])
    assert timesteps.tolist() == [999]
    assert torch.equal(result, given[:, 1:] / 2)


@pytest.mark.parametrize("steps", [1, 3])
def test_what_is_hidden_has_no_influence(steps: int) -> None:
    x, seen, condition_noise, start_noise = stack()
    translator = MaskedTranslator(Recorder(), SCHEDULE, steps)
    before = translator(x, seen, condition_noise, start_noise)
    lesion = torch.where(seen, x, torch.full_like(x, 100.0))
    assert torch.equal(before, translator(lesion, seen, condition_noise, start_noise))
    outside = torch.where(seen, x + 1, x)
    assert not torch.equal(before, translator(outside, seen, condition_noise, start_noise))


def test_the_condition_stays_the_same_over_all_steps() -> None:
    network = Recorder()
    MaskedTranslator(network, SCHEDULE, 4)(*stack())
    assert [int(t[0]) for _, t in network.calls] == SCHEDULE.inference_timesteps(4)
    for given, _ in network.calls[1:]:
        assert torch.equal(given[:, 1:], network.calls[0][0][:, 1:])
