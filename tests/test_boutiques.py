"""The Boutiques descriptor says what the program's options are today."""

from __future__ import annotations

import json
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


def test_it_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boutiques")
    from boutiques.validator import validate_descriptor

    monkeypatch.setattr(sys, "argv", ["bosh"])
    assert validate_descriptor(str(STORED))["name"] == "mmccd segment"


def test_it_writes_a_command_line_that_the_program_takes(tmp_path: Path) -> None:
    bosh = pytest.importorskip("boutiques.localExec")
    (tmp_path / "sub").mkdir()
    given = {"subjects": [str(tmp_path / "sub")], "out": "map.nii.gz", "dry_run": True, "seed": 3}
    executor = (
        bosh.LocalExecutor(str(STORED), str(tmp_path / "i.json"), {"noContainer": True})
        if (tmp_path / "i.json").write_text(json.dumps(given))
        else None
    )
    assert executor is not None
    assert executor.cmd_line[0].split() == [
        *("mmccd", "segment", str(tmp_path / "sub")),
        *("--out", "map.nii.gz", "--dry-run", "--seed", "3"),
    ]
