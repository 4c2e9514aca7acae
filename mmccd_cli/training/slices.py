"""Slice shards: what `prepare` writes and `train` reads, one safetensors file a subject.

| file                    | holds                                                              |
|-------------------------|--------------------------------------------------------------------|
| `dataset.json`          | format, grid, quantisation, modalities, subjects, split, provenance |
| `template.safetensors`  | mean image a modality (I, J, K) uint8, and `mask`                  |
| `SUBJECT.safetensors`   | each modality (K, H, W) uint8; `brain`, `lesion` (K, H, W) uint8 0/1 |

Slices are axial, rows along the template's first axis (left to right), columns along its second.
No image library is needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mmccd_cli.config import Number, Positive
from mmccd_cli.errors import DataError
from mmccd_cli.files import (
    check_json,
    open_regular,
    read_json,
    remove_leftovers,
    sha256_of_file,
    write_atomically,
)
from mmccd_cli.template import Quantisation, Template

FORMAT = 1
INDEX = "dataset.json"
TEMPLATE = "template.safetensors"
DECIDE_SLICES = (
    "modalities",
    "spacing_mm",
    "affine",
    "shape",
    "background",
    "preprocessing",
    "quantisation",
)
"""What of `dataset.json` holds for every slice; the rest is of subjects, or for people."""
FileName = Annotated[str, Field(pattern=r"^[^/\\\x00]+$")]


class SubjectEntry(BaseModel):
    """What `dataset.json` says of a subject; further keys are for people."""

    id: FileName
    split: str | None = None
    files: dict[str, Any]
    slices: NonNegativeInt
    healthy_slices: NonNegativeInt


class IndexDocument(BaseModel):
    """`dataset.json`, as far as a program reads it."""

    format: Literal[1]
    modalities: list[FileName]
    subjects: list[SubjectEntry]
    quantisation: Quantisation
    spacing_mm: tuple[Positive, Positive, Positive]
    affine: Annotated[list[Number], Field(min_length=16, max_length=16)]
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    background: Number
    preprocessing: dict[str, Any]


@dataclass(frozen=True)
class SubjectShard:
    """The slices of one subject.

    Attributes:
        images: Modality -> (K, H, W) uint8 levels.
        brain: (K, H, W) bool.
        lesion: (K, H, W) bool; all False for a healthy subject.
    """

    images: dict[str, NDArray[np.uint8]]
    brain: NDArray[np.bool_]
    lesion: NDArray[np.bool_]


@dataclass(frozen=True)
class SubjectVolumes:
    """One subject on the grid of the template, as slices hold it.

    Attributes:
        images: Modality -> (I, J, K) float32, normalised.
        brain: (I, J, K) bool.
        lesion: (I, J, K) bool.
    """

    images: dict[str, NDArray[np.float32]]
    brain: NDArray[np.bool_]
    lesion: NDArray[np.bool_]

    def as_shard(self, quantisation: Quantisation) -> SubjectShard:
        """Cut the volumes into slices."""
        images = {m: np.moveaxis(quantisation.encode(v), 2, 0) for m, v in self.images.items()}
        return SubjectShard(images, np.moveaxis(self.brain, 2, 0), np.moveaxis(self.lesion, 2, 0))


Change = Callable[[SubjectVolumes], SubjectVolumes]
"""What is done to a subject before anything is learnt from it."""


def write_shard(folder: Path, subject: str, shard: SubjectShard) -> None:
    """Write one subject's slices, whole or not at all."""
    masks = {"brain": shard.brain, "lesion": shard.lesion}
    _write(folder / f"{subject}.safetensors", shard.images, masks)


def read_shard(folder: Path, subject: str) -> SubjectShard:
    """Read one subject's slices.

    Raises:
        DataError: The file is missing or damaged.
    """
    images, brain, lesion = _read(folder / f"{subject}.safetensors", "brain", "lesion")
    return SubjectShard(images, brain, lesion)


def read_volumes(
    folder: Path, subject: str, quantisation: Quantisation, *, change: Change | None = None
) -> SubjectVolumes:
    """Read one subject's slices and put them together again.

    Args:
        folder: What `prepare` wrote.
        subject: Id.
        quantisation: From `dataset.json`.
        change: What is done to the subject then.

    Raises:
        DataError: The file is missing or damaged.
    """
    shard, shape = read_shard(folder, subject), tuple(read_index(folder)["shape"])
    for name, slices in {**shard.images, "brain": shard.brain, "lesion": shard.lesion}.items():
        if (*slices.shape[1:], slices.shape[0]) != shape:
            raise DataError(
                f"{name} of {subject} has another shape than {folder / INDEX} says.",
                next_step="Run `mmccd prepare --force` again.",
            )
    images = {m: np.moveaxis(quantisation.decode(v), 0, 2) for m, v in shard.images.items()}
    brain, lesion = np.moveaxis(shard.brain, 0, 2), np.moveaxis(shard.lesion, 0, 2)
    volumes = SubjectVolumes(images, brain, lesion)
    return volumes if change is None else change(volumes)


def write_template(folder: Path, template: Template) -> None:
    """Write the template that the slices lie in, quantised like them; not its affine."""
    levels = {name: Quantisation().encode(image) for name, image in template.images.items()}
    _write(folder / TEMPLATE, levels, {"mask": template.mask})


def read_template(folder: Path, affine: Any) -> Template:
    """Read the template that slices lie in.

    Args:
        folder: What `prepare` wrote, or a comparison model.
        affine: Sixteen numbers, row by row, from the JSON file beside it.

    Raises:
        DataError: The file is missing or damaged.
    """
    levels, mask = _read(folder / TEMPLATE, "mask")
    images = {name: Quantisation().decode(values) for name, values in levels.items()}
    return Template(images, mask, np.array(affine, dtype=np.float64).reshape(4, 4))


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Write `dataset.json`, whole or not at all, and remove what killed runs left half-written."""
    text = json.dumps({"format": FORMAT, **index}, indent=1) + "\n"
    write_atomically(folder / INDEX, text.encode())
    slices = _files_of(entry["id"] for entry in index["subjects"])
    remove_leftovers(*(folder / name for name in (INDEX, *slices)))


def read_index(folder: Path) -> dict[str, Any]:
    """Read and check `dataset.json`.

    Raises:
        DataError: No such file, not JSON, another format, or something missing or impossible.
    """
    path = folder / INDEX
    try:
        index = read_json(path)
        check_json(IndexDocument, index)
    except OSError as error:
        raise DataError(
            f"{folder} is not a prepared data set.",
            cause=f"{INDEX} cannot be read: {error}",
            next_step="Run `mmccd prepare --data-dir DIR --out FOLDER` first.",
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path} does not describe a prepared data set.",
            cause=f"What is wrong: {error}.",
            next_step="Run `mmccd prepare --force` again.",
        ) from error
    return index


def subjects_of(index: Mapping[str, Any], split: str) -> list[str]:
    """Ids of the subjects of one split, from what `read_index` returns."""
    return [entry["id"] for entry in index["subjects"] if entry.get("split") == split]


def hash_slices(folder: Path, subjects: Sequence[str]) -> str:
    """Hash all that decides what subjects' slices show: their files, the template and the grid.

    Neither dates, nor splits, nor other subjects count.

    Args:
        folder: What `prepare` wrote.
        subjects: Ids, whose order counts.

    Returns:
        A SHA-256 as 64 hexadecimal digits.

    Raises:
        DataError: The index or a file cannot be read.
    """
    index = read_index(folder)
    facts = json.dumps({name: index[name] for name in DECIDE_SLICES}, sort_keys=True)
    digest = hashlib.sha256(facts.encode())
    for name in _files_of(subjects):
        try:
            digest.update(sha256_of_file(folder / name).encode())
        except OSError as error:
            raise _unreadable(folder / name, error) from error
    return digest.hexdigest()


def _files_of(subjects: Iterable[str]) -> list[str]:
    """Names of the files that hold the template and the slices of subjects."""
    return [TEMPLATE, *(f"{subject}.safetensors" for subject in subjects)]


def _write(
    path: Path, images: Mapping[str, NDArray[np.uint8]], masks: Mapping[str, NDArray[np.bool_]]
) -> None:
    arrays = {**images, **{name: mask.astype(np.uint8) for name, mask in masks.items()}}
    write_atomically(path, save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))


def _read(path: Path, *masks: str) -> tuple[Any, ...]:
    """The images of a file by name, and then its masks."""
    try:
        with open_regular(path) as stream:
            arrays = load(stream.read())
        found = [arrays.pop(name).astype(bool) for name in masks]
    except (OSError, SafetensorError, KeyError) as error:
        raise _unreadable(path, error) from error
    # safetensors gives them in another order each time.
    return dict(sorted(arrays.items())), *found


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read.", cause=str(error), next_step="Run `mmccd prepare --force` again."
    )
