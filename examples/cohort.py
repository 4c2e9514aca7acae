"""Segment a cohort from Python and list what needs a look: `python cohort.py DATA OUT`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmccd_cli import MmccdError, Segmenter


def main() -> int:
    """Load the weights once, segment every subject, and sort by lesion volume."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with one folder for each subject")
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--weights", help="name, folder or place on the Hub")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()

    if not options.data.is_dir():
        parser.error(f"{options.data} is not a folder")
    folders = sorted(path for path in options.data.iterdir() if path.is_dir())
    volumes, failed = {}, {}
    try:
        segmenter = Segmenter.from_pretrained(options.weights, device=options.device)
        # Results that are up to date are kept, so this can be stopped and started again.
        for outcome in segmenter.segment_cohort(folders, options.out, resume=True):
            if outcome.error is not None:
                failed[outcome.name] = outcome.error
            else:
                volumes[outcome.name] = outcome.record["lesion_volume_ml"]
    except MmccdError as error:  # what concerns all subjects, such as missing weights
        print(f"{error}\n{error.next_step or ''}", file=sys.stderr)
        return error.exit_code

    for name in sorted(volumes, key=lambda name: -volumes[name]):
        print(f"{volumes[name]:8.2f} ml  {name}")
    for name, reason in failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    return 6 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
