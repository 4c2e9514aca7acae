"""The space in which the networks see brains, shared by the image side and the model side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class NormalRange:
    """What healthy tissue of one modality looks like at each voxel of the template.

    Attributes:
        mean: (I, J, K) float32, normalised intensity.
        spread: (I, J, K) float32, standard deviation in the same unit.
    """

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Template:
    """A mean brain and the grid that it lies on.

    Args:
        images: Modality -> (I, J, K) float32 mean image, normalised; empty for a bare grid.
        mask: (I, J, K) bool, the mean brain.
        affine: (4, 4) float64 from indices to RAS+ mm; the axes run right, anterior, superior.
        normal: Modality -> range of healthy tissue; empty where none was learnt.
    """

    images: Mapping[str, NDArray[np.float32]]
    mask: NDArray[np.bool_]
    affine: NDArray[np.float64]
    normal: Mapping[str, NormalRange] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each axis."""
        i, j, k = self.mask.shape
        return (i, j, k)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along each axis."""
        x, y, z = np.diag(self.affine)[:3]
        return float(x), float(y), float(z)
