"""Settings survive JSON unchanged, and nothing unknown, mistyped or out of range gets in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmccd_cli import config as c
from mmccd_cli.config import MODALITIES, from_dict, to_dict
from mmccd_cli.errors import UsageError
from mmccd_cli.training.recipes import RECIPES

positive = st.floats(1e-6, 1e6)
share = st.floats(0, 1)
below_one = st.floats(0, 1, exclude_max=True)
seeds = st.integers(0, c.MAX_SEED - 1)

intensities = st.builds(
    c.IntensityConfig,
    method=st.sampled_from(["median-mad", "percentile"]),
    scale=positive,
    clip=st.none() | positive,
    background=st.floats(-1e6, 1e6),
)
preprocessings = st.builds(
    c.PreprocessingConfig,
    intensity=intensities,
    template_registration=st.sampled_from(["affine", "none"]),
)
diffusions = st.builds(
    c.DiffusionConfig,
    num_train_timesteps=st.integers(1, 5000),
    beta_start=st.floats(1e-6, 1e-3),
    beta_end=st.floats(1e-3, 0.5),
)
cycles = st.permutations(MODALITIES).flatmap(
    lambda order: st.builds(
        c.CycleConfig,
        source=st.just(order[0]),
        target=st.just(order[1]),
        sign=st.sampled_from([-1, 0, 1]),
    )
)
trainings = st.builds(
    c.TrainingConfig,
    iterations=st.integers(1, 10**6),
    batch_size=st.integers(1, 512),
    learning_rate=positive,
    warmup_iterations=st.integers(0, 1000),
    schedule=st.sampled_from(["cosine", "constant"]),
    weight_decay=share,
    gradient_clip=share,
    ema_decay=below_one,
    loss_region=st.sampled_from(["brain", "image"]),
    healthy_by=st.sampled_from(["pixel", "slice"]),
    lesion_dilation_mm=st.floats(0, 50),
    band_width=st.integers(1, 64),
    blob_radius_px=st.floats(0, 64),
    last_timestep_fraction=share,
    augment=st.booleans(),
    seed=seeds,
)


@st.composite
def unets(draw: st.DrawFn) -> c.UNetConfig:
    multipliers = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    return c.UNetConfig(
        in_channels=draw(st.integers(1, 4)),
        base_channels=8 * draw(st.integers(1, 8)),
        channel_multipliers=multipliers,
        residual_blocks=draw(st.integers(1, 3)),
        attention_levels=tuple(sorted(draw(st.sets(st.integers(0, len(multipliers) - 1))))),
        middle_attention=draw(st.booleans()),
        attention_heads=draw(st.sampled_from([1, 2, 4])),
        time_conditioned=draw(st.booleans()),
        resample=draw(st.sampled_from(["residual", "plain"])),
        dropout=draw(below_one),
        norm_groups=draw(st.sampled_from([1, 2, 4, 8])),
        pixel_unshuffle=draw(st.integers(1, 4)),
    )


@st.composite
def samplings(draw: st.DrawFn) -> c.SamplingConfig:
    stride = draw(st.integers(1, 8))
    return c.SamplingConfig(
        method=draw(st.sampled_from(["mmccd", "cyclic-unet"])),
        num_inference_steps=draw(st.integers(1, 1000)),
        band_width=stride * draw(st.integers(1, 4)),
        band_stride=stride,
        seed=draw(seeds),
    )


@st.composite
def scores(draw: st.DrawFn) -> c.ScoreConfig:
    modalities = tuple(draw(st.lists(st.sampled_from(MODALITIES), min_size=1, unique=True)))
    signals = [f"{kind}:{m}" for kind in ("cycle", "intensity") for m in modalities]
    weight = st.floats(0.01, 3) | st.floats(-3, -0.01)
    return c.ScoreConfig(
        modalities=modalities,
        weights=draw(st.dictionaries(st.sampled_from(signals), weight, min_size=1)),
        residual=draw(st.sampled_from(["signed", "absolute", "squared"])),
        asymmetry_weight=draw(share),
        median_mm=draw(st.floats(0, 20)),
        erosion_mm=draw(st.floats(0, 20)),
        threshold_rule=draw(st.sampled_from(["fixed", "otsu", "edge"])),
        threshold_offset=draw(st.floats(-10, 10)),
        otsu_weight=draw(share),
        edge_low=draw(st.floats(-1, 1)),
        edge_high=draw(st.floats(1.5, 9)),
        seed_threshold=draw(st.floats(-10, 10)),
        min_seed_mm3=draw(st.floats(0, 1e6)),
        rim_mm=draw(st.floats(0, 20)),
        map_scale=draw(positive),
        threshold=draw(st.floats(0.01, 0.99)),
        min_fraction_of_largest=draw(share),
        min_lesion_mm3=draw(st.floats(0, 1e6)),
        fill_holes=draw(st.sampled_from(["none", "volume", "planes"])),
    )


@settings(max_examples=120, deadline=None)
@given(
    st.one_of(
        intensities,
        preprocessings,
        diffusions,
        cycles,
        trainings,
        unets(),
        samplings(),
        scores(),
    )
)
def test_json_round_trip(config: Any) -> None:
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_recipes_survive_json(recipe: Any) -> None:
    for config in (recipe.unet, recipe.denoiser, recipe.training, recipe.preprocessing):
        assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_missing_keys_take_their_defaults() -> None:
    assert from_dict(c.SamplingConfig, {"seed": 3}) == c.SamplingConfig(seed=3)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (c.SamplingConfig, {"sead": 1, "steps": 2}, "config has unknown keys: sead, steps"),
        (
            c.PreprocessingConfig,
            {"intensity": {"skale": 1.0}},
            "config.intensity has unknown keys: skale",
        ),
        (c.CycleConfig, {"source": "FLAIR"}, "config is incomplete: target is missing"),
        (c.SamplingConfig, [1], "config must be an object, got \\[1\\]"),
        (c.PreprocessingConfig, {"intensity": 3}, "config.intensity must be an object"),
        (c.SamplingConfig, {"seed": 1.0}, "config.seed must be a valid integer, got 1.0"),
        (c.SamplingConfig, {"seed": True}, "config.seed must be a valid integer, got True"),
        (c.SamplingConfig, {"seed": "1"}, "config.seed must be a valid integer, got '1'"),
        (c.SamplingConfig, {"second_pass": True}, "config has unknown keys: second_pass"),
        (c.UNetConfig, {"time_conditioned": 1}, "config.time_conditioned must be a valid boolean"),
        (c.IntensityConfig, {"scale": True}, "config.scale must be a valid number"),
        (c.IntensityConfig, {"scale": float("nan")}, "config.scale must be a finite number"),
        (c.IntensityConfig, {"scale": float("inf")}, "config.scale must be a finite number"),
        (c.IntensityConfig, {"clip": "wide"}, "config.clip must be a valid number"),
        (
            c.SamplingConfig,
            {"method": "mmcd"},
            "config.method must be 'mmccd' or 'cyclic-unet', got 'mmcd'",
        ),
        (c.SamplingConfig, {"method": ["mmccd"]}, "config.method must be"),
        (
            c.UNetConfig,
            {"channel_multipliers": 4},
            "config.channel_multipliers must be a valid array",
        ),
        (c.UNetConfig, {"channel_multipliers": [1, "2"]}, r"config.channel_multipliers\[1\]"),
        (
            c.ScoreConfig,
            {"modalities": ["FLAIR"], "weights": [1.0]},
            "config.weights must be an object",
        ),
        (
            c.ScoreConfig,
            {"modalities": [1], "weights": {}},
            r"modalities\[0\] must be a valid string, got 1",
        ),
    ],
)
def test_wrong_json_is_named(cls: type, values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(cls, values)


def test_retired_settings_are_left_out_where_they_have_their_only_value() -> None:
    old = {"band_width": 16, "band_axes": "both"}
    assert from_dict(c.SamplingConfig, old) == c.SamplingConfig()
    assert old["band_axes"] == "both", "what is handed in is not changed"
    with pytest.raises(ValueError, match="config has unknown keys: band_axes"):
        from_dict(c.SamplingConfig, {"band_axes": "rows"})


def test_the_shipped_bundle_is_understood() -> None:
    path = Path(__file__).parent.parent / "weights" / "glioma-compact" / "bundle.json"
    from mmccd_cli.weights.bundle import BundleConfig

    values = json.loads(path.read_bytes())["bundle"]
    config = from_dict(BundleConfig, values, where="bundle")
    written = to_dict(config)
    assert written["scores"] == values["scores"]
    assert from_dict(BundleConfig, written) == config
    with pytest.raises(ValueError, match=r"bundle\.template\.shape\[0\] must be greater than"):
        from_dict(
            BundleConfig,
            values | {"template": {"affine": [0.0] * 16, "shape": [0, 1, 1]}},
            where="bundle",
        )


def test_settings_that_do_not_fit_are_a_usage_error_in_one_sentence() -> None:
    assert c.choose_sampling(c.SamplingConfig(), "paper", seed=None).num_inference_steps == 100
    with pytest.raises(
        UsageError, match=r"band_stride must divide the band width of 16 pixels, got 5\.$"
    ):
        c.choose_sampling(c.SamplingConfig(), band_stride=5)
    with pytest.raises(UsageError, match=r"learning_rate must be greater than 0, got -1\.0\.$"):
        c.with_changes(c.TrainingConfig(), {"learning_rate": -1.0, "seed": None})


SCORE = {"modalities": ("FLAIR",), "weights": {"cycle:FLAIR": 1.0}}


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (c.IntensityConfig, {"scale": 0.0}),
        (c.IntensityConfig, {"clip": 0.0}),
        (c.IntensityConfig, {"method": "z-score"}),
        (c.PreprocessingConfig, {"template_registration": "rigid"}),
        (c.UNetConfig, {"base_channels": 0}),
        (c.UNetConfig, {"channel_multipliers": ()}),
        (c.UNetConfig, {"channel_multipliers": (1, 0)}),
        (c.UNetConfig, {"norm_groups": 0}),
        (c.UNetConfig, {"norm_groups": 5}),
        (c.UNetConfig, {"attention_heads": 0}),
        (c.UNetConfig, {"attention_heads": 3, "attention_levels": (0,)}),
        (c.UNetConfig, {"attention_heads": 3, "middle_attention": True}),
        (c.UNetConfig, {"attention_levels": (4,)}),
        (c.UNetConfig, {"attention_levels": (-1,)}),
        (c.UNetConfig, {"dropout": 1.0}),
        (c.UNetConfig, {"pixel_unshuffle": 0}),
        (c.UNetConfig, {"resample": "bilinear"}),
        (c.DiffusionConfig, {"num_train_timesteps": 0}),
        (c.DiffusionConfig, {"beta_start": 0.0}),
        (c.DiffusionConfig, {"beta_start": 0.03}),
        (c.DiffusionConfig, {"beta_end": 1.0}),
        (c.SamplingConfig, {"method": "ddpm"}),
        (c.SamplingConfig, {"num_inference_steps": 0}),
        (c.SamplingConfig, {"band_width": 0}),
        (c.SamplingConfig, {"band_stride": 3}),
        (c.SamplingConfig, {"band_stride": 0}),
        (c.SamplingConfig, {"seed": -1}),
        (c.SamplingConfig, {"seed": c.MAX_SEED}),
        (c.CycleConfig, {"source": "FLAIR", "target": "FLAIR"}),
        (c.CycleConfig, {"source": "FLAIR", "target": "PD"}),
        (c.CycleConfig, {"source": "FLAIR", "target": "T2w", "sign": 2}),
        (c.ScoreConfig, {**SCORE, "modalities": ()}),
        (c.ScoreConfig, {**SCORE, "modalities": ("T1c",)}),
        (c.ScoreConfig, {**SCORE, "weights": {}}),
        (c.ScoreConfig, {**SCORE, "weights": {"cycle:FLAIR": 0.0}}),
        (c.ScoreConfig, {**SCORE, "weights": {"cycle:T2w": 1.0}}),
        (c.ScoreConfig, {**SCORE, "weights": {"residual:FLAIR": 1.0}}),
        (c.ScoreConfig, {**SCORE, "residual": "cubed"}),
        (c.ScoreConfig, {**SCORE, "map_scale": 0.0}),
        (c.ScoreConfig, {**SCORE, "threshold": 1.0}),
        (c.ScoreConfig, {**SCORE, "threshold": 0.0}),
        (c.ScoreConfig, {**SCORE, "median_mm": -1.0}),
        (c.ScoreConfig, {**SCORE, "median_mm": 1e6}),
        (c.ScoreConfig, {**SCORE, "asymmetry_weight": 1.5}),
        (c.ScoreConfig, {**SCORE, "asymmetry_weight": -0.1}),
        (c.ScoreConfig, {**SCORE, "threshold_rule": "best"}),
        (c.ScoreConfig, {**SCORE, "edge_low": 2.0, "edge_high": 1.0}),
        (c.ScoreConfig, {**SCORE, "edge_high": 1e9}),
        (c.ScoreConfig, {**SCORE, "min_seed_mm3": -1.0}),
        (c.ScoreConfig, {**SCORE, "rim_mm": -1.0}),
        (c.ScoreConfig, {**SCORE, "fill_holes": True}),
        (c.ScoreConfig, {**SCORE, "erosion_mm": -1.0}),
        (c.ScoreConfig, {**SCORE, "min_fraction_of_largest": 1.1}),
        (c.TrainingConfig, {"iterations": 0}),
        (c.TrainingConfig, {"batch_size": 0}),
        (c.TrainingConfig, {"learning_rate": 0.0}),
        (c.TrainingConfig, {"warmup_iterations": -1}),
        (c.TrainingConfig, {"schedule": "step"}),
        (c.TrainingConfig, {"ema_decay": 1.0}),
        (c.TrainingConfig, {"healthy_by": "voxel"}),
        (c.TrainingConfig, {"band_width": 0}),
        (c.TrainingConfig, {"last_timestep_fraction": 1.5}),
        (c.TrainingConfig, {"seed": c.MAX_SEED}),
    ],
)
def test_values_out_of_range_are_refused(cls: type, values: dict[str, Any]) -> None:
    """Never by another exception than ValueError: loading a bundle relies on it."""
    with pytest.raises(ValueError):  # noqa: PT011  # each message is its own
        cls(**values)


def test_sources_are_those_whose_cycle_counts_in_order_of_preference() -> None:
    score = c.ScoreConfig(
        modalities=("T1w", "FLAIR", "T2w"),
        weights={"cycle:T1w": 0.5, "cycle:FLAIR": 1.0, "cycle:T2w": 0.0, "intensity:T2w": 1.0},
    )
    assert score.sources == ("FLAIR", "T1w")


def test_stride_of_a_network() -> None:
    assert c.UNetConfig(channel_multipliers=(1, 2, 3), pixel_unshuffle=2).stride == 8
    assert c.UNetConfig(channel_multipliers=(1,)).stride == 1
