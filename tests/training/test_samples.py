"""Shards and samples: pairs stay pairs, lesions stay hidden, and each sample stands alone."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from training_data import SMALL, SMALL_DENOISER

from mmccd_cli.config import DiffusionConfig, TrainingConfig
from mmccd_cli.errors import DataError
from mmccd_cli.template import Quantisation, Template
from mmccd_cli.training import samples
from mmccd_cli.training.networks import Example, NetworkSpec, TranslationLoss
from mmccd_cli.training.runtime import Runtime
from mmccd_cli.training.samples import Sample, SliceDataset, draw_sample, load_dataset
from mmccd_cli.training.slices import (
    SubjectShard,
    hash_slices,
    read_index,
    read_shard,
    read_template,
    write_index,
    write_shard,
    write_template,
)
from mmccd_cli.training.trainer import sample_generator
from mmccd_cli.translation.schedule import Schedule

PLAIN = TrainingConfig(lesion_dilation_mm=0.0, augment=False)
K, H, W = 4, 24, 32
TEMPLATE = Template({}, np.ones((1, 1, 1), dtype=bool), np.diag([2.0, 2.0, 2.0, 1.0]))
LESION = (slice(2, 4), slice(10, 14), slice(12, 18))


def drawn_by(dataset: SliceDataset, seed: int, *, augment: bool = False) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    return draw_sample(dataset, "FLAIR", "T2w", generator=generator, augment=augment)


def subject_shard(number: int, *, lesion: bool = True) -> SubjectShard:
    """A subject whose levels tell subject, slice and modality: 60 n + 10 k, T2w one more."""
    brain = np.zeros((K, H, W), dtype=bool)
    brain[:, 4:20, 6:26] = True
    base = np.full((K, H, W), 32, dtype=np.uint8)
    for k in range(K):
        base[k][brain[k]] = 60 * number + 10 * k + 40
    mask = np.zeros((K, H, W), dtype=bool)
    mask[LESION] = lesion
    images = {"FLAIR": base, "T2w": np.where(brain, base + 1, base)}
    images["FLAIR"] = np.where(mask, 255, base).astype(np.uint8)
    return SubjectShard(images, brain, mask)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three subjects, the second without a lesion, the third in `val`."""
    for number, subject in enumerate(("a", "b", "c")):
        write_shard(tmp_path, subject, subject_shard(number, lesion=subject != "b"))
    counts = {"slices": 1, "healthy_slices": 1}
    index: dict[str, Any] = {
        "modalities": ["FLAIR", "T2w"],
        "spacing_mm": [2.0, 2.0, 2.0],
        "background": -3.0,
        "quantisation": asdict(Quantisation()),
        "affine": np.diag([2.0, 2.0, 2.0, 1.0]).ravel().tolist(),
        "shape": [1, 1, 1],
        "preprocessing": {},
        "subjects": [
            {"id": id, "split": "val" if id == "c" else "train", "files": {}, **counts}
            for id in "abc"
        ],
    }
    write_index(tmp_path, index)
    write_template(tmp_path, TEMPLATE)
    return tmp_path


# Shards


def test_a_hash_tells_what_decides_the_slices_and_nothing_else(shards: Path) -> None:
    known, index = hash_slices(shards, ["a", "b"]), read_index(shards)
    of_people = {"made": {"date": "another day"}, "subjects": index["subjects"][:2]}
    write_index(shards, {**index, **of_people})
    write_shard(shards, "c", subject_shard(0))
    assert hash_slices(shards, ["a", "b"]) == known == load_dataset(shards, PLAIN).sha256
    others: dict[str, Any] = {
        "affine": np.diag([2.0, 2.0, 3.0, 1.0]).ravel().tolist(),
        "preprocessing": {"intensity": {"scale": 1.0}},
        "quantisation": asdict(Quantisation(step=0.1)),
    }
    seen = {known, hash_slices(shards, ["b", "a"])}
    for name, value in others.items():
        write_index(shards, {**index, name: value})
        seen.add(hash_slices(shards, ["a", "b"]))
    write_index(shards, index)
    write_template(shards, replace(TEMPLATE, mask=~TEMPLATE.mask))
    seen.add(hash_slices(shards, ["a", "b"]))
    write_template(shards, TEMPLATE)
    write_shard(shards, "b", subject_shard(1))
    seen.add(hash_slices(shards, ["a", "b"]))
    assert len(seen) == 7
    (shards / "a.safetensors").unlink()
    with pytest.raises(DataError, match=r"a\.safetensors cannot be read"):
        hash_slices(shards, ["a", "b"])


@given(st.lists(st.floats(-9, 99, width=32), min_size=1, max_size=20))
@settings(deadline=None)
def test_eight_bits_err_by_half_a_step_and_what_is_beyond_takes_the_last_level(
    values: list[float],
) -> None:
    quantisation, array = Quantisation(), np.array([*values, -4, 4], dtype=np.float32)
    levels = quantisation.encode(array)
    assert (levels.min(), levels.max()) == (0, 255)
    error = np.abs(quantisation.decode(levels) - array.clip(-4, 4))
    assert error.max() <= 4 / 255 + 1e-6


def test_a_shard_comes_back_as_it_was(tmp_path: Path) -> None:
    shard = subject_shard(1)
    write_shard(tmp_path, "x", shard)
    found = read_shard(tmp_path, "x")
    assert found.images.keys() == shard.images.keys()
    for name, levels in shard.images.items():
        np.testing.assert_array_equal(found.images[name], levels)
        assert found.images[name].dtype == np.uint8
    np.testing.assert_array_equal(found.brain, shard.brain)
    np.testing.assert_array_equal(found.lesion, shard.lesion)
    assert found.lesion.dtype == bool
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.safetensors"):
        read_shard(tmp_path, "gone")
    write_shard(tmp_path, "cut", subject_shard(0))
    path = tmp_path / "cut.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"cut\.safetensors"):
        read_shard(tmp_path, "cut")
    with pytest.raises(DataError, match="template"):
        read_template(tmp_path, np.eye(4))


def test_template_comes_back(tmp_path: Path) -> None:
    image = np.linspace(-3, 3, 60, dtype=np.float32).reshape(3, 4, 5)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    write_template(tmp_path, Template({"FLAIR": image}, image > 0, affine))
    found = read_template(tmp_path, affine.ravel().tolist())
    np.testing.assert_allclose(found.images["FLAIR"], image, atol=4 / 255 + 1e-6)
    np.testing.assert_array_equal(found.mask, image > 0)
    np.testing.assert_array_equal(found.affine, affine)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not a prepared data set"),
        ("{", "does not describe a prepared data set"),
        ("[]", "does not describe a prepared data set"),
        ('{"format": 99}', "does not describe a prepared data set"),
        ('{"format": 1, "modalities": [], "subjects": []}', "does not describe"),
    ],
)
def test_another_index_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_index(tmp_path)


# Choice of slices and tissue


def test_modalities_are_paired_by_subject_and_slice_whatever_the_order(shards: Path) -> None:
    dataset = load_dataset(shards, PLAIN)
    assert dataset.subjects == ("a", "b")
    middle = dataset.images["FLAIR"][:, 0, 6, 8].tolist()
    assert middle == [60 * n + 10 * k + 40 for n in (0, 1) for k in range(K)]
    assert dataset.images["T2w"][:, 0, 6, 8].tolist() == [level + 1 for level in middle]
    index = json.loads((shards / "dataset.json").read_text())
    index["subjects"].reverse()
    index["modalities"].reverse()
    (shards / "dataset.json").write_text(json.dumps(index))
    dataset = load_dataset(shards, PLAIN)
    assert dataset.subjects == ("b", "a")
    difference = dataset.images["T2w"].int() - dataset.images["FLAIR"].int()
    assert (difference[dataset.healthy] == 1).all()


def test_splits_and_chosen_subjects(shards: Path) -> None:
    assert load_dataset(shards, PLAIN, split="val").subjects == ("c",)
    assert load_dataset(shards, PLAIN, subjects=["c", "a"]).subjects == ("c", "a")
    with pytest.raises(DataError, match=r"d\.safetensors cannot be read"):
        load_dataset(shards, PLAIN, subjects=["a", "d"])
    with pytest.raises(DataError, match="no healthy slice"):
        load_dataset(shards, PLAIN, split="test")


def test_healthy_by_pixel_keeps_the_slice_and_leaves_out_the_lesion(shards: Path) -> None:
    dataset = load_dataset(shards, PLAIN, subjects=["a"])
    shard = subject_shard(0)
    np.testing.assert_array_equal(dataset.hidden[:, 0], shard.lesion)
    np.testing.assert_array_equal(dataset.healthy[:, 0], shard.brain & ~shard.lesion)


def test_healthy_by_slice_leaves_out_every_slice_with_a_lesion(shards: Path) -> None:
    dataset = load_dataset(shards, replace(PLAIN, healthy_by="slice"))
    assert dataset.images["FLAIR"][:, 0, 6, 8].tolist() == [40, 50, 100, 110, 120, 130]
    assert not dataset.hidden.any()


def test_the_lesion_is_grown_by_millimetres(shards: Path) -> None:
    config = replace(PLAIN, lesion_dilation_mm=5.0)  # two pixels of 2 mm
    dataset = load_dataset(shards, config, subjects=["a"])
    expected = np.zeros((K, H, W), dtype=bool)
    expected[2:4, 8:16, 10:20] = True
    np.testing.assert_array_equal(dataset.hidden[:, 0], expected)
    assert not (dataset.healthy & dataset.hidden).any()


def test_slices_with_hardly_any_healthy_brain_are_left_out(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = 16 * 20
    monkeypatch.setattr(samples, "MINIMAL_HEALTHY_PIXELS", pixels)
    assert len(load_dataset(shards, PLAIN, subjects=["a"])) == 2
    monkeypatch.setattr(samples, "MINIMAL_HEALTHY_PIXELS", pixels + 1)
    with pytest.raises(DataError, match="no healthy slice"):
        load_dataset(shards, PLAIN, subjects=["a"])


# Samples


def test_without_augmentation_a_sample_is_its_slice(shards: Path) -> None:
    dataset = load_dataset(shards, PLAIN)
    sample = drawn_by(dataset, 3)
    difference = (sample.target - sample.source)[sample.healthy]
    torch.testing.assert_close(difference, torch.full_like(difference, 8 / 255))
    assert sample.source.shape == (1, 1, H, W)


def test_a_sample_is_decided_by_its_generator(shards: Path) -> None:
    dataset = load_dataset(shards, PLAIN)
    first, again, other = (drawn_by(dataset, seed, augment=True) for seed in (3, 3, 4))
    assert torch.equal(first.source, again.source)
    assert torch.equal(first.healthy, again.healthy)
    assert not torch.equal(first.source, other.source)


def test_every_slice_is_drawn(shards: Path) -> None:
    dataset = load_dataset(shards, PLAIN)
    samples = [drawn_by(dataset, seed) for seed in range(100)]
    drawn = {int(sample.target[0, 0, 6, 8] * 1000) for sample in samples}
    assert len(drawn) == len(dataset)


def augmented(dataset: SliceDataset, count: int = 40) -> Sample:
    drawn = [drawn_by(dataset, seed, augment=True) for seed in range(count)]
    names = ("source", "target", "healthy", "hidden")
    return Sample(**{name: torch.cat([getattr(s, name) for s in drawn]) for name in names})


def textured() -> SliceDataset:
    """One slice with the same texture in both modalities, and a lesion."""
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    brain = (rows - 32) ** 2 + (columns - 32) ** 2 < 24**2
    texture = 128 + 60 * torch.sin(rows / 4) * torch.cos(columns / 5)
    image = torch.where(brain, texture, torch.tensor(32.0)).to(torch.uint8)[None, None]
    hidden = ((rows - 26) ** 2 + (columns - 30) ** 2 < 36)[None, None]
    return SliceDataset(
        images={"FLAIR": image, "T2w": image.clone()},
        healthy=brain[None, None] & ~hidden,
        hidden=hidden,
        subjects=("a",),
        quantisation=Quantisation(),
        background=-3.0,
    )


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def test_augmentation_moves_both_modalities_and_masks_alike() -> None:
    sample = augmented(textured())
    found = [
        correlation(source[healthy], target[healthy])
        for source, target, healthy in zip(
            sample.source, sample.target, sample.healthy, strict=True
        )
    ]
    assert min(found) > 0.9, "the texture of both still coincides, whatever the shading"
    assert not (sample.healthy & sample.hidden).any()
    assert sample.hidden.flatten(1).any(dim=1).all()
    assert len({int(h.sum()) for h in sample.healthy}) > 20, "each is deformed in its own way"


def test_augmentation_keeps_contrasts_true() -> None:
    """Tissue that is brighter stays brighter: intensities change smoothly and monotonically."""
    dataset = textured()
    sample = augmented(dataset)
    inside = sample.source[sample.healthy]
    original = dataset.values("FLAIR", 0)[dataset.healthy[0]]
    assert inside.std() == pytest.approx(float(original.std()), rel=0.15)
    assert inside.mean() == pytest.approx(float(original.mean()), abs=0.1)
    gains = [
        s[h].std() / original.std() for s, h in zip(sample.source, sample.healthy, strict=True)
    ]
    assert 0.03 < float(torch.stack(gains).std()) < 0.2


def test_augmentation_leaves_the_background_alone() -> None:
    """At test time it is one constant; a shaded one tells which gain was drawn."""
    dataset = textured()
    sample = augmented(dataset, 5)
    corner = sample.source[:, 0, :2, :2]
    torch.testing.assert_close(corner, torch.full_like(corner, -3.0), atol=4 / 255, rtol=0)


# What the networks get to see


def draw(dataset: SliceDataset, kind: str, config: TrainingConfig, index: int = 0) -> Example:
    """One sample as a network of this kind meets it."""
    unet = SMALL if kind == "unet" else SMALL_DENOISER
    loss = TranslationLoss(
        spec=NetworkSpec(kind=kind, source="FLAIR", target="T2w", unet=unet),
        dataset=dataset,
        schedule=Schedule.from_config(DiffusionConfig()),
        config=config,
        runtime=Runtime(device=torch.device("cpu")),
    )
    return loss.draw(sample_generator(config.seed, 0, index))


def with_lesion_levels(dataset: SliceDataset, level: int) -> SliceDataset:
    images = {
        name: torch.where(dataset.hidden, torch.tensor(level, dtype=torch.uint8), levels)
        for name, levels in dataset.images.items()
    }
    return replace(dataset, images=images)


@pytest.mark.parametrize("kind", ["unet", "diffusion"])
@pytest.mark.parametrize("blobs", [0.0, 8.0])
def test_the_lesion_never_reaches_input_or_loss(shards: Path, kind: str, blobs: float) -> None:
    """Whatever the lesion looks like, in either modality, the network cannot tell."""
    config = replace(PLAIN, blob_radius_px=blobs)
    dataset = load_dataset(shards, config, subjects=["a"])
    bright, dark = with_lesion_levels(dataset, 255), with_lesion_levels(dataset, 0)
    touched = 0
    for index in range(16):
        first = draw(bright, kind, config, index)
        second = draw(dark, kind, config, index)
        assert torch.equal(first.inputs, second.inputs), "input"
        assert torch.equal(first.region, second.region), "region"
        target, other, region = first.target, second.target, first.region
        touched += int(not torch.equal(target, other))
        assert torch.equal(target * region, other * region), "loss"
    assert touched, "some of the slices hold the lesion"


def test_the_published_loss_region_leaves_out_the_lesion_only(shards: Path) -> None:
    config = replace(PLAIN, loss_region="image")
    dataset = load_dataset(shards, config, subjects=["a"])
    for index in range(8):
        region = draw(dataset, "diffusion", config, index).region
        assert int((region == 0).sum()) in (0, 4 * 6)
    config = replace(config, loss_region="brain")
    region = draw(dataset, "diffusion", config).region
    assert region.sum() <= 16 * 20


def test_every_sample_has_its_own_band_and_time_step(shards: Path) -> None:
    dataset = load_dataset(shards, PLAIN, subjects=["b"])
    config = replace(PLAIN, band_width=8)
    drawn = [draw(dataset, "diffusion", config, index) for index in range(24)]
    hidden = []
    for inputs, _, _, _ in drawn:
        levels = (inputs[:, 1:] + 4) / (8 / 255)
        hidden.append((levels - levels.round()).abs() > 1e-3)  # noise is on no level
    masks = torch.cat(hidden)
    assert len(masks.unique(dim=0)) > 15
    assert ((masks.any(dim=3).sum(dim=(1, 2)) <= 8) | (masks.any(dim=2).sum(dim=(1, 2)) <= 8)).all()
    assert len({int(t) for *_, t in drawn}) > 15


def test_the_last_time_step_can_be_preferred(shards: Path) -> None:
    dataset = load_dataset(shards, PLAIN, subjects=["b"])
    config = replace(PLAIN, last_timestep_fraction=0.5)
    last = [int(draw(dataset, "diffusion", config, i).timesteps) == 999 for i in range(60)]
    assert 15 < sum(last) < 45


def test_without_hiding_the_published_condition_is_the_slice_itself(shards: Path) -> None:
    """The plain network sees all of a healthy slice, and noise nowhere."""
    dataset = load_dataset(shards, PLAIN, subjects=["b"])
    inputs, target, _, _ = draw(dataset, "unet", PLAIN)
    inside = dataset.healthy[:1]
    difference = (target - inputs)[inside]
    torch.testing.assert_close(difference, torch.full_like(difference, 8 / 255))
