"""A tiny bundle with untrained networks, for tests of everything around the networks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmccd_cli.config import (
    CycleConfig,
    DiffusionConfig,
    PreprocessingConfig,
    SamplingConfig,
    ScoreConfig,
    UNetConfig,
    choose_sampling,
)
from mmccd_cli.inputs.phantom import make_phantom
from mmccd_cli.template import Template
from mmccd_cli.translation.translators import network_name
from mmccd_cli.translation.unet import UNet
from mmccd_cli.weights.bundle import BundleConfig, TemplateConfig, save_bundle
from mmccd_cli.weights.index import INDEX

CYCLES = (CycleConfig("FLAIR", "T2w"), CycleConfig("T2w", "FLAIR"))
SPACING_MM = 4.0


def write_tiny_bundle(folder: Path, *, name: str = "tiny", seed: int = 0) -> Path:
    """Write a bundle for FLAIR and T2w (not T1w) on a 4 mm template, and return its folder.

    The score is the intensity plus a tenth of the residual, so that untrained networks do change
    the map and yet the lesion is found.
    """
    torch.manual_seed(seed)
    shape = (48, 56, 44)
    phantom = make_phantom(
        1, shape=shape, spacing_mm=(SPACING_MM,) * 3, orientation="RAS", lesion=False, noise=0.0
    )
    small = {"base_channels": 8, "channel_multipliers": (1, 2), "norm_groups": 4}
    unet, denoiser = UNetConfig(**small), UNetConfig(in_channels=2, time_conditioned=True, **small)
    networks = {}
    for source, target in permutations(("FLAIR", "T2w")):
        networks[network_name("unet", source, target)] = UNet(unet).state_dict()
        networks[network_name("diffusion", source, target)] = UNet(denoiser).state_dict()
    scores = tuple(
        ScoreConfig(
            modalities=modalities,
            weights={f"intensity:{modalities[0]}": 1.0, f"cycle:{modalities[0]}": 0.1},
        )
        for modalities in (("FLAIR", "T2w"), ("FLAIR",), ("T2w",))
    )
    config = BundleConfig(
        name=name,
        version="0.0.1",
        cycles=CYCLES,
        unet=unet,
        denoiser=denoiser,
        diffusion=DiffusionConfig(),
        preprocessing=PreprocessingConfig(template_registration="none"),
        sampling=SamplingConfig(num_inference_steps=1, band_width=16, band_stride=16),
        scores={"mmccd": scores, "cyclic-unet": scores},
        template=TemplateConfig(tuple(phantom.affine.ravel().tolist()), shape),
        calibration={"criterion": "chosen by hand, for tests"},
        licence="CC0-1.0",
        intended_use="Tests only: the networks are not trained.",
    )
    images = {
        name: _normalised(volume.data, phantom.brain) for name, volume in phantom.volumes.items()
    }
    template = Template(images, phantom.brain, phantom.affine)
    card = "# Tiny\n\nUntrained, for tests.\n"
    save_bundle(folder, config, template=template, networks=networks, card=card)
    return folder


def edit_index(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a bundle's index."""
    document = json.loads((folder / INDEX).read_text())
    edit(document)
    (folder / INDEX).write_text(json.dumps(document))


def replace_file(folder: Path, name: str, raw: bytes) -> None:
    """Replace a file of a bundle and its hash, as somebody would who means harm."""
    (folder / name).write_bytes(raw)
    entry = {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
    edit_index(folder, lambda d: d["files"].__setitem__(name, entry))


def choose_few_bands(default: SamplingConfig, preset: str) -> SamplingConfig:
    """Stands in for `choose_sampling`: `paper` has two steps and few bands."""
    chosen = choose_sampling(default, preset)
    few = {"num_inference_steps": 2, "band_width": 32, "band_stride": 16}
    return replace(chosen, **few) if preset == "paper" else chosen


def _normalised(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    inside = image[brain]
    center = np.median(inside)
    spread = np.quantile(np.abs(inside - center), 0.68)
    return np.where(brain, np.clip(0.5 * (image - center) / spread, -4, 4), -3).astype(np.float32)
