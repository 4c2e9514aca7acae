"""Options that several commands share, each defined once, and how their values are read."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated

import typer

from mmccd_cli.errors import UsageError

METHOD = "Method"
WEIGHTS = "Weights"
COMPUTING = "Computing"
MESSAGES = "Messages"

Preset = Annotated[
    str | None,
    typer.Option(
        metavar="fast|balanced|paper",
        help="How much time a result may take. By default as the bundle proposes.",
        rich_help_panel=METHOD,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, help="Seed of all that is random.", rich_help_panel=METHOD),
]
Threshold = Annotated[
    str,
    typer.Option(
        metavar="auto|VALUE",
        help="Value of the map above which a voxel belongs to the mask; auto as calibrated.",
        rich_help_panel=METHOD,
    ),
]
MinLesion = Annotated[
    str,
    typer.Option(
        metavar="auto|VOLUME",
        help="Smallest lesion of the mask: 10mm3, 0.01ml.",
        rich_help_panel=METHOD,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|DIR|ORG/REPO",
        help="A bundle's name, its folder, or its place on the Hub (ORG/REPO@REVISION). "
        "By default the bundle that mmccd comes with.",
        rich_help_panel=WEIGHTS,
    ),
]
Offline = Annotated[
    bool,
    typer.Option("--offline", help="Never use the network.", rich_help_panel=WEIGHTS),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of downloaded weights. By default MMCCD_CACHE_DIR, else the Hub's own cache.",
        show_default=False,
        rich_help_panel=WEIGHTS,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda[:N]|mps",
        help="Where to compute. One that is asked for by name and cannot be used is an error.",
        rich_help_panel=COMPUTING,
    ),
]
BatchSize = Annotated[
    str,
    typer.Option(
        metavar="auto|N",
        help="Slices a pass; changes the time and the memory, not the result.",
        rich_help_panel=COMPUTING,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        metavar="auto|fp32|bf16|fp16",
        help="Arithmetic of the networks: auto is fp16 on CUDA, fp32 elsewhere; bf16 is faster "
        "on CPUs that have it and changes the map a little.",
        rich_help_panel=COMPUTING,
    ),
]
Threads = Annotated[
    str,
    typer.Option(
        metavar="auto|N",
        help="Threads of the CPU. With 1, equal runs are equal to the last bit.",
        rich_help_panel=COMPUTING,
    ),
]
Workers = Annotated[
    str,
    typer.Option(
        metavar="auto|N",
        help="Subjects that are read and registered in threads while one is on the device; each "
        "takes up to 1 GB. 0 for none.",
        rich_help_panel=COMPUTING,
    ),
]
Force = Annotated[
    bool, typer.Option("--force", "-f", help="Overwrite existing outputs; never an input.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Only errors.", rich_help_panel=MESSAGES)
]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        help="More details; -vv with tracebacks.",
        show_default=False,
        rich_help_panel=MESSAGES,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the record of each subject to stdout, as one line of JSON.",
        rich_help_panel=MESSAGES,
    ),
]

_VOLUME = re.compile(
    r"\s*(?P<number>[0-9.]+(?:e[+-]?[0-9]+)?)\s*(?P<unit>mm3|mm\^3|mm³|µl|ul|ml|cm3|cm\^3|cm³|cc)?\s*"
)
_CUBIC_MILLIMETRES = {"ml": 1000.0, "cm3": 1000.0, "cm^3": 1000.0, "cm³": 1000.0, "cc": 1000.0}


def parse_volume_mm3(text: str | None) -> float | None:
    """Read a volume such as "10mm3", "0.01ml" or "10" (mm3); "auto" is None.

    Raises:
        UsageError: Not a volume.
    """
    if text is None or text == "auto":
        return None
    match = _VOLUME.fullmatch(text.lower())
    number = _number(match["number"]) if match else None
    if match is None or number is None:
        raise UsageError(
            f"--min-lesion {text} is not a volume.", next_step="Write 10mm3, 0.01ml or auto."
        )
    return number * _CUBIC_MILLIMETRES.get(match["unit"] or "mm3", 1.0)


def parse_threshold(text: str | None) -> float | None:
    """Read a value of the map, strictly between 0 and 1; "auto" is None.

    Raises:
        UsageError: Anything else.
    """
    if text is None or text == "auto":
        return None
    value = _number(text)
    if value is None or not 0 < value < 1:
        raise UsageError(
            f"--threshold {text} is not a value of the map.",
            cause="The anomaly map lies within [0, 1], and the calibrated threshold is auto.",
            next_step="Give a number between 0 and 1, or auto.",
        )
    return value


def parse_count(text: str, option: str, *, least: int = 1) -> int | None:
    """Read a number from `least` up; "auto" is None.

    Raises:
        UsageError: Anything else.
    """
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and least <= int(text) <= 1 << 20):
        step = f"Give {least}, {least + 1}, ... or auto."
        raise UsageError(f"{option} {text} is not a count.", next_step=step)
    return int(text)


def parse_skull_strip(text: str) -> tuple[str, Path | None]:
    """Tell a brain mask's file from a method's name.

    Returns:
        The method, and the file of a given mask or None.
    """
    if text.lower().endswith((".nii", ".nii.gz")):
        return "mask", Path(text)
    return text, None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
