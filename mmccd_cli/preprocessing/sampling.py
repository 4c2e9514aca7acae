"""Scans on the grid of the template: interpolated once, for all matrices are composed before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.inputs.volume import Volume
from mmccd_cli.preprocessing.spatial import cut_out, resample, same_grid
from mmccd_cli.template import Template, affine_of_box, bounding_box

Matrix = NDArray[np.float64]

_MIN_WEIGHT = 0.05  # less than this share of a sample lies inside the mask: leave it out
MARGIN_VOXELS = 4
"""Around a brain, that are kept of its scan."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AlignedScan:
    """A scan, and where the subject's brain lies in it.

    Attributes:
        volume: The scan as it came in.
        brain: (I, J, K) bool on its grid, the brain that it shows.
        matrix: (4, 4) reference world -> the scan's world, RAS+ mm.
    """

    volume: Volume
    brain: NDArray[np.bool_]
    matrix: Matrix


class Sampler:
    """Samples scans on the template's grid.

    Attributes:
        share: (I, J, K) float32, how much of each voxel of the template's grid is brain.
    """

    def __init__(
        self, template: Template, from_template: Matrix, head: AlignedScan, *, threads: int
    ) -> None:
        self._template, self._from_template, self._threads = template, from_template, threads
        self._head = head
        self.share = self._mean_inside(head.brain, head)

    def sample(self, scan: AlignedScan) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return a scan on the template's grid, and where it shows the brain there.

        Blurring image and mask alike and dividing keeps the background out of the brain's edge.
        """
        # Scans on one grid that show all of the brain share its mask, and so its share.
        same = np.array_equal(scan.matrix, self._head.matrix)
        same = same and same_grid(scan.volume, self._head.volume)
        if same and np.array_equal(scan.brain, self._head.brain):
            share = self.share
        else:
            share = self._mean_inside(scan.brain, scan)
        return _without_background(self._mean_inside(scan.volume.data, scan), share), share >= 0.5

    def _mean_inside(self, data: NDArray, scan: AlignedScan) -> NDArray[np.float32]:
        """Mean of what the brain leaves of an image in each voxel of the template's grid."""
        box, template = bounding_box(scan.brain, MARGIN_VOXELS), self._template
        affine = affine_of_box(scan.volume.affine, box)
        matrix = scan.matrix @ self._from_template
        inside = cut_out(data[box], scan.brain[box], affine, samples=matrix @ template.affine)
        return resample(
            inside,
            template.shape,
            template.affine,
            matrix=matrix,
            smooth=True,
            overwrite=True,
            threads=self._threads,
        ).data


def _without_background(
    values: NDArray[np.float32], share: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Undo what interpolation mixed in from outside a mask, of which each voxel holds a share."""
    return np.where(share > _MIN_WEIGHT, values / np.maximum(share, _MIN_WEIGHT), 0)
