"""`mmccd group`: all results of a folder together, in the space of the template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import Console, JsonConsole, counted
from mmccd_cli.cli.options import weights_option
from mmccd_cli.errors import SomeSubjectsFailed
from mmccd_cli.files import refuse_to_overwrite

if TYPE_CHECKING:
    from mmccd_cli.cohort.group import UnusedResult


@command
def group(
    *,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Folder of results, or root of BIDS derivatives."),
    ],
    weights: Annotated[
        str | None,
        weights_option(
            metavar="NAME|DIR|ORG/REPO",
            help="The bundle that made the results, whose template they lie on. By default as "
            "their records call it.",
        ),
    ] = None,
    offline: options.Offline = False,
    cache_dir: options.CacheDir = None,
    force: options.Force = False,
    console: JsonConsole,
) -> None:
    """Show where the lesions of all results are: maps of the group, tables and a page.

    Writes OUT/group: frequency.nii.gz (share of the subjects with a lesion), mean.nii.gz (mean of
    their maps), subjects.tsv, lesions.tsv and index.html.

    Examples:
      mmccd group out
    """
    from mmccd_cli.cohort.group import FILES, FOLDER

    written = [out / FOLDER / name for name in FILES]
    refuse_to_overwrite(written, force=force, make_folders=True)
    files, left_out, number = show_group(
        out, console, weights=weights, offline=offline, cache_dir=cache_dir
    )
    page = next(path for path in files if path.suffix == ".html")
    data = {
        "subjects": number,
        "files": [str(path.relative_to(out)) for path in files],
        "left_out": [each._asdict() for each in left_out],
    }
    console.answer(data, f"{counted(number, 'subject')}: {page}")
    end_partial(left_out)


def end_partial(left_out: Sequence[UnusedResult]) -> None:
    """End the command where a result is damaged, and the others were done.

    Raises:
        typer.Exit: One is.
    """
    if any(each.failed for each in left_out):
        raise typer.Exit(SomeSubjectsFailed.exit_code)


def show_group(
    out: Path,
    console: Console,
    *,
    weights: str | None = None,
    offline: bool = False,
    cache_dir: Path | None = None,
) -> tuple[list[Path], list[UnusedResult], int]:
    """Write what a group has in common, and say who is left out.

    Returns:
        The files, the results that are left out, and the number of the others.

    Raises:
        DataError: No result can be used.
        WeightsError: Their bundle is not there.
    """
    from mmccd_cli.cohort.group import find_members, template_of, write_group

    members, damaged = find_members(out)
    template, sha256 = template_of(members, weights=weights, offline=offline, cache_dir=cache_dir)
    with console.progress() as progress:
        progress.begin("adding up the group", told=False)
        files, left_out = write_group(
            out,
            template,
            sha256,
            members=members,
            damaged=damaged,
            advance=progress.advance,
        )
    for each in left_out:
        console.warning(f"{each.subject} is left out: {each.reason}")
    return files, left_out, len(members) + len(damaged) - len(left_out)
