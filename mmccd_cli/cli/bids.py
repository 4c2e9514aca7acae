"""`mmccd bids`: a BIDS data set in, a BIDS derivative data set out, called like any BIDS App."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import JsonConsole, counted, switch
from mmccd_cli.cli.group import end_partial, show_group
from mmccd_cli.cli.help import PlainCommand
from mmccd_cli.cli.options import OUTPUT, method_option
from mmccd_cli.cli.outcomes import choose_shard, run_cohort
from mmccd_cli.cli.start import begin_imports
from mmccd_cli.errors import (
    DataError,
    SomeSubjectsFailed,
    UsageError,
    WeightsError,
    as_mmccd_error,
)

if TYPE_CHECKING:
    from mmccd_cli.cohort.group import UnusedResult
    from mmccd_cli.inputs.bids import BidsFilter

selection_option = partial(typer.Option, rich_help_panel="Selection")
_LABELS = ("--participant-label", "--participant_label", "--session-id", "--session-label")


class BidsAppCommand(PlainCommand):
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


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """Which sessions of a data set are meant."""

    participant_label: Annotated[
        list[str] | None,
        selection_option(
            "--participant-label",
            "--participant_label",
            metavar="LABEL...",
            help="Only these participants, with or without sub-. By default all.",
        ),
    ] = None
    session_id: Annotated[
        list[str] | None,
        selection_option(
            "--session-id",
            "--session-label",
            metavar="LABEL...",
            help="Only these sessions, with or without ses-. By default all, each on its own.",
        ),
    ] = None
    run: Annotated[
        int | None,
        selection_option(
            min=0,
            help="Take this run of images that have several, and name it in the outputs. By "
            "default the first.",
        ),
    ] = None
    bids_filter_file: Annotated[
        Path | None,
        selection_option(
            metavar="FILE.json",
            help='Which acquisition is meant: {"t1w": {"acquisition": "mprage"}}.',
        ),
    ] = None
    shard: Annotated[
        str,
        selection_option(
            metavar="auto|I/N|off",
            help="Do the I-th of N shares of the sessions; auto asks the variables of a SLURM "
            "array, unless participants are named.",
        ),
    ] = "auto"

    @property
    def share(self) -> str:
        """Which share of the sessions is wanted; who names participants wants all of them."""
        return "off" if self.shard == "auto" and self.participant_label else self.shard

    def filter(self) -> BidsFilter:
        """Return what tells the wanted sessions and images from the others.

        Raises:
            UsageError: The file of queries cannot be read.
        """
        from mmccd_cli.inputs.bids import BidsFilter, read_filter

        return BidsFilter(
            participants=tuple(self.participant_label or ()),
            sessions=tuple(self.session_id or ()),
            run=self.run,
            queries=read_filter(self.bids_filter_file) if self.bids_filter_file else {},
        )


@command
def bids(
    *,
    bids_dir: Annotated[
        Path, typer.Argument(metavar="BIDS_DIR", help="Root of the BIDS data set.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Root of the derivatives.")],
    level: Annotated[
        Literal["participant", "group"],
        typer.Argument(
            metavar="participant|group",
            help="participant segments; group writes summary.tsv and maps of all that is there.",
        ),
    ],
    selection: SelectionOptions,
    picture: Annotated[
        bool,
        switch("--picture", help="Also draw each result, in figures/.", panel=OUTPUT),
    ] = False,
    report: Annotated[
        bool,
        switch("--report", help="Also write a page about each result, in figures/.", panel=OUTPUT),
    ] = False,
    run: options.RunOptions,
    like: options.SettingsOptions,
    sampling: options.StepOptions,
    mask: options.MaskChoice,
    skull_strip: Annotated[
        str,
        method_option(metavar="auto|never|METHOD", help="auto strips what is not stripped."),
    ] = "auto",
    model: options.ModelOptions,
    console: JsonConsole,
) -> None:
    """Segment a BIDS data set; the results are a BIDS derivative data set.

    Examples:
      mmccd bids BIDS_DIR OUT participant
      mmccd bids BIDS_DIR OUT participant --participant-label 01 02 --resume
      mmccd bids BIDS_DIR OUT group
    """
    strip, brain_mask = options.parse_skull_strip(skull_strip)
    if brain_mask is not None:
        raise UsageError(
            f"{brain_mask} is one brain mask, and a data set has many subjects.",
            next_step="Use mmccd segment --skull-strip MASK --bids-out DIR, one by one.",
        )
    if level == "group":
        _summarise(bids_dir, out, model=model, console=console)
        return
    begin_imports()
    from mmccd_cli.cohort.jobs import RunSettings
    from mmccd_cli.cohort.plan import plan_bids_cohort, session_folder
    from mmccd_cli.inputs.subjects import find_sessions

    extras = {"picture": "anomaly.png"} if picture else {}
    extras |= {"report": "report.html"} if report else {}
    subjects, missing = find_sessions(bids_dir, selection.filter())
    folders = [session_folder(subject) for subject in subjects]
    shard = choose_shard(selection.share, folders, console)
    cohort = plan_bids_cohort(
        subjects, missing, out, run=selection.run, extras=extras, shard=shard, source=bids_dir
    )
    run_cohort(
        cohort,
        like.loader(model.for_workers() if run.scheduler else model, sampling),
        settings=RunSettings(**asdict(mask), skull_strip=strip),
        run=run,
        console=console,
    )


def _summarise(
    source: Path, out: Path, *, model: options.ModelOptions, console: JsonConsole
) -> None:
    """Write table, page and maps of all results, and tell which sessions failed.

    Raises:
        typer.Exit: Some did, or a result is damaged.
    """
    from mmccd_cli.cohort.derivative_outcomes import summarise_derivatives

    found = summarise_derivatives(out, source)
    failed = f", {len(found.failures)} failed" if found.failures else ""
    console.info(f"{counted(found.results, 'result')}{failed}: {found.table}")
    left_out: Sequence[UnusedResult] = ()
    try:
        files, left_out, _ = show_group(
            out,
            console,
            weights=model.weights,
            offline=model.offline,
            cache_dir=model.cache_dir,
        )
        console.info(f"Maps of the group: {files[-1]}")
    except (DataError, WeightsError) as error:  # the table is what the level is for
        console.warning(f"There are no maps of the group. {error}")
    if errors := [(it.name, as_mmccd_error(it.error)) for it in found.failures if it.error]:
        console.table([(name, error.message) for name, error in errors])
        raise typer.Exit(SomeSubjectsFailed.exit_code)
    end_partial(left_out)
