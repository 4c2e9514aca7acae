"""Unsupervised anomaly segmentation in multi-modal brain MRI (MMCCD).

>>> from mmccd_cli import Segmenter
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmccd_cli.api import Segmenter as Segmenter
    from mmccd_cli.cohort.jobs import RunSettings as RunSettings
    from mmccd_cli.errors import MmccdError as MmccdError

__version__ = "0.2.0"

__all__ = ["MmccdError", "RunSettings", "Segmenter", "__version__"]

_HOMES = {
    "MmccdError": "mmccd_cli.errors",
    "RunSettings": "mmccd_cli.cohort.jobs",
    "Segmenter": "mmccd_cli.api",
}


def __getattr__(name: str) -> Any:
    # Only when asked for: the command line must not pay for torch before it needs it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
