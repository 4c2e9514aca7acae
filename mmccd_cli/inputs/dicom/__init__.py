"""DICOM: from a folder or archive of series to one volume for each modality.

In the order in which data passes through:

1. `files`: the DICOM files of a folder or a zip archive, whatever their names.
2. `headers`: a file -> what its header says of each slice, and nothing of who it shows.
3. `recognition`: how a series was acquired -> which modality it is; the JSON of NIfTI, too.
4. `stacks`: loose frames -> stacks with an affine.
5. `studies`: all of these -> one stack for each modality, and why that one.
6. `pixels`: a stack -> a `Volume`.
"""

from __future__ import annotations

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "pixels": ["read_stack"],
        "stacks": ["Stack"],
        "studies": ["Study", "read_single_series", "read_study"],
    },
)
