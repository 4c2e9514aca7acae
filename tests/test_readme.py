"""What README, guides and metadata say is so: their lines run, their links lead somewhere."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import yaml

from mmccd_cli import __version__
from mmccd_cli.cli.app import app

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "examples").glob("*.md"))
PAGES = [README, ROOT / "AGENTS.md", *GUIDES, *sorted((ROOT / "weights").glob("*.md"))]
_SMALL_PROGRAM = """#!{python}
import functools, sys
sys.path.insert(0, {root!r})
import mmccd_cli.cohort.demo as demo
demo.make_phantom = functools.partial(
    demo.make_phantom, shape=(60, 60, 39), spacing_mm=(4, 4, 4)
)
from mmccd_cli.cli.app import main
main()
"""
"""The program, whose demonstration makes a small head."""


def _blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _calls(page: Path) -> Iterator[list[str]]:
    """The words of every call of mmccd in a page, its command first."""
    for block in _blocks(page, "bash"):
        for line in block.splitlines():
            call = re.search(r".*\bmmccd(?:\.sif)? ([a-z].*)", line.split(" #")[0])
            if call and " build " not in line:
                yield call[1].split()


@pytest.fixture
def machine(tmp_path: Path, bundle: Path) -> dict[str, str]:
    """A folder whose .venv has the program, and tools that install nothing."""
    tools = {
        ".venv/bin/mmccd": _SMALL_PROGRAM.format(python=sys.executable, root=str(ROOT)),
        ".venv/bin/pip": "#!/bin/sh\n",
        ".venv/bin/pytest": "#!/bin/sh\n",
        ".venv/bin/activate": 'export PATH="$PWD/.venv/bin:$PATH"\n',
        "tools/python3": "#!/bin/sh\n",
    }
    for name, text in tools.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    path = f"{tmp_path / 'tools'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "MMCCD_WEIGHTS": str(bundle), "PYTHONPATH": str(ROOT)}


def test_all_blocks_of_the_readme_run_one_after_the_other(
    machine: dict[str, str], tmp_path: Path
) -> None:
    blocks = re.findall(
        r"^```(bash|python)\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    script = ["set -e"]
    for number, (language, text) in enumerate(blocks):
        (tmp_path / f"block{number}.py").write_text(text)
        script.append(text if language == "bash" else f"{sys.executable} block{number}.py")
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=machine,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = {path.name for path in tmp_path.iterdir()}
    named = {"map.nii.gz", "map_mask.nii.gz", "map_lesions.tsv", "map.json", "report.html"}
    assert named | {"flair_only.nii.gz", "strict.nii.gz", "python.nii.gz", "out"} <= written
    assert "new.nii.gz" not in written
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").open()]
    assert [record["status"] for record in records] == ["skipped"]


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) < 1800


def test_the_readme_sets_up_what_the_tests_of_a_clean_clone_run() -> None:
    first, second = _blocks(README, "bash")[:2]
    assert '-m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/mmccd demo' in first
    assert second.strip() == ".venv/bin/pytest"
    assert re.search(r"^pytest( -q)?$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", [README, *GUIDES], ids=lambda path: path.name)
def test_calls_have_options_that_exist(page: Path) -> None:
    for block in _blocks(page, "bash"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True, timeout=30)
    for words in _calls(page):
        command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            command = command.commands[words[1]]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, " ".join(words)


def test_every_guide_is_linked_and_shows_a_call() -> None:
    linked = re.findall(r"\(examples/(\w+\.md)\)", README.read_text(encoding="utf-8"))
    assert {page.name for page in GUIDES} == set(linked)
    for page in GUIDES:
        assert [*_calls(page), *_blocks(page, "python")], page.name


@pytest.mark.parametrize("page", [README, *GUIDES], ids=lambda path: path.name)
def test_python_and_json_of_the_pages_can_be_read(page: Path) -> None:
    for block in _blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "mmccd_cli":
                import mmccd_cli

                assert all(hasattr(mmccd_cli, alias.name) for alias in node.names)
    for block in _blocks(page, "json"):
        json.loads(block)


def test_what_one_cites_is_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == __version__
    assert cited["cff-version"] == "1.2.0"
    assert {"title", "authors", "date-released", "license", "references"} <= cited.keys()
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    dated = re.findall(r"^## (\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)$", changes, re.MULTILINE)
    assert dict(dated)[__version__] == str(cited["date-released"])
    assert len(dated) == len(re.findall(r"^## \d", changes, re.MULTILINE))


def test_the_licence_names_all_that_the_wheel_holds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    files = [path for name in project["license-files"] for path in ROOT.glob(name)]
    assert len(files) == len(project["license-files"])
    inside = {*ROOT.glob("mmccd_cli/**/*LICENSE*"), *ROOT.glob("weights/LICENSE*")}
    assert inside <= set(files)
    for part in ("MIT", "LicenseRef-"):
        assert part in project["license"]
    assert all(url.startswith("https://") for url in project["urls"].values())
