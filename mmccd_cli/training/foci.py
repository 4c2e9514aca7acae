"""What the network of small foci learns, and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mmccd_cli.anomaly.components import BoolArray
from mmccd_cli.anomaly.symmetry import other_side
from mmccd_cli.config import MODALITIES, FociConfig, TrainingConfig
from mmccd_cli.training import foci_painting, foci_subjects, painting, scanners
from mmccd_cli.training.foci_painting import PaintedSlab
from mmccd_cli.training.foci_subjects import FLUID_ABOVE, REACH, FociDataset
from mmccd_cli.training.restoration import draw_shown
from mmccd_cli.training.runtime import Runtime
from mmccd_cli.training.scanners import acquire, stretch_contrast
from mmccd_cli.training.trainer import draw_batch
from mmccd_cli.translation.foci import foci_input
from mmccd_cli.weights.bundle import FOCI

LESION_WEIGHT = 2.0
"""How much a painted voxel counts against a healthy one."""
CONTRAST_STRENGTH, STRETCHED_FRACTION = 0.45, 0.8
"""How much, and how often, the contrast of tissues is stretched."""


@dataclass(frozen=True)
class FociSpec:
    """What the network of small foci learns.

    Attributes:
        config: Its architecture.
    """

    config: FociConfig

    @property
    def name(self) -> str:
        """Name in checkpoints and bundles."""
        return FOCI


def painting_settings() -> dict[str, str]:
    """Name -> value of every constant that decides what is painted and where, as text.

    They are taken from their modules as they stand there, so that none is forgotten.
    """
    constants = {"CONTRAST": (CONTRAST_STRENGTH, STRETCHED_FRACTION), "WEIGHT": LESION_WEIGHT}
    for module in (foci_subjects, foci_painting, painting, scanners):
        place = module.__name__.rpartition(".")[2]
        constants |= {f"{place}.{n}": value for n, value in vars(module).items() if n.isupper()}
    return {name: repr(value) for name, value in sorted(constants.items())}


class PaintedSlice(NamedTuple):
    """One sample, or a batch of them.

    Attributes:
        inputs: (N, C, H, W) float32, see `foci_input`.
        target: (N, 1, H, W) float32, 1 where a lesion was painted.
        weight: (N, 1, H, W) float32, how much a pixel counts.
    """

    inputs: Tensor
    target: Tensor
    weight: Tensor


@dataclass(frozen=True, kw_only=True)
class FociLoss:
    """The log loss of painted lesions against healthy tissue.

    Attributes:
        spec: The network.
        dataset: Subjects with healthy tissue.
        scale: Factor of the normalisation, which turns values into robust standard deviations.
        config: Whether to augment.
        runtime: Device and precision.
    """

    spec: FociSpec
    dataset: FociDataset
    scale: float
    config: TrainingConfig
    runtime: Runtime

    def __call__(
        self, network: nn.Module, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Summed loss over a batch, and the weight of its pixels."""
        batch, device = PaintedSlice(*draw_batch(self.draw, generators)), self.runtime.device
        inputs = batch.inputs.to(device, memory_format=torch.channels_last)
        with self.runtime.autocast():
            logits = network(inputs)
        weight = batch.weight.to(device)
        losses = F.binary_cross_entropy_with_logits(
            logits.float(),
            batch.target.to(device),
            weight=weight,
            pos_weight=torch.tensor(LESION_WEIGHT, device=device),
            reduction="sum",
        )
        return losses, weight.sum()

    def draw(self, generator: torch.Generator) -> PaintedSlice:
        """One sample, all of batch size one."""
        seed = int(torch.randint(2**62, (), generator=generator))
        rng = np.random.default_rng(seed)
        head = self.dataset.heads[rng.integers(len(self.dataset.heads))]
        middle = int(rng.choice(head.slices))
        part = (..., slice(middle - REACH, middle + REACH + 1))
        brain, healthy = head.brain[part], head.healthy[part]
        images = self._contrasted(head.levels[part], brain, rng)
        fluid = self._values(head.levels[MODALITIES.index("T2w")][part]) > FLUID_ABOVE
        sample = PaintedSlab(
            images,
            free=healthy & ~fluid,
            white=head.white[part],
            beside=head.beside[part],
            doubtful=head.doubtful[part],
            spacing_mm=self.dataset.spacing_mm,
            middle=self.dataset.middle,
        )
        sample.paint(rng)
        if self.config.augment:
            images = np.stack([acquire(image, self.dataset.spacing_mm, rng) for image in images])
        images = np.where(brain, images, np.float32(0))
        shift = rng.integers(-2, 3) / 2 if self.config.augment else 0.0
        opposite = partial(
            other_side, centre=self.dataset.middle + shift, spacing_mm=self.dataset.spacing_mm
        )
        mirrored = np.stack([opposite(image, brain)[..., REACH] for image in images])
        # From (M, I, J, 3) to the neighbours' (3 M, I, J), slice by slice.
        slab = np.moveaxis(images[..., REACH - 1 : REACH + 2], -1, 0).reshape(-1, *brain.shape[:2])
        target = (sample.target[..., REACH] >= 0.5).astype(np.float32)
        weight = np.where(healthy[..., REACH], sample.weight[..., REACH], np.float32(0))
        parts = [torch.from_numpy(a)[None] for a in (slab, mirrored, target[None], weight[None])]
        if self.config.augment and rng.random() < 0.5:
            parts = [part.flip(2) for part in parts]
        slab_t, mirrored_t, target_t, weight_t = parts
        shown = draw_shown(self.spec.config.shown_fraction, generator)
        return PaintedSlice(foci_input(slab_t, mirrored_t, shown), target_t, weight_t)

    def _values(self, levels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.dataset.quantisation.decode(levels) / np.float32(self.scale)

    def _contrasted(
        self, levels: NDArray[np.uint8], brain: BoolArray, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """(M, I, J, L) values, the contrast of their tissues stretched for each scan on its own."""
        table = self._values(np.arange(256, dtype=np.uint8))
        images = []
        for scan in levels:
            of_scan = table
            if self.config.augment and rng.random() < STRETCHED_FRACTION:
                of_scan = stretch_contrast(table, CONTRAST_STRENGTH, rng)
            images.append(np.where(brain, of_scan[scan], np.float32(0)))
        return np.stack(images)
