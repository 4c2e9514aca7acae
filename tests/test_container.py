"""The recipes for Docker and Apptainer, as far as they can be checked without an engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parent.parent


def _instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile with their arguments, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def _section(name: str) -> list[str]:
    """Lines of a section of the Apptainer recipe."""
    text = (ROOT / "mmccd.def").read_text()
    match = re.search(rf"^%{name}$(.*?)(?=^%|\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, name
    return [line.strip() for line in match[1].splitlines() if line.strip()]


def _copied_into_image() -> set[str]:
    words = [rest.split() for name, rest in _instructions() if name == "COPY"]
    return {word for line in words if not line[0].startswith("--from") for word in line[:-1]}


def test_what_is_copied_exists_and_is_all_that_the_wheel_is_made_of() -> None:
    copied = _copied_into_image()
    assert all((ROOT / name).exists() for name in copied)
    assert {line.split()[0] for line in _section("files")} == copied
    ignore = (ROOT / ".dockerignore").read_text().split()
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        "pyproject.toml",
        project["project"]["readme"],
        *(name.split("/")[0] for name in project["project"]["license-files"]),
        *wheel["packages"],
        *wheel["force-include"],
    }
    assert needed == copied


def test_the_image_runs_mmccd_as_nobody_in_particular() -> None:
    last = dict(_instructions())  # of each instruction, the last one
    (program,) = json.loads(last["ENTRYPOINT"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert program in project["project"]["scripts"]
    assert not last["USER"].startswith(("0", "root"))
    names = [name for name, _ in _instructions()]
    # What runs after USER runs as in production: the weights must be readable there.
    assert names.index("USER") < names.index("ENTRYPOINT")
    checks = [rest for name, rest in _instructions() if name == "RUN" and "verify" in rest]
    assert json.loads(checks[0]) == [program, "weights", "verify"]
    assert _section("runscript") == [f'exec {program} "$@"']
    assert _section("test") == [f"{program} weights verify"]


def test_both_recipes_install_the_same() -> None:
    torch = [rest for name, rest in _instructions() if name == "RUN" and "torch" in rest]
    assert len(torch) == 1
    post = " ".join(_section("post")).replace("{{ TORCH }}", "${TORCH}")
    assert torch[0] in post
    arguments = dict(line.split("=") for line in _section("arguments"))
    defaults = dict(rest.split("=") for name, rest in _instructions() if name == "ARG")
    assert arguments == defaults
    assert defaults["TORCH"] == "cpu"


def test_the_apptainer_recipe_is_shell() -> None:
    script = "\n".join([*_section("post"), *_section("environment"), *_section("runscript")])
    subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=30)


def test_the_apptainer_image_empties_the_callers_python_path() -> None:
    # Empty, not unset: Apptainer sets again what the caller had and %environment leaves unset.
    script = "\n".join([*_section("environment"), 'echo "${PYTHONPATH-unset},${PYTHONHOME-unset}"'])
    done = subprocess.run(
        ["bash"],
        input=script,
        env={"PYTHONPATH": "/modules/python", "PYTHONHOME": "/modules"},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == ",\n"


def test_hadolint_is_silent() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
        "hadolint"
    )
    if program is None:
        pytest.skip("no hadolint")
    done = subprocess.run(
        [program, str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
