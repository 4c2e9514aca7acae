"""What a command shows of a cohort: progress, an outcome for each subject, and a summary."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import typer

from mmccd_cli import __version__
from mmccd_cli.cli.console import JsonConsole
from mmccd_cli.errors import MmccdError, SomeSubjectsFailed, as_mmccd_error

if TYPE_CHECKING:
    from mmccd_cli.cohort.jobs import Job, RunSettings
    from mmccd_cli.cohort.plan import Cohort, RunPolicy
    from mmccd_cli.outputs.record import Outcome
    from mmccd_cli.pipeline import Pipeline


@dataclass(kw_only=True)
class CohortRun:
    """One call of a command that segments.

    Args:
        console: Where messages go.
        cohort: What is to be done.
        settings: What was asked for.
        policy: What is overwritten or kept.
        load: Loads the weights.
        many: Whether one subject's failure is reported instead of raised.
    """

    console: JsonConsole
    cohort: Cohort
    settings: RunSettings
    policy: RunPolicy
    load: Callable[[], Pipeline]
    many: bool
    _since: float = field(default_factory=time.perf_counter, init=False)

    def execute(self, *, dry_run: bool = False) -> None:
        """Segment all subjects, or say what would be done, and report on each as it finishes."""
        from mmccd_cli.cohort.run import Observer, preview_cohort, segment_cohort

        job_of = {job.subject.id: job for job in self.cohort.jobs}
        reported: list[Outcome] = []
        with self.console.progress() as progress:

            def began(job: Job) -> None:
                progress.begin(job.subject.id)
                self._explain(job, self.console.detail)

            if dry_run:
                outcomes = preview_cohort(
                    self.cohort, self._load, settings=self.settings, policy=self.policy
                )
            else:
                outcomes = segment_cohort(
                    self.cohort,
                    self._load,
                    settings=self.settings,
                    policy=self.policy,
                    observer=Observer(began=began, advance=progress.advance),
                )
            with contextlib.closing(outcomes):
                for outcome in outcomes:
                    self._report(outcome, reported)
                    if outcome.status == "planned":
                        self._explain(job_of[outcome.name], self.console.info)
        self._finish(reported)

    def _load(self) -> Pipeline:
        from mmccd_cli.translation.devices import describe_device

        segmenter = self.load()
        weights, device = segmenter.bundle.config, describe_device(segmenter.device)
        method = segmenter.sampling.method
        self.console.info(f"{weights.name} {weights.version}, {method}, on {device}")
        return segmenter

    def _explain(self, job: Job, say: Callable[[str], None]) -> None:
        for kind, path in job.inputs.items():
            reason = job.subject.reasons.get(kind)
            say(f"  {kind}: {path}" + (f", {reason}" if reason else ""))
        for path, reason in job.subject.ignored:
            say(f"  left out: {path} ({reason})")
        for kind, path in job.targets.items():
            say(f"  writes {kind}: {path}")

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
