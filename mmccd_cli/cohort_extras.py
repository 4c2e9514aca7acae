"""What can be written beside map, mask and sidecar: one maker for each kind of extra output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmccd_cli.cohort import Job

if TYPE_CHECKING:
    from mmccd_cli.bundle import Bundle
    from mmccd_cli.pipeline import SegmentationResult
    from mmccd_cli.volume import NiftiGrid


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
    """

    job: Job
    result: SegmentationResult
    grid: NiftiGrid
    record: dict[str, Any]
    bundle: Bundle


@dataclass(frozen=True)
class Maker:
    """How one kind of extra output is made.

    Attributes:
        make: Returns the file's bytes; must not print.
        needs_prepared: Whether it looks at the prepared subject, so that the map alone does not
            suffice to make it anew.
    """

    make: Callable[[Finished], bytes]
    needs_prepared: bool = False


def _picture(finished: Finished) -> bytes:
    from mmccd_cli.pictures import overview_png

    result = finished.result
    return overview_png(
        result.shown,
        result.anomaly_map,
        result.mask,
        brain=result.brain,
        title=f"{finished.job.subject.id}: {finished.record['lesion_volume_ml']:.1f} ml",
    )


MAKERS: dict[str, Maker] = {"picture": Maker(_picture)}
