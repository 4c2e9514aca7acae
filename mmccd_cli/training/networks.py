"""From slice shards to a bundle: all networks of a recipe, then template and card."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from mmccd_cli import __version__
from mmccd_cli.anomaly.atlas import NormalRangeFit
from mmccd_cli.anomaly.components import erode
from mmccd_cli.config import PreprocessingConfig, ScoreConfig, from_dict, to_dict
from mmccd_cli.errors import DataError
from mmccd_cli.template import NormalRange, Quantisation, Template
from mmccd_cli.training.recipes import Recipe
from mmccd_cli.training.samples import load_dataset
from mmccd_cli.training.slices import read_index, read_shard, read_template
from mmccd_cli.training.trainer import NetworkSpec, Progress, Runtime, train_network
from mmccd_cli.translation.devices import choose_device
from mmccd_cli.weights.bundle import BundleConfig, TemplateConfig, save_bundle


@dataclass(frozen=True)
class BundleText:
    """What a bundle says about itself.

    Attributes:
        name: Name of the bundle.
        version: Version of these weights.
        licence: Licence of the weights.
        space: Name of the training space.
        data: Sentence on the training data.
    """

    name: str
    version: str = "1"
    licence: str = "research use only"
    space: str = "space of the training data"
    data: str = ""


def network_specs(recipe: Recipe) -> list[NetworkSpec]:
    """Networks of a recipe in the order of training; what two cycles share is trained once."""
    specs: dict[str, NetworkSpec] = {}
    for cycle in recipe.cycles:
        for spec in (
            NetworkSpec("diffusion", cycle.source, cycle.target, recipe.denoiser),
            NetworkSpec("unet", cycle.target, cycle.source, recipe.unet),
            NetworkSpec("unet", cycle.source, cycle.target, recipe.unet),
        ):
            specs.setdefault(spec.name, spec)
    return list(specs.values())


def make_runtime(device: str, precision: str = "auto") -> Runtime:
    """Choose device and precision; join the process group that `torchrun` announces.

    Args:
        device: "auto", "cpu", "cuda[:N]" or "mps".
        precision: "fp32", "bf16", or "auto": bf16 on CUDA and on CPUs that compute with it.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), os.environ.get("LOCAL_RANK", "0")
    if world_size > 1 and device == "auto" and torch.cuda.is_available():
        device = f"cuda:{local}"
    chosen = choose_device(device)
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    if precision == "auto":
        precision = "bf16" if chosen.type == "cuda" or _cpu_computes_bf16(chosen) else "fp32"
    return Runtime(chosen, precision, rank, world_size)


def _cpu_computes_bf16(device: torch.device) -> bool:
    query = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return device.type == "cpu" and bool(query())


def train_networks(
    shards: Path,
    work: Path,
    recipe: Recipe,
    runtime: Runtime,
    *,
    only: Sequence[str] | None = None,
    subjects: list[str] | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, dict[str, Tensor]]:
    """Train all networks of a recipe, continuing where checkpoints lie.

    Args:
        shards: What `prepare` wrote.
        work: Folder of checkpoints and logs.
        recipe: What to train and how.
        runtime: Device, precision and processes.
        only: Names of networks, to spread them over machines; None for all.
        subjects: Train on these subjects instead of the split `train`.
        report: Called on progress.

    Returns:
        Network name -> averaged weights.
    """
    work.mkdir(parents=True, exist_ok=True)
    _check_shards(shards, recipe)
    dataset = load_dataset(shards, recipe.training, subjects=subjects)
    try:
        validation = load_dataset(shards, recipe.training, split="val")
    except DataError:
        validation = None
    return {
        spec.name: train_network(
            spec,
            dataset,
            recipe.training,
            recipe.diffusion,
            runtime,
            work,
            validation=validation,
            report=report,
        )
        for spec in network_specs(recipe)
        if only is None or spec.name in only
    }


def write_bundle(
    shards: Path,
    out: Path,
    recipe: Recipe,
    networks: dict[str, dict[str, Tensor]],
    text: BundleText,
    *,
    subjects: Sequence[str] | None = None,
) -> None:
    """Write a bundle with uncalibrated scores.

    Args:
        shards: What `prepare` wrote; its template travels with the bundle.
        out: Folder of the bundle.
        recipe: What was trained and how.
        networks: Network name -> weights.
        text: Name, version, licence.
        subjects: Whom the networks were trained on, where not on the whole split `train`.
    """
    index = read_index(shards)
    images, mask = read_template(shards)
    trained_on = training_subjects(index) if subjects is None else list(subjects)
    normal = fit_normal_ranges(shards, trained_on, recipe.training.lesion_dilation_mm)
    template = Template(images, mask, np.array(index["affine"]).reshape(4, 4), normal)
    config = BundleConfig(
        name=text.name,
        version=text.version,
        cycles=recipe.cycles,
        unet=recipe.unet,
        denoiser=recipe.denoiser,
        diffusion=recipe.diffusion,
        preprocessing=from_dict(PreprocessingConfig, index["preprocessing"]),
        sampling=recipe.sampling,
        scores={method: initial_scores(recipe) for method in ("mmccd", "cyclic-unet")},
        template=TemplateConfig(
            tuple(float(v) for v in template.affine.ravel()), _shape(mask), text.space
        ),
        training=_provenance(index, recipe, text, trained_on),
        licence=text.licence,
        intended_use="Research on unsupervised anomaly segmentation; not a medical device.",
    )
    save_bundle(out, config, template, networks, f"# {text.name}\n\nNot calibrated yet.\n")


def training_subjects(index: dict[str, Any]) -> list[str]:
    """Ids of the split `train` of a prepared data set's index."""
    return [e["id"] for e in index["subjects"] if e.get("split") == "train"]


def split_folds(subjects: Sequence[str], count: int) -> list[list[str]]:
    """Deal subjects into folds, one after the other.

    Raises:
        DataError: Fewer than two folds, or a fold would be empty.
    """
    if not 2 <= count <= len(subjects):
        raise DataError(
            f"{len(subjects)} training subjects cannot be dealt into {count} folds",
            next_step="use 2 folds or more, and no more than there are subjects",
        )
    return [list(subjects[start::count]) for start in range(count)]


def fit_normal_ranges(
    shards: Path, subjects: Sequence[str], lesion_dilation_mm: float
) -> dict[str, NormalRange]:
    """Learn from subjects' healthy tissue what each modality looks like at each place.

    Args:
        shards: What `prepare` wrote.
        subjects: Whom to learn from.
        lesion_dilation_mm: How far lesions are grown before they are left out.
    """
    index = read_index(shards)
    quantisation, spacing = Quantisation(**index["quantisation"]), index["spacing_mm"]
    fits = {m: NormalRangeFit(tuple(index["shape"]), spacing) for m in index["modalities"]}
    for subject in subjects:
        shard = read_shard(shards, subject)
        lesion, brain = np.moveaxis(shard.lesion, 0, 2), np.moveaxis(shard.brain, 0, 2)
        healthy = brain & erode(~lesion, lesion_dilation_mm, spacing)
        for modality, fit in fits.items():
            fit.add(quantisation.decode(np.moveaxis(shard.images[modality], 0, 2)), healthy)
    return {modality: fit.result() for modality, fit in fits.items()}


def initial_scores(recipe: Recipe) -> tuple[ScoreConfig, ...]:
    """Scores before calibration: each cycle on its own."""
    return tuple(
        ScoreConfig(modalities=(cycle.source,), weights={f"cycle:{cycle.source}": 1.0})
        for cycle in recipe.cycles
    )


def _check_shards(shards: Path, recipe: Recipe) -> None:
    index = read_index(shards)
    needed = {m for cycle in recipe.cycles for m in (cycle.source, cycle.target)}
    missing = sorted(needed - set(index["modalities"]))
    if missing:
        raise DataError(f"the prepared data in {shards} lack {', '.join(missing)}")
    if json.dumps(index["preprocessing"]) != json.dumps(to_dict(recipe.preprocessing)):
        raise DataError(
            f"the data in {shards} were prepared for another recipe than {recipe.name}",
            next_step=f"run `mmccd prepare --preset {recipe.name}` into an empty folder",
        )


def _provenance(
    index: dict[str, Any], recipe: Recipe, text: BundleText, subjects: Sequence[str]
) -> dict[str, Any]:
    train = [e for e in index["subjects"] if e["id"] in subjects]
    return {
        "recipe": recipe.name,
        "settings": to_dict(replace(recipe.training)),
        "data": text.data,
        "subjects": [{"id": e["id"], "files": e["files"]} for e in train],
        "slices": sum(e["slices"] for e in train),
        "healthy_slices": sum(e["healthy_slices"] for e in train),
        "mmccd": __version__,
        "torch": torch.__version__,
    }


def _shape(mask: np.ndarray) -> tuple[int, int, int]:
    i, j, k = mask.shape
    return (i, j, k)
