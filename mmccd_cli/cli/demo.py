"""`mmccd demo`: the main job on a synthetic subject, to see that everything works."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.console import Console, command
from mmccd_cli.cli.loading import Loading


@command
def demo(
    out_dir: Annotated[Path, typer.Option(help="Where the files go.")] = Path("mmccd-demo"),
    force: options.Force = False,
    preset: options.Preset = None,
    weights: options.Weights = None,
    offline: options.Offline = False,
    cache_dir: options.CacheDir = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = "auto",
    threads: options.Threads = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Make a synthetic subject with a lesion, segment it, and say how well that went."""
    console = Console(-1 if quiet else verbose)
    loading = Loading(weights, offline, device, batch_size, threads, preset, cache_dir=cache_dir)
    with console.computing():
        from mmccd_cli.cohort.demo import plan_demo, segment_demo, write_scans
        from mmccd_cli.outputs.images import to_json

        files = plan_demo(out_dir, force=force)
        with console.progress() as progress:
            progress.begin("making a synthetic subject")
            write_scans(files)
            console.info("Made a synthetic head from formulas, with a lesion in it:")
            for path in files.scans.values():
                console.info(f"  {path}")
            segmenter = loading.load()
            progress.begin("segmenting")
            record, dice = segment_demo(files, segmenter, force=force, advance=progress.advance)
        bundle = record["bundle"]
        console.info(
            f"Segmented it with {bundle['name']} {bundle['version']} on {record['device']}, "
            f"in {sum(record['seconds'].values()):.0f} s:"
        )
        for kind, path in files.job().targets.items():
            console.info(f"  {kind}: {path}")
        for warning in record["warnings"]:
            console.note(warning)
        if as_json:
            console.result(to_json({**record, "dice": dice}))
        elif not quiet:
            console.result(
                f"{record['lesion_volume_ml']:.1f} ml found; "
                f"Dice with the true lesion: {dice:.2f}. Look at {files.picture}"
            )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)
