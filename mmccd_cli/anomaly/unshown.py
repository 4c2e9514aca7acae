"""Places far from healthy tissue that a map does not show, because of how they differ.

Scores count what is bright on FLAIR and T2w and dark on T1w. A cyst or an old infarct is bright on
T2w, but what FLAIR says counts against it; old blood is dark on both. Neither belongs to what the
map is calibrated for, but whoever reads the result is to know of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.anomaly.components import BoolArray, FloatArray, erode, label_components
from mmccd_cli.template import NormalRange, spacing_of, transform_points, voxel_volume_mm3

LEAST_DEVIATIONS = 2.0
"""Standard deviations of healthy tissue that every scan must differ by."""
LEAST_SPREAD = 0.3
"""Healthy tissue counts as spread at least so far, in robust standard deviations of the brain."""
LEAST_ML = 2.0
"""Volume of the smallest place that is told."""
BLUR_MM, FROM_RIM_MM, HALF_WIDTH_MM = 2.0, 4.0, 2.0
"""Blur of the deviations, rim of the brain that is left out, and half the width of sheets that are
no place."""
MOST_SHOWN = 0.2
"""A place of which the map shows a larger share is shown."""
KINDS = {
    "fluid": {"FLAIR": -1, "T2w": 1, "T1w": -1},
    "dark": {"FLAIR": -1, "T2w": -1},
}
"""Kind -> modality -> 1 where it is brighter than healthy tissue, -1 where it is darker. One scan
alone does not tell them: what it shows is in the map, or is common at the rim of the brain."""


@dataclass(frozen=True)
class UnshownPlace:
    """A place that the map does not show.

    Attributes:
        kind: A key of `KINDS`.
        volume_ml: Its volume in the template.
        middle_ras_mm: Its voxel nearest its centroid, in the template's world.
    """

    kind: str
    volume_ml: float
    middle_ras_mm: tuple[float, float, float]


def unshown_places(
    images: Mapping[str, FloatArray],
    normal: Mapping[str, NormalRange],
    *,
    within: BoolArray,
    shown: BoolArray,
    affine: NDArray[np.float64],
) -> list[UnshownPlace]:
    """Find them, the largest of each kind first.

    Args:
        images: Modality -> (I, J, K) normalised intensities on the template's grid.
        normal: Modality -> range of healthy tissue on the same grid, in the same unit.
        within: (I, J, K) bool, the brain as far as all images show it.
        shown: (I, J, K) bool, what the map shows.
        affine: (4, 4), voxel index to the template's world, RAS+ mm.
    """
    spacing_mm = spacing_of(affine)
    deviations = {
        modality: (image - normal[modality].mean)
        / np.maximum(normal[modality].spread, LEAST_SPREAD)
        for modality, image in images.items()
        if modality in normal
    }
    inside = erode(within, FROM_RIM_MM, spacing_mm)
    places = []
    for kind, signs in KINDS.items():
        seen = [sign * deviations[m] for m, sign in signs.items() if m in deviations]
        if "FLAIR" not in deviations or len(seen) < 2:
            continue
        beyond = ndimage.gaussian_filter(
            np.min(seen, axis=0), [BLUR_MM / spacing for spacing in spacing_mm]
        )
        far = ndimage.binary_opening(
            inside & (beyond > LEAST_DEVIATIONS),
            iterations=max(1, round(HALF_WIDTH_MM / min(spacing_mm))),
        )
        places += _places(far, shown, kind=kind, affine=affine)
    return places


def _places(
    far: BoolArray, shown: BoolArray, *, kind: str, affine: NDArray[np.float64]
) -> list[UnshownPlace]:
    """The parts of a mask that are large and not shown, the largest first."""
    labels, voxels, boxes = label_components(far)
    volumes_ml = voxels * voxel_volume_mm3(affine) / 1000
    places = []
    for index in np.argsort(-volumes_ml, kind="stable"):
        if volumes_ml[index] < LEAST_ML:
            break
        part = labels[boxes[index]] == index + 1
        if shown[boxes[index]][part].mean() <= MOST_SHOWN:
            points = np.argwhere(part)
            middle = points[np.linalg.norm(points - points.mean(axis=0), axis=1).argmin()]
            corner = [side.start for side in boxes[index]]
            x, y, z = transform_points(affine, middle + corner).tolist()
            places.append(UnshownPlace(kind, round(float(volumes_ml[index]), 1), (x, y, z)))
    return places
