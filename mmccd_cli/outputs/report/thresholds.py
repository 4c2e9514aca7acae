"""The masks that other thresholds of the map would give, as `mmccd threshold` makes them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.components import label_components, voxel_mm3_of
from mmccd_cli.anomaly.mask import MaskOptions, mask_from_map
from mmccd_cli.outputs.remask import score_of_record
from mmccd_cli.outputs.report.data import ReportData
from mmccd_cli.template import bounding_box, voxel_volume_mm3

_STEPS = tuple(round(0.05 * n, 2) for n in range(1, 20))


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one threshold gives, what it leaves out of the mask, and the line that makes it."""

    threshold: float
    volume_ml: float
    lesions: int
    left_out_ml: float
    command: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Sweep:
    """The masks at a row of thresholds.

    Which masks a voxel belongs to is one of few patterns, because all voxels of a component share
    theirs but for where the threshold cuts it.

    Attributes:
        steps: By rising threshold.
        own: Which of them has the threshold of the result.
        patterns: For each pattern a number whose bit n tells whether the mask of step n is in it.
        codes: (I, J, K) uint16, which pattern a voxel has; 0 stands for none of the masks.
    """

    steps: list[Step]
    own: int
    patterns: list[int]
    codes: NDArray[np.uint16]


def sweep_thresholds(data: ReportData, record: Mapping[str, Any]) -> Sweep:
    """Make the masks of some thresholds between 0 and 1, the result's own among them."""
    thresholds = sorted({*_STEPS, data.threshold})
    own = thresholds.index(data.threshold)
    box = bounding_box(data.anomaly_map > 0, margin=2) if data.anomaly_map.any() else ...
    part = data.anomaly_map[box]
    bits = np.zeros(part.shape, np.uint32)
    steps = []
    for number, threshold in enumerate(thresholds):
        if number == own:
            mask = data.mask[box]
        else:
            scan_threshold, score = score_of_record(record, _options(record, threshold))
            mask = mask_from_map(
                part,
                score,
                spacing_mm=data.spacing_mm,
                voxel_mm3=voxel_mm3_of(data.affine),
                scan_threshold=scan_threshold,
            )
        bits[mask] |= np.uint32(1 << number)
        outside = (part > threshold) & ~mask
        to_ml = voxel_volume_mm3(data.affine) / 1000
        steps.append(
            Step(
                threshold=threshold,
                volume_ml=float(mask.sum() * to_ml),
                lesions=len(label_components(mask[bounding_box(mask)])[1]) if mask.any() else 0,
                left_out_ml=float(outside.sum() * to_ml),
                command=_command(record, threshold),
            )
        )
    found = bits > 0
    patterns, code = np.unique(bits[found], return_inverse=True)
    codes = np.zeros(data.anomaly_map.shape, np.uint16)
    codes[box][found] = code.ravel() + 1
    return Sweep(steps=steps, own=own, patterns=[0, *(int(p) for p in patterns)], codes=codes)


def _options(record: Mapping[str, Any], threshold: float) -> MaskOptions:
    """Return what was asked for of the mask, with another threshold."""
    asked = record["settings"]["requested"]
    chosen = {each.name: asked.get(each.name, "auto") for each in fields(MaskOptions)}
    kept = {name: value for name, value in chosen.items() if value != "auto"}
    return MaskOptions(**{**kept, "threshold": threshold})


def _command(record: Mapping[str, Any], threshold: float) -> str:
    """Return the line that makes the mask of a threshold, with all else as it was asked for."""
    words = ["mmccd", "threshold", record["outputs"]["map"]]
    for each in fields(MaskOptions):
        value = getattr(_options(record, threshold), each.name)
        if value is not None:
            name, unit = each.name.removesuffix("_mm3"), each.name.endswith("_mm3") * "mm3"
            words += [f"--{name.replace('_', '-')}", f"{value:g}{unit}"]
    return shlex.join([*words, "--force"])
