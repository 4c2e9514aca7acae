"""What is the smallest and faintest lesion that is found in scans like mine?

`python painted_lesions.py SUBJECT... [--rounds 5] [--out painted.tsv]`

Lesions of known volume and contrast are painted into healthy tissue of each subject, by a painter
that nothing was trained on, and segmented with all of its scans and with each alone. Healthy
subjects are best; of others with a segmentation beside their scans, only tissue away from it is
painted. The table has, for each set of scans and class of volume and contrast, the share of lesions
that the mask holds and, in brackets, of those that are at least in the table of candidates.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmccd_cli import MmccdError, Segmenter
from mmccd_cli.evaluation.painted import (
    PaintedPlan,
    PaintedRow,
    measure_painted,
    painted_table,
    write_painted,
)
from mmccd_cli.evaluation.tables import text_table
from mmccd_cli.files import refuse_to_overwrite
from mmccd_cli.inputs.nifti import read_nifti
from mmccd_cli.inputs.scans import read_scans
from mmccd_cli.inputs.subjects import find_subject


def main() -> int:
    """Paint into all subjects, segment them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subjects", nargs="+", type=Path, help="folders of subjects")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is painted")
    parser.add_argument("--lesions", type=int, default=4, help="lesions a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", help="name, folder or place on the Hub")
    parser.add_argument("--out", type=Path, help="TSV with a row for each lesion and set of scans")
    options = parser.parse_args()
    try:
        refuse_to_overwrite([options.out] if options.out else [], force=True)
        pipeline = Segmenter.from_pretrained(options.weights)
    except MmccdError as error:  # what concerns all subjects, such as missing weights
        print(f"{error}\n{error.next_step or ''}", file=sys.stderr)
        return error.exit_code
    plan = PaintedPlan(rounds=options.rounds, lesions=options.lesions, seed=options.seed)
    rows: list[PaintedRow] = []
    for folder in options.subjects:
        try:
            subject = find_subject(folder)
            own = subject.segmentation and read_nifti(subject.segmentation, allow_constant=True)[0]
            prepared = pipeline.prepare(read_scans(subject).volumes)
            for row in measure_painted(pipeline, subject.id, prepared, reference=own, plan=plan):
                rows.append(row)
        except MmccdError as error:
            print(f"{folder.name}: {error}", file=sys.stderr)
            continue
        print(f"{subject.id}: painted", file=sys.stderr)
        if options.out:
            write_painted(options.out, rows)
    header, cells = painted_table(rows)
    title = "share of lesions in the mask (among the candidates), median Dice, number"
    print(text_table(title, header, cells, width=200, left=2))
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
