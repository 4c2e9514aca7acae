"""Segmenting subjects one after the other: read and prepare, infer, write."""

from __future__ import annotations

import hashlib
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmccd_cli.cohort.jobs import Job, RunSettings
from mmccd_cli.cohort.prefetch import Ahead
from mmccd_cli.cohort.resume import Earlier, find_earlier, is_ours
from mmccd_cli.errors import MmccdError, UsageError, WeightsError
from mmccd_cli.files import refuse_to_overwrite, remove_leftovers
from mmccd_cli.inputs.nifti import NiftiGrid, make_grid
from mmccd_cli.inputs.scans import Scans, describe_inputs, name_inputs, read_scans
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

MOST_WORKERS = 8
MEMORY_OF_A_SUBJECT = 1 << 30
"""Bytes that one subject takes at most while it is prepared; skull stripping takes most of them."""
TEMPLATE_CODE = 5
"""NIfTI's code of a template other than MNI's."""


@dataclass(frozen=True, eq=False)
class Ready:
    """A job whose subject only needs the device, or not even that.

    Attributes:
        job: The job.
        inputs: Names and hashes of what was read.
        prepared: The subject in template space; None where `earlier` spares it.
        grids: Modality to the grid of its file.
        volumes: Modality to image, only where an extra output looks at them.
        notes: What was found and mended while reading.
        seconds: Seconds of reading.
        earlier: A result that is there already, whose map can stay.
    """

    job: Job
    inputs: Mapping[str, Any]
    prepared: PreparedSubject | None = None
    grids: Mapping[str, NiftiGrid] | None = None
    volumes: Mapping[str, Volume] | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    earlier: Earlier | None = None


def run_jobs(
    jobs: Iterable[Job],
    load: Callable[[], Pipeline],
    settings: RunSettings,
    *,
    force: bool = False,
    resume: bool = False,
    workers: int | None = None,
    began: Callable[[Job], None] = lambda job: None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Outcome]:
    """Segment subjects one after the other; one that fails stops none of the others.

    While one subject is on the device, the next ones are read and prepared in threads; their
    errors wait until their turn comes. No more of them than workers are in memory.

    Args:
        jobs: What to do.
        load: Loads the weights; called once, when the first subject could be read.
        settings: What was asked for.
        force: Whether existing outputs are overwritten.
        resume: Whether a subject is skipped whose result has the same inputs, weights and
            settings; where only the mask's settings differ, only the mask is made anew.
        workers: Subjects that are prepared ahead, each in a thread; 0 for none, None chooses.
        began: Called before each subject.
        advance: Called with passes done and their number, within a subject.

    Yields:
        An outcome for each subject, in order.

    Raises:
        WeightsError: The weights cannot be loaded or used, which concerns every subject.
        UsageError: What was asked for cannot be done, or the disk is full.
        ComputeError: The device cannot be used.
    """
    todo = iter(jobs := list(jobs))
    for job in todo:
        try:
            scans = None if resume and job.exists else read_scans(job.subject, job.brain_mask)
        except (MmccdError, OSError) as error:
            began(job)
            yield Outcome(job.subject.id, "failed", error=error)
            continue
        # Outside the try: without weights or device, no other subject can be done either.
        segmenter = load()
        number = choose_workers(len(jobs) - 1) if workers is None else workers
        line = _Line(segmenter, settings, resume, number)
        line.join(job, scans)
        del scans
        yield from _run_line(line, todo, force, began, advance)


class _Line:
    """Jobs that wait for the device, the first of them being prepared in threads.

    Args:
        segmenter: Prepares and infers.
        settings: What was asked for.
        resume: Whether a result that is there already may spare the work.
        workers: Number of threads; 0 prepares a job when its turn comes.
    """

    def __init__(
        self, segmenter: Pipeline, settings: RunSettings, resume: bool, workers: int
    ) -> None:
        self.segmenter, self.settings = segmenter, settings
        self.resume, self.workers = resume, workers
        self._threads = threads_in_all()
        self._waiting: deque[tuple[Job, Callable[[], Ready]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, job: Job, scans: Scans | None = None) -> None:
        """Take a job in, and begin to prepare it."""
        prepare = partial(
            prepare_job,
            job,
            self.segmenter,
            self.settings,
            resume=self.resume,
            scans=scans,
            threads=max(1, self._threads // max(1, self.workers)),
        )
        wait: Callable[[], Ready] = prepare
        if self.workers:
            wait = Ahead(partial(_with_threads, self._threads, prepare)).result
        self._waiting.append((job, wait))

    def leave(self) -> tuple[Job, Callable[[], Ready]]:
        """Give away the first job, and what waits for it to be ready."""
        return self._waiting.popleft()


def _run_line(
    line: _Line,
    todo: Iterator[Job],
    force: bool,
    began: Callable[[Job], None],
    advance: Callable[[int, int], None],
) -> Iterator[Outcome]:
    """Do the jobs of a line and all that join it."""
    _fill(line, todo)
    while line:
        job, wait = line.leave()
        began(job)
        ready: Ready | None = None
        try:
            ready = wait()
            del wait
            _fill(line, todo)
            outcome = _finish_or_skip(
                ready, line.segmenter, line.settings, force, line.resume, advance
            )
        except (WeightsError, UsageError):
            raise
        except Exception as error:  # a bug met on one subject must not lose the others
            _forget_arrays(error)
            outcome = Outcome(job.subject.id, "failed", error=error)
        ready = None  # hold no large arrays while the next subject is waited for
        _fill(line, todo)
        yield outcome


def _fill(line: _Line, todo: Iterator[Job]) -> None:
    while len(line) < max(1, line.workers) and (job := next(todo, None)) is not None:
        line.join(job)


def choose_workers(others: int) -> int:
    """Return how many subjects are prepared ahead.

    As many as there are processor cores, because registration takes one thread and most of the
    time; at most what half of the free memory holds; and none on a single core.

    Args:
        others: How many subjects there are beside the first.
    """
    import torch

    from mmccd_cli.translation.devices import free_memory

    cores = threads_in_all()
    if cores < 2:
        return 0
    free = free_memory(torch.device("cpu"))
    fits = MOST_WORKERS if free is None else max(1, free // (2 * MEMORY_OF_A_SUBJECT))
    return min(others, cores, MOST_WORKERS, fits)


def prepare_job(
    job: Job,
    segmenter: Pipeline,
    settings: RunSettings,
    *,
    resume: bool = False,
    scans: Scans | None = None,
    threads: int | None = None,
) -> Ready:
    """Do all of a job that comes before the device; safe in a thread beside `finish_job`.

    Args:
        job: The job.
        segmenter: Only its settings and template are used.
        settings: What was asked for.
        resume: Whether a result that is there already may spare the work.
        scans: What was read of the subject; None to read it.
        threads: Threads of the CPU; None for all.

    Raises:
        MmccdError: Anything that a user can meet.
    """
    inputs = describe_inputs(job.subject, job.brain_mask)
    if resume:
        requested = _requested(segmenter, settings)
        earlier = find_earlier(job, segmenter.bundle.sha256, requested, inputs)
        if earlier is not None:
            return Ready(job, inputs, earlier=earlier)
    scans = scans or read_scans(job.subject, job.brain_mask)
    prepared = segmenter.prepare(
        scans.volumes,
        brain_mask=scans.brain_mask,
        skull_strip=settings.skull_strip,
        threads=threads or threads_in_all(),
    )
    shown = any(EXTRA_OUTPUTS[kind].needs_prepared for kind in job.extras)
    return Ready(
        job,
        inputs,
        prepared,
        scans.grids,
        scans.volumes if shown else None,
        tuple(scans.notes),
        scans.seconds,
    )


def infer_job(
    ready: Ready,
    segmenter: Pipeline,
    settings: RunSettings,
    *,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> SegmentedSubject:
    """Segment a prepared subject; nothing is written.

    Raises:
        MmccdError: Anything that a user can meet.
    """
    job, prepared, grids = ready.job, ready.prepared, ready.grids
    if prepared is None or grids is None:
        raise ValueError("this job was not prepared, because its result is there already")
    result = segmenter.infer(
        prepared, options=settings.mask_options, space=settings.space, advance=advance
    )
    if settings.space == "native":
        grid = grids[result.reference]
    else:
        grid = make_grid(result.shown.shape, result.shown.affine, code=TEMPLATE_CODE)
    record = describe_result(
        job.subject,
        result,
        segmenter.bundle,
        inputs=ready.inputs,
        requested=_requested(segmenter, settings),
        outputs=_names(job),
        notes=[*ready.notes],
        seconds={"read": ready.seconds},
        threads=threads_in_all(),
    )
    return SegmentedSubject(
        subject=job.subject,
        outputs=job.outputs,
        sidecar_fields=job.sidecar_fields,
        result=result,
        grid=grid,
        record=record,
        bundle=segmenter.bundle,
        volumes=ready.volumes,
    )


def finish_job(
    ready: Ready,
    segmenter: Pipeline,
    settings: RunSettings,
    *,
    force: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> SegmentedSubject:
    """Segment a prepared subject and write its files.

    Raises:
        MmccdError: Anything that a user can meet; nothing is written then.
    """
    segmented = infer_job(ready, segmenter, settings, advance=advance)
    began = time.perf_counter()
    contents = encode_images(
        ready.job.outputs, segmented.result.anomaly_map, segmented.result.mask, segmented.grid
    )
    return _write(ready.job, segmented, contents, {"encode": time.perf_counter() - began}, force)


def segment_job(
    job: Job,
    segmenter: Pipeline,
    settings: RunSettings,
    *,
    scans: Scans | None = None,
    force: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> SegmentedSubject:
    """Segment one subject and write its files: `prepare_job`, then `finish_job`."""
    ready = prepare_job(job, segmenter, settings, scans=scans)
    return finish_job(ready, segmenter, settings, force=force, advance=advance)


def plan_outcome(
    job: Job, segmenter: Pipeline, settings: RunSettings, *, resume: bool = False
) -> Outcome:
    """Tell what `run_jobs` would do with a subject, from the names of its files alone."""
    name, requested = job.subject.id, _requested(segmenter, settings)
    earlier: Earlier | None = None
    try:
        if resume:
            inputs = describe_inputs(job.subject, job.brain_mask)
            earlier = find_earlier(job, segmenter.bundle.sha256, requested, inputs)
        if earlier is not None and earlier.is_current:
            return Outcome(name, "skipped", {**earlier.record, "status": "skipped"})
        score = segmenter.bundle.choose_score(segmenter.sampling.method, tuple(job.subject.paths))
    except (MmccdError, OSError) as error:
        return Outcome(name, "failed", error=error)
    record = {
        "record_version": RECORD_VERSION,
        "subject": name,
        "status": "planned",
        "layout": job.subject.layout,
        "inputs": name_inputs(job.subject, job.brain_mask),
        "ignored": describe_ignored(job.subject),
        "modalities": list(score.modalities),
        "outputs": _names(job),
        "only_the_mask": earlier is not None,
        "bundle": describe_bundle(segmenter.bundle),
        "settings": {"requested": requested},
    }
    return Outcome(name, "planned", record, from_map=earlier is not None)


def _forget_arrays(error: BaseException | None) -> None:
    """Keep an error's traceback without the variables of its functions: whole images, mostly."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _finish_or_skip(
    ready: Ready,
    segmenter: Pipeline,
    settings: RunSettings,
    force: bool,
    resume: bool,
    advance: Callable[[int, int], None],
) -> Outcome:
    job = ready.job
    if ready.earlier is not None and ready.earlier.is_current:
        record = {**ready.earlier.record, "status": "skipped"}
        return Outcome(job.subject.id, "skipped", record)
    overwrite = force or (resume and is_ours(job))
    if resume:
        for path in job.targets.values():
            remove_leftovers(path)
    if job.exists:
        refuse_to_overwrite(job.targets.values(), job.input_files, force=overwrite)
    if ready.earlier is not None:
        segmented = _redo_mask(job, ready.earlier, segmenter, settings, overwrite)
        return Outcome(job.subject.id, "done", segmented.record, from_map=True)
    segmented = finish_job(ready, segmenter, settings, force=overwrite, advance=advance)
    return Outcome(job.subject.id, "done", segmented.record)


def _redo_mask(
    job: Job, earlier: Earlier, segmenter: Pipeline, settings: RunSettings, force: bool
) -> SegmentedSubject:
    """Make the mask anew from the map that is there, and all that follows from it."""
    from mmccd_cli.pipeline import SegmentationResult

    began = time.perf_counter()
    new = remask(job.targets, {**earlier.record, **job.sidecar_fields}, settings.mask_options)
    record = new.record
    reference = record["reference"]
    result = SegmentationResult(
        anomaly_map=new.volume.data,
        mask=new.mask,
        brain=new.volume.data > 0,  # the map is positive in all of the brain, and nowhere else
        reference=reference,
        shown=new.volume
        if set(job.extras) <= set(new.contents)
        else _reference_scan(job, reference),
        lesions=new.lesions,
        threshold=record["threshold"],
        settings=record["settings"],
        device=record["device"],
        notes=record["warnings"],
        seconds=record["seconds"],
    )
    segmented = SegmentedSubject(
        subject=job.subject,
        outputs=job.outputs,
        sidecar_fields=job.sidecar_fields,
        result=result,
        grid=new.grid,
        record=record,
        bundle=segmenter.bundle,
    )
    contents = {job.targets[kind]: made for kind, made in new.contents.items()}
    return _write(job, segmented, contents, {"new_mask": time.perf_counter() - began}, force)


def _reference_scan(job: Job, reference: str) -> Volume:
    only = replace(job.subject, paths={reference: job.subject.paths[reference]})
    return read_scans(only).volumes[reference]


def _write(
    job: Job,
    segmented: SegmentedSubject,
    contents: dict[Path, bytes],
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
    contents[job.outputs.sidecar] = encode_json(record)
    if job.makes_folder:
        for folder in {path.parent for path in contents}:
            folder.mkdir(parents=True, exist_ok=True)
    write_outputs(contents, inputs=job.input_files, force=force)
    return replace(segmented, record=record)


def _requested(segmenter: Pipeline, settings: RunSettings) -> dict[str, Any]:
    """Everything that was asked for and changes a number."""
    return settings.describe(segmenter.sampling, segmenter.asked_precision)


def _names(job: Job) -> dict[str, str]:
    return {kind: path.name for kind, path in job.targets.items()}


def _hashes(job: Job, contents: Mapping[Path, bytes]) -> dict[str, str]:
    return {
        kind: hashlib.sha256(contents[path]).hexdigest()
        for kind, path in (("map", job.outputs.map), ("mask", job.outputs.mask))
        if path in contents
    }


def threads_in_all() -> int:
    """Return how many threads of the CPU this process is to use."""
    import torch

    return torch.get_num_threads()


def _with_threads(number: int, prepare: Callable[[], Ready]) -> Ready:
    """Prepare in a thread that holds torch to the same number as all others.

    The number is partly a property of the thread and partly of the process.
    """
    import torch

    torch.set_num_threads(number)
    return prepare()
