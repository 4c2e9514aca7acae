"""What AGENTS.md says about the program is so."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main

from mmccd_cli import errors
from mmccd_cli.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "AGENTS.md").read_text(encoding="utf-8")


def test_its_commands_have_the_options_that_it_gives_them() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    calls = re.findall(r"^mmccd (\w+)([^#\n]*)", TEXT, re.MULTILINE)
    assert len(calls) >= 6
    for name, words in calls:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", words)) <= known, name


def test_its_modules_exist() -> None:
    rows = re.findall(r"^\| (`[^|]*) \|", TEXT.partition("## Changing it")[2], re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(names) > 30
    package = ROOT / "mmccd_cli"
    for name in names[1:] if names[0] == "mmccd_cli/" else names:
        assert (package / f"{name}.py").is_file() or (package / name.rstrip("/")).is_dir(), name


def test_its_exit_codes_are_those_of_the_errors() -> None:
    listed = {int(code) for code in re.findall(r"^\| ([1-6]) \|", TEXT, re.MULTILINE)}
    classes = [item for item in vars(errors).values() if isinstance(item, type)]
    assert {item.exit_code for item in classes if issubclass(item, errors.MmccdError)} == listed
