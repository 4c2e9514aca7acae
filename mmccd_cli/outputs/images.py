"""The files of a result: map, mask, sidecar and table, all of them or none."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from mmccd_cli.errors import unwritable
from mmccd_cli.files import only_writer, open_regular, refuse_to_overwrite, write_all_atomically
from mmccd_cli.inputs.nifti import NiftiGrid, encode_nifti, is_compressed_name

MAP_DESCRIPTION = "mmccd anomaly map"
MASK_DESCRIPTION = "mmccd anomaly mask"
_HEADER_BYTES = 540  # of NIfTI-2; those of NIfTI-1 are among them


CORE_OUTPUTS = ("map", "mask", "sidecar", "table")
"""Kinds of output that need not be asked for; all others are extras. In BIDS there is no "table",
which lists the lesions and what was left out of the mask: there, the sidecar alone does."""


def output_paths(out: Path) -> dict[str, Path]:
    """Name a result after map.nii.gz: map_mask.nii.gz, map.json and map_lesions.tsv beside it.

    Returns:
        Kind of output -> file, for each of `CORE_OUTPUTS`.

    Raises:
        UsageError: The name ends in neither .nii.gz nor .nii.
    """
    suffix = ".nii.gz" if is_compressed_name(out) else ".nii"
    stem, suffix = out.name[: -len(suffix)], out.name[-len(suffix) :]
    names = (out.name, f"{stem}_mask{suffix}", f"{stem}.json", f"{stem}_lesions.tsv")
    return {kind: out.with_name(name) for kind, name in zip(CORE_OUTPUTS, names, strict=True)}


def encode_images(
    paths: Mapping[str, Path], *, anomaly_map: ArrayLike, mask: ArrayLike, grid: NiftiGrid
) -> dict[str, bytes]:
    """Return the bytes of "map" and "mask"; equal arrays on one grid give equal bytes.

    Args:
        paths: Where they will go; see `output_paths`.
        anomaly_map: (I, J, K) finite values in [0, 1].
        mask: (I, J, K) bool or integers from 0 to 255.
        grid: The grid of both.

    Raises:
        ValueError: The map is not finite or leaves [0, 1], or the mask does not fit uint8.
    """
    return {
        "map": encode_nifti(
            _checked_map(anomaly_map),
            grid,
            compress=is_compressed_name(paths["map"]),
            intent="estimate",
            description=MAP_DESCRIPTION,
            display_range=(0.0, 1.0),
        ),
        "mask": encode_mask(paths["mask"], mask, grid),
    }


def encode_mask(path: Path, mask: ArrayLike, grid: NiftiGrid) -> bytes:
    """Return the bytes of a mask's file; see `encode_images`."""
    return encode_nifti(
        _checked_mask(mask),
        grid,
        compress=is_compressed_name(path),
        intent="label",
        description=MASK_DESCRIPTION,
    )


def is_described(path: Path, description: str) -> bool:
    """Tell whether an image, which may be damaged, has a header with a description of ours."""
    return description.encode() in first_bytes(path, _HEADER_BYTES)


def first_bytes(path: Path, number: int) -> bytes:
    """Return how a file begins, unpacked; nothing where it cannot be read."""
    try:
        with open_regular(path) as raw:
            stream = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            return stream.read(number)
    except (OSError, EOFError, zlib.error):
        return b""


def write_outputs(
    contents: Mapping[Path, bytes],
    *,
    inputs: Iterable[Path] = (),
    force: bool | Callable[[], bool] = False,
) -> None:
    """Write all files of a result so that none of them appears unless all could be written.

    Of two processes that write one result at the same time, one waits for the other.

    Args:
        contents: Path to bytes; the sidecar last, so that it never speaks of a file to come.
        inputs: Files that must not be overwritten.
        force: Whether existing outputs may be overwritten; a function is asked when no other
            process writes them any more.

    Raises:
        UsageError: See `refuse_to_overwrite`.
        StorageError: The disk is full.
    """
    folder = list(contents)[-1].parent
    try:
        with only_writer(folder):
            allowed = force if isinstance(force, bool) else force()
            refuse_to_overwrite(contents, inputs, force=allowed)
            write_all_atomically(contents)
    except OSError as error:
        message = f"The outputs could not be written to the folder '{folder}'."
        raise unwritable(message, error, and_now="; nothing was written") from error


def _checked_map(anomaly_map: ArrayLike) -> np.ndarray:
    values = np.asarray(anomaly_map, dtype=np.float32)
    # Neither is a number where any value is none.
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("the anomaly map must be finite and in [0, 1]")
    return values


def _checked_mask(mask: ArrayLike) -> np.ndarray:
    labels = np.asarray(mask)
    if labels.dtype.kind not in "bui" or labels.min() < 0 or labels.max() > 255:
        raise ValueError("the mask must hold integers from 0 to 255")
    return labels.view(np.uint8) if labels.dtype == bool else labels.astype(np.uint8)
