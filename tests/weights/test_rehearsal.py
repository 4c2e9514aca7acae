"""What `segment` would find wrong with a bundle, `weights verify` finds, both with exit code 4."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from bundles import edit_index, replace_file, write_tiny_bundle
from safetensors.torch import load_file, save
from typer.testing import CliRunner

from mmccd_cli.cli.app import app
from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.weights.bundle import TEMPLATE

NETWORK = "FLAIR-T2w.unet.safetensors"
Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def subject(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_phantom: Phantom,
    write_subject: Callable[..., Path],
) -> Path:
    return write_subject(tmp_path_factory.mktemp("data"), tiny_phantom)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def without_a_network(folder: Path) -> None:
    edit_index(folder, lambda d: d["files"].pop(NETWORK))


def without_scores(folder: Path) -> None:
    edit_index(folder, lambda d: d["bundle"].update(scores={}))


def without_scores_of_its_method(folder: Path) -> None:
    edit_index(folder, lambda d: d["bundle"]["scores"].pop("mmccd"))


def with_more_steps_than_there_are(folder: Path) -> None:
    edit_index(folder, lambda d: d["bundle"]["sampling"].update(num_inference_steps=1001))


def without_calibration(folder: Path) -> None:
    edit_index(folder, lambda d: d["bundle"].update(calibration={}))


def with_a_template_of_one_voxel(folder: Path) -> None:
    arrays = safetensors.numpy.load_file(folder / TEMPLATE)
    arrays["mask"] = np.zeros_like(arrays["mask"])
    arrays["mask"][20, 20, 20] = 1
    replace_file(folder, TEMPLATE, safetensors.numpy.save(arrays))


def with_weights_that_overflow(folder: Path) -> None:
    tensors = load_file(folder / NETWORK)
    large = {name: torch.full_like(value, 6e4) for name, value in tensors.items()}
    replace_file(folder, NETWORK, save(large))


@pytest.mark.parametrize(
    "damage",
    [
        without_a_network,
        without_scores,
        without_scores_of_its_method,
        with_more_steps_than_there_are,
        without_calibration,
        with_a_template_of_one_voxel,
        with_weights_that_overflow,
    ],
)
def test_verify_finds_what_segment_finds(
    pristine: Path, subject: Path, tmp_path: Path, damage: Edit
) -> None:
    folder = shutil.copytree(pristine, tmp_path / "tiny")
    damage(folder)
    preset = "fast" if damage in (without_a_network, with_weights_that_overflow) else "balanced"
    out = tmp_path / "map.nii.gz"
    segment = ["segment", subject, "--weights", folder, "--out", out, "--preset", preset]
    for words in (["weights", "verify", folder], [*segment, "--device", "cpu"]):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 4, (words[0], result.exit_code, result.stderr)
        assert "error:" in result.stderr
    assert not out.exists()


def test_a_method_without_score_is_told(pristine: Path, subject: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pristine, tmp_path / "tiny")
    edit_index(folder, lambda d: d["bundle"]["scores"].pop("cyclic-unet"))
    words = ["segment", subject, "--weights", folder, "--preset", "fast", "--device", "cpu"]
    result = CliRunner().invoke(app, [str(w) for w in [*words, "--out", tmp_path / "map.nii.gz"]])
    assert result.exit_code == 4
    assert "--method mmccd" in result.stderr
    assert CliRunner().invoke(app, ["weights", "verify", str(folder)]).exit_code == 0
