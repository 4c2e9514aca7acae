"""From the many ways in which a download fails to a sentence that ends in what to do next.

Errors are told apart by the names of their classes and by status codes, because they come from
several versions of huggingface_hub and of the HTTP libraries under it.
"""

from __future__ import annotations

import errno
from pathlib import Path

from mmccd_cli.errors import WeightsError

_NETWORK = (
    "behind a proxy set HTTPS_PROXY, with a certificate of your institution SSL_CERT_FILE, for a"
    " mirror HF_ENDPOINT"
)

_PASSING = {
    *("TimeoutException", "RemoteProtocolError", "ReadError"),  # httpx
    *("Timeout", "ChunkedEncodingError", "IncompleteRead"),  # requests
    "ConnectionResetError",
}


def explain(
    error: Exception, message: str, spec: str, address: str, cache: Path | None
) -> WeightsError:
    """Return the error that a user sees.

    Args:
        error: What the client raised.
        message: What failed.
        spec: `org/repo@revision`, for the command to retry.
        address: Address of the Hub.
        cache: Folder of the cache.
    """
    repo, _, revision = spec.partition("@")
    retry = f"run `mmccd weights download {spec}` again"
    url = f"{address}/{repo}"
    by_hand = f"or copy the files of {url}/tree/{revision} into a folder, pass --weights FOLDER"
    chain = _chain(error)
    links = [_names(link) for link in chain]
    names = set().union(*links)
    status = _status(chain)
    disk = _disk(chain)

    def say(cause: str, next_step: str) -> WeightsError:
        return WeightsError(message, cause=cause, next_step=next_step)

    if "GatedRepoError" in names:
        return say(
            f"{url} is gated: its owner asks you to accept the terms first (HTTP {status})",
            f"accept them at {url}, log in with `hf auth login` or set HF_TOKEN, then {retry}",
        )
    if "RevisionNotFoundError" in names:
        return say(
            f"{url} exists, but has no branch, tag or commit {revision} (HTTP {status})",
            f"look at {url}/commits/main and correct what follows the @",
        )
    if "RepositoryNotFoundError" in names or status == 401:
        return say(
            f"there is no {url}, or it is private and you are not logged in (HTTP {status});"
            f" there is no folder {repo} here either",
            f"correct the name, or log in with `hf auth login` or set HF_TOKEN, then {retry}",
        )
    if any("EntryNotFoundError" in n and "LocalEntryNotFoundError" not in n for n in links):
        return say(
            f"{url} does not have that file at {revision}, so it is not a whole mmccd bundle",
            "choose another repository, or another revision after an @",
        )
    if status == 403:
        return say(
            f"{address} refused (HTTP 403): {_said(chain)}",
            f"check the permissions of your token (HF_TOKEN), then {retry}; {by_hand}",
        )
    if disk is not None:
        return say(
            f"the cache {cache} cannot be written: {disk}",
            f"free space, or choose a folder with --cache-dir or MMCCD_CACHE_DIR, then {retry}",
        )
    if status is not None:
        return say(
            f"{address} answered HTTP {status}: {_said(chain)}",
            f"{retry} later; {by_hand}",
        )
    if "OfflineModeIsEnabled" in names:
        return say("HF_HUB_OFFLINE forbids the network", f"unset it and {retry}; {by_hand}")
    if names & {"ConnectError", "TimeoutException", "ConnectionError", "ProxyError", "Timeout"}:
        return say(
            f"{address} cannot be reached: {_said(chain)}", f"{_NETWORK}, then {retry}; {by_hand}"
        )
    return say(
        f"the answer of {address} is not the Hub's or was cut off, as by a login page or a proxy:"
        f" {_said(chain)}",
        f"{retry}; {_NETWORK}; {by_hand}",
    )


def is_passing(error: Exception) -> bool:
    """Return whether the same request may succeed a moment later."""
    chain = _chain(error)
    status = _status(chain)
    if status is not None:
        return status in (408, 429) or status >= 500
    names = {name for link in chain for name in _names(link)}
    return bool(names & _PASSING)


def _chain(error: BaseException) -> list[BaseException]:
    """List an error and what caused it."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain and len(chain) < 16:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _names(error: BaseException) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}


def _status(chain: list[BaseException]) -> int | None:
    for link in chain:
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int) and status >= 400:
            return status
    return None


def _disk(chain: list[BaseException]) -> str | None:
    """Return what the file system complains of, or None where it does not."""
    numbers = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
    links = (link for link in chain if isinstance(link, OSError) and link.errno in numbers)
    return next((str(link.strerror) for link in links), None)


def _said(chain: list[BaseException]) -> str:
    """Return what the innermost error said, on one line."""
    said = next((str(link) for link in reversed(chain) if str(link).strip()), "")
    line = " ".join(said.split()) or type(chain[-1]).__name__
    return line if len(line) <= 300 else line[:300] + "..."
