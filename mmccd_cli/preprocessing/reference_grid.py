"""The way back: from the template's grid to that of the reference scan."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.inputs.volume import Volume, sparse_zeros
from mmccd_cli.preprocessing.spatial import doubled, resample
from mmccd_cli.preprocessing.subject import Matrix, PreparedSubject
from mmccd_cli.template import Box, affine_of_box, bounding_box, transform_points

_SLAB_VOXELS = 2**22  # that are brought back at a time: more than the brain of a scan at 1 mm has


def to_reference_grid(data: NDArray[np.floating], prepared: PreparedSubject) -> NDArray[np.float32]:
    """Bring template-space data back to the grid of the reference scan.

    Cubic splines bring it to half the template's spacing, for small foci would shrink between
    linear samples; what lies outside the brain takes the value of its nearest voxel before.

    Args:
        data: (I, J, K) values on the template's grid; what lies outside the brain is not used.
        prepared: What `prepare_subject` returned.

    Returns:
        (I, J, K) float32 on the reference grid, 0 outside the reference's brain.
    """
    reference, brain = prepared.reference_volume, prepared.reference_brain
    box = bounding_box(brain)
    index_from_index = np.linalg.inv(prepared.affine) @ prepared.to_reference @ reference.affine
    fine = doubled(
        Volume(_spread(data, prepared.brain), prepared.affine),
        _sampled_part(box, index_from_index, data.shape),
    )
    result = sparse_zeros(reference.shape, np.float32)
    for slab in _slabs(box):
        part, there = affine_of_box(reference.affine, slab), brain[slab]
        values = resample(fine, there.shape, part, matrix=prepared.to_reference).data
        np.copyto(result[slab], values, where=there)
    return result


def _spread(data: NDArray[np.floating], brain: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Give each voxel outside the brain the value of the nearest one inside."""
    nearest = ndimage.distance_transform_edt(~brain, return_distances=False, return_indices=True)
    return data[tuple(nearest)]


def _sampled_part(box: Box, matrix: Matrix, shape: tuple[int, ...]) -> Box:
    """The part of a grid that is looked at where a box of another grid is interpolated.

    Args:
        box: Not empty.
        matrix: (4, 4) from indices of the other grid to indices of this one.
        shape: Of this one.
    """
    corners = itertools.product(*[(side.start, side.stop - 1) for side in box])
    points = transform_points(matrix, list(corners))
    last = np.array(shape) - 1
    low = np.clip(np.floor(points.min(axis=0)) - 1, 0, last).astype(int)
    high = np.clip(np.ceil(points.max(axis=0)) + 1, 0, last).astype(int)
    i, j, k = (
        slice(first, end + 1) for first, end in zip(low.tolist(), high.tolist(), strict=True)
    )
    return i, j, k


def _slabs(box: Box) -> Iterator[Box]:
    """Cut a box across its first axis, so that a large one is never handled as a whole."""
    i, j, k = box
    plane = (j.stop - j.start) * (k.stop - k.start)
    thickness = max(1, _SLAB_VOXELS // plane)
    for start in range(i.start, i.stop, thickness):
        yield slice(start, min(start + thickness, i.stop)), j, k
