"""The recipes say what they promise, and can be trained and stored as they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmccd_cli.config import MODALITIES, CycleConfig
from mmccd_cli.training.networks import NetworkSpec, network_specs
from mmccd_cli.training.recipes import CYCLES, RECIPES, Recipe
from mmccd_cli.training.run import initial_scores
from mmccd_cli.translation.masking import band_masks
from mmccd_cli.translation.schedule import Schedule

ALL = pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))


def test_the_paper_recipe_is_the_published_one() -> None:
    """Every number of the published table that a recipe holds."""
    assert set(RECIPES) == {"compact", "paper"}
    recipe = RECIPES["paper"]
    network = recipe.denoiser
    assert (network.base_channels, network.channel_multipliers) == (32, (1, 1, 2, 3, 4))
    assert (network.residual_blocks, network.attention_heads) == (2, 1)
    sizes = [128 // 2**level for level in network.attention_levels]
    assert (sizes, network.middle_attention) == ([32, 16, 8], True)
    assert network.dropout == 0.1
    assert recipe.diffusion.num_train_timesteps == 1000
    training = recipe.training
    assert (training.iterations, training.batch_size) == (100_000, 32)
    assert (training.learning_rate, training.ema_decay) == (1e-4, 0.9999)
    assert (training.loss_region, training.healthy_by) == ("image", "slice")
    assert (training.band_width, training.blob_radius_px, training.augment) == (16, 0.0, False)
    assert training.last_timestep_fraction == 0.0
    intensity = recipe.preprocessing.intensity
    assert (intensity.method, intensity.background) == ("percentile", -3.0)
    sampling = recipe.sampling
    bands = band_masks(128, 128, band_width=sampling.band_width, stride=sampling.band_stride)
    assert len(bands) * sampling.num_inference_steps == 12_800
    assert recipe.spacing_mm * 128 == 240


def test_the_compact_recipe_takes_a_thousand_times_fewer_passes() -> None:
    sampling = RECIPES["compact"].sampling
    bands = band_masks(128, 128, band_width=sampling.band_width, stride=sampling.band_stride)
    assert len(bands) * sampling.num_inference_steps == 12


@ALL
def test_any_one_modality_is_enough(recipe: Recipe) -> None:
    assert sorted(cycle.source for cycle in recipe.cycles) == sorted(MODALITIES)
    scores = initial_scores(recipe)
    assert [score.modalities for score in scores] == [(c.source,) for c in recipe.cycles]
    assert all(score.sources == score.modalities for score in scores)


def test_anomalies_are_bright_but_on_t1w() -> None:
    assert {c.source: c.sign for c in CYCLES} == {"FLAIR": 1, "T2w": 1, "T1w": -1}


@ALL
def test_networks_fit_their_task(recipe: Recipe) -> None:
    assert (recipe.unet.in_channels, recipe.unet.time_conditioned) == (1, False)
    assert (recipe.denoiser.in_channels, recipe.denoiser.time_conditioned) == (2, True)
    assert recipe.unet.out_channels == recipe.denoiser.out_channels == 1
    shared = replace(recipe.denoiser, in_channels=1, time_conditioned=False)
    assert shared == recipe.unet
    steps = recipe.sampling.num_inference_steps
    assert Schedule.from_config(recipe.diffusion).inference_timesteps(steps)[0] == 999
    assert 128 % recipe.unet.stride == 0


def translators_of(recipe: Recipe) -> list[NetworkSpec]:
    return [spec for spec in network_specs(recipe) if isinstance(spec, NetworkSpec)]


def test_the_restoration_network_comes_first_where_there_is_one() -> None:
    assert network_specs(RECIPES["compact"])[0].name == "restoration"
    assert len(network_specs(RECIPES["paper"])) == 7


@ALL
def test_each_network_is_trained_once(recipe: Recipe) -> None:
    """Three cycles of three networks each, of which FLAIR-T2w and T2w-FLAIR share two."""
    translators = translators_of(recipe)
    names = [spec.name for spec in translators]
    assert len(names) == len(set(names)) == 7
    for cycle in recipe.cycles:
        there, back = (cycle.source, cycle.target), (cycle.target, cycle.source)
        assert f"{'-'.join(there)}.diffusion" in names
        assert f"{'-'.join(there)}.unet" in names
        assert f"{'-'.join(back)}.unet" in names
    kinds = {spec.name: spec.unet for spec in translators}
    assert all((u is recipe.denoiser) == n.endswith(".diffusion") for n, u in kinds.items())


def test_one_cycle_needs_three_networks() -> None:
    recipe = replace(RECIPES["compact"], cycles=(CycleConfig("T1w", "T2w", sign=-1),))
    names = [spec.name for spec in translators_of(recipe)]
    assert names == ["T1w-T2w.diffusion", "T2w-T1w.unet", "T1w-T2w.unet"]
