"""A result -> the bytes of files, and these to the disk: all of a subject's or none.

Nothing here knows of many subjects or of the command line. In the order in which data passes
through:

1. `segmented`: a subject, its result and its record, which all files are made from.
2. `images`: map and mask as NIfTI, what they are called, and writing all files at once.
3. `anatomy`: on which side of the template a lesion lies.
4. `lesions`: what record, warnings and table say of lesions, and of what was left out;
   `numbers`: which voxels are whose.
5. `record`: what the sidecar says of one run, how it is read back, and JSON.
6. `schema`: the fields that a record must have, which `mmccd schema` prints.
7. `bids`: the files of BIDS that show a mask, and what they are called.
8. `remask`: a new mask from a map that is there, with the same files and a new record.
9. `extras`: the table of everything that can be written besides.
10. `dicom_seg`: map or mask as DICOM Segmentation.
11. `pictures`: panels of three planes, and the overview picture.
12. `report/`: HTML pages of a subject and of a cohort.
"""

from __future__ import annotations

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "anatomy": ["Place", "place_of"],
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
