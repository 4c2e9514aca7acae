"""What can be written beside map, mask and sidecar: one maker for each kind of extra output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from mmccd_cli.cohort.jobs import Job, RunSettings
from mmccd_cli.errors import UsageError

if TYPE_CHECKING:
    from mmccd_cli.inputs.volume import NiftiGrid, Volume
    from mmccd_cli.pipeline import SegmentationResult
    from mmccd_cli.weights.bundle import Bundle


@dataclass(frozen=True, eq=False)
class Finished:
    """A segmented subject.

    Attributes:
        job: What was to be done.
        result: Arrays and lesions; its `prepared` is None where only the mask was made anew.
        grid: The grid of map and mask.
        record: What the sidecar says; before the files are written, without their hashes and
            without the seconds that extras take.
        bundle: The weights.
        volumes: Modality to scan; None where no extra output that needs them was asked for.
    """

    job: Job
    result: SegmentationResult
    grid: NiftiGrid
    record: dict[str, Any]
    bundle: Bundle
    volumes: Mapping[str, Volume] | None = None


@dataclass(frozen=True)
class Maker:
    """How one kind of extra output is made.

    Attributes:
        make: Returns the file's bytes; must not print.
        needs_prepared: Whether it looks at the prepared subject and the scans, so that the map
            alone does not suffice to make it anew.
    """

    make: Callable[[Finished], bytes]
    needs_prepared: bool = False


def _picture(finished: Finished) -> bytes:
    from mmccd_cli.outputs.pictures import overview_png

    result = finished.result
    return overview_png(
        result.shown,
        result.anomaly_map,
        result.mask,
        brain=result.brain,
        title=f"{finished.job.subject.id}: {finished.record['lesion_volume_ml']:.1f} ml",
    )


def _report(finished: Finished) -> bytes:
    from mmccd_cli.outputs.report.page import subject_report

    volumes = finished.volumes or {}
    return subject_report(finished.result, volumes, finished.bundle.template, finished.record)


def _dicom(finished: Finished, kind: Literal["mask", "map"]) -> bytes:
    from mmccd_cli.outputs.dicom_seg import Origin, encode_segmentation

    result, weights = finished.result, finished.bundle
    origin = Origin(
        weights.config.name,
        weights.config.version,
        weights.sha256,
        {"threshold": f"{result.threshold:g}"},
    )
    values = result.mask if kind == "mask" else result.anomaly_map
    stack = finished.job.subject.series[result.reference]
    return encode_segmentation(stack, values, origin, kind=kind)


def _bids(finished: Finished, kind: str) -> bytes:
    from mmccd_cli.outputs.bids import MAKERS_OF_BIDS

    return MAKERS_OF_BIDS[kind](finished)


MAKERS: dict[str, Maker] = {
    "picture": Maker(_picture),
    "report": Maker(_report, needs_prepared=True),
    "mask_sidecar": Maker(partial(_bids, kind="mask_sidecar")),
    "lesions": Maker(partial(_bids, kind="lesions")),
    "lesion_table": Maker(partial(_bids, kind="lesion_table")),
    "lesions_sidecar": Maker(partial(_bids, kind="lesions_sidecar")),
    "dicom_seg": Maker(partial(_dicom, kind="mask")),
    "dicom_map": Maker(partial(_dicom, kind="map")),
}


def check_extras(jobs: Iterable[Job], settings: RunSettings) -> None:
    """Refuse, before anything is computed, extras that cannot be made.

    Raises:
        UsageError: DICOM is asked for and the input is none, the map lies on another grid, or the
            package that writes it is not installed.
    """
    for job in jobs:
        if not {"dicom_seg", "dicom_map"} & set(job.extras):
            continue
        from mmccd_cli.outputs.dicom_seg import check_available

        check_available()
        if next(iter(job.subject.paths)) not in job.subject.series:
            raise UsageError(
                f"{job.subject.id} was not given as DICOM, so there is no series that a DICOM "
                "segmentation could refer to.",
                next_step="Leave out --dicom-seg and --dicom-map, or give the DICOM series.",
            )
        if settings.space != "native":
            raise UsageError(
                "A DICOM segmentation lies on the slices of its series, not on the template.",
                next_step="Leave out --space template, or --dicom-seg and --dicom-map.",
            )
