"""What the interactive viewer of a report shows: small volumes that a browser unpacks by itself.

Scans are JPEG, their slices beside each other in one picture; the map and what belongs to which
lesion are numbers, packed without loss. All have one grid.
"""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from mmccd_cli.anomaly.mask import LeftOut, Lesion
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.outputs.pictures import MAP_OPACITY, FloatArray, palette, window_limits
from mmccd_cli.outputs.report.data import ReportData
from mmccd_cli.outputs.report.render import base64_of
from mmccd_cli.outputs.report.thresholds import Sweep
from mmccd_cli.preprocessing.spatial import resample
from mmccd_cli.template import Box, bounding_box, spacing_of, transform_points

_MAX_VOXELS = 4_000_000
_QUALITY = 75
_HEADROOM = 0.35  # what the window can show above its usual upper end, as a share of its width
_PROBE_PX = 16


@dataclass(frozen=True)
class ViewerData:
    """What the viewer's script reads.

    Attributes:
        facts: Grid, scans, thresholds, lesions and colours.
        packed: Name -> content in base64: "scan-FLAIR" and so on, a JPEG with the slices; "map",
            "codes" and "numbers", gzipped, the first axis running fastest.
    """

    facts: dict[str, Any]
    packed: dict[str, str]


def viewer_data(data: ReportData, sweep: Sweep, score: Mapping[str, Any]) -> ViewerData:
    """Return what the viewer's script reads of a subject."""
    crop = _not_empty(data)
    affine, spacing_mm = data.affine.copy(), np.array(data.spacing_mm)
    affine[:3, 3] = transform_points(affine, [part.start for part in crop])
    shape, affine = small_grid(data.anomaly_map[crop].shape, affine)

    picked = _nearest(data.anomaly_map[crop].shape, shape, spacing_of(affine) / spacing_mm)
    scans, packed = [], {}
    for name, image in data.images.items():
        limits = window_limits(image, data.brain)
        low, high = limits[0], limits[1] + _HEADROOM * (limits[1] - limits[0])
        moved = resample(Volume(image, data.affine), shape, affine, smooth=True).data
        grey = np.clip((moved - low) / max(high - low, 1e-6), 0, 1)
        packed[f"scan-{name}"] = base64_of(slices_jpeg(grey))
        scans.append({"name": name, "low": low, "high": high, "window": limits})
    # Rounded up, so that a value above a threshold of two digits stays above it; coarser where
    # the map is all but clear, which makes it half as large.
    hundredths = np.ceil(100 * data.anomaly_map[crop][picked] - 1e-4)
    hundredths = np.where(hundredths < 20, 5 * np.ceil(hundredths / 5), hundredths)
    packed["map"] = _packed(hundredths.astype(np.uint8))
    packed["codes"] = _packed(sweep.codes[crop][picked].astype("<u2"))
    numbers = data.numbers[crop][picked]
    # What is too many for two bytes has no number here: it must not have that of another.
    packed["numbers"] = _packed(np.where(numbers > 0xFFFF, 0, numbers).astype("<u2"))
    inverse = np.linalg.inv(affine).astype(np.float64)
    start = transform_points(inverse, transform_points(data.affine, _start(data)))
    facts = {
        "shape": shape,
        "affine": affine.round(5).tolist(),
        "inverse": inverse.round(6).tolist(),
        "spacing": [round(mm, 5) for mm in spacing_of(affine)],
        "start": np.clip(np.rint(start), 0, np.array(shape) - 1).astype(int).tolist(),
        "scans": scans,
        "probe": _PROBE_PX,
        "steps": sweep.steps,
        "own": sweep.own,
        "patterns": sweep.patterns,
        "findings": [_finding(found, score) for found in (*data.lesions, *data.left_out)],
        "least_confidence": score["min_confidence"] if score.get("confidence") else None,
        "palette": palette(),
        "opacity": MAP_OPACITY,
    }
    return ViewerData(facts=facts, packed=packed)


def _finding(found: Lesion | LeftOut, score: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the script reads of a lesion or candidate: "judged" if its confidence decides."""
    reason = getattr(found, "reason", "")
    decides = found.confidence is not None and (
        not reason
        or (
            found.confidence < score["min_confidence"]
            and 1000 * found.volume_ml >= score["min_lesion_mm3"]
        )
    )
    return {
        "id": found.id,
        "ml": found.volume_ml,
        "confidence": found.confidence,
        "judged": decides,
        "reason": reason,
    }


def slices_jpeg(grey: FloatArray) -> bytes:
    """Return (I, J, K) values in [0, 1] as one picture: axial slices in rows, the lowest first.

    A slice has x to the right and y downwards. A last row, white on its left half and black on the
    right, lets a script see whether the browser gives it the picture as it is: some do not.
    """
    i, j, k = grey.shape
    columns = math.ceil(math.sqrt(k))
    rows = math.ceil(k / columns)
    mosaic = np.zeros((rows * j + _PROBE_PX, columns * i), np.uint8)
    for number in range(k):
        row, column = divmod(number, columns)
        place = (slice(row * j, (row + 1) * j), slice(column * i, (column + 1) * i))
        mosaic[place] = np.rint(255 * grey[..., number].T)
    mosaic[-_PROBE_PX:, : columns * i // 2] = 255
    buffer = io.BytesIO()
    Image.fromarray(mosaic).save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()


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


def _nearest(
    shape: Sequence[int], small: Sequence[int], factor: NDArray[np.float64]
) -> tuple[NDArray[Any], ...]:
    """Return what picks the nearest voxels of an array for the voxels of a `small_grid`."""
    return np.ix_(
        *(
            np.minimum(np.rint((np.arange(count) + 0.5) * step - 0.5).astype(int), size - 1)
            for size, count, step in zip(shape, small, factor, strict=True)
        )
    )


def _start(data: ReportData) -> Sequence[float]:
    """Return the voxel where the viewer begins: the largest lesion, or the middle of the brain."""
    return data.points[0] if data.points else np.argwhere(data.brain).mean(axis=0).tolist()


def _not_empty(data: ReportData) -> Box:
    """Return the box outside of which the scans show nothing, as those of stripped heads."""
    shown = data.brain.copy()
    for image in data.images.values():
        shown |= image > window_limits(image, data.brain)[0]
    return bounding_box(shown, margin=2)


def _packed(values: ArrayLike) -> str:
    return base64_of(gzip.compress(np.asarray(values).tobytes(order="F"), 6, mtime=0))
