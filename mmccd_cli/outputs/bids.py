"""BIDS derivatives out: what stands beside map, mask and record.

Of a session: `..._space-orig_desc-anomaly_probseg` (the map; its sidecar is also the record),
`..._space-orig_label-L_desc-mmccd_mask`, and `..._space-orig_desc-lesions_dseg`, the mask with
lesions numbered, whose table lists them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.components import label_components
from mmccd_cli.anomaly.mask import Lesion
from mmccd_cli.inputs.bids import bids_root
from mmccd_cli.inputs.nifti import NiftiGrid, encode_nifti
from mmccd_cli.outputs.remask import NewMask

if TYPE_CHECKING:
    from mmccd_cli.outputs.segmented import SegmentedSubject

DESCRIPTIONS = {
    "anomaly": "How anomalous a voxel is, from 0 to 1; 0.5 is the threshold of the scan.",
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
}


def mask_sidecar(segmented: SegmentedSubject) -> bytes:
    """Return the sidecar of the mask."""
    content = {
        "Description": DESCRIPTIONS["mmccd"],
        "Type": "Lesion",
        "Sources": [_own_uri(segmented.outputs.map)],
        "SpatialReference": segmented.sidecar_fields["SpatialReference"],
        "Manual": False,
        "Threshold": segmented.result.threshold,
    }
    return encode_json(content)


def lesions_image(mask: NDArray[np.bool_], grid: NiftiGrid) -> bytes:
    """Return a mask with its lesions numbered as in the table, as NIfTI."""
    labels, voxels, _ = label_components(mask)
    number = np.zeros(len(voxels) + 1, np.uint16)
    number[1 + np.argsort(-voxels, kind="stable")] = np.arange(1, len(voxels) + 1)
    return encode_nifti(
        number[labels], grid, compress=True, intent="label", description="mmccd lesions"
    )


def lesion_table(lesions: Iterable[Lesion]) -> bytes:
    """Return the table of the numbered lesions."""
    lines = ["\t".join(("index", "name", *_COLUMNS))]
    for lesion in lesions:
        numbers = (lesion.volume_ml, lesion.peak, lesion.mean, *lesion.centroid_ras_mm)
        written = (f"{number:.6g}" for number in numbers)
        lines.append("\t".join((str(lesion.id), f"lesion {lesion.id}", *written)))
    return ("\n".join(lines) + "\n").encode()


def lesions_sidecar(segmented: SegmentedSubject) -> bytes:
    """Return the sidecar of the numbered lesions, which also explains the columns of the table."""
    columns = {
        name: {"Description": text} | ({"Units": unit} if unit else {})
        for name, (text, unit) in _COLUMNS.items()
    }
    content = {
        "Description": DESCRIPTIONS["lesions"],
        "Sources": [_own_uri(segmented.outputs.mask)],
        "SpatialReference": segmented.sidecar_fields["SpatialReference"],
        "Manual": False,
        **columns,
    }
    return encode_json(content)


BIDS_OUTPUTS: dict[str, Callable[[SegmentedSubject], bytes]] = {
    "mask_sidecar": mask_sidecar,
    "lesions": lambda segmented: lesions_image(segmented.result.mask, segmented.grid),
    "lesion_table": lambda segmented: lesion_table(segmented.result.lesions),
    "lesions_sidecar": lesions_sidecar,
}
"""Kind of output -> what makes it; see `mmccd_cli.outputs.extras`."""


def with_mask_anew(files: Mapping[str, Path], new: NewMask) -> dict[str, bytes]:
    """Make again what shows a mask, for one that was made anew from its map.

    Args:
        files: Kind of output -> file, of everything that was written for the map.
        new: The new mask.

    Returns:
        Kind -> content, of those of `BIDS_OUTPUTS` that change: the lesions' sidecar says nothing
        of the mask.
    """
    made: dict[str, bytes] = {}
    if "mask_sidecar" in files:
        sidecar = {**read_json(files["mask_sidecar"]), "Threshold": new.score.threshold}
        made["mask_sidecar"] = encode_json(sidecar)
    if "lesions" in files:
        made["lesions"] = lesions_image(new.mask, new.grid)
    if "lesion_table" in files:
        made["lesion_table"] = lesion_table(new.lesions)
    return made


def _own_uri(path: Path) -> str:
    """Return the BIDS URI of one of our outputs."""
    root = bids_root(path.parent)
    assert root is not None  # the plan of the job named it
    return f"bids::{path.relative_to(root).as_posix()}"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def encode_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
