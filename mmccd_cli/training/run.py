"""A whole training: the networks, those of the folds, the bundle, and its calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mmccd_cli.training.calibration import Fold, calibrate
from mmccd_cli.training.networks import (
    BundleText,
    split_folds,
    train_networks,
    training_subjects,
    write_bundle,
)
from mmccd_cli.training.recipes import Recipe
from mmccd_cli.training.slices import read_index
from mmccd_cli.training.trainer import Progress, Runtime
from mmccd_cli.weights.bundle import Bundle, load_bundle, rewrite_bundle
from mmccd_cli.weights.card import model_card

FOLD_BUNDLE = "bundle"
"""Folder of a fold's bundle in its work folder."""


@dataclass(frozen=True)
class Training:
    """What is trained, where, and how.

    Attributes:
        shards: What `prepare` wrote.
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
    report: Callable[[Progress], None] = lambda progress: None

    def train(self) -> dict[str, dict[str, Tensor]]:
        """Train everything, continuing where checkpoints lie.

        Returns:
            Network name -> averaged weights, of the networks that saw all training subjects.
        """
        for number in range(self.folds):
            self._train_fold(number)
        return train_networks(
            self.shards, self.work, self.recipe, self.runtime, only=self.only, report=self.report
        )

    def write(self, out: Path, networks: dict[str, dict[str, Tensor]]) -> Bundle:
        """Write the bundle, not calibrated yet."""
        write_bundle(self.shards, out, self.recipe, networks, self.text)
        return load_bundle(out)

    def calibrate(
        self, bundle: Bundle, *, split: str = "train", report: Callable[[str], None]
    ) -> None:
        """Calibrate a bundle, and its folds' bundles without their own subjects; rewrite them."""
        folds = [
            Fold(load_bundle(self._fold_folder(number) / FOLD_BUNDLE), subjects)
            for number, subjects in enumerate(self._left_out())
        ]
        found = calibrate(
            bundle,
            self.shards,
            split=split,
            folds=folds,
            device=self.runtime.device,
            report=report,
        )
        rewrite_bundle(bundle, found.config, model_card(found.config))
        for fold, config in zip(folds, found.folds, strict=True):
            rewrite_bundle(fold.bundle, config, model_card(config))

    def _train_fold(self, number: int) -> None:
        left_out = self._left_out()[number]
        subjects = [s for s in self._subjects() if s not in left_out]
        folder = self._fold_folder(number)
        networks = train_networks(
            self.shards,
            folder,
            self.recipe,
            self.runtime,
            only=self.only,
            subjects=subjects,
            report=self.report,
        )
        if self.only is None and self.runtime.rank == 0:
            out = folder / FOLD_BUNDLE
            write_bundle(self.shards, out, self.recipe, networks, self.text, subjects=subjects)

    def _subjects(self) -> list[str]:
        return training_subjects(read_index(self.shards))

    def _left_out(self) -> list[list[str]]:
        return split_folds(self._subjects(), self.folds) if self.folds else []

    def _fold_folder(self, number: int) -> Path:
        return self.work / f"fold-{number}"
