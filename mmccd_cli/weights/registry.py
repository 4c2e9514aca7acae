"""Which bundles are known by name: those shipped with the program, and the published ones.

`registry.json` pins every published bundle to one commit and the hash of each of its files:

    {"format": 1, "bundles": {"NAME": {"repo": "org/repo", "revision": "<40 digits>",
     "licence": "...", "modalities": ["FLAIR", ...], "accuracy": "one line",
     "files": {"bundle.json": {"sha256": "...", "size": 1}, ...}}}}

An entry whose repo is null belongs to an embedded bundle that is not published. Standard library
only.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmccd_cli.errors import MmccdError
from mmccd_cli.weights.index import INDEX, BundleIndex, check_files, wrong_file

FORMAT = 1
REGISTRY = "registry.json"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
COMMIT = re.compile(r"[0-9a-f]{40}")
_PACKAGE = Path(__file__).resolve().parent.parent
_KEYS = {"repo", "revision", "licence", "modalities", "accuracy", "files"}


@dataclass(frozen=True)
class RegistryEntry:
    """A bundle known by name.

    Attributes:
        name: Its name.
        repo: Its repository on the Hub, or None where it is only embedded.
        revision: The commit it is pinned to, or None where it is only embedded.
        licence: Licence of the weights.
        modalities: Modalities it has a cycle for.
        accuracy: One line of measured accuracy.
        files: Name -> {"sha256", "size"}, with `bundle.json` among them.
    """

    name: str
    repo: str | None
    revision: str | None
    licence: str
    modalities: tuple[str, ...]
    accuracy: str
    files: dict[str, dict[str, Any]]

    def check(self, index: BundleIndex) -> None:
        """Compare a bundle's index with the registry; the index vouches for the other files.

        Raises:
            WeightsError: It is another bundle, or another version, than the registry pins.
        """
        entry = self.files[INDEX]
        if index.sha256 != entry["sha256"]:
            raise wrong_file(index.folder / INDEX, entry, index.sha256)

    def to_json(self) -> dict[str, Any]:
        """Return the entry as it stands in the registry file."""
        values = {key: getattr(self, key) for key in sorted(_KEYS)}
        return {**values, "modalities": list(self.modalities)}


def embedded_root() -> Path | None:
    """Return the folder of the bundles that came with the program, or None."""
    installed, checkout = _PACKAGE / "_weights", _PACKAGE.parent / "weights"
    if installed.is_dir():
        return installed
    # A folder "weights" beside an installed package belongs to somebody else.
    return checkout if (_PACKAGE.parent / "pyproject.toml").is_file() else None


def embedded_bundles(root: Path | None = None) -> dict[str, Path]:
    """Return name -> folder of every bundle that came with the program."""
    root = root or embedded_root()
    if root is None or not root.is_dir():
        return {}
    folders = sorted(path for path in root.iterdir() if (path / INDEX).is_file())
    return {path.name: path for path in folders if NAME.fullmatch(path.name)}


def read_registry(root: Path | None = None) -> dict[str, RegistryEntry]:
    """Return name -> entry of every bundle in the registry file.

    Raises:
        MmccdError: The registry, a part of the program, is damaged.
    """
    root = root or embedded_root()
    if root is None or not (path := root / REGISTRY).is_file():
        return {}
    try:
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict) or set(document) != {"format", "bundles"}:
            raise ValueError("it needs exactly a format and bundles")
        if document["format"] != FORMAT or not isinstance(document["bundles"], dict):
            raise ValueError(f"its format is not {FORMAT}")
        return {name: _entry(name, values) for name, values in document["bundles"].items()}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise MmccdError(
            f"the registry of weights {path} is damaged",
            cause=str(error),
            next_step="install mmccd again",
        ) from error


def make_entry(
    index: BundleIndex, *, repo: str | None = None, revision: str | None = None
) -> RegistryEntry:
    """Describe a bundle as the registry would.

    Args:
        index: The bundle's index.
        repo: Where it was published.
        revision: The commit that holds it.
    """
    bundle = index.bundle if isinstance(index.bundle, dict) else {}
    cycles = bundle.get("cycles")
    cycles = [c for c in cycles if isinstance(c, dict)] if isinstance(cycles, list) else []
    return RegistryEntry(
        name=index.text("name") or index.folder.name,
        repo=repo,
        revision=revision,
        licence=index.text("licence") or "unknown",
        modalities=tuple(str(cycle.get("source")) for cycle in cycles),
        accuracy=_accuracy(bundle.get("calibration")),
        files={INDEX: {"sha256": index.sha256, "size": index.size}, **index.files},
    )


def _accuracy(calibration: Any) -> str:
    """Return one line of the calibration's accuracy and on whom, or nothing where there is none.

    It is the calibration's, often on training subjects, and must say so: it is no test result.
    """
    about = calibration if isinstance(calibration, dict) else {}
    rows, subjects = about.get("rows"), about.get("subjects")
    row = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}
    dice, modalities = row.get("left_out_dice"), row.get("modalities")
    if not (
        isinstance(dice, float) and isinstance(modalities, list) and isinstance(subjects, list)
    ):
        return ""
    return (
        f"Dice {dice:.2f} in calibration on {len(subjects)} subjects of the split "
        f"{about.get('split')!r} ({row.get('method')}, {'+'.join(map(str, modalities))})"
    )


def _entry(name: str, values: Any) -> RegistryEntry:
    if not NAME.fullmatch(name) or not isinstance(values, dict) or set(values) != _KEYS:
        raise ValueError(f"the entry {name!r} needs exactly {', '.join(sorted(_KEYS))}")
    repo, revision, files = values["repo"], values["revision"], dict(values["files"])
    if (repo is None) != (revision is None):
        raise ValueError(f"the entry {name} needs both a repository and a commit, or neither")
    if revision is not None and not COMMIT.fullmatch(revision):
        raise ValueError(f"the entry {name} is not pinned to a commit")
    check_files({("index" if key == INDEX else key): entry for key, entry in files.items()})
    if INDEX not in files:
        raise ValueError(f"the entry {name} does not list {INDEX}")
    return RegistryEntry(
        name=name,
        repo=repo,
        revision=revision,
        licence=str(values["licence"]),
        modalities=tuple(map(str, values["modalities"])),
        accuracy=str(values["accuracy"]),
        files=files,
    )
