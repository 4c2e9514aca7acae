"""Planning a cohort: which subjects are meant, where their results go, and how it is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmccd_cli.cohort.derivatives import derivatives_planner
from mmccd_cli.cohort.jobs import (
    FoundSubjects,
    Job,
    RunSettings,
    check_extras,
    find_all_subjects,
    plan_job,
    plan_jobs,
)
from mmccd_cli.cohort.shards import Shard
from mmccd_cli.cohort.summary import Summary
from mmccd_cli.errors import UsageError
from mmccd_cli.files import refuse_to_overwrite
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
        workers: Subjects that are prepared ahead, each in a thread; 0 for none, None chooses. With
            the scheduler "auto", worker processes instead.
        scheduler: Address or file of a Dask scheduler whose workers segment; "auto" starts workers
            on this computer, None segments in this process.

    Raises:
        UsageError: Both `force` and `resume`.
    """

    force: bool = False
    resume: bool = False
    workers: int | None = None
    scheduler: str | None = None

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
        summary: The table of the subjects, or None.
        report_dir: Folder of the reports, in which an index.html is written; None for none.
        bids_root: Root of the BIDS derivatives that the results become, or None.
    """

    jobs: Sequence[Job]
    failures: Sequence[Outcome] = ()
    summary: Summary | None = None
    report_dir: Path | None = None
    bids_root: Path | None = None

    def check(self, settings: RunSettings, policy: RunPolicy) -> None:
        """Refuse, before anything is computed, what cannot or must not be written.

        Raises:
            UsageError: Two results would collide, something exists already, a folder cannot be
                written, an extra output cannot be made, or there is no such skull stripper.
        """
        if not all(job.brain_mask for job in self.jobs):  # a given mask wins
            _check_skull_strip(settings.skull_strip)
        if self.bids_root is not None and settings.space != "native":
            raise UsageError(
                "BIDS derivatives lie in the space of the scans here.",
                next_step="Leave out --space template, or give --out-dir instead of --bids-out.",
            )
        self._check_targets(policy)
        if self.summary is not None:
            self.summary.check()
        if self.report_dir is not None:
            from mmccd_cli.outputs.report.cohort import check_cohort_page

            check_cohort_page(self.report_dir)
        if {"dicom_seg", "dicom_map"} & {kind for job in self.jobs for kind in job.targets}:
            self._check_dicom(settings)

    def _check_targets(self, policy: RunPolicy) -> None:
        targets = [path for job in self.jobs for path in job.targets.values()]
        twice = [path for path, count in Counter(targets).items() if count > 1]
        if twice:
            raise UsageError(
                f"Two results would be written to {twice[0]}.",
                cause="One subject is named like another one's mask, or the picture like the map.",
                next_step="Give another name, or run the subjects with an --out-dir each.",
            )
        refuse_to_overwrite(
            targets,
            [path for job in self.jobs for path in job.input_files],  # no job's may be overwritten
            force=policy.force or policy.resume,  # to resume, they are looked at one by one
            make_folders=all(job.makes_folder for job in self.jobs),
            next_step="Add --resume to keep what is up to date, or --force to overwrite.",
        )

    def _check_dicom(self, settings: RunSettings) -> None:
        from mmccd_cli.outputs.dicom_seg import check_available

        check_available()
        for subject in (job.subject for job in self.jobs):
            if next(iter(subject.paths)) not in subject.series:
                raise UsageError(
                    f"{subject.id} was not given as DICOM, so there is no series that a DICOM "
                    "segmentation could refer to.",
                    next_step="Leave out --dicom-seg and --dicom-map, or give the DICOM series.",
                )
        if settings.space != "native":
            raise UsageError(
                "A DICOM segmentation lies on the slices of its series, not on the template.",
                next_step="Leave out --space template, or --dicom-seg and --dicom-map.",
            )


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
        check_extras(self.extras, SUFFIX_OF_EXTRA)
        for wrong, message, next_step in self._faults():
            if wrong:
                raise UsageError(message, next_step=next_step)

    def _faults(self) -> Iterator[tuple[bool, str, str]]:
        """Whether it has each fault that there is, what is wrong then, and what helps."""
        number, one_result = len(self.folders), self.out is not None
        yield (
            not self.folders and not self.files,
            "No subject was given.",
            "Give a folder, or --flair, --t2 and --t1 (see mmccd segment --help).",
        )
        yield (
            bool(self.folders and self.files),
            "A subject was given both as a folder and as files.",
            "Leave the folder out, and name all files; or give the folder alone.",
        )
        yield (
            [self.out, self.out_dir, self.bids_out].count(None) != 2,
            "Say where the result goes, once.",
            "Add --out map.nii.gz for one subject, or --out-dir DIR or --bids-out DIR for any "
            "number.",
        )
        yield (
            one_result and number > 1,
            f"--out names one result, but there are {number} subjects.",
            "Give --out-dir DIR instead.",
        )
        yield (
            self.brain_mask is not None and number > 1,
            f"{self.brain_mask} is one brain mask, but there are {number} subjects.",
            "Run them one by one, each with its own --skull-strip.",
        )
        for kind, path in self.extras.items():
            suffix, option = SUFFIX_OF_EXTRA[kind], f"--{kind.replace('_', '-')}"
            yield (
                path.suffix.lower() != suffix,
                f"{option} {path} is not named {suffix}.",
                f"Name it FILE{suffix}.",
            )
            yield (
                not one_result and path.name != str(path),
                f"With --out-dir, {option} {path} must be a name without a folder.",
                f"Give {option} {path.name}",
            )
        yield (
            self.report_dir is not None and one_result,
            "--report-dir is for any number of subjects.",
            "Give --report FILE.html for one subject, or --out-dir DIR.",
        )
        yield (
            self.report_dir is not None and "report" in self.extras,
            "--report and --report-dir were both given.",
            "Give one.",
        )

    def plan(self) -> Cohort:
        """Find the subjects and name their outputs.

        Raises:
            DataError: The only subject is not usable; of many, it is one of the `failures`.
            UsageError: Two folders hold subjects of one name.
        """
        subjects, failures, everyone = self._find()
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
            summary=None if self.out_dir is None else Summary(self.out_dir, self.shard, everyone),
            report_dir=self.report_dir or _folder_of_index(jobs),
            bids_root=self.bids_out,
        )

    def _find(self) -> FoundSubjects:
        if self.files:
            return FoundSubjects([subject_from_files(self.files)], [], [])
        if self.out is not None:
            return FoundSubjects([find_subject(self.folders[0])], [], [])
        return find_all_subjects(self.folders, self.shard)

    def _with_report(self, job: Job) -> Job:
        if self.report_dir is None:
            return job
        from mmccd_cli.outputs.report.cohort import COHORT_PAGE, report_path

        report = report_path(self.report_dir, job.subject.id)
        index = self.report_dir / COHORT_PAGE
        return replace(job, targets={**job.targets, "report": report}, reports_index=index)


def plan_bids_cohort(
    subjects: Sequence[Subject],
    missing: Iterable[tuple[str, Exception]],
    out: Path,
    *,
    run: int | None = None,
    extras: Mapping[str, str] | None = None,
    shard: Shard | None = None,
    source: Path | None = None,
) -> Cohort:
    """Plan the sessions of a BIDS data set, whose results become BIDS derivatives.

    Run and extras are those of `derivatives_planner`. Of several shares the first reports what is
    missing; its errors may name the `source`, the root of the data set.

    Raises:
        UsageError: The folder is the data set itself, or another one's root.
    """
    if shard is not None:
        mine = set(shard.pick([session_folder(subject) for subject in subjects]))
        subjects = [subject for subject in subjects if session_folder(subject) in mine]
        missing = missing if shard.index == 1 else []
    paths = () if source is None else (str(source),)
    failures = [Outcome(name, "failed", error=error, paths=paths) for name, error in missing]
    planner = derivatives_planner(subjects, out, run=run, extras=extras)
    jobs, unnamed = plan_jobs(subjects, planner)
    return Cohort(
        jobs=jobs,
        failures=[*failures, *unnamed],
        report_dir=_folder_of_index(jobs),
        bids_root=out,
    )


def _check_skull_strip(method: str) -> None:
    if method in ("auto", "never"):  # which every installation has
        return
    from mmccd_cli.preprocessing.skull_strippers import check_method

    check_method(method)


def _folder_of_index(jobs: Iterable[Job]) -> Path | None:
    """Return where the page over all reports is written; None where there is none."""
    return next((job.reports_index.parent for job in jobs if job.reports_index), None)


def session_folder(subject: Subject) -> Path:
    """Return the folder that tells a BIDS session from all others.

    A folder and not an image: in a git-annex two images may be one and the same.
    """
    return next(iter(subject.paths.values())).parent
