"""A score with one lesion, and settings that leave it as it is, for tests of what comes after."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.config import ScoreConfig

SPACING = (2.0, 2.0, 2.0)
SHAPE = (24, 24, 20)
PLAIN = ScoreConfig(
    modalities=("FLAIR", "T2w"),
    weights={"cycle:FLAIR": 1.0},
    asymmetry_weight=0.0,
    median_mm=0.0,
    erosion_mm=0.0,
    threshold_rule="fixed",
    threshold_offset=1.0,
    min_seed_mm3=0.0,
    min_fraction_of_largest=0.0,
    rim_mm=0.0,
    fill_holes="none",
)


def brain() -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[2:22, 2:22, 2:18] = True
    return mask


def signal(seed: int = 0) -> NDArray[np.float32]:
    """Noise of 0.3 with a lesion of 4 in the brain."""
    values = 0.3 * np.random.default_rng(seed).standard_normal(SHAPE)
    values[8:14, 8:14, 8:13] += 4
    return np.where(brain(), values, 0).astype(np.float32)


LESION = np.zeros(SHAPE, dtype=bool)
LESION[8:14, 8:14, 8:13] = True
