"""`mmccd bids`: a BIDS data set in, a BIDS derivative data set out, called like any BIDS App."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import Console, JsonConsole
from mmccd_cli.cli.planning import choose_shard
from mmccd_cli.cli.running import Run
from mmccd_cli.errors import DataError, UsageError

if TYPE_CHECKING:
    from mmccd_cli.cohort.jobs import Job
    from mmccd_cli.inputs.bids import BidsFilter
    from mmccd_cli.outputs.record import Outcome

SELECTION, OUTPUT = "Selection", "Output"
_LABELS = ("--participant-label", "--participant_label", "--session-id", "--session-label")


class _BidsAppCommand(TyperCommand):
    """A command whose labels may follow their option in a row, as BIDS Apps are called."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, repeat_options(args, _LABELS))


def repeat_options(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Turn `--label 01 02` into `--label 01 --label 02`."""
    written: list[str] = []
    current = ""
    for word in words:
        if word.startswith("-"):
            current = word if word in names else ""
        elif current and written[-1] != current:
            written.append(current)
        written.append(word)
    return written


@command
def bids(
    *,
    bids_dir: Annotated[Path, typer.Argument(help="Root of the BIDS data set.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Root of the derivatives.")],
    level: Annotated[
        Literal["participant", "group"],
        typer.Argument(
            metavar="participant|group",
            help="participant segments; group writes summary.tsv of all that is there.",
        ),
    ],
    participant_label: Annotated[
        list[str] | None,
        typer.Option(
            "--participant-label",
            "--participant_label",
            metavar="LABEL...",
            help="Only these participants, with or without sub-. By default all.",
            rich_help_panel=SELECTION,
        ),
    ] = None,
    session_id: Annotated[
        list[str] | None,
        typer.Option(
            "--session-id",
            "--session-label",
            metavar="LABEL...",
            help="Only these sessions, with or without ses-. By default all, each on its own.",
            rich_help_panel=SELECTION,
        ),
    ] = None,
    run: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Take this run of images that have several, and name it in the outputs. By "
            "default the first.",
            rich_help_panel=SELECTION,
        ),
    ] = None,
    bids_filter_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help='Which acquisition is meant: {"t1w": {"acquisition": "mprage"}}.',
            rich_help_panel=SELECTION,
        ),
    ] = None,
    shard: Annotated[
        str,
        typer.Option(
            metavar="auto|I/N|off",
            help="Do the I-th of N shares of the sessions; auto asks the variables of a SLURM "
            "array, unless participants are named.",
            rich_help_panel=SELECTION,
        ),
    ] = "auto",
    picture: Annotated[
        bool,
        typer.Option(
            "--picture", help="Also draw each result, in figures/.", rich_help_panel=OUTPUT
        ),
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Also write a page about each result, in figures/.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    policy: options.RunPolicy,
    sampling: options.SamplingOptions,
    mask: options.MaskChoice,
    skull_strip: Annotated[
        str,
        typer.Option(
            metavar="auto|never|METHOD",
            help="auto strips what is not stripped.",
            rich_help_panel=options.METHOD,
        ),
    ] = "auto",
    model: options.ModelOptions,
    console: JsonConsole,
) -> None:
    """Segment a BIDS data set; the results are a BIDS derivative data set."""
    strip, brain_mask = options.parse_skull_strip(skull_strip)
    if brain_mask is not None:
        raise UsageError(
            f"{brain_mask} is one brain mask, and a data set has many subjects.",
            next_step="Use mmccd segment --skull-strip MASK --bids-out DIR, one by one.",
        )
    if level == "group":
        _summarise(out, console)
        return
    from mmccd_cli.cohort.derivatives import write_root
    from mmccd_cli.cohort.jobs import RunSettings
    from mmccd_cli.inputs.bids import BidsFilter, read_filter

    queries = read_filter(bids_filter_file) if bids_filter_file else {}
    participants, sessions = tuple(participant_label or ()), tuple(session_id or ())
    wanted = BidsFilter(participants=participants, sessions=sessions, run=run, queries=queries)
    share = "off" if shard == "auto" and participants else shard
    extras = {"picture": "anomaly.png"} if picture else {}
    extras |= {"report": "report.html"} if report else {}
    jobs, failures = _plan(bids_dir, out, wanted, share, extras, console)
    settings = RunSettings(mask.threshold, mask.min_lesion_mm3, strip)
    load = partial(model.load, **sampling.describe())
    running = Run(console, jobs, settings, load, policy.force, policy.resume, many=True)
    running.check()
    if policy.dry_run:
        running.show_plan(failures)
        return
    if jobs:
        write_root(out, [job.subject for job in jobs])
    running.execute(failures)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bids", cls=_BidsAppCommand)(bids)


def _plan(
    bids_dir: Path,
    out: Path,
    wanted: BidsFilter,
    shard: str,
    extras: dict[str, str],
    console: Console,
) -> tuple[list[Job], list[Outcome]]:
    """Find the sessions and name their outputs."""
    from mmccd_cli.cohort.derivatives import plan_derivatives
    from mmccd_cli.inputs.subjects import find_sessions
    from mmccd_cli.outputs.record import Outcome

    subjects, missing = find_sessions(bids_dir, wanted)
    # A session's folder and not its images: in a git-annex two images may be one and the same.
    folders = [next(iter(subject.paths.values())).parent for subject in subjects]
    if share := choose_shard(shard, folders, console):
        mine = set(share.pick(folders))
        subjects = [s for s, folder in zip(subjects, folders, strict=True) if folder in mine]
        missing = missing if share.index == 1 else []
    jobs = plan_derivatives(subjects, out, run=wanted.run, extras=extras)
    return jobs, [Outcome(name, "failed", error=error) for name, error in missing]


def _summarise(out: Path, console: Console) -> None:
    """Write the table of all results, whichever call or cluster node made them."""
    from mmccd_cli.cohort.derivatives import find_records
    from mmccd_cli.cohort.summary import Summary
    from mmccd_cli.outputs.record import Outcome

    records = find_records(out)
    if not records:
        raise DataError(
            f"{out} holds no result of mmccd.",
            next_step="Run the level participant first.",
        )
    summary = Summary(out)
    summary.check()
    # Named after the map, which tells runs apart.
    names = [record["outputs"]["map"].partition("_space-")[0] for record in records]
    summary.add(
        *(Outcome(name, "done", record) for name, record in zip(names, records, strict=True))
    )
    console.info(f"{len(records)} results: {summary.path}")
