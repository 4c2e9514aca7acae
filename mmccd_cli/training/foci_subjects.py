"""Subjects as the network of small foci meets them: what teaches, and where lesions may lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.anomaly.components import BoolArray, erode, label_components
from mmccd_cli.anomaly.symmetry import middle_of_template
from mmccd_cli.config import MODALITIES, TrainingConfig
from mmccd_cli.errors import DataError
from mmccd_cli.template import Quantisation
from mmccd_cli.training.normal_ranges import healthy_tissue
from mmccd_cli.training.samples import MINIMAL_HEALTHY_PIXELS
from mmccd_cli.training.slices import (
    Change,
    SubjectVolumes,
    hash_slices,
    read_index,
    read_template,
    read_volumes,
    subjects_of,
)

Spacing = tuple[float, float, float]

REACH = 4
"""Slices on each side of the one that is learnt, so that lesions and blurs may reach over it."""
FLUID_ABOVE, WHITE_ABOVE = 3.0, 0.25
"""T2w above the former is fluid, T1w above the latter white matter; robust standard deviations."""
VENTRICLES_FROM_RIM_MM, VENTRICLES_MM3 = 16.0, 1000.0
"""Pieces of fluid that lie so deep and are so large are ventricles."""
BESIDE_MM = 8.0
"""How near to them white matter lies beside them."""
DOUBTFUL_MM, DOUBTFUL_ABOVE = 10.0, 1.5
"""So near to ventricles, white matter that is as bright as this on FLAIR may be ill in subjects
with another disease, too."""
WHITE_FROM_RIM_MM = 5.0
"""Least depth in the brain of what is taken for white matter."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FociHead:
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
        sha256: Hash of the files that they come from, see `hash_slices`.
    """

    heads: list[FociHead]
    subjects: tuple[str, ...]
    quantisation: Quantisation
    spacing_mm: Spacing
    middle: float
    sha256: str


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
        volumes = read_volumes(folder, subject, quantisation, change=change)
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
        sha256=hash_slices(folder, ids),
    )


def _head(
    volumes: SubjectVolumes,
    config: TrainingConfig,
    *,
    quantisation: Quantisation,
    scale: float,
    spacing: Spacing,
) -> FociHead:
    images = {m: volumes.images[m] / np.float32(scale) for m in MODALITIES}
    healthy = healthy_tissue(volumes, config.lesion_dilation_mm, spacing)
    white = ndimage.gaussian_filter(images["T1w"], 0.5) > WHITE_ABOVE
    white &= healthy & (images["T2w"] < FLUID_ABOVE - 1)
    white &= erode(volumes.brain, WHITE_FROM_RIM_MM, spacing)
    fluid = ndimage.gaussian_filter(images["T2w"], 0.5) > FLUID_ABOVE
    away_mm = _from_ventricles_mm(fluid, volumes.brain, spacing)
    beside = (away_mm <= BESIDE_MM) & ndimage.binary_dilation(white) & healthy & ~fluid
    doubtful = ndimage.gaussian_filter(images["FLAIR"], 0.4) > DOUBTFUL_ABOVE
    doubtful &= (away_mm <= DOUBTFUL_MM) & ndimage.binary_dilation(white, iterations=2)
    ends = ((0, 0), (0, 0), (REACH, REACH))
    teaches = np.pad(healthy, ends)
    levels = [np.pad(quantisation.encode(volumes.images[m]), ends) for m in MODALITIES]
    return FociHead(
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
