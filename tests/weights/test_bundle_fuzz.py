"""Mutated bundles: only WeightsError comes out, and memory stays bounded."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from bundles import replace_file, write_tiny_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmccd_cli.errors import WeightsError
from mmccd_cli.weights.bundle import TEMPLATE, load_bundle, verify_bundle
from mmccd_cli.weights.index import INDEX

NETWORK = "FLAIR-T2w.diffusion.safetensors"
MAX_GROWTH_MIB = 200

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2, 3, 2**31, 2**39, 2**63, 10**400, 1e308, -0.0, "", "..", "é"]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=8),
    st.lists(st.integers(-2, 5), max_size=4),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = write_tiny_bundle(tmp_path_factory.mktemp("fuzz") / "tiny")
    # Each example reads all files, so those that it does not change are left out.
    document = json.loads((folder / INDEX).read_text())
    document["files"] = {n: e for n, e in document["files"].items() if n in (NETWORK, TEMPLATE)}
    (folder / INDEX).write_text(json.dumps(document))
    return folder, {n: (folder / n).read_bytes() for n in (INDEX, NETWORK, TEMPLATE)}


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the way to every value within a JSON document."""
    found = [prefix] if prefix else []
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        found += paths(item, (*prefix, key))
    return found


@st.composite
def changed_json(draw: st.DrawFn, document: dict[str, Any]) -> bytes:
    """Replace, remove, rename or add some values of a document."""
    changed = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        way = draw(st.sampled_from(paths(changed) or [()]))
        if not way:
            break
        parent = changed
        for key in way[:-1]:
            parent = parent[key]
        kind = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if kind == "remove":
            del parent[way[-1]]
        elif kind == "add" and isinstance(parent, dict):
            parent[draw(st.text(max_size=6))] = draw(ODD)
        else:
            parent[way[-1]] = draw(ODD)
    return json.dumps(changed).encode()


@st.composite
def changed_bytes(draw: st.DrawFn, raw: bytes, within: int) -> bytes:
    """Change, insert, cut or repeat bytes among the first ones."""
    changed = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, min(within, len(changed)) - 1)))
        kind = draw(st.sampled_from(["set", "set", "insert", "delete", "cut"]))
        if kind == "set" and changed:
            changed[at] = draw(st.integers(0, 255))
        elif kind == "insert":
            changed[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del changed[at : at + draw(st.integers(1, 9))]
        elif kind == "cut":
            del changed[at:]
    return bytes(changed)


@st.composite
def changed_tensors(draw: st.DrawFn, raw: bytes) -> bytes:
    """Change a safetensors file: its header as JSON, as bytes, or the number before it."""
    length = int.from_bytes(raw[:8], "little")
    kind = draw(st.sampled_from(["json", "json", "bytes", "length"]))
    if kind == "bytes":
        return draw(changed_bytes(raw, 8 + length))
    if kind == "length":
        return draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little") + raw[8:]
    header = draw(changed_json(json.loads(raw[8 : 8 + length])))
    return len(header).to_bytes(8, "little") + header + raw[8 + length :]


def start_peak() -> float:
    """Let the peak of this process's memory begin now, and return what it uses.

    The peak of a whole run would be that of hypothesis, which keeps what it drew.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return memory_mib("VmRSS")


def memory_mib(key: str) -> float:
    """Return a figure of this process's memory; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    return float(status.split(f"{key}:")[1].split()[0]) / 1024


def load_changed(parts: tuple[Path, dict[str, bytes]], name: str, raw: bytes) -> None:
    """Load a bundle with one file changed; its hash is made to fit, as by one who means harm."""
    folder, contents = parts
    try:
        if name == INDEX:
            (folder / name).write_bytes(raw)
        else:
            replace_file(folder, name, raw)
        before = start_peak()
        with contextlib.suppress(WeightsError):
            verify_bundle(load_bundle(folder))
        assert memory_mib("VmHWM") - before < MAX_GROWTH_MIB
    finally:
        for original in (name, INDEX):
            (folder / original).write_bytes(contents[original])


@pytest.mark.parametrize("examples", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutations(parts: tuple[Path, dict[str, bytes]], examples: int) -> None:
    """Index, network and template are changed that many times together."""
    folder, contents = parts
    verify_bundle(load_bundle(folder))
    kinds = [
        (INDEX, changed_json(json.loads(contents[INDEX])), 4),
        (INDEX, changed_bytes(contents[INDEX], len(contents[INDEX])), 2),
        (NETWORK, changed_tensors(contents[NETWORK]), 2),
        (TEMPLATE, changed_tensors(contents[TEMPLATE]), 2),
    ]
    for name, strategy, share in kinds:

        @settings(
            max_examples=examples * share // 10,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.tuples(st.just(name), strategy))
        def check(changed: tuple[str, bytes]) -> None:
            load_changed(parts, *changed)

        check()
