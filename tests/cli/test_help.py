"""Help texts: whole lines, in one order, with examples that work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from mmccd_cli.cli.app import app


def _commands(group: Any, *words: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if not command.hidden:
            yield (*words, name)
            yield from _commands(command, *words, name) if hasattr(command, "commands") else ()


ALL = list(_commands(typer.main.get_command(app)))


def _help(*words: str) -> str:
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    return shown.stdout


@pytest.mark.parametrize("words", [(), *ALL], ids=" ".join)
def test_lines_are_whole_and_fit_on_a_terminal(words: tuple[str, ...]) -> None:
    text = _help(*words)
    assert max(len(line) for line in text.splitlines()) <= 80
    explained = text.partition("\n")[2]
    assert not re.search(r"…|[a-z]\.\.\.$|<\w|>=|[a-z]-$", explained, re.MULTILINE)
    sections = re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE)
    order = ["Examples", "Environment", "Commands", "Arguments", "Input", "Output", "Options"]
    begins = [name for name in order if name in sections]
    assert sections[: len(begins)] == begins
    assert sections[-1] == "Messages"


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_examples_call_the_command_with_options_that_it_has(words: tuple[str, ...]) -> None:
    text = _help(*words)
    examples = re.findall(r"^  (mmccd .*)$", text.partition("Examples:\n")[2], re.MULTILINE)
    assert examples
    known = set(re.findall(r"--[a-z][a-z-]+", text.partition("Arguments:")[2] or text))
    for example in examples:
        assert example.startswith(f"mmccd {' '.join(words)}")
        assert set(re.findall(r"--[a-z][a-z-]+", example)) <= known


def test_the_help_of_the_program_names_every_command_and_variable() -> None:
    text = _help()
    for words in ALL:
        assert len(words) > 1 or re.search(rf"^  {words[0]} ", text, re.MULTILINE)
    assert {"MMCCD_WEIGHTS", "MMCCD_CACHE_DIR"} <= set(re.findall(r"MMCCD_\w+", text))


def test_defaults_are_shown_as_one_gives_them() -> None:
    text = " ".join(_help("segment").split())
    for default in ("native", "auto"):
        assert f"[default: {default}]" in text
    assert "--seed N Seed of all that is random. [from 0 up]" in text
