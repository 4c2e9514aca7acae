"""The files of a result: map, mask and sidecar, all of them or none."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mmccd_cli.errors import UsageError
from mmccd_cli.files import sha256_of_file, write_all_atomically
from mmccd_cli.volume import NiftiGrid, encode_nifti, is_compressed_name


@dataclass(frozen=True)
class OutputPaths:
    """Where one subject's result goes.

    Args:
        map: Anomaly map, float32 in [0, 1].
        mask: Mask, uint8.
        sidecar: JSON with inputs, settings and lesions.
    """

    map: Path
    mask: Path
    sidecar: Path

    def __iter__(self) -> Iterator[Path]:
        return iter((self.map, self.mask, self.sidecar))


def output_paths(out: Path) -> OutputPaths:
    """Derive the names of mask and sidecar from the map's: map_mask.nii.gz and map.json.

    Raises:
        UsageError: The name ends in neither .nii.gz nor .nii.
    """
    out = Path(out)
    suffix = ".nii.gz" if is_compressed_name(out) else ".nii"
    stem, suffix = out.name[: -len(suffix)], out.name[-len(suffix) :]
    return OutputPaths(out, out.with_name(f"{stem}_mask{suffix}"), out.with_name(f"{stem}.json"))


def check_outputs(
    paths: Iterable[Path], *, inputs: Iterable[Path] = (), force: bool = False
) -> None:
    """Refuse outputs that cannot or must not be written, before anything is computed.

    Args:
        paths: All files that are going to be written.
        inputs: All files that are read; none of them is ever overwritten.
        force: Whether other existing files may be overwritten.

    Raises:
        UsageError: An output exists, is an input or a folder, or its folder is unusable.
    """
    paths, inputs = list(paths), list(inputs)
    for path in paths:
        if other := next((known for known in inputs if _same_file(path, known)), None):
            raise UsageError(
                f"The output {path} is the input {other}; an input is never overwritten.",
                next_step="Give --out another name.",
            )
        if path.is_dir():
            raise UsageError(f"The output {path} is a folder.", next_step="Give a file name.")
    for folder in dict.fromkeys(path.parent for path in paths):
        _check_folder(folder)
    existing = [path for path in paths if path.exists()]
    if existing and not force:
        others = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UsageError(
            f"The output {existing[0]}{others} exists already.",
            next_step="Add --force to overwrite, or give --out another name.",
        )


def write_result(
    paths: OutputPaths,
    anomaly_map: ArrayLike,
    mask: ArrayLike,
    grid: NiftiGrid,
    record: Mapping[str, Any],
    *,
    inputs: Iterable[Path] = (),
    force: bool = False,
    extra: Mapping[Path, bytes] | None = None,
) -> None:
    """Write map, mask and sidecar so that none of them appears unless all could be written.

    Args:
        paths: Where; see `output_paths`.
        anomaly_map: (I, J, K) finite values in [0, 1].
        mask: (I, J, K) bool or integers from 0 to 255.
        grid: Grid of the reference input.
        record: What the sidecar says; dataclasses, paths and numpy values are allowed.
        inputs: Files that must not be overwritten.
        force: Whether existing outputs may be overwritten.
        extra: Further files with their content, such as pictures, under the same rule.

    Raises:
        UsageError: See `check_outputs`; or the disk is full.
        ValueError: The map is not finite or leaves [0, 1], or the mask does not fit uint8.
    """
    extra = dict(extra or {})
    check_outputs([*paths, *extra], inputs=inputs, force=force)
    values, labels = _checked_map(anomaly_map), _checked_mask(mask)
    contents = {
        paths.map: encode_nifti(
            values,
            grid,
            compress=is_compressed_name(paths.map),
            intent="estimate",
            description="mmccd anomaly map",
            display_range=(0.0, 1.0),
        ),
        paths.mask: encode_nifti(
            labels,
            grid,
            compress=is_compressed_name(paths.mask),
            intent="label",
            description="mmccd anomaly mask",
        ),
        paths.sidecar: to_json(record, indent=2).encode() + b"\n",
    }
    try:
        write_all_atomically(contents | extra)
    except OSError as error:
        raise UsageError(
            f"The outputs could not be written to {paths.map.parent}.",
            cause=f"The system says: {error.strerror or error}.",
            next_step="Check the free space (df -h) and the permissions; nothing was written.",
        ) from error


def to_json(record: Any, *, indent: int | None = None) -> str:
    """Return a record as strict JSON; a float that is not finite becomes null."""
    return json.dumps(_plain(record), indent=indent, allow_nan=False, ensure_ascii=False)


def describe_inputs(files: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Return name and SHA-256 of each input file for the sidecar.

    The folder is left out: it may say more about a person than a result should carry.
    """
    return {key: {"file": path.name, "sha256": sha256_of_file(path)} for key, path in files.items()}


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(
            f"The output folder {folder} does not exist.", next_step=f"Make it: mkdir -p '{folder}'"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"The output folder {folder} cannot be written.",
            cause="Its permissions do not allow it.",
            next_step="Give --out a folder of your own.",
        )


def _same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)  # sees through symbolic and hard links
    except OSError:
        return path.resolve() == other.resolve()


def _checked_map(anomaly_map: ArrayLike) -> np.ndarray:
    values = np.asarray(anomaly_map, dtype=np.float32)
    if not np.all(np.isfinite(values)) or values.min() < 0 or values.max() > 1:
        raise ValueError("the anomaly map must be finite and in [0, 1]")
    return values


def _checked_mask(mask: ArrayLike) -> np.ndarray:
    labels = np.asarray(mask)
    if labels.dtype.kind not in "bui" or labels.min() < 0 or labels.max() > 255:
        raise ValueError("the mask must hold integers from 0 to 255")
    return labels.astype(np.uint8)


def _plain(value: Any) -> Any:
    """Reduce a value to what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
