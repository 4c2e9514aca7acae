"""Every setting that changes a number, as frozen, validated dataclasses that travel as JSON."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from mmccd_cli.errors import UsageError

T = TypeVar("T")

MODALITIES = ("FLAIR", "T2w", "T1w")
"""All modalities, in the order in which one is preferred as the reference image."""

RETIRED: dict[str, dict[str, Any]] = {
    "PreprocessingConfig": {"bias_correction": False},
    "SamplingConfig": {"second_pass": False},
}
"""Settings that are gone, with the only value that they ever had in a bundle: files may say it."""

MAX_SEED = 2**27
"""Seeds lie below; the generator of every sample and slice is seeded with about 2^36 times that."""


@dataclass(frozen=True)
class IntensityConfig:
    """How intensities become comparable between scans.

    Attributes:
        method: "median-mad": (I - median) / MAD inside the brain; "percentile": the published
            (I - u/2) / u * 6, u the 90th percentile inside the brain.
        scale: Factor applied afterwards, so that most of the brain lies within [-1, 1] or so.
        clip: Values beyond +-clip (after scaling) are cut; None leaves them.
        background: Value outside the brain, in the units after scaling.
    """

    method: Literal["median-mad", "percentile"] = "median-mad"
    scale: float = 0.5
    clip: float | None = 4.0
    background: float = -3.0

    def __post_init__(self) -> None:
        _require_choices(self, "intensity")
        _require(self.scale > 0, "intensity.scale must be positive", self.scale)
        _require(self.clip is None or self.clip > 0, "intensity.clip must be positive", self.clip)


@dataclass(frozen=True)
class PreprocessingConfig:
    """How a subject is brought into the training space.

    Attributes:
        intensity: Normalisation inside the brain.
        template_registration: "affine" or "none" (headers are trusted).
    """

    intensity: IntensityConfig = field(default_factory=IntensityConfig)
    template_registration: Literal["affine", "none"] = "affine"

    def __post_init__(self) -> None:
        _require_choices(self, "preprocessing")


@dataclass(frozen=True)
class UNetConfig:
    """A 2-D U-Net of residual blocks.

    Attributes:
        in_channels: Channels of the input (for a denoiser: those of x_t and of the condition).
        out_channels: Channels of the output.
        base_channels: Channels of the first level.
        channel_multipliers: Channels of each level, as multiples of `base_channels`.
        residual_blocks: Residual blocks a level on the way down (one more on the way up).
        attention_levels: Indices of the levels that have self-attention, 0 the finest.
        middle_attention: Whether the bottleneck has self-attention.
        attention_heads: Heads of each self-attention.
        time_conditioned: Whether blocks receive a time-step embedding.
        scale_shift_norm: Whether the embedding scales and shifts the norm, or is only added.
        resample: How resolution changes: "residual" (a residual block that pools or repeats
            inside, as published), "convolution", or "plain" (average, nearest neighbour).
        dropout: Dropout probability inside the blocks.
        norm_groups: Groups of each group norm; as many as channels makes it an instance norm.
        pixel_unshuffle: Factor by which pixels are folded into channels first (1: not at all).
    """

    in_channels: int = 1
    out_channels: int = 1
    base_channels: int = 32
    channel_multipliers: tuple[int, ...] = (1, 2, 3, 4)
    residual_blocks: int = 1
    attention_levels: tuple[int, ...] = ()
    middle_attention: bool = False
    attention_heads: int = 1
    time_conditioned: bool = False
    scale_shift_norm: bool = True
    resample: Literal["residual", "convolution", "plain"] = "plain"
    dropout: float = 0.0
    norm_groups: int = 8
    pixel_unshuffle: int = 1

    def __post_init__(self) -> None:
        _require_choices(self, "unet")
        _require_at_least(
            self,
            "unet",
            in_channels=1,
            out_channels=1,
            base_channels=2,  # the time embedding needs a sine and a cosine
            residual_blocks=1,
            attention_heads=1,
            norm_groups=1,
            pixel_unshuffle=1,
        )
        _require(
            bool(self.channel_multipliers) and min(self.channel_multipliers) >= 1,
            "unet.channel_multipliers must be one or more numbers from 1 up",
            self.channel_multipliers,
        )
        _require(0 <= self.dropout < 1, "unet.dropout must lie in [0, 1)", self.dropout)
        levels = len(self.channel_multipliers)
        _require(
            all(self.base_channels * m % self.norm_groups == 0 for m in self.channel_multipliers),
            "unet.norm_groups must divide the channels of every level",
            self.norm_groups,
        )
        _require(
            all(0 <= level < levels for level in self.attention_levels),
            f"unet.attention_levels must lie in 0..{levels - 1}",
            self.attention_levels,
        )
        attending = [self.channel_multipliers[level] for level in self.attention_levels]
        attending += [self.channel_multipliers[-1]] * self.middle_attention
        _require(
            all(self.base_channels * m % self.attention_heads == 0 for m in attending),
            "unet.attention_heads must divide the channels of every level that attends",
            self.attention_heads,
        )

    @property
    def stride(self) -> int:
        """Height and width of the input must be multiples of this many pixels."""
        return self.pixel_unshuffle * 2 ** (len(self.channel_multipliers) - 1)


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise schedule of training.

    Attributes:
        num_train_timesteps: T of the paper.
        beta_start: First beta of the linear schedule.
        beta_end: Last beta of the linear schedule.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        _require(self.num_train_timesteps >= 1, "diffusion.num_train_timesteps must be >= 1", None)
        _require(
            0 < self.beta_start <= self.beta_end < 1,
            "diffusion betas must rise within (0, 1)",
            None,
        )


@dataclass(frozen=True)
class SamplingConfig:
    """How a slice is imagined at test time.

    Attributes:
        method: "mmccd" (masked conditional diffusion forward) or "cyclic-unet" (one plain pass).
        num_inference_steps: DDIM steps; 1 is a regression from pure noise.
        band_width: Width of a hidden band in pixels.
        band_stride: Distance between neighbouring bands in pixels; must divide `band_width`.
        band_axes: Which way bands run: "columns", "rows" or "both".
        seed: Seed of all noise; every slice has its own generator derived from it.
    """

    method: Literal["mmccd", "cyclic-unet"] = "mmccd"
    num_inference_steps: int = 1
    band_width: int = 16
    band_stride: int = 8
    band_axes: Literal["columns", "rows", "both"] = "both"
    seed: int = 0

    def __post_init__(self) -> None:
        _require_choices(self, "sampling")
        _require_at_least(self, "sampling", num_inference_steps=1, band_width=1)
        _require_seed(self.seed, "sampling")
        _require(
            self.band_stride >= 1 and self.band_width % self.band_stride == 0,
            f"sampling.band_stride must divide the band width of {self.band_width}",
            self.band_stride,
        )


@dataclass(frozen=True)
class CycleConfig:
    """One modality cycle: from the source to the target and back.

    Attributes:
        source: The modality whose anomalies are looked for.
        target: The modality in between.
        sign: +1 where anomalies are brighter than imagined, -1 darker, 0 either way.
    """

    source: str
    target: str
    sign: int = 1

    def __post_init__(self) -> None:
        for name in (self.source, self.target):
            _require(name in MODALITIES, f"a cycle's modality must be one of {MODALITIES}", name)
        _require(self.source != self.target, "a cycle needs two different modalities", self.source)
        _require(self.sign in (-1, 0, 1), "a cycle's sign must be -1, 0 or 1", self.sign)

    @property
    def name(self) -> str:
        """Name of the cycle in files, such as "FLAIR-T2w"."""
        return f"{self.source}-{self.target}"


@dataclass(frozen=True)
class ScoreConfig:
    """How the signals of one set of modalities become a score, a map and a mask.

    Attributes:
        modalities: What a subject must have for this to apply.
        weights: Weight of each signal: "cycle:FLAIR" is the residual of that source's cycle,
            "intensity:T2w" the normalised image, "atlas:T2w" how far it lies beyond what healthy
            tissue looks like at the same place; all in robust standard deviations (MAD).
        residual: "signed" keeps only what is brighter (or darker) than imagined; "absolute" and
            "squared" (published) do not.
        asymmetry_weight: Share of the other side's blurred score that is taken off, because most
            lesions are on one side and most bright healthy tissue is on both; 0 for none.
        median_mm: Edge of the 3-D median filter's box; 0 for none.
        erosion_mm: Rim of the brain that is left out.
        threshold_rule: How the scan's threshold is found: "fixed" takes `threshold_offset`; "otsu"
            adds a share of Otsu's threshold over the brighter half of the brain's scores; "edge"
            takes, between two bounds, the one whose contour runs along the strongest edges.
        threshold_offset: Constant of the rules "fixed" and "otsu", in score units.
        otsu_weight: Share of Otsu's threshold in the rule "otsu".
        edge_low: Lowest threshold that the rule "edge" considers, in score units.
        edge_high: Highest threshold that the rule "edge" considers.
        seed_threshold: A component counts only where the score exceeds this, in score units,
        min_seed_mm3: over at least this volume; 0 turns seeds off.
        map_scale: Score units over which the map rises from 0.5 (at the threshold) to 0.73.
        threshold: Value of the map above which a voxel belongs to the mask.
        min_fraction_of_largest: Components need this share of the largest one's volume.
        min_lesion_mm3: Components need this volume.
        rim_mm: How near to a lesion the rim that `erosion_mm` left out is given back.
        refine_mm: How far the map's contour may move to where the reference scan itself changes;
            0 leaves it.
        fill_holes: "none", "volume" (what the mask encloses), or "planes" (what it encloses in any
            plane of the grid).
    """

    modalities: tuple[str, ...]
    weights: dict[str, float]
    residual: Literal["signed", "absolute", "squared"] = "signed"
    asymmetry_weight: float = 0.25
    median_mm: float = 6.0
    erosion_mm: float = 3.0
    threshold_rule: Literal["fixed", "otsu", "edge"] = "edge"
    threshold_offset: float = 1.0
    otsu_weight: float = 0.5
    edge_low: float = 0.8
    edge_high: float = 2.0
    seed_threshold: float = 2.4
    min_seed_mm3: float = 80.0
    map_scale: float = 0.5
    threshold: float = 0.5
    min_fraction_of_largest: float = 0.2
    min_lesion_mm3: float = 0.0
    rim_mm: float = 4.5
    refine_mm: float = 0.0
    fill_holes: Literal["none", "volume", "planes"] = "planes"

    def __post_init__(self) -> None:
        _require(bool(self.modalities), "score.modalities is empty", None)
        _require(bool(self.weights), "score.weights is empty", None)
        for modality in self.modalities:
            _require(modality in MODALITIES, f"a modality must be one of {MODALITIES}", modality)
        for signal in self.weights:
            kind, _, modality = signal.partition(":")
            _require(
                kind in ("cycle", "intensity", "atlas") and modality in self.modalities,
                'a signal must be "cycle:M", "intensity:M" or "atlas:M", M among the modalities',
                signal,
            )
        _require(
            any(weight != 0 for weight in self.weights.values()),
            "score.weights needs a signal that counts",
            self.weights,
        )
        _require_choices(self, "score")
        _require_at_least(
            self,
            "score",
            median_mm=0,
            erosion_mm=0,
            otsu_weight=0,
            min_seed_mm3=0,
            min_lesion_mm3=0,
            rim_mm=0,
            refine_mm=0,
        )
        _require(self.median_mm <= 50, "score.median_mm must be at most 50", self.median_mm)
        for name in ("min_fraction_of_largest", "asymmetry_weight"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"score.{name} must lie in [0, 1]", value)
        _require(self.map_scale > 0, "score.map_scale must be positive", self.map_scale)
        _require(
            self.edge_low < self.edge_high <= self.edge_low + 50,
            "score.edge_low must be below edge_high, by 50 at most",
            (self.edge_low, self.edge_high),
        )
        _require(0 < self.threshold < 1, "score.threshold must lie in (0, 1)", self.threshold)

    @property
    def sources(self) -> tuple[str, ...]:
        """Modalities whose cycle must be computed, in order of preference."""
        return self._counting("cycle")

    @property
    def compared(self) -> tuple[str, ...]:
        """Modalities that are compared with the atlas, in order of preference."""
        return self._counting("atlas")

    def _counting(self, kind: str) -> tuple[str, ...]:
        return tuple(m for m in MODALITIES if self.weights.get(f"{kind}:{m}", 0.0) != 0.0)


@dataclass(frozen=True)
class TrainingConfig:
    """How the networks are trained.

    Attributes:
        iterations: Optimiser steps of each network.
        batch_size: Slices a step (over all processes).
        learning_rate: Peak rate of AdamW.
        warmup_iterations: Steps over which the rate rises linearly.
        schedule: "cosine" decay to zero after the warm-up, or "constant".
        weight_decay: AdamW's decoupled weight decay.
        gradient_clip: Largest norm of the gradient; 0 leaves it alone.
        ema_decay: Decay of the exponential moving average of the weights, which is what is saved.
        loss: "l2" (published) or "l1".
        loss_region: "brain" (healthy brain only) or "image" (published: every pixel).
        healthy_by: "pixel" hides the (dilated) lesion from input and loss; "slice" leaves out every
            slice that has any (published).
        lesion_dilation_mm: Growth of the hidden lesion.
        band_width: Width of the hidden band in training, in pixels.
        widest_band: Where larger than `band_width`, each sample's band is between the two wide, so
            that inference may choose its own width; 0 hides bands of one width (published).
        blob_radius_px: Largest semi-axis of a random ellipse that is hidden instead of a band in
            half of the samples; 0 hides bands only (published).
        last_timestep_fraction: Share of samples at the last time step (pure noise) beyond its
            turn, because few-step sampling leans on it; 0 draws uniformly (published).
        augment: Whether slices are flipped, moved, bent, shaded and rescaled in intensity.
        seed: Seed of weights, order and augmentation.
    """

    iterations: int = 4000
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_iterations: int = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 1e-2
    gradient_clip: float = 1.0
    ema_decay: float = 0.998
    loss: Literal["l1", "l2"] = "l2"
    loss_region: Literal["brain", "image"] = "brain"
    healthy_by: Literal["pixel", "slice"] = "pixel"
    lesion_dilation_mm: float = 5.0
    band_width: int = 16
    widest_band: int = 0
    blob_radius_px: float = 0.0
    last_timestep_fraction: float = 0.0
    augment: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        _require_choices(self, "training")
        _require_at_least(
            self,
            "training",
            iterations=1,
            batch_size=1,
            warmup_iterations=0,
            weight_decay=0,
            gradient_clip=0,
            lesion_dilation_mm=0,
            band_width=1,
            widest_band=0,
            blob_radius_px=0,
        )
        _require_seed(self.seed, "training")
        _require(self.learning_rate > 0, "training.learning_rate must be positive", None)
        _require(0 <= self.ema_decay < 1, "training.ema_decay must lie in [0, 1)", self.ema_decay)
        _require(
            0 <= self.last_timestep_fraction <= 1,
            "training.last_timestep_fraction must lie in [0, 1]",
            self.last_timestep_fraction,
        )


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a config into a dictionary that JSON can hold (tuples become lists)."""
    return {key: _plain(value) for key, value in asdict(config).items()}


def from_dict(cls: type[T], values: Any, *, where: str = "config") -> T:
    """Build a config from a JSON dictionary.

    Args:
        cls: One of the dataclasses of this module.
        values: The dictionary; missing keys take their defaults, and settings that are gone may be
            there with the value that they had (see `RETIRED`).
        where: Name of the dictionary in messages.

    Raises:
        ValueError: An unknown key, a value of the wrong type, or one out of range.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be an object, not {type(values).__name__}")
    values = without_retired(cls, values)
    hints = typing.get_type_hints(cls)
    known = {item.name for item in fields(cls)}  # type: ignore[arg-type]  # cls is a dataclass
    unknown = sorted(map(str, set(values) - known))
    if unknown:
        raise ValueError(f"{where} has unknown keys: {', '.join(unknown)}")
    try:
        return cls(**{k: _convert(hints[k], v, f"{where}.{k}") for k, v in values.items()})
    except TypeError as error:
        raise ValueError(f"{where} is incomplete: {error}") from None


def without_retired(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """Leave out the settings that are gone, where they have the value that they always had."""
    retired = RETIRED.get(cls.__name__, {})
    return {k: v for k, v in values.items() if k not in retired or v is not retired[k]}


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check one JSON value against its type hint and convert lists to tuples."""
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where=where)
    if origin is Literal:
        _require(value in arguments, f"{where} must be one of {arguments}", value)
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        rest = [item for item in arguments if item is not type(None)]
        return _convert(rest[0], value, where)
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), f"{where} must be a list", value)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_convert(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        _require(len(value) == len(arguments), f"{where} must have {len(arguments)} values", value)
        return tuple(
            _convert(h, v, f"{where}[{i}]")
            for i, (h, v) in enumerate(zip(arguments, value, strict=True))
        )
    if origin is dict:
        _require(isinstance(value, dict), f"{where} must be an object", value)
        return {str(k): _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    return _convert_scalar(hint, value, where)


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    """Check a scalar; an int is accepted where a float is asked for, a bool never is."""
    if hint is float:
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        _require(good and abs(value) < 1e12, f"{where} must be a finite number", value)
        return float(value)
    if hint is int:
        good = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**40
        _require(good, f"{where} must be an integer", value)
        return value
    _require(isinstance(value, hint), f"{where} must be a {hint.__name__}", value)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _require(condition: bool, message: str, value: Any) -> None:
    if not condition:
        raise ValueError(message if value is None else f"{message}, got {value!r}")


def _require_at_least(config: Any, where: str, **limits: float) -> None:
    for name, limit in limits.items():
        value = getattr(config, name)
        _require(value >= limit, f"{where}.{name} must be at least {limit}", value)


def _require_choices(config: Any, where: str) -> None:
    """Check every field that allows certain words only."""
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is Literal:
            words, value = typing.get_args(hint), getattr(config, name)
            _require(value in words, f"{where}.{name} must be one of {words}", value)


def _require_seed(seed: int, where: str) -> None:
    """Check that seeds derived from this one, for every slice, fit into 64 bits."""
    _require(0 <= seed < MAX_SEED, f"{where}.seed must lie in 0..{MAX_SEED - 1}", seed)


def describe_rule(config: ScoreConfig) -> str:
    """A score's threshold rule in words."""
    return {
        "fixed": f"{config.threshold_offset:g}",
        "otsu": f"{config.threshold_offset:g} + {config.otsu_weight:g} Otsu",
        "edge": f"strongest edge in {config.edge_low:g}..{config.edge_high:g}",
    }[config.threshold_rule]


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
        },
    ),
}

DIFFUSION_ONLY = {"num_inference_steps", "band_width", "band_stride", "band_axes"}
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
