"""Whether a value of the map means what it says: of voxels at 0.8, 80 % should be lesion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 10
"""Of equal width between 0 and 1."""


@dataclass(frozen=True)
class Reliability:
    """Counts voxels by the value of the map, in ten bins of equal width.

    Attributes:
        voxels: (10,) how many there are.
        promised: (10,) sum of their values.
        lesion: (10,) how many of them are lesion.
    """

    voxels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    promised: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    lesion: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: NDArray[np.floating], lesion: NDArray[np.bool_]) -> None:
        """Count the voxels of a subject's brain in.

        Args:
            values: (N,) the map in [0, 1].
            lesion: (N,) bool.
        """
        index = np.minimum((values * BINS).astype(int), BINS - 1)
        self.voxels[:] += np.bincount(index, minlength=BINS)
        self.promised[:] += np.bincount(index, weights=values, minlength=BINS)
        self.lesion[:] += np.bincount(index[lesion], minlength=BINS)

    @property
    def expected_error(self) -> float:
        """Mean distance of promise and truth over all voxels (expected calibration error)."""
        return float(np.abs(self.promised - self.lesion).sum() / max(1, int(self.voxels.sum())))

    def describe(self) -> dict[str, Any]:
        """As plain values: the error, and a pair of mean value and share of lesion a bin."""
        counts = np.maximum(self.voxels, 1)
        return {
            "expected_calibration_error": round(self.expected_error, 4),
            "curve": [
                [round(float(p), 3), round(float(t), 3)]
                for p, t, n in zip(
                    self.promised / counts, self.lesion / counts, self.voxels, strict=True
                )
                if n
            ],
        }
