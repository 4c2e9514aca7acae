"""--like: all settings of an earlier run, and what is given beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mmccd_cli import Segmenter
from mmccd_cli.cli.app import app
from mmccd_cli.cohort.jobs import RunSettings
from mmccd_cli.config import choose_sampling
from mmccd_cli.inputs.phantom import make_phantom
from mmccd_cli.pipeline import Pipeline


@pytest.fixture(scope="module")
def earlier(
    tmp_path_factory: pytest.TempPathFactory,
    segmenter: Segmenter,
    write_subject: Callable[..., Path],
) -> tuple[Path, Path]:
    """A subject's folder, and the record of a run whose settings are all unusual."""
    folder = tmp_path_factory.mktemp("earlier")
    phantom = make_phantom(0, shape=(34, 38, 30), spacing_mm=(6, 6, 6))
    subject = write_subject(folder / "data", phantom, "brats", id="case")
    sampling = choose_sampling(
        segmenter.bundle.config.sampling, None, method="mmccd", num_inference_steps=2, seed=3
    )
    unusual = Pipeline(segmenter.bundle, device="cpu", sampling=sampling)
    settings = RunSettings(
        threshold=0.6, min_lesion_mm3=1e-1, skull_strip="never", space="template"
    )
    Segmenter.segment_files(unusual, subject, out=folder / "map.nii.gz", settings=settings)  # type: ignore[arg-type]
    return subject, folder / "map.json"


def segment(earlier: tuple[Path, Path], bundle: Path | None, *words: Any) -> Result:
    out = earlier[1].with_name("new.nii.gz")
    named = ["--weights", bundle] if bundle else []
    line = [earlier[0], "--out", out, "--like", earlier[1], *named, "--device", "cpu", *words]
    return CliRunner().invoke(app, ["segment", *map(str, line)])


def requested(done: Result) -> dict[str, Any]:
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)["settings"]["requested"]


def test_the_settings_are_those_of_the_earlier_run(
    earlier: tuple[Path, Path], bundle: Path
) -> None:
    record = json.loads(earlier[1].read_text())
    same = segment(earlier, bundle, "--dry-run", "--json")
    assert requested(same) == record["settings"]["requested"]
    assert requested(same)["sampling"]["num_inference_steps"] == 2


def test_what_is_given_counts_more(earlier: tuple[Path, Path], bundle: Path) -> None:
    words = ("--threshold", "auto", "--seed", 9, "--space", "native", "--dry-run", "--json")
    asked = requested(segment(earlier, bundle, *words))
    assert (asked["threshold"], asked["sampling"]["seed"], asked["space"]) == ("auto", 9, "native")
    assert (asked["min_lesion_mm3"], asked["skull_strip"]) == (0.1, "never")


def test_a_plain_translation_is_repeated_without_steps(
    earlier: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    record = json.loads(earlier[1].read_text())
    record["settings"]["requested"]["sampling"]["method"] = "cyclic-unet"
    (tmp_path / "map.json").write_text(json.dumps(record))
    plain = (earlier[0], tmp_path / "map.json")
    asked = requested(segment(plain, bundle, "--dry-run", "--json"))
    assert (asked["sampling"]["method"], asked["sampling"]["seed"]) == ("cyclic-unet", 3)
    refused = segment(plain, bundle, "--steps", 4, "--dry-run")
    assert refused.exit_code == 2
    assert "mean nothing to a plain translation" in " ".join(refused.stderr.split())


def test_the_weights_are_the_earlier_ones_or_the_call_fails(
    earlier: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    unknown = segment(earlier, None, "--dry-run")  # no weights of that name are known
    assert unknown.exit_code == 4
    assert "tiny" in unknown.stderr
    record = json.loads(earlier[1].read_text())
    record["bundle"] |= {"name": str(bundle), "sha256": "0" * 64}
    (tmp_path / "map.json").write_text(json.dumps(record))
    other = segment((earlier[0], tmp_path / "map.json"), None, "--dry-run")
    assert other.exit_code == 4
    assert "its files differ" in " ".join(other.stderr.split())


def test_contradictions_and_what_is_no_record_are_refused(
    earlier: tuple[Path, Path], bundle: Path, tmp_path: Path
) -> None:
    assert segment(earlier, bundle, "--preset", "fast").exit_code == 2
    (tmp_path / "map.json").write_text("{}")
    for name in ("map.json", "missing.json"):
        refused = segment((earlier[0], tmp_path / name), bundle)
        assert refused.exit_code == 2
        assert "holds no record" in " ".join(refused.stderr.split())
    record = json.loads(earlier[1].read_text())
    record["settings"]["requested"]["skull_strip"] = "mask"
    (tmp_path / "map.json").write_text(json.dumps(record))
    refused = segment((earlier[0], tmp_path / "map.json"), bundle)
    assert refused.exit_code == 2
    assert "was given a brain mask" in refused.stderr


def test_threshold_takes_the_mask_s_settings(earlier: tuple[Path, Path], tmp_path: Path) -> None:
    words = ["threshold", earlier[1].with_suffix(".nii.gz"), "--out", tmp_path / "m.nii.gz"]
    done = CliRunner().invoke(app, [*map(str, words), "--like", str(earlier[1]), "--json"])
    assert requested(done)["threshold"] == 0.6
