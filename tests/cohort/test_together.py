"""Several runs with one output folder at the same time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmccd_cli import Segmenter
from mmccd_cli.cohort.steps import JobSteps
from mmccd_cli.files import sha256_of_file
from mmccd_cli.inputs.phantom import make_phantom
from mmccd_cli.outputs.record import read_sidecar

NAMES = [f"case-{letter}" for letter in "abc"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, write_subject: Callable[..., Path]) -> Any:
    root = tmp_path_factory.mktemp("data")
    phantoms = (make_phantom(seed, shape=(34, 38, 30), spacing_mm=(6, 6, 6)) for seed in range(3))
    return [write_subject(root, p, id=name) for p, name in zip(phantoms, NAMES, strict=True)]


def _images(out: Path) -> dict[str, str]:
    return {path.name: sha256_of_file(path) for path in sorted(out.glob("*.nii.gz"))}


def _check_whole(out: Path) -> None:
    for name in NAMES:
        record = read_sidecar(out / f"{name}.json").record
        for kind, expected in record["output_sha256"].items():
            assert sha256_of_file(out / record["outputs"][kind]) == expected
    rows = [line.split("\t")[:2] for line in (out / "summary.tsv").read_text().splitlines()[1:]]
    assert [name for name, _ in rows] == NAMES
    assert {status for _, status in rows} <= {"done", "skipped"}
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("when", ["before the networks", "before the files"])
def test_what_another_run_finished_meanwhile_is_no_error(
    segmenter: Segmenter,
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    """The other run overtakes between preparation and inference, or inference and writing."""
    overtaken = list[str]()
    step = "prepare" if when == "before the networks" else "infer"
    real = getattr(JobSteps, step)

    def slow(steps: JobSteps, *given: Any, **how: Any) -> Any:
        result = real(steps, *given, **how)
        name = given[0].subject.id if step == "prepare" else given[0].job.subject.id
        if name not in overtaken:
            overtaken.append(name)
            folder = folders[NAMES.index(name)]
            (other,) = segmenter.segment_cohort([folder], tmp_path, resume=True, workers=0)
            assert other.status == "done"
        return result

    monkeypatch.setattr(JobSteps, step, slow)
    outcomes = list(segmenter.segment_cohort(folders, tmp_path, resume=True, workers=0))
    assert overtaken == NAMES
    expected = "skipped" if step == "prepare" else "done"
    assert [outcome.status for outcome in outcomes] == [expected] * 3
    _check_whole(tmp_path)


@pytest.mark.slow
def test_two_processes_with_the_same_subjects_leave_what_one_would(
    bundle: Path, folders: list[Path], tmp_path: Path
) -> None:
    def start(out: str, *words: str) -> subprocess.Popen[str]:
        what = [sys.executable, "-m", "mmccd_cli", "segment", *map(str, folders), *words]
        how = ["--out-dir", str(tmp_path / out), "--weights", str(bundle), "--device", "cpu"]
        return subprocess.Popen(
            [*what, *how, "--threads", "1", "--workers", "0", "--resume", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    said = [(run, *run.communicate()) for run in [start("together"), start("together")]]
    alone = start("alone")
    alone.communicate()
    assert alone.returncode == 0
    for run, stdout, stderr in said:
        assert run.returncode == 0, stderr
        assert "Traceback" not in stderr
        assert [json.loads(line)["subject"] for line in stdout.splitlines()] == NAMES
    assert _images(tmp_path / "together") == _images(tmp_path / "alone")
    _check_whole(tmp_path / "together")
