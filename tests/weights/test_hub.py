"""Weights from a server that speaks the Hub's API, through the real huggingface_hub client."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from bundles import write_tiny_bundle
from hub_server import TOKEN, Fault, LoopbackHub, Repo, loopback_hub

from mmccd_cli.errors import WeightsError
from mmccd_cli.weights import hub as hub_module
from mmccd_cli.weights import resolve as weights
from mmccd_cli.weights.bundle import load_bundle, verify_bundle
from mmccd_cli.weights.hub import HubId
from mmccd_cli.weights.index import INDEX, check_folder, read_index
from mmccd_cli.weights.registry import RegistryEntry, embedded_bundles
from mmccd_cli.weights.resolve import LocalBundle, resolve

ROOT = Path(__file__).resolve().parents[2]
REPO = "lab/tiny"
NEW = "lab/new"
LARGE = "FLAIR-T2w.diffusion.safetensors"

Use = Callable[..., LocalBundle]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> Iterator[LoopbackHub]:
    """A server that the client takes for the Hub; the tiny bundle is published there."""
    from huggingface_hub import constants, file_download

    with loopback_hub() as running:
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        for module in (constants, file_download):  # some versions copy it
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        running.publish(REPO, bundle)
        yield running


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the tests away from the user's proxies, tokens and caches."""
    from huggingface_hub import constants, utils

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MMCCD_WEIGHTS", "MMCCD_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    (utils.close_session if hasattr(utils, "close_session") else utils.reset_sessions)()


@pytest.fixture
def use(hub: LoopbackHub, tmp_path: Path) -> Use:
    """Resolve weights against the server with a cache of the test's own."""

    return partial(resolve, cache_dir=tmp_path / "cache")


def files_of(folder: Path) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.iterdir()
        if not p.name.startswith(".")
    }


def state_of(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_first_use_downloads_and_second_use_needs_no_server(
    hub: LoopbackHub, bundle: Path, use: Use, tmp_path: Path
) -> None:
    commit = hub.repos[REPO].head
    first = use(REPO)
    assert (first.origin, first.hub_id) == ("hub", HubId(REPO, commit))
    assert first.source.hub_id == HubId(REPO, "main")
    assert files_of(first.folder) == files_of(bundle)
    verify_bundle(load_bundle(first.folder))
    assert set(hub.transfers().values()) == {1}
    hub.close()
    seen, written = len(hub.log), state_of(tmp_path)
    for spec in (REPO, f"{REPO}@{commit}", f"hf://{REPO}@main"):
        for offline in (False, True):
            again = use(spec, offline=offline)
            assert (again.origin, again.hub_id) == ("cache", HubId(REPO, commit))
    assert len(hub.log) == seen
    assert state_of(tmp_path) == written


def test_offline_an_empty_cache_says_how_to_fill_it(hub: LoopbackHub, use: Use) -> None:
    with pytest.raises(WeightsError) as caught:
        use(REPO, offline=True)
    assert "--offline" in str(caught.value.cause)
    assert f"mmccd weights download {REPO}" in str(caught.value.next_step)
    assert "--weights FOLDER" in str(caught.value.next_step)
    assert not hub.log


def test_the_hubs_own_offline_variable_is_honoured(
    hub: LoopbackHub, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="not in the cache"):
        use(REPO)
    assert not hub.log


def test_a_branch_stays_what_it_is_until_it_is_refreshed(
    hub: LoopbackHub, bundle: Path, use: Use, tmp_path: Path
) -> None:
    old = hub.repos[REPO].head
    assert use(REPO).folder.name == old
    changed = shutil.copytree(bundle, tmp_path / "changed")
    new = hub.publish(REPO, write_tiny_bundle(changed, seed=1))
    assert new != old
    assert use(REPO).folder.name == old
    assert use(REPO, refresh=True).folder.name == new
    assert use(REPO, offline=True).folder.name == new
    assert use(f"{REPO}@{old}", offline=True).folder.name == old


def test_only_listed_files_are_downloaded(hub: LoopbackHub, bundle: Path, use: Use) -> None:
    hub.repos[REPO].commit(
        {**hub.repos[REPO].files, "model.pkl": b"\x80\x04.", "setup.py": b"raise SystemExit"}
    )
    folder = use(REPO).folder
    assert files_of(folder) == files_of(bundle)
    assert not hub.requests("GET", "model.pkl")
    assert not hub.requests("HEAD", "setup.py")


@pytest.mark.parametrize(
    ("spec", "kinds", "token", "cause", "next_step"),
    [
        (REPO, {"private": True}, None, "private and you are not logged in (HTTP 401)", "HF_TOKEN"),
        (REPO, {}, "hf_wrong", "HTTP 401", "hf auth login"),
        (REPO, {"gated": True}, None, "gated", "Accept them at"),
        (REPO, {"gated": True}, TOKEN, "is gated: its owner asks you to accept the terms first "
         "(HTTP 403)", "Accept them at"),
        ("lab/nothing", {}, TOKEN, "There is no", "Correct the name"),
        ("lab/nothing", {}, None, "no folder lab/nothing here either", "Correct the name"),
        (f"{REPO}@v9", {}, None, "no branch, tag or commit v9 (HTTP 404)", "/commits/main"),
        (f"{REPO}@{'0' * 40}", {}, None, f"no branch, tag or commit {'0' * 40}", "/commits/main"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_explained(
    hub: LoopbackHub,
    use: Use,
    monkeypatch: pytest.MonkeyPatch,
    spec: str,
    kinds: dict[str, bool],
    token: str | None,
    cause: str,
    next_step: str,
) -> None:
    for kind, value in kinds.items():
        setattr(hub.repos[REPO], kind, value)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(WeightsError) as caught:
        use(spec)
    assert cause in str(caught.value.cause)
    assert next_step in str(caught.value.next_step)


def test_a_repository_without_a_bundle_is_refused(hub: LoopbackHub, use: Use) -> None:
    hub.repos[REPO] = Repo()
    hub.repos[REPO].commit({"README.md": b"# A model of another kind\n"})
    with pytest.raises(WeightsError) as caught:
        use(REPO)
    assert "not a whole mmccd bundle" in str(caught.value.cause)


def test_a_listed_file_that_is_not_there_is_named(hub: LoopbackHub, use: Use) -> None:
    files = {name: raw for name, raw in hub.repos[REPO].files.items() if name != LARGE}
    commit = hub.repos[REPO].commit(files)
    with pytest.raises(WeightsError, match=LARGE):
        use(REPO)
    with pytest.raises(WeightsError, match="damaged"):
        use(f"{REPO}@{commit}", offline=True)


API = "/api/models"


@pytest.mark.parametrize(
    ("path", "method", "kind"),
    [
        *[(path, "GET", "status:503") for path in (API, INDEX, "/cdn/")],
        *[(path, "HEAD", "status:503") for path in (INDEX, LARGE)],
        *[(path, "GET", "corrupt") for path in (INDEX, "/cdn/")],
    ],
)
def test_what_fails_once_is_asked_for_again(
    hub: LoopbackHub, bundle: Path, use: Use, path: str, method: str, kind: str
) -> None:
    hub.faults.append(Fault(path, kind, 1, method))
    assert files_of(use(REPO).folder) == files_of(bundle)
    assert hub.faults[0].times == 0


@pytest.mark.parametrize(
    ("path", "method", "kind", "cause", "next_step"),
    [
        (API, "GET", "status:500", "{endpoint} answered HTTP 500", "--weights FOLDER"),
        ("/cdn/", "GET", "cut", "cut off", "--weights FOLDER"),
        (API, "GET", "html", "login page or a proxy", "HTTPS_PROXY"),
        (INDEX, "HEAD", "html", "login page or a proxy", "HTTPS_PROXY"),
        (INDEX, "GET", "html", "login page or a proxy", "HTTPS_PROXY"),
        ("/cdn/", "GET", "html", "login page or a proxy", "HTTPS_PROXY"),
    ],
)
def test_what_keeps_failing_is_explained_and_nothing_is_accepted(
    hub: LoopbackHub,
    use: Use,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    method: str,
    kind: str,
    cause: str,
    next_step: str,
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.faults.append(Fault(path, kind, 999, method))
    with pytest.raises(WeightsError) as caught:
        use(REPO)
    assert cause.format(endpoint=hub.endpoint) in str(caught.value.cause)
    assert next_step in str(caught.value.next_step)
    for spec in (REPO, f"{REPO}@{hub.repos[REPO].head}"):
        with pytest.raises(WeightsError):
            use(spec, offline=True)


@pytest.mark.parametrize("path", [INDEX, "/cdn/"])
def test_a_connection_cut_half_way_is_resumed(
    hub: LoopbackHub, bundle: Path, use: Use, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    hub.faults.append(Fault(path, "cut"))
    assert files_of(use(REPO).folder) == files_of(bundle)
    assert hub.faults[0].times == 0
    assert any("range" in request.headers for request in hub.requests("GET", path))


@pytest.mark.parametrize("name", [INDEX, LARGE])
def test_a_file_that_stays_wrong_is_never_accepted(
    hub: LoopbackHub, bundle: Path, use: Use, name: str
) -> None:
    listed = read_index(bundle).files.get(name)
    digest = listed.sha256 if listed else ""
    hub.faults.append(Fault(f"/cdn/{digest}" if digest else name, "corrupt", 99))
    with pytest.raises(WeightsError) as caught:
        use(REPO)
    assert name in str(caught.value)
    assert digest in str(caught.value.cause)
    if digest:
        assert hub.endpoint in str(caught.value)
    with pytest.raises(WeightsError):
        use(REPO, offline=True)
    hub.faults.clear()
    assert files_of(use(REPO).folder) == files_of(bundle)


def test_a_server_that_is_not_there_is_noticed_quickly(hub: LoopbackHub, use: Use) -> None:
    hub.close()
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        use(f"{REPO}@{'a' * 40}")
    assert time.monotonic() - start < 5
    assert "cannot be reached" in str(caught.value.cause)
    assert all(name in str(caught.value.next_step) for name in ("HTTPS_PROXY", "SSL_CERT_FILE"))


def test_a_damaged_file_in_the_cache_is_refused_offline_and_replaced_online(
    hub: LoopbackHub, bundle: Path, use: Use
) -> None:
    path = use(REPO).folder / LARGE
    blob = path.resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"\0")
    with pytest.raises(WeightsError, match="damaged"):
        use(REPO, offline=True)
    assert files_of(use(REPO).folder) == files_of(bundle)
    use(REPO, offline=True)


def test_a_cache_that_cannot_be_written_is_named(
    hub: LoopbackHub, use: Use, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(WeightsError) as caught:
        use(REPO, cache_dir=blocked / "cache")
    assert str(blocked / "cache") in str(caught.value.cause)
    assert "--cache-dir" in str(caught.value.next_step)


def test_the_registry_outweighs_the_repository(
    hub: LoopbackHub, bundle: Path, use: Use, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit = hub.repos[REPO].head
    entry = RegistryEntry(repo=REPO, revision=commit, sha256=check_folder(bundle).sha256)
    monkeypatch.setattr(weights, "read_registry", lambda: {"tiny": entry})
    found = use("tiny")
    assert (found.origin, found.folder.name, found.source.entry) == ("hub", commit, entry)
    assert use("tiny", offline=True).origin == "cache"
    other = check_folder(write_tiny_bundle(tmp_path / "other", seed=2))
    forged = replace(entry, sha256=other.sha256)
    monkeypatch.setattr(weights, "read_registry", lambda: {"tiny": forged})
    with pytest.raises(WeightsError) as caught:
        use("tiny")
    assert other.sha256 in str(caught.value.cause)


def test_push_is_private_whole_and_usable(
    hub: LoopbackHub, bundle: Path, use: Use, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    source = shutil.copytree(bundle, tmp_path / "source")
    (source / "notes.txt").write_text("not listed, so not published")
    pushed = hub_module.push(source, NEW)
    assert pushed.private
    assert hub.repos[NEW].private
    published = hub.repos[NEW].commits[pushed.hub_id.revision]
    assert set(published) == set(files_of(bundle))
    assert published["README.md"].startswith(b"---\nlibrary_name: mmccd")
    assert files_of(source).keys() - {"notes.txt"} == files_of(bundle).keys()
    found = use(str(pushed.hub_id))
    assert found.index.sha256 == pushed.sha256
    verify_bundle(load_bundle(found.folder))
    # The token never leaves the Hub for its storage.
    assert all("authorization" not in r.headers for r in hub.log if r.server == "storage")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(WeightsError):
        use(str(pushed.hub_id), cache_dir=tmp_path / "of somebody else")


def test_push_keeps_a_card_that_has_front_matter(
    hub: LoopbackHub, bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    first = hub_module.push(bundle, NEW, private=False)
    assert not first.private
    folder = tmp_path / "again"
    folder.mkdir()
    for name, raw in hub.repos[NEW].commits[first.hub_id.revision].items():
        (folder / name).write_bytes(raw)
    second = hub_module.push(folder, "lab/again")
    assert second.sha256 == first.sha256 == check_folder(folder).sha256


def test_push_without_permission_is_explained(
    hub: LoopbackHub, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsError) as caught:
        hub_module.push(bundle, NEW)
    assert "HF_TOKEN" in str(caught.value.next_step)
    with pytest.raises(WeightsError, match="no repository"):
        hub_module.push(bundle, "no-slash")


def test_remove_frees_what_no_other_revision_uses(
    hub: LoopbackHub, use: Use, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    old = hub.repos[REPO].head
    use(REPO)
    files = hub.repos[REPO].files
    new = hub.repos[REPO].commit(files)
    use(REPO, refresh=True)
    embedded = len(embedded_bundles())
    assert len(weights.list_bundles(cache)) == embedded + 2
    _, freed = weights.remove(f"{REPO}@{old}", cache_dir=cache)
    assert freed == 0
    assert use(REPO, offline=True).folder.name == new
    _, freed = weights.remove(REPO, cache_dir=cache)
    assert freed == sum(map(len, files.values()))
    assert len(weights.list_bundles(cache)) == embedded
    with pytest.raises(WeightsError, match="not in the cache"):
        weights.remove(REPO, cache_dir=cache)


# Whole processes

SCRIPT = (
    "import sys; from mmccd_cli.weights.resolve import resolve; print(resolve(sys.argv[1]).folder)"
)


def start(hub: LoopbackHub, tmp_path: Path, *command: str, **extra: str) -> subprocess.Popen[str]:
    """Start Python with an environment in which the Hub is the loopback server."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "MMCCD_"))}
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        **extra,
    }
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_eight_processes_on_an_empty_cache_download_once(
    hub: LoopbackHub, bundle: Path, tmp_path: Path
) -> None:
    commit = hub.repos[REPO].head
    hub.faults.append(Fault("/cdn/", "slow", 99))
    processes = [start(hub, tmp_path, "-c", SCRIPT, REPO) for _ in range(8)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [p.returncode for p in processes] == [0] * 8, answers
    assert not any("%|" in err for _, err in answers)  # no bars where there is no terminal
    assert len({out for out, _ in answers}) == 1
    assert files_of(Path(answers[0][0].strip())) == files_of(bundle)
    assert set(hub.transfers().values()) == {1}
    assert commit in answers[0][0]


def test_a_process_killed_half_way_leaves_nothing_that_is_accepted(
    hub: LoopbackHub, bundle: Path, use: Use, tmp_path: Path
) -> None:
    hub.faults.append(Fault("/cdn/", "stall"))
    cache = tmp_path / "cache"
    process = start(hub, tmp_path, "-c", SCRIPT, REPO, MMCCD_CACHE_DIR=str(cache))
    deadline = time.monotonic() + 30
    while not hub.requests("GET", "/cdn/") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(WeightsError):
        use(REPO, offline=True)
    assert files_of(use(REPO).folder) == files_of(bundle)


@pytest.mark.slow
def test_segment_with_weights_that_were_pushed(
    hub: LoopbackHub, bundle: Path, tmp_path: Path, tiny_phantom, write_subject
) -> None:
    def run(*arguments: str, **extra: str) -> tuple[str, str]:
        process = start(hub, tmp_path, "-m", "mmccd_cli", *arguments, **extra)
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
        return out, err

    subject = write_subject(tmp_path, tiny_phantom)
    out, _ = run("weights", "push", str(bundle), NEW, "--json", HF_TOKEN=TOKEN)
    spec = json.loads(out)["weights"]
    out, err = run("weights", "download", spec, HF_TOKEN=TOKEN)
    assert "licence: CC0-1.0" in err
    assert files_of(Path(out.strip())).keys() == files_of(bundle).keys()
    seen = len(hub.log)
    run("segment", str(subject), "--out", str(tmp_path / "map.nii.gz"), "--weights", spec)
    assert len(hub.log) == seen
    assert (tmp_path / "map.nii.gz").is_file()
