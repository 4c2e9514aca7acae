"""What is done with one subject's files: read and prepare, infer, write; or only a new mask."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmccd_cli.cohort.jobs import Job, RunSettings
from mmccd_cli.cohort.resume import PreviousResult, find_previous
from mmccd_cli.inputs.nifti import NiftiGrid, make_grid
from mmccd_cli.inputs.scans import Scans, describe_inputs, name_inputs, read_image, read_scans
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.outputs.extras import EXTRA_OUTPUTS
from mmccd_cli.outputs.images import (
    encode_images,
    write_outputs,
)
from mmccd_cli.outputs.record import (
    RECORD_VERSION,
    Outcome,
    describe_bundle,
    describe_ignored,
    describe_result,
    encode_json,
    jsonable,
)
from mmccd_cli.outputs.remask import remask
from mmccd_cli.outputs.segmented import SegmentedSubject

if TYPE_CHECKING:
    from mmccd_cli.pipeline import Pipeline
    from mmccd_cli.preprocessing.subject import PreparedSubject

TEMPLATE_CODE = 5
"""NIfTI's code of a template other than MNI's."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedJob:
    """A job whose subject only needs the device.

    Attributes:
        job: The job.
        inputs: Names and hashes of what was read.
        prepared: The subject in template space.
        grids: Modality -> grid of its file.
        volumes: Modality -> image; None where no extra output looks at them.
        notes: What was found and mended while reading.
        seconds: Seconds of reading.
    """

    job: Job
    inputs: Mapping[str, Any]
    prepared: PreparedSubject
    grids: Mapping[str, NiftiGrid]
    volumes: Mapping[str, Volume] | None
    notes: list[str]
    seconds: float


def prepare_job(
    job: Job,
    pipeline: Pipeline,
    settings: RunSettings,
    *,
    scans: Scans | None = None,
    threads: int | None = None,
) -> PreparedJob:
    """Do all of a job that comes before the device; safe in a thread beside `finish_job`.

    Args:
        job: The job.
        pipeline: Only its settings and template are used.
        settings: What was asked for.
        scans: What was read of the subject; None to read it.
        threads: Threads of the CPU; None for all.

    Raises:
        MmccdError: Anything that a user can meet.
    """
    inputs = describe_inputs(job.subject, job.brain_mask)
    scans = scans or read_scans(job.subject, job.brain_mask)
    prepared = pipeline.prepare(
        scans.volumes,
        brain_mask=scans.brain_mask,
        skull_strip=settings.skull_strip,
        threads=threads or threads_in_all(),
    )
    shown = any(EXTRA_OUTPUTS[kind].needs_prepared for kind in job.extras)
    return PreparedJob(
        job=job,
        inputs=inputs,
        prepared=prepared,
        grids=scans.grids,
        volumes=scans.volumes if shown else None,
        notes=scans.notes,
        seconds=scans.seconds,
    )


def infer_job(
    ready: PreparedJob,
    pipeline: Pipeline,
    settings: RunSettings,
    *,
    advance: Callable[[int, int], None],
) -> SegmentedSubject:
    """Segment a prepared subject; nothing is written.

    Args:
        ready: What `prepare_job` returned.
        pipeline: The loaded weights.
        settings: What was asked for.
        advance: Called with passes done and their number.

    Raises:
        MmccdError: Anything that a user can meet.
    """
    job = ready.job
    result = pipeline.infer(
        ready.prepared, options=settings.mask_options, space=settings.space, advance=advance
    )
    if settings.space == "native":
        grid = ready.grids[result.reference]
    else:
        grid = make_grid(result.shown.shape, result.shown.affine, code=TEMPLATE_CODE)
    record = describe_result(
        job.subject,
        result,
        pipeline.bundle,
        inputs=ready.inputs,
        requested=_requested(pipeline, settings),
        outputs=_names(job),
        notes=ready.notes,
        seconds={"read": ready.seconds},
        threads=threads_in_all(),
    )
    return SegmentedSubject(
        subject=job.subject,
        targets=job.targets,
        sidecar_fields=job.sidecar_fields,
        result=result,
        grid=grid,
        record=record,
        bundle=pipeline.bundle,
        volumes=ready.volumes,
    )


def finish_job(
    ready: PreparedJob,
    pipeline: Pipeline,
    settings: RunSettings,
    *,
    force: bool,
    advance: Callable[[int, int], None],
) -> SegmentedSubject:
    """Segment a prepared subject and write its files.

    Args:
        ready: See `infer_job`, like all others.
        pipeline: The loaded weights.
        settings: What was asked for.
        force: Whether existing outputs may be overwritten.
        advance: Called with passes done and their number.

    Raises:
        MmccdError: Anything that a user can meet; nothing is written then.
    """
    segmented = infer_job(ready, pipeline, settings, advance=advance)
    began = time.perf_counter()
    outputs = ready.job.outputs
    assert outputs is not None  # only `infer_job` may leave it open where results go
    contents = encode_images(
        outputs, segmented.result.anomaly_map, segmented.result.mask, segmented.grid
    )
    seconds = {"encode": time.perf_counter() - began}
    return _write(ready.job, segmented, contents, seconds=seconds, force=force)


def redo_mask(
    job: Job,
    previous: PreviousResult,
    pipeline: Pipeline,
    *,
    settings: RunSettings,
    force: bool,
) -> SegmentedSubject:
    """Make a new mask from the map that is there, and write all that follows from it."""
    from mmccd_cli.pipeline import SegmentationResult

    began = time.perf_counter()
    new = remask(job.targets, {**previous.record, **job.sidecar_fields}, settings.mask_options)
    reference = new.record["reference"]
    follows = set(job.extras) <= set(new.contents)
    result = SegmentationResult(
        anomaly_map=new.volume.data,
        mask=new.mask,
        brain=new.volume.data > 0,  # the map is positive in all of the brain, and nowhere else
        reference=reference,
        shown=new.volume if follows else read_image(job.subject, reference)[0],
        lesions=new.lesions,
        threshold=new.record["threshold"],
        settings=new.record["settings"],
        device=new.record["device"],
        notes=new.record["warnings"],
        seconds=new.record["seconds"],
    )
    segmented = SegmentedSubject(
        subject=job.subject,
        targets=job.targets,
        sidecar_fields=job.sidecar_fields,
        result=result,
        grid=new.grid,
        record=new.record,
        bundle=pipeline.bundle,
    )
    contents = {job.targets[kind]: made for kind, made in new.contents.items()}
    seconds = {"new_mask": time.perf_counter() - began}
    return _write(job, segmented, contents, seconds=seconds, force=force)


def describe_plan(
    job: Job, pipeline: Pipeline, settings: RunSettings, *, resume: bool = False
) -> Outcome:
    """Tell what would be done with a subject, from the names of its files alone.

    Raises:
        MmccdError: It cannot be done.
    """
    name = job.subject.id
    previous = find_previous(job, pipeline, settings) if resume else None
    if previous is not None and previous.is_current:
        return Outcome(name, "skipped", {**previous.record, "status": "skipped"})
    score = pipeline.bundle.choose_score(pipeline.sampling.method, tuple(job.subject.paths))
    record = {
        "record_version": RECORD_VERSION,
        "subject": name,
        "status": "planned",
        "layout": job.subject.layout,
        "inputs": name_inputs(job.subject, job.brain_mask),
        "ignored": describe_ignored(job.subject),
        "modalities": list(score.modalities),
        "outputs": _names(job),
        "only_the_mask": previous is not None,
        "bundle": describe_bundle(pipeline.bundle),
        "settings": {"requested": _requested(pipeline, settings)},
    }
    return Outcome(name, "planned", record, from_map=previous is not None)


def _write(
    job: Job,
    segmented: SegmentedSubject,
    contents: dict[Path, bytes],
    *,
    seconds: dict[str, float],
    force: bool,
) -> SegmentedSubject:
    """Make the extras, and write all files of a job."""
    record = segmented.record
    record["output_sha256"] = {**record["output_sha256"], **_hashes(job, contents)}
    for kind, path in job.extras.items():
        if path in contents:
            continue
        began = time.perf_counter()
        contents[path] = EXTRA_OUTPUTS[kind].make(segmented)
        seconds[kind] = time.perf_counter() - began
    rounded = {stage: round(value, 3) for stage, value in seconds.items()}
    record = jsonable({**record, "seconds": {**record["seconds"], **rounded}, **job.sidecar_fields})
    contents[job.targets["sidecar"]] = encode_json(record)
    if job.makes_folder:
        for folder in {path.parent for path in contents}:
            folder.mkdir(parents=True, exist_ok=True)
    write_outputs(contents, inputs=job.input_files, force=force)
    return replace(segmented, record=record)


def _requested(pipeline: Pipeline, settings: RunSettings) -> dict[str, Any]:
    """Everything that was asked for and changes a number."""
    return settings.describe(pipeline.sampling, pipeline.asked_precision)


def _names(job: Job) -> dict[str, str]:
    return {kind: path.name for kind, path in job.targets.items()}


def _hashes(job: Job, contents: Mapping[Path, bytes]) -> dict[str, str]:
    return {
        kind: hashlib.sha256(contents[path]).hexdigest()
        for kind in ("map", "mask")
        if (path := job.targets[kind]) in contents
    }


def threads_in_all() -> int:
    """Return how many threads of the CPU this process is to use."""
    import torch

    return torch.get_num_threads()


def hold_threads(number: int) -> None:
    """Hold torch in the thread that calls to as many threads as all others.

    The number is partly a property of the thread and partly of the process.
    """
    import torch

    torch.set_num_threads(number)
