"""Settings survive JSON unchanged, and nothing unknown, mistyped or out of range gets in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmccd_cli import config as c
from mmccd_cli.config import MODALITIES, from_dict, to_dict
from mmccd_cli.errors import UsageError
from mmccd_cli.training.recipes import RECIPES


def varied(cls: Any, **chosen: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Configs with every field drawn from its type and range, but for those that are chosen."""
    drawn = {name: st.from_type(t) for name, t in get_type_hints(cls, include_extras=True).items()}
    return st.builds(cls, **{**drawn, **chosen})


@st.composite
def unets(draw: st.DrawFn) -> c.UNetConfig:
    levels = draw(st.integers(1, 4))
    return draw(
        varied(
            c.UNetConfig,
            base_channels=st.integers(1, 8).map(lambda n: 8 * n),
            channel_multipliers=st.tuples(*[st.integers(1, 4)] * levels),
            attention_levels=st.sets(st.integers(0, levels - 1)).map(tuple),
            attention_heads=st.sampled_from([1, 2, 4]),
            norm_groups=st.sampled_from([1, 2, 4, 8]),
        )
    )


@st.composite
def scores(draw: st.DrawFn) -> c.ScoreConfig:
    modalities = tuple(draw(st.lists(st.sampled_from(MODALITIES), min_size=1, unique=True)))
    signals = [f"{kind}:{m}" for kind in ("cycle", "intensity", "atlas") for m in modalities]
    weight = st.floats(0.01, 3) | st.floats(-3, -0.01)
    return draw(
        varied(
            c.ScoreConfig,
            modalities=st.just(modalities),
            weights=st.dictionaries(st.sampled_from(signals), weight, min_size=1),
            edge_low=st.floats(-1, 1),
            edge_high=st.floats(1.5, 9),
        )
    )


CONFIGS = st.one_of(
    varied(c.IntensityConfig),
    varied(c.PreprocessingConfig, intensity=varied(c.IntensityConfig)),
    varied(c.TrainingConfig),
    varied(c.DiffusionConfig, beta_start=st.floats(1e-6, 1e-3), beta_end=st.floats(1e-3, 0.5)),
    st.permutations(MODALITIES).flatmap(
        lambda m: varied(c.CycleConfig, source=st.just(m[0]), target=st.just(m[1]))
    ),
    st.integers(1, 8).flatmap(
        lambda stride: varied(
            c.SamplingConfig,
            band_stride=st.just(stride),
            band_width=st.integers(1, 4).map(lambda n: n * stride),
        )
    ),
    unets(),
    scores(),
)


@settings(max_examples=120, deadline=None)
@given(CONFIGS)
def test_json_round_trip(config: Any) -> None:
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config
    assert replace(config) == config
    assert "weights" in to_dict(config) or hash(replace(config)) == hash(config)


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
    with pytest.raises(UsageError, match="mean nothing to a plain translation"):
        c.choose_sampling(c.SamplingConfig(), "fast", num_inference_steps=5)
    with pytest.raises(UsageError, match="mean nothing to a plain translation"):
        c.choose_sampling(c.SamplingConfig(), method="cyclic-unet", num_inference_steps=5)
    assert c.choose_sampling(c.SamplingConfig(), "fast", method="mmccd", band_stride=4)
    with pytest.raises(UsageError, match="seed must be less") as caught:
        c.choose_sampling(c.SamplingConfig(), seed=1 << 40)
    assert "--seed" in str(caught.value.next_step)
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
