"""What the network of small foci sees, and that a batch's size changes nothing."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mmccd_cli.config import FociConfig, UNetConfig
from mmccd_cli.translation.engine import Execution
from mmccd_cli.translation.foci import (
    INPUT_SCALE,
    LARGEST_INPUT,
    foci_input,
    foci_log_odds,
    with_neighbours,
)


class Channel(nn.Module):
    """Gives back one channel of what it is given."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return x[:, [self.number]] * INPUT_SCALE


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_each_slice_has_its_neighbours_and_the_ends_have_nothing_beyond() -> None:
    images = random(4, 3, 2, 2)
    slabs = with_neighbours(images)
    assert slabs.shape == (4, 9, 2, 2)
    torch.testing.assert_close(slabs[:, 3:6], images)
    torch.testing.assert_close(slabs[1:, :3], images[:-1])
    torch.testing.assert_close(slabs[:-1, 6:], images[1:])
    assert not slabs[0, :3].any()
    assert not slabs[-1, 6:].any()


def test_scans_that_are_not_there_are_not_seen_on_either_side() -> None:
    slabs, mirrored = random(2, 9, 4, 4), random(2, 3, 4, 4)
    shown = torch.tensor([[1.0, 0.0, 1.0]]).expand(2, -1)
    channels = foci_input(slabs, mirrored, shown)
    assert channels.shape == (2, 15, 4, 4)
    for absent in (1, 4, 7, 10, 13):
        assert not channels[:, absent].any()
    torch.testing.assert_close(channels[:, 3] * INPUT_SCALE, slabs[:, 3])
    torch.testing.assert_close(channels[:, 11] * INPUT_SCALE, mirrored[:, 2])
    assert torch.equal(channels[:, 12:, 0, 0], shown)


def test_what_lies_far_out_is_cut() -> None:
    far = torch.full((1, 9, 2, 2), 1e4)
    channels = foci_input(far, -far[:, :3], torch.ones(1, 3))
    assert float(channels.max()) == pytest.approx(LARGEST_INPUT / INPUT_SCALE)
    assert float(channels.min()) == pytest.approx(-LARGEST_INPUT / INPUT_SCALE)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize(("channel", "offset"), [(0, -1), (3, 0), (6, 1)])
def test_slices_keep_their_neighbours_across_batches(batch: int, channel: int, offset: int) -> None:
    images, done = random(5, 3, 4, 6), []
    execution = Execution(torch.device("cpu"), batch_size=batch, advance=done.append)
    found = foci_log_odds(
        Channel(channel),
        images,
        mirrored=torch.zeros_like(images),
        shown=torch.ones(3),
        execution=execution,
    )
    assert sum(done) == 5
    assert found.shape == (5, 1, 4, 6)
    expected = torch.zeros(5, 4, 6)
    inside = [n for n in range(5) if 0 <= n + offset < 5]
    expected[inside] = images[[n + offset for n in inside], 0]
    torch.testing.assert_close(found[:, 0], expected)


class Leaning(nn.Module):
    """Says more of what lies on one side, as no network should but most do a little."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, [3]] * torch.linspace(0, 1, x.shape[2])[:, None]


def test_a_head_and_its_mirror_image_are_the_same() -> None:
    images, mirrored = random(4, 3, 6, 5), random(4, 3, 6, 5)

    def found(flip: bool) -> Tensor:
        scans, others = (t.flip(2) if flip else t for t in (images, mirrored))
        log_odds = foci_log_odds(
            Leaning(),
            scans,
            mirrored=others,
            shown=torch.ones(3),
            execution=Execution(torch.device("cpu")),
        )
        return log_odds.flip(2) if flip else log_odds

    torch.testing.assert_close(found(flip=True), found(flip=False))
    assert found(flip=False).abs().max() > 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"unet": UNetConfig(in_channels=15, out_channels=2)},
        {"unet": UNetConfig(in_channels=6)},
        {"unet": UNetConfig(in_channels=15, time_conditioned=True)},
        {"shown_fraction": 0.0},
    ],
)
def test_other_networks_are_refused(changes: dict) -> None:
    with pytest.raises(ValidationError):
        FociConfig(**{"unet": UNetConfig(in_channels=15), **changes})
