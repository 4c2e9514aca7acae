"""Which voxel belongs to which entry of the lesion table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.components import label_components
from mmccd_cli.anomaly.mask import LeftOut
from mmccd_cli.template import voxel_volume_mm3

Numbers = NDArray[Any]
"""uint16, or uint32 where there are more than fit in."""


def number_lesions(mask: NDArray[np.bool_]) -> Numbers:
    """Number the components of a mask from the largest to the smallest, as records do.

    Args:
        mask: (I, J, K) bool.

    Returns:
        (I, J, K) unsigned integers, 0 outside the mask.
    """
    labels, voxels, _ = label_components(mask)
    number = _no_numbers(len(voxels), largest=len(voxels))
    number[1 + np.argsort(-voxels, kind="stable")] = np.arange(1, len(voxels) + 1)
    numbers: Numbers = number[labels]
    return numbers


def number_left_out(
    outside: NDArray[np.bool_], left_out: Sequence[LeftOut], affine: NDArray[np.float64]
) -> Numbers:
    """Number the voxels of the candidates that a record lists.

    Args:
        outside: (I, J, K) bool, above the threshold and not in the mask.
        left_out: The candidates.
        affine: (4, 4), voxel index to RAS+ mm.

    Returns:
        (I, J, K) unsigned integers, the candidate's id, or 0 for what is not listed.
    """
    labels, voxels, _ = label_components(outside)
    volume_ml: NDArray[Any] = voxels * (voxel_volume_mm3(affine) / 1000)
    number = _no_numbers(len(voxels), largest=max((it.id for it in left_out), default=0))
    for candidate in left_out:
        box = tuple(slice(*limits) for limits in candidate.box)
        # A hole that was filled may part a candidate: its largest part stands for it.
        here = np.setdiff1d(labels[box], 0)
        if here.size:
            nearest = np.abs(volume_ml[here - 1] - candidate.volume_ml).argmin()
            number[here[nearest]] = candidate.id
    numbers: Numbers = number[labels]
    return numbers


def _no_numbers(count: int, *, largest: int) -> Numbers:
    """A number for the background and each component, still 0, of a type that holds the largest."""
    return np.zeros(count + 1, np.uint16 if largest <= np.iinfo(np.uint16).max else np.uint32)
