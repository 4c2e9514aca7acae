"""What a command that segments imports, as soon as it is known that it will be needed."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module

from mmccd_cli.errors import check_address_space


def begin_imports() -> None:
    """Import torch in a thread, beside all that reads and prepares scans.

    Raises:
        ComputeError: The process may not have the memory that this takes.
    """
    check_address_space()
    from mmccd_cli.cohort.prefetch import in_background

    in_background(partial(import_module, "torch"))
    _import_nibabel()


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
