"""The Hugging Face Hub: its cache, downloads that are checked before they count, and uploads.

The only module that uses huggingface_hub. That package reads its environment (`HF_ENDPOINT`,
`HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE`, `HF_HUB_DISABLE_XET`) when it is imported, so all of it is
honoured, and it is imported only where it is needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mmccd_cli.errors import WeightsError
from mmccd_cli.files import write_atomically
from mmccd_cli.weights.hub_errors import explain, is_passing
from mmccd_cli.weights.index import (
    CARD,
    INDEX,
    BundleIndex,
    check_file,
    check_folder,
    read_index,
    wrong_file,
)
from mmccd_cli.weights.registry import COMMIT, RegistryEntry

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

ATTEMPTS = 3
FRONT_MATTER = (
    "---\nlibrary_name: mmccd\nlicense: other\npipeline_tag: image-segmentation\n"
    "tags: [medical, mri, brain, anomaly-segmentation]\n---\n\n"
)
_SPEC = re.compile(
    r"(?:hf://)?(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(?:@(?P<revision>[A-Za-z0-9][\w./-]{0,199}))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubId:
    """A repository of the Hub at a branch, tag or commit.

    Attributes:
        repo: Such as "org/repo".
        revision: Branch, tag or commit.
    """

    repo: str
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> HubId | None:
        """Read `org/repo[@revision]`; None where it is something else."""
        match = _SPEC.fullmatch(text)
        if match is None or ".." in text or "--" in match["repo"]:
            return None
        return cls(match["repo"], match["revision"] or "main")

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"


def cache_folder(cache_dir: Path | None = None) -> Path:
    """Return where downloads are kept: the argument, `MMCCD_CACHE_DIR`, or the Hub's own cache."""
    chosen = cache_dir or os.environ.get("MMCCD_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).absolute()


def is_offline() -> bool:
    """Return whether the Hub's own variables forbid the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def page(hub_id: HubId, endpoint: str | None = None) -> str:
    """Return the address at which people see the files."""
    return f"{_address(endpoint)}/{hub_id.repo}/tree/{hub_id.revision}"


def find_cached(hub_id: HubId, cache: Path) -> Path | None:
    """Return the cached folder of a revision, without network and without writing.

    It may be incomplete or damaged: a bundle counts only when its files were compared.
    """
    storage = _storage(hub_id.repo, cache)
    commit = hub_id.revision
    if not hub_id.pinned:
        try:
            commit = (storage / "refs" / hub_id.revision).read_text().strip()
        except (OSError, ValueError):
            return None
        if not COMMIT.fullmatch(commit):
            return None
    folder = storage / "snapshots" / commit
    return folder if (folder / INDEX).is_file() else None


def cached_id(folder: Path) -> str | None:
    """Return `org/repo@commit` for a folder that lies in a cache of the Hub, else None."""
    parts = folder.parts[-3:]
    if len(parts) != 3 or parts[1] != "snapshots" or not COMMIT.fullmatch(parts[2]):
        return None
    kind, _, repo = parts[0].partition("--")
    return f"{repo.replace('--', '/')}@{parts[2]}" if kind == "models" else None


def list_cached(cache: Path) -> list[tuple[HubId, Path]]:
    """List every cached snapshot that has an index, each by its commit."""
    found = sorted(cache.glob(f"models--*--*/snapshots/*/{INDEX}")) if cache.is_dir() else []
    rows = []
    for path in found:
        hub_id = HubId.parse(cached_id(path.parent) or "")
        if hub_id is not None and hub_id.pinned:
            rows.append((hub_id, path.parent))
    return rows


def remove_cached(folder: Path, cache: Path) -> int:
    """Remove one snapshot and the files that no other snapshot uses.

    Returns:
        The number of bytes that this freed.

    Raises:
        WeightsError: The cache cannot be changed.
    """
    from huggingface_hub import scan_cache_dir

    with _explained(f"cannot remove {folder}", HubId("cache/cache"), None, cache):
        plan = scan_cache_dir(cache).delete_revisions(folder.name)
        plan.execute()
    if folder.exists():
        raise WeightsError(f"cannot remove {folder}", cause="the cache cannot be written")
    return int(plan.expected_freed_size)


@dataclass(frozen=True)
class Remote:
    """A bundle on the Hub, before its large files are downloaded.

    Attributes:
        hub_id: Its repository and commit.
        index: Its index; it lies in the cache.
    """

    hub_id: HubId
    index: BundleIndex


def look_up(
    hub_id: HubId,
    cache: Path,
    *,
    entry: RegistryEntry | None = None,
    endpoint: str | None = None,
) -> Remote:
    """Find out which commit a revision is, and download its index only.

    Raises:
        WeightsError: It cannot be reached, is not there, or is not a bundle.
    """
    with _explained(f"cannot find the weights {hub_id}", hub_id, endpoint, cache):
        commit = _commit(hub_id, endpoint)
        pinned = HubId(hub_id.repo, commit)
        for attempt in (1, 2):
            path = _fetch(pinned, INDEX, cache, endpoint)
            try:
                _check_blob(path)
                index = read_index(path.parent)
                if entry is not None:
                    entry.check(index)
                break
            except WeightsError:
                _drop(path, cache)
                if attempt == 2:
                    raise
    return Remote(pinned, index)


def download(
    hub_id: HubId,
    cache: Path,
    *,
    entry: RegistryEntry | None = None,
    announce: Callable[[BundleIndex], None] | None = None,
    endpoint: str | None = None,
) -> Path:
    """Download a bundle into the cache, each file checked, and nothing that it does not list.

    Processes that do this at once wait for each other at the Hub's file locks; each file is
    transferred once.

    Args:
        hub_id: Repository and revision.
        cache: Folder of the cache.
        entry: The registry's entry, whose hashes count more than those of the repository.
        announce: Called with the index before the large files are downloaded.
        endpoint: Address of the Hub; None for the configured one.

    Returns:
        The folder of the snapshot, named after its commit.

    Raises:
        WeightsError: Anything went wrong; what was not right is no longer in the cache.
    """
    remote = look_up(hub_id, cache, entry=entry, endpoint=endpoint)
    if announce is not None:
        announce(remote.index)
    for name, listed in remote.index.files.items():
        _fetch_checked(remote.hub_id, name, listed, cache, endpoint)
    if not hub_id.pinned:
        # Last, so that a branch never stands for a bundle that is only half there.
        ref = _storage(hub_id.repo, cache) / "refs" / hub_id.revision
        with contextlib.suppress(OSError):
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(ref, remote.hub_id.revision.encode())
    return remote.index.folder


@dataclass(frozen=True)
class Pushed:
    """What an upload made.

    Attributes:
        hub_id: The repository at the commit that holds the bundle.
        url: Where people see it.
        private: Whether only its owners can; a repository that existed keeps its visibility.
        index: The bundle's index as it was uploaded.
    """

    hub_id: HubId
    url: str
    private: bool
    index: BundleIndex


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = True,
    endpoint: str | None = None,
) -> Pushed:
    """Upload a bundle as one commit: the files that it lists, its index, and nothing else.

    Args:
        folder: The bundle's folder.
        repo: Repository on the Hub, created where missing.
        private: Whether a new repository is private.
        endpoint: Address of the Hub; None for the configured one.

    Raises:
        WeightsError: The folder is no whole bundle, or the Hub refuses.
    """
    index = check_folder(folder)
    hub_id = HubId.parse(repo)
    if hub_id is None or repo != hub_id.repo:
        raise WeightsError(
            f"{repo} is no repository of the Hub",
            cause="it must be like organisation/name",
            next_step=f"run `mmccd weights push {folder} ORGANISATION/NAME`",
        )
    contents: dict[str, bytes | Path] = {name: folder / name for name in index.files}
    contents.update(_with_front_matter(index))
    with _explained(f"cannot upload {folder} to {repo}", hub_id, endpoint, None):
        from huggingface_hub import CommitOperationAdd

        api = _api(endpoint)
        api.create_repo(repo, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
        said = f"Upload mmccd bundle {index.text('name')} {index.text('version')}"
        commit = api.create_commit(repo, operations, commit_message=said).oid
        info = api.model_info(repo, revision=commit)
    raw = contents[INDEX]
    assert isinstance(raw, bytes)
    pushed = HubId(repo, commit)
    uploaded = replace(index, sha256=hashlib.sha256(raw).hexdigest(), size=len(raw))
    files = json.loads(raw)["files"]
    return Pushed(
        pushed, page(pushed, endpoint), bool(info.private), replace(uploaded, files=files)
    )


def _with_front_matter(index: BundleIndex) -> dict[str, bytes]:
    """Return the model card and the index, with the front matter that the Hub sorts models by.

    A card that has one, as every card that `mmccd train` writes, is left as it is.
    """
    raw = (index.folder / INDEX).read_bytes()
    if CARD not in index.files:
        card = b""
    else:
        card = (index.folder / CARD).read_bytes()
        if card.startswith(b"---"):
            return {INDEX: raw}
    card = FRONT_MATTER.encode() + (card or f"# {index.text('name')}\n".encode())
    document = json.loads(raw)
    document["files"][CARD] = {"sha256": hashlib.sha256(card).hexdigest(), "size": len(card)}
    return {CARD: card, INDEX: (json.dumps(document, indent=1) + "\n").encode()}


def _fetch_checked(
    hub_id: HubId, name: str, listed: dict[str, Any], cache: Path, endpoint: str | None
) -> None:
    """Fetch one file; a wrong one is thrown away and fetched once more before giving up."""
    for attempt in (1, 2):
        with _explained(f"cannot download {name} of {hub_id}", hub_id, endpoint, cache):
            path = _fetch(hub_id, name, cache, endpoint)
        try:
            check_file(path.parent, name, listed)
            return
        except WeightsError as error:
            _drop(path, cache)
            if attempt == 2:
                # The index may be the wrong one of the two, so neither is kept.
                _drop(path.parent / INDEX, cache)
                url = f"{_address(endpoint)}/{hub_id.repo}/resolve/{hub_id.revision}/{name}"
                raise WeightsError(
                    f"{name} from {url} is not the file that its bundle lists",
                    cause=f"{error.cause}; it was not kept. A proxy may have replaced it, or the"
                    " upload is damaged",
                    next_step=f"run `mmccd weights download {hub_id}` again, perhaps from another"
                    " network, or tell its owner",
                ) from error


def _commit(hub_id: HubId, endpoint: str | None) -> str:
    """Ask the Hub for the commit of a revision; try again where that may help.

    A commit is asked for as well: it fails in a second where a download would try for a minute.
    """
    api = _api(endpoint)
    commit = _retried(lambda: api.model_info(hub_id.repo, revision=hub_id.revision).sha)
    if commit is None or not COMMIT.fullmatch(commit):
        raise ValueError(f"the answer names no commit but {commit!r}")
    if hub_id.pinned and commit != hub_id.revision:
        raise ValueError(f"the answer names the commit {commit}, not the one that was asked for")
    return commit


def _fetch(hub_id: HubId, name: str, cache: Path, endpoint: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    path = _retried(
        lambda: hf_hub_download(
            hub_id.repo,
            name,
            revision=hub_id.revision,
            cache_dir=cache,
            endpoint=endpoint,
            library_name="mmccd",
        )
    )
    return Path(path)


def _retried(request: Callable[[], T]) -> T:
    """Make a request again, after a moment, where that may help."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except Exception as error:
            if attempt == ATTEMPTS or not is_passing(error):
                raise
            time.sleep(0.5 * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def _check_blob(path: Path) -> None:
    """Compare a cached file with the hash that the Hub gives it as its name in the cache.

    Raises:
        WeightsError: They differ.
    """
    name = path.resolve().name
    raw = path.read_bytes()
    if re.fullmatch(r"[0-9a-f]{64}", name):
        found = {hashlib.sha256(raw).hexdigest()}
    elif re.fullmatch(r"[0-9a-f]{40}", name):
        # Git's hash of a blob; some mirrors give the plain one.
        header = f"blob {len(raw)}\0".encode()
        found = {hashlib.sha1(data).hexdigest() for data in (header + raw, raw)}
    else:
        return
    if name not in found:
        raise wrong_file(path, {"sha256": name, "size": len(raw)}, min(found))


def _drop(path: Path, cache: Path) -> None:
    """Throw a wrong file out of the cache, best effort: a read-only cache keeps it."""
    with contextlib.suppress(OSError):
        blob = path.resolve()
        path.unlink(missing_ok=True)
        if blob.is_relative_to(cache.resolve()):
            blob.unlink(missing_ok=True)


def _storage(repo: str, cache: Path) -> Path:
    return cache / f"models--{repo.replace('/', '--')}"


def _address(endpoint: str | None) -> str:
    if endpoint is None:
        from huggingface_hub import constants

        endpoint = str(constants.ENDPOINT)
    return endpoint.rstrip("/")


def _api(endpoint: str | None) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint, library_name="mmccd")


@contextlib.contextmanager
def _explained(
    message: str, hub_id: HubId, endpoint: str | None, cache: Path | None
) -> Iterator[None]:
    """Turn whatever the Hub's client raises into one WeightsError that says what helps."""
    try:
        with _bars_on_terminals_only():
            yield
    except WeightsError:
        raise
    # The client's own errors, those of three different HTTP libraries under it, and OSError.
    except Exception as error:
        raise explain(error, message, str(hub_id), _address(endpoint), cache) from error


@contextlib.contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """Keep the client's progress bars out of files and pipes."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    silenced = not os.isatty(2) and not are_progress_bars_disabled()
    if silenced:
        disable_progress_bars()
    try:
        yield
    finally:
        if silenced:
            enable_progress_bars()
