"""The Hugging Face Hub: its cache, downloads that are checked before they count, and uploads.

The only module that uses huggingface_hub. That package reads its environment (`HF_ENDPOINT`,
`HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE`, `HF_HUB_DISABLE_XET`) when it is imported, so all of it is
honoured, and it is imported only where it is needed.

Files are fetched one by one with `hf_hub_download`: `snapshot_download` would also fetch what the
bundle does not list, and falls back to a half-filled cache where the Hub fails.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from mmccd_cli.errors import WeightsError
from mmccd_cli.files import write_atomically
from mmccd_cli.weights.index import (
    CARD,
    FRONT_MATTER,
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
_SPEC = re.compile(
    r"(?:hf://)?(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(?:@(?P<revision>[A-Za-z0-9][\w./-]{0,199}))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubId:
    """A repository of the Hub at a branch, tag or commit."""

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

    @property
    def page(self) -> str:
        """The address at which people see the files."""
        return f"{_address()}/{self.repo}/tree/{self.revision}"

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"


# The cache


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


def list_cached(cache: Path) -> list[HubId]:
    """List every cached snapshot that has an index, each by its commit."""
    found = sorted(cache.glob(f"models--*--*/snapshots/*/{INDEX}")) if cache.is_dir() else []
    ids = [HubId.parse(cached_id(path.parent) or "") for path in found]
    return [hub_id for hub_id in ids if hub_id is not None and hub_id.pinned]


def remove_cached(hub_id: HubId, folder: Path, cache: Path) -> int:
    """Remove a snapshot and the files that no other one uses; return how many bytes that freed.

    Raises:
        WeightsError: The cache cannot be changed.
    """
    from huggingface_hub import scan_cache_dir

    message = f"{folder} cannot be removed."
    with _explained(message, hub_id, cache):
        plan = scan_cache_dir(cache).delete_revisions(folder.name)
        plan.execute()
    if folder.exists():
        raise WeightsError(message, cause="The cache cannot be written.")
    return int(plan.expected_freed_size)


# Downloads


def download(
    hub_id: HubId,
    cache: Path,
    *,
    entry: RegistryEntry | None = None,
    announce: Callable[[BundleIndex], None] | None = None,
) -> Path:
    """Download a bundle into the cache, each file checked, and nothing that it does not list.

    Processes that do this at once wait for each other at the Hub's file locks; each file is
    transferred once.

    Args:
        hub_id: Repository and revision.
        cache: Folder of the cache.
        entry: The registry's entry, whose hash counts more than those of the repository.
        announce: Called with the index before the large files are downloaded.

    Returns:
        The folder of the snapshot, named after its commit.

    Raises:
        WeightsError: Anything went wrong; what was not right is no longer in the cache.
    """

    def check_index(folder: Path) -> BundleIndex:
        _check_blob(folder / INDEX)
        index = read_index(folder)
        if entry is not None:
            entry.check(index)
        return index

    with _explained(f"The weights {hub_id} cannot be found.", hub_id, cache):
        commit = HubId(hub_id.repo, _commit(hub_id))
        index = _fetch_checked(commit, INDEX, cache=cache, check=check_index)
    if announce is not None:
        announce(index)
    for name, listed in index.files.items():
        with _explained(f"{name} of {commit} cannot be downloaded.", commit, cache):
            check = partial(check_file, name=name, entry=listed)
            _fetch_checked(commit, name, cache=cache, check=check)
    if not hub_id.pinned:
        # Last, so that a branch never stands for a bundle that is only half there.
        ref = _storage(hub_id.repo, cache) / "refs" / hub_id.revision
        with contextlib.suppress(OSError):
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(ref, commit.revision.encode())
    return index.folder


def _commit(hub_id: HubId) -> str:
    """Ask the Hub for the commit of a revision; try again where that may help.

    A commit is asked for as well: it fails in a second where a download would try for a minute.
    """
    commit = _retried(lambda: _api().model_info(hub_id.repo, revision=hub_id.revision).sha)
    if commit is None or not COMMIT.fullmatch(commit):
        raise ValueError(f"the answer names no commit but {commit!r}")
    if hub_id.pinned and commit != hub_id.revision:
        raise ValueError(f"the answer names the commit {commit}, not the one that was asked for")
    return commit


def _fetch_checked(hub_id: HubId, name: str, *, cache: Path, check: Callable[[Path], T]) -> T:
    """Fetch one file of a commit; a wrong one is fetched once more, and none is kept.

    Whether it is right is said by `check`, which raises WeightsError for what is in a folder.
    """
    from huggingface_hub import hf_hub_download

    fetch = partial(
        hf_hub_download,
        hub_id.repo,
        name,
        revision=hub_id.revision,
        cache_dir=cache,
        library_name="mmccd",
    )
    for attempt in (1, 2):
        path = Path(_retried(fetch))
        try:
            return check(path.parent)
        except WeightsError as error:
            _drop(path, cache)
            if attempt == 1:
                continue
            # The index may be the wrong one of the two, so neither is kept.
            _drop(path.parent / INDEX, cache)
            url = f"{_address()}/{hub_id.repo}/resolve/{hub_id.revision}/{name}"
            raise WeightsError(
                f"{name} from {url} is not the file that belongs to the bundle.",
                cause=f"{error.cause} It was not kept. A proxy may have replaced it, or the upload"
                " is damaged.",
                next_step=f"Run `mmccd weights download {hub_id}` again, perhaps from another"
                " network, or tell its owner.",
            ) from error
    raise AssertionError("the second attempt returns or raises")


def _retried(request: Callable[[], T]) -> T:
    """Make a request again, after a moment, where that may help."""
    for attempt in range(1, ATTEMPTS):
        try:
            return request()
        except Exception as error:
            if not _is_passing(error):
                raise
            time.sleep(0.5 * 2**attempt)
    return request()


def _check_blob(path: Path) -> None:
    """Refuse a cached file that has not the hash that is its name in the cache."""
    name = path.resolve().name
    raw = path.read_bytes()
    # SHA-256 of large files, git's hash for others; some mirrors give the plain one.
    git = f"blob {len(raw)}\0".encode() + raw
    hashes = [hashlib.sha256(raw), hashlib.sha1(git), hashlib.sha1(raw)]
    named_by_hash = re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name)
    if named_by_hash and name not in [digest.hexdigest() for digest in hashes]:
        raise wrong_file(path, expected=name, found=hashes[0].hexdigest())


def _drop(path: Path, cache: Path) -> None:
    """Throw a wrong file out of the cache, best effort: a read-only cache keeps it."""
    with contextlib.suppress(OSError):
        blob = path.resolve()
        path.unlink(missing_ok=True)
        if blob.is_relative_to(cache.resolve()):
            blob.unlink(missing_ok=True)


# Uploads


@dataclass(frozen=True)
class PublishedBundle:
    """What an upload made: a commit, the hash of its index, and whether only owners can see it."""

    hub_id: HubId
    private: bool
    sha256: str


def push(folder: Path, repo: str, *, private: bool = True) -> PublishedBundle:
    """Upload a bundle as one commit: the files that it lists, its index, and nothing else.

    A repository that is not there is created, private or not.

    Raises:
        WeightsError: The folder is no whole bundle, or the Hub refuses.
    """
    index = check_folder(folder)
    hub_id = HubId.parse(repo)
    if hub_id is None or repo != hub_id.repo:
        raise WeightsError(
            f"{repo} is no repository of the Hub.",
            cause="It must be like organisation/name.",
            next_step=f"Run `mmccd weights push {folder} ORGANISATION/NAME`.",
        )
    changed = _with_front_matter(index)
    contents: dict[str, Path | bytes] = {name: folder / name for name in index.files}
    contents.update(changed)
    with _explained(f"{folder} cannot be uploaded to {repo}.", hub_id, None):
        from huggingface_hub import CommitOperationAdd

        api = _api()
        api.create_repo(repo, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
        said = f"Upload mmccd bundle {index.text('name')} {index.text('version')}"
        commit = api.create_commit(repo, operations, commit_message=said).oid
        info = api.model_info(repo, revision=commit)
    uploaded = hashlib.sha256(changed[INDEX]).hexdigest()
    return PublishedBundle(HubId(repo, commit), bool(info.private), uploaded)


def _with_front_matter(index: BundleIndex) -> dict[str, bytes]:
    """Return the model card and the index, with the front matter that the Hub sorts models by.

    A card that has one, as every card that `mmccd train` writes, is left as it is.
    """
    raw = (index.folder / INDEX).read_bytes()
    card = (index.folder / CARD).read_bytes() if CARD in index.files else b""
    if card.startswith(b"---"):
        return {INDEX: raw}
    card = FRONT_MATTER.encode() + (card or f"# {index.text('name')}\n".encode())
    document = json.loads(raw)
    document["files"][CARD] = {"sha256": hashlib.sha256(card).hexdigest(), "size": len(card)}
    return {CARD: card, INDEX: (json.dumps(document, indent=1) + "\n").encode()}


# What goes wrong

_NETWORK = (
    "Behind a proxy set HTTPS_PROXY, with a certificate of your institution SSL_CERT_FILE, for a"
    " mirror HF_ENDPOINT, then run `mmccd weights download {spec}` again;"
)
_RETRY = "then run `mmccd weights download {spec}` again"
_BY_HAND = "or copy the files of {url}/tree/{revision} into a folder and pass --weights FOLDER."
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN, " + _RETRY + "."


class Explanation(NamedTuple):
    """What a user reads where an error has one of these signs; see `_signs`."""

    signs: str
    cause: str
    next_step: str


EXPLANATIONS = (
    Explanation(
        "GatedRepoError",
        "{url} is gated: its owner asks you to accept the terms first (HTTP {status}).",
        "Accept them at {url}, " + _LOG_IN,
    ),
    Explanation(
        "RevisionNotFoundError",
        "{url} exists, but has no branch, tag or commit {revision} (HTTP {status}).",
        "Look at {url}/commits/main and correct what follows the @.",
    ),
    Explanation(
        "RepositoryNotFoundError HTTP-401",
        "There is no {url}, or it is private and you are not logged in (HTTP {status}); there is"
        " no folder {repo} here either.",
        "Correct the name, or " + _LOG_IN,
    ),
    Explanation(
        "EntryNotFoundError",
        "{url} does not have that file at {revision}, so it is not a whole mmccd bundle.",
        "Choose another repository, or another revision after an @.",
    ),
    Explanation(
        "HTTP-403",
        "{address} refused (HTTP 403): {said}.",
        "Check the permissions of your token (HF_TOKEN), " + _RETRY + "; " + _BY_HAND,
    ),
    Explanation(
        "disk",
        "The cache {cache} cannot be written: {disk}.",
        "Free space, or choose a folder with --cache-dir or MMCCD_CACHE_DIR, " + _RETRY + ".",
    ),
    Explanation(
        "HTTP",
        "{address} answered HTTP {status}: {said}.",
        "Wait a while, " + _RETRY + "; " + _BY_HAND,
    ),
    Explanation(
        "OfflineModeIsEnabled",
        "HF_HUB_OFFLINE forbids the network.",
        "Unset it, " + _RETRY + "; " + _BY_HAND,
    ),
    Explanation(
        "ConnectError TimeoutException ConnectionError ProxyError Timeout",
        "{address} cannot be reached: {said}.",
        _NETWORK + " " + _BY_HAND,
    ),
    Explanation(
        "Exception",
        "The answer of {address} is not the Hub's or was cut off, as by a login page or a proxy:"
        " {said}.",
        _NETWORK + " " + _BY_HAND,
    ),
)
"""The first one that has a sign of the error is what the user reads."""

_PASSING = {
    *("TimeoutException", "RemoteProtocolError", "ReadError"),  # httpx
    *("Timeout", "ChunkedEncodingError", "IncompleteRead"),  # requests
    "ConnectionResetError",
}
_DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)


@contextlib.contextmanager
def _explained(message: str, hub_id: HubId, cache: Path | None) -> Iterator[None]:
    """Turn whatever the Hub's client raises into one WeightsError that says what helps."""
    try:
        yield
    except WeightsError:
        raise
    # The client's own errors, those of three different HTTP libraries under it, and OSError.
    except Exception as error:
        chain = _chain(error)
        signs = _signs(chain)
        row = next(row for row in EXPLANATIONS if signs & set(row.signs.split()))
        facts = {
            "address": _address(),
            "url": f"{_address()}/{hub_id.repo}",
            "repo": hub_id.repo,
            "revision": hub_id.revision,
            "spec": hub_id,
            "cache": cache,
            "status": _status(chain),
            "disk": _disk(chain),
            "said": _said(chain),
        }
        raise WeightsError(
            message, cause=row.cause.format(**facts), next_step=row.next_step.format(**facts)
        ) from error


def _is_passing(error: Exception) -> bool:
    """Return whether the same request may succeed a moment later."""
    chain = _chain(error)
    status = _status(chain)
    if status is not None:
        return status in (408, 429) or status >= 500
    return bool(_signs(chain) & _PASSING)


def _chain(error: BaseException) -> list[BaseException]:
    """List an error and what caused it."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain and len(chain) < 16:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _signs(chain: list[BaseException]) -> set[str]:
    """Return by what errors are told apart: names of their classes, HTTP status, a full disk.

    By names, because they come from several versions of huggingface_hub and of the HTTP libraries
    under it.
    """
    signs: set[str] = set()
    for link in chain:
        names = {cls.__name__ for cls in type(link).__mro__}
        # That nothing is in the cache either says nothing about the repository.
        signs |= names - ({"EntryNotFoundError"} if "LocalEntryNotFoundError" in names else set())
    if status := _status(chain):
        signs |= {"HTTP", f"HTTP-{status}"}
    return signs | ({"disk"} if _disk(chain) else set())


def _status(chain: list[BaseException]) -> int | None:
    for link in chain:
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int) and status >= 400:
            return status
    return None


def _disk(chain: list[BaseException]) -> str | None:
    """Return what the file system complains of, or None where it does not."""
    links = (link for link in chain if isinstance(link, OSError) and link.errno in _DISK)
    return next((str(link.strerror) for link in links), None)


def _said(chain: list[BaseException]) -> str:
    """Return what the innermost error said, on one line."""
    said = next((str(link) for link in reversed(chain) if str(link).strip()), "")
    line = " ".join(said.split()) or type(chain[-1]).__name__
    return (line if len(line) <= 300 else line[:300] + "...").removesuffix(".")


def _storage(repo: str, cache: Path) -> Path:
    return cache / f"models--{repo.replace('/', '--')}"


def _address() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT).rstrip("/")


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(library_name="mmccd")
