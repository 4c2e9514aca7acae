"""A demonstration without anybody's scans: a synthetic subject, segmented and scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.cohort.jobs import Job, RunSettings, check_targets
from mmccd_cli.cohort.run import segment_job
from mmccd_cli.inputs.nifti import make_grid, read_nifti, write_nifti
from mmccd_cli.inputs.phantom import make_phantom
from mmccd_cli.inputs.subjects import Subject, subject_from_files
from mmccd_cli.outputs.images import output_paths

if TYPE_CHECKING:
    from mmccd_cli.pipeline import Pipeline

SUBJECT = "phantom"
LESION = "lesion"


@dataclass(frozen=True)
class DemoFiles:
    """Where the demonstration writes.

    Attributes:
        scans: Modality to the synthetic scan; also "lesion", its true lesion.
        result: Stem-bearing path of the anomaly map; see `output_paths`.
        picture: PNG of the result.
    """

    scans: dict[str, Path]
    result: Path
    picture: Path

    def job(self) -> Job:
        """Return what is to be segmented; the scans must exist."""
        images = {name: path for name, path in self.scans.items() if name != LESION}
        found = subject_from_files(
            t1=images["T1w"], t2=images["T2w"], flair=images["FLAIR"], id=SUBJECT
        )
        return Job(found, output_paths(self.result), {"picture": self.picture}, makes_folder=True)


def plan_demo(folder: Path, *, force: bool = False) -> DemoFiles:
    """Name the files of a demonstration.

    Args:
        folder: Where they go; it need not exist.
        force: Whether existing ones may be overwritten.

    Raises:
        UsageError: A file exists already, or the folder cannot be written.
    """
    names = ("FLAIR", "T2w", "T1w", LESION)
    scans = {name: folder / SUBJECT / f"{SUBJECT}_{name}.nii.gz" for name in names}
    files = DemoFiles(scans, folder / "anomaly.nii.gz", folder / "anomaly.png")
    extras = {"picture": files.picture}
    job = Job(Subject(id=SUBJECT, paths={}), output_paths(files.result), extras, makes_folder=True)
    check_targets([job], force=force, resume=False)
    return files


def write_scans(files: DemoFiles, seed: int = 0) -> None:
    """Make the synthetic subject, on the grid of BraTS, and write it as NIfTI."""
    phantom = make_phantom(seed)
    grid = make_grid(phantom.lesion.shape, phantom.affine)
    description = "synthetic, by mmccd"
    for name, path in files.scans.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == LESION:
            write_nifti(path, phantom.lesion, grid, intent="label", description=description)
        else:
            write_nifti(path, phantom.volumes[name].data, grid, description=description)


def segment_demo(
    files: DemoFiles,
    segmenter: Pipeline,
    *,
    force: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Any], float]:
    """Segment the synthetic subject and compare with its true lesion.

    Returns:
        The record of the run, and the Dice coefficient of the mask as written.
    """
    job = files.job()
    finished = segment_job(job, segmenter, RunSettings(), force=force, advance=advance)
    mask, truth = (
        read_nifti(path, allow_constant=True)[0].data > 0
        for path in (job.outputs.mask, files.scans[LESION])
    )
    return finished.record, overlap(mask, truth).dice
