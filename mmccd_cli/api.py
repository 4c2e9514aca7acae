"""The program as a Python class: what `mmccd segment` does, without a shell."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from mmccd_cli.cohort.jobs import Job, RunSettings
from mmccd_cli.cohort.plan import Cohort, RunPolicy, SubjectSelection
from mmccd_cli.cohort.run import segment_cohort
from mmccd_cli.cohort.steps import JobSteps
from mmccd_cli.config import METHODS, MODALITIES, PRESETS, choose_sampling
from mmccd_cli.errors import UsageError
from mmccd_cli.inputs.nifti import finite_values
from mmccd_cli.inputs.scans import check_head
from mmccd_cli.inputs.subjects import Subject, find_subject, subject_from_files
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.outputs.images import output_paths
from mmccd_cli.outputs.record import Outcome
from mmccd_cli.outputs.segmented import SegmentedSubject
from mmccd_cli.pipeline import Pipeline, SegmentationResult
from mmccd_cli.progress import Progress, silent
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
        ['map.json', 'map.nii.gz', 'map_lesions.tsv', 'map_mask.nii.gz']
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
        threads: int | None = None,
        begin: bool = True,
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
            threads: Threads of the CPU; None leaves torch's number, 0 takes all that there are.
            begin: Whether torch is imported and the device tried now, and not when they are first
                needed; see `Pipeline.begin`.
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
        folder = resolve_weights(spec, offline=offline, cache_dir=cache)
        bundle = load_bundle(folder, unchecked=True)
        chosen = choose_sampling(bundle.config.sampling, preset, method=method, **sampling)
        bundle.check_steps(chosen)
        segmenter = cls(
            bundle,
            device=device,
            sampling=chosen,
            batch_size=batch_size,
            precision=precision,
            threads=threads,
        )
        if begin:
            segmenter.begin()
        return segmenter

    def segment(self, volumes: Mapping[str, Volume], **options: Any) -> SegmentationResult:
        """Segment volumes in memory; see `Pipeline.segment`.

        Args:
            volumes: Modality -> volume, as of files: voxels that are not finite become 0, which a
                note says, and what cannot be a head is refused.
            **options: Those of `Pipeline.segment`.

        Raises:
            UsageError: They are not volumes with the names of modalities.
            DataError: One of them cannot be a head; see `Pipeline.segment` for more.
        """
        _check_named(volumes)
        if (brain_mask := options.get("brain_mask")) is not None:
            example = "Give a mmccd_cli.Volume, on any grid in the reference's space."
            _check_volume("brain_mask", brain_mask, next_step=example)
        notes: list[str] = []
        mended = {
            modality: Volume(finite_values(modality, volume.data, notes=notes), volume.affine)
            for modality, volume in volumes.items()
        }
        for modality, volume in mended.items():
            check_head(modality, volume)
        result = super().segment(mended, **options)
        return replace(result, notes=[*notes, *result.notes])

    def segment_files(
        self,
        subject: AnyPath | Subject | Mapping[str, AnyPath],
        *,
        out: AnyPath | None = None,
        extras: Mapping[str, AnyPath] | None = None,
        brain_mask: AnyPath | None = None,
        settings: RunSettings | None = None,
        force: bool = False,
        advance: Progress = silent,
    ) -> SegmentedSubject:
        """Segment the files of one subject.

        Args:
            subject: Its folder, or its files as {"FLAIR": path, "T2w": path, "T1w": path} or any
                of them, or what `find_subject` returned.
            out: Anomaly map; mask, sidecar and table come beside it. None writes nothing.
            extras: Kind -> path of further files, such as {"picture": "look.png"}.
            brain_mask: A brain mask in the reference's space.
            settings: Threshold, smallest lesion, skull stripping and space; None for the defaults.
            force: Whether existing outputs are overwritten; an input never is.
            advance: Called with passes done and their number.

        Returns:
            `result` with the arrays, and `record` as the sidecar holds it.

        Raises:
            MmccdError: See `mmccd_cli.errors`; nothing is written then.
        """
        core = {} if out is None else output_paths(Path(out))
        job = Job(
            subject=_subject(subject),
            targets={kind: Path(path) for kind, path in {**core, **(extras or {})}.items()},
            brain_mask=None if brain_mask is None else Path(brain_mask),
        )
        if out is None and extras:
            raise UsageError("Extras are written beside the anomaly map, but out is None.")
        settings = settings or RunSettings()
        Cohort(jobs=[job]).check(settings, RunPolicy(force=force))
        steps = JobSteps(pipeline=self, settings=settings)
        prepared = steps.prepare(job)
        if out is None:
            return steps.infer(prepared, advance=advance)
        return steps.finish(prepared, force=force, advance=advance)

    def segment_cohort(
        self,
        folders: Iterable[AnyPath],
        out_dir: AnyPath,
        *,
        extras: Mapping[str, str] | None = None,
        settings: RunSettings | None = None,
        force: bool = False,
        resume: bool = False,
        workers: int | None = None,
    ) -> Generator[Outcome, None, None]:
        """Segment many subjects; one that fails stops none of the others.

        Args:
            folders: One folder a subject.
            out_dir: ID.nii.gz and what goes with it come here, and summary.tsv.
            extras: Kind -> name, such as {"picture": "look.png"} for ID_look.png.
            settings: Threshold, smallest lesion, skull stripping and space; None for the defaults.
            force: Whether existing outputs are overwritten; an input never is.
            resume: Whether results that are up to date are kept.
            workers: Subjects that are prepared at a time, each in a thread, and on a CPU segmented
                there; None chooses.

        Yields:
            An outcome for each subject, as soon as its files are written.

        Raises:
            UsageError: Two results would collide, or an output exists already; or `folders` is one
                folder, and no list.
        """
        if isinstance(folders, str | PathLike):
            raise UsageError(
                f"One folder alone is no cohort: {folders}",
                next_step="Give a list of subjects' folders.",
            )
        found = [Path(folder) for folder in folders]
        if not found:
            return
        selection = SubjectSelection(
            folders=found,
            out_dir=Path(out_dir),
            extras={kind: Path(name) for kind, name in (extras or {}).items()},
        )
        yield from segment_cohort(
            selection.plan(),
            lambda: self,
            settings=settings or RunSettings(),
            policy=RunPolicy(force=force, resume=resume, workers=workers),
        )


def _subject(given: AnyPath | Subject | Mapping[str, AnyPath]) -> Subject:
    if isinstance(given, Subject):
        return given
    if isinstance(given, Mapping):
        return subject_from_files({name: Path(path) for name, path in given.items()})
    return find_subject(Path(given))


def _check_named(volumes: object) -> None:
    """Refuse anything but modality -> volume."""
    example = 'Name each volume, as in {"FLAIR": Volume(data, affine)}, with mmccd_cli.Volume.'
    if not isinstance(volumes, Mapping):
        kind = type(volumes).__name__
        raise UsageError(f"Which scan this {kind} is cannot be told.", next_step=example)
    for modality, volume in volumes.items():
        if modality not in MODALITIES:
            known = ", ".join(MODALITIES)
            raise UsageError(
                f"There is no modality {modality}.", next_step=f"Name the volumes {known}."
            )
        _check_volume(modality, volume, next_step=example)


def _check_volume(name: str, given: object, *, next_step: str) -> None:
    if not isinstance(given, Volume):
        kind = type(given).__name__
        raise UsageError(f"{name} is no volume but {kind}.", next_step=next_step)
