"""The program as a Python class: what `mmccd segment` does, without a shell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

from mmccd_cli.cohort.jobs import (
    Job,
    RunSettings,
    check_extras,
    check_targets,
    find_all_subjects,
    plan_job,
)
from mmccd_cli.cohort.run import finish_job, infer_job, prepare_job, run_jobs
from mmccd_cli.cohort.summary import Summary
from mmccd_cli.config import METHODS, PRESETS, choose_sampling
from mmccd_cli.errors import UsageError
from mmccd_cli.inputs.subjects import Subject, find_subject, subject_from_files
from mmccd_cli.outputs.images import output_paths
from mmccd_cli.outputs.record import Outcome
from mmccd_cli.outputs.segmented import SegmentedSubject
from mmccd_cli.pipeline import Pipeline
from mmccd_cli.weights.bundle import load_bundle
from mmccd_cli.weights.resolve import resolve_weights

AnyPath = str | PathLike[str]


class Segmenter(Pipeline):
    """A bundle on a device, ready for any number of subjects.

    `segment` takes volumes in memory, `segment_files` one subject's files and `segment_cohort`
    many. Every error is one of `mmccd_cli.errors`, whose `next_step` says what to do.

    Example:
        >>> from mmccd_cli import Segmenter
        >>> segmenter = Segmenter.from_pretrained("glioma-compact", device="cpu", preset="fast")
        >>> finished = segmenter.segment_files(subject, out=out_dir / "map.nii.gz")
        >>> finished.result.anomaly_map.dtype
        dtype('float32')
        >>> sorted(path.name for path in out_dir.iterdir())
        ['map.json', 'map.nii.gz', 'map_mask.nii.gz']
        >>> finished.record["lesion_volume_ml"] > 0
        True
    """

    @classmethod
    def from_pretrained(
        cls,
        weights: AnyPath | None = None,
        *,
        device: str = "auto",
        preset: str | None = None,
        method: str | None = None,
        batch_size: int | None = None,
        precision: str = "auto",
        offline: bool = False,
        cache_dir: AnyPath | None = None,
        **sampling: Any,
    ) -> Segmenter:
        """Find weights, verify them and load them.

        Args:
            weights: A bundle's name, its folder, or "org/repo[@revision]" on the Hub; None for
                the bundle that mmccd comes with.
            device: "auto", "cpu", "cuda[:N]" or "mps".
            preset: "fast", "balanced" or "paper"; None as the bundle proposes.
            method: "mmccd" or "cyclic-unet" instead of the preset's.
            batch_size: Slices a pass; None chooses by free memory. Does not change the result.
            precision: "auto", "fp32", "bf16" or "fp16": arithmetic of the networks.
            offline: Whether the network must not be used.
            cache_dir: Folder of downloaded weights; None for the default.
            **sampling: Further fields of `mmccd_cli.config.SamplingConfig`, such as `seed`.

        Raises:
            WeightsError: There are no such weights, or they are damaged.
            ComputeError: The device cannot be used.
            UsageError: The sampling settings do not fit together.
        """
        for name, value, known in (("preset", preset, PRESETS), ("method", method, METHODS)):
            if value is not None and value not in known:
                raise UsageError(f"There is no {name} {value!r}; there are {', '.join(known)}.")
        spec = None if weights is None else str(weights)
        cache = None if cache_dir is None else Path(cache_dir)
        bundle = load_bundle(resolve_weights(spec, offline=offline, cache_dir=cache))
        chosen = choose_sampling(bundle.config.sampling, preset, method=method, **sampling)
        return cls(
            bundle, device=device, sampling=chosen, batch_size=batch_size, precision=precision
        )

    def segment_files(
        self,
        subject: AnyPath | Subject | None = None,
        *,
        t1: AnyPath | None = None,
        t2: AnyPath | None = None,
        flair: AnyPath | None = None,
        out: AnyPath | None = None,
        extras: dict[str, AnyPath] | None = None,
        brain_mask: AnyPath | None = None,
        settings: RunSettings = RunSettings(),  # noqa: B008  # frozen
        force: bool = False,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> SegmentedSubject:
        """Segment the files of one subject.

        Args:
            subject: Its folder, or what `find_subject` returned; instead of the three files.
            t1: T1w without contrast agent.
            t2: T2w.
            flair: FLAIR.
            out: Anomaly map; mask and sidecar come beside it. None writes nothing.
            extras: Kind -> path of further files, such as {"picture": "look.png"}.
            brain_mask: A brain mask in the reference's space.
            settings: Threshold, smallest lesion, skull stripping and space.
            force: Whether existing outputs are overwritten; an input never is.
            advance: Called with passes done and their number.

        Returns:
            `result` with the arrays, and `record` as the sidecar holds it.

        Raises:
            MmccdError: See `mmccd_cli.errors`; nothing is written then.
        """
        found = _subject(subject, t1, t2, flair)
        mask = None if brain_mask is None else Path(brain_mask)
        named = {kind: Path(path) for kind, path in (extras or {}).items()}
        outputs = output_paths(Path(out) if out is not None else Path(f"{found.id}.nii.gz"))
        job = Job(found, outputs, named, mask)
        if out is not None:
            check_targets([job], force=force, resume=False)
            check_extras([job], settings)
        elif named:
            raise UsageError("extras are written beside out, which is None")
        ready = prepare_job(job, self, settings)
        if out is None:
            return infer_job(ready, self, settings, advance=advance)
        return finish_job(ready, self, settings, force=force, advance=advance)

    def segment_cohort(
        self,
        folders: Iterable[AnyPath],
        out_dir: AnyPath,
        *,
        extras: dict[str, str] | None = None,
        settings: RunSettings = RunSettings(),  # noqa: B008  # frozen
        force: bool = False,
        resume: bool = False,
        workers: int | None = None,
    ) -> Iterator[Outcome]:
        """Segment many subjects; one that fails stops none of the others.

        Args:
            folders: One folder a subject.
            out_dir: ID.nii.gz, ID_mask.nii.gz and ID.json go here, and summary.tsv.
            extras: Kind -> name, such as {"picture": "look.png"} for ID_look.png.
            settings: Threshold, smallest lesion, skull stripping and space.
            force: Whether existing outputs are overwritten; an input never is.
            resume: Whether results that are up to date are kept.
            workers: Subjects that are prepared ahead, each in a thread; None chooses.

        Yields:
            An outcome for each subject, as soon as its files are written.

        Raises:
            UsageError: Two results would collide, or an output exists already.
        """
        subjects, failures = find_all_subjects(Path(folder) for folder in folders)
        jobs = [plan_job(subject, Path(out_dir), extras=extras) for subject in subjects]
        check_targets(jobs, force=force, resume=resume)
        check_extras(jobs, settings)
        summary = Summary(Path(out_dir))
        summary.check()
        done = run_jobs(jobs, lambda: self, settings, force=force, resume=resume, workers=workers)
        for outcome in chain(failures, done):
            summary.add(outcome)
            yield outcome


def _subject(
    subject: AnyPath | Subject | None,
    t1: AnyPath | None,
    t2: AnyPath | None,
    flair: AnyPath | None,
) -> Subject:
    given = [None if path is None else Path(path) for path in (t1, t2, flair)]
    if subject is not None and any(given):
        raise UsageError("A subject was given both as a folder and as files.")
    if subject is None:
        return subject_from_files(t1=given[0], t2=given[1], flair=given[2])
    return subject if isinstance(subject, Subject) else find_subject(Path(subject))
