"""Unsupervised anomaly segmentation in multi-modal brain MRI (MMCCD).

>>> from mmccd_cli import Segmenter

Nothing is imported before it is asked for: the command line must not pay for torch too early.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader as lazy

if TYPE_CHECKING:
    from mmccd_cli.api import Segmenter as Segmenter
    from mmccd_cli.cohort.jobs import RunSettings as RunSettings
    from mmccd_cli.errors import MmccdError as MmccdError
    from mmccd_cli.inputs.volume import Volume as Volume

__version__ = "0.16.0"

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "api": ["Segmenter"],
        "cohort.jobs": ["RunSettings"],
        "errors": ["MmccdError"],
        "inputs.volume": ["Volume"],
    },
)
__all__ += ["__version__"]
