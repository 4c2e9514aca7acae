"""BIDS derivatives out: what stands beside map, mask and record.

Of a session: `..._space-orig_desc-anomaly_probseg` (the map; its sidecar holds the record),
`..._space-orig_label-L_desc-mmccd_mask`, and `..._space-orig_desc-lesions_dseg`, the mask with
lesions numbered, whose table lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.mask import Lesion
from mmccd_cli.inputs.bids import bids_root
from mmccd_cli.inputs.nifti import NiftiGrid, encode_nifti
from mmccd_cli.outputs.images import output_paths
from mmccd_cli.outputs.lesions import encode_tsv, numbers_of, place_cells
from mmccd_cli.outputs.numbers import number_lesions
from mmccd_cli.outputs.record import encode_json
from mmccd_cli.outputs.schema import MIDLINE_TOLD, SIDE_TOLD

DESCRIPTIONS = {
    "anomaly": "Probability of an anomaly, calibrated on the subjects that the model card names.",
    "mmccd": "Where the anomaly map exceeds its threshold, without small components.",
    "lesions": "The components of the mask, numbered from the largest to the smallest.",
}
_COLUMNS = {
    "volume_ml": ("Volume.", "mL"),
    "peak": ("Highest value of the anomaly map inside.", None),
    "mean": ("Mean value of the anomaly map inside.", None),
    "x_mm": ("Centre, from left to right.", "mm"),
    "y_mm": ("Centre, from posterior to anterior.", "mm"),
    "z_mm": ("Centre, from inferior to superior.", "mm"),
    "side": (SIDE_TOLD, None),
    "midline_mm": (f"{MIDLINE_TOLD}.", "mm"),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class BidsMask:
    """A mask, and what the files of BIDS that show it say of it.

    Attributes:
        map: File of the anomaly map.
        mask: File of the mask.
        voxels: (I, J, K) bool.
        lesions: Its components, the largest first.
        grid: The grid of both.
        threshold: Value of the map above which a voxel belongs to the mask.
        spatial_reference: BIDS URI of the scan whose grid it is.
        settings: Of the record.
    """

    map: Path
    mask: Path
    voxels: NDArray[np.bool_]
    lesions: Sequence[Lesion]
    grid: NiftiGrid
    threshold: float
    spatial_reference: str
    settings: Mapping[str, Any] = field(default_factory=dict)


_END_OF_MAP = "_desc-anomaly_probseg.nii.gz"


def outputs_of_bids(folder: Path, stem: str) -> dict[str, Path]:
    """Name all files of a session: kind of output -> file.

    Args:
        folder: The session's folder `anat`.
        stem: How all their names begin, such as "sub-01_space-orig".
    """
    names = {
        "map": _END_OF_MAP,
        "mask": "_label-L_desc-mmccd_mask.nii.gz",
        "sidecar": "_desc-anomaly_probseg.json",
        "mask_sidecar": "_label-L_desc-mmccd_mask.json",
        "lesions": "_desc-lesions_dseg.nii.gz",
        "lesion_table": "_desc-lesions_dseg.tsv",
        "lesions_sidecar": "_desc-lesions_dseg.json",
    }
    return {kind: folder / f"{stem}{end}" for kind, end in names.items()}


def maps_in(root: Path) -> list[Path]:
    """Name the anomaly maps of a derivative data set, also where one or its sidecar is gone."""
    stem = _END_OF_MAP.removesuffix(".nii.gz")
    places = (f"{folder}/*{stem}" for folder in ("sub-*/anat", "sub-*/ses-*/anat"))
    found = (path for place in places for path in root.glob(f"{place}.*"))
    return sorted({path.with_name(path.name.partition(".")[0] + ".nii.gz") for path in found})


def outputs_beside(map: Path) -> dict[str, Path]:
    """Name the files that go with a map, in BIDS or not, from the map's own name and nothing else.

    What a record says of names is never written to: it may come from anybody.

    Raises:
        UsageError: The name ends in neither .nii.gz nor .nii.
    """
    if map.name.endswith(_END_OF_MAP):
        return outputs_of_bids(map.parent, map.name.removesuffix(_END_OF_MAP))
    return output_paths(map)


def mask_sidecar(shown: BidsMask) -> bytes:
    """Return the sidecar of the mask."""
    content = {
        "Description": DESCRIPTIONS["mmccd"],
        "Type": "Lesion",
        "Sources": [_own_uri(shown.map)],
        "SpatialReference": shown.spatial_reference,
        "Manual": False,
        "Threshold": shown.threshold,
    }
    return encode_json(content)


def lesions_image(shown: BidsMask) -> bytes:
    """Return the mask with its lesions numbered as in the table, as NIfTI."""
    numbers = number_lesions(shown.voxels)
    return encode_nifti(
        numbers, shown.grid, compress=True, intent="label", description="mmccd lesions"
    )


def lesion_table(shown: BidsMask) -> bytes:
    """Return the table of the numbered lesions."""
    rows = (
        [it.id, f"lesion {it.id}", *numbers_of(it), *place_cells(it, shown.settings)]
        for it in shown.lesions
    )
    return encode_tsv(["index", "name", *_COLUMNS], rows)


def lesions_sidecar(shown: BidsMask) -> bytes:
    """Return the sidecar of the numbered lesions, which also explains the columns of the table."""
    columns = {
        name: {"Description": text} | ({"Units": unit} if unit else {})
        for name, (text, unit) in _COLUMNS.items()
    }
    content = {
        "Description": DESCRIPTIONS["lesions"],
        "Sources": [_own_uri(shown.mask)],
        "SpatialReference": shown.spatial_reference,
        "Manual": False,
        **columns,
    }
    return encode_json(content)


BIDS_OUTPUTS: dict[str, Callable[[BidsMask], bytes]] = {
    "mask_sidecar": mask_sidecar,
    "lesions": lesions_image,
    "lesion_table": lesion_table,
    "lesions_sidecar": lesions_sidecar,
}
"""Kind of output -> what makes it, for a new result and for a new mask alike."""


def _own_uri(path: Path) -> str:
    """Return the BIDS URI of one of our outputs; its name where it lies in no data set."""
    root = bids_root(path.parent)
    return path.name if root is None else f"bids::{path.relative_to(root).as_posix()}"
