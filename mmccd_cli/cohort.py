"""One subject or many: from what was found on the disk to finished files, one subject at a time."""

from __future__ import annotations

import gzip
import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmccd_cli.config import SamplingConfig, to_dict
from mmccd_cli.errors import MmccdError, UsageError, WeightsError
from mmccd_cli.outputs import (
    OutputPaths,
    check_outputs,
    describe_inputs,
    output_paths,
    to_json,
    write_result,
)
from mmccd_cli.records import (
    RECORD_VERSION,
    describe_bundle,
    describe_ignored,
    describe_result,
)
from mmccd_cli.subjects import Subject, find_subject
from mmccd_cli.volume import NiftiGrid, Volume, read_nifti

if TYPE_CHECKING:
    from mmccd_cli.pipeline import Segmenter

BRAIN_MASK = "brain_mask"
_NIFTI_DESCRIPTION = slice(148, 228)


@dataclass(frozen=True)
class Job:
    """One subject and where its result goes.

    Attributes:
        subject: The files to read.
        outputs: Map, mask and sidecar.
        picture: PNG to write beside them, or None.
        brain_mask: A brain mask that was given, or None.
        makes_folder: Whether the outputs' folder is made where it is missing.
    """

    subject: Subject
    outputs: OutputPaths
    picture: Path | None = None
    brain_mask: Path | None = None
    makes_folder: bool = False

    @property
    def inputs(self) -> dict[str, Path]:
        """Everything that is read."""
        mask = {BRAIN_MASK: self.brain_mask} if self.brain_mask else {}
        return {**self.subject.paths, **mask}

    @property
    def targets(self) -> dict[str, Path]:
        """Everything that is written."""
        paths = {
            "map": self.outputs.map,
            "mask": self.outputs.mask,
            "sidecar": self.outputs.sidecar,
        }
        return {**paths, "picture": self.picture} if self.picture else paths


@dataclass(frozen=True)
class RunSettings:
    """What a user can ask for beside the sampling, and that changes a number.

    Attributes:
        threshold: Value of the map above which a voxel belongs to the mask; None as calibrated.
        min_lesion_mm3: Smallest lesion; None as calibrated.
        skull_strip: "auto", "never" or a method's name.
    """

    threshold: float | None = None
    min_lesion_mm3: float | None = None
    skull_strip: str = "auto"

    def describe(self, sampling: SamplingConfig) -> dict[str, Any]:
        """Return all settings as the record holds them and --resume compares them."""
        return {
            "sampling": to_dict(sampling),
            "threshold": "auto" if self.threshold is None else self.threshold,
            "min_lesion_mm3": "auto" if self.min_lesion_mm3 is None else self.min_lesion_mm3,
            "skull_strip": self.skull_strip,
        }


@dataclass(frozen=True)
class Outcome:
    """What became of one subject.

    Attributes:
        name: The subject's id, or the path that should have been one.
        status: "done", "skipped" because its result was there already, "failed", or "planned".
        record: See `mmccd_cli.records`; empty where it failed.
        error: Why it failed: an `MmccdError`, or anything else where there is a bug.
    """

    name: str
    status: Literal["done", "skipped", "failed", "planned"]
    record: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None


def find_all_subjects(folders: Iterable[Path]) -> tuple[list[Subject], list[Outcome]]:
    """Find the subject in each folder; a folder without one stops none of the others.

    Args:
        folders: Subjects' folders; one that is named twice counts once.

    Raises:
        UsageError: Two folders hold subjects of one name, so that their results would collide.
    """
    subjects: list[Subject] = []
    failures: list[Outcome] = []
    folder_of_name: dict[str, Path] = {}
    for folder in {path.resolve(): path for path in reversed(list(folders))}.values():
        try:
            subject = find_subject(folder)
        except (MmccdError, OSError) as error:
            failures.append(Outcome(str(folder), "failed", error=error))
            continue
        name = subject.id.casefold()  # file systems may not tell upper from lower case
        if name in folder_of_name:
            raise UsageError(
                f"{folder} and {folder_of_name[name]} are both the subject {subject.id}.",
                cause="Results are named after subjects, so one would overwrite the other.",
                next_step="Run them separately, with an --out-dir each.",
            )
        folder_of_name[name] = folder
        subjects.append(subject)
    # Reversed twice: the first mention of a folder keeps its place.
    return subjects[::-1], failures[::-1]


def plan_job(
    subject: Subject, out_dir: Path, *, picture: str | None = None, brain_mask: Path | None = None
) -> Job:
    """Name the outputs of a subject: ID.nii.gz, ID_mask.nii.gz, ID.json and ID_PICTURE."""
    outputs = output_paths(out_dir / f"{subject.id}.nii.gz")
    drawn = out_dir / f"{subject.id}_{picture}" if picture else None
    return Job(subject, outputs, drawn, brain_mask, makes_folder=True)


def check_targets(jobs: Sequence[Job], *, force: bool, resume: bool) -> None:
    """Refuse, before anything is computed, what would collide or overwrite.

    Args:
        jobs: All of them, because no job may overwrite another's input.
        force: Whether existing outputs may be overwritten.
        resume: Whether they are looked at later, one by one.

    Raises:
        UsageError: Naming the first file in the way.
    """
    targets = [path for job in jobs for path in job.targets.values()]
    twice = [path for path, count in Counter(targets).items() if count > 1]
    if twice:
        raise UsageError(
            f"Two results would be written to {twice[0]}.",
            cause="One subject is named like another one's mask, or the picture like the map.",
            next_step="Give another name, or run the subjects with an --out-dir each.",
        )
    _refuse_inputs(targets, [path for job in jobs for path in job.inputs.values()])
    for folder in {job.outputs.map.parent for job in jobs if job.makes_folder}:
        _check_can_be_made(folder)
    for job in jobs:
        if not job.makes_folder or job.outputs.map.parent.is_dir():
            check_outputs(job.targets.values(), inputs=job.inputs.values(), force=True)
    existing = [path for path in targets if path.exists()]
    if existing and not force and not resume:
        others = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UsageError(
            f"The output {existing[0]}{others} exists already.",
            next_step="Add --resume to keep what is up to date, or --force to overwrite.",
        )


def run_jobs(
    jobs: Iterable[Job],
    load: Callable[[], Segmenter],
    settings: RunSettings,
    *,
    force: bool = False,
    resume: bool = False,
    began: Callable[[Job], None] = lambda job: None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Outcome]:
    """Segment subjects one after the other; one that fails stops none of the others.

    Args:
        jobs: What to do.
        load: Loads the weights; called once, when the first subject could be read.
        settings: What was asked for.
        force: Whether existing outputs are overwritten.
        resume: Whether a subject is skipped whose result has the same inputs, weights and settings.
        began: Called before each subject.
        advance: Called with passes done and their number, within a subject.

    Yields:
        An outcome for each subject, in order.

    Raises:
        WeightsError: The weights cannot be loaded or used, which concerns every subject.
        UsageError: What was asked for cannot be done, or the disk is full.
        ComputeError: The device cannot be used.
    """
    segmenter: Segmenter | None = None
    for job in jobs:
        began(job)
        try:
            scans = None if resume and _exists(job) else read_scans(job)
        except (MmccdError, OSError) as error:
            yield Outcome(job.subject.id, "failed", error=error)
            continue
        # Outside the try: without weights or device, no other subject can be done either.
        segmenter = segmenter or load()
        try:
            if resume and (record := finished_record(job, segmenter, settings)):
                yield Outcome(job.subject.id, "skipped", {**record, "status": "skipped"})
                continue
            overwrite = force or (resume and _is_ours(job))
            if _exists(job):
                check_outputs(job.targets.values(), inputs=job.inputs.values(), force=overwrite)
            record = segment_job(
                job,
                scans or read_scans(job),
                segmenter,
                settings,
                force=overwrite,
                advance=advance,
            )
        except (WeightsError, UsageError):
            raise
        except Exception as error:  # a bug met on one subject must not lose the others
            yield Outcome(job.subject.id, "failed", error=error)
            continue
        yield Outcome(job.subject.id, "done", record)


@dataclass(frozen=True)
class Scans:
    """What was read of one subject.

    Attributes:
        volumes: Modality to image.
        grids: Modality to the grid of its file.
        brain_mask: The mask that was given, or None.
        notes: What was found and mended.
        seconds: How long it took.
    """

    volumes: Mapping[str, Volume]
    grids: Mapping[str, NiftiGrid]
    brain_mask: Volume | None
    notes: list[str]
    seconds: float


def read_scans(job: Job) -> Scans:
    """Read all images of a subject.

    Raises:
        DataError: One of them cannot be used.
    """
    started = time.perf_counter()
    notes: list[str] = []
    read = {name: read_nifti(path, notes=notes) for name, path in job.subject.paths.items()}
    mask = read_nifti(job.brain_mask, allow_constant=True)[0] if job.brain_mask else None
    return Scans(
        {name: volume for name, (volume, _) in read.items()},
        {name: grid for name, (_, grid) in read.items()},
        mask,
        notes,
        time.perf_counter() - started,
    )


def segment_job(
    job: Job,
    scans: Scans,
    segmenter: Segmenter,
    settings: RunSettings,
    *,
    force: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Segment one subject and write its files.

    Returns:
        The record that the sidecar holds, as plain JSON values.

    Raises:
        MmccdError: Anything that a user can meet; nothing is written then.
    """
    import torch

    from mmccd_cli.pipeline import MaskOptions

    threads = torch.get_num_threads()
    result = segmenter.segment(
        scans.volumes,
        options=MaskOptions(threshold=settings.threshold, min_lesion_mm3=settings.min_lesion_mm3),
        brain_mask=scans.brain_mask,
        skull_strip=settings.skull_strip,
        threads=threads,
        advance=advance,
    )
    began = time.perf_counter()
    extra: dict[Path, bytes] = {}
    if job.picture:
        from mmccd_cli.pictures import overview_png

        millilitres = sum(lesion.volume_ml for lesion in result.lesions)
        extra[job.picture] = overview_png(
            scans.volumes[result.reference],
            result.anomaly_map,
            result.mask,
            brain=result.brain,
            title=f"{job.subject.id}: {millilitres:.1f} ml",
        )
    seconds = {"read": scans.seconds}
    if job.picture:
        seconds["picture"] = time.perf_counter() - began
    record = describe_result(
        job.subject,
        result,
        segmenter.bundle,
        inputs=describe_inputs(job.inputs),
        requested=settings.describe(segmenter.sampling),
        outputs=job.targets,
        notes=scans.notes,
        seconds=seconds,
        threads=threads,
    )
    if job.makes_folder:
        job.outputs.map.parent.mkdir(parents=True, exist_ok=True)
    write_result(
        job.outputs,
        result.anomaly_map,
        result.mask,
        scans.grids[result.reference],
        record,
        inputs=job.inputs.values(),
        force=force,
        extra=extra,
    )
    plain: dict[str, Any] = json.loads(to_json(record))
    return plain


def plan_outcome(
    job: Job, segmenter: Segmenter, settings: RunSettings, *, resume: bool = False
) -> Outcome:
    """Tell what `run_jobs` would do with a subject, from the names of its files alone."""
    name = job.subject.id
    try:
        if resume and (record := finished_record(job, segmenter, settings)):
            return Outcome(name, "skipped", {**record, "status": "skipped"})
        score = segmenter.bundle.choose_score(segmenter.sampling.method, tuple(job.subject.paths))
    except (MmccdError, OSError) as error:
        return Outcome(name, "failed", error=error)
    return Outcome(name, "planned", describe_plan(job, segmenter, settings, score.modalities))


def describe_plan(
    job: Job, segmenter: Segmenter, settings: RunSettings, modalities: Sequence[str]
) -> dict[str, Any]:
    """Return the record of a subject that would be segmented."""
    return {
        "record_version": RECORD_VERSION,
        "subject": job.subject.id,
        "status": "planned",
        "layout": job.subject.layout,
        "inputs": {kind: {"file": path.name} for kind, path in job.inputs.items()},
        "ignored": describe_ignored(job.subject),
        "modalities": list(modalities),
        "outputs": {kind: path.name for kind, path in job.targets.items()},
        "bundle": describe_bundle(segmenter.bundle),
        "settings": {"requested": settings.describe(segmenter.sampling)},
    }


def finished_record(job: Job, segmenter: Segmenter, settings: RunSettings) -> dict[str, Any] | None:
    """Return the record of an earlier run with the same inputs, weights and settings, if any."""
    record = _read_record(job.outputs.sidecar)
    if record is None or not all(path.is_file() for path in job.targets.values()):
        return None
    requested = json.loads(to_json(settings.describe(segmenter.sampling)))
    same = (
        record.get("bundle", {}).get("sha256") == segmenter.bundle.sha256
        and record.get("settings", {}).get("requested") == requested
        and record.get("inputs") == describe_inputs(job.inputs)
    )
    return record if same else None


def _exists(job: Job) -> bool:
    return any(path.exists() for path in job.targets.values())


def _is_ours(job: Job) -> bool:
    """Tell whether what lies at the outputs' places was made by mmccd, so may be replaced."""
    if _read_record(job.outputs.sidecar) is not None:
        return True
    path = job.outputs.map
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            header = stream.read(_NIFTI_DESCRIPTION.stop)
    except (OSError, EOFError, zlib.error):
        return False
    return header[_NIFTI_DESCRIPTION].startswith(b"mmccd")


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "record_version" in record else None


def _refuse_inputs(targets: Sequence[Path], inputs: Sequence[Path]) -> None:
    known = {_identity(path): path for path in inputs if path.exists()}
    for path in targets:
        if path.exists() and (same := known.get(_identity(path))):
            raise UsageError(
                f"The output {path} is the input {same}; an input is never overwritten.",
                next_step="Give another --out or --out-dir.",
            )


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _check_can_be_made(folder: Path) -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UsageError(
            f"The output folder {folder} cannot be made: {existing} is a file.",
            next_step="Give another --out-dir.",
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(
            f"The output folder {folder} cannot be written.",
            cause=f"The permissions of {existing} do not allow it.",
            next_step="Give a folder of your own.",
        )
