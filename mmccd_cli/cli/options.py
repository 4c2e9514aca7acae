"""Options that several commands share, each declared once, and how their values are read.

A dataclass is a group of options: `mmccd_cli.cli.command.command` makes an option of each field.
What reads a value raises `typer.BadParameter` where it is none.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmccd_cli.cli.console import switch
from mmccd_cli.errors import UsageError, WeightsError, check_address_space

if TYPE_CHECKING:
    from mmccd_cli.api import Segmenter

INPUT = "Input"
OUTPUT = "Output"
METHOD = "Method"
WEIGHTS = "Weights"
COMPUTING = "Computing"

input_option = partial(typer.Option, rich_help_panel=INPUT)
output_option = partial(typer.Option, rich_help_panel=OUTPUT)
method_option = partial(typer.Option, rich_help_panel=METHOD)
weights_option = partial(typer.Option, rich_help_panel=WEIGHTS)
computing_option = partial(typer.Option, rich_help_panel=COMPUTING)

_VOLUME = re.compile(
    r"\s*(?P<number>[0-9.]+(?:e[+-]?[0-9]+)?)\s*(?P<unit>mm3|mm\^3|mm³|µl|ul|ml|cm3|cm\^3|cm³|cc)?\s*"
)
_CUBIC_MILLIMETRES = {"ml": 1000.0, "cm3": 1000.0, "cm^3": 1000.0, "cm³": 1000.0, "cc": 1000.0}
_LARGEST_COUNT = 1 << 20
_MOST_THREADS = 1024  # of tens of thousands, the system ends the process without a word


def volume_mm3(text: str) -> float | None:
    """Read a volume such as "10mm3", "0.01ml" or "10" (mm3); "auto" is None."""
    if text == "auto":
        return None
    match = _VOLUME.fullmatch(text.lower())
    number = _number(match["number"]) if match else None
    if match is None or number is None:
        raise typer.BadParameter(f"{text} is not a volume. Write 10mm3, 0.01ml or auto.")
    return number * _CUBIC_MILLIMETRES.get(match["unit"] or "mm3", 1.0)


def map_value(text: str) -> float | None:
    """Read a value of the map, strictly between 0 and 1; "auto" is None."""
    if text == "auto":
        return None
    value = _number(text)
    if value is None or not 0 < value < 1:
        raise typer.BadParameter(
            f"{text} is not a threshold of the anomaly map. Give a number above 0 and below 1, "
            "or auto for the calibrated threshold."
        )
    return value


def confidence(text: str) -> float | None:
    """Read a confidence from 0 to 1, both included; "auto" is None."""
    if text == "auto":
        return None
    value = _number(text)
    if value is None or not 0 <= value <= 1:
        raise typer.BadParameter(f"{text} is not a confidence. Give a number from 0 to 1, or auto.")
    return value


def count(text: str, least: int = 1, *, most: int = _LARGEST_COUNT) -> int | None:
    """Read a number from the least one to the greatest; "auto" is None."""
    if text == "auto":
        return None
    is_number = len(text) < 10 and text.isascii() and text.isdigit()
    if is_number and int(text) > most:
        raise typer.BadParameter(f"{text} is too many. Give at most {most}, or auto.")
    if not (is_number and least <= int(text)):
        raise typer.BadParameter(f"{text} is not a count. Give {least}, {least + 1}, ... or auto.")
    return int(text)


def count_from_0(text: str) -> int | None:
    """Read a number from 0 up; see `count`."""
    return count(text, least=0)


def count_of_threads(text: str) -> int | None:
    """Read a number of threads; see `count`."""
    return count(text, most=_MOST_THREADS)


def one_of(*words: str) -> Callable[[str], str]:
    """Return what reads one of some words; Typer has no lists of `Literal`."""

    def read(text: str) -> str:
        if text not in words:
            raise typer.BadParameter(f"{text} is not known. Use {' or '.join(words)}.")
        return text

    return read


def parse_skull_strip(text: str) -> tuple[str, Path | None]:
    """Return the method of --skull-strip, and the file of a given brain mask or None.

    Raises:
        UsageError: An earlier run, whose settings are wanted, had a brain mask.
    """
    if text == "mask":
        raise UsageError(
            "The run that --like names was given a brain mask.",
            cause="Its record says so, and does not say in which folder it lies.",
            next_step="Give it again: --skull-strip MASK.nii.gz",
        )
    if text.lower().endswith((".nii", ".nii.gz")):
        return "mask", Path(text)
    return text, None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


count_option = partial(computing_option, metavar="auto|N", parser=count, show_default="auto")

Preset = Annotated[
    Literal["fast", "balanced", "paper"] | None,
    method_option(
        metavar="fast|balanced|paper",
        help="How much time a result may take. By default as the bundle proposes.",
    ),
]
Device = Annotated[
    str,
    computing_option(
        metavar="auto|cpu|cuda[:N]|mps",
        help="Where to compute. One that is asked for by name and cannot be used is an error.",
    ),
]
Threads = Annotated[
    int | None,
    count_option(
        parser=count_of_threads,
        help="Threads of the CPU. With 1, equal runs are equal to the last bit.",
    ),
]
Force = Annotated[
    bool,
    switch("--force", "-f", help="Overwrite existing outputs; never an input."),
]


def _use_settings_of_earlier(ctx: typer.Context, record: Path | None) -> Path | None:
    """Make the settings of an earlier run the defaults of all options that are not given."""
    if record is not None:
        from mmccd_cli.cohort.like import read_earlier_run

        try:
            ctx.default_map = {**(ctx.default_map or {}), **read_earlier_run(record).options}
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            raise typer.BadParameter(
                f"{record} holds no record whose settings can be used: {said}. "
                "Give the .json that lies beside a map."
            ) from error
    return record


Like = Annotated[
    Path | None,
    method_option(
        metavar="MAP.json",
        is_eager=True,
        callback=_use_settings_of_earlier,
        help="Take the settings of an earlier run, weights included, from its record. What is "
        "given beside it counts more.",
    ),
]
Offline = Annotated[bool, switch("--offline", help="Never use the network.", panel=WEIGHTS)]
CacheDir = Annotated[
    Path | None,
    weights_option(
        help="Folder of downloaded weights. By default MMCCD_CACHE_DIR, else the Hub's own cache.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which weights, and where they compute; loaded when first needed."""

    weights: Annotated[
        str | None,
        weights_option(
            metavar="NAME|DIR|ORG/REPO",
            help="A bundle's name, its folder, or its place on the Hub (ORG/REPO@REVISION). "
            "By default the bundle that mmccd comes with.",
        ),
    ] = None
    offline: Offline = False
    cache_dir: CacheDir = None
    device: Device = "auto"
    batch_size: Annotated[
        int | None,
        count_option(help="Slices a pass; changes the time and the memory, not the result."),
    ] = None
    threads: Threads = None
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        computing_option(
            metavar="auto|fp32|bf16|fp16",
            help="Arithmetic of the networks: auto is fp16 on CUDA, fp32 elsewhere; bf16 is "
            "faster on CPUs that have it and changes the map a little.",
        ),
    ] = "auto"

    def for_workers(self) -> ModelOptions:
        """The same weights where a process on another computer, in another folder, loads them."""
        named = self.weights or os.environ.get("MMCCD_WEIGHTS")
        if named is not None and Path(named).is_dir():
            named = str(Path(named).absolute())
        cache = None if self.cache_dir is None else self.cache_dir.absolute()
        return replace(self, weights=named, cache_dir=cache)

    def load(self, *, begin: bool = True, **sampling: Any) -> Segmenter:
        """Find and load the weights, and choose the device; see `Segmenter.from_pretrained`."""
        check_address_space()
        from mmccd_cli.api import Segmenter

        chosen = {**asdict(self), "threads": self.threads or 0}
        return Segmenter.from_pretrained(**chosen, begin=begin, **sampling)


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How slices are imagined."""

    preset: Preset = None
    seed: Annotated[
        int | None,
        method_option(min=0, help="Seed of all that is random."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class StepOptions(SamplingOptions):
    """How slices are imagined, down to the single step."""

    method: Annotated[
        Literal["mmccd", "cyclic-unet"] | None,
        method_option(metavar="mmccd|cyclic-unet", help="Instead of the preset's."),
    ] = None
    num_inference_steps: Annotated[
        int | None,
        method_option("--steps", min=1, help="DDIM steps."),
    ] = None
    band_width: Annotated[
        int | None,
        method_option(min=1, help="Pixels of a hidden band."),
    ] = None
    band_stride: Annotated[
        int | None,
        method_option(min=1, help="Pixels from band to band."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class SettingsOptions:
    """Where settings come from that are not given one by one."""

    like: Like = None

    def loader(self, model: ModelOptions, sampling: SamplingOptions) -> Callable[[], Segmenter]:
        """Return what loads the weights; where they are an earlier run's, to the last byte.

        The device is left to `Pipeline.begin`.

        Raises:
            UsageError: A preset is given, too.
        """
        load = partial(model.load, begin=False, **asdict(sampling))
        if self.like is None:
            return load
        if sampling.preset is not None:
            raise UsageError(
                "--like has all settings of an earlier run, and --preset many others.",
                next_step="Give one of them; single settings such as --steps may be added.",
            )
        from mmccd_cli.cohort.like import read_earlier_run

        earlier = read_earlier_run(self.like)
        if model.weights != earlier.options["weights"]:
            return load
        return partial(_load_same, load, self.like, earlier.weights_sha256)


def _load_same(load: Callable[[], Segmenter], record: Path, sha256: str) -> Segmenter:
    segmenter = load()
    if segmenter.bundle.sha256 != sha256:
        raise WeightsError(
            f"{segmenter.bundle.config.name} is not the bundle that {record} was made with: its "
            "files differ.",
            cause="It was trained or calibrated anew since then.",
            next_step="Give the old one with --weights DIR, or leave out --like.",
        )
    return segmenter


@dataclass(frozen=True, kw_only=True)
class MaskChoice:
    """How the mask is made from the map; None is as calibrated."""

    threshold: Annotated[
        float | None,
        method_option(
            metavar="auto|VALUE",
            parser=map_value,
            show_default="auto",
            help="Value of the map, above 0 and below 1, above which a voxel belongs to the mask; "
            "auto as calibrated.",
        ),
    ] = None
    min_lesion_mm3: Annotated[
        float | None,
        method_option(
            "--min-lesion",
            metavar="auto|VOLUME",
            parser=volume_mm3,
            show_default="auto",
            help="Smallest lesion of the mask: 10mm3, 0.01ml.",
        ),
    ] = None
    min_confidence: Annotated[
        float | None,
        method_option(
            metavar="auto|VALUE",
            parser=confidence,
            show_default="auto",
            help="Least confidence of a lesion of the mask, from 0 to 1; auto as calibrated.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How subjects are gone through; nothing of it changes a number."""

    force: Force = False
    resume: Annotated[
        bool,
        switch(
            "--resume",
            help="Skip subjects whose result has the same inputs, weights and settings; where "
            "only the mask is to differ, make the mask anew from the map.",
        ),
    ] = False
    dry_run: Annotated[
        bool,
        switch(
            "--dry-run",
            help="Say what would be done, by names and headers of the files, and do nothing.",
        ),
    ] = False
    workers: Annotated[
        int | None,
        count_option(
            parser=count_from_0,
            help="Subjects that are prepared at a time, each in a thread, and on a CPU segmented "
            "there; each takes up to 1 GB. 0 for none. With --scheduler auto, worker processes.",
        ),
    ] = None
    scheduler: Annotated[
        str | None,
        computing_option(
            metavar="ADDRESS|FILE.json|auto",
            help="Segment on the workers of a Dask scheduler; auto starts some on this computer. "
            "All must see the same folders; their threads are their own.",
        ),
    ] = None


def use_threads(number: int | None) -> None:
    """Hold torch to a number of threads of the CPU; None takes all that this process may use."""
    import torch

    from mmccd_cli.host import available_threads

    torch.set_num_threads(number or available_threads())
