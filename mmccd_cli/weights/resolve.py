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
Origin = Literal["path", "embedded", "cache", "hub"]


@dataclass(frozen=True)
class LocalBundle:
    """A bundle on this computer, every file of it compared with its index.

    Attributes:
        index: What its `bundle.json` says.
        origin: Where it was found.
        entry: Its entry in the registry, or None.
        repo: Its repository on the Hub, or None.
        revision: The branch, tag or commit that was asked for, or None.
        commit: The commit that it is, or None.
    """

    index: BundleIndex
    origin: Origin
    entry: RegistryEntry | None = None
    repo: str | None = None
    revision: str | None = None
    commit: str | None = None

    @property
    def folder(self) -> Path:
        """The bundle's folder."""
        return self.index.folder


@dataclass(frozen=True)
class Target:
    """What a specification stands for, before anything is read or downloaded.

    Attributes:
        spec: The specification.
        folder: The local folder, for a path or an embedded bundle.
        origin: What kind of thing it is; "hub" also where the cache may hold it.
        entry: Its entry in the registry, or None.
        hub_id: Where it lies on the Hub, or None.
    """

    spec: str
    origin: Origin
    folder: Path | None = None
    entry: RegistryEntry | None = None
    hub_id: HubId | None = None


def resolve_weights(
    spec: str | None, *, offline: bool = False, cache_dir: Path | None = None
) -> Path:
    """Return the folder of a verified bundle; see `resolve`.

    Args:
        spec: A folder, a `bundle.json`, a name, or `org/repo[@revision]`; None for the default.
        offline: Whether the network must not be used.
        cache_dir: Where downloads are kept; None for `MMCCD_CACHE_DIR`, then the Hub's own cache.

    Raises:
        WeightsError: There are no such weights, or they are not the right ones.
    """
    return resolve(spec, offline=offline, cache_dir=cache_dir).folder


def resolve(
    spec: str | None = None,
    *,
    offline: bool = False,
    cache_dir: Path | None = None,
    refresh: bool = False,
    announce: Callable[[BundleIndex], None] | None = None,
    endpoint: str | None = None,
) -> LocalBundle:
    """Find a bundle, download it where it is nowhere on this computer, and check every file.

    A branch that is in the cache is used as it is there: weights never change by themselves.

    Args:
        spec: A folder, a `bundle.json`, a name, or `org/repo[@revision]`; None for the default.
        offline: Whether the network must not be used.
        cache_dir: Where downloads are kept; None for `MMCCD_CACHE_DIR`, then the Hub's own cache.
        refresh: Whether to ask the Hub which commit a branch is now.
        announce: Called with the index before the large files are downloaded.
        endpoint: Address of the Hub; None for `HF_ENDPOINT`, then the public one.

    Raises:
        WeightsError: There are no such weights, or they are not the right ones.
    """
    target = find_target(spec)
    if target.folder is not None:
        index = check_folder(target.folder)
        if target.entry is not None:
            target.entry.check(index)
        return LocalBundle(index, target.origin, target.entry)
    hub_id = target.hub_id
    if hub_id is None:
        raise _unknown(target.spec)
    cache = hub.cache_folder(cache_dir)
    damage: WeightsError | None = None
    folder = hub.find_cached(hub_id, cache)
    if folder is not None and (hub_id.pinned or offline or not refresh):
        try:
            return _checked(folder, target, "cache")
        except WeightsError as error:
            damage = error
    if offline or hub.is_offline():
        raise _not_offline(target, cache, damage)
    folder = hub.download(hub_id, cache, entry=target.entry, announce=announce, endpoint=endpoint)
    return _checked(folder, target, "hub")


def find_target(spec: str | None) -> Target:
    """Tell what a specification stands for, without the network.

    A folder that is named comes first; the default is never a folder that happens to be called so.

    Raises:
        WeightsError: It stands for nothing.
    """
    named = spec or os.environ.get("MMCCD_WEIGHTS")
    spec = named or EMBEDDED_DEFAULT
    folder = _as_folder(named) if named else None
    if folder is not None:
        return Target(spec, "path", folder)
    registry = read_registry()
    if spec in (embedded := embedded_bundles()):
        return Target(spec, "embedded", embedded[spec], registry.get(spec))
    if (entry := registry.get(spec)) is not None and entry.repo and entry.revision:
        return Target(spec, "hub", None, entry, HubId(entry.repo, entry.revision))
    if (hub_id := HubId.parse(spec)) is not None:
        return Target(spec, "hub", hub_id=hub_id)
    raise _unknown(spec)


def list_bundles(cache_dir: Path | None = None) -> list[tuple[Target, BundleIndex | None]]:
    """List what can be used by name: embedded, known and cached bundles, with their index.

    Args:
        cache_dir: Where downloads are kept; None for the default.

    Returns:
        What each name stands for, and its index where it is on this computer and readable.
    """
    cache = hub.cache_folder(cache_dir)
    targets = [find_target(name) for name in sorted({*embedded_bundles(), *_published()})]
    known = {target.hub_id for target in targets}
    for hub_id, _ in hub.list_cached(cache):
        if hub_id not in known:
            targets.append(Target(str(hub_id), "hub", hub_id=hub_id))
    rows: list[tuple[Target, BundleIndex | None]] = []
    for target in targets:
        folder = target.folder
        if folder is None and target.hub_id is not None:
            folder = hub.find_cached(target.hub_id, cache)
        try:
            rows.append((target, read_index(folder) if folder else None))
        except WeightsError:
            # A cache is shared with other programs; what is no bundle of ours is not listed.
            if target.entry is not None or target.origin == "embedded":
                rows.append((target, None))
    return rows


def remove(spec: str, *, cache_dir: Path | None = None) -> tuple[Path, int]:
    """Remove a downloaded bundle from the cache; folders and embedded bundles are never touched.

    Returns:
        The folder that is gone, and how many bytes that freed.

    Raises:
        WeightsError: It is not in the cache, or is not the cache's to remove.
    """
    target = find_target(spec)
    if target.hub_id is None:
        raise WeightsError(
            f"{spec} is not in the cache of downloads",
            cause=f"it is {'a folder' if target.origin == 'path' else 'part of the program'}:"
            f" {target.folder}",
            next_step="delete a folder of your own by hand",
        )
    cache = hub.cache_folder(cache_dir)
    folder = hub.find_cached(target.hub_id, cache)
    if folder is None:
        raise _not_offline(target, cache, None)
    return folder, hub.remove_cached(folder, cache)


def _published() -> list[str]:
    return [name for name, entry in read_registry().items() if entry.repo]


def _as_folder(spec: str) -> Path | None:
    """Return the folder that a specification names, or None where it is a name or Hub id."""
    path = Path(spec).expanduser()
    try:
        if path.is_file():
            if path.name == INDEX:
                return path.parent
            raise WeightsError(
                f"{path} is a file, and weights are a folder",
                cause=f"a bundle is a folder with {INDEX} and safetensors files; others, such as"
                " pickles, are never opened",
                next_step="pass the bundle's folder: --weights FOLDER",
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


def _checked(folder: Path, target: Target, origin: Origin) -> LocalBundle:
    index = read_index(folder)
    if target.entry is not None:
        target.entry.check(index)
    index = check_folder(folder)
    hub_id = target.hub_id
    return LocalBundle(
        index,
        origin,
        target.entry,
        repo=hub_id.repo if hub_id else None,
        revision=hub_id.revision if hub_id else None,
        commit=folder.name,
    )


def _unknown(spec: str) -> WeightsError:
    names = sorted({*embedded_bundles(), *_published()})
    close = difflib.get_close_matches(spec, names, n=1)
    known = ", ".join(names) if names else "none came with this installation"
    return WeightsError(
        f"there are no weights called {spec}",
        cause=f"known names: {known}; it is no folder with a {INDEX} and no Hub id org/repo either",
        next_step=f"use --weights {close[0]}" if close else "run `mmccd weights list`",
    )


def _not_offline(target: Target, cache: Path, damage: WeightsError | None) -> WeightsError:
    hub_id = target.hub_id
    said = f"; what is there is damaged: {damage.message} ({damage.cause})" if damage else ""
    return WeightsError(
        f"the weights {target.spec} are not in the cache {cache}{said}",
        cause="the network is not used (--offline or HF_HUB_OFFLINE)",
        next_step=f"run `mmccd weights download {target.spec}` where there is a network, with"
        f" the same cache (--cache-dir {cache}); or copy the files of"
        f" {hub.page(hub_id) if hub_id else target.spec} into a folder and pass --weights FOLDER",
    )
