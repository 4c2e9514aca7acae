"""The program as a Python class: the same as the command."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from mmccd_cli import MmccdError, RunSettings, Segmenter, api
from mmccd_cli.errors import DataError, UsageError, WeightsError
from mmccd_cli.inputs.nifti import read_nifti
from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.inputs.volume import Volume


@pytest.fixture
def subject(tmp_path: Path, write_subject: Callable[..., Path], tiny_phantom: Phantom) -> Path:
    return write_subject(tmp_path / "data", tiny_phantom, "brats")


def test_the_example_of_the_docstring_is_true(bundle: Path, subject: Path, tmp_path: Path) -> None:
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    (example,) = doctest.DocTestFinder(recurse=False).find(
        api.Segmenter, globs={"subject": subject, "out_dir": out_dir}
    )
    for line in example.examples:
        line.source = line.source.replace('"glioma-compact"', repr(str(bundle)))
    assert len(example.examples) == 6
    assert doctest.DocTestRunner().run(example) == (0, 6)


def test_files_volumes_and_command_give_one_result(
    bundle: Path, subject: Path, tmp_path: Path
) -> None:
    segmenter = Segmenter.from_pretrained(bundle, device="cpu", preset="balanced", seed=3)
    settings = RunSettings(threshold=0.6)
    finished = segmenter.segment_files(subject, settings=settings)
    assert {path.name for path in tmp_path.iterdir()} == {"data"}  # nothing is written
    paths = {"FLAIR": "flair", "T2w": "t2", "T1w": "t1"}
    files = {m: next(subject.glob(f"*_{n}.nii.gz")) for m, n in paths.items()}
    volumes = {modality: read_nifti(path)[0] for modality, path in files.items()}
    plain = segmenter.segment(volumes, options=settings.mask_options)
    np.testing.assert_array_equal(finished.result.anomaly_map, plain.anomaly_map)
    np.testing.assert_array_equal(finished.result.mask, plain.mask)
    written = segmenter.segment_files(files, out=tmp_path / "map.nii.gz", settings=settings)
    assert written.record == json.loads((tmp_path / "map.json").read_text())
    stored = np.asanyarray(nib.load(tmp_path / "map.nii.gz").dataobj)
    np.testing.assert_array_equal(stored, plain.anomaly_map)
    from typer.testing import CliRunner

    from mmccd_cli.cli.app import app

    words = [subject, "--out", tmp_path / "cli.nii.gz", "--weights", bundle, "--device", "cpu",
             "--preset", "balanced", "--seed", 3, "--threshold", 0.6, "-q"]  # fmt: skip
    result = CliRunner().invoke(app, ["segment", *map(str, words)])
    assert result.exit_code == 0, result.stderr
    for end in (".nii.gz", "_mask.nii.gz"):
        assert (tmp_path / f"cli{end}").read_bytes() == (tmp_path / f"map{end}").read_bytes()


def test_volumes_in_memory_must_be_heads_too(segmenter: Segmenter, tiny_phantom: Phantom) -> None:
    flair = tiny_phantom.volumes["FLAIR"]
    noise = np.random.default_rng(0).random(flair.shape, dtype=np.float32)
    with pytest.raises(MmccdError, match="FLAIR cannot be a head: neighbouring voxels"):
        segmenter.segment({"FLAIR": Volume(noise, flair.affine)})
    metres = flair.affine @ np.diag([1e-3, 1e-3, 1e-3, 1])
    with pytest.raises(MmccdError, match="T2w cannot be a head: it shows 0"):
        segmenter.segment({"FLAIR": flair, "T2w": Volume(flair.data, metres)})


def test_volumes_in_memory_are_mended_as_files_are(
    segmenter: Segmenter, tiny_phantom: Phantom
) -> None:
    flair = tiny_phantom.volumes["FLAIR"]
    data = flair.data.copy()
    data[0, 0, 0] = np.nan
    result = segmenter.segment({"FLAIR": Volume(data, flair.affine)})
    assert any("FLAIR: 1 voxels were NaN" in note for note in result.notes)
    with pytest.raises(UsageError, match="no modality T1"):
        segmenter.segment({"FLAIR": flair, "T1": flair})
    for wrong in (flair.data, flair, {"FLAIR": flair.data}):
        with pytest.raises(UsageError) as caught:
            segmenter.segment(wrong)  # type: ignore[arg-type]
        assert "mmccd_cli.Volume" in str(caught.value.next_step)


def test_errors_are_typed(bundle: Path, subject: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        Segmenter.from_pretrained(tmp_path)
    with pytest.raises(UsageError):
        Segmenter.from_pretrained(bundle, device="cpu", preset="best")
    segmenter = Segmenter.from_pretrained(bundle, device="cpu")
    with pytest.raises(DataError):
        segmenter.segment_files(tmp_path / "nowhere")
    with pytest.raises(UsageError):
        segmenter.segment_files({"T1c": tmp_path / "flair.nii.gz"})
    (tmp_path / "map.json").write_text("mine")
    with pytest.raises(MmccdError) as caught:
        segmenter.segment_files(subject, out=tmp_path / "map.nii.gz")
    assert caught.value.next_step
    assert (tmp_path / "map.json").read_text() == "mine"


@pytest.mark.parametrize(
    "wrong",
    [{"threads": -1}, {"threads": "4"}, {"batch_size": 0}, {"batch_size": 2.0}, {"device": "gpu"}],
)
def test_what_a_segmenter_cannot_be_made_with_is_told_at_once(
    bundle: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))) as caught:
        Segmenter.from_pretrained(bundle, **wrong)
    assert caught.value.next_step


def test_options_that_cannot_be_are_no_other_result(
    segmenter: Segmenter, tiny_phantom: Phantom, tmp_path: Path
) -> None:
    flair = tiny_phantom.volumes["FLAIR"]
    with pytest.raises(UsageError, match="no space 'mni'"):
        segmenter.segment({"FLAIR": flair}, space="mni")
    with pytest.raises(UsageError, match="brain_mask is no volume but ndarray"):
        segmenter.segment({"FLAIR": flair}, brain_mask=flair.data > 0)
    for folder in (str(tmp_path), tmp_path):
        with pytest.raises(UsageError, match="One folder alone is no cohort"):
            next(segmenter.segment_cohort(folder, tmp_path / "out"))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 3},
        {"threshold": 1.0},
        {"threshold": float("nan")},
        {"threshold": "0.5"},
        {"min_lesion_mm3": -4},
        {"min_lesion_mm3": float("inf")},
        {"min_confidence": 9},
        {"min_confidence": True},
        {"space": "foo"},
    ],
)
def test_settings_that_cannot_be_are_told_when_they_are_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))) as caught:
        RunSettings(**wrong)
    assert caught.value.next_step
    assert RunSettings(threshold=np.float32(0.5), min_lesion_mm3=0, min_confidence=1)


def test_the_package_imports_nothing_heavy_by_itself() -> None:
    code = (
        "import sys, mmccd_cli; from mmccd_cli import MmccdError;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'nibabel')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    import mmccd_cli

    with pytest.raises(AttributeError):
        mmccd_cli.Segmentor  # noqa: B018
