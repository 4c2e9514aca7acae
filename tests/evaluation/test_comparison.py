"""Comparison models reconstruct slices, forget what they cannot know, and survive on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from training_data import make_dataset

from mmccd_cli.config import PreprocessingConfig, TrainingConfig
from mmccd_cli.errors import ComputeError, WeightsError
from mmccd_cli.evaluation.cases import load_case
from mmccd_cli.evaluation.comparison.files import (
    ComparisonModel,
    find_comparison_models,
    load_comparison_model,
    save_comparison_model,
)
from mmccd_cli.evaluation.comparison.networks import (
    KINDS,
    RESIDUALS,
    AutoEncoder,
    ComparisonConfig,
    Kind,
    build_network,
    coarse_noise,
    reconstruct,
    residual_of_volume,
    timesteps_back,
)
from mmccd_cli.evaluation.comparison.training import train_comparison_model
from mmccd_cli.evaluation.methods import ComparisonScorer
from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.inputs.subjects import find_subject
from mmccd_cli.progress import silent
from mmccd_cli.template import Template
from mmccd_cli.training.runtime import Runtime
from mmccd_cli.training.samples import SliceDataset
from mmccd_cli.training.trainer import TrainingListener, TrainingProgress

RUNTIME = Runtime(device=torch.device("cpu"), report_every=5, checkpoint_every=4)
TRAINING = TrainingConfig(
    iterations=20, batch_size=4, learning_rate=1e-2, warmup_iterations=2, augment=False
)


def small(kind: Kind, shape: tuple[int, int] = (16, 16)) -> ComparisonConfig:
    return ComparisonConfig(
        kind=kind, modality="FLAIR", shape=shape, width=4, latent=8, base_channels=8
    )


def train(
    folder: Path,
    kind: Kind,
    *,
    data: SliceDataset | None = None,
    training: TrainingConfig = TRAINING,
    report: TrainingListener = silent,
) -> dict[str, Tensor]:
    folder.mkdir(exist_ok=True)
    return train_comparison_model(
        small(kind),
        data or make_dataset(),
        training,
        runtime=RUNTIME,
        folder=folder,
        report=report,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction_keeps_shape_and_does_not_depend_on_the_batch(kind: Kind) -> None:
    torch.manual_seed(0)
    config = small(kind, (32, 48))
    network = build_network(config).eval()
    for parameter in network.parameters():  # heads start at zero
        torch.nn.init.normal_(parameter, std=0.1)
    x, noise = torch.randn(2, 3, 1, 32, 48)
    whole = reconstruct(network, config, x, noise=noise)
    assert whole.shape == x.shape
    assert not torch.allclose(whole[0], whole[1])
    alone = reconstruct(network, config, x[1:2], noise=noise[1:2])
    torch.testing.assert_close(alone, whole[1:2], rtol=1e-4, atol=1e-4)


def test_diffusion_that_knows_the_answer_gives_it_back() -> None:
    config = small("ddpm")
    x, noise = torch.randn(2, 2, 1, 16, 16)
    times: list[int] = []

    class Knows(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            times.append(int(t[0]))
            assert not torch.allclose(noisy, x)
            return x

    torch.testing.assert_close(reconstruct(Knows(), config, x, noise=noise), x)
    assert times == timesteps_back(config) == [250, 200, 150, 100, 50]


def test_coarse_noise_is_coarse_and_of_its_size() -> None:
    config = replace(small("dae", (128, 128)), noise_std=0.8)
    noise = coarse_noise(config, 64, torch.Generator().manual_seed(0))
    assert noise.shape == (64, 1, 128, 128)
    # Bilinear interpolation between independent values keeps 4/9 of their variance on average.
    assert float(noise.std()) == pytest.approx(0.8 * 2 / 3, rel=0.05)
    step = (noise[..., 1:] - noise[..., :-1]).abs().mean()
    assert float(step) < 0.25 * float(noise.abs().mean())


def test_a_variational_autoencoder_draws_only_when_told() -> None:
    network = build_network(small("vae"))
    assert isinstance(network, AutoEncoder)
    x = torch.randn(2, 1, 16, 16)
    calm, divergence = network(x)
    torch.testing.assert_close(network(x)[0], calm)
    assert not torch.allclose(network(x, torch.randn(2, 8))[0], calm)
    assert divergence.shape == (2,)
    assert (divergence > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss(tmp_path: Path, kind: Kind) -> None:
    losses: list[float] = []
    data = make_dataset()
    data.images["FLAIR"][:] = torch.where(data.healthy | data.hidden, 180, 32)  # easy to learn
    weights = train(tmp_path, kind, data=data, report=lambda p: losses.append(p.loss))
    assert losses[-1] < 0.5 * losses[0]
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_training_continues_bit_for_bit(tmp_path: Path, kind: Kind) -> None:
    def kill(progress: TrainingProgress) -> None:
        if progress.iteration == 10:  # the last checkpoint is at 8
            raise KeyboardInterrupt

    straight = train(tmp_path / "straight", kind)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", kind, report=kill)
    seen: list[int] = []
    resumed = train(tmp_path / "killed", kind, report=lambda p: seen.append(p.iteration))
    assert seen == [10, 15, 20]
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], value) for name, value in resumed.items())


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_repeatable_and_never_sees_the_lesion(tmp_path: Path, kind: Kind) -> None:
    short = replace(TRAINING, iterations=3)
    other = make_dataset()
    lesion = other.hidden
    other.images["FLAIR"][lesion] = 255 - other.images["FLAIR"][lesion]
    one = train(tmp_path / "one", kind, training=short)
    two = train(tmp_path / "two", kind, data=other, training=short)
    assert all(torch.equal(one[name], two[name]) for name in one)


class Zero(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize(("modality", "sign"), [("FLAIR", 1), ("T1w", -1)])
def test_residuals_of_a_volume(modality: str, sign: int) -> None:
    config = replace(small("ddpm"), modality=modality)
    image = np.random.default_rng(0).normal(size=(16, 16, 40)).astype(np.float32)
    brain = np.zeros(image.shape, dtype=bool)
    brain[2:14, 2:14, 5:35] = True
    found = residual_of_volume(Zero(), config, image, brain=brain, scale=0.5, device=RUNTIME.device)
    np.testing.assert_allclose(found, np.where(brain, sign * image / 0.5, 0), atol=1e-6)


def test_training_that_diverges_stops(tmp_path: Path) -> None:
    wild = replace(TRAINING, learning_rate=1e30, gradient_clip=0.0)
    with pytest.raises(ComputeError, match="dae-FLAIR"):
        train(tmp_path, "dae", training=wild)


def make_model(kind: Kind = "dae") -> ComparisonModel:
    config, affine = small(kind, (48, 48)), np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -96
    return ComparisonModel(
        config=config,
        network=build_network(config),
        template=Template({}, np.ones((48, 48, 48), dtype=bool), affine),
        preprocessing=PreprocessingConfig(template_registration="none"),
        training={"subjects": ["a", "b"]},
        constants={"signed": {"fixed": 1.5, "adaptive": 0.5}},
    )


def test_an_absolute_residual_counts_both_ways(
    tiny_phantom: Phantom, write_subject: Callable[..., Path], tmp_path: Path
) -> None:
    model = replace(make_model("ddpm"), network=Zero())
    case = load_case(find_subject(write_subject(tmp_path, tiny_phantom)), healthy=True)
    scores = [ComparisonScorer(model, residual).score(case) for residual in RESIDUALS]
    signed, absolute = (score.smoothed.raw for score in scores if score is not None)
    assert (signed < 0).any()
    less = np.abs(signed) - absolute  # between samples splines may swing a little to either side
    assert less.max() < 0.15 * np.abs(signed).max()
    assert (less < 1e-3).mean() > 0.95
    assert absolute.sum() > np.abs(signed).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_a_comparison_model_survives_the_way_to_disk(tmp_path: Path, kind: Kind) -> None:
    saved = make_model(kind)
    save_comparison_model(tmp_path / kind, saved)
    model = load_comparison_model(tmp_path / kind)
    assert model.config == saved.config
    assert model.preprocessing == saved.preprocessing
    assert model.subjects == {"a", "b"}
    assert model.constants == {"signed": {"fixed": 1.5, "adaptive": 0.5}}
    assert model.template.spacing_mm == (4.0, 4.0, 4.0)
    assert not model.network.training
    for folder in (tmp_path, tmp_path / kind):
        assert find_comparison_models(folder) == [tmp_path / kind]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("rival.json", b"{", b"["),
        ("rival.json", b'"format": 1', b'"format": 99'),
        ("rival.json", b'"kind"', b'"odd": 1, "kind"'),
        ("weights.safetensors", b"{", b"nothing"),
        ("template.safetensors", b"{", b"nothing"),
    ],
)
def test_a_damaged_model_is_named(tmp_path: Path, file: str, old: bytes, new: bytes) -> None:
    save_comparison_model(tmp_path, make_model())
    path = tmp_path / file
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(WeightsError, match=str(tmp_path)) as caught:
        load_comparison_model(tmp_path)
    assert "train-comparison" in str(caught.value.next_step)


def test_a_folder_without_models_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no comparison model"):
        find_comparison_models(tmp_path)
    with pytest.raises(WeightsError, match="not a usable"):
        load_comparison_model(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"shape": (20, 16)}, {"kind": "gan"}, {"denoising_steps": 0}, {"start_timestep": 1000}],
)
def test_impossible_configurations_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"should|must|beyond"):
        replace(small("ddpm"), **change)  # type: ignore[arg-type]  # wrong on purpose
