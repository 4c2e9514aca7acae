"""The scripts for cohorts in `examples/`."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmccd_cli.cli.app import app
from mmccd_cli.inputs.phantom import Phantom

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.sh"))

Write = Callable[..., Path]


@pytest.fixture
def cohort(tmp_path: Path, write_subject: Write, tiny_phantom: Phantom) -> Path:
    """Two subjects, and a folder that is none."""
    for name in ("one", "two"):
        write_subject(tmp_path / "data", tiny_phantom, "plain", id=name)
    (tmp_path / "data" / "broken").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_name_options_that_exist(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True, timeout=30)
    assert os.access(script, os.X_OK)
    known = set()
    for command in ("segment", "bids"):
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
        known |= set(re.findall(r"--[a-z][a-z-]+", shown))
    code = [line for line in script.read_text().splitlines() if not line.startswith("#")]
    ours = re.findall(r"(?:mmccd|common=|\[@\]}\").*", "\n".join(code))
    options = set(re.findall(r"--[a-z][a-z-]+", "\n".join(ours)))
    assert options
    assert options <= known


def test_a_task_of_the_array_does_its_share(cohort: Path, bundle: Path, tmp_path: Path) -> None:
    folders = [cohort / name for name in ("one", "two")]
    (tmp_path / "list.txt").write_text("\n".join(map(str, folders)))
    slurm = {"ID": "4", "COUNT": "2", "MIN": "3"}
    done = subprocess.run(
        ["bash", EXAMPLES / "slurm_array.sh", tmp_path / "list.txt", tmp_path / "out"],
        env=os.environ
        | {f"SLURM_ARRAY_TASK_{name}": value for name, value in slurm.items()}
        | {"MMCCD": f"{sys.executable} -m mmccd_cli", "MMCCD_WEIGHTS": str(bundle)},
        cwd=EXAMPLES.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "share 2 of 2" in done.stderr
    assert [path.name for path in (tmp_path / "out").glob("*_mask.nii.gz")] == ["two_mask.nii.gz"]


@pytest.fixture
def run_script(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """A function that runs a script of Python with tiny weights and returns its exit code."""

    def run(name: str, *words: object) -> object:
        given = [name, *words, "--weights", bundle, "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", [str(word) for word in given])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return ended.value.code

    return run


def test_one_subject_from_python(
    cohort: Path, tmp_path: Path, run_script: Callable[..., object]
) -> None:
    assert run_script("segment_subject.py", cohort / "one", tmp_path / "map.nii.gz") == 0
    written = {path.name for path in tmp_path.glob("map*")}
    assert written == {"map.nii.gz", "map_mask.nii.gz", "map.json", "map_lesions.tsv"}


def test_a_cohort_from_python_lists_volumes_and_failures(
    cohort: Path,
    tmp_path: Path,
    run_script: Callable[..., object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_script("cohort.py", tmp_path / "nowhere", tmp_path / "out") == 2
    assert run_script("cohort.py", cohort, tmp_path / "out") == 6
    said = capsys.readouterr()
    assert re.findall(r"ml  (\w+)", said.out) == ["one", "two"]
    assert "broken" in said.err
    assert (tmp_path / "out" / "two_mask.nii.gz").is_file()


@pytest.mark.parametrize("script", ["painted_lesions.py", "repeatability.py"])
@pytest.mark.parametrize(
    ("option", "value", "code"), [("--out", "nowhere/table", 2), ("--weights", "nothing", 4)]
)
def test_measurements_that_could_not_be_kept_are_not_begun(
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    option: str,
    value: str,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, str(cohort / "one"), option, value])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert ended.value.code == code
    assert value.split("/")[0] in capsys.readouterr().err


def test_a_subject_that_cannot_be_measured_shows_in_the_exit_code(
    cohort: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table.csv"
    words = ["repeatability.py", cohort / "broken", "--weights", bundle, "--out", table]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / "repeatability.py"), run_name="__main__")
    assert ended.value.code == 6
    assert not table.exists()
