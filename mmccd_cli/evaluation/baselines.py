"""Scores without networks: what a learned method has to beat to be worth its cost.

A baseline is a `ScoreConfig` whose signals are plain intensities. It is smoothed, thresholded and
cleaned by the same functions as a learned score; only its settings differ. Nothing is learned; the
one number of each threshold rule is chosen on other subjects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from mmccd_cli.config import IntensityConfig, ScoreConfig

Constants = Mapping[str, Mapping[str, float]]
"""Score -> rule ("fixed", "adaptive") -> its constant."""


def plain_score(weights: Mapping[str, float]) -> ScoreConfig:
    """Build the settings of a score that is compared with ours: smoothed, its largest parts kept.

    Args:
        weights: Weight of each signal, as in `ScoreConfig`; negative where lesions are dark.
    """
    return ScoreConfig(
        modalities=tuple(signal.partition(":")[2] for signal in weights),
        weights=dict(weights),
        asymmetry_weight=0.0,
        median_mm=5.0,
        erosion_mm=3.0,
        min_seed_mm3=0.0,
        min_fraction_of_largest=0.2,
        rim_mm=0.0,
        fill_holes="volume",
    )


BASELINES: Mapping[str, ScoreConfig] = MappingProxyType(
    {
        "flair-z": plain_score({"intensity:FLAIR": 1.0}),
        "t2w-z": plain_score({"intensity:T2w": 1.0}),
        # Oedema and tumour are dark on T1w, so the sign is turned.
        "t1w-z": plain_score({"intensity:T1w": -1.0}),
        "flair-t2w-z": plain_score({"intensity:FLAIR": 1.0, "intensity:T2w": 0.5}),
    }
)
"""The baselines that every evaluation shows, by name."""

SHIPPED_CONSTANTS: Constants = {
    "flair-z": {"fixed": 1.4, "adaptive": 0.6},
    "flair-t2w-z": {"fixed": 2.0, "adaptive": 1.0},
    "t2w-z": {"fixed": 1.2, "adaptive": 0.3},
    "t1w-z": {"fixed": 0.2, "adaptive": -0.6},
}
"""Chosen on 17 gliomas, the `train` subjects of the embedded weights."""

Z_SCORE = IntensityConfig(method="median-mad", scale=1.0, clip=None, background=0.0)
"""Intensities as distances from the brain's median, in robust standard deviations."""

EDGE_SCORE = "flair-z"
"""The score that also has a row with the contour rule and the seeds of our own map."""


def threshold_rows(
    name: str, score: ScoreConfig, constants: Mapping[str, float]
) -> dict[str, ScoreConfig]:
    """Return rule -> settings of each threshold row of a score, whose own rule does not count."""
    rules = {
        "fixed": replace(score, threshold_rule="fixed", threshold_offset=constants["fixed"]),
        "adaptive": replace(score, threshold_rule="otsu", threshold_offset=constants["adaptive"]),
    }
    if name == EDGE_SCORE:
        rules["edge"] = replace(
            score, threshold_rule="edge", edge_low=0.9, edge_high=1.9, min_seed_mm3=80.0
        )
    return rules


def describe_threshold(config: ScoreConfig) -> str:
    """Say a threshold rule and its constants in a few words, for tables."""
    return {
        "fixed": f"fixed {config.threshold_offset:g}",
        "otsu": f"adaptive {config.threshold_offset:g}",
        "edge": f"edge {config.edge_low:g} to {config.edge_high:g}",
    }[config.threshold_rule]


def describe_cleaning() -> str:
    """Say what happens to every score that is compared with ours, for tables."""
    config = BASELINES["flair-z"]
    return (
        f"{config.median_mm:g} mm median, {config.erosion_mm:g} mm rim left out, components of at "
        f"least {config.min_fraction_of_largest:g} of the largest one's volume, holes filled"
    )
