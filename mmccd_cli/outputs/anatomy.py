"""Where lesions lie, by the template: on which side, and how far from the midline.

Only what an affine registration to the template can tell. It knows no lobes and no ventricles: no
atlas of regions with an open licence lies in the space of the template, and what a mean of some
twenty brains shows of ventricles says little about a brain that a tumour has displaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.symmetry import middle_plane, smooth_inside
from mmccd_cli.outputs.schema import ON_MIDLINE_MM, Side
from mmccd_cli.template import Template, transform_points

MIDLINE = "template_midline_mm"
"""Name, among a record's settings, of the template's midline: x in its world, mm."""

_SIGMA_MM = 2.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a lesion lies.

    Attributes:
        side: Side of the patient.
        midline_mm: Distance of its centre from the midline of the template.
        template_ras_mm: Its centre in the world of the template, RAS+ mm.
    """

    side: Side
    midline_mm: float
    template_ras_mm: tuple[float, float, float]


@lru_cache(maxsize=4)
def midline_of(template: Template) -> float | None:
    """Return where the plane between the halves of a template crosses x; None of a bare grid."""
    image = next(iter(template.images.values()), None)
    if image is None or not template.mask.any():
        return None
    smooth = smooth_inside(image, template.mask, sigma_mm=_SIGMA_MM, spacing_mm=template.spacing_mm)
    index = middle_plane(smooth, template.mask, axis=0)
    return round(float(template.affine[0, 0] * index + template.affine[0, 3]), 3)


def matrix_to_template(settings: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """Return (4, 4) from the world of a record's map to that of the template, RAS+ mm, if known."""
    if settings.get("space", "native") != "native":
        return np.eye(4)
    try:
        matrix = np.array(settings["reference_to_template"], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        return None
    usable = matrix.shape == (4, 4) and np.isfinite(matrix).all() and np.linalg.det(matrix) != 0
    return matrix if usable else None


def place_of(point_ras_mm: Sequence[float], settings: Mapping[str, Any]) -> Place | None:
    """Return where a point of a map's world lies; None where the map's record does not tell."""
    matrix, midline = matrix_to_template(settings), settings.get(MIDLINE)
    if matrix is None or not isinstance(midline, int | float):
        return None
    x, y, z = (round(float(mm), 2) for mm in transform_points(matrix, point_ras_mm))
    side: Side = "left" if x < midline else "right"
    away = round(abs(x - midline), 2)
    return Place(
        side="midline" if away <= ON_MIDLINE_MM else side,
        midline_mm=away,
        template_ras_mm=(x, y, z),
    )
