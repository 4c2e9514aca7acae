"""A call of `mmccd segment` that is ready to run: it reports on each subject as it finishes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mmccd_cli import __version__
from mmccd_cli.cli.console import JsonConsole, Progress
from mmccd_cli.errors import MmccdError, SomeSubjectsFailed, UsageError, as_mmccd_error

if TYPE_CHECKING:
    from mmccd_cli.cohort.jobs import Job, RunSettings
    from mmccd_cli.cohort.shards import Shard
    from mmccd_cli.cohort.summary import Summary
    from mmccd_cli.outputs.record import Outcome
    from mmccd_cli.pipeline import Pipeline


@dataclass
class Run:
    """One call of the command.

    Args:
        console: Where messages go.
        jobs: What is to be done.
        settings: What was asked for.
        load: Loads the weights.
        force: Whether existing outputs are overwritten.
        resume: Whether results that are up to date are kept.
        many: Whether one subject's failure is reported instead of raised.
        workers: Subjects that are prepared ahead; None chooses.
    """

    console: JsonConsole
    jobs: list[Job]
    settings: RunSettings
    load: Callable[[], Pipeline]
    force: bool
    resume: bool
    many: bool
    workers: int | None = None
    summary: Summary | None = field(default=None, init=False)
    report_dir: Path | None = field(default=None, init=False)
    _since: float = field(default_factory=time.perf_counter, init=False)

    def summarise_in(self, out_dir: Path, shard: Shard | None = None) -> None:
        """Keep a table of all subjects in a folder; a share of a cohort has one of its own."""
        from mmccd_cli.cohort.summary import Summary

        self.summary = Summary(out_dir, str(shard) if shard else None)

    def check(self) -> None:
        """Refuse what cannot be written, before anything is computed."""
        from mmccd_cli.cohort.jobs import check_extras, check_targets

        if self.force and self.resume:
            raise UsageError(
                "--force does everything anew and --resume does not.", next_step="Give one of them."
            )
        check_targets(self.jobs, force=self.force, resume=self.resume)
        if self.summary:
            self.summary.check()
        if self.report_dir:
            from mmccd_cli.outputs.report.cohort import check_cohort_page

            check_cohort_page(self.report_dir)
        check_extras(self.jobs, self.settings)

    def execute(self, failures: Sequence[Outcome]) -> None:
        """Segment all subjects and report on each as it finishes."""
        from mmccd_cli.cohort.run import run_jobs

        outcomes: list[Outcome] = []
        for failure in failures:
            self._record(failure)
            self._report(failure, outcomes)
        try:
            with self.console.progress() as progress:
                for outcome in run_jobs(
                    self.jobs,
                    self._load,
                    self.settings,
                    force=self.force,
                    resume=self.resume,
                    workers=self.workers,
                    began=lambda job: self._begin(job, progress),
                    advance=progress.advance,
                ):
                    self._record(outcome)
                    self._report(outcome, outcomes)
        finally:  # also of a run that is interrupted, the reports that are there get their page
            self._write_cohort_page(outcomes)
        self._finish(outcomes)

    def show_plan(self, failures: Sequence[Outcome]) -> None:
        """Say what each file was taken for and what would be written."""
        from mmccd_cli.cohort.run import plan_outcome

        outcomes: list[Outcome] = []
        for failure in failures:
            self._report(failure, outcomes)
        segmenter = self._load()
        for job in self.jobs:
            outcome = plan_outcome(job, segmenter, self.settings, resume=self.resume)
            self._report(outcome, outcomes)
            if outcome.status == "planned":
                self._explain(job, self.console.info)
        self._finish(outcomes)

    def _load(self) -> Pipeline:
        from mmccd_cli.translation.devices import describe_device

        segmenter = self.load()
        weights, device = segmenter.bundle.config, describe_device(segmenter.device)
        method = segmenter.sampling.method
        self.console.info(f"{weights.name} {weights.version}, {method}, on {device}")
        return segmenter

    def _begin(self, job: Job, progress: Progress) -> None:
        progress.begin(job.subject.id)
        self._explain(job, self.console.detail)

    def _explain(self, job: Job, say: Callable[[str], None]) -> None:
        for kind, path in job.inputs.items():
            reason = job.subject.reasons.get(kind)
            say(f"  {kind}: {path}" + (f", {reason}" if reason else ""))
        for path, reason in job.subject.ignored:
            say(f"  left out: {path} ({reason})")
        for kind, path in job.targets.items():
            say(f"  writes {kind}: {path}")

    def _write_cohort_page(self, outcomes: Sequence[Outcome]) -> None:
        if self.report_dir is None:
            return
        from mmccd_cli.outputs.report.cohort import write_cohort_page

        tables = self.summary.path.parent.glob("summary*.tsv") if self.summary else ()
        inputs = [path for job in self.jobs for path in job.input_files]
        write_cohort_page(self.report_dir, outcomes, inputs=inputs, tables=tables)

    def _record(self, outcome: Outcome) -> None:
        if self.summary:
            self.summary.add(outcome)

    def _report(self, outcome: Outcome, outcomes: list[Outcome]) -> None:
        outcomes.append(outcome)
        if outcome.error is not None:
            self._report_failure(outcome.name, as_mmccd_error(outcome.error))
            return
        if self.console.as_json:
            from mmccd_cli.outputs.record import to_json

            self.console.result(to_json(outcome.record))
        now = time.perf_counter()
        self.console.info(f"{outcome.name}: {_summary(outcome, now - self._since)}")
        self._since = now
        if outcome.status == "skipped" and outcome.record["versions"]["mmccd"] != __version__:
            self.console.note(f"made by mmccd {outcome.record['versions']['mmccd']}")
        if outcome.status == "done":
            for note in outcome.record["warnings"]:
                self.console.note(note)
            for stage, seconds in outcome.record["seconds"].items():
                self.console.detail(f"  {stage}: {seconds:.1f} s")

    def _report_failure(self, name: str, error: MmccdError) -> None:
        if not self.many:
            raise error
        if self.console.as_json:
            from mmccd_cli.outputs.record import describe_failure, to_json

            self.console.result(to_json(describe_failure(name, error)))
        self.console.error(error, about=name)

    def _finish(self, outcomes: Sequence[Outcome]) -> None:
        failed = [(o.name, as_mmccd_error(o.error)) for o in outcomes if o.error is not None]
        if len(outcomes) > 1:
            counts = ", ".join(_counts(outcomes))
            self.console.info(f"{len(outcomes)} subjects: {counts}")
        if not failed:
            return
        if len(outcomes) == 1:
            raise typer.Exit(failed[0][1].exit_code)
        self.console.table([(name, error.message) for name, error in failed])
        raise typer.Exit(SomeSubjectsFailed.exit_code)


def _summary(outcome: Outcome, seconds: float) -> str:
    record = outcome.record
    if outcome.status == "skipped":
        return "skipped, its result is up to date"
    if outcome.status == "planned":
        if outcome.from_map:
            return "would get a new mask from its map"
        return f"would be segmented by its {' and '.join(record['modalities'])}"
    number = len(record["lesions"])
    lesions = f"{number} lesion{'' if number == 1 else 's'}, {record['lesion_volume_ml']:.2f} ml"
    if outcome.from_map:
        return f"{lesions}, new mask from the map that was there"
    return f"{lesions}, written to {record['outputs']['map']} ({seconds:.0f} s)"


def _counts(outcomes: Iterable[Outcome]) -> list[str]:
    statuses = [outcome.status for outcome in outcomes]
    return [
        f"{statuses.count(s)} {s}"
        for s in ("done", "planned", "skipped", "failed")
        if s in statuses
    ]
