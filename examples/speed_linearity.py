"""Seconds of the networks against slices, bands and steps: `python speed_linearity.py OUT`.

Writes OUT.csv and OUT.png. The architecture is that of the compact recipe with random weights, on
random slices of 80 x 96 pixels: what is measured does not depend on what it has learnt. Seconds are
those for which the cores were busy, the least of several repetitions.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from speed_roofs import Clock

from mmccd_cli.config import DiffusionConfig, SamplingConfig, UNetConfig
from mmccd_cli.training.recipes import RECIPES
from mmccd_cli.translation.devices import CPU_BATCH, PRECISIONS, choose_device, choose_precision
from mmccd_cli.translation.engine import Execution, band_work, masked_residual
from mmccd_cli.translation.schedule import Schedule
from mmccd_cli.translation.translators import Cycle, MaskedTranslator
from mmccd_cli.translation.unet import UNet

SLICES, BANDS, STEPS = (2, 4, 8, 16), (44, 22, 11, 6), (1, 2, 4, 8)
STRIDES = {44: 4, 22: 8, 11: 16, 6: 32}
"""Bands of both axes of 80 x 96 pixels -> their stride."""
HEIGHT, WIDTH = 80, 96


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        axis: What is varied: "slices", "bands" or "steps".
        slices: Number of slices.
        bands: Bands a slice.
        steps: Denoising steps a band.
        passes: Slices through networks.
        seconds: For which the device was busy.
    """

    axis: str
    slices: int
    bands: int
    steps: int
    passes: int
    seconds: float

    @property
    def x(self) -> int:
        """Where the point lies on its axis."""
        return int(getattr(self, self.axis))


def measure(
    axis: str, slices: int, bands: int, steps: int, config: UNetConfig, execution: Execution
) -> Point:
    """Time one product of slices, bands and steps."""
    denoiser = UNetConfig(**{**vars(config), "in_channels": 2, "time_conditioned": True})
    there, back = (
        UNet(c).eval().to(execution.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for c in (denoiser, config)
    )
    cycle = Cycle(
        back, imagine=MaskedTranslator(there, Schedule.from_config(DiffusionConfig()), steps)
    )
    x = torch.randn(slices, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    stride = STRIDES[bands]
    work = band_work(
        torch.ones_like(x, dtype=torch.bool), SamplingConfig(band_width=stride, band_stride=stride)
    )
    seconds = Clock(execution.device).best_of(
        lambda: masked_residual(
            x,
            torch.arange(slices),
            work,
            cycle=cycle,
            seed=0,
            residual="signed",
            execution=execution,
        ),
        repeats=2,
    )
    return Point(axis, slices, bands, steps, len(work.pairs) * (steps + 1), seconds)


def measure_all(
    config: UNetConfig, execution: Execution, slices: Sequence[int] = SLICES
) -> list[Point]:
    """Vary one at a time around the second number of slices, 11 bands and one step."""
    middle = slices[1]
    jobs = [("slices", n, 11, 1) for n in slices]
    jobs += [("bands", middle, n, 1) for n in sorted(BANDS)]
    jobs += [("steps", middle, 11, n) for n in STEPS]
    return [measure(*job, config, execution) for job in jobs]


def line_of(points: Sequence[Point]) -> tuple[float, float, float]:
    """Seconds a unit, seconds at zero, and R squared of the straight line."""
    x, y = np.array([(p.x, p.seconds) for p in points], dtype=float).T
    slope, start = np.polyfit(x, y, 1)
    return float(slope), float(start), float(np.corrcoef(x, y)[0, 1] ** 2)


def write(points: Sequence[Point], out: Path) -> None:
    """Write OUT.csv and OUT.png."""
    from matplotlib.figure import Figure

    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["axis", "slices", "bands", "steps", "passes", "seconds"])
        for p in points:
            row = [p.axis, p.slices, p.bands, p.steps, p.passes, f"{p.seconds:.3f}"]
            writer.writerow(row)
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, axis in zip(figure.subplots(1, 3), ("slices", "bands", "steps"), strict=True):
        own = [p for p in points if p.axis == axis]
        slope, start, fit = line_of(own)
        ends = np.array([0, max(p.x for p in own)])
        axes.plot(ends, start + slope * ends, color="0.6", zorder=0)
        axes.plot([p.x for p in own], [p.seconds for p in own], "o", color="C0")
        axes.set(xlabel=axis, ylim=(0, None), title=f"R² = {fit:.4f}, at zero {start:.2f} s")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("seconds the cores are busy")
    figure.savefig(out.with_suffix(".png"), dpi=100)


def main(arguments: Sequence[str] | None = None, config: UNetConfig | None = None) -> None:
    """Measure, write, and print the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="path of the two files, without an ending")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--slices", type=int, nargs=4, default=SLICES)
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    precision = PRECISIONS[choose_precision("auto", device)]
    execution = Execution(device, CPU_BATCH if device.type == "cpu" else 1024, precision)
    points = measure_all(config or RECIPES["compact"].unet, execution, options.slices)
    write(points, options.out)
    for axis in ("slices", "bands", "steps"):
        slope, start, fit = line_of([p for p in points if p.axis == axis])
        print(f"{axis}: {slope:.4f} s each, {start:+.2f} s at zero, R squared {fit:.5f}")


if __name__ == "__main__":
    main()
