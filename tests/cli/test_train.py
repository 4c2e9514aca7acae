"""`mmccd train` as users meet it: stopped, called again, left uncalibrated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from training_data import tiny_recipe, write_shards
from typer.testing import CliRunner, Result

from mmccd_cli.cli.app import app
from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.training import recipes, run
from mmccd_cli.training.recipes import CYCLES
from mmccd_cli.weights.bundle import load_bundle

Train = Callable[..., Result]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Calls `mmccd train` on small slices, with a recipe that takes no time."""
    monkeypatch.setitem(recipes.RECIPES, "compact", tiny_recipe(cycles=CYCLES[:1]))
    shards = write_shards(tmp_path / "shards")
    always = ["train", "--prepared", shards, "--out", tmp_path / "new", "--device", "cpu"]
    return lambda *words: CliRunner().invoke(app, [str(w) for w in (*always, *words)])


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words])


def test_a_training_that_was_stopped_while_calibrating_goes_on(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "calibrate", interrupted)
        assert train("--folds", 2).exit_code == 130
    assert not (tmp_path / "new").exists(), "nothing there looks finished"
    draft = tmp_path / "new.work" / run.FOLD_BUNDLE
    assert call("weights", "verify", draft).exit_code == 4
    again = train("--folds", 2)
    assert again.exit_code == 0, again.stderr
    assert call("weights", "verify", tmp_path / "new").exit_code == 0
    assert train("--folds", 2).exit_code == 2, "what is finished is not overwritten"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--calibrate-on", "nothing"], 3),
        (["--folds", 1], 2),
        (["--folds", 2, "--calibrate-on", "val"], 2),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_hours_of_training(
    train: Train, tmp_path: Path, words: list[str], code: int
) -> None:
    refused = train(*words)
    assert refused.exit_code == code, refused.stderr
    assert "--calibrate-on" in refused.stderr or "--folds" in refused.stderr
    assert not list(tmp_path.rglob("*.checkpoint.pt"))


def test_a_bundle_without_calibration_is_refused_with_advice(
    train: Train, tmp_path: Path, tiny_phantom: Phantom, write_subject: Callable[..., Path]
) -> None:
    left = train("--calibrate-on", "none")
    assert left.exit_code == 0, left.stderr
    assert "not calibrated" in left.stderr
    assert "Use it" not in left.stderr
    bundle = tmp_path / "new"
    subject, out = write_subject(tmp_path, tiny_phantom), tmp_path / "map.nii.gz"
    for words in (
        ["segment", subject, "--weights", bundle, "--out", out],
        ["weights", "verify", bundle],
        ["weights", "push", bundle, "somebody/something"],
    ):
        refused = call(*words)
        assert refused.exit_code == 4, (words, refused.stderr)
        assert "not calibrated" in refused.stderr
        assert "mmccd train" in refused.stderr
    assert train("--force").exit_code == 0
    assert call("weights", "verify", bundle).exit_code == 0


def test_every_file_of_a_bundle_needs_force_but_those_that_a_killed_run_left(
    train: Train, tmp_path: Path
) -> None:
    bundle = tmp_path / "new"
    bundle.mkdir()
    (bundle / "README.md").write_text("mine")
    assert train().exit_code == 2
    assert [path.name for path in tmp_path.iterdir() if path.name == "new.work"] == []
    assert (bundle / "README.md").read_text() == "mine"
    (bundle / "README.md").unlink()
    assert train().exit_code == 0
    (bundle / "bundle.json").unlink()  # which comes last
    again = train()
    assert again.exit_code == 0, again.stderr
    assert call("weights", "verify", bundle).exit_code == 0
    (bundle / "bundle.json").unlink()
    network = next(bundle.glob("*.unet.safetensors"))
    network.write_bytes(b"mine")
    assert train().exit_code == 2
    assert network.read_bytes() == b"mine"


@pytest.mark.parametrize(("typed", "inside"), [(".", "mine"), ("..", "mine/deeper")])
def test_a_bundle_has_the_name_of_its_folder_however_that_is_typed(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, inside: str
) -> None:
    folder = tmp_path / inside
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    trained = train("--out", typed, "--calibrate-on", "none")
    assert trained.exit_code == 0, trained.stderr
    bundle = load_bundle(tmp_path / "mine", uncalibrated=True)
    assert bundle.config.name == "mine"
    assert (tmp_path / "mine.work").is_dir()


def test_a_folder_without_a_name_is_refused(train: Train) -> None:
    refused = train("--out", "/")
    assert refused.exit_code == 2, refused.stderr
    assert "weights/NAME" in refused.stderr


def test_prepared_slices_are_not_overwritten_by_accident(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards")
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    for words, code in (([], 2), (["--force"], 3)):  # 3: there is no such data set
        result = call("prepare", "--data-dir", tmp_path / "none", "--out", shards, *words)
        assert result.exit_code == code
    assert before == {path.name: path.read_bytes() for path in shards.iterdir()}


def test_a_data_set_that_is_a_file_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_text("")
    result = call("prepare", "--data-dir", tmp_path / "data.zip", "--out", tmp_path / "shards")
    assert result.exit_code == 3
    assert "a data set is a folder" in result.stderr
    assert "--flair" not in result.stderr, "advice for `segment`"
