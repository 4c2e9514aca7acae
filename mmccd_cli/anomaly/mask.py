"""From an anomaly map to its mask and lesions: the step that needs no network.

The mask is a function of the map as it is written, its grid, the scan's threshold and the score's
settings, and of nothing else. All of them are in the result's files, so a new mask made from these
equals, voxel by voxel, the one of a new run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.components import Lesion, find_lesions
from mmccd_cli.anomaly.score import segment
from mmccd_cli.config import ScoreConfig
from mmccd_cli.template import spacing_of


@dataclass(frozen=True)
class MaskOptions:
    """What the user may set of the way from map to mask; None takes the bundle's calibration.

    Attributes:
        threshold: Value of the map above which a voxel belongs to the mask.
        min_lesion_mm3: Smallest lesion.
        min_fraction_of_largest: Share of the largest lesion's volume that a lesion needs.
        min_seed_mm3: Volume over which a lesion must exceed the seeds' threshold; 0 for no seeds.
        fill_holes: "none", "volume" or "planes"; see `mmccd_cli.config.ScoreConfig`.
    """

    threshold: float | None = None
    min_lesion_mm3: float | None = None
    min_fraction_of_largest: float | None = None
    min_seed_mm3: float | None = None
    fill_holes: Literal["none", "volume", "planes"] | None = None

    def applied_to(self, config: ScoreConfig) -> ScoreConfig:
        """Return a score's settings with the user's choices in it."""
        chosen = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(config, **chosen)


AS_CALIBRATED = MaskOptions()

MASK_SETTINGS = tuple(field.name for field in fields(MaskOptions))
"""What of a score's settings changes the mask and not the map."""


def mask_settings(config: ScoreConfig) -> dict[str, Any]:
    """Return the part of a score's settings that `MaskOptions` can change."""
    return {name: getattr(config, name) for name in MASK_SETTINGS}


def cut(
    anomaly_map: NDArray[np.float32],
    affine: NDArray[np.float64],
    scan_threshold: float,
    config: ScoreConfig,
) -> tuple[NDArray[np.bool_], list[Lesion]]:
    """Threshold a map, clean the mask and list the lesions.

    Args:
        anomaly_map: (I, J, K) float32 in [0, 1].
        affine: (4, 4), voxel index to RAS+ mm.
        scan_threshold: The scan's threshold in score units, which the map was made with.
        config: Threshold, seeds, sizes and holes.

    Returns:
        (I, J, K) bool, and its components, the largest first.
    """
    mask = segment(anomaly_map, spacing_of(affine), scan_threshold, config)
    return mask, find_lesions(mask, anomaly_map, affine)
