"""Signals of one scan -> score -> anomaly map -> mask and lesions; numpy only, on any grid.

In the order in which data passes through:

1. `atlas`: what healthy tissue looks like at each voxel of the template, a signal.
2. `symmetry`: what one side of the brain says about the other.
3. `score`: signals -> a smoothed score per voxel, and a score -> the anomaly map.
4. `candidates`: the thresholds that are tried on one scan, the mask at each, and the one taken.
5. `contour`: the map's contour, pulled to where the scan itself changes.
6. `confidence`: how sure it is that a candidate is a lesion.
7. `mask`: a map -> its mask, lesions and what was left out, which needs no network.
8. `unshown`: what lies far from healthy tissue and is not in the map.
9. `components`: what all of these ask of a mask: rim, connected components, holes.
10. `metrics`: how well a mask or a map agrees with a reference.
"""

from __future__ import annotations

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "atlas": ["NormalRangeFit", "deviation"],
        "candidates": ["ScanScore", "candidate_masks", "find_threshold", "score_scan"],
        "components": ["fill_holes", "judge_components", "label_components"],
        "contour": ["refine_contour"],
        "mask": [
            "LeftOut",
            "Lesion",
            "MaskFindings",
            "MaskOptions",
            "find_lesions",
            "mask_and_lesions",
            "mask_from_map",
        ],
        "metrics": ["CaseMetrics", "MetricSummary", "measure_case", "overlap", "summarise"],
        "score": ["SmoothedScore", "map_from_score", "smooth"],
        "symmetry": ["asymmetry", "middle_plane"],
    },
)
