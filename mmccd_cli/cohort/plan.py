"""Planning a cohort: which subjects are meant, where their results go, and how it is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmccd_cli.cohort.derivatives import derivatives_planner
from mmccd_cli.cohort.jobs import (
    Job,
    RunSettings,
    check_extras,
    check_targets,
    find_all_subjects,
    plan_job,
    plan_jobs,
)
from mmccd_cli.cohort.shards import Shard
from mmccd_cli.cohort.summary import Summary
from mmccd_cli.errors import UsageError
from mmccd_cli.inputs.subjects import Subject, find_subject, subject_from_files
from mmccd_cli.outputs.images import output_paths
from mmccd_cli.outputs.record import Outcome

SUFFIX_OF_EXTRA = {"picture": ".png", "report": ".html", "dicom_seg": ".dcm", "dicom_map": ".dcm"}


@dataclass(frozen=True, kw_only=True)
class RunPolicy:
    """How a cohort is run; nothing of it changes a number.

    Attributes:
        force: Whether existing outputs are overwritten.
        resume: Whether a subject is skipped whose result has the same inputs, weights and
            settings; where only the mask's settings differ, only its mask is made again.
        workers: Subjects that are prepared ahead, each in a thread; 0 for none, None chooses.

    Raises:
        UsageError: Both `force` and `resume`.
    """

    force: bool = False
    resume: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.force and self.resume:
            raise UsageError(
                "--force does everything anew and --resume does not.", next_step="Give one of them."
            )


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Subjects that are to be segmented, and what is written about all of them.

    Attributes:
        jobs: One for each subject.
        failures: What was meant as a subject and is none.
        table_dir: Folder in which `summary.tsv` is kept; None for no table.
        shard: The share of a larger cohort that this is; its table is named after it.
        report_dir: Folder of the reports, in which an index.html is written; None for none.
        bids_root: Root of the BIDS derivatives that the results become, or None.
    """

    jobs: Sequence[Job]
    failures: Sequence[Outcome] = ()
    table_dir: Path | None = None
    shard: Shard | None = None
    report_dir: Path | None = None
    bids_root: Path | None = None

    @property
    def input_files(self) -> list[Path]:
        """Every file that is read."""
        return [path for job in self.jobs for path in job.input_files]

    @property
    def files(self) -> list[Path]:
        """Every file that is written for a subject, and the table."""
        summary = self.summary()
        targets = [path for job in self.jobs for path in job.targets.values()]
        return [*targets, *([summary.path] if summary else [])]

    def summary(self) -> Summary | None:
        """Return the table of the subjects, if there is to be one."""
        if self.table_dir is None:
            return None
        return Summary(self.table_dir, str(self.shard) if self.shard else None)

    def check(self, settings: RunSettings, policy: RunPolicy) -> None:
        """Refuse, before anything is computed, what cannot or must not be written.

        Raises:
            UsageError: Two results would collide, something exists already, a folder cannot be
                written, or an extra output cannot be made.
        """
        if self.bids_root is not None and settings.space != "native":
            raise UsageError(
                "BIDS derivatives lie in the space of the scans here.",
                next_step="Leave out --space template, or give --out-dir instead of --bids-out.",
            )
        check_targets(self.jobs, force=policy.force, resume=policy.resume)
        if summary := self.summary():
            summary.check()
        if self.report_dir is not None:
            from mmccd_cli.outputs.report.cohort import check_cohort_page

            check_cohort_page(self.report_dir)
        check_extras(self.jobs, settings)


@dataclass(frozen=True, kw_only=True)
class SubjectSelection:
    """Which subjects are meant, and where their results go.

    Exactly one of `out`, `out_dir` and `bids_out` says where.

    Args:
        folders: Subjects' folders.
        files: Modality -> file of the only subject, instead of a folder.
        out: Map of the only subject.
        out_dir: Folder of any number of results.
        bids_out: Root of BIDS derivatives, for any number of results.
        extras: Kind -> path of what is written beside the result, such as
            {"picture": Path("look.png")}; a name without a folder except with `out`.
        brain_mask: Brain mask of the only subject.
        shard: The share of many subjects that is wanted; None for all.
        report_dir: Folder of any number of reports; None for none.

    Raises:
        UsageError: These contradict each other, or something is missing.
    """

    folders: Sequence[Path] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    out: Path | None = None
    out_dir: Path | None = None
    bids_out: Path | None = None
    extras: Mapping[str, Path] = field(default_factory=dict)
    brain_mask: Path | None = None
    shard: Shard | None = None
    report_dir: Path | None = None

    def __post_init__(self) -> None:
        if not self.folders and not self.files:
            raise UsageError(
                "No subject was given.",
                next_step="Give a folder, or --flair, --t2 and --t1 (see mmccd segment --help).",
            )
        if self.folders and self.files:
            raise UsageError(
                "A subject was given both as a folder and as files.",
                next_step="Give one of them.",
            )
        if [self.out, self.out_dir, self.bids_out].count(None) != 2:
            raise UsageError(
                "Say where the result goes, once.",
                next_step="Add --out map.nii.gz for one subject, or --out-dir DIR or --bids-out "
                "DIR for any number.",
            )
        self._check_single()
        self._check_extras()

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
            if self.out is None and path.name != str(path):
                raise UsageError(
                    f"With --out-dir, {option} {path} must be a name without a folder.",
                    next_step=f"Give {option} {path.name}",
                )
        if self.report_dir is None:
            return
        if self.out is not None:
            raise UsageError(
                "--report-dir is for any number of subjects.",
                next_step="Give --report FILE.html for one subject, or --out-dir DIR.",
            )
        if "report" in self.extras:
            raise UsageError("--report and --report-dir were both given.", next_step="Give one.")

    def plan(self) -> Cohort:
        """Find the subjects and name their outputs.

        Raises:
            DataError: The only subject is not usable; of many, it is one of the `failures`.
            UsageError: Two folders hold subjects of one name.
        """
        subjects, failures = self._find()
        if self.out is not None:
            targets = {**output_paths(self.out), **self.extras}
            job = Job(subject=subjects[0], targets=targets, brain_mask=self.brain_mask)
            return Cohort(jobs=[job])
        extras = {kind: path.name for kind, path in self.extras.items()}
        named: dict[str, Any] = {"extras": extras, "brain_mask": self.brain_mask}
        if self.bids_out is not None:
            plan_one = derivatives_planner(subjects, self.bids_out, **named)
        else:
            assert self.out_dir is not None  # __post_init__ has seen to it
            plan_one = partial(plan_job, out_dir=self.out_dir, **named)
        jobs, unnamed = plan_jobs(subjects, lambda subject: self._with_report(plan_one(subject)))
        return Cohort(
            jobs=jobs,
            failures=[*failures, *unnamed],
            table_dir=self.out_dir,
            shard=self.shard,
            report_dir=self.report_dir,
            bids_root=self.bids_out,
        )

    def _find(self) -> tuple[list[Subject], list[Outcome]]:
        if self.files:
            return [subject_from_files(self.files)], []
        if self.out is not None:
            return [find_subject(self.folders[0])], []
        return find_all_subjects(self.folders, self.shard)

    def _with_report(self, job: Job) -> Job:
        if self.report_dir is None:
            return job
        from mmccd_cli.outputs.report.cohort import report_path

        report = report_path(self.report_dir, job.subject.id)
        return replace(job, targets={**job.targets, "report": report})


def plan_bids_cohort(
    subjects: Sequence[Subject],
    missing: Iterable[tuple[str, Exception]],
    out: Path,
    *,
    run: int | None = None,
    extras: Mapping[str, str] | None = None,
    shard: Shard | None = None,
) -> Cohort:
    """Plan the sessions of a BIDS data set, whose results become BIDS derivatives.

    Args:
        subjects: The sessions; see `mmccd_cli.inputs.subjects.find_sessions`.
        missing: Name and error of each session that cannot be used.
        out: Root of the derivatives.
        run: See `derivatives_planner`.
        extras: See `derivatives_planner`.
        shard: The share of the sessions that is wanted; None for all. The first share reports what
            is missing.

    Raises:
        UsageError: The folder is the data set itself, or another one's root.
    """
    if shard is not None:
        mine = set(shard.pick([session_folder(subject) for subject in subjects]))
        subjects = [subject for subject in subjects if session_folder(subject) in mine]
        missing = missing if shard.index == 1 else []
    failures = [Outcome(name, "failed", error=error) for name, error in missing]
    planner = derivatives_planner(subjects, out, run=run, extras=extras)
    jobs, unnamed = plan_jobs(subjects, planner)
    return Cohort(jobs=jobs, failures=[*failures, *unnamed], bids_root=out)


def session_folder(subject: Subject) -> Path:
    """Return the folder that tells a BIDS session from all others.

    A folder and not an image: in a git-annex two images may be one and the same.
    """
    return next(iter(subject.paths.values())).parent
