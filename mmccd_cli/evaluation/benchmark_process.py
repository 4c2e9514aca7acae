"""A preset as a user runs it: `mmccd segment` in a process of its own, timed from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.errors import ComputeError
from mmccd_cli.inputs.nifti import read_nifti
from mmccd_cli.inputs.subjects import Subject

REST = "start and end"


@dataclass(frozen=True)
class ProcessRun:
    """A whole process of `mmccd segment`.

    Attributes:
        seconds: Stage -> seconds on the clock; `REST` is what lies before and after the stages.
        cpu_seconds: Seconds of the CPU, which other programs on the same cores hardly lengthen;
            None where it was not run as a whole.
        peak_memory_mib: Largest resident memory, or None where nobody counts it.
        dice: Overlap with the segmentation, or None where there is none.
    """

    seconds: dict[str, float]
    cpu_seconds: float | None = None
    peak_memory_mib: float | None = None
    dice: float | None = None

    @property
    def total_seconds(self) -> float:
        """Seconds of the whole process."""
        return sum(self.seconds.values())


def run_process(
    subject: Subject, preset: str, arguments: Sequence[str], folder: Path
) -> ProcessRun:
    """Segment a subject in a new process.

    Args:
        subject: What is in its folder.
        preset: Name of the preset.
        arguments: Of `mmccd segment`: the subject's folder, and options.
        folder: Where results go.

    Raises:
        ComputeError: The process failed.
    """
    out = folder / f"{preset}.nii.gz"
    command = [sys.executable, "-m", "mmccd_cli", "segment", *arguments, "--preset", preset]
    command += ["--out", str(out), "--force", "--json"]
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds, after = time.perf_counter() - began, os.times()
    if done.returncode:
        raise ComputeError(
            f"mmccd segment --preset {preset} failed",
            cause=" ".join(done.stderr.split())[-300:] or f"exit code {done.returncode}",
        )
    record = json.loads(done.stdout)
    stages = record["seconds"]
    return ProcessRun(
        seconds={**stages, REST: max(0.0, seconds - sum(stages.values()))},
        cpu_seconds=(after.children_user - before.children_user)
        + (after.children_system - before.children_system),
        peak_memory_mib=record["peak_memory_mib"],
        dice=_dice(subject, folder / record["outputs"]["mask"]),
    )


def _dice(subject: Subject, mask: Path) -> float | None:
    if subject.segmentation is None:
        return None
    found, truth = (
        read_nifti(path, allow_constant=True)[0].data > 0 for path in (mask, subject.segmentation)
    )
    return overlap(found, truth).dice if found.shape == truth.shape else None
