"""Schedule, sampler and masks: pinned numbers, exact identities, and MONAI as second opinion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmccd_cli.config import DiffusionConfig
from mmccd_cli.translation.masking import band_masks, hide, random_band_masks, random_blob_masks
from mmccd_cli.translation.sampler import sample_ddim
from mmccd_cli.translation.schedule import Schedule

SCHEDULE = Schedule.from_config(DiffusionConfig())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Schedule


def test_schedule_by_hand() -> None:
    schedule = Schedule.from_config(DiffusionConfig(3, 0.1, 0.3))
    expected = torch.tensor([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7], dtype=torch.float64)
    torch.testing.assert_close(schedule.alphas_cumprod, expected)
    assert schedule.num_train_timesteps == 3


def test_schedule_equals_monai() -> None:
    from monai.networks.schedulers import DDPMScheduler

    other = DDPMScheduler(1000, schedule="linear_beta", beta_start=1e-4, beta_end=0.02)
    ours = SCHEDULE.alphas_cumprod.float()
    torch.testing.assert_close(ours, other.alphas_cumprod, rtol=1e-4, atol=1e-7)
    x0, noise = torch.randn(2, 4, 1, 8, 8, generator=seeded())
    timesteps = torch.tensor([0, 1, 500, 999])
    noisy, theirs = (one.add_noise(x0, noise, timesteps) for one in (SCHEDULE, other))
    torch.testing.assert_close(noisy, theirs, rtol=1e-4, atol=1e-5)
    assert noisy.dtype == torch.float32
    first, *_, last = SCHEDULE.alphas_cumprod.sqrt().tolist()
    assert (first, last) == (pytest.approx((1 - 1e-4) ** 0.5), pytest.approx(0.00635, abs=1e-4))


@pytest.mark.parametrize(
    ("steps", "first", "last"),
    [
        (1, [999], [999]),
        (2, [999, 499], [999, 499]),
        (3, [999, 666, 332], [999, 666, 332]),
        (7, [999, 856, 713, 570], [570, 428, 285, 142]),
        (10, [999, 899, 799, 699], [399, 299, 199, 99]),
        (50, [999, 979, 959, 939], [79, 59, 39, 19]),
        (75, [999, 986, 972, 959], [52, 39, 26, 12]),
        (100, [999, 989, 979, 969], [39, 29, 19, 9]),
        (150, [999, 992, 986, 979], [26, 19, 12, 6]),
        (300, [999, 996, 992, 989], [12, 9, 6, 2]),
        (1000, [999, 998, 997, 996], [3, 2, 1, 0]),
    ],
)
def test_exact_time_steps(steps: int, first: list[int], last: list[int]) -> None:
    timesteps = SCHEDULE.inference_timesteps(steps)
    assert (timesteps[:4], timesteps[-4:], len(timesteps)) == (first, last, steps)


def test_every_number_of_steps_falls_strictly_from_the_last_time_step() -> None:
    for steps in range(1, 1001):
        timesteps = np.array(SCHEDULE.inference_timesteps(steps))
        assert len(timesteps) == steps
        assert timesteps[0] == 999
        assert timesteps[-1] >= 0
        assert (np.diff(timesteps) < 0).all()
    for steps in (0, -1, 1001):
        with pytest.raises(ValueError, match=r"1\.\.1000"):
            SCHEDULE.inference_timesteps(steps)


# Sampler


def curved(x: Tensor, timesteps: Tensor) -> Tensor:
    """A denoiser that depends on both arguments and is bounded, like a trained one."""
    return torch.tanh(0.8 * x + timesteps[:, None, None, None] / 1000 - 0.3)


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 75])
def test_walk_equals_monai_at_the_same_time_steps(steps: int) -> None:
    from monai.networks.schedulers import DDIMScheduler

    other = DDIMScheduler(
        1000,
        schedule="linear_beta",
        beta_start=1e-4,
        beta_end=0.02,
        clip_sample=False,
        prediction_type="sample",
    )
    noise = torch.randn(2, 1, 8, 8, generator=seeded())
    timesteps = SCHEDULE.inference_timesteps(steps)
    x = noise
    for now, then in zip(timesteps, [*timesteps[1:], -1], strict=True):
        # Its step goes back by num_train_timesteps // num_inference_steps: make that ours.
        other.num_train_timesteps, other.num_inference_steps = now - then, 1
        x, _ = other.step(curved(x, torch.full((2,), now)), now, x)
    ours = sample_ddim(curved, noise, SCHEDULE, timesteps=timesteps)
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 13, 100])
def test_an_oracle_gives_back_the_truth_and_sees_it_with_noise(steps: int) -> None:
    """With a perfect prediction, every x_t on the way is what training would have shown."""
    truth = torch.randn(2, 1, 8, 8, generator=seeded(1))
    noise = torch.randn(2, 1, 8, 8, generator=seeded(2))
    seen: list[tuple[int, Tensor]] = []

    def oracle(x: Tensor, timesteps: Tensor) -> Tensor:
        assert timesteps.shape == (1,)
        assert timesteps.dtype == torch.long
        seen.append((int(timesteps[0]), x))
        return truth

    timesteps = SCHEDULE.inference_timesteps(steps)
    assert torch.equal(sample_ddim(oracle, noise, SCHEDULE, timesteps=timesteps), truth)
    assert [t for t, _ in seen] == timesteps
    assert torch.equal(seen[0][1], noise)  # the walk starts at pure noise, not almost pure noise
    start = SCHEDULE.alphas_cumprod[999]
    epsilon = (noise - start.sqrt() * truth) / (1 - start).sqrt()
    for timestep, x in seen[1:]:
        expected = SCHEDULE.add_noise(truth, epsilon.float(), torch.full((2,), timestep))
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)


def test_one_step_is_one_call_on_pure_noise() -> None:
    noise = torch.randn(2, 1, 4, 4, generator=seeded())
    expected = curved(noise, torch.full((2,), 999))
    assert torch.equal(sample_ddim(curved, noise, SCHEDULE, timesteps=[999]), expected)


# Bands of the test


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    stride=st.integers(1, 9),
    factor=st.integers(1, 5),
)
def test_bands_hide_every_pixel_equally_often(
    height: int, width: int, stride: int, factor: int
) -> None:
    masks = band_masks(height, width, band_width=stride * factor, stride=stride)
    assert masks.shape[1:] == (1, height, width)
    assert masks.dtype == torch.bool
    hidden = (~masks).sum(dim=0)
    # Where an axis is not longer than a band, all of its bands hide everything.
    on_columns, on_rows = (min(factor, -(-length // stride)) for length in (width, height))
    assert (hidden == on_columns + on_rows).all()


def test_published_bands_and_disjoint_ones_on_a_small_image() -> None:
    masks = band_masks(128, 128, band_width=16, stride=2)
    assert len(masks) == 128
    assert ((~masks).sum(dim=(1, 2, 3)) == 16 * 128).all()
    assert ((~masks).sum(dim=0) == 16).all()  # 8 columns and 8 rows
    assert len(masks.unique(dim=0)) == 128
    small = band_masks(2, 5, band_width=2, stride=2)
    shown = ["".join("x" if seen else "." for seen in mask[0, 1]) for mask in small]
    assert shown == ["..xxx", "xx..x", "xxxx.", "....."]
    for stride in (0, 3):
        with pytest.raises(ValueError, match="must divide"):
            band_masks(16, 16, band_width=4, stride=stride)


# Masks of training


def test_random_bands_hide_the_border_as_often_as_the_centre() -> None:
    count, height, width, band = 20_000, 24, 40, 8
    hidden = ~random_band_masks(count, height, width, band_width=band, generator=seeded())
    rate = hidden.float().mean(dim=0)[0]
    # Half of the bands are columns: each pixel is inside one with the same chance.
    chance = 0.5 * band / (width + band - 1) + 0.5 * band / (height + band - 1)
    assert rate.min() > chance - 0.015
    assert rate.max() < chance + 0.015


def test_random_bands_are_one_band_a_sample_and_differ() -> None:
    masks = random_band_masks(200, 24, 40, band_width=8, generator=seeded())
    hidden = ~masks[:, 0]
    columns = hidden.all(dim=1).sum(dim=1)
    rows = hidden.all(dim=2).sum(dim=1)
    assert ((columns > 0) ^ (rows > 0)).all()
    assert int(torch.maximum(columns, rows).max()) == 8
    assert 60 < int((columns > 0).sum()) < 140
    assert len(masks.unique(dim=0)) > 50


def test_a_random_mask_is_decided_by_its_generator() -> None:
    for draw in (
        lambda g: random_band_masks(4, 16, 16, band_width=4, generator=g),
        lambda g: random_blob_masks(4, 16, 16, radius_px=6, generator=g),
    ):
        assert torch.equal(draw(seeded(5)), draw(seeded(5)))
        assert not torch.equal(draw(seeded(5)), draw(seeded(6)))


def test_blobs_are_no_larger_than_their_radius_and_everywhere() -> None:
    hidden = ~random_blob_masks(4000, 32, 48, radius_px=8, generator=seeded())
    assert hidden.shape == (4000, 1, 32, 48)
    rows, columns = hidden.any(dim=3)[:, 0], hidden.any(dim=2)[:, 0]
    assert int(rows.sum(dim=1).max()) <= 17
    assert int(columns.sum(dim=1).max()) <= 17
    assert int(rows.sum(dim=1).max()) >= 14
    assert hidden.float().mean(dim=0).min() > 0


def test_hide_keeps_what_is_seen() -> None:
    x, noise = torch.full((1, 1, 1, 2), 7.0), torch.full((1, 1, 1, 2), -1.0)
    assert hide(x, torch.tensor([[[[True, False]]]]), noise).tolist() == [[[[7.0, -1.0]]]]
