"""How many subjects of a cohort are done at a time: as cores and memory allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from mmccd_cli.cohort.jobs import Job
from mmccd_cli.errors import MmccdError
from mmccd_cli.host import free_memory
from mmccd_cli.inputs.nifti import read_grid
from mmccd_cli.inputs.subjects import Subject

MOST_WORKERS = 8
LEAST_MEMORY_OF_A_SUBJECT = 1 << 30
"""Bytes that a subject takes while it is prepared; skull stripping takes most of them."""
MEMORY_OF_A_VOXEL = 16
"""Bytes that fine scans take instead, for each voxel of all scans of a subject.

Measured: 15 for three scans of 480 x 480 x 400 voxels, each turned in its own way, which are
registered; 6 to 10 for scans that share a grid, and for a scan alone.
"""
MOST_LOOKED_AT = 64
"""Subjects, evenly spread over a cohort, whose headers tell how fine its scans are."""


def choose_workers(jobs: Sequence[Job], cores: int) -> int:
    """Return how many of these subjects are prepared at a time.

    As many as there are processor cores, because registration takes one thread and most of the
    time; at most as many as fit into half of the free memory, should the finest meet each other;
    and none on a single core, or of one subject.
    """
    most = min(len(jobs), cores, MOST_WORKERS)
    if most < 2:
        return 0
    free = free_memory()
    if free is None:
        return most
    every = math.ceil(len(jobs) / MOST_LOOKED_AT)
    needed = sorted(map(memory_of, jobs[::every]), reverse=True)
    finest = [memory for memory in needed for _ in range(every)][:most]  # each stands for so many
    return max(1, sum(total <= free // 2 for total in accumulate(finest)))


def memory_of(job: Job) -> int:
    """Return about how many bytes a subject takes, from the headers of its scans.

    One whose headers cannot be read takes the least; its turn will tell what is wrong.
    """
    try:
        voxels = sum(math.prod(_shape_of(job.subject, name)) for name in job.subject.paths)
    except (MmccdError, OSError):
        voxels = 0
    return max(LEAST_MEMORY_OF_A_SUBJECT, MEMORY_OF_A_VOXEL * voxels)


def _shape_of(subject: Subject, modality: str) -> tuple[int, int, int]:
    stack = subject.series.get(modality)  # its headers were read when it was found
    return read_grid(subject.paths[modality]).shape if stack is None else stack.shape
