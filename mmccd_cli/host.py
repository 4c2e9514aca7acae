"""The computer's cores and memory, as far as this process may use them; without torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from pathlib import Path


def available_threads() -> int:
    """CPU cores that this process may use, by affinity, cgroup quota, SLURM and OpenMP."""
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    limits = [len(affinity(0))]
    for variable in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        value = os.environ.get(variable, "")
        if value.isdigit() and int(value) > 0:
            limits.append(int(value))
    return max(1, min(*limits, _cgroup_quota() or limits[0]))


def _cgroup_quota() -> int | None:
    """Whole cores of the cgroup's CPU quota (version 2), rounded up, or None."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError):
        return None


def free_memory() -> int | None:
    """Bytes of memory that are left, None where nobody says."""
    limits = [_available_memory(), _cgroup_memory()]
    return min((limit for limit in limits if limit is not None), default=None)


def _available_memory() -> int | None:
    """What Linux can give out without swapping."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def give_back_freed_memory() -> None:
    """Hand what was freed back to the system, where the C library is glibc; others do it alone."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def cgroup_memory_limit() -> int | None:
    """Bytes that the cgroup (version 2) lets this process use, None without a limit."""
    return _cgroup_number("memory.max")


def _cgroup_memory() -> int | None:
    """What the cgroup's limit leaves."""
    limit, used = cgroup_memory_limit(), _cgroup_number("memory.current")
    return None if limit is None or used is None else max(0, limit - used)


def _cgroup_number(name: str) -> int | None:
    """Return what a file of the cgroup holds; None for "max", or where there is no such file."""
    try:
        return int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
