"""Presets: how much time a result may take, as a choice of sampling settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args, get_type_hints

from mmccd_cli.config import SamplingConfig
from mmccd_cli.errors import UsageError


@dataclass(frozen=True)
class Preset:
    """A named choice of sampling settings.

    Attributes:
        summary: What it does, for people.
        changes: Fields of `SamplingConfig` that differ from the bundle's default.
    """

    summary: str
    changes: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "fast": Preset(
        "one plain translation there and back (Cyclic U-Net)",
        {"method": "cyclic-unet"},
    ),
    "balanced": Preset(
        "masked conditional diffusion, sampled as the bundle proposes",
        {"method": "mmccd"},
    ),
    "paper": Preset(
        "masked conditional diffusion as published: 128 bands of 16 pixels, 100 DDIM steps",
        {
            "method": "mmccd",
            "band_width": 16,
            "band_stride": 2,
            "band_axes": "both",
            "num_inference_steps": 100,
            "second_pass": False,
        },
    ),
}

DIFFUSION_ONLY = {"num_inference_steps", "band_width", "band_stride", "band_axes", "second_pass"}
"""Fields of `SamplingConfig` that mean nothing to a plain translation."""

METHODS: tuple[str, ...] = get_args(get_type_hints(SamplingConfig)["method"])


def choose_sampling(
    default: SamplingConfig, preset: str | None = None, **changes: Any
) -> SamplingConfig:
    """Derive the sampling of a run: the bundle's default, then the preset, then single settings.

    Args:
        default: The bundle's own sampling.
        preset: A key of `PRESETS`, or None for the bundle's default as it is.
        **changes: Fields of `SamplingConfig`; None leaves a field as it is.

    Raises:
        UsageError: The settings do not fit together.
    """
    chosen = dict(PRESETS[preset].changes) if preset else {}
    given = {name: value for name, value in changes.items() if value is not None}
    chosen.update(given)
    if DIFFUSION_ONLY & set(given) and "method" not in chosen:
        # Whoever sets steps or bands means the method that has them.
        chosen["method"] = "mmccd"
    try:
        return replace(default, **chosen)
    except ValueError as error:
        raise UsageError(
            f"The sampling settings do not fit together: {error}.",
            next_step="Change --steps, --band-width or --band-stride, or give --preset alone.",
        ) from error
