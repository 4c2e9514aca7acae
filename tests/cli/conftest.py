"""How the tests of commands call the program."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mmccd_cli.cli.app import app


@pytest.fixture(scope="session")
def mmccd(bundle: Path) -> Callable[..., Result]:
    """Run a command with a tiny bundle on the CPU, unless the words say otherwise."""

    def call(*words: object, stdin: str = "") -> Result:
        given = [str(word) for word in words]
        for option, value in (("--weights", str(bundle)), ("--device", "cpu")):
            given += [] if option in given else [option, value]
        return CliRunner().invoke(app, given, input=stdin)

    return call


@pytest.fixture
def run(mmccd: Callable[..., Result]) -> Callable[..., Result]:
    """Run `mmccd segment`."""
    return partial(mmccd, "segment")
