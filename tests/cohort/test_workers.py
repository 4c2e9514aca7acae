"""How many subjects are done at a time follows cores, memory and how fine their scans are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmccd_cli.cohort import workers
from mmccd_cli.cohort.jobs import Job
from mmccd_cli.cohort.workers import choose_workers, memory_of
from mmccd_cli.inputs.nifti import make_grid, write_nifti
from mmccd_cli.inputs.subjects import Subject

GB = 1 << 30


def _job(paths: dict[str, Path], series: dict[str, Any] | None = None) -> Job:
    return Job(subject=Subject(id="x", paths=paths, series=series or {}), targets={})


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what memory is free, in GB, and what each job takes, which is the job itself here."""

    def sets(free_gb: float | None) -> None:
        answer = None if free_gb is None else int(free_gb * GB)
        monkeypatch.setattr(workers, "free_memory", lambda: answer)
        monkeypatch.setattr(workers, "memory_of", lambda gb: gb * GB)

    return sets


@pytest.mark.parametrize(
    ("jobs", "cores", "free_gb", "chosen"),
    [
        ([1] * 10, 4, 100, 4),
        ([1] * 3, 4, 100, 3),
        ([1] * 100, 64, 100, workers.MOST_WORKERS),
        ([1] * 10, 1, 100, 0),
        ([1], 4, 100, 0),
        ([1] * 10, 4, 6, 3),
        ([1] * 10, 4, 0.5, 1),
        ([5] * 10, 8, 20, 2),
        ([5] * 10, 8, None, 8),
        ([1] * 9 + [5], 8, 20, 6),  # 5 + 5 * 1 in half of 20
    ],
)
def test_as_many_as_cores_and_memory_hold(
    free: Any, jobs: list[Any], cores: int, free_gb: float | None, chosen: int
) -> None:
    free(free_gb)
    assert choose_workers(jobs, cores) == chosen


def test_of_many_subjects_some_stand_for_all(free: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    free(20)
    seen: list[int] = []
    monkeypatch.setattr(workers, "memory_of", lambda gb: seen.append(gb) or gb * GB)
    jobs: list[Any] = [1] * 300
    jobs[0] = 4
    # One in 5 is looked at: the fine one stands for five.
    assert choose_workers(jobs, 8) == 2
    assert len(seen) == 60


def test_memory_follows_the_voxels_of_all_scans(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(path, np.zeros((20, 20, 20), np.float32), make_grid((20, 20, 20), np.eye(4)))
    assert memory_of(_job({"T1w": path})) == GB
    fine = SimpleNamespace(shape=(512, 512, 512))
    both = _job({"T1w": tmp_path, "FLAIR": path}, {"T1w": fine})
    assert memory_of(both) == workers.MEMORY_OF_A_VOXEL * (512**3 + 20**3)
    for spoilt in (path.read_bytes()[:30], b"text"):
        path.write_bytes(spoilt)
        assert memory_of(both) == GB
    assert memory_of(_job({"T1w": tmp_path / "gone.nii.gz"})) == GB
