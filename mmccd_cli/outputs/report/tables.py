"""The tables of a report, and its histograms as drawings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.inputs.volume import Volume
from mmccd_cli.outputs.pictures import FloatArray
from mmccd_cli.outputs.report.checks import Check
from mmccd_cli.outputs.report.data import Material
from mmccd_cli.outputs.report.html import Markup, element
from mmccd_cli.template import transform_points

_VERDICTS = {"good": "as expected", "look": "look at it", "bad": "unusual"}
_BINS = 60


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    numbers: Sequence[int] = (),
    **more: Any,
) -> Markup:
    """Return a table that scrolls by itself where it is too wide.

    Args:
        headers: One a column.
        rows: The first cell of each is its header.
        numbers: Columns that are set flush right.
        more: Attributes of the table; `caption` for a line above it.
    """
    caption = more.pop("caption", None)

    def cell(tag: str, index: int, content: Any, **attributes: Any) -> Markup:
        kind = "number" if index in numbers else None
        return element(tag, content, class_=kind, **attributes)

    head = element("tr", [cell("th", i, text, scope="col") for i, text in enumerate(headers)])
    body = [
        element(
            "tr",
            [
                cell("th", i, content, scope="row") if i == 0 else cell("td", i, content)
                for i, content in enumerate(row)
            ],
        )
        for row in rows
    ]
    whole = element(
        "table",
        element("caption", caption) if caption else None,
        element("thead", head),
        element("tbody", body),
        **more,
    )
    return element("div", whole, class_="scroll", tabindex=0, role="region", aria_label="Table")


def lesion_table(material: Material) -> Markup:
    """Return all lesions, each with a button that moves the viewer to it."""
    rows = []
    for lesion, point in zip(material.lesions, material.points, strict=True):
        mm = [round(float(v), 2) for v in transform_points(material.affine, point)]
        show = element(
            "button",
            "show",
            type="button",
            hidden=True,
            data_point=json.dumps(mm),
            aria_label=f"Show lesion {lesion.id} in the viewer",
        )
        rows.append(
            [
                str(lesion.id),
                f"{lesion.volume_ml:.3f}" if lesion.volume_ml < 0.1 else f"{lesion.volume_ml:.2f}",
                f"{lesion.peak:.2f}",
                f"{lesion.mean:.2f}",
                ", ".join(f"{round(v, 1):g}" for v in lesion.centroid_ras_mm),
                " × ".join(f"{low}–{high - 1}" for low, high in lesion.box),
                show,
            ]
        )
    return table(
        ["Lesion", "ml", "Peak", "Mean", "Centre x, y, z (RAS mm)", "Box (voxels i × j × k)", ""],
        rows,
        numbers=(1, 2, 3),
        caption="Peak and mean are values of the map. Voxels are counted from 0, both ends "
        "included.",
    )


def check_table(checks: Sequence[Check]) -> Markup:
    """Return the checks with their verdicts."""
    rows = [
        [
            check.name,
            check.value,
            check.expected,
            element("span", _VERDICTS[check.verdict], class_=check.verdict),
        ]
        for check in checks
    ]
    return table(["Check", "Found", "Expected", "Verdict"], rows)


def input_table(
    record: Mapping[str, Any], volumes: Mapping[str, Volume], matrices: Mapping[str, Any]
) -> Markup:
    """Return the files that were read, with hash and geometry."""
    rows = []
    for kind, described in record["inputs"].items():
        grid = moved = "–"
        if kind in volumes:
            volume = volumes[kind]
            shape = " × ".join(map(str, volume.shape))
            spacing = " × ".join(f"{round(mm, 2):g}" for mm in volume.spacing_mm)
            grid = f"{shape} voxels of {spacing} mm, {volume.orientation}"
            moved = _moved(kind, record["reference"], volume, matrices[kind])
        file = element("span", described["file"], class_="name")
        rows.append([kind, file, grid, moved, element("code", described["sha256"])])
    return table(["Input", "File", "Grid", "Registration", "SHA-256"], rows)


def ignored_table(record: Mapping[str, Any]) -> Markup:
    """Return the files that were left out."""
    rows = [[entry["file"], entry["reason"]] for entry in record["ignored"]]
    return table(["File left out", "Reason"], rows)


def run_table(record: Mapping[str, Any]) -> Markup:
    """Return weights, settings, versions and times."""
    bundle, settings = record["bundle"], record["settings"]
    asked = settings.get("requested", {})
    sampling = settings.get("sampling", {})
    rows: list[tuple[str, Any]] = [
        ("Weights", f"{bundle['name']} {bundle['version']}"),
        ("SHA-256 of the weights", element("code", bundle["sha256"])),
        ("Weights on the Hub", bundle.get("hub")),
        ("Method", sampling.get("method")),
        ("DDIM steps", sampling.get("num_inference_steps")),
        ("Band width, stride", _pair(sampling, "band_width", "band_stride")),
        ("Seed", record.get("seed")),
        ("Threshold of the map", f"{record['threshold']:g} (asked for: {asked.get('threshold')})"),
        ("Smallest lesion", _smallest(settings, asked)),
        ("Skull stripping", asked.get("skull_strip")),
        ("Device", record.get("device")),
        ("CPU threads", record.get("threads")),
        ("Peak memory", _with_unit(record.get("peak_memory_mib"), "MiB")),
        ("Versions", ", ".join(f"{k} {v}" for k, v in record["versions"].items())),
        ("Seconds", ", ".join(f"{k} {v:.1f}" for k, v in record["seconds"].items())),
    ]
    shown = [(name, value) for name, value in rows if value not in (None, "")]
    return table(["Setting", "Value"], shown)


def whole_record(record: Mapping[str, Any]) -> Markup:
    """Return the record as it stands in the sidecar."""
    return element("pre", json.dumps(record, indent=2, ensure_ascii=False))


def map_histogram(material: Material) -> Markup:
    """Return how often each value of the map occurs in the brain, and where the threshold is."""
    values = material.anomaly_map[material.brain]
    counts, _ = np.histogram(values, bins=_BINS, range=(0, 1))
    return _drawing(
        np.log10(1 + counts),
        ("0", "1"),
        "Values of the map in the brain (logarithmic height)",
        material.threshold,
    )


def intensity_histogram(material: Material, name: str) -> Markup:
    """Return how often each intensity of a modality occurs in the brain."""
    values: FloatArray = material.images[name][material.brain]
    low, high = (float(v) for v in np.percentile(values, (0.2, 99.8)))
    counts, _ = np.histogram(values, bins=_BINS, range=(low, max(high, low + 1e-6)))
    return _drawing(counts, (f"{low:.4g}", f"{high:.4g}"), f"Intensities of {name} in the brain")


def _drawing(
    heights: NDArray[Any], ends: tuple[str, str], title: str, marker: float | None = None
) -> Markup:
    """Bars in a box of 520 x 150, with a line at a share of the width."""
    width, height, foot = 520, 130, 20
    scale = height / max(float(heights.max()), 1e-9)
    step = width / len(heights)
    bars = [
        element(
            "rect",
            x=f"{i * step:.1f}",
            y=f"{height - value * scale:.1f}",
            width=f"{step * 0.9:.1f}",
            height=f"{value * scale:.1f}",
        )
        for i, value in enumerate(heights.tolist())
        if value > 0
    ]
    line = None
    if marker is not None:
        x = f"{marker * width:.1f}"
        line = [
            element("line", x1=x, x2=x, y1=0, y2=height),
            element("text", f"threshold {marker:g}", x=f"{marker * width + 5:.1f}", y=12),
        ]
    labels = [
        element("line", x1=0, x2=width, y1=height, y2=height, class_="axis"),
        element("text", ends[0], x=0, y=height + 15),
        element("text", ends[1], x=width, y=height + 15, text_anchor="end"),
    ]
    picture = element(
        "svg",
        bars,
        line,
        labels,
        viewBox=f"0 0 {width} {height + foot}",
        class_="histogram",
        role="img",
        aria_label=title,
    )
    return element("figure", element("figcaption", title), picture)


def _moved(kind: str, reference: str, volume: Volume, matrix: Any) -> str:
    """What registration did to a modality, in words."""
    if kind == reference:
        return "reference"
    matrix = np.asarray(matrix)
    if np.array_equal(matrix, np.eye(4)):
        return "none, on the reference’s grid"
    center = transform_points(volume.affine, (np.array(volume.shape) - 1) / 2)
    shift = float(np.linalg.norm(transform_points(np.linalg.inv(matrix), center) - center))
    turn = np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1)))
    return f"moved by {shift:.1f} mm at the centre, turned by {turn:.1f}°"


def _pair(values: Mapping[str, Any], first: str, second: str) -> str | None:
    return f"{values[first]}, {values[second]} pixels" if first in values else None


def _smallest(settings: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    used = settings.get("score", {}).get("min_lesion_mm3")
    return None if used is None else f"{used:g} mm³ (asked for: {asked.get('min_lesion_mm3')})"


def _with_unit(value: Any, unit: str) -> str | None:
    return None if value is None else f"{value} {unit}"
