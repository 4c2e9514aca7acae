"""What is done with one subject's files: read and prepare, infer, write; or only a new mask."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mmccd_cli.cohort.jobs import Job, RunSettings
from mmccd_cli.cohort.resume import PreviousResult, find_previous, find_result
from mmccd_cli.errors import notes_and_warnings
from mmccd_cli.inputs.nifti import NiftiGrid, make_grid
from mmccd_cli.inputs.scans import Scans, check_headers, name_inputs, read_image, read_scans
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.outputs.extras import EXTRA_OUTPUTS
from mmccd_cli.outputs.images import encode_images, write_outputs
from mmccd_cli.outputs.lesions import lesion_table
from mmccd_cli.outputs.record import (
    RECORD_VERSION,
    Outcome,
    describe_bundle,
    describe_ignored,
    describe_result,
    encode_sidecar,
    jsonable,
)
from mmccd_cli.outputs.remask import remask, with_kept
from mmccd_cli.outputs.segmented import SegmentedSubject
from mmccd_cli.progress import Progress, Stopwatch, silent

if TYPE_CHECKING:
    from mmccd_cli.pipeline import Pipeline, SegmentationResult
    from mmccd_cli.preprocessing.subject import PreparedSubject

TEMPLATE_CODE = 5
"""NIfTI's code of a template other than MNI's."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedJob:
    """A job whose subject only needs the device; scans are kept where extra outputs need them."""

    job: Job
    scans: Scans
    prepared: PreparedSubject


@dataclass(frozen=True, eq=False, kw_only=True)
class JobSteps:
    """The steps of a job, with the weights and with what was asked for.

    Every step may raise any `MmccdError` that a user can meet.
    """

    pipeline: Pipeline
    settings: RunSettings

    @property
    def requested(self) -> dict[str, Any]:
        """Everything that was asked for and changes a number, as a record says it."""
        return self.settings.describe(self.pipeline.sampling, self.pipeline.asked_precision)

    def find_previous(self, job: Job) -> PreviousResult | None:
        """Return what an earlier run left, where it spares the networks; see `resume`."""
        return find_previous(job, self.pipeline.bundle.sha256, self.requested)

    def describe_plan(self, job: Job, *, resume: bool) -> Outcome:
        """Tell what would be done with a subject, from its files' names and headers alone."""
        name, bundle = job.subject.id, self.pipeline.bundle
        previous = self.find_previous(job) if resume else None
        if previous is not None and previous.is_current:
            return Outcome(name, "skipped", {**previous.record, "status": "skipped"})
        score = bundle.choose_score(self.pipeline.sampling.method, tuple(job.subject.paths))
        notes, warnings = notes_and_warnings(check_headers(job.subject, job.brain_mask))
        record = {
            "record_version": RECORD_VERSION,
            "subject": name,
            "status": "planned",
            "layout": job.subject.layout,
            "inputs": name_inputs(job.subject, job.brain_mask),
            "ignored": describe_ignored(job.subject),
            "modalities": list(score.modalities),
            "outputs": job.names,
            "only_the_mask": previous is not None,
            "bundle": describe_bundle(bundle),
            "settings": {"requested": self.requested},
            "warnings": warnings,
            "notes": notes,
        }
        return Outcome(name, "planned", record, from_map=previous is not None)

    def prepare(
        self,
        job: Job,
        *,
        scans: Scans | None = None,
        threads: int | None = None,
        only_files: bool = False,
    ) -> PreparedJob:
        """Do all of a job that comes before the device; safe in a thread beside `finish`.

        Scans that are given are not read again; without a number of threads all are taken. Where
        `only_files` are wanted and nobody looks at the result itself, it takes less memory.
        """
        scans = scans or read_scans(job.subject, job.brain_mask)
        prepared = self.pipeline.prepare(
            scans.volumes,
            brain_mask=scans.brain_mask,
            skull_strip=self.settings.skull_strip,
            threads=threads or self.pipeline.threads,
        )
        shown = any(EXTRA_OUTPUTS[kind].needs_prepared for kind in job.extras)
        kept = replace(scans, volumes=scans.volumes if shown else {}, brain_mask=None)
        if only_files and not job.extras:
            prepared = prepared.without_surroundings()
        return PreparedJob(job=job, scans=kept, prepared=prepared)

    def infer(self, ready: PreparedJob, *, advance: Progress = silent) -> SegmentedSubject:
        """Segment a prepared subject; nothing is written."""
        settings, scans = self.settings, ready.scans
        result = self.pipeline.infer(
            ready.prepared, options=settings.mask_options, space=settings.space, advance=advance
        )
        if settings.space == "native":
            grid = scans.grids[result.reference]
        else:
            grid = make_grid(result.shown.shape, result.shown.affine, code=TEMPLATE_CODE)
        record = describe_result(
            ready.job.subject,
            result,
            self.pipeline.bundle,
            inputs=scans.inputs,
            requested=self.requested,
            outputs=ready.job.names,
            notes=scans.notes,
            seconds={"read": scans.seconds},
            threads=self.pipeline.threads,
        )
        return self._segmented(ready.job, result, grid=grid, record=record, volumes=scans.volumes)

    def finish(
        self,
        ready: PreparedJob,
        *,
        force: bool | Callable[[], bool],
        advance: Progress = silent,
    ) -> SegmentedSubject:
        """Segment a prepared subject and write its files, all or none; see `write_outputs`."""
        return self.write(ready.job, self.infer(ready, advance=advance), force=force)

    def write(
        self, job: Job, segmented: SegmentedSubject, *, force: bool | Callable[[], bool]
    ) -> SegmentedSubject:
        """Write the files of a segmented subject, all or none; see `write_outputs`."""
        result, clock = segmented.result, Stopwatch()
        with clock.stage("encode"):
            contents = encode_images(
                job.targets,
                anomaly_map=result.anomaly_map,
                mask=result.mask,
                grid=segmented.grid,
            )
            if "table" in job.targets:
                settings = segmented.record["settings"]
                contents["table"] = lesion_table(result, settings=settings)
        before = find_result(job)
        replaced = None if before is None else before.record
        return _write(job, segmented, contents, clock=clock, force=force, replaced=replaced)

    def redo_mask(
        self, job: Job, previous: PreviousResult, *, force: bool | Callable[[], bool]
    ) -> SegmentedSubject:
        """Make a new mask from the map that is there, and write all that follows from it."""
        from mmccd_cli.pipeline import SegmentationResult

        clock = Stopwatch()
        with clock.stage("new_mask"):
            new = remask(
                job.targets,
                previous.record,
                self.settings.mask_options,
                spatial_reference=job.sidecar_fields.get("SpatialReference"),
            )
            record, follows = new.record, set(job.extras) <= set(new.contents)
            reference = record["reference"]
            result = SegmentationResult(
                anomaly_map=new.volume.data,
                mask=new.found.mask,
                brain=new.volume.data > 0,  # the map is positive in the brain, and nowhere else
                reference=reference,
                shown=new.volume if follows else read_image(job.subject, reference)[0],
                lesions=new.found.lesions,
                left_out=new.found.left_out,
                left_out_small=new.found.left_out_small,
                threshold=record["threshold"],
                settings=record["settings"],
                device=record["device"],
                notes=[],
                seconds=record["seconds"],
            )
        segmented = self._segmented(job, result, grid=new.grid, record=record, volumes={})
        return _write(job, segmented, new.contents, clock=clock, force=force)

    def _segmented(
        self,
        job: Job,
        result: SegmentationResult,
        *,
        grid: NiftiGrid,
        record: dict[str, Any],
        volumes: Mapping[str, Volume],
    ) -> SegmentedSubject:
        return SegmentedSubject(
            subject=job.subject,
            targets=job.targets,
            sidecar_fields=job.sidecar_fields,
            result=result,
            grid=grid,
            record=record,
            bundle=self.pipeline.bundle,
            volumes=volumes,
            reports_index=job.reports_index,
        )


def _write(
    job: Job,
    segmented: SegmentedSubject,
    contents: dict[str, bytes],
    *,
    clock: Stopwatch,
    force: bool | Callable[[], bool],
    replaced: Mapping[str, Any] | None = None,
) -> SegmentedSubject:
    """Make the kinds of output that are not among the contents, and write all files of a job.

    Where a result is replaced whose record is given, the new record tells of its files that stay.
    """
    record = segmented.record
    hashes = {
        kind: hashlib.sha256(contents[kind]).hexdigest()
        for kind in ("map", "mask")
        if kind in contents
    }
    record["output_sha256"] = {**record["output_sha256"], **hashes}
    if replaced is not None:
        record |= with_kept(jsonable(record), replaced)
    if "report" in job.extras:
        from mmccd_cli.outputs.report.checks import suspicion

        with clock.stage("report"):
            record["suspicion"] = suspicion(segmented.report_checks)
    for kind in job.extras:
        if kind not in contents:
            with clock.stage(kind):
                contents[kind] = EXTRA_OUTPUTS[kind].make(segmented)
    rounded = {stage: round(value, 3) for stage, value in clock.seconds.items()}
    record = jsonable({**record, "seconds": {**record["seconds"], **rounded}})
    contents["sidecar"] = encode_sidecar(record, job.sidecar_fields)
    files = {job.targets[kind]: content for kind, content in contents.items()}
    if job.makes_folder:
        for folder in {path.parent for path in files}:
            folder.mkdir(parents=True, exist_ok=True)
    write_outputs(files, inputs=job.input_files, force=force)
    return replace(segmented, record=record)


def hold_threads(number: int) -> None:
    """Hold torch in the thread that calls to as many threads as all others.

    The number is partly a property of the thread and partly of the process.
    """
    import torch

    torch.set_num_threads(number)
