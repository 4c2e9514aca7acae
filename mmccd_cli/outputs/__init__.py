"""A result -> the bytes of files, and these to the disk: all of a subject's or none.

Nothing here knows of many subjects or of the command line. In the order in which data passes
through:

1. `segmented`: a subject, its result and its record, which all files are made from.
2. `images`: map and mask as NIfTI, what they are called, and writing all files at once.
3. `lesions`: what record, warnings and table say of lesions, and of what was left out.
4. `record`: what the sidecar says of one run, how it is read back, and JSON.
5. `schema`: the fields that a record must have, which `mmccd schema` prints.
6. `bids`: the files of BIDS that show a mask, and what they are called.
7. `remask`: a new mask from a map that is there, with the same files and a new record.
8. `extras`: the table of everything that can be written besides.
9. `dicom_seg`: map or mask as DICOM Segmentation.
10. `pictures`: panels of three planes, and the overview picture.
11. `report/`: HTML pages of a subject and of a cohort.
"""

from __future__ import annotations

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "bids": ["BIDS_OUTPUTS", "BidsMask"],
        "dicom_seg": ["Provenance", "encode_segmentation"],
        "extras": ["EXTRA_OUTPUTS", "ExtraOutput"],
        "images": ["encode_images", "encode_mask", "output_paths", "write_outputs"],
        "lesions": ["lesion_table", "mask_warnings"],
        "pictures": ["overview_png"],
        "record": [
            "Outcome",
            "describe_result",
            "encode_json",
            "read_record",
            "read_sidecar",
            "to_json",
        ],
        "remask": ["NewMask"],
        "schema": ["DoneRecord", "record_schema"],
        "segmented": ["SegmentedSubject"],
    },
)
