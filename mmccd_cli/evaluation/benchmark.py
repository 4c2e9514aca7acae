"""What segmenting a subject costs on this machine, preset by preset.

A preset is run as a user runs it: `mmccd segment` in a process of its own, timed from outside. What
would take too long is estimated from its network passes, and says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.config import choose_sampling
from mmccd_cli.errors import ComputeError
from mmccd_cli.inputs.nifti import read_nifti
from mmccd_cli.inputs.scans import read_scans
from mmccd_cli.inputs.subjects import Subject
from mmccd_cli.preprocessing.subject import prepare_subject
from mmccd_cli.progress import silent
from mmccd_cli.translation.devices import describe_device
from mmccd_cli.translation.engine import band_work
from mmccd_cli.translation.slices import to_slices
from mmccd_cli.weights.bundle import Bundle

BENCHMARKED = ("fast", "balanced", "paper")
"""The presets by rising number of passes."""
INFERENCE = "inference"
REST = "start and end"


@dataclass(frozen=True, kw_only=True)
class BenchmarkSetup:
    """What is measured, and where.

    Attributes:
        subject: Its files; the Dice is told where a segmentation lies beside them.
        bundle: The weights.
        device: Where networks run.
        precision: A key of `PRECISIONS`.
        arguments: Of `mmccd segment`, which lead to this subject, bundle, device and precision.
        folder: Where results may be written.
    """

    subject: Subject
    bundle: Bundle
    device: torch.device
    precision: str
    arguments: Sequence[str]
    folder: Path


@dataclass(frozen=True, kw_only=True)
class PresetCost:
    """What a whole process of `mmccd segment` took.

    Attributes:
        preset: Its name.
        passes: Slices through networks.
        seconds: Stage -> seconds on the clock; `REST` is what lies before and after the stages.
        cpu_seconds: Seconds of the CPU, which other programs on the same cores hardly lengthen;
            None where it was not run.
        peak_memory_mib: Largest resident memory, or None where nobody counts it.
        dice: Overlap with the segmentation, or None where there is none.
        estimated: Whether the networks' seconds are those of another preset by their passes.
    """

    preset: str
    passes: int
    seconds: dict[str, float]
    cpu_seconds: float | None = None
    peak_memory_mib: float | None = None
    dice: float | None = None
    estimated: bool = False

    @property
    def total_seconds(self) -> float:
        """Seconds of the whole process."""
        return sum(self.seconds.values())

    def scaled_to(self, preset: str, passes: int) -> PresetCost:
        """Estimate another preset, whose passes go through the same networks."""
        seconds = self.seconds[INFERENCE] * passes / self.passes
        return PresetCost(
            preset=preset,
            passes=passes,
            seconds={**self.seconds, INFERENCE: seconds},
            estimated=True,
        )


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """All that `mmccd benchmark` prints.

    Attributes:
        subject: Id.
        bundle: Name and version.
        device: In words.
        precision: Arithmetic of the networks.
        slices: Slices that hold brain.
        presets: One for each of `BENCHMARKED`.
    """

    subject: str
    bundle: str
    device: str
    precision: str
    slices: int
    presets: list[PresetCost]


def run_benchmark(
    setup: BenchmarkSetup, *, budget_s: float, report: Callable[[str], None] = silent
) -> BenchmarkResult:
    """Measure all presets; the first is always run.

    Args:
        setup: What and where.
        budget_s: Seconds above which the networks of a further preset are estimated.
        report: Called with what is done next.

    Raises:
        MmccdError: As `mmccd segment` does.
    """
    report("preparing the subject")
    slices, passes = expected_passes(setup)
    costs: list[PresetCost] = []
    for preset, number in passes.items():
        cost = costs[-1].scaled_to(preset, number) if costs else None
        if cost is None or cost.seconds[INFERENCE] <= budget_s:
            report(f"{preset}: a whole process")
            cost = run_process(setup, preset, passes=number)
        costs.append(cost)
    return BenchmarkResult(
        subject=setup.subject.id,
        bundle=f"{setup.bundle.config.name} {setup.bundle.config.version}",
        device=describe_device(setup.device),
        precision=setup.precision,
        slices=slices,
        presets=costs,
    )


def expected_passes(setup: BenchmarkSetup) -> tuple[int, dict[str, int]]:
    """Tell the network passes of all presets without making them.

    Returns:
        The slices that hold brain, and preset -> slices through networks over all cycles, each
        time counted.
    """
    config = setup.bundle.config
    prepared = prepare_subject(
        read_scans(setup.subject).volumes,
        setup.bundle.template,
        config.preprocessing,
        seed=config.sampling.seed,
    )
    multiple = int(np.lcm(config.unet.stride, config.denoiser.stride))
    stack = to_slices(prepared.brain.astype(np.float32), prepared.brain, multiple=multiple)
    passes = {}
    for preset in BENCHMARKED:
        sampling = choose_sampling(config.sampling, preset)
        score = setup.bundle.choose_score(sampling.method, tuple(prepared.images))
        a_cycle = 2 * len(stack)
        if sampling.method == "mmccd":
            pairs = band_work(torch.from_numpy(stack.brain), sampling).pairs
            a_cycle = len(pairs) * (sampling.num_inference_steps + 1)
        passes[preset] = a_cycle * len(score.sources)
    return len(stack), passes


def run_process(setup: BenchmarkSetup, preset: str, *, passes: int) -> PresetCost:
    """Segment the subject in a new process, which makes so many passes.

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
    stages = record["seconds"]
    return PresetCost(
        preset=preset,
        passes=passes,
        seconds={**stages, REST: max(0.0, seconds - sum(stages.values()))},
        cpu_seconds=(after.children_user - before.children_user)
        + (after.children_system - before.children_system),
        peak_memory_mib=record["peak_memory_mib"],
        dice=_dice(setup.subject, setup.folder / record["outputs"]["mask"]),
    )


def _dice(subject: Subject, mask: Path) -> float | None:
    if subject.segmentation is None:
        return None
    found, truth = (
        read_nifti(path, allow_constant=True)[0].data > 0 for path in (mask, subject.segmentation)
    )
    return overlap(found, truth).dice if found.shape == truth.shape else None
