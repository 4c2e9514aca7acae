"""A whole training: the networks, those of the folds, the bundle, and its calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmccd_cli import __version__
from mmccd_cli.config import (
    METHODS,
    MODALITIES,
    PreprocessingConfig,
    ScoreConfig,
    from_dict,
    to_dict,
)
from mmccd_cli.errors import DataError
from mmccd_cli.progress import silent
from mmccd_cli.template import NormalRange
from mmccd_cli.training.calibration import Calibration, Fold, calibrate
from mmccd_cli.training.foci import FociSpec
from mmccd_cli.training.foci_subjects import FociDataset, load_foci_dataset
from mmccd_cli.training.networks import Spec, network_specs, train_network
from mmccd_cli.training.normal_ranges import fit_normal_ranges, without_bias_fields
from mmccd_cli.training.recipes import Recipe
from mmccd_cli.training.runtime import Runtime
from mmccd_cli.training.samples import SliceDataset, load_dataset
from mmccd_cli.training.slices import read_index, read_template, subjects_of
from mmccd_cli.training.trainer import TrainingListener
from mmccd_cli.weights.bundle import (
    Bundle,
    BundleConfig,
    TemplateConfig,
    load_bundle,
    rewrite_bundle,
    save_bundle,
)
from mmccd_cli.weights.card import model_card

FOLD_BUNDLE = "bundle"
"""Folder of a bundle in a work folder: of a fold, or not calibrated yet."""


@dataclass(frozen=True, kw_only=True)
class BundleText:
    """What a bundle says about itself.

    Attributes:
        name: Name of the bundle.
        version: Version of these weights.
        licence: Licence of the weights.
        data: Sentence on the training data.
    """

    name: str
    version: str = "1"
    licence: str = "research use only"
    data: str = ""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, where, and how.

    Attributes:
        shards: What `prepare` wrote; its template travels with the bundle.
        work: Folder of checkpoints and logs; fold k keeps its own in `fold-k`.
        recipe: The recipe.
        runtime: Device, precision and processes.
        text: What the bundle says about itself.
        folds: Number of folds that are trained besides, for an honest calibration; 0 for none.
        only: Names of networks, to spread them over machines; None for all.
        report: Called on progress.
    """

    shards: Path
    work: Path
    recipe: Recipe
    runtime: Runtime
    text: BundleText
    folds: int = 0
    only: Sequence[str] | None = None
    report: TrainingListener = silent

    def train(self) -> dict[str, dict[str, Tensor]]:
        """Train everything, continuing where checkpoints lie.

        Returns:
            Network name -> averaged weights, of the networks that saw all training subjects.

        Raises:
            DataError: The slices do not fit the recipe or the folds, or are damaged.
            UsageError, ComputeError, WeightsError: As `fit` does.
        """
        self._check_shards()
        for folder, left_out in self._folds.items():
            others = [s for s in self._subjects if s not in left_out]
            networks = self._train_networks(folder, others)
            if self.only is None and self.runtime.rank == 0:
                self._write_bundle(folder / FOLD_BUNDLE, networks, others)
        return self._train_networks(self.work, self._subjects)

    def write(self, out: Path, networks: dict[str, dict[str, Tensor]]) -> Bundle:
        """Write the bundle, not calibrated yet.

        Args:
            out: Folder of the bundle.
            networks: Network name -> weights.
        """
        self._write_bundle(out, networks, self._subjects)
        return load_bundle(out, uncalibrated=True)

    def calibrate(
        self,
        bundle: Bundle,
        out: Path,
        *,
        split: str = "train",
        report: Callable[[str], None] = silent,
    ) -> Calibration:
        """Calibrate a bundle, and its folds' bundles without their own subjects; write them.

        Args:
            bundle: What `write` returned.
            out: Folder of the calibrated bundle, which appears last and whole.
            split: Split of the subjects to calibrate on, where there are no folds.
            report: Called with a line for every method and set of modalities.
        """
        folds = [
            Fold(load_bundle(path / FOLD_BUNDLE, uncalibrated=True), ids)
            for path, ids in self._folds.items()
        ]
        device = self.runtime.device
        found = calibrate(
            bundle, self.shards, split=split, folds=folds, device=device, report=report
        )
        for fold, config in zip(folds, found.folds, strict=True):
            rewrite_bundle(fold.bundle, config, model_card(config))
        rewrite_bundle(bundle, found.config, model_card(found.config), out=out)
        return found

    def _train_networks(self, folder: Path, subjects: list[str]) -> dict[str, dict[str, Tensor]]:
        folder.mkdir(parents=True, exist_ok=True)
        specs = [s for s in network_specs(self.recipe) if self.only is None or s.name in self.only]
        find_normal = partial(self._normal_ranges, subjects)
        change = without_bias_fields(self.shards, self.recipe, find_normal)
        networks: dict[str, dict[str, Tensor]] = {}
        for whole, read in ((False, self._slices), (True, self._heads)):
            wanted = [spec for spec in specs if isinstance(spec, FociSpec) is whole]
            networks |= self._train_on(
                partial(read, change=change), subjects, specs=wanted, folder=folder
            )
        return networks

    def _train_on(
        self,
        read: Callable[..., SliceDataset | FociDataset],
        subjects: list[str],
        *,
        specs: Sequence[Spec],
        folder: Path,
    ) -> dict[str, dict[str, Tensor]]:
        """Train networks that learn from data of one kind, which leave the memory afterwards."""
        if not specs:
            return {}
        dataset = read(subjects=subjects)
        validation = read(split="val") if subjects_of(self._index, "val") else None
        return {
            spec.name: train_network(
                spec,
                dataset,
                self.recipe,
                runtime=self.runtime,
                folder=folder,
                validation=validation,
                report=self.report,
            )
            for spec in specs
        }

    def _slices(self, **whom: Any) -> SliceDataset:
        return load_dataset(self.shards, self.recipe.training, **whom)

    def _heads(self, **whom: Any) -> FociDataset:
        scale = self.recipe.preprocessing.intensity.scale
        return load_foci_dataset(self.shards, self.recipe.foci_training, scale=scale, **whom)

    def _write_bundle(
        self, out: Path, networks: dict[str, dict[str, Tensor]], subjects: list[str]
    ) -> None:
        index, recipe = self._index, self.recipe
        normal = self._normal_ranges(subjects)
        template = replace(read_template(self.shards, index["affine"]), normal=normal)
        i, j, k = template.shape
        config = BundleConfig(
            name=self.text.name,
            version=self.text.version,
            cycles=recipe.cycles,
            unet=recipe.unet,
            denoiser=recipe.denoiser,
            restoration=recipe.restoration,
            foci=recipe.foci,
            bias_field_degree=recipe.bias_field_degree,
            diffusion=recipe.diffusion,
            preprocessing=from_dict(PreprocessingConfig, index["preprocessing"]),
            sampling=recipe.sampling,
            scores={method: initial_scores(recipe) for method in METHODS},
            template=TemplateConfig(
                tuple(float(v) for v in template.affine.ravel()),
                (i, j, k),
                "space of the training data",
            ),
            training=self._provenance(subjects),
            licence=self.text.licence,
            intended_use="Research on unsupervised anomaly segmentation; not a medical device.",
        )
        card = f"# {self.text.name}\n\nNot calibrated yet.\n"
        save_bundle(out, config, template=template, networks=networks, card=card)

    def _provenance(self, subjects: Sequence[str]) -> dict[str, Any]:
        train = [e for e in self._index["subjects"] if e["id"] in subjects]
        return {
            "recipe": self.recipe.name,
            "settings": to_dict(self.recipe.training),
            "restoration_settings": to_dict(self.recipe.restoration_training)
            if self.recipe.restoration is not None
            else {},
            "foci_settings": to_dict(self.recipe.foci_training)
            if self.recipe.foci is not None
            else {},
            "data": self.text.data,
            "subjects": [{"id": e["id"], "files": e["files"]} for e in train],
            "slices": sum(e["slices"] for e in train),
            "healthy_slices": sum(e["healthy_slices"] for e in train),
            "mmccd": __version__,
            "torch": torch.__version__,
        }

    def _normal_ranges(self, subjects: Sequence[str]) -> dict[str, NormalRange]:
        """What these subjects' healthy tissue looks like, found once."""
        whom = tuple(subjects)
        if whom not in self._normal:
            self._normal[whom] = fit_normal_ranges(self.shards, whom, self.recipe)
        return self._normal[whom]

    @cached_property
    def _normal(self) -> dict[tuple[str, ...], dict[str, NormalRange]]:
        return {}

    @cached_property
    def _index(self) -> dict[str, Any]:
        return read_index(self.shards)

    @cached_property
    def _subjects(self) -> list[str]:
        return subjects_of(self._index, "train")

    @cached_property
    def _folds(self) -> dict[Path, list[str]]:
        """Folder of each fold -> whom its networks do not see."""
        dealt = split_folds(self._subjects, self.folds) if self.folds else []
        return {self.work / f"fold-{number}": ids for number, ids in enumerate(dealt)}

    def _check_shards(self) -> None:
        index, recipe = self._index, self.recipe
        needed = {m for cycle in recipe.cycles for m in (cycle.source, cycle.target)}
        if recipe.restoration is not None or recipe.foci is not None:
            needed |= set(MODALITIES)
        missing = sorted(needed - set(index["modalities"]))
        if missing:
            raise DataError(
                f"The prepared data in {self.shards} lack {', '.join(missing)}.",
                next_step="Prepare a data set with these modalities: mmccd prepare --data-dir DIR",
            )
        if index["preprocessing"] != to_dict(recipe.preprocessing):
            raise DataError(
                f"The data in {self.shards} were prepared for another recipe than {recipe.name}.",
                next_step=f"Run `mmccd prepare --preset {recipe.name}` into an empty folder.",
            )


def split_folds(subjects: Sequence[str], count: int) -> list[list[str]]:
    """Deal subjects into folds, one after the other.

    Raises:
        DataError: Fewer than two folds, or a fold would be empty.
    """
    if not 2 <= count <= len(subjects):
        raise DataError(
            f"{len(subjects)} training subjects cannot be dealt into {count} folds.",
            next_step="Use 2 folds or more, and no more than there are subjects.",
        )
    return [list(subjects[start::count]) for start in range(count)]


def initial_scores(recipe: Recipe) -> tuple[ScoreConfig, ...]:
    """Scores before calibration: each cycle on its own."""
    return tuple(
        ScoreConfig(modalities=(cycle.source,), weights={f"cycle:{cycle.source}": 1.0})
        for cycle in recipe.cycles
    )
