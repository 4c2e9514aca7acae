"""Segment one subject from Python: `python segment_subject.py SUBJECT map.nii.gz`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmccd_cli import MmccdError, RunSettings, Segmenter


def main() -> int:
    """Load, segment, write, and list the lesions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", type=Path, help="folder with FLAIR, T2w and T1w")
    parser.add_argument("out", type=Path, help="anomaly map, .nii.gz")
    parser.add_argument("--weights", help="name, folder or place on the Hub")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()

    try:
        segmenter = Segmenter.from_pretrained(options.weights, device=options.device)
        finished = segmenter.segment_files(
            options.subject, out=options.out, settings=RunSettings(min_lesion_mm3=10)
        )
    except MmccdError as error:
        print(f"{error}\n{error.next_step or ''}", file=sys.stderr)
        return error.exit_code

    for lesion in finished.result.lesions:
        place = ", ".join(f"{mm:.0f}" for mm in lesion.centroid_ras_mm)
        print(f"{lesion.volume_ml:8.2f} ml at {place} mm (RAS)")
    print(f"{finished.record['lesion_volume_ml']:8.2f} ml in all, in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
