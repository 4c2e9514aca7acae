"""What the interactive viewer of a report shows: small volumes, and the library that draws them."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.inputs.nifti import Intent, encode_nifti, make_grid
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.outputs.pictures import window
from mmccd_cli.outputs.report.data import ReportData
from mmccd_cli.outputs.report.render import asset, base64_of
from mmccd_cli.preprocessing.spatial import resample
from mmccd_cli.template import spacing_of, transform_points

NIIVUE = "niivue-0.69.0"
"""Name and version of the library in `assets`: NAME.umd.js.gz and NAME.LICENSE.txt."""

_MAX_VOXELS = 1_500_000


def library_code() -> bytes:
    """Return the library's source."""
    return gzip.decompress(asset(f"{NIIVUE}.umd.js.gz"))


def library_licence() -> str:
    """Return the licences of the library and of what it contains."""
    return asset(f"{NIIVUE}.LICENSE.txt").decode()


@dataclass(frozen=True)
class ViewerData:
    """What the viewer's script reads.

    Attributes:
        start: Where it begins, RAS+ mm.
        packed: "code", the library, and the images "reference", "map" and "mask" as NIfTI: each
            gzipped, in base64.
    """

    start: list[float]
    packed: dict[str, str]


def viewer_data(data: ReportData) -> ViewerData:
    """Return what the viewer's script reads of a subject."""
    shape, affine = small_grid(data.anomaly_map.shape, data.affine)
    grid = make_grid(shape, affine)

    def packed(image: NDArray[Any], *, scale: float = 255, intent: Intent = "none") -> str:
        volume = Volume(image.astype(np.float32), data.affine)
        values = np.rint(scale * resample(volume, shape, affine).data).astype(np.uint8)
        content = encode_nifti(values, grid, compress=False, intent=intent)
        return base64_of(gzip.compress(content, 6, mtime=0))

    images = {
        "code": base64_of(asset(f"{NIIVUE}.umd.js.gz")),
        "reference": packed(window(data.images[data.reference], data.brain)),
        "map": packed(data.anomaly_map),
        # The library draws an outline only of what the header calls labels.
        "mask": packed(data.mask, scale=1, intent="label"),
    }
    return ViewerData(start=start_point(data), packed=images)


def start_point(data: ReportData) -> list[float]:
    """Return where the viewer begins, RAS+ mm: the largest lesion, or the middle of the brain."""
    index: Sequence[float] = (
        data.points[0] if data.points else np.argwhere(data.brain).mean(axis=0).tolist()
    )
    return [round(float(mm), 2) for mm in transform_points(data.affine, index)]


def small_grid(
    shape: Sequence[int], affine: NDArray[np.float64]
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Return a grid over the same box with at most `_MAX_VOXELS` voxels.

    Only the axes with the smallest voxels become coarser, so thick slices stay as they are.
    """
    size = np.array(shape, dtype=float)
    spacing = np.array(spacing_of(affine))
    wanted = spacing.copy()
    while np.prod(np.ceil(size * spacing / wanted)) > _MAX_VOXELS:
        wanted = np.maximum(wanted, wanted.min() * 1.02)
    factor = wanted / spacing
    counts = np.ceil(size / factor).astype(int)
    small = affine.copy()
    small[:3, :3] = affine[:3, :3] * factor
    # The first voxels keep their outer faces, not their centres.
    small[:3, 3] = transform_points(affine, (factor - 1) / 2)
    i, j, k = (int(count) for count in counts)
    return (i, j, k), small
