"""Masks and their connected components, in millimetres on any grid.

Every array is (I, J, K) in its file's own index order; `spacing_mm` is one voxel's size along I, J,
K. Voxels that share a corner belong to one component; a hole leaks only through a face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.template import Box, bounding_box, spacing_of, voxel_volume_mm3

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.floating[Any]]

LESION_CONNECTIVITY: Literal[26] = 26
HOLE_CONNECTIVITY: Literal[6] = 6
PLANE_CONNECTIVITY: Literal[4] = 4
_SLACK = 1e-6  # of a volume in mm3, which float32 spacings make inexact


def voxel_mm3_of(affine: NDArray[np.float64]) -> float:
    """Volume of a voxel, mm3, by which all rules count: exact where slices are moved against each
    other, and elsewhere the product of the spacing to the last bit.

    Args:
        affine: (4, 4), voxel index to RAS+ mm.
    """
    straight, exact = straight_voxel_mm3(spacing_of(affine)), voxel_volume_mm3(affine)
    return straight if abs(exact - straight) <= _SLACK * straight else exact


def straight_voxel_mm3(spacing_mm: Sequence[float]) -> float:
    """Volume of a voxel, mm3, on a grid without shear."""
    return float(np.prod(np.asarray(spacing_mm, dtype=float)))


def erode(mask: BoolArray, distance_mm: float, spacing_mm: Sequence[float]) -> BoolArray:
    """Take off all that lies within a distance of the outside.

    The distance is measured between voxel centres and is Euclidean. The edge of the volume is not
    an outside: where the field of view ends inside the brain, there is no rim to remove.

    Args:
        mask: (I, J, K) bool.
        distance_mm: Rim to remove; 0 removes nothing.
        spacing_mm: Voxel size, mm.

    Returns:
        (I, J, K) bool, a subset of `mask`.
    """
    if distance_mm <= 0 or not mask.any():
        return mask.astype(bool)
    box = bounding_box(mask, margin=1)
    eroded = np.zeros(mask.shape, dtype=bool)
    if mask[box].all():
        return mask.astype(bool)
    depth = ndimage.distance_transform_edt(mask[box], sampling=tuple(spacing_mm))
    # A distance of exactly `distance_mm` belongs to the rim; the slack is for float32 spacings.
    eroded[box] = depth > distance_mm * (1 + 1e-5)
    return eroded


def grow_into_rim(
    mask: BoolArray,
    *,
    bright: BoolArray,
    brain: BoolArray,
    region: BoolArray,
    distance_mm: float,
    spacing_mm: Sequence[float],
) -> BoolArray:
    """Give a lesion back what the eroded rim of the brain took from it.

    The rim is left out because the brain's edge is bright on its own; next to a lesion that was
    found without it, a bright rim is the lesion's.

    Args:
        mask: (I, J, K) bool, found inside `region`.
        bright: (I, J, K) bool, above the threshold.
        brain: (I, J, K) bool.
        region: (I, J, K) bool, the brain without its rim.
        distance_mm: How far from the mask the rim may be taken.
        spacing_mm: Voxel size, mm.

    Returns:
        (I, J, K) bool, `mask` and the bright voxels of the rim near it.
    """
    if distance_mm <= 0 or not mask.any():
        return mask.astype(bool)
    box = bounding_box(mask, margin=[int(np.ceil(distance_mm / float(s))) + 1 for s in spacing_mm])
    away = ndimage.distance_transform_edt(~mask[box], sampling=tuple(spacing_mm))
    grown = mask.astype(bool)
    near = away <= distance_mm * (1 + 1e-5)
    grown[box] |= near & bright[box] & brain[box] & ~region[box]
    return grown


def label_components(mask: BoolArray) -> tuple[NDArray[np.integer[Any]], NDArray[np.int64], Any]:
    """Number the 26-connected components of a mask.

    Args:
        mask: (I, J, K) bool.

    Returns:
        labels (I, J, K), 0 for the background; voxels of each component (N,), label 1 first;
        and one box of slices for each component (N).
    """
    box = bounding_box(mask)  # whose rows have the same order, and so the same numbers
    if mask[box].size == 0:
        return np.zeros(mask.shape, np.uint16), np.zeros(0, np.int64), []
    part = cc3d.connected_components(
        np.ascontiguousarray(mask[box], dtype=np.uint8), connectivity=LESION_CONNECTIVITY
    )
    voxels, boxes = component_sizes(part)
    labels = np.zeros(mask.shape, part.dtype)
    labels[box] = part
    return labels, voxels, [_shifted(found, box) for found in boxes]


def _shifted(box: Box, origin: Box) -> Box:
    """A box of voxels of a part, as one of the whole."""
    i, j, k = (
        slice(side.start + first.start, side.stop + first.start)
        for side, first in zip(box, origin, strict=True)
    )
    return i, j, k


def component_sizes(labels: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], Any]:
    """Return the voxels of each label from 1 on, (N,), and one box of slices for each (N).

    A label between them that has no voxel has the size 0, and a box that means nothing.
    """
    statistics: Any = cc3d.statistics(labels)
    voxels = np.asarray(statistics["voxel_counts"], dtype=np.int64)[1:]
    return voxels, statistics["bounding_boxes"][1:]


def component_surfaces(
    labels: NDArray[np.integer[Any]],
    count: int,
    spacing_mm: Sequence[float],
    *,
    voxel_mm3: float | None = None,
) -> NDArray[np.float64]:
    """Surface of each component, as the sum of its voxels' outer faces.

    The border of the array is outside. A large ball has 1.5 times the surface of a smooth one,
    however small its voxels are; a cube has its own. A face is the voxel's volume over its depth.

    Args:
        labels: (I, J, K) integers, 0 for the background.
        count: Number of components.
        spacing_mm: Voxel size, mm.
        voxel_mm3: Volume of a voxel; None where the grid has no shear.

    Returns:
        (count,) in mm2, label 1 first.
    """
    surfaces = np.zeros(count + 1)
    voxel_mm3 = voxel_mm3 or straight_voxel_mm3(spacing_mm)
    for axis, spacing in enumerate(spacing_mm):
        lines = np.moveaxis(labels, axis, 0)
        faces = np.zeros(count + 1, dtype=np.int64)
        for outer in (lines[:1], lines[-1:]):
            faces += np.bincount(outer.ravel(), minlength=count + 1)
        differs = lines[1:] != lines[:-1]
        for side in (lines[1:][differs], lines[:-1][differs]):
            faces += np.bincount(side, minlength=count + 1)
        surfaces += faces * (voxel_mm3 / spacing)
    return surfaces[1:]


@dataclass(frozen=True, eq=False, kw_only=True)
class JudgedComponents:
    """The 26-connected components of a mask, and which of them count.

    Attributes:
        labels: (I, J, K) integers; 0 is the background.
        voxels: (N,) voxels of each component, label 1 first.
        seed_voxels: (N,) those of them that are seeds; None where none were asked for.
        least_seed_voxels: How many seeds a component needs.
        has_seeds: (N,) bool, whether it has them.
        largest_voxels: Voxels of the largest component that has its seeds; 0 where none has.
        kept: (N,) bool, whether it counts by seeds and by size.
    """

    labels: NDArray[np.integer[Any]]
    voxels: NDArray[np.int64]
    seed_voxels: NDArray[np.int64] | None
    least_seed_voxels: float
    has_seeds: BoolArray
    largest_voxels: int
    kept: BoolArray

    @property
    def mask(self) -> BoolArray:
        """(I, J, K) bool, the components that count."""
        counts = np.concatenate([[False], self.kept])
        mask = np.empty(self.labels.shape, dtype=bool)
        for plane, labels in zip(mask, self.labels, strict=True):  # numpy would copy all as int64
            plane[...] = counts[labels]
        return mask


def judge_components(
    mask: BoolArray,
    spacing_mm: Sequence[float],
    *,
    voxel_mm3: float | None = None,
    seeds: BoolArray | None = None,
    min_seed_mm3: float = 0.0,
    min_fraction_of_largest: float = 0.0,
    min_volume_mm3: float = 0.0,
) -> JudgedComponents:
    """Tell which components of a mask hold enough seeds and are large enough.

    Args:
        mask: (I, J, K) bool.
        spacing_mm: Voxel size, mm.
        voxel_mm3: Volume of a voxel; None where the grid has no shear.
        seeds: (I, J, K) bool; None asks for no seeds.
        min_seed_mm3: Volume of seeds that a component needs; a voxel at the least.
        min_fraction_of_largest: Share of the volume of the largest component with enough seeds.
        min_volume_mm3: Volume that a component needs.
    """
    labels, voxels, _ = label_components(mask)
    voxel_mm3 = voxel_mm3 or straight_voxel_mm3(spacing_mm)
    held, least_held = None, max(1.0, min_seed_mm3 / voxel_mm3)
    has_seeds = np.ones(len(voxels), dtype=bool)
    if seeds is not None:
        held = np.bincount(labels[seeds & mask].ravel(), minlength=len(voxels) + 1)[1:]
        has_seeds = held >= least_held * (1 - _SLACK)
    largest = int(np.max(voxels, initial=0, where=has_seeds))
    least = max(min_fraction_of_largest * float(largest), min_volume_mm3 / voxel_mm3)
    return JudgedComponents(
        labels=labels,
        voxels=voxels,
        seed_voxels=held,
        least_seed_voxels=least_held,
        has_seeds=has_seeds,
        largest_voxels=largest,
        kept=has_seeds & (voxels >= least * (1 - _SLACK)),
    )


def fill_holes(
    mask: BoolArray, within: Literal["none", "volume", "planes"] = "volume"
) -> BoolArray:
    """Fill the holes of a mask.

    Args:
        mask: (I, J, K) bool.
        within: "volume" fills cavities: background that no path through faces leads out of;
            "planes" what the mask encloses in any plane of the grid, so that necrosis which is
            open at one end is filled too; "none" nothing.

    Returns:
        (I, J, K) bool, a superset of `mask`.
    """
    filled = mask.astype(bool)
    if within == "none" or not mask.any():
        return filled
    box = bounding_box(mask)
    inside = mask[box]
    if within == "volume":
        filled[box] |= _holes(inside, HOLE_CONNECTIVITY)
        return filled
    for axis in range(3):
        target = np.moveaxis(filled[box], axis, 0)
        for index, plane in enumerate(np.moveaxis(inside, axis, 0)):
            target[index] |= _holes(plane, PLANE_CONNECTIVITY)
    return filled


def _holes(mask: BoolArray, connectivity: Literal[4, 6]) -> BoolArray:
    """Background of a plane or volume that is not connected with its border."""
    background = np.pad(~mask, 1, constant_values=True)
    labels = cc3d.connected_components(background, connectivity=connectivity)
    inner = (slice(1, -1),) * mask.ndim
    return (background & (labels != labels.flat[0]))[inner]
