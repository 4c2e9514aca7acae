"""What the interactive viewer of a report shows: small volumes, and the library that draws them."""

from __future__ import annotations

import gzip
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.inputs.nifti import Intent, encode_nifti, make_grid
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.outputs.pictures import FloatArray, windowed
from mmccd_cli.outputs.report.data import Material
from mmccd_cli.outputs.report.html import Markup, asset, data_block, element, join, packed_block
from mmccd_cli.preprocessing.spatial import resample
from mmccd_cli.template import transform_points

NIIVUE = "niivue-0.69.0"
"""Name and version of the library in `assets`: NAME.umd.js.gz and NAME.LICENSE.txt."""

_MAX_VOXELS = 1_500_000


def library_code() -> bytes:
    """Return the library's source."""
    return gzip.decompress(asset(f"{NIIVUE}.umd.js.gz"))


def library_licence() -> str:
    """Return the licences of the library and of what it contains."""
    return asset(f"{NIIVUE}.LICENSE.txt").decode()


def viewer_data(material: Material) -> Markup:
    """Return the data blocks of the viewer: library, reference, map and mask."""
    shape, affine = small_grid(material.anomaly_map.shape, material.affine)
    grid = make_grid(shape, affine)
    reference = material.images[material.reference]
    grey = 255 * windowed(reference, material.brain)
    images = {
        "reference": _at(grey, material, shape, affine),
        "map": 255 * _at(material.anomaly_map, material, shape, affine),
        "mask": _at(material.mask, material, shape, affine) > 0.5,
    }
    blocks = [packed_block("viewer-code", asset(f"{NIIVUE}.umd.js.gz"))]
    for name, data in images.items():
        # The library draws an outline only of what the header calls labels.
        intent: Intent = "label" if name == "mask" else "none"
        values = np.rint(data).astype(np.uint8)
        content = encode_nifti(values, grid, compress=False, intent=intent)
        blocks.append(packed_block(f"viewer-{name}", gzip.compress(content, 6, mtime=0)))
    facts = {"start": start_point(material)}
    return join([data_block("viewer-facts", facts), *blocks])


def start_point(material: Material) -> list[float]:
    """Return where the viewer begins, RAS+ mm: the largest lesion, or the middle of the brain."""
    index: Sequence[float] = (
        material.points[0] if material.points else np.argwhere(material.brain).mean(axis=0).tolist()
    )
    return [round(float(mm), 2) for mm in transform_points(material.affine, index)]


def small_grid(
    shape: Sequence[int], affine: NDArray[np.float64]
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Return a grid over the same box with at most `_MAX_VOXELS` voxels.

    Only the axes with the smallest voxels become coarser, so thick slices stay as they are.
    """
    size = np.array(shape, dtype=float)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
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


def viewer_section() -> Markup:
    """Return the viewer's part of the page; hidden until the script has drawn something."""
    planes = [("three", "three planes"), ("axial",) * 2, ("coronal",) * 2, ("sagittal",) * 2]
    sides = [("left", "left (neurological)"), ("right", "right (radiological)")]
    opacity = {"type": "range", "min": 0, "max": 1, "step": 0.05, "value": 0.8}
    controls = [
        element("label", "Planes ", _select("viewer-plane", planes)),
        element("label", "Map ", element("input", id="viewer-map-opacity", **opacity)),
        element(
            "label",
            element("input", type="checkbox", id="viewer-mask-shown", checked=True),
            "Outline of the mask",
        ),
        element("label", "Patient’s left is shown on the ", _select("viewer-side", sides)),
        element("output", id="viewer-position", aria_live="off"),
    ]
    canvas = element(
        "canvas",
        id="viewer-canvas",
        tabindex=0,
        role="img",
        aria_label="Interactive view of the reference scan with anomaly map and mask; arrow keys, "
        "page up and page down move the crosshair",
    )
    keys = (
        "Click or drag to move; scroll (after a click) to go through the slices; arrow keys, page "
        "up and page down move by one voxel. Coarser than the files: for looking, not measuring."
    )
    return join(
        [
            element("p", id="viewer-message", class_="message", hidden=True, role="status"),
            element(
                "div",
                element("div", canvas, class_="stage"),
                element("div", controls, class_="controls"),
                element("p", keys, class_="faint"),
                id="viewer",
                hidden=True,
            ),
        ]
    )


def _select(id: str, choices: Sequence[tuple[str, ...]]) -> Markup:
    options = [element("option", text, value=value) for value, text in choices]
    return element("select", options, id=id)


def _at(
    data: FloatArray | NDArray[np.bool_],
    material: Material,
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
) -> FloatArray:
    volume = Volume(data.astype(np.float32), material.affine)
    return resample(volume, shape, affine).data
