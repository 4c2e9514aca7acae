"""The model card of a bundle, written from what the bundle says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmccd_cli.weights.bundle import BundleConfig
from mmccd_cli.weights.index import FRONT_MATTER

_TEMPLATE = Path(__file__).with_name("card.md")
_SETTINGS = (
    "iterations",
    "batch_size",
    "learning_rate",
    "ema_decay",
    "healthy_by",
    "lesion_dilation_mm",
    "seed",
)
"""Of the training's settings, those that the card shows."""


def model_card(config: BundleConfig) -> str:
    """Write a model card with the front matter that the Hugging Face Hub reads."""
    from jinja2 import Environment

    environment = Environment(trim_blocks=True, keep_trailing_newline=True)
    environment.filters["sum_of"] = _sum
    rows = config.calibration.get("rows", [])
    row_of = {(row["method"], tuple(row["modalities"])): row for row in rows}
    trials = [
        (
            row["method"],
            _sum(trial["weights"]),
            f"{trial.get('ridge', 0):g}",
            trial["rule"],
            f"{trial['dice']:.3f}",
            f"{trial['left_out_dice']:.3f}",
        )
        for row in rows
        for trial in row["trials"]
        if "left_out_dice" in trial
    ]
    return FRONT_MATTER + environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        config=config,
        cycles=", ".join(f"{c.source} -> {c.target} -> {c.source}" for c in config.cycles),
        restoration_settings=_shown(config.training.get("restoration_settings", {})),
        foci_settings=_shown(config.training.get("foci_settings", {})),
        settings=_shown(config.training.get("settings", {})),
        chosen=[
            (score, row_of[method, score.modalities])
            for method, scores in config.scores.items()
            for score in scores
            if (method, score.modalities) in row_of
        ],
        trials=dict.fromkeys(trials),  # each once: modalities share some
    )


def _shown(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in _SETTINGS if name in settings}


def _sum(weights: dict[str, float]) -> str:
    return " + ".join(f"{weight:g} {name}" for name, weight in weights.items())
