"""Slice shards: what `prepare` writes and `train` reads, one safetensors file a subject.

| file                    | holds                                                              |
|-------------------------|--------------------------------------------------------------------|
| `dataset.json`          | format, grid, quantisation, modalities, subjects, split, provenance |
| `template.safetensors`  | mean image a modality (I, J, K) uint8, and `mask`                  |
| `SUBJECT.safetensors`   | each modality (K, H, W) uint8; `brain`, `lesion` (K, H, W) uint8 0/1 |

Slices are axial, rows along the template's first axis (left to right), columns along its second.
Only numpy and safetensors are needed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mmccd_cli.errors import DataError
from mmccd_cli.template import Quantisation

FORMAT = 1
INDEX = "dataset.json"
TEMPLATE = "template.safetensors"


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


def write_shard(folder: Path, subject: str, shard: SubjectShard) -> None:
    """Write one subject's slices, replacing an older file only when complete."""
    tensors = dict(shard.images)
    tensors["brain"] = shard.brain.astype(np.uint8)
    tensors["lesion"] = shard.lesion.astype(np.uint8)
    part = folder / f".{subject}.part"
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, part)
    part.replace(folder / f"{subject}.safetensors")


def read_shard(folder: Path, subject: str) -> SubjectShard:
    """Read one subject's slices.

    Raises:
        DataError: The file is missing or damaged.
    """
    path = folder / f"{subject}.safetensors"
    try:
        tensors = load_file(path)
        brain = tensors.pop("brain").astype(bool)
        lesion = tensors.pop("lesion").astype(bool)
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(
            f"cannot read the slice shard {path}",
            cause=str(error),
            next_step="run `mmccd prepare` again",
        ) from error
    return SubjectShard(tensors, brain, lesion)


def write_template(
    folder: Path, images: dict[str, NDArray[np.float32]], mask: NDArray[np.bool_]
) -> None:
    """Write the template that the slices lie in, quantised like them."""
    quantisation = Quantisation()
    arrays = {name: quantisation.encode(image) for name, image in images.items()}
    part = folder / f".{TEMPLATE}.part"
    save_file({**arrays, "mask": mask.astype(np.uint8)}, part)
    part.replace(folder / TEMPLATE)


def read_template(folder: Path) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
    """Read the template's images (I, J, K) float32 and its brain mask.

    Raises:
        DataError: The file is missing or damaged.
    """
    quantisation = Quantisation()
    try:
        arrays = load_file(folder / TEMPLATE)
        mask = arrays.pop("mask").astype(bool)
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(
            f"cannot read the template in {folder}",
            cause=str(error),
            next_step="run `mmccd prepare` again",
        ) from error
    return {name: quantisation.decode(levels) for name, levels in arrays.items()}, mask


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Write `dataset.json`, replacing an older one only when complete."""
    part = folder / f".{INDEX}.part"
    part.write_text(json.dumps({"format": FORMAT, **index}, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / INDEX)


def read_index(folder: Path) -> dict[str, Any]:
    """Read and check `dataset.json`.

    Raises:
        DataError: No such file, not JSON, another format, or keys missing.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} is not a prepared data set",
            cause=f"{INDEX} cannot be read: {error}",
            next_step="run `mmccd prepare --data-dir DIR --out FOLDER` first",
        ) from error
    needed = ("modalities", "subjects", "quantisation", "spacing_mm")
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{path} has another format", next_step="run `mmccd prepare` again")
    missing = [key for key in needed if key not in index]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}", next_step="run `mmccd prepare` again")
    return index
