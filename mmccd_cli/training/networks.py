"""What each network of a recipe learns, and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmccd_cli.config import TrainingConfig, UNetConfig, to_dict
from mmccd_cli.progress import silent
from mmccd_cli.training.foci import FociLoss, FociSpec, painting_settings
from mmccd_cli.training.foci_subjects import FociDataset
from mmccd_cli.training.recipes import Recipe
from mmccd_cli.training.restoration import RestorationLoss, RestorationSpec
from mmccd_cli.training.runtime import Runtime
from mmccd_cli.training.samples import SliceDataset, draw_sample
from mmccd_cli.training.trainer import LossOfBatch, TrainingListener, draw_batch, fit, squared_error
from mmccd_cli.translation.masking import hide, random_band_masks, random_blob_masks
from mmccd_cli.translation.schedule import Schedule
from mmccd_cli.translation.translators import network_name
from mmccd_cli.translation.unet import UNet


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """What one translator learns.

    Attributes:
        kind: "unet" or "diffusion".
        source: Modality that goes in.
        target: Modality that comes out.
        unet: Its architecture.
    """

    kind: str
    source: str
    target: str
    unet: UNetConfig

    @property
    def name(self) -> str:
        """Name in checkpoints and bundles."""
        return network_name(self.kind, self.source, self.target)


Spec = NetworkSpec | RestorationSpec | FociSpec


def network_specs(recipe: Recipe) -> list[Spec]:
    """Networks of a recipe in the order of training; what two cycles share is trained once."""
    specs: dict[str, Spec] = {}
    if recipe.restoration is not None:
        restoration = RestorationSpec(recipe.restoration)
        specs[restoration.name] = restoration
    for cycle in recipe.cycles:
        there, back = (cycle.source, cycle.target), (cycle.target, cycle.source)
        for kind, (source, target) in (("diffusion", there), ("unet", back), ("unet", there)):
            unet = recipe.denoiser if kind == "diffusion" else recipe.unet
            spec = NetworkSpec(kind=kind, source=source, target=target, unet=unet)
            specs.setdefault(spec.name, spec)
    if recipe.foci is not None:
        foci = FociSpec(recipe.foci)
        specs[foci.name] = foci
    return list(specs.values())


def training_of(spec: Spec, recipe: Recipe) -> TrainingConfig:
    """How a recipe trains one of its networks."""
    if isinstance(spec, FociSpec):
        return recipe.foci_training
    return recipe.restoration_training if isinstance(spec, RestorationSpec) else recipe.training


def train_network(
    spec: Spec,
    dataset: SliceDataset | FociDataset,
    recipe: Recipe,
    *,
    runtime: Runtime,
    folder: Path,
    validation: SliceDataset | FociDataset | None = None,
    report: TrainingListener = silent,
) -> dict[str, Tensor]:
    """Train one network of a recipe, continuing from its checkpoint where there is one.

    Args:
        spec: The network.
        dataset: Healthy tissue: whole subjects for the network of small foci, slices for others.
        recipe: How it is trained, and the noise schedule.
        runtime: Device, precision and processes.
        folder: Where its checkpoint and log are kept.
        validation: Healthy tissue on which the loss is watched.
        report: Called on progress.

    Returns:
        The averaged (EMA) weights, float32 on the CPU.

    Raises:
        UsageError, ComputeError, WeightsError: As `fit` does.
    """
    config = training_of(spec, recipe)
    torch.manual_seed(config.seed)
    network = UNet(spec.unet if isinstance(spec, NetworkSpec) else spec.config.unet)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs
    loss = _loss_of(spec, dataset, recipe, runtime=runtime)
    watched = None
    if validation is not None:
        watched = _loss_of(spec, validation, recipe, runtime=runtime, augment=False)
    return fit(
        network,
        loss,
        config,
        name=spec.name,
        recipe={
            "network": to_dict(spec),
            "training": to_dict(config),
            "diffusion": to_dict(recipe.diffusion),
            "bias_field_degree": recipe.bias_field_degree,
            "subjects": list(dataset.subjects),
            "slices": dataset.sha256,
            "painting": painting_settings() if isinstance(spec, FociSpec) else {},
        },
        runtime=runtime,
        folder=folder,
        validation=watched,
        report=report,
    )


def _loss_of(
    spec: Spec,
    dataset: SliceDataset | FociDataset,
    recipe: Recipe,
    *,
    runtime: Runtime,
    augment: bool = True,
) -> LossOfBatch:
    config, scale = training_of(spec, recipe), recipe.preprocessing.intensity.scale
    config = replace(config, augment=config.augment and augment)
    if isinstance(spec, FociSpec):
        assert isinstance(dataset, FociDataset)  # whoever asks for the one has the other
        return FociLoss(spec=spec, dataset=dataset, scale=scale, config=config, runtime=runtime)
    assert isinstance(dataset, SliceDataset)
    if isinstance(spec, RestorationSpec):
        return RestorationLoss(
            spec=spec, dataset=dataset, scale=scale, config=config, runtime=runtime
        )
    schedule = Schedule.from_config(recipe.diffusion)
    return TranslationLoss(
        spec=spec, dataset=dataset, schedule=schedule, config=config, runtime=runtime
    )


class Example(NamedTuple):
    """One sample as a network meets it, or a batch of them.

    Attributes:
        inputs: (N, C, H, W) float32: the source, and for diffusion x_t before it.
        target: (N, 1, H, W) float32.
        region: (N, 1, H, W) float32, 1 where the error counts.
        timesteps: (N,) int64.
    """

    inputs: Tensor
    target: Tensor
    region: Tensor
    timesteps: Tensor


@dataclass(frozen=True, kw_only=True)
class TranslationLoss:
    """The error of a translator's output, wherever it may learn.

    Attributes:
        spec: The network.
        dataset: Slices with healthy tissue.
        schedule: The noise schedule.
        config: The recipe: what is hidden, and where the error counts.
        runtime: Device and precision.
    """

    spec: NetworkSpec
    dataset: SliceDataset
    schedule: Schedule
    config: TrainingConfig
    runtime: Runtime

    def __call__(
        self, network: nn.Module, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Summed error over a batch, and the pixels it is summed over."""
        batch, device = Example(*draw_batch(self.draw, generators)), self.runtime.device
        inputs = batch.inputs.to(device, memory_format=torch.channels_last)
        with self.runtime.autocast():
            times = batch.timesteps.to(device) if self.spec.kind == "diffusion" else None
            prediction = network(inputs, times)
        return squared_error(prediction, batch.target.to(device), batch.region.to(device))

    def draw(self, generator: torch.Generator) -> Example:
        """One sample, all of batch size one."""
        spec, augment = self.spec, self.config.augment
        sample = draw_sample(
            self.dataset, spec.source, spec.target, generator=generator, augment=augment
        )
        noise = torch.randn(2, 1, *sample.source.shape[1:], generator=generator)
        seen, times = ~sample.hidden, torch.zeros(1, dtype=torch.long)
        region = (sample.healthy if self.config.loss_region == "brain" else seen).float()
        if spec.kind == "unet":
            inputs = hide(sample.source, seen, noise[0])
        else:
            # The lesion's own contrast must not reach the network through x_t either.
            clean = hide(sample.target, seen, noise[1])
            condition = hide(sample.source, seen & self._random_mask(seen, generator), noise[0])
            times = self._random_timestep(generator)
            noisy = self.schedule.add_noise(clean, noise[1], times)
            inputs = torch.cat([noisy, condition], dim=1)
        return Example(inputs=inputs, target=sample.target, region=region, timesteps=times)

    def _random_mask(self, seen: Tensor, generator: torch.Generator) -> Tensor:
        height, width = seen.shape[-2:]
        config = self.config
        if config.blob_radius_px and torch.rand((), generator=generator) < 0.5:
            radius = config.blob_radius_px
            return random_blob_masks(1, height, width, radius_px=radius, generator=generator)
        band = config.band_width
        if config.widest_band > band:
            band += int(torch.randint(config.widest_band - band + 1, (), generator=generator))
        return random_band_masks(1, height, width, band_width=band, generator=generator)

    def _random_timestep(self, generator: torch.Generator) -> Tensor:
        total = self.schedule.num_train_timesteps
        timestep = torch.randint(total, (1,), generator=generator)
        if torch.rand((), generator=generator) < self.config.last_timestep_fraction:
            timestep.fill_(total - 1)
        return timestep
