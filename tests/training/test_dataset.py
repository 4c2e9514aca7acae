"""From NIfTI files to shards to a trained bundle to signals, on three phantoms."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from training_data import tiny_recipe
from typer.testing import CliRunner

from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.cli.app import app
from mmccd_cli.config import MODALITIES
from mmccd_cli.errors import DataError, UsageError
from mmccd_cli.inputs.nifti import make_grid, read_nifti, write_nifti
from mmccd_cli.inputs.phantom import Phantom, make_phantom
from mmccd_cli.inputs.scans import read_image
from mmccd_cli.inputs.subjects import find_subject
from mmccd_cli.preprocessing.subject import prepare_subject
from mmccd_cli.signals import SignalModel
from mmccd_cli.template import Quantisation, Template
from mmccd_cli.training import dataset
from mmccd_cli.training.dataset import (
    PreparedDataset,
    PrepareSettings,
    SliceSource,
    assign_splits,
    check_source,
    prepare_dataset,
    read_lesion,
    read_split,
)
from mmccd_cli.training.normal_ranges import fit_normal_ranges
from mmccd_cli.training.recipes import CYCLES, RECIPES
from mmccd_cli.training.run import BundleText, Training
from mmccd_cli.training.runtime import Runtime
from mmccd_cli.training.slices import (
    read_index,
    read_shard,
    read_template,
    read_volumes,
    write_index,
)
from mmccd_cli.weights.bundle import verify_bundle

SPLIT = {"train": ["BraTS2021_00000", "BraTS2021_00002"], "val": ["BraTS2021_00003"]}
SETTINGS = PrepareSettings(recipe=replace(RECIPES["compact"], spacing_mm=6.0))
WriteSubject = Callable[..., Path]


@dataclass(frozen=True)
class Prepared:
    """Three phantoms on the way through `prepare`, made once for all tests."""

    data: Path
    shards: Path
    phantoms: dict[str, Phantom]
    result: PreparedDataset


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, write_subject: WriteSubject) -> Prepared:
    """As the BraTS 2021 release holds them, where the label of a lesion need not be 1."""
    root = tmp_path_factory.mktemp("brats")
    phantoms = {}
    for seed, name in enumerate(sorted(i for ids in SPLIT.values() for i in ids)):
        phantoms[name] = make_phantom(seed, shape=(50, 56, 46), spacing_mm=(4, 4, 4))
        write_subject(root / "data", phantoms[name], id=name, lesion=4)
    result = prepare_dataset(root / "data", root / "shards", SETTINGS, split=SPLIT)
    return Prepared(root / "data", root / "shards", phantoms, result)


@pytest.fixture(scope="session")
def unregistered(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the same phantoms, as they lie in their common space."""
    folder = tmp_path_factory.mktemp("unregistered")
    template = read_template(prepared.shards, read_index(prepared.shards)["affine"])
    settings = replace(SETTINGS.recipe.preprocessing, template_registration="none")
    as_they_lie = replace(SETTINGS, recipe=replace(SETTINGS.recipe, preprocessing=settings))
    prepare_dataset(prepared.data, folder, as_they_lie, split=SPLIT, template=template)
    return folder


# What is written


def test_every_subject_is_written_with_its_split(prepared: Prepared) -> None:
    assert prepared.result.subjects == tuple(sorted(prepared.phantoms))
    assert prepared.result.skipped == ()
    index = read_index(prepared.shards)
    splits = {entry["id"]: entry["split"] for entry in index["subjects"]}
    assert splits == {i: name for name, ids in SPLIT.items() for i in ids}
    assert index["modalities"] == ["FLAIR", "T2w", "T1w"]
    for entry in index["subjects"]:
        assert not [n for n in entry["notes"] if "template" in n], "there was none to lie beside"
        assert set(entry["files"]) == {"FLAIR", "T2w", "T1w"}
        assert all(len(digest) == 64 for digest in entry["files"].values())
        assert 0 < entry["healthy_slices"] < entry["slices"]
    names = {path.name for path in prepared.shards.iterdir()}
    assert names == {f"{i}.safetensors" for i in prepared.phantoms} | {
        "dataset.json",
        "template.safetensors",
    }


def test_the_grid_is_straight_and_holds_every_brain(prepared: Prepared) -> None:
    index = read_index(prepared.shards)
    affine, shape = np.array(index["affine"]).reshape(4, 4), index["shape"]
    np.testing.assert_array_equal(affine[:3, :3], 6 * np.eye(3))
    assert index["spacing_mm"] == [6.0, 6.0, 6.0]
    assert shape[0] % 16 == shape[1] % 16 == 0
    for phantom in prepared.phantoms.values():
        points = np.argwhere(phantom.brain) @ phantom.affine[:3, :3].T + phantom.affine[:3, 3]
        at = (points - affine[:3, 3]) / 6
        assert (at > -0.5).all()
        assert (at < np.array(shape) - 0.5).all()


def test_brain_and_lesion_keep_volume_and_place(prepared: Prepared, unregistered: Path) -> None:
    """Labels go to the new grid by at least half of a voxel, so they do not grow."""
    affine = np.array(read_index(unregistered)["affine"]).reshape(4, 4)
    for name, phantom in prepared.phantoms.items():
        shard = read_shard(unregistered, name)
        for mask, truth, tolerance in (
            (shard.brain, phantom.brain, 0.03),
            (shard.lesion, phantom.lesion & phantom.brain, 0.15),
        ):
            assert mask.sum() * 6**3 == pytest.approx(truth.sum() * 4**3, rel=tolerance)
            k, i, j = np.argwhere(mask).mean(axis=0)
            there = phantom.affine @ [*np.argwhere(truth).mean(axis=0), 1]
            np.testing.assert_allclose(affine @ [i, j, k, 1], there, atol=1.5)
        assert not (shard.lesion & ~shard.brain).any()


def test_subjects_are_registered_to_their_own_mean(prepared: Prepared, unregistered: Path) -> None:
    template = read_template(prepared.shards, np.eye(4))
    image, mask = np.moveaxis(template.images["T1w"], 2, 0), np.moveaxis(template.mask, 2, 0)

    def likeness(folder: Path) -> list[float]:
        shards = [read_shard(folder, name) for name in prepared.phantoms]
        inside = [shard.brain & mask for shard in shards]
        return [
            float(np.corrcoef(shard.images["T1w"][both], image[both])[0, 1])
            for shard, both in zip(shards, inside, strict=True)
        ]

    assert np.mean(likeness(prepared.shards)) > np.mean(likeness(unregistered))
    for name in prepared.phantoms:
        ours, as_it_lay = read_shard(prepared.shards, name), read_shard(unregistered, name)
        assert overlap(ours.brain, as_it_lay.brain).dice > 0.9, "they hardly move"
        shares = [s.lesion.sum() / s.brain.sum() for s in (ours, as_it_lay)]
        assert shares[0] == pytest.approx(shares[1], rel=0.15)


def test_images_are_normalised_and_the_outside_is_background(prepared: Prepared) -> None:
    intensity = SETTINGS.recipe.preprocessing.intensity
    quantisation = Quantisation()
    for name in prepared.phantoms:
        shard = read_shard(prepared.shards, name)
        for levels in shard.images.values():
            values = quantisation.decode(levels)
            assert abs(np.median(values[shard.brain])) < 0.1
            spread = np.quantile(np.abs(values[shard.brain]), 0.68)
            assert spread == pytest.approx(intensity.scale, rel=0.1)
            outside = values[~shard.brain]
            np.testing.assert_allclose(outside, intensity.background, atol=4 / 255 + 1e-6)


def test_modalities_are_not_swapped(prepared: Prepared) -> None:
    """The lesion is bright on FLAIR and T2w only, and fluid on T2w only."""
    shard = read_shard(prepared.shards, "BraTS2021_00000")
    healthy = shard.brain & ~shard.lesion
    fluid = healthy & (shard.images["T2w"] > np.quantile(shard.images["T2w"][healthy], 0.95))
    lesion_contrast, fluid_contrast = (
        {m: np.median(v[where]) - np.median(v[healthy]) for m, v in shard.images.items()}
        for where in (shard.lesion, fluid)
    )
    assert min(lesion_contrast["FLAIR"], lesion_contrast["T2w"]) > lesion_contrast["T1w"] + 10
    assert fluid_contrast["T2w"] > 20
    assert max(fluid_contrast["FLAIR"], fluid_contrast["T1w"]) < -10


def test_the_template_is_the_symmetric_mean_of_the_training_subjects(
    prepared: Prepared, unregistered: Path
) -> None:
    template = read_template(prepared.shards, np.eye(4))
    shards = [read_shard(unregistered, name) for name in SPLIT["train"]]
    lesions = np.logical_or.reduce([s.lesion for s in shards])
    everywhere = np.logical_and.reduce([s.brain for s in shards])
    everywhere &= ~ndimage.binary_dilation(lesions | lesions[:, ::-1])
    for name, image in template.images.items():
        np.testing.assert_array_equal(image, image[::-1])
        mean = np.mean([Quantisation().decode(s.images[name]) for s in shards], axis=0)
        mean = (mean + mean[:, ::-1]) / 2
        likeness = np.corrcoef(np.moveaxis(image, 2, 0)[everywhere], mean[everywhere])[0, 1]
        assert likeness > 0.75, name
    np.testing.assert_array_equal(template.mask, template.mask[::-1])


# Files that are odd


@pytest.fixture
def odd_data(prepared: Prepared, tmp_path: Path) -> Path:
    """A copy of the data in which the first subject is unreadable and another lacks T1w."""
    folder = tmp_path / "odd"
    shutil.copytree(prepared.data, folder)
    shutil.copytree(folder / "BraTS2021_00003", folder / "BraTS2021_00009")
    for path in (folder / "BraTS2021_00009").iterdir():
        path.rename(path.with_name(path.name.replace("00003", "00009")))
    (folder / "BraTS2021_00009" / "BraTS2021_00009_t1.nii.gz").unlink()
    cut = folder / "BraTS2021_00000" / "BraTS2021_00000_flair.nii.gz"
    cut.write_bytes(cut.read_bytes()[:2000])
    return folder


def test_odd_subjects_are_named_and_left_out(odd_data: Path, tmp_path: Path) -> None:
    result = prepare_dataset(odd_data, tmp_path / "shards", SETTINGS, split=SPLIT)
    assert result.subjects == ("BraTS2021_00002", "BraTS2021_00003")
    reasons = dict(result.skipped)
    assert reasons["BraTS2021_00009"] == "lacks T1w"
    assert "BraTS2021_00000_flair.nii.gz" in reasons["BraTS2021_00000"]
    index = json.loads((tmp_path / "shards" / "dataset.json").read_text())
    assert {entry["id"] for entry in index["skipped"]} == set(reasons)


def test_scans_are_divided_by_their_gains(prepared: Prepared, tmp_path: Path) -> None:
    """As `segment` divides them: what is learnt from looks like what will be met."""
    name, modality, data = "BraTS2021_00003", "T1w", tmp_path / "data"
    shutil.copytree(prepared.data, data)
    path = data / name / f"{name}_t1.nii.gz"
    volume, grid = read_nifti(path)
    shade = np.linspace(0.6, 1.4, volume.shape[1])[:, None]
    write_nifti(path, volume.data * shade, grid)
    told: list[tuple[str, int, int]] = []

    def prepare(template: Template | None, folder: str) -> np.ndarray:
        prepare_dataset(
            data,
            tmp_path / folder,
            SETTINGS,
            split=SPLIT,
            template=template,
            report=lambda *state: told.append(state),
        )
        return read_shard(tmp_path / folder, name).images[modality].astype(float)

    learnt = prepare(None, "learnt")
    assert [number for _, number, _ in told] == list(range(1, 8)), "two of train count thrice"
    assert told[-1] == (name, 7, 7)
    told.clear()
    template = read_template(prepared.shards, read_index(prepared.shards)["affine"])
    known = fit_normal_ranges(prepared.shards, SPLIT["train"], SETTINGS.recipe)
    given = prepare(replace(template, normal=known), "given")
    assert told == [(subject, n, 3) for n, subject in enumerate(sorted(prepared.phantoms), 1)]
    subject = find_subject(data / name)
    as_it_is = prepare_subject(
        {m: read_image(subject, m)[0] for m in MODALITIES}, template, SETTINGS.recipe.preprocessing
    )
    undivided = Quantisation().encode(np.moveaxis(as_it_is.images[modality], 2, 0)).astype(float)
    true = read_shard(prepared.shards, name)

    def off(image: np.ndarray) -> float:
        return float(np.abs(image - true.images[modality])[true.brain].mean())

    assert off(given) < 0.5 * off(undivided)
    assert off(learnt) < 0.5 * off(undivided)


def test_who_stands_in_a_split_but_not_in_the_data_is_named(
    prepared: Prepared, tmp_path: Path
) -> None:
    known, unknown = SPLIT["train"][0], "BraTS2021_0002"
    split = {"train": [known, unknown]}
    result = prepare_dataset(prepared.data, tmp_path / "shards", SETTINGS, split=split)
    assert [who for who, _ in result.skipped] == [unknown]
    assert "split train" in result.skipped[0][1]
    strict = replace(SETTINGS, strict=True)
    with pytest.raises(DataError) as raised:
        prepare_dataset(prepared.data, tmp_path / "strict", strict, split=split)
    assert unknown in str(raised.value.cause)
    assert not (tmp_path / "strict").exists()


def test_strict_stops_at_the_first_odd_subject(odd_data: Path, tmp_path: Path) -> None:
    strict = replace(SETTINGS, strict=True)
    with pytest.raises(DataError) as caught:
        prepare_dataset(odd_data, tmp_path / "shards", strict, split=SPLIT)
    assert "BraTS2021_00009: lacks T1w" in (caught.value.cause or "")
    shutil.rmtree(odd_data / "BraTS2021_00009")
    with pytest.raises(DataError, match=r"BraTS2021_00000_flair\.nii\.gz"):
        prepare_dataset(odd_data, tmp_path / "shards", strict, split=SPLIT)
    assert not (tmp_path / "shards").exists()


def test_a_killed_second_run_leaves_no_index_over_mixed_slices(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = Path(shutil.copytree(prepared.shards, tmp_path / "shards"))
    template = read_template(shards, read_index(shards)["affine"])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmccd_cli.training.dataset.write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(prepared.data, shards, SETTINGS, split=SPLIT, template=template)
    with pytest.raises(DataError, match="is not a prepared data set"):
        read_index(shards)


def test_what_a_killed_run_was_writing_goes_with_the_next_index(
    prepared: Prepared, tmp_path: Path
) -> None:
    shards = Path(shutil.copytree(prepared.shards, tmp_path / "shards"))
    index = read_index(shards)
    names = ["dataset.json", "template.safetensors", f"{index['subjects'][0]['id']}.safetensors"]
    left = [shards / f".{name}.01234567.tmp" for name in [*names, "mine.safetensors"]]
    for path in left:
        path.touch()
    write_index(shards, index)
    assert [path.exists() for path in left] == [False, False, False, True]


def test_slices_of_other_data_are_not_trained_on(prepared: Prepared, tmp_path: Path) -> None:
    """`mmccd train --data-dir` goes on with slices that are there if they are those of the data."""
    slices = Path(shutil.copytree(prepared.shards, tmp_path / "new.work" / "slices"))
    index = read_index(slices)
    assert str(prepared.data) not in json.dumps(index)
    same = SliceSource(data_dir=prepared.data, split=SPLIT)
    check_source(slices, same)
    few = tmp_path / "few"
    shutil.copytree(prepared.data / "BraTS2021_00000", few / "BraTS2021_00000")
    template = read_template(slices, index["affine"])
    for other, option in (
        (replace(same, data_dir=few), "--data-dir"),
        (replace(same, split=None), "--split"),
        (replace(same, template=template), "--template"),
        (replace(same, settings=replace(SETTINGS, require_segmentation=True)), "--data"),
    ):
        with pytest.raises(UsageError, match=f"another {option}[.]") as caught:
            check_source(slices, other)
        assert "--work" in (caught.value.next_step or "")
    words = ["train", "--data-dir", few, "--out", tmp_path / "new", "--device", "cpu"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 2, result.stderr
    assert "--data-dir" in result.stderr
    del index["made_from"]  # as older versions wrote it
    (slices / "dataset.json").write_text(json.dumps(index))
    check_source(slices, replace(same, data_dir=few))


def test_no_usable_subject(
    tmp_path: Path,
    tiny_phantom: Phantom,
    write_subject: WriteSubject,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unprepared(*_: object, **__: object) -> None:
        raise DataError("no brain")

    write_subject(tmp_path / "data", tiny_phantom, id="BraTS-001")
    with pytest.raises(DataError, match=r"No subject of .* can be used") as caught:
        prepare_dataset(
            tmp_path / "data", tmp_path / "out", replace(SETTINGS, require_segmentation=True)
        )
    assert "BraTS-001: lacks a segmentation" in (caught.value.cause or "")
    with pytest.raises(DataError, match="No subject of the split `train`") as caught:
        prepare_dataset(tmp_path / "data", tmp_path / "out", SETTINGS, split={"train": []})
    assert caught.value.cause == "It has none that can be used."
    with monkeypatch.context() as patched:
        patched.setattr(dataset, "prepare_subject", unprepared)
        with pytest.raises(DataError, match="No subject of the split `train`") as caught:
            prepare_dataset(
                tmp_path / "data", tmp_path / "out", SETTINGS, split={"train": ["BraTS-001"]}
            )
    assert caught.value.cause == "BraTS-001: no brain"


def test_a_segmentation_on_another_grid_is_refused(
    tmp_path: Path, tiny_phantom: Phantom, write_subject: WriteSubject
) -> None:
    folder = write_subject(tmp_path / "data", tiny_phantom, id="BraTS-001", lesion=True)
    path = folder / "BraTS-001_seg.nii.gz"
    moved = tiny_phantom.affine.copy()
    moved[0, 3] += 8
    write_nifti(
        path, tiny_phantom.lesion.astype(np.uint8), make_grid(tiny_phantom.lesion.shape, moved)
    )
    with pytest.raises(DataError) as caught:
        prepare_dataset(
            tmp_path / "data", tmp_path / "out", SETTINGS, split={"train": ["BraTS-001"]}
        )
    assert "does not lie on the grid" in (caught.value.cause or "")


@pytest.mark.parametrize(("degrees", "same"), [(0.0001, True), (0.1, False)])
def test_a_segmentation_may_lie_off_its_grid_by_rounding_only(
    tmp_path: Path, tiny_phantom: Phantom, degrees: float, same: bool
) -> None:
    """A tenth of a degree is 0.3 mm at the border."""
    lesion, grid = tiny_phantom.lesion, next(iter(tiny_phantom.volumes.values()))
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    path = tmp_path / "seg.nii.gz"
    affine = turned @ tiny_phantom.affine
    write_nifti(path, 2 * lesion.astype(np.uint8), make_grid(lesion.shape, affine))
    if same:
        np.testing.assert_array_equal(read_lesion(path, grid), lesion)
        return
    with pytest.raises(DataError, match="does not lie on the grid"):
        read_lesion(path, grid)


def test_subjects_that_share_no_space_are_refused(
    tmp_path: Path, write_subject: WriteSubject
) -> None:
    for number, offset in enumerate((0.0, 90.0)):
        phantom = make_phantom(
            0,
            shape=(50, 56, 46),
            spacing_mm=(4, 4, 4),
            center_mm=(-119.5 + offset, 119.5, 77.0),
            pose=[[1, 0, 0, offset], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        )
        write_subject(tmp_path / "data", phantom, id=f"BraTS-{number:03d}")
    with pytest.raises(DataError, match="do not share a space") as caught:
        prepare_dataset(tmp_path / "data", tmp_path / "out", SETTINGS)
    assert "--template" in (caught.value.next_step or "")


# Splits

names = st.lists(st.text("abcdef0123456789_", min_size=1, max_size=8), unique=True, max_size=12)


@settings(deadline=None, max_examples=40)
@given(names, names)
def test_a_subject_stays_in_its_split_when_others_join(some: list[str], more: list[str]) -> None:
    first = assign_splits(some, None)
    second = assign_splits([*more, *some], None)
    assert all(second[subject] == split for subject, split in first.items())


def test_default_splits_are_pinned() -> None:
    """These assignments are part of what a published evaluation means."""
    ids = [f"BraTS2021_{n:05d}" for n in range(1251)]
    split = assign_splits(ids, None)
    counts = {name: list(split.values()).count(name) for name in ("train", "val", "test")}
    assert counts == {"train": 1007, "val": 115, "test": 129}
    assert [split[i] for i in ids[:4]] == ["train", "val", "train", "train"]


def test_a_given_split_decides_and_others_are_unused() -> None:
    split = assign_splits(["a", "b", "c"], {"train": ["b"], "val": ["a", "z"]})
    assert split == {"a": "val", "b": "train", "c": "unused"}
    with pytest.raises(DataError, match="a stands in the splits train and val"):
        assign_splits(["a"], {"train": ["a"], "val": ["a"]})


def test_a_split_file_is_read_and_another_file_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(SPLIT))
    assert read_split(path) == SPLIT
    for text in ("", "[]", '{"train": "a"}', '{"train": [1]}', "{"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"split\.json"):
            read_split(path)


# Through to a bundle


def training_in(folder: Path, shards: Path, **options: Any) -> Training:
    recipe = tiny_recipe(spacing_mm=6.0, cycles=CYCLES[:2])
    text, runtime = BundleText(name="tiny"), Runtime(device=torch.device("cpu"))
    changes = {"recipe": recipe, "runtime": runtime, "text": text, **options}
    return Training(shards=shards, work=folder / "work", **changes)


def test_from_shards_to_bundle_to_signals(prepared: Prepared, tmp_path: Path) -> None:
    lines: list[str] = []
    training = training_in(
        tmp_path, prepared.shards, report=lambda progress: lines.append(progress.network)
    )
    networks = training.train()
    assert set(networks) == set(lines)
    assert len(networks) == 6, "restoration, foci, and the networks of two cycles"
    bundle = training.write(tmp_path / "bundle", networks)
    verify_bundle(bundle)
    assert bundle.sources == ("FLAIR", "T2w")
    subjects = [entry["id"] for entry in bundle.config.training["subjects"]]
    assert subjects == SPLIT["train"], "validation subjects are no training data"
    template = read_template(prepared.shards, read_index(prepared.shards)["affine"])
    np.testing.assert_array_equal(bundle.template.images["FLAIR"], template.images["FLAIR"])
    np.testing.assert_array_equal(bundle.template.affine, template.affine)

    volumes = read_volumes(prepared.shards, "BraTS2021_00003", Quantisation())
    brain = volumes.brain
    config = bundle.choose_score("mmccd", ("FLAIR",))
    for method in ("mmccd", "cyclic-unet"):
        sampling = replace(bundle.config.sampling, method=method)
        model = SignalModel(bundle, sampling, torch.device("cpu"))
        signal = model.signals(volumes.images, brain, config)["cycle:FLAIR"]
        assert signal.shape == brain.shape
        assert np.isfinite(signal).all()
        assert signal[brain].std() > 0
        assert not signal[~brain].any()


def test_shards_of_another_recipe_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="another recipe than paper"):
        training_in(tmp_path, prepared.shards, recipe=RECIPES["paper"]).train()
    index = json.loads((prepared.shards / "dataset.json").read_text())
    folder = tmp_path / "two"
    shutil.copytree(prepared.shards, folder)
    (folder / "dataset.json").write_text(json.dumps({**index, "modalities": ["FLAIR", "T1w"]}))
    with pytest.raises(DataError, match="lack T2w"):
        training_in(tmp_path, folder).train()


def test_with_a_template_its_grid_is_used(prepared: Prepared, unregistered: Path) -> None:
    template = read_template(prepared.shards, read_index(prepared.shards)["affine"])
    index = read_index(unregistered)
    assert [entry["id"] for entry in index["subjects"]] == sorted(prepared.phantoms)
    assert index["affine"] == template.affine.ravel().tolist()
    assert index["spacing_mm"] == [6.0, 6.0, 6.0]
    ours = read_template(unregistered, index["affine"])
    for name, image in template.images.items():
        np.testing.assert_array_equal(ours.images[name], image)
