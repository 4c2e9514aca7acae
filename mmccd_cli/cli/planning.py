"""From the words of a command line to the subjects that are meant and the files they get."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmccd_cli.cli.console import Console
from mmccd_cli.errors import UsageError

if TYPE_CHECKING:
    from mmccd_cli.cohort.jobs import Job
    from mmccd_cli.cohort.shards import Shard
    from mmccd_cli.outputs.record import Outcome

SUFFIX_OF_EXTRA = {"picture": ".png", "report": ".html", "dicom_seg": ".dcm", "dicom_map": ".dcm"}


@dataclass(frozen=True)
class Wish:
    """What a user pointed at.

    Args:
        folders: Subjects' folders.
        t1: T1w image of the only subject.
        t2: T2w image of the only subject.
        flair: FLAIR image of the only subject.
        out: Map of the only subject.
        out_dir: Folder of any number of results.
        extras: Kind -> path of what is written beside the result; see `cohort_extras`.
        brain_mask: Brain mask of the only subject.
        shard: The share of many subjects that is wanted, or None.
        report_dir: Folder of any number of reports, or None.
        as_bids: Whether `out_dir` is the root of BIDS derivatives.

    Raises:
        UsageError: These contradict each other, or something is missing.
    """

    folders: Sequence[Path]
    t1: Path | None = None
    t2: Path | None = None
    flair: Path | None = None
    out: Path | None = None
    out_dir: Path | None = None
    extras: Mapping[str, Path] = field(default_factory=dict)
    brain_mask: Path | None = None
    shard: Shard | None = None
    report_dir: Path | None = None
    as_bids: bool = False

    @property
    def has_files(self) -> bool:
        """Whether the subject was given as separate files."""
        return any(path is not None for path in (self.t1, self.t2, self.flair))

    def __post_init__(self) -> None:
        if not self.folders and not self.has_files:
            raise UsageError(
                "No subject was given.",
                next_step="Give a folder, or --flair, --t2 and --t1 (see mmccd segment --help).",
            )
        if self.folders and self.has_files:
            raise UsageError(
                "A subject was given both as a folder and as files.",
                next_step="Give one of them.",
            )
        if (self.out is None) == (self.out_dir is None):
            raise UsageError(
                "Say where the result goes, once.",
                next_step="Add --out map.nii.gz for one subject, or --out-dir DIR for any number.",
            )
        self._check_single()
        self._check_extras()
        self._check_report_dir()

    def _check_single(self) -> None:
        number = len(self.folders)
        if self.out is not None and number > 1:
            raise UsageError(
                f"--out names one result, but there are {number} subjects.",
                next_step="Give --out-dir DIR instead.",
            )
        if self.brain_mask is not None and number > 1:
            raise UsageError(
                f"{self.brain_mask} is one brain mask, but there are {number} subjects.",
                next_step="Run them one by one, each with its own --skull-strip.",
            )

    def _check_extras(self) -> None:
        for kind, path in self.extras.items():
            suffix, option = SUFFIX_OF_EXTRA[kind], f"--{kind.replace('_', '-')}"
            if path.suffix.lower() != suffix:
                raise UsageError(
                    f"{option} {path} is not named {suffix}.", next_step=f"Name it FILE{suffix}."
                )
            if self.out_dir is not None and path.name != str(path):
                raise UsageError(
                    f"With --out-dir, {option} {path} must be a name without a folder.",
                    next_step=f"Give {option} {path.name}",
                )

    def _check_report_dir(self) -> None:
        if self.report_dir is None:
            return
        if self.out_dir is None:
            raise UsageError(
                "--report-dir is for any number of subjects.",
                next_step="Give --report FILE.html for one subject, or --out-dir DIR.",
            )
        if "report" in self.extras:
            raise UsageError("--report and --report-dir were both given.", next_step="Give one.")

    def plan(self) -> tuple[list[Job], list[Outcome]]:
        """Find the subjects and name their outputs.

        Returns:
            What can be done, and what of many is no usable subject.

        Raises:
            DataError: The only subject is not usable.
        """
        from mmccd_cli.cohort.jobs import Job, find_all_subjects, plan_job
        from mmccd_cli.inputs.subjects import find_subject, subject_from_files
        from mmccd_cli.outputs.images import output_paths

        failures: list[Outcome] = []
        if self.has_files:
            subjects = [subject_from_files(t1=self.t1, t2=self.t2, flair=self.flair)]
        elif self.out is not None:
            subjects = [find_subject(self.folders[0])]
        else:
            subjects, failures = find_all_subjects(self.folders, self.shard)
        if self.out is not None:
            outputs = output_paths(self.out)
            return [Job(subjects[0], outputs, dict(self.extras), self.brain_mask)], []
        assert self.out_dir is not None  # __post_init__ has seen to it
        names = {kind: path.name for kind, path in self.extras.items()}
        if self.as_bids:
            from mmccd_cli.cohort.derivatives import plan_derivatives

            jobs = plan_derivatives(
                subjects, self.out_dir, extras=names, brain_mask=self.brain_mask
            )
        else:
            jobs = [
                plan_job(subject, self.out_dir, extras=names, brain_mask=self.brain_mask)
                for subject in subjects
            ]
        return [self._with_report(job) for job in jobs], failures

    def _with_report(self, job: Job) -> Job:
        if self.report_dir is None:
            return job
        from mmccd_cli.outputs.report.cohort import report_path

        report = report_path(self.report_dir, job.subject.id)
        return replace(job, extras={**job.extras, "report": report})


def choose_shard(text: str, folders: Sequence[Path], console: Console) -> Shard | None:
    """Read --shard, and say what it means; an array's task with one subject does all of it."""
    from mmccd_cli.cohort.shards import parse_shard

    if text == "auto" and len(folders) < 2:
        return None
    shard = parse_shard(text)
    if shard is None:
        return None
    if not folders:
        raise UsageError("--shard divides folders, but a subject was given as files.")
    said = f"{shard.origin} {shard.index} of {shard.count}"
    mine = f"{len(shard.pick(folders))} of {len(folders)} subjects"
    console.info(f"{said}: {mine}" + (" (--shard off takes all)" if text == "auto" else ""))
    return shard


def list_folders(subjects: Sequence[str], listed_in: Path | None, null: bool) -> list[Path]:
    """Collect the subjects' folders from arguments, stdin and a list."""
    if null and "-" not in subjects and listed_in is None:
        raise UsageError("--null says how a list ends its lines, but there is no list.")
    folders: list[Path] = []
    for word in subjects:
        folders += _split(sys.stdin.buffer.read(), null) if word == "-" else [Path(word)]
    if listed_in is not None:
        folders += _split(listed_in.read_bytes(), null)
    if not folders and ("-" in subjects or listed_in is not None):
        raise UsageError("The list of subjects is empty.", next_step="Check what should fill it.")
    return folders


def _split(content: bytes, null: bool) -> list[Path]:
    text = os.fsdecode(content)  # names need not be valid in any encoding
    lines = text.split("\0") if null else text.replace("\r\n", "\n").split("\n")
    return [Path(line) for line in lines if line.strip()]
