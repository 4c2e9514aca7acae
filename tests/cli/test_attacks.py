"""Damaged, edited and impossible things given to every other command: a sentence, and never a bug.

Each attack changes a copy of a sound data set, prepared folder or bundle, and says with which exit
codes the command may end. Exit code 1, which means a bug, is never among them.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from training_data import tiny_recipe, write_shards
from typer.testing import CliRunner, Result

from mmccd_cli.cli.app import app
from mmccd_cli.inputs.nifti import make_grid, write_nifti
from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.training import recipes
from mmccd_cli.training.recipes import CYCLES

Damage = Callable[[Path], object]
FLAIR = "a/a_flair.nii.gz"
LABELS = "a/a_seg.nii.gz"


def each(attacks: Iterable[str], *quick: str) -> list[Any]:
    """All attacks as parameters, those that are not `quick` only where slow tests run."""
    slow = pytest.mark.slow
    return [pytest.param(name, marks=() if name in quick else slow) for name in attacks]


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def check(result: Result, codes: set[int]) -> None:
    assert result.exit_code in codes, (result.exit_code, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    if result.exit_code:
        assert "error:" in result.stderr.lower() or "failed" in result.stderr


@pytest.fixture(scope="module")
def data(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_phantom: Phantom,
    write_subject: Callable[..., Path],
) -> Path:
    """Two labelled subjects in the style of BraTS, and what goes with them."""
    root = tmp_path_factory.mktemp("attacked") / "data"
    for name in "ab":
        write_subject(root, tiny_phantom, "brats", id=name, lesion=1)
    return root


@pytest.fixture
def copied(data: Path, tmp_path: Path) -> Path:
    return shutil.copytree(data, tmp_path / "data")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(cycles=CYCLES[:1], spacing_mm=8.0)
    monkeypatch.setitem(recipes.RECIPES, "compact", recipe)


def cut(name: str) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def written(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def pipe(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def voxels(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def damage(folder: Path) -> None:
        image = nib.load(folder / name)
        changed = change(np.asanyarray(image.dataobj))
        write_nifti(folder / name, changed, make_grid(changed.shape, image.affine))

    return damage


def noise(values: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).random(values.shape, dtype=np.float32)


DATA = {
    "cut": cut(FLAIR),
    "text": written(FLAIR, b"no image"),
    "noise": voxels(FLAIR, noise),
    "constant": voxels(FLAIR, np.ones_like),
    "a pipe": pipe(FLAIR),
    "labels cut": cut(LABELS),
    "labels of another shape": voxels(LABELS, lambda v: v[:-3]),
    "labels that are an image": voxels(LABELS, noise),
    "labels that are empty": voxels(LABELS, np.zeros_like),
    "labels that are a pipe": pipe(LABELS),
    "an empty folder": lambda folder: (folder / "c").mkdir(),
    "a link to itself": lambda folder: (folder / "a" / "loop").symlink_to(folder),
    "nothing": shutil.rmtree,
}


@pytest.mark.parametrize("attack", each(DATA, "a pipe", "labels of another shape", "nothing"))
def test_prepare(copied: Path, tmp_path: Path, attack: str) -> None:
    DATA[attack](copied)
    words = ["prepare", "--data-dir", copied, "--out", tmp_path / "prepared"]
    result = call(*words)
    check(result, {0, 2, 3})
    if result.exit_code == 0:  # the other subject is enough; who was left out is said
        index = json.loads((tmp_path / "prepared" / "dataset.json").read_text())
        kept = {entry["id"] for entry in index["subjects"]}
        assert kept == {"a", "b"} or "left out" in result.stderr
        check(call(*words, "--strict", "--force"), {0, 3})


@pytest.mark.parametrize("attack", each(DATA, "labels that are a pipe", "nothing"))
def test_evaluate(copied: Path, tmp_path: Path, attack: str) -> None:
    DATA[attack](copied)
    check(
        call("evaluate", copied, "--method", "none", "--modalities", "FLAIR", "--device", "cpu"),
        {0, 2, 3, 6},
    )


NOT_JSON: dict[str, Damage] = {
    "text": written("file.json", b"{"),
    "another type": written("file.json", b'["a", "b"]'),
    "other values": written("file.json", b'{"train": [1], "val": {"a": 2}}'),
    "unknown ids": written("file.json", b'{"train": ["nobody"], "val": []}'),
    "brackets": written("file.json", b"[" * 100_000),
    "no text": written("file.json", b"\xff\xfe\0"),
    "a pipe": pipe("file.json"),
    "a folder": lambda folder: (folder / "file.json").mkdir(),
    "nothing": lambda folder: None,
}


@pytest.mark.parametrize("attack", each(NOT_JSON, "other values", "a pipe"))
@pytest.mark.parametrize("option", ["prepare --split", "evaluate --split", "evaluate --folds"])
def test_files_that_are_given_with_a_data_set(
    data: Path, tmp_path: Path, attack: str, option: str
) -> None:
    NOT_JSON[attack](tmp_path)
    command, name = option.split()
    where = ["--data-dir", data, "--out", tmp_path / "out"]
    words = where if command == "prepare" else [data, "--method", "none", "--device", "cpu"]
    check(call(command, *words, name, tmp_path / "file.json"), {2, 3, 4})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("prepared") / "shards")


def edited(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


PREPARED = {
    "no index": lambda folder: (folder / "dataset.json").unlink(),
    "an index that is cut": cut("dataset.json"),
    "an index that is a pipe": pipe("dataset.json"),
    "another format": edited(format=99),
    "no subjects": edited(subjects=[]),
    "subjects that are null": edited(subjects=None),
    "subjects that are numbers": edited(subjects=[1, 2]),
    "subjects without slices": edited(subjects=[{"id": "s0", "split": "train"}]),
    "subjects elsewhere": edited(
        subjects=[
            {"id": "../../x", "split": "train", "files": {}, "slices": 1, "healthy_slices": 1}
        ]
    ),
    "modalities that are null": edited(modalities=None),
    "a grid of two axes": edited(spacing_mm=[2.0, 2.0]),
    "a grid of no size": edited(spacing_mm=[0.0, 2.0, 2.0]),
    "another shape": edited(shape=[24, 24, 13]),
    "an affine of three numbers": edited(affine=[1.0, 2.0, 3.0]),
    "another preprocessing": edited(preprocessing={}),
    "other levels": edited(quantisation={"minimum": "x"}),
    "a shard that is missing": lambda folder: (folder / "s0.safetensors").unlink(),
    "a shard that is cut": cut("s0.safetensors"),
    "a shard that is a pickle": written("s0.safetensors", pickle.dumps({"a": 1})),
    "a shard that is a pipe": pipe("s0.safetensors"),
    "a template that is cut": cut("template.safetensors"),
}


@pytest.mark.parametrize(
    "attack",
    each(
        PREPARED,
        *("an index that is a pipe", "subjects that are null", "another shape"),
        *("a shard that is a pickle", "a shard that is a pipe"),
    ),
)
def test_train_from_what_was_prepared(prepared: Path, tmp_path: Path, attack: str) -> None:
    monkey = tiny_recipe(cycles=CYCLES[:1])
    recipes.RECIPES["compact"] = monkey  # the fixture of this module puts the old one back
    folder = shutil.copytree(prepared, tmp_path / "shards")
    PREPARED[attack](folder)
    words = ["train", "--prepared", folder, "--out", tmp_path / "new", "--device", "cpu"]
    check(call(*words), {2, 3})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "codes"),
    [
        (["--iterations", 0], {2}),
        (["--iterations", -1], {2}),
        (["--batch-size", 0], {2}),
        (["--learning-rate", "nan"], {2}),
        (["--learning-rate", "1e30"], {2, 5}),
        (["--seed", -1], {2}),
        (["--seed", 2**60], {2}),
        (["--folds", 1], {2, 3}),
        (["--folds", -3], {2, 3}),
        (["--folds", 999], {2, 3}),
        (["--network", "nothing"], {2, 3}),
        (["--calibrate-on", "nothing"], {2, 3}),
        (["--threads", 0], {2}),
        (["--device", "cuda:99"], {2, 5}),
    ],
)
def test_train_with_impossible_options(
    prepared: Path, tmp_path: Path, words: list[Any], codes: set[int]
) -> None:
    recipes.RECIPES["compact"] = tiny_recipe(cycles=CYCLES[:1])
    always = ["train", "--prepared", prepared, "--out", tmp_path / "new", "--device", "cpu"]
    check(call(*always, *words), codes)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_an_output_that_is_a_file(data: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "out").write_text("mine")
    check(call(command, "--data-dir", data, "--out", tmp_path / "out"), {2, 3})
    assert (tmp_path / "out").read_text() == "mine"


DATA_SET: dict[str, Damage] = {
    "no description": lambda folder: (folder / "dataset_description.json").unlink(),
    "a description that is a list": written("dataset_description.json", b"[]"),
    "a description that is a pipe": pipe("dataset_description.json"),
    "authors that are numbers": written("dataset_description.json", b'{"Authors": [1]}'),
    "an image that is cut": cut("sub-01/anat/sub-01_FLAIR.nii.gz"),
    "an image that is a pipe": pipe("sub-01/anat/sub-01_FLAIR.nii.gz"),
    "a session that is a file": written("sub-01/ses-1", b""),
    "a subject that is a file": written("sub-02", b""),
    "a name of control characters": lambda folder: (folder / "sub-\x1b[2J").mkdir(),
    "a name that is no text": lambda folder: os.mkdir(os.fsencode(folder) + b"/sub-\xff"),
    "a link to itself": lambda folder: (folder / "sub-01" / "ses-1").symlink_to(folder),
    "no subject": lambda folder: shutil.rmtree(folder / "sub-01"),
}


@pytest.mark.parametrize(
    "attack", each(DATA_SET, "a description that is a pipe", "a name of control characters")
)
def test_bids(
    bundle: Path,
    tiny_phantom: Phantom,
    write_subject: Callable[..., Path],
    tmp_path: Path,
    attack: str,
) -> None:
    root = tmp_path / "raw"
    write_subject(root, tiny_phantom, "bids")
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    DATA_SET[attack](root)
    words = ["bids", root, tmp_path / "out", "participant", "--weights", bundle, "--dry-run"]
    check(call(*words, "--json"), {0, 2, 3, 6})
    broken = "image" in attack
    if broken:
        check(call(*words[:-1], "--device", "cpu"), {3, 6})
    check(call("bids", root, tmp_path / "out", "group"), {3, 6} if broken else {0, 2, 3})


@pytest.mark.parametrize(
    ("words", "codes"),
    [
        (["{bundle}", "no repository"], {2, 4}),
        (["{bundle}", "a/b/c"], {2, 4}),
        (["{bundle}", "../../etc"], {2, 4}),
        (["{nowhere}", "some/body"], {4}),
        (["{pipe}", "some/body"], {4}),
        (["{cut}", "some/body"], {4}),
        (["{extra}", "some/body"], {2}),
    ],
)
def test_weights_push(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    codes: set[int],
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    places = {"bundle": bundle, "nowhere": tmp_path / "nowhere"}
    for name in ("pipe", "cut", "extra"):
        places[name] = shutil.copytree(bundle, tmp_path / name)
    pipe("bundle.json")(places["pipe"])
    cut("FLAIR-T2w.unet.safetensors")(places["cut"])
    written("secret.txt", b"not listed, so not published")(places["extra"])
    check(call("weights", "push", *(word.format(**places) for word in words)), codes)
