"""The lines between the parts of the program: who may import what, and who may print."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from bundles import write_tiny_bundle

PACKAGE = Path(__file__).resolve().parent.parent / "mmccd_cli"
SOURCES = sorted(PACKAGE.rglob("*.py"))

LAYERS = (
    "errors host",
    "files",
    "config template progress",
    "inputs anomaly translation",
    "preprocessing weights",
    "signals",
    "pipeline",
    "outputs training",
    "cohort evaluation",
    "api",
    "cli",
)
"""From the ground up: a package imports only from layers below its own."""

IMAGE_SIDE = ("inputs", "anomaly", "preprocessing", "outputs")
MODEL_SIDE = ("translation", "signals", "weights", "training")
READS_SCANS = ("dataset.py", "mean_template.py")
"""Of the model side: what turns a data set of scans into slices, before training."""
IS_A_NETWORK = ("deepbet",)
"""Of the image side: the networks of skull strippers, which are imported only when they run."""

LIGHT = ("errors", "files", "cli")
"""What `mmccd --help` imports."""

IMAGE_LIBRARIES = {"nibabel", "SimpleITK"}
HEAVY = {"torch", "numpy", "pydantic", "scipy", "cc3d", "PIL", "huggingface_hub", *IMAGE_LIBRARIES}


def _sources(*names: str) -> list[Path]:
    found = []
    for name in names:
        folder = PACKAGE / name
        found += sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    return [path for path in found if path.is_file()]


def _imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Full names of the modules that a file imports."""
    names: set[str] = set()
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), top_level_only):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _nodes(tree: ast.AST, top_level_only: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        only_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if top_level_only and (inside or only_for_types):
            continue
        yield node
        yield from _nodes(node, top_level_only)


def _packages(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def _reached(*names: str) -> dict[str, set[str]]:
    """Imports of modules and of all that they import of this package, when they are imported."""
    return _reached_from(_sources(*names))


def _reached_from(waiting: list[Path]) -> dict[str, set[str]]:
    reached: dict[str, set[str]] = {}
    while waiting:
        path = waiting.pop()
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        if name in reached:
            continue
        reached[name] = _imported(path, top_level_only=True)
        ours = {item.split(".", 1)[1] for item in reached[name] if item.startswith("mmccd_cli.")}
        waiting += [
            source
            for item in ours
            for source in (
                PACKAGE / f"{item.replace('.', '/')}.py",
                PACKAGE / item.replace(".", "/") / "__init__.py",
            )
            if source.is_file()
        ]
    return reached


def _room(module: str) -> str:
    """The package, or module at the top, that a module of this project belongs to."""
    return module.removeprefix("mmccd_cli.").split(".")[0]


def _ours(path: Path) -> set[str]:
    """The modules of this project that a file imports anywhere, also inside functions."""
    modules = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts) for p in SOURCES}
    return _imported(path) & modules


def test_nobody_imports_from_a_layer_above() -> None:
    floor = {room: number for number, rooms in enumerate(LAYERS) for room in rooms.split()}
    inside = [path for path in SOURCES if path.parent != PACKAGE or path.stem in floor]
    upward = {
        f"{path.relative_to(PACKAGE)} -> {module}"
        for path in inside
        for module in _ours(path)
        if (room := _room(module)) != (own := path.relative_to(PACKAGE).parts[0].split(".")[0])
        and floor[room] >= floor[own]
    }
    assert not upward


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): _ours(path)
        for path in SOURCES
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_one_finds_the_way_in() -> None:
    entries = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()]
    assert len([path for path in entries if path.name not in ("__pycache__", "_weights")]) <= 21


def _image_side() -> list[Path]:
    return [path for path in _sources(*IMAGE_SIDE) if path.stem not in IS_A_NETWORK]


@pytest.mark.parametrize("path", _image_side(), ids=lambda path: path.stem)
def test_image_side_never_imports_torch(path: Path) -> None:
    # A skull stripper is itself a network: it may import torch when it runs, and only then.
    only_at_start = path.stem == "skull_strippers"
    assert "torch" not in _packages(_imported(path, top_level_only=only_at_start))


def test_image_side_reaches_no_torch() -> None:
    reaching = {
        name for name, items in _reached_from(_image_side()).items() if "torch" in _packages(items)
    }
    assert not reaching


def _model_side() -> list[Path]:
    return [path for path in _sources(*MODEL_SIDE) if path.name not in READS_SCANS]


@pytest.mark.parametrize("path", _model_side(), ids=lambda path: path.stem)
def test_model_side_never_imports_image_libraries(path: Path) -> None:
    assert not _packages(_imported(path)) & IMAGE_LIBRARIES


def test_training_runs_where_no_image_library_is_installed() -> None:
    reached = _reached_from(_model_side())
    assert not {name for name, items in reached.items() if _packages(items) & IMAGE_LIBRARIES}


def test_two_modules_know_simpleitk() -> None:
    users = {
        path.name for path in PACKAGE.rglob("*.py") if "SimpleITK" in _packages(_imported(path))
    }
    assert users <= {"registration.py", "spatial.py"}


def test_nothing_heavy_is_imported_by_the_command_line_at_its_start() -> None:
    reaching = {name for name, items in _reached(*LIGHT).items() if _packages(items) & HEAVY}
    assert not reaching


def test_no_call_passes_more_than_three_arguments_by_place() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
    ours = {
        node.name: node
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    variadic = {n for n, d in ours.items() if isinstance(d, ast.FunctionDef) and d.args.vararg}
    long = {
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.func.id}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ours.keys() - variadic
        and len(node.args) > 3
    }
    assert not long


def _lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring; for a command, without its signature."""
    is_command = any("command" in ast.unparse(d) for d in function.decorator_list)
    first = function.body[0] if is_command else function
    documented = isinstance(function.body[0], ast.Expr) and ast.get_docstring(function)
    text = function.body[0] if documented else None
    total = (function.end_lineno or 0) - first.lineno + 1
    return total - (0 if text is None else (text.end_lineno or 0) - text.lineno + 1)


def test_functions_fit_on_a_screen() -> None:
    long = {
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and _lines(node) > 60
    }
    assert not long


def test_nobody_imports_click() -> None:
    users = {path.name for path in PACKAGE.rglob("*.py") if "click" in _packages(_imported(path))}
    assert not users


def test_only_the_command_line_prints() -> None:
    for path in PACKAGE.rglob("*.py"):
        if "cli" in path.relative_to(PACKAGE).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) != "print", f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Attribute):
                spelled = ast.unparse(node)
                assert spelled not in ("sys.stdout", "sys.stderr"), f"{path.name}:{node.lineno}"


def _output_of(code: str) -> str:
    """What a new interpreter prints, which must end well."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from mmccd_cli.cli.app import app\n"
        "try: app(['--help'], prog_name='mmccd')\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"heavy = {sorted(HEAVY)!r}\n"
        "sys.exit(', '.join(name for name in heavy if name in sys.modules) or 0)"
    )
    assert "segment" in _output_of(code)


def test_loading_weights_does_not_load_the_compiler(tmp_path: Path) -> None:
    # Building a network on the meta device may: sympy and torch._dynamo take a second.
    bundle = write_tiny_bundle(tmp_path / "tiny")
    code = (
        "import sys; from pathlib import Path; from mmccd_cli.weights.bundle import load_bundle\n"
        f"load_bundle(Path({str(bundle)!r}))\n"
        "sys.exit(', '.join(m for m in ('sympy', 'torch._dynamo') if m in sys.modules) or 0)"
    )
    _output_of(code)


def test_subjects_are_prepared_before_torch_is_there(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    code = (
        "import sys; from pathlib import Path\n"
        "from mmccd_cli.api import Segmenter\n"
        "from mmccd_cli.inputs.phantom import make_phantom\n"
        f"model = Segmenter.from_pretrained(Path({str(bundle)!r}), begin=False, threads=1)\n"
        "scans = make_phantom(shape=(34, 38, 30), spacing_mm=(6, 6, 6)).volumes\n"
        "model.prepare(scans, threads=model.threads)\n"
        "assert 'torch' not in sys.modules\n"
        "model.begin(scans)\n"
        "assert 'torch' in sys.modules"
    )
    _output_of(code)


@pytest.mark.parametrize("package", sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py")))
def test_a_package_shows_what_its_face_names(package: str) -> None:
    face = importlib.import_module(f"mmccd_cli.{package}")
    missing = [name for name in getattr(face, "__all__", ()) if not hasattr(face, name)]
    assert not missing


@pytest.mark.parametrize(
    "face", sorted(PACKAGE.glob("*/**/__init__.py")), ids=lambda path: path.parent.name
)
def test_a_package_says_what_its_modules_are_for(face: Path) -> None:
    told = ast.get_docstring(ast.parse(face.read_text(encoding="utf-8"))) or ""
    modules = {path.stem for path in face.parent.glob("*.py")} - {"__init__"}
    assert not {name for name in modules if f"`{name}`" not in told}
