"""The report of one subject: one HTML file that opens from the disk and asks no network."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmccd_cli import __version__
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.outputs.lesions import lesion_table, mask_warnings, place_cells
from mmccd_cli.outputs.pictures import MAP_OPACITY, palette
from mmccd_cli.outputs.record import jsonable
from mmccd_cli.outputs.report.checks import Check, suspicion
from mmccd_cli.outputs.report.data import ReportData
from mmccd_cli.outputs.report.facts import (
    describe_inputs,
    describe_settings,
    intensity_histogram,
    map_histogram,
)
from mmccd_cli.outputs.report.panels import Panels
from mmccd_cli.outputs.report.render import base64_of, render
from mmccd_cli.outputs.report.thresholds import sweep_thresholds
from mmccd_cli.outputs.report.viewer import viewer_data

if TYPE_CHECKING:
    from mmccd_cli.pipeline import SegmentationResult

SUMMARY = "mmccd-summary"
"""Id of the data block that the cohort's page reads."""
SUMMARY_VERSION = 1

SCRIPTS = ("memory.js", "ratings.js", "volumes.js", "slices.js", "viewer.js", "report.js")
"""Files in `assets`, in the order in which they are run."""

_MAX_PICTURED = 12


def subject_report(
    result: SegmentationResult,
    volumes: Mapping[str, Volume],
    *,
    record: Mapping[str, Any],
    data: ReportData,
    checks: Sequence[Check],
    index: str = "",
) -> bytes:
    """Return the report of one subject, an HTML file with everything in it.

    `index` is where the page over all reports is, seen from this one; empty for nowhere.
    """
    record = jsonable(record)
    panels = Panels(data)
    sweep = sweep_thresholds(data, record)
    viewer = viewer_data(data, sweep, record["settings"]["score"])
    found = (*data.lesions, *data.left_out)
    sides = [side for side, _ in (place_cells(each, record["settings"]) for each in found)]
    return render(
        "report.html",
        scripts=SCRIPTS,
        summary_id=SUMMARY,
        summary=_summary(record, data, checks=checks, thumbnail=panels.thumbnail()),
        viewer_facts=jsonable(viewer.facts),
        viewer_packed=viewer.packed,
        sides=sides,
        sweep=sweep,
        palette=palette(),
        map_opacity=MAP_OPACITY,
        index=index,
        table=base64_of(_as_csv(lesion_table(result, settings=record["settings"]))),
        version=__version__,
        record=record,
        data=data,
        panels=panels,
        mask_warnings=mask_warnings(result),
        pictured=min(len(data.lesions), _MAX_PICTURED),
        checks=checks,
        suspicion=suspicion(checks),
        histograms=[map_histogram(data), *(intensity_histogram(data, m) for m in data.images)],
        inputs=describe_inputs(record, volumes, data.prepared.matrices),
        settings=describe_settings(record),
        whole_record=json.dumps(record, indent=2, ensure_ascii=False),
    )


def _as_csv(tsv: bytes) -> bytes:
    """Return a table with commas between its columns, for programs that expect them."""
    rows = csv.reader(io.StringIO(tsv.decode()), "excel-tab")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _result_id(record: Mapping[str, Any]) -> str:
    """Return what tells this result from others of the subject: a rating belongs to one of them."""
    return hashlib.sha256(json.dumps(record["output_sha256"]).encode()).hexdigest()[:16]


def _summary(
    record: Mapping[str, Any], data: ReportData, *, checks: Sequence[Check], thumbnail: bytes
) -> dict[str, Any]:
    """Return what the cohort's page shows of a subject."""
    return {
        "summary_version": SUMMARY_VERSION,
        "subject": record["subject"],
        "result": _result_id(record),
        "status": "done",
        "lesion_volume_ml": record["lesion_volume_ml"],
        "lesions": len(data.lesions),
        "brain_litres": round(data.brain_litres, 4),
        "suspicion": suspicion(checks),
        "signs": [
            {"name": check.name, "value": check.value, "suspicion": round(check.suspicion, 3)}
            for check in checks
            if check.verdict != "good"
        ],
        "warnings": len(record["warnings"]),
        "bundle": f"{record['bundle']['name']} {record['bundle']['version']}",
        "thumbnail": base64_of(thumbnail),
    }
