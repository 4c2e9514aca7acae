"""What the network of small foci learns: lesions painted into healthy tissue, and what is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from mmccd_cli.anomaly.components import BoolArray, erode, label_components
from mmccd_cli.anomaly.symmetry import middle_of_template, other_side
from mmccd_cli.config import MODALITIES, FociConfig, TrainingConfig
from mmccd_cli.errors import DataError
from mmccd_cli.template import Quantisation
from mmccd_cli.training.normal_ranges import Change, healthy_tissue
from mmccd_cli.training.painting import Blob, draw_blob
from mmccd_cli.training.restoration import draw_shown
from mmccd_cli.training.runtime import Runtime
from mmccd_cli.training.samples import MINIMAL_HEALTHY_PIXELS
from mmccd_cli.training.scanners import acquire, stretch_contrast
from mmccd_cli.training.slices import (
    SubjectVolumes,
    read_index,
    read_template,
    read_volumes,
    subjects_of,
)
from mmccd_cli.training.trainer import draw_batch
from mmccd_cli.translation.foci import foci_input

Spacing = tuple[float, float, float]

NAME = "foci"
"""Name of the network in checkpoints and bundles."""
REACH = 4
"""Slices on each side of the one that is learnt, so that lesions and blurs may reach over it."""
LESIONS, FAINT_PATCHES = (0, 8), (0, 4)
"""Least number of what is painted into a sample, and one more than the most."""
CONTRASTS = {"FLAIR": (2.0, 7.0), "T2w": (0.7, 6.0), "T1w": (-2.5, 0.0)}
"""Change in the middle of a lesion, in robust standard deviations; bright ones by the logarithm."""
CONTRASTS_IN_WHITE = {**CONTRASTS, "FLAIR": (1.4, 7.0)}
"""White matter is so even that fainter ones stand out in it."""
FAINT = {"FLAIR": (0.3, 1.4), "T2w": (0.0, 1.4), "T1w": (-1.2, 0.0)}
"""That of faint patches, which are no lesions: what bright grey matter looks like."""
FAINT_SHARE_IN_WHITE = 0.65
"""Of that, where most of a patch lies in white matter."""
VOLUMES_MM3, LARGE_VOLUMES_MM3, FAINT_VOLUMES_MM3 = (15.0, 2000.0), (15.0, 10000.0), (60.0, 6000.0)
LARGE_FRACTION, FLUID_FRACTION, WHITE_FRACTION = 0.15, 0.13, 0.85
"""Shares of lesions that may be large, that are dark on FLAIR and no lesions, and that lie in white
matter, as most do; bright spots of grey matter are mostly healthy."""
PAIRED_FRACTION, PAIR_SHIFT_MM = 0.3, 6.0
"""Share of lesions that have another on the other side of the brain, and how far from its mirror
image that may lie: plaques beside the ventricles come in pairs, and are lesions all the same."""
FLUID_ABOVE, WHITE_ABOVE = 3.0, 0.25
"""T2w above the former is fluid, T1w above the latter white matter; robust standard deviations."""
VENTRICLES_FROM_RIM_MM, VENTRICLES_MM3 = 16.0, 1000.0
"""Pieces of fluid that lie so deep and are so large are ventricles."""
BESIDE_MM, BESIDE_FRACTION = 8.0, 0.4
"""How near to them white matter lies beside them, and the share of white matter's lesions there:
most plaques of multiple sclerosis are."""
DOUBTFUL_MM, DOUBTFUL_ABOVE, DOUBTFUL_WEIGHT = 10.0, 1.5, 0.1
"""So near to ventricles, white matter that is as bright as this on FLAIR may be ill in subjects
with another disease, too: it hardly counts as healthy."""
FROM_RIM_MM = 5.0
SMALL_MM3, MOST_WEIGHT = 400.0, 6.0
"""Smaller lesions weigh more, by their surface, up to this much."""
LESION_WEIGHT = 2.0
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
        return NAME


@dataclass(frozen=True, eq=False, kw_only=True)
class _Head:
    """One subject in eight bits, `REACH` empty slices added below and above.

    Attributes:
        levels: (M, I, J, K) uint8.
        brain: (I, J, K) bool.
        healthy: (I, J, K) bool, what may teach.
        white: (I, J, K) bool, healthy white matter away from the rim.
        beside: (I, J, K) bool, that beside the ventricles, up to their walls.
        doubtful: (I, J, K) bool, brightness beside the ventricles that may not be healthy.
        slices: (N,) indices of the slices that teach.
    """

    levels: NDArray[np.uint8]
    brain: BoolArray
    healthy: BoolArray
    white: BoolArray
    beside: BoolArray
    doubtful: BoolArray
    slices: NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class FociDataset:
    """All subjects that teach, in memory.

    Attributes:
        heads: One for each subject.
        subjects: Ids.
        quantisation: How levels become values.
        spacing_mm: Voxel size.
        middle: Index of the plane between the sides of the brain.
    """

    heads: list[_Head]
    subjects: tuple[str, ...]
    quantisation: Quantisation
    spacing_mm: Spacing
    middle: float


def load_foci_dataset(
    folder: Path,
    config: TrainingConfig,
    *,
    scale: float,
    split: str = "train",
    subjects: Sequence[str] | None = None,
    change: Change | None = None,
) -> FociDataset:
    """Read whole subjects from shards.

    Args:
        folder: What `prepare` wrote.
        config: Decides how far lesions are grown.
        scale: Factor of the normalisation, which turns values into robust standard deviations.
        split: Only subjects of this split.
        subjects: Only these subjects, instead of a split.
        change: What is done to each of them first.

    Raises:
        DataError: A file is missing or damaged, or nobody has a slice that teaches.
    """
    index = read_index(folder)
    ids = tuple(subjects_of(index, split) if subjects is None else subjects)
    quantisation = Quantisation(**index["quantisation"])
    i, j, k = index["spacing_mm"]
    spacing = (float(i), float(j), float(k))
    heads = []
    for subject in ids:
        volumes = read_volumes(folder, subject, quantisation)
        if change is not None:
            volumes = change(volumes)
        heads.append(
            _head(volumes, config, quantisation=quantisation, scale=scale, spacing=spacing)
        )
    heads = [head for head in heads if head.slices.size]
    if not heads:
        raise DataError(
            f"There is no healthy slice to train on in {folder}.",
            next_step="Check the splits in its `dataset.json`.",
        )
    template = read_template(folder, index["affine"])
    return FociDataset(
        heads=heads,
        subjects=ids,
        quantisation=quantisation,
        spacing_mm=spacing,
        middle=middle_of_template(template),
    )


def _head(
    volumes: SubjectVolumes,
    config: TrainingConfig,
    *,
    quantisation: Quantisation,
    scale: float,
    spacing: Spacing,
) -> _Head:
    images = {m: volumes.images[m] / np.float32(scale) for m in MODALITIES}
    healthy = healthy_tissue(volumes, config.lesion_dilation_mm, spacing)
    white = ndimage.gaussian_filter(images["T1w"], 0.5) > WHITE_ABOVE
    white &= healthy & (images["T2w"] < FLUID_ABOVE - 1)
    white &= erode(volumes.brain, FROM_RIM_MM, spacing)
    fluid = ndimage.gaussian_filter(images["T2w"], 0.5) > FLUID_ABOVE
    away_mm = _from_ventricles_mm(fluid, volumes.brain, spacing)
    beside = (away_mm <= BESIDE_MM) & ndimage.binary_dilation(white) & healthy & ~fluid
    doubtful = ndimage.gaussian_filter(images["FLAIR"], 0.4) > DOUBTFUL_ABOVE
    doubtful &= (away_mm <= DOUBTFUL_MM) & ndimage.binary_dilation(white, iterations=2)
    ends = ((0, 0), (0, 0), (REACH, REACH))
    teaches = np.pad(healthy, ends)
    levels = [np.pad(quantisation.encode(volumes.images[m]), ends) for m in MODALITIES]
    return _Head(
        levels=np.stack(levels),
        brain=np.pad(volumes.brain, ends),
        healthy=teaches,
        white=np.pad(white, ends),
        beside=np.pad(beside, ends),
        doubtful=np.pad(ndimage.binary_dilation(doubtful), ends),
        slices=np.flatnonzero(teaches.sum(axis=(0, 1)) >= MINIMAL_HEALTHY_PIXELS),
    )


def _from_ventricles_mm(fluid: BoolArray, brain: BoolArray, spacing: Spacing) -> NDArray:
    """Distance of every voxel from the ventricles; infinite where none are found."""
    pieces, voxels, _ = label_components(fluid & erode(brain, VENTRICLES_FROM_RIM_MM, spacing))
    large = 1 + np.flatnonzero(voxels * np.prod(spacing) >= VENTRICLES_MM3)
    if not large.size:
        return np.full(brain.shape, np.inf)
    return ndimage.distance_transform_edt(~np.isin(pieces, large), sampling=spacing)


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
        sample = _Sample(
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


class _Sample:
    """A few slices, and what is painted into them.

    Attributes:
        images: (M, I, J, L) float32 in robust standard deviations; changed in place.
        target: (I, J, L) float32, how much of a voxel is painted lesion.
        weight: (I, J, L) float32, how much a voxel counts.
    """

    def __init__(
        self,
        images: NDArray[np.float32],
        *,
        free: BoolArray,
        white: BoolArray,
        beside: BoolArray,
        doubtful: BoolArray,
        spacing_mm: Spacing,
        middle: float,
    ) -> None:
        self.images, self.target = images, np.zeros(free.shape, np.float32)
        self.weight = np.where(doubtful, np.float32(DOUBTFUL_WEIGHT), np.float32(1))
        self._beside = beside
        self._free, self._white, self._spacing_mm = free, white, spacing_mm
        self._middle = middle
        self._near = np.zeros(free.shape, dtype=bool)
        self._near[..., REACH - 2 : REACH + 3] = True

    def paint(self, rng: np.random.Generator) -> None:
        """Paint faint patches, which are no lesions, and then lesions and fluid."""
        for _ in range(rng.integers(*FAINT_PATCHES)):
            blob = self._blob(self._free, FAINT_VOLUMES_MM3, rng)
            if blob is not None:
                inside = self._white[blob.box][blob.profile > 0.5]
                share = FAINT_SHARE_IN_WHITE if inside.any() and inside.mean() > 0.5 else 1.0
                self._change(blob, [share * rng.uniform(*FAINT[m]) for m in MODALITIES])
        for _ in range(rng.integers(*LESIONS)):
            volumes = LARGE_VOLUMES_MM3 if rng.random() < LARGE_FRACTION else VOLUMES_MM3
            in_white = rng.random() < WHITE_FRACTION
            places = self._white if in_white else self._free
            if in_white and rng.random() < BESIDE_FRACTION:
                places = self._beside
            contrasts = CONTRASTS_IN_WHITE if in_white else CONTRASTS
            changes = [_contrast(contrasts[m], rng) for m in MODALITIES]
            texture, fluid = rng.uniform(0, 0.9), rng.random() < FLUID_FRACTION
            blob = self._blob(places & self._near, volumes, rng)
            if blob is None:
                continue
            if fluid:
                changes[MODALITIES.index("FLAIR")] *= -1
            self._change(blob, changes, evened=texture)
            if fluid:
                self.target[blob.box] *= 1 - blob.profile
                continue
            self._count(blob)
            other = self._opposite(blob, rng) if rng.random() < PAIRED_FRACTION else None
            if other is not None:
                self._change(other, [c * rng.uniform(0.7, 1.3) for c in changes], evened=texture)
                self._count(other)

    def _opposite(self, blob: Blob, rng: np.random.Generator) -> Blob | None:
        """A blob of about the same size near the mirror image of one."""
        centre = [(part.start + part.stop - 1) / 2 for part in blob.box]
        centre[0] = 2 * self._middle - centre[0]
        near = np.zeros_like(self._free)
        near[
            tuple(
                slice(max(round(c - PAIR_SHIFT_MM / mm), 0), max(round(c + PAIR_SHIFT_MM / mm), 0))
                for c, mm in zip(centre, self._spacing_mm, strict=True)
            )
        ] = True
        volume = float(blob.profile.sum() * np.prod(self._spacing_mm)) * rng.uniform(0.5, 1.5)
        return self._blob(self._white & near & self._near, (volume, volume), rng)

    def _blob(
        self, places: BoolArray, volumes_mm3: tuple[float, float], rng: np.random.Generator
    ) -> Blob | None:
        volume = float(np.exp(rng.uniform(*np.log(volumes_mm3))))
        return draw_blob(
            self._free, volume, places=places, spacing_mm=self._spacing_mm, generator=rng
        )

    def _change(self, blob: Blob, changes: Sequence[float], evened: float = 0.0) -> None:
        """Add to each scan, and take away some of the texture below."""
        total = max(float(blob.profile.sum()), 1e-3)
        for image, change in zip(self.images, changes, strict=True):
            values = image[blob.box]
            mean = np.float32((values * blob.profile).sum() / total)
            image[blob.box] = values + blob.profile * (
                np.float32(change) + np.float32(evened) * (mean - values)
            )

    def _count(self, blob: Blob) -> None:
        """Make a lesion of a blob."""
        volume = float((blob.profile >= 0.5).sum() * np.prod(self._spacing_mm))
        weight = np.clip((SMALL_MM3 / max(volume, 1.0)) ** (2 / 3), 1.0, MOST_WEIGHT)
        inside = blob.profile >= 0.5
        self.weight[blob.box][inside] = weight
        self.target[blob.box] = np.maximum(self.target[blob.box], blob.profile)


def _contrast(ends: tuple[float, float], rng: np.random.Generator) -> float:
    """Between two ends; by the logarithm where both are positive."""
    if ends[0] > 0:
        return float(np.exp(rng.uniform(*np.log(ends))))
    return float(rng.uniform(*ends))
