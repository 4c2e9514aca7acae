"""Every setting that changes a number: frozen, checked when it is made, and written as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from mmccd_cli.errors import UsageError
from mmccd_cli.files import check_json, explain_invalid

T = TypeVar("T")

MODALITIES = ("FLAIR", "T2w", "T1w")
"""All modalities, in the order in which one is preferred as the reference image."""

SIGNALS = ("cycle", "restoration", "atlas", "intensity")
"""Kinds of signals that a score may combine."""

MAX_SEED = 2**27
"""Seeds lie below; the generator of every sample and slice is seeded with about 2^36 times that."""

CHECKED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""Refused are unknown names, text or bool for a number, and numbers that are not finite."""

RETIRED: dict[str, Any] = {
    "band_axes": "both",
    "bias_correction": False,
    "scale_shift_norm": True,
    "second_pass": False,
}
"""Settings that are gone, with the only value that they ever had in a bundle: files may say it."""


def _known(modality: str) -> str:
    if modality not in MODALITIES:
        raise ValueError(f"a modality must be one of {', '.join(MODALITIES)}, got {modality!r}")
    return modality


Space = Literal["native", "template"]
"""Whose grid a map lies on: the reference scan's, or the template's."""
Modality = Annotated[str, AfterValidator(_known)]
Count = Annotated[int, Ge(1), Lt(2**40)]
Seed = Annotated[int, Ge(0), Lt(MAX_SEED)]
Number = Annotated[float, Gt(-1e12), Lt(1e12)]
Positive = Annotated[float, Gt(0), Lt(1e12)]
NotNegative = Annotated[float, Ge(0), Lt(1e12)]
Share = Annotated[float, Ge(0), Le(1)]
BelowOne = Annotated[float, Ge(0), Lt(1)]
Degree = Annotated[int, Ge(0), Le(4)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
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
    scale: Positive = 0.5
    clip: Positive | None = 4.0
    background: Number = -3.0


@dataclass(frozen=True, config=CHECKED)
class PreprocessingConfig:
    """How a subject is brought into the training space.

    Attributes:
        intensity: Normalisation inside the brain.
        template_registration: "affine" or "none" (headers are trusted).
    """

    intensity: IntensityConfig = field(default_factory=IntensityConfig)
    template_registration: Literal["affine", "none"] = "affine"


@dataclass(frozen=True, kw_only=True, config=CHECKED)
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
        time_conditioned: Whether blocks receive a time-step embedding, which scales and shifts
            their second norm.
        resample: How resolution changes: "residual" (a residual block that pools or repeats
            inside, as published) or "plain" (average, nearest neighbour).
        dropout: Dropout probability inside the blocks.
        norm_groups: Groups of each group norm; as many as channels makes it an instance norm.
        pixel_unshuffle: Factor by which pixels are folded into channels first (1: not at all).
    """

    in_channels: Count = 1
    out_channels: Count = 1
    base_channels: Annotated[Count, Ge(2)] = 32  # the time embedding has a sine and a cosine
    channel_multipliers: Annotated[tuple[Count, ...], MinLen(1)] = (1, 2, 3, 4)
    residual_blocks: Count = 1
    attention_levels: tuple[int, ...] = ()
    middle_attention: bool = False
    attention_heads: Count = 1
    time_conditioned: bool = False
    resample: Literal["residual", "plain"] = "plain"
    dropout: BelowOne = 0.0
    norm_groups: Count = 8
    pixel_unshuffle: Count = 1

    def __post_init__(self) -> None:
        levels = len(self.channel_multipliers)
        widths = [self.base_channels * factor for factor in self.channel_multipliers]
        if any(width % self.norm_groups for width in widths):
            raise ValueError(
                "norm_groups must divide the channels of every level, "
                f"got {self.norm_groups} and {widths}"
            )
        if not all(0 <= level < levels for level in self.attention_levels):
            raise ValueError(
                f"attention_levels must lie in 0..{levels - 1}, got {self.attention_levels}"
            )
        attending = [widths[level] for level in self.attention_levels]
        attending += widths[-1:] * self.middle_attention
        if any(width % self.attention_heads for width in attending):
            raise ValueError(
                "attention_heads must divide the channels of every level that attends, "
                f"got {self.attention_heads} and {attending}"
            )

    @property
    def stride(self) -> int:
        """Height and width of the input must be multiples of this many pixels."""
        return self.pixel_unshuffle * 2 ** (len(self.channel_multipliers) - 1)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class RestorationConfig:
    """A denoising network that restores all scans of a slice at once.

    Attributes:
        unet: Its architecture; the scans of `MODALITIES` and which of them are there go in, the
            scans come out.
        noise_grids: Points a side of the coarse grids from which its noise is enlarged.
        noise_amplitude: Least and largest standard deviation of the noise, in robust standard
            deviations of the scan; each scan's is drawn between them.
        shown_fraction: How often each scan is shown in training, so that any of them may be absent.

    Source: Kascenas et al., MIDL 2022: denoising autoencoders with coarse noise.
    """

    unet: UNetConfig
    noise_grids: Annotated[tuple[Annotated[int, Ge(2), Le(1024)], ...], MinLen(1)] = (6, 9, 14, 22)
    noise_amplitude: tuple[NotNegative, Positive] = (0.5, 2.2)
    shown_fraction: Annotated[float, Gt(0), Le(1)] = 0.6

    def __post_init__(self) -> None:
        scans, unet = len(MODALITIES), self.unet
        if (unet.in_channels, unet.out_channels, unet.time_conditioned) != (
            2 * scans,
            scans,
            False,
        ):
            raise ValueError(
                f"a restoration network has {2 * scans} channels in, {scans} out and no time steps"
            )
        if self.noise_amplitude[0] > self.noise_amplitude[1]:
            raise ValueError(f"noise_amplitude must rise, got {self.noise_amplitude}")


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class FociConfig:
    """A network that marks small lesions, taught by painted ones.

    Attributes:
        unet: Its architecture; each slice of the scans of `MODALITIES` with its two neighbours, the
            other side of the brain, and which scans are there go in, log odds come out.
        shown_fraction: How often each scan is shown in training, so that any of them may be absent.
    """

    unet: UNetConfig
    shown_fraction: Annotated[float, Gt(0), Le(1)] = 0.6

    def __post_init__(self) -> None:
        channels, unet = 5 * len(MODALITIES), self.unet
        if (unet.in_channels, unet.out_channels, unet.time_conditioned) != (channels, 1, False):
            raise ValueError(
                f"a network of foci has {channels} channels in, one out and no time steps"
            )


@dataclass(frozen=True, config=CHECKED)
class DiffusionConfig:
    """The noise schedule of training.

    Attributes:
        num_train_timesteps: T of the paper.
        beta_start: First beta of the linear schedule.
        beta_end: Last beta of the linear schedule.
    """

    num_train_timesteps: Count = 1000
    beta_start: Number = 1e-4
    beta_end: Number = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                "the betas must rise within (0, 1), "
                f"got beta_start {self.beta_start} and beta_end {self.beta_end}"
            )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SamplingConfig:
    """How a slice is imagined at test time.

    Attributes:
        method: "mmccd" (masked conditional diffusion forward) or "cyclic-unet" (one plain pass).
        num_inference_steps: DDIM steps; 1 is a regression from pure noise.
        band_width: Width of a hidden band in pixels.
        band_stride: Distance between neighbouring bands in pixels; must divide `band_width`.
        seed: Seed of all noise; every slice has its own generator derived from it.
    """

    method: Literal["mmccd", "cyclic-unet"] = "mmccd"
    num_inference_steps: Count = 1
    band_width: Count = 16
    band_stride: Count = 8
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.band_width % self.band_stride:
            raise ValueError(
                f"band_stride must divide the band width of {self.band_width} pixels, "
                f"got {self.band_stride}"
            )


@dataclass(frozen=True, config=CHECKED)
class CycleConfig:
    """One modality cycle: from the source to the target and back.

    Attributes:
        source: The modality whose anomalies are looked for.
        target: The modality in between.
        sign: +1 where anomalies are brighter than imagined, -1 darker, 0 either way.
    """

    source: Modality
    target: Modality
    sign: Annotated[int, Ge(-1), Le(1)] = 1

    def __post_init__(self) -> None:
        if self.source == self.target:
            raise ValueError(f"a cycle needs two different modalities, got {self.source} twice")

    @property
    def name(self) -> str:
        """Name of the cycle in files, such as "FLAIR-T2w"."""
        return f"{self.source}-{self.target}"


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ConfidenceConfig:
    """The logistic regression that says how sure it is that a candidate is a lesion.

    Attributes:
        weights: One for each of: decimal logarithm of the volume in ml, mean score of its
            brightest 80 mm3, mean score.
        bias: Logit where everything is 0.
        above_threshold: Whether scores count from the scan's threshold, as where small foci
            count; see `mmccd_cli.training.confidence`.
        sphericity_weight: Weight of the sphericity, which is 1 for a ball and next to nothing for a
            net; 0 in bundles up to version 3.7.
    """

    weights: tuple[Number, Number, Number]
    bias: Number
    above_threshold: bool = False
    sphericity_weight: Number = 0.0


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ScoreConfig:
    """How the signals of one set of modalities become a score, a map and a mask.

    Attributes:
        modalities: What a subject must have for this to apply.
        weights: Weight of each signal: "cycle:FLAIR" is the residual of that source's cycle,
            "restoration:FLAIR" what the restoration network takes away from the scan when it sees
            all of `modalities`, "intensity:T2w" the normalised image, "atlas:T2w" how far it lies
            beyond what healthy tissue looks like at the same place; all in robust standard
            deviations (MAD).
        mirrored: Of "cycle" and "restoration", those whose signals are means of what the networks
            say of the head and of its mirror image: they depend on no side, and vary less.
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
        edge_compactness: The rule "edge" considers no threshold whose mask is less compact than
            this; 1 is a ball, thin sheets of ordinary tissue are near 0. Where no threshold is
            left, the highest is taken.
        seed_threshold: A component counts only where the score exceeds this, in score units,
        min_seed_mm3: over at least this volume; 0 turns seeds off.
        map_scale: Score units over which the logit of the map rises by 1.
        map_offset: Logit of the map at the scan's threshold; 0 makes it 0.5 there.
        threshold: Value of the map above which a voxel belongs to the mask.
        judged_above: The calibrated one, where `threshold` is another: what the map shows above it
            is what a confidence is of. None where they are the same.
        min_fraction_of_largest: Components need this share of the largest one's volume.
        min_lesion_mm3: Components need this volume.
        confidence: How sure it is that a component is a lesion; None leaves it to seeds and to the
            share of the largest one. Where it is known, these two serve to find the scan's
            threshold only.
        min_confidence: Confidence that components of the mask need.
        foci_weight: Factor of the log odds that the network of small foci gives, where they are
            above 0, as log odds of the map; 0 leaves the network out.
        foci_bias: Added to them. The map is what the score or the foci make it, whichever is more.
        rim_mm: How near to a lesion the rim that `erosion_mm` left out is given back.
        refine_mm: How far the map's contour may move to where the reference scan itself changes;
            0 leaves it.
        fill_holes: "none", "volume" (what the mask encloses), or "planes" (what it encloses in any
            plane of the grid).
    """

    modalities: Annotated[tuple[Modality, ...], MinLen(1)]
    weights: Annotated[dict[str, Number], MinLen(1)]
    mirrored: tuple[Literal["cycle", "restoration"], ...] = ()
    residual: Literal["signed", "absolute", "squared"] = "signed"
    asymmetry_weight: Share = 0.25
    median_mm: Annotated[float, Ge(0), Le(50)] = 6.0
    erosion_mm: NotNegative = 3.0
    threshold_rule: Literal["fixed", "otsu", "edge"] = "edge"
    threshold_offset: Number = 1.0
    otsu_weight: NotNegative = 0.5
    edge_low: Number = 0.8
    edge_high: Number = 2.0
    edge_compactness: Share = 0.0
    seed_threshold: Number = 2.4
    min_seed_mm3: NotNegative = 80.0
    map_scale: Positive = 0.5
    map_offset: Annotated[float, Ge(-10), Le(10)] = 0.0
    threshold: Annotated[float, Gt(0), Lt(1)] = 0.5
    judged_above: Annotated[float, Gt(0), Lt(1)] | None = None
    min_fraction_of_largest: Share = 0.2
    min_lesion_mm3: NotNegative = 0.0
    confidence: ConfidenceConfig | None = None
    min_confidence: Share = 0.5
    foci_weight: NotNegative = 0.0
    foci_bias: Annotated[float, Ge(-10), Le(10)] = 0.0
    rim_mm: NotNegative = 4.5
    refine_mm: NotNegative = 0.0
    fill_holes: Literal["none", "volume", "planes"] = "planes"

    def __post_init__(self) -> None:
        for signal in self.weights:
            kind, _, modality = signal.partition(":")
            if kind not in SIGNALS or modality not in self.modalities:
                raise ValueError(
                    f"a signal must be KIND:M, KIND among {', '.join(SIGNALS)} and "
                    f"M among the modalities {', '.join(self.modalities)}, got {signal!r}"
                )
        if not any(self.weights.values()):
            raise ValueError(f"weights must have a signal that counts, got {self.weights}")
        if not self.edge_low < self.edge_high <= self.edge_low + 50:
            raise ValueError(
                "edge_low must be below edge_high, by 50 at most, "
                f"got {self.edge_low} and {self.edge_high}"
            )

    @property
    def sources(self) -> tuple[str, ...]:
        """Modalities whose cycle must be computed, in order of preference."""
        return self._counting("cycle")

    @property
    def restored(self) -> tuple[str, ...]:
        """Modalities whose restoration must be computed, in order of preference."""
        return self._counting("restoration")

    @property
    def compared(self) -> tuple[str, ...]:
        """Modalities that are compared with the atlas, in order of preference."""
        return self._counting("atlas")

    @property
    def has_foci(self) -> bool:
        """Whether small foci join the map."""
        return self.foci_weight > 0

    @property
    def foci_signal(self) -> str:
        """Name of the signal of the network of small foci."""
        return f"foci:{self.modalities[0]}"

    @property
    def rule_in_words(self) -> str:
        """How the scan's threshold is found, with its numbers."""
        return {
            "fixed": f"{self.threshold_offset:g}",
            "otsu": f"{self.threshold_offset:g} + {self.otsu_weight:g} Otsu",
            "edge": f"strongest edge in {self.edge_low:g}..{self.edge_high:g}",
        }[self.threshold_rule]

    def _counting(self, kind: str) -> tuple[str, ...]:
        return tuple(m for m in MODALITIES if self.weights.get(f"{kind}:{m}", 0.0) != 0.0)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TrainingConfig:
    """How the networks are trained, with the squared error as loss.

    Attributes:
        iterations: Optimiser steps of each network.
        batch_size: Slices a step (over all processes).
        learning_rate: Peak rate of AdamW.
        warmup_iterations: Steps over which the rate rises linearly.
        schedule: "cosine" decay to zero after the warm-up, or "constant".
        weight_decay: AdamW's decoupled weight decay.
        gradient_clip: Largest norm of the gradient; 0 leaves it alone.
        ema_decay: Decay of the exponential moving average of the weights, which is what is saved.
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

    iterations: Count = 4000
    batch_size: Count = 16
    learning_rate: Annotated[float, Gt(0), Lt(1e38)] = 1e-3
    warmup_iterations: Annotated[int, Ge(0), Lt(2**40)] = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: NotNegative = 1e-2
    gradient_clip: NotNegative = 1.0
    ema_decay: BelowOne = 0.998
    loss_region: Literal["brain", "image"] = "brain"
    healthy_by: Literal["pixel", "slice"] = "pixel"
    lesion_dilation_mm: NotNegative = 5.0
    band_width: Count = 16
    widest_band: Annotated[int, Ge(0), Lt(2**40)] = 0
    blob_radius_px: NotNegative = 0.0
    last_timestep_fraction: Share = 0.0
    augment: bool = True
    seed: Seed = 0


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a config into a dictionary that JSON can hold (tuples become lists)."""
    return json.loads(json.dumps(asdict(config)))


def from_dict(cls: type[T], values: Any, *, where: str = "config") -> T:
    """Build a config from a JSON dictionary.

    Args:
        cls: One of the dataclasses of this module.
        values: The dictionary; missing keys take their defaults.
        where: Name of the dictionary in messages.

    Raises:
        ValueError: An unknown key, a value of the wrong type, or one out of range.
    """
    return check_json(cls, values, where, retired=RETIRED)


def without_retired(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the settings that are gone, where they have the value that they always had."""
    return {k: v for k, v in values.items() if k not in RETIRED or v != RETIRED[k]}


def with_changes(config: T, changes: Mapping[str, Any], *, next_step: str | None = None) -> T:
    """Return a config with some settings changed; a change to None leaves one as it is.

    Raises:
        UsageError: A value is out of range, or does not fit to the others.
    """
    wanted: Any = {name: value for name, value in changes.items() if value is not None}
    try:
        return replace(config, **wanted)  # type: ignore[type-var]  # always a config
    except ValidationError as error:
        raise UsageError(
            f"The settings do not fit together: {explain_invalid(error)}.", next_step=next_step
        ) from error


@dataclass(frozen=True, config=CHECKED)
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
            "num_inference_steps": 100,
        },
    ),
}

DIFFUSION_ONLY = {"num_inference_steps", "band_width", "band_stride"}
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
    if chosen.get("method") == "cyclic-unet" and DIFFUSION_ONLY & set(given):
        raise UsageError(
            "Steps and bands mean nothing to a plain translation there and back.",
            cause="The method is cyclic-unet, by --method, --preset or --like.",
            next_step="Leave out --steps, --band-width and --band-stride, or add --method mmccd.",
        )
    advice = "Change --steps, --band-width, --band-stride or --seed, or give --preset alone."
    return with_changes(default, chosen, next_step=advice)


def check_space(space: str) -> None:
    """Refuse what is no `Space`.

    Raises:
        UsageError: It is none.
    """
    if space not in (known := get_args(Space)):
        raise UsageError(f"There is no space {space!r}.", next_step=f"Give {' or '.join(known)}.")
