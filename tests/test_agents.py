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


def test_it_names_every_room_of_the_package_and_no_other() -> None:
    rows = re.findall(r"^\| `([a-z]+/?)` \|", TEXT.partition("## Changing it")[2], re.MULTILINE)
    entries = {path for path in (ROOT / "mmccd_cli").iterdir() if not path.name.startswith("_")}
    folders = {f"{path.name}/" for path in entries if path.is_dir()}
    modules = {path.stem for path in entries if path.suffix == ".py"}
    assert sorted(rows) == sorted(folders | modules)


def test_the_places_where_things_go_exist() -> None:
    places = TEXT.partition("### Where do I put")[2]
    named = re.findall(r"`([a-z_]+/[a-z_/]*)`", places)
    assert len(named) > 15
    for name in named:
        path = ROOT / "mmccd_cli" / name
        assert path.is_dir() or path.with_suffix(".py").is_file(), name
    for constant in re.findall(r"`([A-Z_]{4,})`", places):
        sources = (ROOT / "mmccd_cli").rglob("*.py")
        assert any(re.search(rf"^{constant}\b", s.read_text(), re.MULTILINE) for s in sources), (
            constant
        )


def test_its_exit_codes_are_those_of_the_errors() -> None:
    listed = {int(code) for code in re.findall(r"^\| ([1-6]) \|", TEXT, re.MULTILINE)}
    classes = [item for item in vars(errors).values() if isinstance(item, type)]
    assert {item.exit_code for item in classes if issubclass(item, errors.MmccdError)} == listed
