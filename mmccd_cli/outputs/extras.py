"""What can be written beside map, mask and sidecar: one entry for each kind of extra output."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from mmccd_cli.outputs.bids import BIDS_OUTPUTS, BidsMask
from mmccd_cli.outputs.segmented import SegmentedSubject


@dataclass(frozen=True)
class ExtraOutput:
    """How one kind of extra output is made.

    Attributes:
        make: Returns the file's bytes; must not print.
        needs_prepared: Whether it looks at the prepared subject and the scans, so that the map
            alone does not suffice to make it anew.
    """

    make: Callable[[SegmentedSubject], bytes]
    needs_prepared: bool = False


def _picture(segmented: SegmentedSubject) -> bytes:
    from mmccd_cli.outputs.pictures import overview_png

    result = segmented.result
    return overview_png(
        result.shown,
        result.anomaly_map,
        result.mask,
        threshold=result.threshold,
        brain=result.brain,
        title=f"{segmented.subject.id}: {segmented.record['lesion_volume_ml']:.1f} ml",
    )


def _report(segmented: SegmentedSubject) -> bytes:
    from mmccd_cli.outputs.report.page import subject_report

    index = segmented.reports_index
    folder = segmented.targets["report"].parent
    return subject_report(
        segmented.result,
        segmented.volumes,
        record=segmented.record,
        data=segmented.report_data,
        checks=segmented.report_checks,
        index="" if index is None else Path(os.path.relpath(index, folder)).as_posix(),
    )


def _bids(make: Callable[[BidsMask], bytes], segmented: SegmentedSubject) -> bytes:
    result = segmented.result
    shown = BidsMask(
        map=segmented.targets["map"],
        mask=segmented.targets["mask"],
        voxels=result.mask,
        lesions=result.lesions,
        grid=segmented.grid,
        threshold=result.threshold,
        spatial_reference=segmented.sidecar_fields["SpatialReference"],
        settings=segmented.record["settings"],
    )
    return make(shown)


def _dicom(segmented: SegmentedSubject, kind: Literal["mask", "map"]) -> bytes:
    from mmccd_cli.outputs.dicom_seg import Provenance, encode_segmentation

    result, weights = segmented.result, segmented.bundle
    made_by = Provenance(
        name=weights.config.name,
        version=weights.config.version,
        sha256=weights.sha256,
        parameters={"threshold": f"{result.threshold:g}"},
    )
    values = result.mask if kind == "mask" else result.anomaly_map
    return encode_segmentation(
        segmented.subject.series[result.reference], values, made_by, kind=kind
    )


EXTRA_OUTPUTS: dict[str, ExtraOutput] = {
    "picture": ExtraOutput(_picture),
    "report": ExtraOutput(_report, needs_prepared=True),
    **{kind: ExtraOutput(partial(_bids, make)) for kind, make in BIDS_OUTPUTS.items()},
    "dicom_seg": ExtraOutput(partial(_dicom, kind="mask")),
    "dicom_map": ExtraOutput(partial(_dicom, kind="map")),
}
