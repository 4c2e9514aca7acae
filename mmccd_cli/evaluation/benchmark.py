"""What segmenting a subject costs on this machine, preset by preset.

A preset is run as a user runs it: `mmccd segment` in a process of its own, timed from outside. What
would take too long is estimated from how many more passes its networks make, and says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.config import choose_sampling
from mmccd_cli.errors import ComputeError
from mmccd_cli.inputs.nifti import read_nifti
from mmccd_cli.inputs.subjects import Subject
from mmccd_cli.translation.engine import band_work
from mmccd_cli.translation.slices import to_slices
from mmccd_cli.weights.bundle import Bundle

BENCHMARKED = ("fast", "balanced", "paper")
"""The presets by rising number of passes."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSetup:
    """What is measured, and where.

    Attributes:
        subject: Its files; the Dice is told where a segmentation lies beside them.
        bundle: The weights.
        arguments: Of `mmccd segment`, which lead to this subject and bundle.
        folder: Where results may be written.
    """

    subject: Subject
    bundle: Bundle
    arguments: Sequence[str]
    folder: Path


@dataclass(frozen=True, kw_only=True)
class PresetCost:
    """What a whole process of `mmccd segment` takes.

    Attributes:
        preset: Its name.
        seconds: Of the whole process, on the clock.
        inference_seconds: Of these, those of the networks.
        cpu_seconds: Of the CPU, which other programs on the same cores hardly lengthen; None where
            it was not run.
        peak_memory_mib: Largest resident memory, or None where nobody counts it.
        dice: Overlap with the segmentation, or None where there is none.
        estimated: Whether the networks' seconds are those of another preset by their passes.
        device: What the networks ran on, in words.
    """

    preset: str
    seconds: float
    inference_seconds: float
    cpu_seconds: float | None = None
    peak_memory_mib: float | None = None
    dice: float | None = None
    estimated: bool = False
    device: str = ""

    def scaled_to(self, preset: str, times: float) -> PresetCost:
        """Estimate another preset, which makes so many times the passes in the same networks."""
        more = self.inference_seconds * (times - 1)
        return PresetCost(
            preset=preset,
            seconds=self.seconds + more,
            inference_seconds=self.inference_seconds + more,
            estimated=True,
            device=self.device,
        )


def benchmark_presets(setup: BenchmarkSetup, *, budget_s: float) -> Iterator[PresetCost]:
    """Measure preset after preset; what takes more than the budget is estimated, never the first.

    Yields:
        One for each of `BENCHMARKED`, as soon as it is known.

    Raises:
        MmccdError: As `mmccd segment` does.
    """
    passes = expected_passes(setup.bundle, tuple(setup.subject.paths))
    last: PresetCost | None = None
    for preset in BENCHMARKED:
        cost = None
        if last is not None and passes[last.preset]:
            cost = last.scaled_to(preset, passes[preset] / passes[last.preset])
        if cost is None or cost.inference_seconds <= budget_s:
            cost = run_process(setup, preset)
        last = cost
        yield cost


def expected_passes(bundle: Bundle, modalities: tuple[str, ...]) -> dict[str, int]:
    """Tell how many slices each preset would send through networks for a brain like the template's.

    Returns:
        Preset -> slices over all networks, each time counted; 0 where a score needs none.
    """
    config, mask = bundle.config, bundle.template.mask
    multiple = int(np.lcm(config.unet.stride, config.denoiser.stride))
    stack = to_slices(mask.astype(np.float32), mask, multiple=multiple)
    passes = {}
    for preset in BENCHMARKED:
        sampling = choose_sampling(config.sampling, preset)
        score = bundle.choose_score(sampling.method, modalities)
        a_cycle = 2 * len(stack)
        if sampling.method == "mmccd":
            pairs = band_work(torch.from_numpy(stack.brain), sampling).pairs
            a_cycle = len(pairs) * (sampling.num_inference_steps + 1)
        sides = {kind: 1 + (kind in score.mirrored) for kind in ("cycle", "restoration")}
        passes[preset] = (
            a_cycle * len(score.sources) * sides["cycle"]
            + len(stack) * bool(score.restored) * sides["restoration"]
            + 2 * len(stack) * score.has_foci  # always of both sides
        )
    return passes


def run_process(setup: BenchmarkSetup, preset: str) -> PresetCost:
    """Segment the subject in a new process.

    Raises:
        ComputeError: The process failed.
    """
    out = setup.folder / f"{preset}.nii.gz"
    command = [sys.executable, "-m", "mmccd_cli", "segment", *setup.arguments, "--preset", preset]
    command += ["--out", str(out), "--force", "--json"]
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds, after = time.perf_counter() - began, os.times()
    if done.returncode:
        raise ComputeError(
            f"mmccd segment --preset {preset} failed.",
            cause=" ".join(done.stderr.split())[-300:] or f"Its exit code is {done.returncode}.",
            next_step=f"Run it alone: mmccd segment {' '.join(setup.arguments)} --out map.nii.gz",
        )
    record = json.loads(done.stdout)
    return PresetCost(
        preset=preset,
        seconds=seconds,
        inference_seconds=record["seconds"]["inference"],
        cpu_seconds=(after.children_user - before.children_user)
        + (after.children_system - before.children_system),
        peak_memory_mib=record["peak_memory_mib"],
        dice=_dice(setup.subject, setup.folder / record["outputs"]["mask"]),
        device=record["device"],
    )


def _dice(subject: Subject, mask: Path) -> float | None:
    if subject.segmentation is None:
        return None
    found, truth = (
        read_nifti(path, allow_constant=True)[0].data > 0 for path in (mask, subject.segmentation)
    )
    return overlap(found, truth).dice if found.shape == truth.shape else None
