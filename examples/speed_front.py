"""Accuracy against cost over steps, band stride and band width, on labelled subjects.

python speed_front.py DATA OUT --folds folds.json --subjects 2
python speed_front.py DATA OUT --split split.json --on train --subjects 3

Writes OUT.csv and OUT.png. Every point goes through the weights' calibrated `mmccd` score; `fast`
is the plain translation. With --folds, as in `mmccd evaluate`, each subject is scored by weights
that have not seen it. Seconds are those for which the cores were busy from prepared slices to the
mask, so that other programs do not count. The default points take 20,000 passes a subject.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from speed_roofs import Clock, flops_of

from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.config import SamplingConfig, choose_sampling
from mmccd_cli.evaluation.folds import read_folds
from mmccd_cli.evaluation.passes import counting_passes
from mmccd_cli.host import available_threads
from mmccd_cli.inputs.nifti import read_nifti
from mmccd_cli.inputs.scans import read_scans
from mmccd_cli.inputs.subjects import Subject, find_subjects
from mmccd_cli.pipeline import Pipeline
from mmccd_cli.training.dataset import read_split
from mmccd_cli.weights.bundle import Bundle, load_bundle
from mmccd_cli.weights.resolve import resolve_weights

POINTS = ((16, 16, 1), (16, 16, 2), (32, 32, 1), (32, 16, 1), (48, 48, 1), (48, 24, 1), (48, 24, 4))
THOROUGH = (*POINTS, (8, 8, 1), (16, 8, 1), (16, 16, 4), (32, 8, 1), (32, 32, 4), (48, 12, 1))
"""Band width, stride and steps."""

LEAST_SPAN = 0.06
"""Dice from the bottom to the top of the plot, at least."""


@dataclass(frozen=True)
class Row:
    """One setting on one subject.

    Attributes:
        method: "cyclic-unet" or "mmccd".
        band_width: Pixels of a band, 0 without bands.
        band_stride: Pixels from band to band.
        steps: Denoising steps.
        subject: Its id.
        passes: Slices through networks.
        tflop: Their operations.
        seconds: For which the device was busy.
        dice: Of the mask as it would be written.
    """

    method: str
    band_width: int
    band_stride: int
    steps: int
    subject: str
    passes: int
    tflop: float
    seconds: float
    dice: float

    @property
    def setting(self) -> tuple[str, int, int, int]:
        """What the row measures."""
        return self.method, self.band_width, self.band_stride, self.steps

    @property
    def label(self) -> str:
        """Short name in the plot."""
        if self.method != "mmccd":
            return "fast"
        return f"{self.band_width}/{self.band_stride}/{self.steps}"


def settings(
    default: SamplingConfig, points: Iterable[tuple[int, int, int]]
) -> Iterator[SamplingConfig]:
    """The plain translation, and masked diffusion at every point."""
    yield choose_sampling(default, "fast")
    masked = choose_sampling(default, "balanced")
    for width, stride, steps in points:
        yield replace(masked, band_width=width, band_stride=stride, num_inference_steps=steps)


def measure(
    subject: Subject, bundle: Bundle, points: Iterable[tuple[int, int, int]], device: str
) -> Iterator[Row]:
    """Prepare a subject once and segment it with every setting."""
    assert subject.segmentation is not None
    truth = read_nifti(subject.segmentation, allow_constant=True)[0].data > 0
    prepared = None
    for sampling in settings(bundle.config.sampling, points):
        segmenter = Pipeline(bundle, device=device, sampling=sampling)
        prepared = prepared or segmenter.prepare(read_scans(subject).volumes)
        clock = Clock(segmenter.device)
        with counting_passes() as count:
            began = clock()
            result = segmenter.infer(prepared)
            seconds = clock() - began
        bands = sampling.method == "mmccd"
        yield Row(
            method=sampling.method,
            band_width=sampling.band_width if bands else 0,
            band_stride=sampling.band_stride if bands else 0,
            steps=sampling.num_inference_steps if bands else 0,
            subject=subject.id,
            passes=count.passes,
            tflop=round(flops_of(count) / 1e12, 4),
            seconds=round(seconds, 2),
            dice=round(overlap(result.mask, truth).dice, 4),
        )


def front(means: dict[str, tuple[float, float]]) -> list[str]:
    """Names of the points that no other one beats in both passes and Dice, the cheapest first."""
    kept: list[str] = []
    best = -np.inf
    for name, (_, dice) in sorted(means.items(), key=lambda item: (item[1][0], -item[1][1])):
        if dice > best:
            kept.append(name)
            best = dice
    return kept


def means_of(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Setting -> mean passes and mean Dice over the subjects."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.label, []).append(row)
    return {
        name: (float(np.mean([r.passes for r in own])), float(np.mean([r.dice for r in own])))
        for name, own in found.items()
    }


def write(rows: Sequence[Row], out: Path) -> None:
    """Write OUT.csv, a line a subject and setting, and OUT.png, their means."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows(astuple(row) for row in rows)
    means = means_of(rows)
    best = front(means)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*np.array([means[name] for name in best]).T, color="0.6", zorder=0)
    for name, (passes, dice) in means.items():
        axes.plot(passes, dice, "o", color="C0" if name in best else "0.7")
        axes.annotate(name, (passes, dice), (4, 4), textcoords="offset points", fontsize=8)
    count = len({row.subject for row in rows})
    axes.set(
        xscale="log",
        xlabel="network passes a subject",
        ylabel=f"Dice, mean of {count} subjects",
        title="band width / stride / steps",
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    room = max(0.0, LEAST_SPAN - (high - low)) / 2  # small differences shall look small
    axes.set_ylim(low - room, high + room)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out.with_suffix(".png"), dpi=100)


def whom(options: argparse.Namespace) -> Iterator[tuple[str | None, list[Subject]]]:
    """Weights, and the labelled subjects that they score."""
    found = {s.id: s for s in find_subjects(options.data) if s.segmentation is not None}
    if options.folds:
        for weights, members in read_folds(options.folds).items():
            yield weights, [found[i] for i in members]
        return
    chosen = read_split(options.split)[options.on] if options.split else found
    yield options.weights, [subject for i, subject in found.items() if i in chosen]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and print the front."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of subjects with segmentations")
    parser.add_argument("out", type=Path, help="path of the two files, without an ending")
    parser.add_argument("--split", type=Path, help="JSON file of lists of ids")
    parser.add_argument("--on", default="train", help="list to take subjects from")
    parser.add_argument("--folds", type=Path, help="JSON file of weights and whom they score")
    parser.add_argument("--subjects", type=int, default=3, help="how many, or how many of a fold")
    parser.add_argument("--thorough", action="store_true", help="twice as many points")
    parser.add_argument("--weights", help="name, folder or place on the Hub")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    torch.set_num_threads(available_threads())
    points = THOROUGH if options.thorough else POINTS
    rows: list[Row] = []
    for weights, subjects in whom(options):
        bundle = load_bundle(resolve_weights(weights))
        for subject in subjects[: options.subjects]:
            for row in measure(subject, bundle, points, options.device):
                print(*astuple(row), flush=True)
                rows.append(row)
    write(rows, options.out)
    means = means_of(rows)
    for name in front(means):
        print(f"on the front: {name}: {means[name][0]:,.0f} passes, Dice {means[name][1]:.3f}")


if __name__ == "__main__":
    main()
