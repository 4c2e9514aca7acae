"""BIDS: what the names of a data set say, and which image of a session is meant for a modality.

A reader of its own instead of ancpbids or pybids: all that matters here are the names below
`anat`, a few rules of the specification. Those libraries read every name of the data set, with
all functional runs and derivatives, before their first answer, and leave the choice to us anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmccd_cli.config import MODALITIES
from mmccd_cli.errors import DataError, UsageError
from mmccd_cli.files import read_json_as
from mmccd_cli.inputs.names import NameReading, read_mask, stem_of, tokens_of
from mmccd_cli.inputs.sidecars import says_agent, sidecar_of_image

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
_MASK_SUFFIXES = ("mask", "dseg", "roi")
_CANONICAL_SUFFIX = {name.lower(): name for name in MODALITIES}
FILTER_EXAMPLE = '{"t1w": {"acquisition": "mprage"}, "flair": {"run": 2}}'
FILTER_HINT = (
    f"; or, with mmccd bids, say what is meant in a file such as {FILTER_EXAMPLE} and give it with "
    "--bids-filter-file."
)


@dataclass(frozen=True, kw_only=True)
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


EVERYTHING = BidsFilter()
"""A filter that leaves the choice to the names."""


@dataclass(frozen=True)
class _Name:
    """What the name of an image in `anat` says; values of `run` without leading zeros."""

    path: Path
    entities: Mapping[str, str]
    suffix: str

    @classmethod
    def of_file(cls, path: Path) -> _Name:
        """Split the name of an image into its entities and its suffix."""
        *parts, suffix = stem_of(path).split("_")
        pairs = (part.partition("-") for part in parts)
        entities = {key: _canonical(key, value) for key, _, value in pairs}
        return cls(path, entities, _canonical("suffix", suffix))

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
    """Return the root of the BIDS data set that a folder lies in, or None."""
    for place in (folder, *folder.parents):
        if place.name.startswith("sub-"):
            return place.parent
    return None


def read_bids_names(files: Sequence[Path], wanted: BidsFilter) -> list[NameReading]:
    """Choose one image a modality among the images of a session, and say of the others why not.

    Images with contrast agent (`ce-`, or by their JSON) and the phase, real and imaginary parts of
    an image are left out. Of several runs the first is taken, unless `wanted` says otherwise.
    Several images of one modality that differ in anything else all keep it: nobody but the user
    knows which acquisition is meant.

    Returns:
        One reading a file, in the given order.
    """
    images = [_Name.of_file(path) for path in files]
    readings = {image.path: _unclaimed(image) for image in images}
    for modality in MODALITIES:
        query = {"suffix": (modality,), **wanted.queries.get(modality, {})}
        candidates: list[_Name] = []
        for image in images:
            if image.suffix in query["suffix"] and not readings[image.path].modality:
                reason = _reason_against(image, query, wanted.run)
                taken = None if reason else modality
                readings[image.path] = NameReading(path=image.path, modality=taken, reason=reason)
                candidates += [] if reason else [image]
        candidates.sort(key=lambda image: image.run)
        for image in candidates[1:] if _differ_by_run_alone(candidates) else ():
            reason = f"another run of {modality}: the first, run-{candidates[0].run}, is taken"
            readings[image.path] = NameReading(path=image.path, reason=reason)
    return list(readings.values())


def read_filter(path: Path) -> dict[str, dict[str, tuple[str | None, ...]]]:
    """Read a filter file in the form that fMRIPrep made common: modality -> entity -> value.

    Values are strings, numbers, lists of them, null (the entity must be absent) or "*" (any).

    Raises:
        UsageError: It cannot be read, or says something unknown.
    """
    next_step = f"Write something like {FILTER_EXAMPLE}"
    content = read_json_as(
        path, dict[str, Any], what="a BIDS filter file", error=UsageError, next_step=next_step
    )
    queries: dict[str, dict[str, tuple[str | None, ...]]] = {}
    for key, query in content.items():
        # Files for whole pipelines also filter what is no concern of ours, such as "bold".
        if modality := _CANONICAL_SUFFIX.get(key.lower()):
            queries[modality] = _query(query, path)
    if not queries:
        raise UsageError(
            f"The filter file {path} says nothing about {', '.join(_CANONICAL_SUFFIX)}.",
            next_step=next_step,
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
        read[key] = tuple(None if v is None else _canonical(key, str(v)) for v in values)
    return read


def find_participants(dataset: Path, wanted: BidsFilter) -> list[Path]:
    """Return the folders `sub-...` of a data set, those that are asked for or all.

    Raises:
        DataError: Not a folder, or there are no participants.
    """
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


def find_anat_folders(participant: Path, sessions: Sequence[str]) -> list[Path]:
    """Return the folders `anat` of a participant, one for each session that is asked for.

    Raises:
        DataError: There is no such participant, or none of the folders.
    """
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


def _unclaimed(image: _Name) -> NameReading:
    """What an image is where no modality asks for it."""
    if image.suffix.lower() in _MASK_SUFFIXES:
        return read_mask(image.path, set(tokens_of(stem_of(image.path))))
    reason = f"its suffix {image.suffix} is none of {', '.join(MODALITIES)}"
    return NameReading(path=image.path, reason=reason)


def _differ_by_run_alone(images: Sequence[_Name]) -> bool:
    runs, protocols = {image.run for image in images}, {image.protocol for image in images}
    return len(runs) == len(images) and len(protocols) == 1


def _reason_against(
    image: _Name, query: Mapping[str, Sequence[str | None]], run: int | None
) -> str:
    """Return why an image is not meant; nothing where it may be."""
    entities = image.entities
    if "ce" in entities and "ce" not in query:
        return f"contrast-enhanced (ce-{entities['ce']}), which is not {image.suffix}"
    if image.suffix == "T1w" and "ce" not in query and says_agent(image.path):
        return f"contrast-enhanced by {sidecar_of_image(image.path).name}, which is not T1w"
    if "part" not in query and entities.get("part", "mag") != "mag":
        return f"the {entities['part']} part of an image"
    if run is not None and "run" in entities and "run" not in query and image.run != run:
        return f"run-{image.run}, and run {run} was asked for"
    for key, values in query.items():
        value = image.suffix if key == "suffix" else entities.get(key)
        if value not in values and not (_ANY in values and value is not None):
            said = f"{key}-{value}" if value is not None else f"no {key}"
            return f"left out by the filter ({said})"
    return ""


def _canonical(key: str, value: str) -> str:
    """Write a run's index without leading zeros and a known suffix in its own case."""
    if key == "suffix":
        return _CANONICAL_SUFFIX.get(value.lower(), value)
    return str(int(value)) if key in ("run", "echo", "inv") and value.isdigit() else value
