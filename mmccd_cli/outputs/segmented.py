"""A segmented subject: all that its files are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from mmccd_cli.inputs.nifti import NiftiGrid
    from mmccd_cli.inputs.subjects import Subject
    from mmccd_cli.inputs.volume import Volume
    from mmccd_cli.outputs.report.checks import Check
    from mmccd_cli.outputs.report.data import ReportData
    from mmccd_cli.pipeline import SegmentationResult
    from mmccd_cli.weights.bundle import Bundle


@dataclass(frozen=True, eq=False, kw_only=True)
class SegmentedSubject:
    """A segmented subject.

    Attributes:
        subject: Whose scans were read.
        targets: Kind of output -> file, of "map", "mask", "sidecar" and the extras; empty where
            nothing is written.
        sidecar_fields: What the sidecar says beside the record.
        result: Arrays and lesions; its `prepared` is None where only the mask was made anew.
        grid: The grid of map and mask.
        record: What the sidecar says; before the files are written, without their hashes and
            without the seconds that extras take.
        bundle: The weights.
        volumes: Modality to scan; empty where no extra output that needs them was asked for.
        reports_index: The page over all reports, where the report is one of several.
    """

    subject: Subject
    targets: Mapping[str, Path]
    sidecar_fields: Mapping[str, Any]
    result: SegmentationResult
    grid: NiftiGrid
    record: dict[str, Any]
    bundle: Bundle
    volumes: Mapping[str, Volume]
    reports_index: Path | None = None

    @cached_property
    def report_data(self) -> ReportData:
        """What a report shows; it needs the volumes and the prepared subject."""
        from mmccd_cli.outputs.report.data import report_data

        return report_data(self.result, self.volumes, self.bundle.template)

    @cached_property
    def report_checks(self) -> list[Check]:
        """What a report judges the result by; see `report_data`."""
        from mmccd_cli.outputs.report.checks import check_subject

        return check_subject(self.report_data, self.record["warnings"])
