"""What the restoration network is shown in training, and what it must never see."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from training_data import SMALL_RESTORATION, make_dataset

from mmccd_cli.config import TrainingConfig
from mmccd_cli.training.restoration import RestorationLoss, RestorationSpec, coarse_noise
from mmccd_cli.training.runtime import Runtime
from mmccd_cli.training.samples import SliceDataset
from mmccd_cli.training.trainer import sample_generator

SCALE = 0.5


def dataset_of_three_scans() -> SliceDataset:
    dataset = make_dataset()
    return replace(dataset, images={**dataset.images, "T1w": dataset.images["T2w"].clone()})


def loss_of(dataset: SliceDataset, *, augment: bool = True) -> RestorationLoss:
    return RestorationLoss(
        spec=RestorationSpec(SMALL_RESTORATION),
        dataset=dataset,
        scale=SCALE,
        config=TrainingConfig(augment=augment),
        runtime=Runtime(device=torch.device("cpu")),
    )


def test_a_sample_depends_on_its_generator_alone() -> None:
    loss = loss_of(dataset_of_three_scans())
    once, again = (loss.draw(sample_generator(0, 3, 1)) for _ in range(2))
    other = loss.draw(sample_generator(0, 3, 2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not torch.equal(once.inputs, other.inputs)
    assert once.inputs.shape == (1, 6, 16, 16)


def test_lesions_are_neither_seen_nor_learnt() -> None:
    """Whatever the lesion's level, a sample is the same."""
    dataset = dataset_of_three_scans()
    changed = {
        name: torch.where(dataset.hidden, torch.tensor(255, dtype=torch.uint8), image)
        for name, image in dataset.images.items()
    }
    one, other = loss_of(dataset), loss_of(replace(dataset, images=changed))
    for index in range(12):
        a, b = (loss.draw(sample_generator(0, 0, index)) for loss in (one, other))
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.weight, b.weight)
        assert torch.equal(a.target * a.weight, b.target * b.weight)


def test_every_scan_is_sometimes_absent_but_never_all() -> None:
    loss = loss_of(dataset_of_three_scans())
    shown = torch.cat([loss.draw(sample_generator(0, 1, i)).inputs[:, 3:, 8, 8] for i in range(80)])
    assert (shown.sum(1) >= 1).all()
    assert ((shown.mean(0) > 0.4) & (shown.mean(0) < 0.85)).all()


def test_noise_is_coarse_and_of_the_amplitude_that_was_asked_for() -> None:
    draws = [
        coarse_noise(SMALL_RESTORATION, 64, 64, generator=sample_generator(0, 0, index))
        for index in range(60)
    ]
    noise = torch.cat(draws)
    assert noise.shape == (60, 3, 64, 64)
    beside = noise[..., 1:] - noise[..., :-1]
    assert float(beside.std()) < 0.5 * float(noise.std()), "neighbouring pixels are alike"
    low, high = SMALL_RESTORATION.noise_amplitude
    assert 0.4 * low < float(noise.std()) < high


class Perfect(nn.Module):
    """Knows what the slices were before the noise."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        return self.target


def test_the_loss_counts_healthy_shown_pixels_only() -> None:
    loss = loss_of(dataset_of_three_scans(), augment=False)
    generators = [sample_generator(0, 2, index) for index in range(3)]
    drawn = [loss.draw(sample_generator(0, 2, index)) for index in range(3)]
    target, weight = (torch.cat([getattr(d, name) for d in drawn]) for name in ("target", "weight"))
    total, count = loss(Perfect(target), generators)
    assert float(total) == 0.0
    assert float(count) == float(weight.sum())
    wrong = Perfect(target + 2.0 * (weight == 0))
    assert float(loss(wrong, [sample_generator(0, 2, i) for i in range(3)])[0]) == 0.0
    off = Perfect(target + 2.0)
    total, count = loss(off, [sample_generator(0, 2, i) for i in range(3)])
    assert float(total / count) == 4.0
