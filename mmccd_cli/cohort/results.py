"""Results that lie on the disk: their maps and masks, and how they lie to the template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.errors import DataError
from mmccd_cli.files import sha256_of_file
from mmccd_cli.inputs.names import nifti_files
from mmccd_cli.inputs.nifti import NiftiGrid, read_nifti
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.outputs.anatomy import matrix_to_template
from mmccd_cli.outputs.bids import outputs_beside
from mmccd_cli.outputs.numbers import number_lesions
from mmccd_cli.outputs.record import Sidecar, read_record, read_sidecar

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """A result on the disk.

    Attributes:
        record: What its sidecar says.
        map: The anomaly map; positive in the brain and nowhere else.
        grid: Its grid.
        mask: (I, J, K) bool on the same grid.
    """

    record: Mapping[str, Any]
    map: Volume
    grid: NiftiGrid
    mask: NDArray[np.bool_]

    @cached_property
    def numbered(self) -> NDArray[np.uint16]:
        """(I, J, K), the lesions of the mask numbered by falling volume, as the record does it."""
        return number_lesions(self.mask)

    @cached_property
    def volumes_ml(self) -> list[float]:
        """Volume of each lesion, the first one's first."""
        voxels = np.bincount(self.numbered.ravel())[1:]
        return [float(count) * self.map.voxel_volume_mm3 / 1000 for count in voxels]

    @property
    def to_template(self) -> Matrix | None:
        """(4, 4) from the world of the map to that of the template, RAS+ mm; None if not known."""
        return matrix_to_template(self.record["settings"])


def read_result(file: Path) -> Result:
    """Read a map with the mask and the record beside it, or another mask of a map with its own.

    Args:
        file: A map; or a mask that `mmccd threshold MAP --out MASK` made beside its map.

    Raises:
        DataError: One of them is missing, cannot be read, or does not belong to the others.
    """
    files = files_of_result(file)
    map_file = files["map"]
    record = sidecar_of(map_file, files["sidecar"]).record
    volume, grid = read_nifti(map_file, allow_constant=True)
    if not files["mask"].is_file():
        raise DataError(
            f"There is no mask {files['mask']} beside the map.",
            next_step=f"Make it anew: mmccd threshold {map_file} --force",
        )
    _check_mask(files, record, remake=f"mmccd threshold {map_file} --force")
    mask = read_nifti(files["mask"], allow_constant=True)[0].data > 0
    if mask.shape != volume.shape:
        raise DataError(
            f"{files['mask']} and {map_file} have different grids.",
            cause="One of them was changed or replaced.",
            next_step=f"Make the mask anew: mmccd threshold {map_file} --force",
        )
    return Result(record=record, map=volume, grid=grid, mask=mask)


def files_of_result(file: Path) -> dict[str, Path]:
    """Name map, mask, record and table of a result, which is called by its map or by another mask.

    Raises:
        DataError: It is a mask, and is not the one of its record, or has no map beside it.
    """
    files = {**outputs_beside(file), "map": file}
    record = read_record(files["sidecar"])
    if record is None or record["outputs"]["mask"] != file.name or not file.is_file():
        return files
    map_file = file.with_name(record["outputs"]["map"])
    if not map_file.is_file():
        raise DataError(
            f"{file} is a mask, and its map {map_file.name} is not beside it.",
            cause=f"{files['sidecar'].name} names the map, and no folder: both must lie in one.",
            next_step=f"Put {map_file.name} into the folder of the mask.",
        )
    files |= {"map": map_file, "mask": file}
    _check_mask(files, record, remake=f"mmccd threshold {map_file} --out {file} --force")
    return files


def _check_mask(files: Mapping[str, Path], record: Mapping[str, Any], *, remake: str) -> None:
    """Refuse a mask whose lesions, by its hash, are not those of the record.

    Raises:
        DataError: It is another one.
    """
    if record["output_sha256"].get("mask") != sha256_of_file(files["mask"]):
        raise DataError(
            f"{files['mask']} is not the mask that {files['sidecar']} speaks of.",
            cause="One of them was changed or replaced.",
            next_step=f"Make it anew: {remake}",
        )


def sidecar_of(map_file: Path, record_file: Path) -> Sidecar:
    """Read the record of a map.

    Raises:
        DataError: One of them is missing or cannot be read, or they do not belong together, or it
            is a mask.
    """
    if not map_file.is_file():
        raise DataError(f"There is no map {map_file}.", next_step="Check the name.")
    try:
        return _own_sidecar(map_file, record_file)
    except DataError as error:
        raise _error_of_mask(map_file) or error from error


def _own_sidecar(map_file: Path, record_file: Path) -> Sidecar:
    if not record_file.is_file():
        raise DataError(
            f"There is no record {record_file} beside the map.",
            cause="The scan's threshold and the calibrated settings are in it; or the file is no "
            "anomaly map.",
            next_step="Keep NAME.json beside NAME.nii.gz, or segment the subject anew.",
        )
    try:
        sidecar = read_sidecar(record_file)
    except ValueError as error:
        raise DataError(
            f"{record_file} holds no record that can be read in full.",
            cause=f"What is wrong: {error}.",
            next_step="Segment the subject anew: mmccd segment ... --force",
        ) from error
    if sidecar.record["output_sha256"].get("map") != sha256_of_file(map_file):
        raise DataError(
            f"{map_file} is not the map that {record_file} speaks of.",
            cause="One of them was changed or replaced.",
            next_step="Segment the subject anew.",
        )
    return sidecar


def _error_of_mask(file: Path) -> DataError | None:
    """The error for a mask where a map is meant; None for what is none, or cannot be read."""
    try:
        values = read_nifti(file, allow_constant=True)[0].data
    except DataError:
        return None
    map_file = _map_of_mask(file)
    empty = not values.any()
    if not ((values == 0) | (values == values.max())).all() or (empty and map_file is None):
        return None
    return DataError(
        f"{file} is a mask, and no anomaly map.",
        cause="Each of its voxels is 0 or the same value; a map has a value for each voxel of the "
        "brain.",
        next_step=f"Give the map beside it: {map_file}"
        if map_file
        else "Give the map that it was made from, with its record NAME.json beside it.",
    )


def _map_of_mask(file: Path) -> Path | None:
    """Return the map beside a mask, by the record of the mask or by their names."""
    beside = [path for path in nifti_files(file.parent) if path != file]
    record = read_record(outputs_beside(file)["sidecar"])
    if record is not None and record["outputs"]["mask"] == file.name:
        return next((path for path in beside if path.name == record["outputs"]["map"]), None)
    named = (path for path in beside if outputs_beside(path)["mask"].name == file.name)
    return next((path for path in named if outputs_beside(path)["sidecar"].is_file()), None)
