"""What a user points at (a folder, files, DICOM, a data set) -> one `Volume` a modality.

In the order in which data passes through:

1. `names`: what the words of a file's name say about an image, and `sidecars` the JSON beside it.
2. `bids`: the same of a BIDS data set, and which of several images is meant.
3. `dicom/`: the same of DICOM, by headers, and from series to volumes.
4. `subjects`: a folder or files -> a `Subject`, one file or series for each modality.
5. `scans`: a `Subject` -> its images, and the hashes that say which files these were.
6. `nifti`: a NIfTI file -> a `Volume` and the grid to write outputs on, and back to bytes.
7. `volume`: an image with its place in the world.

`phantom` makes a synthetic head on any grid, for demonstrations and tests.
"""

from __future__ import annotations

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "bids": ["BidsFilter", "read_filter"],
        "nifti": ["NiftiGrid", "encode_nifti", "make_grid", "read_nifti", "write_nifti"],
        "phantom": ["Phantom", "make_phantom"],
        "scans": ["Scans", "describe_inputs", "read_image", "read_scans"],
        "subjects": [
            "Subject",
            "find_sessions",
            "find_subject",
            "find_subjects",
            "subject_from_files",
        ],
        "volume": ["Volume", "reorient"],
    },
)
