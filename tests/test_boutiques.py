"""The Boutiques descriptor says what the program's options are today."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from boutiques_descriptor import descriptor

from mmccd_cli.cli.app import app

STORED = Path(__file__).resolve().parent.parent / "examples" / "boutiques.json"


def test_the_stored_descriptor_is_up_to_date() -> None:
    again = "python examples/boutiques_descriptor.py > examples/boutiques.json"
    assert json.loads(STORED.read_text()) == descriptor(), again


def test_it_has_every_option_of_the_command() -> None:
    options = typer.main.get_command(app).commands["segment"].params
    flags = {name for one in options for name in one.opts if name.startswith("--")}
    described = {each.get("command-line-flag") for each in descriptor()["inputs"]}
    assert described - {None} == flags - {"--help"}


def bosh(*words: str) -> str:
    """What the program of Boutiques prints; without it the test is left out."""
    program = shutil.which("bosh", path=str(Path(sys.executable).parent)) or shutil.which("bosh")
    if program is None:
        pytest.skip("boutiques is not installed")
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_valid() -> None:
    assert "OK" in bosh("validate", str(STORED))


def test_it_writes_a_command_line_that_the_program_takes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    given = {"subjects": [str(tmp_path / "sub")], "out": "map.nii.gz", "dry_run": True, "seed": 3}
    (tmp_path / "i.json").write_text(json.dumps(given))
    printed = bosh("exec", "simulate", "-i", str(tmp_path / "i.json"), str(STORED))
    line = f"mmccd segment {tmp_path / 'sub'} --out map.nii.gz --dry-run --seed 3"
    assert line in printed
