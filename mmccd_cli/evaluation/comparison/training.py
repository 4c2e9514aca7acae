"""Comparison models learn from the slices of `prepare`, with the lesion hidden as for our networks.

As for our own bundles, the thresholds are then chosen on the training subjects' slices.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmccd_cli.anomaly.score import smooth
from mmccd_cli.config import TrainingConfig
from mmccd_cli.errors import ComputeError
from mmccd_cli.evaluation.baselines import plain_score
from mmccd_cli.evaluation.comparison.networks import (
    RESIDUALS,
    ComparisonConfig,
    build_network,
    coarse_noise,
    residual_of_volume,
)
from mmccd_cli.evaluation.thresholds import DiceCurve, choose_constants, dice_curve
from mmccd_cli.template import Quantisation
from mmccd_cli.training.samples import SliceDataset, draw_sample
from mmccd_cli.training.slices import read_index, read_shard
from mmccd_cli.training.trainer import Progress, Runtime, learning_rate_at, sample_generator
from mmccd_cli.translation.masking import hide
from mmccd_cli.translation.schedule import Schedule

DEFAULT_TRAINING = TrainingConfig(iterations=1200, batch_size=16, learning_rate=1e-3)
"""Their recipe: the sampling, augmentation and schedule of our compact networks."""


def train_comparison_model(
    config: ComparisonConfig,
    dataset: SliceDataset,
    training: TrainingConfig,
    runtime: Runtime,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Tensor]:
    """Train one model from the start, in one process.

    Args:
        config: The model.
        dataset: Slices with healthy tissue.
        training: Steps, batch, rates, augmentation and seed.
        runtime: Device and precision.
        report: Called every `runtime.report_every` steps.

    Returns:
        The averaged weights, float32 on the CPU.

    Raises:
        ComputeError: The loss is no longer finite.
    """
    torch.manual_seed(training.seed)
    network = build_network(config).to(runtime.device)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
    )
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    began, total, counted = time.monotonic(), 0.0, 0
    network.train()
    for iteration in range(training.iterations):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(iteration, training)
        loss = _loss(network, config, dataset, training, runtime, iteration)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if training.gradient_clip:
            nn.utils.clip_grad_norm_(network.parameters(), training.gradient_clip)
        optimizer.step()
        _follow(average, network, min(training.ema_decay, (iteration + 1) / (iteration + 10)))
        total, counted, done = total + float(loss.detach()), counted + 1, iteration + 1
        if done % runtime.report_every == 0 or done == training.iterations:
            mean = total / counted
            if not math.isfinite(mean):
                raise ComputeError(
                    f"the loss of {config.name} is no longer finite at iteration {done}",
                    next_step="train again with a lower --learning-rate",
                )
            left = (time.monotonic() - began) / done * (training.iterations - done)
            report(Progress(config.name, done, training.iterations, mean, None, left))
            total, counted = 0.0, 0
    return {name: value.float().cpu() for name, value in average.items()}


def _loss(
    network: nn.Module,
    config: ComparisonConfig,
    dataset: SliceDataset,
    training: TrainingConfig,
    runtime: Runtime,
    iteration: int,
) -> Tensor:
    """Mean squared error over the healthy brain of one batch, and a VAE's divergence."""
    drawn = [
        _draw(config, dataset, training, sample_generator(training.seed, iteration, index))
        for index in range(training.batch_size)
    ]
    inputs, target, region, times, latent_noise = (
        torch.cat(parts).to(runtime.device) for parts in zip(*drawn, strict=True)
    )
    divergence = torch.zeros((), device=runtime.device)
    with runtime.autocast():
        if config.kind in ("ae", "vae"):
            prediction, each = network(inputs, latent_noise)
            divergence = config.kl_weight * each.sum()
        elif config.kind == "dae":
            prediction = network(inputs)
        else:
            prediction = network(inputs, times)
    error = ((prediction.float() - target).square() * region).sum()
    return (error + divergence) / region.sum().clamp_min(1)


def _draw(
    config: ComparisonConfig,
    dataset: SliceDataset,
    training: TrainingConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Input, target, region, time step and latent noise of one sample, of batch size one."""
    sample = draw_sample(
        dataset, config.modality, config.modality, generator, augment=training.augment
    )
    image, seen = sample.source, ~sample.hidden
    inputs = hide(image, seen, torch.randn(image.shape, generator=generator))
    times = torch.zeros(1, dtype=torch.long)
    if config.kind == "dae":
        inside = sample.healthy | sample.hidden
        inputs = inputs + coarse_noise(config, 1, generator) * inside
    elif config.kind == "ddpm":
        # Only these times are ever visited on the way back.
        times = torch.randint(config.start_timestep + 1, (1,), generator=generator)
        noise = torch.randn(image.shape, generator=generator)
        inputs = Schedule.from_config(config.diffusion).add_noise(inputs, noise, times)
    latent_noise = torch.randn(1, config.latent, generator=generator)
    return inputs, image, sample.healthy.float(), times, latent_noise


def choose_thresholds(
    network: nn.Module,
    config: ComparisonConfig,
    shards: Path,
    subjects: Sequence[str],
    device: torch.device,
    *,
    report: Callable[[str, int, int], None] = lambda subject, done, total: None,
) -> dict[str, dict[str, float]]:
    """Choose the constants of both threshold rules on prepared subjects with lesions.

    Args:
        network: The trained network, in evaluation mode, on the device.
        config: Its configuration.
        shards: What `prepare` wrote.
        subjects: Ids; healthy ones are passed over.
        device: The device.
        report: Called with each subject's id, its number and the number of all.

    Returns:
        Residual -> rule -> constant; empty where no subject has a lesion.
    """
    index = read_index(shards)
    quantisation, (i, j, k) = Quantisation(**index["quantisation"]), index["spacing_mm"]
    scale = float(index["preprocessing"]["intensity"]["scale"])
    signal = f"cycle:{config.modality}"
    cleaning = plain_score({signal: 1.0})
    curves: dict[str, list[DiceCurve]] = {residual: [] for residual in RESIDUALS}
    for number, subject in enumerate(subjects, start=1):
        report(subject, number, len(subjects))
        shard = read_shard(shards, subject)
        image = np.moveaxis(quantisation.decode(shard.images[config.modality]), 0, 2)
        brain, lesion = np.moveaxis(shard.brain, 0, 2), np.moveaxis(shard.lesion, 0, 2)
        if not lesion.any():
            continue
        signed = residual_of_volume(network, config, image, brain, scale, "signed", device=device)
        for residual, raw in (("signed", signed), ("absolute", np.abs(signed))):
            smoothed = smooth({signal: raw}, brain, spacing_mm=(i, j, k), config=cleaning)
            curves[residual].append(
                dice_curve(subject, smoothed, reference=lesion, config=cleaning)
            )
    return {residual: choose_constants(found) for residual, found in curves.items() if found}


@torch.no_grad()
def _follow(average: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    """Move the exponential moving average of the weights."""
    for name, value in network.state_dict().items():
        average[name].lerp_(value, 1 - decay)
