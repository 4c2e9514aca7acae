"""The program `mmccd`: its commands, each in a module of this package.

Nothing heavy is imported here: commands import what they need when they run, so that --help is
there at once.
"""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from mmccd_cli import __version__
from mmccd_cli.cli import demo, evaluate, segment, train, weights

app = typer.Typer(
    name="mmccd",
    help="Find anomalies in brain MRI (FLAIR, T2w, T1w) with networks that only know healthy "
    "tissue. Research use only, not a medical device.",
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
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    del version


for _module in (segment, demo, weights, train, evaluate):  # the order of --help
    _module.register(app)


def main() -> None:
    """Run the program; a terminated one cleans up like an interrupted one."""
    signal.signal(signal.SIGTERM, _exit_as_terminated)
    app(prog_name="mmccd")


def _exit_as_terminated(number: int, _frame: object) -> None:
    # Without this, temporary files would stay behind when a cluster's time limit strikes.
    raise SystemExit(128 + number)
