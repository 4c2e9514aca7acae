"""Which bundles are known by name: those shipped with the program, and the published ones.

`registry.json` pins every published bundle to one commit and the hash of its index, which holds
the hashes of all its other files:

    {"format": 1, "bundles": {"NAME": {"repo": "org/repo", "revision": "<40 digits>",
     "sha256": "<64 digits>"}}}

An entry whose repo and revision are null pins an embedded bundle that is not published.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from mmccd_cli.config import CHECKED
from mmccd_cli.errors import MmccdError
from mmccd_cli.files import read_json_as
from mmccd_cli.weights.index import INDEX, BundleIndex, Sha256, wrong_file

REGISTRY = "registry.json"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
COMMIT = re.compile(r"[0-9a-f]{40}")
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class RegistryEntry:
    """Where a bundle that is known by name lies, and what it must be.

    Attributes:
        repo: Its repository on the Hub, or None where it is only embedded.
        revision: The commit it is pinned to, or None where it is only embedded.
        sha256: Hash of its `bundle.json`.
    """

    repo: str | None
    revision: Annotated[str, Field(pattern=f"^{COMMIT.pattern}$")] | None
    sha256: Sha256

    def __post_init__(self) -> None:
        if (self.repo is None) != (self.revision is None):
            raise ValueError("an entry needs both a repository and a commit, or neither")

    def check(self, index: BundleIndex) -> None:
        """Compare a bundle's index with the registry; the index vouches for the other files.

        Raises:
            WeightsError: It is another bundle, or another version, than the registry pins.
        """
        if index.sha256 != self.sha256:
            raise wrong_file(index.folder / INDEX, expected=self.sha256, found=index.sha256)


@dataclass(frozen=True, config=CHECKED)
class Registry:
    """The registry file as it stands on the disk."""

    format: Literal[1]
    bundles: dict[Annotated[str, Field(pattern=f"^{NAME.pattern}$")], RegistryEntry]


def embedded_root() -> Path | None:
    """Return the folder of the bundles that came with the program, or None."""
    installed, checkout = _PACKAGE / "_weights", _PACKAGE.parent / "weights"
    if installed.is_dir():
        return installed
    # A folder "weights" beside an installed package belongs to somebody else.
    return checkout if (_PACKAGE.parent / "pyproject.toml").is_file() else None


def embedded_bundles() -> dict[str, Path]:
    """Return name -> folder of every bundle that came with the program."""
    root = embedded_root()
    if root is None or not root.is_dir():
        return {}
    folders = sorted(path for path in root.iterdir() if (path / INDEX).is_file())
    return {path.name: path for path in folders if NAME.fullmatch(path.name)}


def read_registry() -> dict[str, RegistryEntry]:
    """Return name -> entry of every bundle in the registry file.

    Raises:
        MmccdError: The registry, a part of the program, is damaged.
    """
    root = embedded_root()
    if root is None or not (path := root / REGISTRY).is_file():
        return {}
    registry = read_json_as(
        path,
        Registry,
        what="a registry of weights",
        error=MmccdError,
        next_step="Install mmccd again.",
    )
    return registry.bundles
