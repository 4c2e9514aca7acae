"""`mmccd demo`: the main job on a synthetic subject, to see that everything works."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import JsonConsole


@command
def demo(
    *,
    out_dir: Annotated[Path, typer.Option(help="Where the files go.")] = Path("mmccd-demo"),
    force: options.Force = False,
    preset: options.Preset = None,
    model: options.ModelOptions,
    console: JsonConsole,
) -> None:
    """Make a synthetic subject with a lesion, segment it, and say how well that went.

    Examples:
      mmccd demo
      mmccd demo --out-dir mmccd-demo --preset balanced --force
    """
    from mmccd_cli.cohort.demo import plan_demo, segment_demo, write_scans

    files = plan_demo(out_dir, force=force)
    with console.progress() as progress:
        progress.begin("making a synthetic subject")
        write_scans(files)
        console.info("Made a synthetic head from formulas, with a lesion in it:")
        for path in files.scans.values():
            console.info(f"  {path}")
        segmenter = model.load(preset=preset)
        progress.begin("segmenting")
        record, dice = segment_demo(files, segmenter, force=force, advance=progress.passes)
    bundle = record["bundle"]
    console.info(
        f"Segmented it with {bundle['name']} {bundle['version']} on {record['device']}, "
        f"in {sum(record['seconds'].values()):.0f} s:"
    )
    for kind, path in files.targets.items():
        console.info(f"  {kind}: {path}")
    console.remarks(record)
    console.record({**record, "dice": dice})
    if not (console.as_json or console.quiet):
        console.result(
            f"{record['lesion_volume_ml']:.1f} ml found; "
            f"Dice with the true lesion: {dice:.2f}. Look at {files.targets['picture']}"
        )
