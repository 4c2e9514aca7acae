"""A result -> the bytes of files, and these to the disk: all of a subject's or none.

Nothing here knows of many subjects or of the command line. In the order in which data passes
through:

1. `segmented`: a subject, its result and its record, which all files are made from.
2. `images`: map and mask as NIfTI, what they are called, and writing all files at once.
3. `record`: what the sidecar says of one run, and JSON.
4. `bids`: the files of BIDS that show a mask.
5. `remask`: a new mask from a map that is there, with the same files and a new record.
6. `extras`: the table of everything that can be written besides.
7. `dicom_seg`: map or mask as DICOM Segmentation.
8. `pictures`: panels of three planes, and the overview picture.
9. `report/`: HTML pages of a subject and of a cohort.
"""

from __future__ import annotations

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "bids": ["BIDS_OUTPUTS", "BidsMask"],
        "dicom_seg": ["Provenance", "encode_segmentation"],
        "extras": ["EXTRA_OUTPUTS", "ExtraOutput"],
        "images": ["OutputPaths", "encode_images", "encode_mask", "output_paths", "write_outputs"],
        "pictures": ["overview_png"],
        "record": ["Outcome", "describe_result", "encode_json", "read_record", "to_json"],
        "remask": ["NewMask"],
        "segmented": ["SegmentedSubject"],
    },
)
