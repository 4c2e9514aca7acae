"""From what a user calls weights to a verified local bundle: path, embedded, cache, then the Hub.

Nothing here imports torch, and nothing but a miss in all local places uses the network.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmccd_cli.errors import WeightsError
from mmccd_cli.weights import hub
from mmccd_cli.weights.hub import HubId
from mmccd_cli.weights.index import INDEX, BundleIndex, check_folder, not_a_bundle, read_index
from mmccd_cli.weights.registry import RegistryEntry, embedded_bundles, read_registry

EMBEDDED_DEFAULT = "glioma-compact"
WeightsOrigin = Literal["path", "embedded", "cache", "hub"]


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """What a specification stands for, before anything is read or downloaded.

    Attributes:
        spec: The specification.
        origin: What kind of thing it is; "hub" also where the cache may hold it.
        folder: The local folder, for a path or an embedded bundle.
        hub_id: Where it lies on the Hub, for all others.
        entry: Its entry in the registry, or None.
    """

    spec: str
    origin: WeightsOrigin
    folder: Path | None = None
    hub_id: HubId | None = None
    entry: RegistryEntry | None = None


@dataclass(frozen=True, kw_only=True)
class LocalBundle:
    """A bundle on this computer, every file compared with its index, and what was asked for."""

    index: BundleIndex
    origin: WeightsOrigin
    source: WeightsSource

    @property
    def folder(self) -> Path:
        """The bundle's folder."""
        return self.index.folder

    @property
    def hub_id(self) -> HubId | None:
        """The repository and commit that it came from, or None."""
        asked = self.source.hub_id
        return HubId(asked.repo, self.folder.name) if asked else None


def resolve_weights(
    spec: str | None, *, offline: bool = False, cache_dir: Path | None = None
) -> Path:
    """Return the folder of a verified bundle; see `resolve`."""
    return resolve(spec, offline=offline, cache_dir=cache_dir).folder


def resolve(
    spec: str | None = None,
    *,
    offline: bool = False,
    cache_dir: Path | None = None,
    refresh: bool = False,
    announce: Callable[[BundleIndex], None] | None = None,
) -> LocalBundle:
    """Find a bundle, download it where it is nowhere on this computer, and check every file.

    A branch that is in the cache is used as it is there: weights never change by themselves.

    Args:
        spec: A folder, a `bundle.json`, a name, or `org/repo[@revision]`; None for the default.
        offline: Whether the network must not be used.
        cache_dir: Where downloads are kept; None for `MMCCD_CACHE_DIR`, then the Hub's own cache.
        refresh: Whether to ask the Hub which commit a branch is now.
        announce: Called with the index before the large files are downloaded.

    Raises:
        WeightsError: There are no such weights, or they are not the right ones.
    """
    source = find_source(spec)
    hub_id = source.hub_id
    if hub_id is None:
        return _checked(source, source.folder, source.origin)
    cache = hub.cache_folder(cache_dir)
    damage: WeightsError | None = None
    folder = hub.find_cached(hub_id, cache)
    if folder is not None and (hub_id.pinned or offline or not refresh):
        try:
            return _checked(source, folder, "cache")
        except WeightsError as error:
            damage = error
    if offline or hub.is_offline():
        raise _not_in_cache(source.spec, hub_id, cache=cache, damage=damage)
    folder = hub.download(hub_id, cache, entry=source.entry, announce=announce)
    return _checked(source, folder, "hub")


def find_source(spec: str | None) -> WeightsSource:
    """Tell what a specification stands for, without the network.

    A folder that is named comes first; the default is never a folder that happens to be called so.

    Raises:
        WeightsError: It stands for nothing.
    """
    named = spec or os.environ.get("MMCCD_WEIGHTS")
    spec = named or EMBEDDED_DEFAULT
    if named and (folder := _as_folder(named)) is not None:
        return WeightsSource(spec=spec, origin="path", folder=folder)
    entry = read_registry().get(spec)
    if folder := embedded_bundles().get(spec):
        return WeightsSource(spec=spec, origin="embedded", folder=folder, entry=entry)
    pinned = HubId(entry.repo, entry.revision) if entry and entry.repo and entry.revision else None
    if (hub_id := pinned or HubId.parse(spec)) is not None:
        return WeightsSource(spec=spec, origin="hub", hub_id=hub_id, entry=entry)
    names = _names()
    close = difflib.get_close_matches(spec, names, n=1)
    known = ", ".join(names) if names else "none came with this installation"
    raise WeightsError(
        f"There are no weights called {spec}.",
        cause=f"Known names: {known}. It is no folder with a {INDEX} and no Hub id org/repo"
        " either.",
        next_step=f"Use --weights {close[0]}." if close else "Run `mmccd weights list`.",
    )


def list_bundles(cache_dir: Path | None = None) -> list[tuple[WeightsSource, BundleIndex | None]]:
    """List what can be used by name: embedded, known and cached bundles, with their index.

    Returns:
        What each name stands for, and its index where it is on this computer and readable.
    """
    cache = hub.cache_folder(cache_dir)
    sources = [find_source(name) for name in _names()]
    known = {source.hub_id for source in sources}
    sources += [
        WeightsSource(spec=str(hub_id), origin="hub", hub_id=hub_id)
        for hub_id in hub.list_cached(cache)
        if hub_id not in known
    ]
    rows: list[tuple[WeightsSource, BundleIndex | None]] = []
    for source in sources:
        folder = hub.find_cached(source.hub_id, cache) if source.hub_id else source.folder
        try:
            rows.append((source, read_index(folder) if folder else None))
        except WeightsError:
            # A cache is shared with other programs; what is no bundle of ours is not listed.
            if source.entry is not None or source.origin == "embedded":
                rows.append((source, None))
    return rows


def remove(spec: str, *, cache_dir: Path | None = None) -> tuple[Path, int]:
    """Remove a downloaded bundle from the cache; folders and embedded bundles are never touched.

    Returns:
        The folder that is gone, and how many bytes that freed.

    Raises:
        WeightsError: It is not in the cache, or is not the cache's to remove.
    """
    source = find_source(spec)
    if source.hub_id is None:
        kind = "a folder" if source.origin == "path" else "part of the program"
        raise WeightsError(
            f"{spec} is not in the cache of downloads.",
            cause=f"It is {kind}: {source.folder}.",
            next_step="Delete a folder of your own by hand.",
        )
    cache = hub.cache_folder(cache_dir)
    folder = hub.find_cached(source.hub_id, cache)
    if folder is None:
        raise WeightsError(
            f"The weights {spec} are not in the cache {cache}.",
            next_step="Run `mmccd weights list` to see what is.",
        )
    return folder, hub.remove_cached(source.hub_id, folder, cache)


def _names() -> list[str]:
    published = {name for name, entry in read_registry().items() if entry.repo}
    return sorted(published | set(embedded_bundles()))


def _as_folder(spec: str) -> Path | None:
    """Return the folder that a specification names, or None where it is a name or Hub id."""
    path = Path(spec).expanduser()
    try:
        if path.is_file():
            if path.name == INDEX:
                return path.parent
            raise WeightsError(
                f"{path} is a file, and weights are a folder.",
                cause=f"A bundle is a folder with {INDEX} and safetensors files; others, such as"
                " pickles, are never opened.",
                next_step="Pass the bundle's folder: --weights FOLDER",
            )
        if path.is_dir() and (path / INDEX).is_file():
            return path
        explicit = path.is_absolute() or spec.startswith((".", "~"))
        if explicit or (path.is_dir() and HubId.parse(spec) is not None):
            raise not_a_bundle(
                path, f"there is no {INDEX} in it" if path.is_dir() else "there is no such folder"
            )
    except (OSError, ValueError):
        return None  # too long for a path, or with a character that none can have
    return None


def _checked(source: WeightsSource, folder: Path | None, origin: WeightsOrigin) -> LocalBundle:
    assert folder is not None  # a source lies in a folder or on the Hub
    index = check_folder(folder)
    if source.entry is not None:
        source.entry.check(index)
    return LocalBundle(index=index, origin=origin, source=source)


def _not_in_cache(
    spec: str, hub_id: HubId, *, cache: Path, damage: WeightsError | None
) -> WeightsError:
    said = f" What is there is damaged: {damage.message} {damage.cause}" if damage else ""
    return WeightsError(
        f"The weights {spec} are not in the cache {cache}.{said}",
        cause="The network is not used (--offline or HF_HUB_OFFLINE).",
        next_step=f"Run `mmccd weights download {spec}` where there is a network, with the same"
        f" cache (--cache-dir {cache}); or copy the files of {hub_id.page} into a folder and pass"
        " --weights FOLDER.",
    )
