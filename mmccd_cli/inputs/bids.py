"""A BIDS data set in: one subject for each session, one image for each modality.

A reader of its own instead of ancpbids or pybids: all that matters here are the names below
`anat`, a few rules of the specification. Those libraries read every name of the data set, with
all functional runs and derivatives, before their first answer, and leave the choice to us anyway.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmccd_cli.config import MODALITIES
from mmccd_cli.errors import DataError, UsageError
from mmccd_cli.inputs.subjects import Subject

DESCRIPTION = "dataset_description.json"

# As PyBIDS names them in a filter file -> as they stand in a file's name.
_KEY_OF_ENTITY = {
    "acquisition": "acq",
    "ceagent": "ce",
    "description": "desc",
    "direction": "dir",
    "echo": "echo",
    "inversion": "inv",
    "part": "part",
    "processing": "proc",
    "reconstruction": "rec",
    "resolution": "res",
    "run": "run",
    "session": "ses",
    "space": "space",
    "subject": "sub",
}
_ANY = "*"
_FILTER_EXAMPLE = '{"t1w": {"acquisition": "mprage"}, "flair": {"run": 2}}'


@dataclass(frozen=True)
class BidsFilter:
    """Which participants, sessions and files are wanted; empty means all.

    Attributes:
        participants: Labels, without "sub-".
        sessions: Labels, without "ses-".
        run: The run to take of images that have several.
        queries: Modality -> key of an entity, or "suffix" -> values it may have; None among them
            stands for a name without the entity, "*" for any value.
    """

    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    run: int | None = None
    queries: Mapping[str, Mapping[str, tuple[str | None, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Name:
    """What the name of an image in `anat` says; values of `run` without leading zeros."""

    path: Path
    entities: Mapping[str, str]
    suffix: str

    @property
    def run(self) -> int:
        """The run's number, 0 without one, for sorting."""
        value = self.entities.get("run", "0")
        return int(value) if value.isdigit() else 0

    @property
    def protocol(self) -> tuple[tuple[str, str], ...]:
        """All that tells it apart from other images of its session, except for the run."""
        return tuple(
            (key, value) for key, value in self.entities.items() if key not in ("sub", "ses", "run")
        )


def bids_root(folder: Path) -> Path | None:
    """Return the root of the BIDS data set that a folder lies in, or None.

    Args:
        folder: A subject's folder, or one inside it.
    """
    for place in (folder, *folder.parents):
        if place.name.startswith("sub-"):
            return place.parent
    return None


def find_sessions(
    dataset: Path, wanted: BidsFilter = BidsFilter()
) -> tuple[list[Subject], list[tuple[str, DataError]]]:
    """Find what can be segmented in a BIDS data set.

    Images with contrast agent (`ce-`) and the phase, real and imaginary parts of an image are
    left out. Of several runs the first is taken, unless `wanted` says otherwise. Several images
    of one modality that differ in anything else are an error of that session: nobody but the user
    knows which acquisition is meant.

    Args:
        dataset: Folder that holds `sub-...`.
        wanted: What to take.

    Returns:
        One subject for each session (or participant, where there are no sessions) in the order of
        their names, and what cannot be segmented, each with the reason.

    Raises:
        DataError: Not a folder, or there are no participants.
        UsageError: No participant has a session of those that were asked for.
    """
    participants = _participants(Path(dataset), wanted)
    subjects: list[Subject] = []
    failures: list[tuple[str, DataError]] = []
    for folder in participants:
        try:
            places = _image_folders(folder, wanted.sessions)
        except DataError as error:
            failures.append((folder.name, error))
            continue
        for place in places:
            name = "_".join(part for part in place.parts[-3:-1] if re.match("(sub|ses)-", part))
            try:
                subjects.append(_subject(place, name, wanted))
            except DataError as error:
                failures.append((name, error))
    if not subjects and not failures:
        raise UsageError(
            f"No participant of {dataset} has the session {' or '.join(wanted.sessions)}.",
            next_step=f"Look what there is: ls '{dataset}'/sub-*",
        )
    return subjects, failures


def read_filter(path: Path) -> dict[str, dict[str, tuple[str | None, ...]]]:
    """Read a filter file in the form that fMRIPrep made common: modality -> entity -> value.

    Values are strings, numbers, lists of them, null (the entity must be absent) or "*" (any).

    Raises:
        UsageError: It cannot be read, or says something unknown.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"The filter file {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(
            f"The filter file {path} is not JSON.",
            cause=f"The parser says: {error}.",
            next_step=f"Write something like {_FILTER_EXAMPLE}",
        ) from error
    if not isinstance(content, dict):
        content = {str(content): {}}
    modality_of = {name.lower(): name for name in MODALITIES}
    queries: dict[str, dict[str, tuple[str | None, ...]]] = {}
    for key, query in content.items():
        # Files for whole pipelines also filter what is no concern of ours, such as "bold".
        if modality := modality_of.get(key.lower()):
            queries[modality] = _query(query, path)
    if not queries:
        raise UsageError(
            f"The filter file {path} says nothing about {', '.join(modality_of)}.",
            next_step=f"Write something like {_FILTER_EXAMPLE}",
        )
    return queries


def _query(query: Any, path: Path) -> dict[str, tuple[str | None, ...]]:
    read: dict[str, tuple[str | None, ...]] = {}
    for entity, value in query.items() if isinstance(query, dict) else [(str(query), None)]:
        if entity in ("datatype", "extension"):
            continue  # always anat and NIfTI
        key = _KEY_OF_ENTITY.get(entity, entity)
        if key != "suffix" and key not in _KEY_OF_ENTITY.values():
            raise UsageError(
                f"The filter file {path} names {entity}, which is no entity of BIDS.",
                next_step=f"Use {', '.join(_KEY_OF_ENTITY)} or suffix.",
            )
        values = value if isinstance(value, list) else [value]
        read[key] = tuple(None if v is None else _plain(key, str(v)) for v in values)
    return read


def _participants(dataset: Path, wanted: BidsFilter) -> list[Path]:
    if not dataset.is_dir():
        raise DataError(f"There is no folder {dataset}.", next_step="Check the name.")
    if wanted.participants:
        labels = dict.fromkeys(label.removeprefix("sub-") for label in wanted.participants)
        return [dataset / f"sub-{label}" for label in labels]
    found = sorted(path for path in dataset.glob("sub-*") if path.is_dir())
    if not found:
        raise DataError(
            f"{dataset} holds no participant: no folder sub-...",
            cause="It is not the root of a BIDS data set.",
            next_step=f"Give the folder that holds {DESCRIPTION}, or use mmccd segment.",
        )
    return found


def _image_folders(participant: Path, sessions: Sequence[str]) -> list[Path]:
    """Return the folders `anat` of a participant."""
    if not participant.is_dir():
        raise DataError(
            f"There is no participant {participant.name} in {participant.parent}.",
            next_step=f"Look what there is: ls -d '{participant.parent}'/sub-*",
        )
    places = [participant / "anat", *sorted(participant.glob("ses-*/anat"))]
    places = [place for place in places if place.is_dir()]
    if not places:
        raise DataError(
            f"{participant} has no structural images: no folder anat.",
            next_step="Leave this participant out, or look for missing data.",
        )
    labels = {label.removeprefix("ses-") for label in sessions}
    return [
        place for place in places if not labels or place.parent.name.removeprefix("ses-") in labels
    ]


def _subject(anat: Path, name: str, wanted: BidsFilter) -> Subject:
    names = list(_names(anat))
    ignored: dict[Path, str] = {}
    chosen: dict[str, Path] = {}
    for modality in MODALITIES:
        query = {"suffix": (modality,), **wanted.queries.get(modality, {})}
        images = [item for item in names if item.suffix in query["suffix"]]
        if taken := _choose(modality, images, query, wanted.run, ignored):
            chosen[modality] = taken.path
    for item in names:
        if item.path not in chosen.values():
            reason = f"its suffix {item.suffix} is none of {', '.join(MODALITIES)}"
            ignored.setdefault(item.path, reason)
    if not chosen:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in list(ignored.items())[:4])
        raise DataError(
            f"{anat} has no {', '.join(MODALITIES[:-1])} or {MODALITIES[-1]} that can be used.",
            cause=f"What the names say: {reasons}." if reasons else "It holds no NIfTI image.",
            next_step="Leave it out, or change the filter.",
        )
    _check_content(chosen.values())
    return Subject(name, chosen, None, tuple(sorted(ignored.items())), "bids")


def _names(anat: Path) -> Iterable[_Name]:
    # Also what is no file: without its content, an image of a git-annex is a link to nowhere.
    for path in sorted(anat.iterdir()):
        match = re.fullmatch(r"(?P<stem>[^.].*?)\.nii(\.gz)?", path.name, re.IGNORECASE)
        if match:
            *parts, suffix = match["stem"].split("_")
            pairs = (part.partition("-") for part in parts)
            entities = {key: _plain(key, value) for key, _, value in pairs}
            yield _Name(path, entities, suffix)


def _choose(
    modality: str,
    images: Sequence[_Name],
    query: Mapping[str, Sequence[str | None]],
    run: int | None,
    ignored: dict[Path, str],
) -> _Name | None:
    """Choose the image of a modality, and say of the others why not."""
    candidates: list[_Name] = []
    for image in images:
        if reason := _reason_against(image, query, run):
            ignored[image.path] = reason
        else:
            candidates.append(image)
    if not candidates:
        return None
    first, *others = sorted(candidates, key=lambda image: image.run)
    if any(image.protocol != first.protocol or image.run == first.run for image in others):
        listed = ", ".join(image.path.name for image in candidates[:4])
        raise DataError(
            f"{first.path.parent} has {len(candidates)} images for {modality}: {listed}.",
            cause="They differ in more than the run, and only you know which is meant.",
            next_step=f"Say so in a file like {_FILTER_EXAMPLE} and give it with "
            "--bids-filter-file.",
        )
    for image in others:
        ignored[image.path] = f"another run of {modality}: the first, run-{first.run}, is taken"
    return first


def _reason_against(
    image: _Name, query: Mapping[str, Sequence[str | None]], run: int | None
) -> str | None:
    """Return why an image is not meant, None where it may be."""
    entities = image.entities
    if "ce" in entities and "ce" not in query:
        return f"contrast-enhanced (ce-{entities['ce']}), which is not {image.suffix}"
    if "part" not in query and entities.get("part", "mag") != "mag":
        return f"the {entities['part']} part of an image"
    if run is not None and "run" in entities and "run" not in query and image.run != run:
        return f"run-{image.run}, and run {run} was asked for"
    for key, values in query.items():
        value = image.suffix if key == "suffix" else entities.get(key)
        if value not in values and not (_ANY in values and value is not None):
            said = f"{key}-{value}" if value is not None else f"no {key}"
            return f"left out by the filter ({said})"
    return None


def _check_content(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise DataError(
                f"The content of {path} is not here.",
                cause="It is a link to nowhere, as in a data set of DataLad or git-annex.",
                next_step=f"Get it: datalad get '{path}'",
            )


def _plain(key: str, value: str) -> str:
    """Write the index of a run without leading zeros, which mean nothing."""
    return str(int(value)) if key in ("run", "echo", "inv") and value.isdigit() else value
