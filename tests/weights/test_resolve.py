"""What a name, a folder or a Hub id stands for, and `mmccd weights` on this computer alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from bundles import write_tiny_bundle
from typer.testing import CliRunner

from mmccd_cli.cli.app import app
from mmccd_cli.errors import MmccdError, WeightsError
from mmccd_cli.weights import registry
from mmccd_cli.weights.hub import HubId, cache_folder, cached_id
from mmccd_cli.weights.index import INDEX, check_folder
from mmccd_cli.weights.registry import RegistryEntry, embedded_bundles, embedded_root, read_registry
from mmccd_cli.weights.resolve import EMBEDDED_DEFAULT, find_source, resolve, resolve_weights


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MMCCD_WEIGHTS", raising=False)
    monkeypatch.setenv("MMCCD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def embedded(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the tiny bundle be the one that came with the program."""
    root = tmp_path / "_weights"
    shutil.copytree(bundle, root / EMBEDDED_DEFAULT)
    monkeypatch.setattr(registry, "embedded_root", lambda: root)
    return root


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["weights", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_a_folder_and_its_index_are_the_same(bundle: Path) -> None:
    assert resolve_weights(str(bundle)) == bundle
    assert resolve_weights(str(bundle / INDEX)) == bundle
    assert resolve(str(bundle)).origin == "path"


def test_a_relative_folder_comes_before_a_hub_id(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "lab" / "tiny")
    assert find_source("lab/tiny").origin == "path"
    assert find_source("lab/other").hub_id == HubId("lab/other")


def test_the_default_is_the_environment_then_the_embedded_bundle(
    bundle: Path, embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_weights(None, offline=True) == embedded / EMBEDDED_DEFAULT
    monkeypatch.setenv("MMCCD_WEIGHTS", str(bundle))
    assert resolve_weights(None) == bundle
    assert resolve_weights(EMBEDDED_DEFAULT) == embedded / EMBEDDED_DEFAULT


def test_a_folder_that_is_no_bundle_does_not_hide_an_embedded_name(
    embedded: Path, tmp_path: Path
) -> None:
    (tmp_path / EMBEDDED_DEFAULT).mkdir()
    assert resolve(EMBEDDED_DEFAULT).origin == "embedded"


def test_the_default_is_no_bundle_that_lies_in_the_working_folder(
    bundle: Path, embedded: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle, tmp_path / EMBEDDED_DEFAULT)
    assert resolve(None).origin == "embedded"
    assert resolve(EMBEDDED_DEFAULT).origin == "path"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("glioma-compcat", f"--weights {EMBEDDED_DEFAULT}"),
        ("./nowhere", "weights list"),
        ("/", "weights list"),
        ("model.pt", "--weights FOLDER"),
        ("a/b/c", "weights list"),
        ("lab/x@../../etc", "weights list"),
        ("x" * 5000, "weights list"),
        ("with\0zero", "weights list"),
    ],
)
def test_what_stands_for_nothing_is_explained(
    embedded: Path, tmp_path: Path, spec: str, message: str
) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x04cposix\nsystem\n.")
    with pytest.raises(WeightsError) as caught:
        resolve_weights(spec, offline=True)
    assert message in str(caught.value.next_step)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lab/tiny", HubId("lab/tiny")),
        ("lab/tiny@v1.0", HubId("lab/tiny", "v1.0")),
        ("hf://lab/tiny@refs/pr/1", HubId("lab/tiny", "refs/pr/1")),
        ("lab/tiny@" + "a" * 40, HubId("lab/tiny", "a" * 40)),
        ("lab", None),
        ("lab/a--b", None),
        ("lab/..", None),
        ("lab/tiny@", None),
        ("lab/tiny@a b", None),
    ],
)
def test_hub_ids(text: str, expected: HubId | None) -> None:
    assert HubId.parse(text) == expected


def test_the_accuracy_says_on_whom(bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle, tmp_path / "calibrated")
    document = json.loads((folder / INDEX).read_text())
    row = {"method": "mmccd", "modalities": ["FLAIR", "T2w"], "left_out_dice": 0.5}
    about = {"split": "train", "subjects": ["a", "b"], "rows": [row]}
    document["bundle"]["calibration"] = about
    (folder / INDEX).write_text(json.dumps(document))
    assert check_folder(folder).accuracy == (
        "Dice 0.50 in calibration on 2 subjects of the split 'train' (mmccd, FLAIR+T2w)"
    )


def test_a_folder_of_the_cache_knows_its_commit(tmp_path: Path) -> None:
    commit = "a" * 40
    assert cached_id(tmp_path / "models--lab--tiny" / "snapshots" / commit) == f"lab/tiny@{commit}"
    assert cached_id(tmp_path / "tiny") is None
    assert cached_id(Path("x")) is None


def test_a_damaged_file_is_refused(bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle, tmp_path / "damaged")
    with (folder / "template.safetensors").open("r+b") as stream:
        stream.write(b"\0")
    with pytest.raises(WeightsError, match=r"template\.safetensors"):
        resolve_weights(str(folder))


def test_the_cache_folder_is_the_option_then_the_variable(tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    assert cache_folder(tmp_path / "other") == tmp_path / "other"


def test_the_registry_pins_an_embedded_bundle(
    embedded: Path,
) -> None:
    index = check_folder(embedded / EMBEDDED_DEFAULT)
    entry = RegistryEntry(repo=None, revision=None, sha256=index.sha256)
    document = {"format": 1, "bundles": {EMBEDDED_DEFAULT: asdict(entry)}}
    (embedded / "registry.json").write_text(json.dumps(document))
    assert read_registry() == {EMBEDDED_DEFAULT: entry}
    assert resolve(EMBEDDED_DEFAULT).source.entry == entry
    write_tiny_bundle(embedded / EMBEDDED_DEFAULT, seed=3)
    with pytest.raises(WeightsError, match="not the file"):
        resolve(EMBEDDED_DEFAULT)


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.update(revision="main"),
        lambda e: e.update(repo=None),
        lambda e: e.update(sha256="0" * 63),
        lambda e: e.pop("sha256"),
        lambda e: e.update(licence="CC0"),
    ],
)
def test_a_damaged_registry_is_a_bug_that_is_named(embedded: Path, change) -> None:
    entry = {"repo": "lab/tiny", "revision": "a" * 40, "sha256": "0" * 64}
    path = embedded / "registry.json"
    path.write_text(json.dumps({"format": 1, "bundles": {"tiny": entry}}))
    assert asdict(read_registry()["tiny"]) == entry
    change(entry)
    path.write_text(json.dumps({"format": 1, "bundles": {"tiny": entry}}))
    with pytest.raises(MmccdError, match="not a registry"):
        read_registry()


def test_what_is_shipped_is_whole_and_fits_the_registry() -> None:
    """Only names that exist are listed, and every embedded bundle is what its hashes say."""
    known = read_registry()
    shipped = embedded_bundles()
    assert embedded_root() is not None
    assert set(known) <= {*shipped, *(n for n, e in known.items() if e.repo)}
    for name, folder in shipped.items():
        index = check_folder(folder)
        assert index.text("name") == name
        if name in known:
            known[name].check(index)


def test_list_info_path_verify(embedded: Path, bundle: Path) -> None:
    code, out, _ = run("list", "--json")
    rows = {row["weights"]: row for row in json.loads(out)}
    assert code == 0
    assert rows[EMBEDDED_DEFAULT]["where"] == "embedded"
    assert rows[EMBEDDED_DEFAULT]["modalities"] == ["FLAIR", "T2w"]
    assert EMBEDDED_DEFAULT in run("list")[1]
    code, out, _ = run("info", bundle, "--json")
    about = json.loads(out)
    assert about["name"] == "tiny"
    assert set(about["files"]) == {p.name for p in bundle.iterdir()}
    assert "licence: CC0-1.0" in run("info", bundle)[1]
    assert run("path", bundle)[1] == f"{bundle}\n"
    assert json.loads(run("path", bundle, "--json")[1]) == {"folder": str(bundle)}
    assert run("path")[1] == f"{embedded / EMBEDDED_DEFAULT}\n"
    code, _, err = run("verify", bundle)
    assert code == 0
    assert "7 files as they should be" in err


def test_errors_are_exit_code_4(bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle, tmp_path / "damaged")
    (folder / "README.md").write_text("another")
    for arguments in (
        ("verify", folder),
        ("info", "nothing-of-this-name"),
        ("path", "lab/tiny", "--offline"),
        ("remove", bundle),
        ("remove", "lab/tiny"),
        ("push", folder, "lab/tiny"),
    ):
        code, _, err = run(*arguments)
        assert code == 4, arguments
        assert "next:" in err
    assert bundle.is_dir()
