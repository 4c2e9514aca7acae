"""The page over all results of a folder: where lesions are, and how large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.outputs.pictures import (
    PLANES,
    Frame,
    Plane,
    annotate,
    frame_around,
    overlay,
    window,
)
from mmccd_cli.outputs.report.facts import Histogram
from mmccd_cli.outputs.report.panels import Panel
from mmccd_cli.outputs.report.render import render
from mmccd_cli.outputs.schema import Side
from mmccd_cli.template import Template

_WIDTH_PX = 1100
_LEVELS = (0.2, 0.35, 0.5, 0.65, 0.8)  # of the height of the brain
_BINS = 20
_QUARTILES = (0, 25, 50, 75, 100)


def group_page(
    template: Template,
    *,
    frequency: NDArray[np.float32],
    mean: NDArray[np.float32],
    subjects: Sequence[Mapping[str, Any]],
    lesions: Sequence[Mapping[str, Any]],
    left_out: Sequence[tuple[str, str]],
) -> bytes:
    """Return the page over a group, whose maps (I, J, K) lie on the grid of the template."""
    volumes = np.array([row["lesion_volume_ml"] for row in subjects])
    most = [
        {"title": title, "highest": float(values.max()), "panels": _panels(template, values, title)}
        for title, values in (("Lesion frequency", frequency), ("Mean of the maps", mean))
    ]
    return render(
        "group.html",
        scripts=(),
        subjects=sorted(subjects, key=lambda row: -row["lesion_volume_ml"]),
        lesions=len(lesions),
        without=int((volumes == 0).sum()),
        quartiles=dict(zip(_QUARTILES, np.percentile(volumes, _QUARTILES), strict=True)),
        sides=_sides(lesions),
        histogram=_histogram(volumes),
        maps=most,
        left_out=left_out,
    )


def _sides(lesions: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    found = [lesion["side"] for lesion in lesions]
    return {side: found.count(side) for side in get_args(Side)}


def _histogram(volumes: NDArray[np.float64]) -> Histogram:
    most = float(volumes.max())
    counts, _ = np.histogram(volumes, bins=_BINS, range=(0.0, max(most, 1e-3)))
    return Histogram(
        title=f"Subjects by lesion volume; the highest bar has {int(counts.max())}",
        heights=counts.tolist(),
        low="0 ml",
        high=f"{most:.3g} ml",
    )


def _panels(template: Template, values: NDArray[np.float32], title: str) -> list[Panel]:
    """Three planes through the highest value, and axial ones at several heights."""
    image = next(iter(template.images.values()), None)
    background = template.mask.astype(np.float32) if image is None else image
    brain = template.mask if template.mask.any() else np.ones_like(template.mask)
    grey = np.where(brain, window(background, brain), np.float32(0))
    scaled = values / max(float(values.max()), 1e-6)
    i, j, k = np.unravel_index(int(np.argmax(values)), values.shape)
    peak = (int(i), int(j), int(k))
    heights = np.flatnonzero(brain.any(axis=(0, 1)))
    views: list[tuple[Plane, tuple[int, int, int]]] = [(plane, peak) for plane in PLANES]
    views += [(PLANES[0], (peak[0], peak[1], int(np.quantile(heights, q)))) for q in _LEVELS]
    frame: Frame = frame_around(brain, template.spacing_mm, _WIDTH_PX)
    panels = []
    for plane, centre in views:
        cut = partial(frame.cut, plane=plane, center=centre)
        picture = annotate(
            overlay(cut(grey), cut(scaled)), plane, pixels_per_mm=frame.pixels_per_mm
        )
        caption = plane.caption(template.affine, centre)
        panels.append(Panel(picture, caption, f"{title}, {caption}"))
    return panels
