"""Does the same head give the same mask? `python repeatability.py SUBJECT... [--out table.csv]`.

Each subject is segmented as it is and again after changes that no reader of the scan would notice:
another origin of the header, affines a hair off, a little noise, another unit of intensities, the
head mirrored, voxels half a step further. Masks are compared with the unchanged one: Dice, and
volume in percent.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from mmccd_cli import MmccdError, Segmenter
from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.inputs.scans import read_scans
from mmccd_cli.inputs.subjects import find_subject
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.preprocessing.spatial import resample

Volumes = Mapping[str, Volume]
Mask = NDArray[np.bool_]
Change = Callable[[Volume], Volume]


def moved_origin(mm: float) -> Change:
    """Another origin of the world, for all scans alike."""
    shift = np.eye(4)
    shift[:3, 3] = mm
    return lambda scan: Volume(scan.data, shift @ scan.affine)


def noisy_affine(scan: Volume) -> Volume:
    """Rounding of headers, as on the way from NIfTI to DICOM and back."""
    noise = np.random.default_rng(0).normal(0, 1e-4, (3, 4)) * [0.01, 0.01, 0.01, 1]
    return Volume(scan.data, scan.affine + np.vstack([noise, np.zeros(4)]))


def noisy(scan: Volume) -> Volume:
    """One percent of noise."""
    noise = np.random.default_rng(0).standard_normal(scan.shape, dtype=np.float32)
    return Volume(scan.data * (1 + np.float32(0.01) * noise), scan.affine)


def in_another_unit(scan: Volume) -> Volume:
    """A thousand times the intensity."""
    return Volume(np.float32(1000) * scan.data, scan.affine)


def mirrored(scan: Volume) -> Volume:
    """The head mirrored: voxels in opposite order along the first axis, the grid as it is."""
    return Volume(scan.data[::-1].copy(), scan.affine)


def half_a_voxel_on(scan: Volume) -> Volume:
    """Interpolated on a grid that lies half a voxel further along every axis."""
    return resample(scan, scan.shape, _half_step(scan))


def _half_step(scan: Volume) -> NDArray[np.float64]:
    step = np.eye(4)
    step[:3, 3] = 0.5
    return scan.affine @ step


def as_it_is(mask: Mask, scan: Volume) -> Mask:
    """The mask of a change that leaves voxels where they are."""
    return mask


def mirrored_back(mask: Mask, scan: Volume) -> Mask:
    """The mask of a mirrored head, mirrored."""
    return mask[::-1]


def half_a_voxel_back(mask: Mask, scan: Volume) -> Mask:
    """A mask on the moved grid, brought to the scan's."""
    moved = Volume(mask.astype(np.float32), _half_step(scan))
    return resample(moved, scan.shape, scan.affine).data >= 0.5


CHANGES: dict[str, tuple[Change, Callable[[Mask, Volume], Mask]]] = {
    "origin +10 mm": (moved_origin(10.0), as_it_is),
    "origin -37 mm": (moved_origin(-37.0), as_it_is),
    "affine noise 1e-4 mm": (noisy_affine, as_it_is),
    "noise 1 %": (noisy, as_it_is),
    "intensities x 1000": (in_another_unit, as_it_is),
    "mirrored": (mirrored, mirrored_back),
    "half a voxel": (half_a_voxel_on, half_a_voxel_back),
}


def compare(segmenter: Segmenter, volumes: Volumes) -> dict[str, tuple[float, float]]:
    """Return Dice and change of volume in percent of every change of a subject."""
    reference = segmenter.segment(volumes)
    truth, scan = reference.mask, volumes[reference.reference]
    found = {}
    runs = {
        name: (({m: f(v) for m, v in volumes.items()}), back) for name, (f, back) in CHANGES.items()
    }
    if len(volumes) > 1 and "T1w" in volumes:
        runs["T1w not given"] = ({m: v for m, v in volumes.items() if m != "T1w"}, as_it_is)
    for name, (changed, back) in runs.items():
        mask = back(segmenter.segment(changed).mask, scan)
        volume = 100 * (mask.sum() / max(1, truth.sum()) - 1)
        found[name] = overlap(mask, truth).dice, float(volume)
    return found


def main() -> int:
    """Segment all subjects in all ways, and print a table of means and worst cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subjects", nargs="+", type=Path, help="folders of subjects")
    parser.add_argument("--weights", help="name, folder or place on the Hub")
    parser.add_argument("--out", type=Path, help="CSV with a row for each subject and change")
    options = parser.parse_args()
    segmenter = Segmenter.from_pretrained(options.weights)
    rows = []
    for folder in options.subjects:
        try:
            found = compare(segmenter, read_scans(find_subject(folder)).volumes)
        except MmccdError as error:
            print(f"{folder.name}: {error}", file=sys.stderr)
            continue
        rows += [(folder.name, name, *values) for name, values in found.items()]
        print(
            f"{folder.name}: lowest Dice {min(dice for dice, _ in found.values()):.3f}",
            file=sys.stderr,
        )
    if options.out:
        with options.out.open("w", newline="") as stream:
            csv.writer(stream).writerows([("subject", "change", "dice", "volume_percent"), *rows])
    table = Table(
        "change", "mean Dice", "lowest", "largest change of volume, %", title="Repeatability"
    )
    for name in dict.fromkeys(row[1] for row in rows):
        dice, volume = np.array([row[2:] for row in rows if row[1] == name]).T
        worst = volume[np.abs(volume).argmax()]
        table.add_row(name, f"{dice.mean():.3f}", f"{dice.min():.3f}", f"{worst:+.1f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
