"""Cores and memory that this process may use, whoever limits them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmccd_cli import host


def test_threads_obey_the_smallest_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(host, "_cgroup_quota", lambda: 12)
    for variable in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(variable, raising=False)
    assert host.available_threads() == 12
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert host.available_threads() == 6
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert host.available_threads() == 2
    for nonsense in ("0", "4,2", "many", "-3"):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        assert host.available_threads() == 6


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", None), ("250000 100000", 3), ("50000 100000", 1), ("", None), ("x y", None)],
)
def test_quota_of_a_container(
    text: str, cores: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: text)
    assert host._cgroup_quota() == cores


@pytest.mark.parametrize(
    ("limit", "used", "left"), [("max", "5", None), ("100", "30", 70), ("100", "130", 0)]
)
def test_memory_of_a_container(
    limit: str, used: str, left: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"memory.max": f"{limit}\n", "memory.current": f"{used}\n"}
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: texts[self.name])
    assert host._cgroup_memory() == left
