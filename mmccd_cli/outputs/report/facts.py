"""What a report says of inputs and settings, and its histograms; the templates give them a form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.inputs.volume import Volume
from mmccd_cli.outputs.report.data import ReportData
from mmccd_cli.template import transform_points

_BINS = 60


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How often values occur, and where, as a share of the width, a line is drawn."""

    title: str
    heights: list[float]
    low: str
    high: str
    marker: float | None = None


def map_histogram(data: ReportData) -> Histogram:
    """Count how often each value of the map occurs in the brain, and mark the threshold."""
    counts, _ = np.histogram(data.anomaly_map[data.brain], bins=_BINS, range=(0, 1))
    return Histogram(
        title="Values of the map in the brain (logarithmic height)",
        heights=np.log10(1 + counts).tolist(),
        low="0",
        high="1",
        marker=data.threshold,
    )


def intensity_histogram(data: ReportData, modality: str) -> Histogram:
    """Count how often each intensity of a modality occurs in the brain."""
    values = data.images[modality][data.brain]
    low, high = (float(v) for v in np.percentile(values, (0.2, 99.8)))
    counts, _ = np.histogram(values, bins=_BINS, range=(low, max(high, low + 1e-6)))
    return Histogram(
        title=f"Intensities of {modality} in the brain",
        heights=counts.tolist(),
        low=f"{low:.4g}",
        high=f"{high:.4g}",
    )


def describe_inputs(
    record: Mapping[str, Any],
    volumes: Mapping[str, Volume],
    matrices: Mapping[str, NDArray[np.float64]],
) -> list[dict[str, str]]:
    """Tell name, hash, grid and registration of each file that was read.

    Args:
        record: The record.
        volumes: Modality -> scan, as it was read.
        matrices: Modality -> (4, 4) from the world of the reference to the scan's.
    """
    described = []
    for kind, file in record["inputs"].items():
        grid = registration = "–"
        if (volume := volumes.get(kind)) is not None:
            shape = " × ".join(map(str, volume.shape))
            spacing = " × ".join(f"{round(mm, 2):g}" for mm in volume.spacing_mm)
            grid = f"{shape} voxels of {spacing} mm, {volume.orientation}"
            registration = (
                "reference" if kind == record["reference"] else _movement(volume, matrices[kind])
            )
        described.append({"kind": kind, **file, "grid": grid, "registration": registration})
    return described


def _movement(volume: Volume, matrix: NDArray[np.float64]) -> str:
    """Say what registration did to a modality."""
    if np.array_equal(matrix, np.eye(4)):
        return "none, on the reference’s grid"
    center = transform_points(volume.affine, (np.array(volume.shape) - 1) / 2)
    inverse = np.linalg.inv(matrix).astype(np.float64)
    shift = float(np.linalg.norm(transform_points(inverse, center) - center))
    turn = np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1)))
    return f"moved by {shift:.1f} mm at the centre, turned by {turn:.1f}°"


def describe_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return weights, settings, versions and times by name; what is not known is left out."""
    bundle, settings = record["bundle"], record["settings"]
    asked = settings.get("requested", {})
    sampling = settings.get("sampling", {})
    score = settings.get("score", {})
    smallest = score.get("min_lesion_mm3")
    memory = record.get("peak_memory_mib")
    rows = {
        "Weights": f"{bundle['name']} {bundle['version']}",
        "SHA-256 of the weights": bundle["sha256"],
        "Weights on the Hub": bundle.get("hub"),
        "Method": sampling.get("method"),
        "DDIM steps": sampling.get("num_inference_steps"),
        "Band width, stride": "{band_width}, {band_stride} pixels".format_map(sampling)
        if "band_width" in sampling
        else None,
        "Seed": record.get("seed"),
        "Threshold of the map": f"{record['threshold']:g} (asked for: {asked.get('threshold')})",
        "Smallest lesion": None
        if smallest is None
        else f"{smallest:g} mm³ (asked for: {asked.get('min_lesion_mm3')})",
        "Least confidence": None
        if score.get("confidence") is None
        else f"{score['min_confidence']:g} (asked for: {asked.get('min_confidence')})",
        "Skull stripping": asked.get("skull_strip"),
        "Device": record.get("device"),
        "CPU threads": record.get("threads"),
        "Peak memory": None if memory is None else f"{memory} MiB",
        "Versions": ", ".join(f"{k} {v}" for k, v in record["versions"].items()),
        "Seconds": ", ".join(f"{k} {v:.1f}" for k, v in record["seconds"].items()),
    }
    return {name: value for name, value in rows.items() if value not in (None, "")}
