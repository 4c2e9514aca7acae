"""What a command that segments imports, as soon as it is known that it will be needed."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from functools import partial
from importlib import import_module

from mmccd_cli.errors import check_address_space

# What glibc's mallopt(3) calls M_...
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8


def begin_imports() -> None:
    """Import torch and the pipeline in a thread, beside all that reads and prepares scans.

    Raises:
        ComputeError: The process may not have the memory that this takes.
    """
    check_address_space()
    _keep_freed_memory()
    # A thread that reads asks for the interpreter a thousand times, and would wait 5 ms each.
    sys.setswitchinterval(0.0005)
    from mmccd_cli.cohort.prefetch import in_background

    thresholds = gc.get_threshold()
    gc.set_threshold(100_000)  # what is imported stays: to look for garbage in it is in vain
    in_background(partial(_import_largest, thresholds))
    _import_nibabel()


def _import_largest(thresholds: tuple[int, int, int]) -> None:
    """Import torch and what is needed when the first scans are read; look for garbage again."""
    try:
        import_module("torch")
        import_module("mmccd_cli.api")
    finally:
        gc.set_threshold(*thresholds)


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed for what is asked for next, up to arrays of 32 MB.

    Otherwise it asks the system for each array anew, which gives pages of zeros: an eighth of all
    the time that a subject takes. What one thread frees is for all. Other C libraries have no such
    setting.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 1 << 30)
        mallopt(_TOP_PAD, 32 << 20)
        mallopt(_ARENA_MAX, 1)


def _import_nibabel() -> None:
    """Import nibabel without pydicom, which takes three times as long as all the rest of it.

    nibabel wants it for DICOM in the extensions of headers, at which nothing here looks. Only the
    program does this: in a process of somebody else, nibabel stays whole.
    """
    if "nibabel" in sys.modules or "pydicom" in sys.modules:
        return
    sys.modules["pydicom"] = None  # type: ignore[assignment]  # the documented way to say "absent"
    try:
        import_module("nibabel")
    finally:
        del sys.modules["pydicom"]
