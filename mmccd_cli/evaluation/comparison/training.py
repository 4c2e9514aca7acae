"""Comparison models learn from the slices of `prepare`, with the lesion hidden as for our networks.

Bias fields are left in, as they are when such a model is scored; our networks learn without them.
As for our own bundles, the thresholds are then chosen on the training subjects' slices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmccd_cli.anomaly.score import smooth
from mmccd_cli.config import PreprocessingConfig, TrainingConfig, from_dict, to_dict
from mmccd_cli.evaluation.baselines import plain_score
from mmccd_cli.evaluation.comparison.files import ComparisonModel, save_comparison_model
from mmccd_cli.evaluation.comparison.networks import (
    RESIDUALS,
    ComparisonConfig,
    build_network,
    coarse_noise,
    residual_of_volume,
)
from mmccd_cli.evaluation.thresholds import DiceCurve, choose_constants, dice_curve
from mmccd_cli.progress import silent
from mmccd_cli.template import Quantisation
from mmccd_cli.training.runtime import Runtime
from mmccd_cli.training.samples import SliceDataset, draw_sample, load_dataset
from mmccd_cli.training.slices import read_index, read_template, read_volumes
from mmccd_cli.training.trainer import TrainingListener, checkpoint_path, fit, squared_error
from mmccd_cli.translation.masking import hide
from mmccd_cli.translation.schedule import Schedule

DEFAULT_TRAINING = TrainingConfig(iterations=1200, batch_size=16, learning_rate=1e-3)
"""Their recipe: augmentation and schedule of our compact networks, with fewer and smaller steps."""


def make_comparison_model(
    config: ComparisonConfig,
    prepared: Path,
    folder: Path,
    *,
    training: TrainingConfig,
    split: str,
    runtime: Runtime,
    report: TrainingListener = silent,
    report_subject: Callable[[str, int, int], None] = silent,
) -> None:
    """Train one model on prepared slices, choose its thresholds, and write its folder.

    Its checkpoint lies there, too, as long as it is being trained.

    Raises:
        DataError: There are no such slices.
        UsageError, ComputeError, WeightsError: As `fit` does.
    """
    index, dataset = read_index(prepared), load_dataset(prepared, training, split=split)
    folder.mkdir(parents=True, exist_ok=True)
    weights = train_comparison_model(
        config, dataset, training, runtime=runtime, folder=folder, report=report
    )
    if runtime.rank:
        return
    network = build_network(config)
    network.load_state_dict(weights)
    network.eval().to(runtime.device)
    about = {"settings": to_dict(training), "split": split, "subjects": list(dataset.subjects)}
    model = ComparisonModel(
        config=config,
        network=network,
        template=read_template(prepared, index["affine"]),
        preprocessing=from_dict(PreprocessingConfig, index["preprocessing"]),
        training=about,
        constants={},
    )
    constants = choose_thresholds(model, prepared, device=runtime.device, report=report_subject)
    save_comparison_model(folder, replace(model, constants=constants))
    # So that the next training into this folder begins anew, also with other settings.
    checkpoint_path(folder, config.name).unlink(missing_ok=True)


def train_comparison_model(
    config: ComparisonConfig,
    dataset: SliceDataset,
    training: TrainingConfig,
    *,
    runtime: Runtime,
    folder: Path,
    report: TrainingListener = silent,
) -> dict[str, Tensor]:
    """Train one model as `fit` does, continuing from the checkpoint in its folder.

    Returns:
        The averaged weights, float32 on the CPU.
    """
    torch.manual_seed(training.seed)
    return fit(
        build_network(config),
        ReconstructionLoss(
            config=config, dataset=dataset, augment=training.augment, runtime=runtime
        ),
        training,
        name=config.name,
        recipe={
            "network": to_dict(config),
            "training": to_dict(training),
            "subjects": list(dataset.subjects),
            "slices": dataset.sha256,
        },
        runtime=runtime,
        folder=folder,
        report=report,
    )


@dataclass(frozen=True, kw_only=True)
class ReconstructionLoss:
    """Squared error over the healthy brain, and a VAE's divergence."""

    config: ComparisonConfig
    dataset: SliceDataset
    augment: bool
    runtime: Runtime

    def __call__(
        self, network: nn.Module, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Summed error over a batch, and the pixels it is summed over."""
        drawn = [self._draw(generator) for generator in generators]
        inputs, target, region, times, latent_noise = (
            torch.cat(parts).to(self.runtime.device) for parts in zip(*drawn, strict=True)
        )
        kind, divergence = self.config.kind, torch.zeros((), device=inputs.device)
        with self.runtime.autocast():
            if kind in ("ae", "vae"):
                prediction, each = network(inputs, latent_noise)
                divergence = self.config.kl_weight * each.sum()
            else:
                prediction = network(inputs) if kind == "dae" else network(inputs, times)
        error, count = squared_error(prediction, target, region)
        return error + divergence, count

    @cached_property
    def _schedule(self) -> Schedule:
        return Schedule.from_config(self.config.diffusion)

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Input, target, region, time step and latent noise of one sample, of batch size one."""
        config, modality = self.config, self.config.modality
        sample = draw_sample(
            self.dataset, modality, modality, generator=generator, augment=self.augment
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
            inputs = self._schedule.add_noise(inputs, noise, times)
        latent_noise = torch.randn(1, config.latent, generator=generator)
        return inputs, image, sample.healthy.float(), times, latent_noise


def choose_thresholds(
    model: ComparisonModel,
    prepared: Path,
    *,
    device: torch.device,
    report: Callable[[str, int, int], None] = silent,
) -> dict[str, dict[str, float]]:
    """Choose the constants of both threshold rules on those of its training who have a lesion.

    Returns:
        Residual -> rule -> constant; empty where no subject has a lesion.
    """
    quantisation = Quantisation(**read_index(prepared)["quantisation"])
    modality, subjects = model.config.modality, model.training["subjects"]
    signal = f"cycle:{modality}"
    config = plain_score({signal: 1.0})
    curves: dict[str, list[DiceCurve]] = {residual: [] for residual in RESIDUALS}
    for number, subject in enumerate(subjects, start=1):
        report(subject, number, len(subjects))
        volumes = read_volumes(prepared, subject, quantisation)
        if not volumes.lesion.any():
            continue
        signed = residual_of_volume(
            model.network,
            model.config,
            volumes.images[modality],
            brain=volumes.brain,
            scale=model.preprocessing.intensity.scale,
            device=device,
        )
        for residual, raw in (("signed", signed), ("absolute", np.abs(signed))):
            spacing = model.template.spacing_mm
            smoothed = smooth({signal: raw}, volumes.brain, spacing_mm=spacing, config=config)
            curves[residual].append(dice_curve(smoothed, volumes.lesion, config))
    return {residual: choose_constants(found) for residual, found in curves.items() if found}
