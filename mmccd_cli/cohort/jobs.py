"""One subject or many: what is to be done, and what became of it."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmccd_cli.anomaly.mask import MaskOptions
from mmccd_cli.cohort.shards import Shard
from mmccd_cli.config import SamplingConfig, Space, check_space, to_dict
from mmccd_cli.errors import DataError, MmccdError, UsageError
from mmccd_cli.files import resolved
from mmccd_cli.inputs.scans import BRAIN_MASK
from mmccd_cli.inputs.subjects import Subject, find_subject
from mmccd_cli.outputs.extras import EXTRA_OUTPUTS
from mmccd_cli.outputs.images import CORE_OUTPUTS, output_paths
from mmccd_cli.outputs.record import Outcome

LONGEST_NAME = 255
"""Bytes of the longest name of a file on common file systems."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One subject and where its result goes.

    Attributes:
        subject: The files to read.
        targets: Everything that is written: kind of output -> file, those of `CORE_OUTPUTS` first;
            each other kind has a place in `mmccd_cli.outputs.extras.EXTRA_OUTPUTS`. Empty where
            nothing is written.
        brain_mask: A brain mask that was given, or None.
        makes_folder: Whether the outputs' folders are made where they are missing.
        sidecar_fields: What the sidecar says beside the record.
        reports_index: The page over all reports, where the report is one of several.

    Raises:
        UsageError: A kind of output is not known.
    """

    subject: Subject
    targets: Mapping[str, Path]
    brain_mask: Path | None = None
    makes_folder: bool = False
    sidecar_fields: Mapping[str, Any] = field(default_factory=dict)
    reports_index: Path | None = None

    def __post_init__(self) -> None:
        check_extras(self.extras)

    @property
    def extras(self) -> list[str]:
        """Kinds of output that were asked for, beside `CORE_OUTPUTS`."""
        return [kind for kind in self.targets if kind not in CORE_OUTPUTS]

    @property
    def inputs(self) -> dict[str, Path]:
        """Everything that is read."""
        mask = {BRAIN_MASK: self.brain_mask} if self.brain_mask else {}
        return {**self.subject.paths, **mask}

    @property
    def input_files(self) -> list[Path]:
        """Every file that is read, each of a DICOM series too."""
        return [*self.subject.files, *([self.brain_mask] if self.brain_mask else [])]

    @property
    def paths(self) -> tuple[str, ...]:
        """All of its files, as an error may name them."""
        files = {*self.inputs.values(), *self.targets.values(), *self.input_files}
        return tuple(map(str, files))

    @property
    def names(self) -> dict[str, str]:
        """Everything that is written, by kind, without folders."""
        return {kind: path.name for kind, path in self.targets.items()}

    @property
    def exists(self) -> bool:
        """Whether any of the outputs is there already."""
        return any(path.exists() for path in self.targets.values())


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a user can ask for beside the sampling, and that changes a number.

    Attributes:
        threshold: Value of the map above which a voxel belongs to the mask; None as calibrated.
        min_lesion_mm3: Smallest lesion; None as calibrated.
        min_confidence: Least confidence of a lesion; None as calibrated.
        skull_strip: "auto", "never" or a method's name.
        space: Whether the map lies on the reference's grid or on the template's.

    Raises:
        UsageError: One of them is out of its range.
    """

    threshold: float | None = None
    min_lesion_mm3: float | None = None
    min_confidence: float | None = None
    skull_strip: str = "auto"
    space: Space = "native"

    def __post_init__(self) -> None:
        _ = self.mask_options  # which refuses what is out of range
        check_space(self.space)

    @property
    def mask_options(self) -> MaskOptions:
        """The part of them that changes the mask and not the map."""
        return MaskOptions(
            threshold=self.threshold,
            min_lesion_mm3=self.min_lesion_mm3,
            min_confidence=self.min_confidence,
        )

    def describe(self, sampling: SamplingConfig, precision: str = "auto") -> dict[str, Any]:
        """Return all settings as the record holds them and --resume compares them.

        Args:
            sampling: How slices are imagined.
            precision: The precision that was asked for; it is named where it was chosen, so that
                results of different devices may stand side by side where it was not.
        """
        return {
            "sampling": to_dict(sampling),
            **({} if precision == "auto" else {"precision": precision}),
            "skull_strip": self.skull_strip,
            "space": self.space,
            **self.mask_options.describe(),
        }


def check_extras(kinds: Iterable[str], known: Iterable[str] = EXTRA_OUTPUTS) -> None:
    """Refuse kinds of output that cannot be made.

    Raises:
        UsageError: One of them is not known.
    """
    known = list(known)
    if unknown := [kind for kind in kinds if kind not in known]:
        raise UsageError(
            f"There is no kind of output {unknown[0]!r}.", next_step=f"Give {', '.join(known)}."
        )


class FoundSubjects(NamedTuple):
    """What lies in the folders of a cohort.

    Attributes:
        subjects: Those of this share.
        failures: What became of its folders without one, which are called by their names, and
            where names are not unique by their places among the folders, too.
        everyone: The names of all shares' failures and subjects, in this order.
    """

    subjects: list[Subject]
    failures: list[Outcome]
    everyone: list[str]


def find_all_subjects(folders: Iterable[Path], shard: Shard | None = None) -> FoundSubjects:
    """Find the subject in each folder; a folder without one stops none of the others.

    Args:
        folders: Subjects' folders; one that is named twice counts once.
        shard: The share of them that is wanted; None for all. All are looked at even so, because
            two shares must not write to one name.

    Raises:
        UsageError: Two folders hold subjects of one name, so that their results would collide.
    """
    subjects: list[Subject] = []
    failures: list[Outcome] = []
    without: list[str] = []
    folder_of_name: dict[str, Path] = {}
    ids: list[str] = []
    # The first mention of a folder keeps its place.
    unique = list({resolved(path): path for path in reversed(list(folders))}.values())[::-1]
    wanted = set(shard.pick(unique) if shard else unique)
    namesakes = Counter(resolved(folder).name.casefold() for folder in unique)
    places = {folder: place for place, folder in enumerate(unique, start=1)}
    for folder in unique:
        try:
            subject = find_subject(folder)
        except (MmccdError, OSError) as error:
            own = resolved(folder).name or "folder"
            alone = namesakes[own.casefold()] == 1
            without.append(own if alone else f"{own} ({places[folder]})")
            if folder in wanted:
                paths = (str(folder),)
                failures.append(Outcome(without[-1], "failed", error=error, paths=paths))
            continue
        name = subject.id.casefold()  # file systems may not tell upper from lower case
        if name in folder_of_name:
            raise UsageError(
                f"{folder_of_name[name]} and {folder} are both the subject {subject.id}.",
                cause="Results are named after subjects, so one would overwrite the other.",
                next_step="Run the folders above them one by one: "
                + _run_alone(resolved(folder_of_name[name]).parent),
            )
        folder_of_name[name] = folder
        ids.append(subject.id)
        if folder in wanted:
            subjects.append(subject)
    return FoundSubjects(subjects, failures, [*without, *ids])


def _run_alone(above: Path) -> str:
    """Write a command for the subjects of one folder, whose results get a folder of its name."""
    out = shlex.quote(f"OUT/{above.name}")
    return f"mmccd segment {shlex.quote(str(above))}/*/ --out-dir {out}"


def plan_jobs(
    subjects: Iterable[Subject], plan: Callable[[Subject], Job]
) -> tuple[list[Job], list[Outcome]]:
    """Plan a job for each subject; one whose results cannot be named stops none of the others.

    Returns:
        The jobs, and what became of the subjects that have none.
    """
    jobs: list[Job] = []
    failures: list[Outcome] = []
    for subject in subjects:
        try:
            job = plan(subject)
            _check_names(job)
            jobs.append(job)
        except MmccdError as error:
            paths = tuple(map(str, subject.files))
            failures.append(Outcome(subject.id, "failed", error=error, paths=paths))
    return jobs, failures


def plan_job(
    subject: Subject,
    out_dir: Path,
    *,
    extras: Mapping[str, str] | None = None,
    brain_mask: Path | None = None,
) -> Job:
    """Name the outputs of a subject: ID.nii.gz, ID_mask.nii.gz, ID.json and ID_NAME of extras."""
    named = {kind: out_dir / f"{subject.id}_{name}" for kind, name in (extras or {}).items()}
    return Job(
        subject=subject,
        targets={**output_paths(out_dir / f"{subject.id}.nii.gz"), **named},
        brain_mask=brain_mask,
        makes_folder=True,
    )


def _check_names(job: Job) -> None:
    sizes = {len(os.fsencode(name)): name for name in job.names.values()}
    if (longest := max(sizes)) > LONGEST_NAME:
        raise DataError(
            f"The output {sizes[longest]} cannot be written: its name is too long.",
            cause=f"Outputs are named after subjects; it has {longest} bytes, and {LONGEST_NAME} "
            "are the most.",
            next_step="Rename the subject's folder, or segment it alone, with --out map.nii.gz.",
        )
