"""A demonstration without anybody's scans: a synthetic subject, segmented and scored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.cohort.jobs import Job, RunSettings
from mmccd_cli.cohort.steps import JobSteps
from mmccd_cli.files import refuse_to_overwrite
from mmccd_cli.inputs.nifti import make_grid, read_nifti, write_nifti
from mmccd_cli.inputs.phantom import make_phantom
from mmccd_cli.inputs.subjects import subject_from_files
from mmccd_cli.outputs.images import is_described, output_paths
from mmccd_cli.progress import Progress, silent

if TYPE_CHECKING:
    from mmccd_cli.pipeline import Pipeline

SUBJECT = "phantom"
LESION = "lesion"
_DESCRIPTION = "synthetic, by mmccd"


@dataclass(frozen=True, kw_only=True)
class DemoFiles:
    """Where the demonstration writes.

    Attributes:
        scans: Modality -> synthetic scan; also "lesion", its true lesion.
        targets: Map, mask, sidecar and picture of the result, by kind.
    """

    scans: dict[str, Path]
    targets: dict[str, Path]

    def job(self) -> Job:
        """Return what is to be segmented; the scans must exist."""
        images = {name: path for name, path in self.scans.items() if name != LESION}
        return Job(subject=subject_from_files(images, id=SUBJECT), targets=self.targets)


def plan_demo(folder: Path, *, force: bool = False) -> DemoFiles:
    """Name the files of a demonstration in a folder that need not exist.

    Raises:
        UsageError: A result, or another scan, exists already, or the folder cannot be written.
    """
    names = ("FLAIR", "T2w", "T1w", LESION)
    files = DemoFiles(
        scans={name: folder / SUBJECT / f"{SUBJECT}_{name}.nii.gz" for name in names},
        targets={
            **output_paths(folder / "anomaly.nii.gz"),
            "picture": folder / "anomaly.png",
        },
    )
    # Scans of an earlier demonstration, whose bytes are the same, may be there.
    scans = [path for path in files.scans.values() if not is_described(path, _DESCRIPTION)]
    refuse_to_overwrite([*files.targets.values(), *scans], force=force, make_folders=True)
    return files


def write_scans(files: DemoFiles) -> None:
    """Make the synthetic subject, on the grid of BraTS, and write it as NIfTI."""
    phantom = make_phantom()
    grid = make_grid(phantom.lesion.shape, phantom.affine)
    for name, path in files.scans.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == LESION:
            write_nifti(path, phantom.lesion, grid, intent="label", description=_DESCRIPTION)
        else:
            write_nifti(path, phantom.volumes[name].data, grid, description=_DESCRIPTION)


def segment_demo(
    files: DemoFiles,
    pipeline: Pipeline,
    *,
    force: bool = False,
    advance: Progress = silent,
) -> tuple[dict[str, Any], float]:
    """Segment the synthetic subject and compare with its true lesion.

    Returns:
        The record of the run, and the Dice coefficient of the mask as written.
    """
    steps = JobSteps(pipeline=pipeline, settings=RunSettings())
    segmented = steps.finish(steps.prepare(files.job()), force=force, advance=advance)
    mask, truth = (
        read_nifti(path, allow_constant=True)[0].data > 0
        for path in (files.targets["mask"], files.scans[LESION])
    )
    return segmented.record, overlap(mask, truth).dice
