"""The program `mmccd`: its commands, each in a module of this package.

Nothing heavy is imported here: commands import what they need when they run, so that --help is
there at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Annotated

import typer

from mmccd_cli import __version__
from mmccd_cli.cli import (
    benchmark,
    bids,
    compare,
    comparison,
    demo,
    doctor,
    evaluate,
    group,
    schema,
    segment,
    threshold,
    train,
    weights,
)
from mmccd_cli.cli.help import Program
from mmccd_cli.files import end_process

_HELP = """Find anomalies in brain MRI (FLAIR, T2w, T1w) without labels of any anomaly.

Research use only, not a medical device.

Examples:
  mmccd demo                                        on a synthetic subject
  mmccd segment SUBJECT --out map.nii.gz            one subject
  mmccd segment data/*/ --out-dir out               many

Environment:
  MMCCD_WEIGHTS      weights to use where --weights is not given
  MMCCD_CACHE_DIR    folder of downloaded weights, as --cache-dir
  OMP_NUM_THREADS    threads of the CPU that `--threads auto` takes
  HF_HUB_OFFLINE     1: never use the network, as --offline
  HF_TOKEN           token for private weights on the Hugging Face Hub
"""

app = Program(
    name="mmccd",
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mmccd {__version__}")
        raise typer.Exit()


@app.callback()
def _options_of_all(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            metavar="",
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    del version


# In the order of --help.
app.command("segment")(segment.segment)
app.command("bids", cls=bids.BidsAppCommand)(bids.bids)
app.command("threshold")(threshold.threshold)
app.command("group")(group.group)
app.command("compare")(compare.compare)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.add_typer(weights.app)
app.command("prepare")(train.prepare)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("train-comparison")(comparison.train_comparison)
app.command("train-rivals", hidden=True)(comparison.train_comparison)  # its first name
app.command("benchmark")(benchmark.benchmark)
app.command("schema")(schema.schema)


def main() -> None:
    """Run the program; a terminated one cleans up like an interrupted one."""
    if sys.stderr is None:  # closed by the caller: 2>&-
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # as long as the process
    if not sys.stderr.isatty():  # huggingface_hub reads it when it is imported
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Threads of torch that wait must not spin: where anything else computes, preparing the next
    # subject above all, they took up to twenty times the time that they compute.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _exit_as_terminated)
    try:
        app(prog_name="mmccd")
    except SystemExit as ended:
        _leave_now(ended.code)
        raise


def _exit_as_terminated(number: int, _frame: object) -> None:
    # Without this, temporary files would stay behind when a cluster's time limit strikes.
    raise SystemExit(128 + number)


def _leave_now(code: str | int | None) -> None:
    """End the process at once where it segmented; all that it wrote is on the disk.

    To take apart what torch and others made takes the interpreter half a second, and would tear
    down libraries under a thread that still computes for a subject that nobody awaits.
    """
    if "mmccd_cli.cohort.prefetch" not in sys.modules or isinstance(code, str):
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # None where it was closed
            stream.flush()
    end_process(code or 0)
