"""Does the same head give the same mask? `python repeatability.py SUBJECT... [--out table.csv]`.

Each subject is segmented as it is and again after changes that no reader of the scan would notice:
another origin of the header, affines a hair off, a little noise, another unit of intensities, a
coil that sees one end brighter, the head mirrored, a DICOM series made of each scan, two threads
instead of one, voxels half a step further. Masks are compared with the unchanged one: Dice, and
volume in percent.

Half a step further, masks are compared on voxels of half the size that lie between both grids. A
mask of thick slices is another one there before anything is segmented: the last row has the
unchanged mask itself, sampled on the moved grid.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat
from rich.console import Console
from rich.table import Table

from mmccd_cli import MmccdError, Segmenter
from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.files import refuse_to_overwrite
from mmccd_cli.inputs.dicom.pixels import read_stack
from mmccd_cli.inputs.dicom.studies import read_single_series
from mmccd_cli.inputs.scans import read_scans
from mmccd_cli.inputs.subjects import find_subject
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.preprocessing.spatial import resample
from mmccd_cli.template import transform_points

Volumes = Mapping[str, Volume]
Change = Callable[[Volume], Volume]
Compare = Callable[[Volume, Volume], float]
"""Dice of the unchanged mask and of another, each on its grid."""


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


def shaded(scan: Volume) -> Volume:
    """Intensities that rise from 70 to 130 percent along the second axis of voxels."""
    gain = np.linspace(0.7, 1.3, scan.shape[1], dtype=np.float32)
    return Volume(scan.data * gain[:, np.newaxis], scan.affine)


def mirrored(scan: Volume) -> Volume:
    """The head mirrored: voxels in opposite order along the first axis, the grid as it is."""
    return Volume(scan.data[::-1].copy(), scan.affine)


def half_a_voxel_on(scan: Volume) -> Volume:
    """Interpolated on a grid that lies half a voxel further along every axis."""
    return resample(scan, scan.shape, _stepped(scan, 0.5))


def through_dicom(scan: Volume) -> Volume:
    """Written as a DICOM series of whole numbers, and read from it."""
    with TemporaryDirectory() as folder:
        write_series(scan, Path(folder))
        return read_stack(read_single_series(Path(folder)))[0]


def write_series(scan: Volume, folder: Path) -> None:
    """Write one MR image for each slice along the third axis, rounded to 16 bits."""
    low, high = float(scan.data.min()), float(scan.data.max())
    slope = (high - low) / np.iinfo(np.uint16).max or 1.0
    stored = np.rint((scan.data - low) / slope).astype(np.uint16)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.affine
    width, height, thickness = scan.spacing_mm
    directions = [*(lps[:3, 0] / width), *(lps[:3, 1] / height)]
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for index in range(scan.shape[2]):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.FrameOfReferenceUID, image.InstanceNumber = frame, index + 1
        image.Modality, image.ImageType = "MR", ["ORIGINAL", "PRIMARY"]
        image.ImageOrientationPatient = _decimals(directions)
        image.ImagePositionPatient = _decimals(transform_points(lps, [0, 0, index]).tolist())
        image.PixelSpacing = _decimals([height, width])
        (image.SliceThickness,) = _decimals([thickness])
        image.RescaleSlope, image.RescaleIntercept = _decimals([slope, low])
        rows = np.ascontiguousarray(stored[:, :, index].T)
        image.set_pixel_data(rows, "MONOCHROME2", 16, generate_instance_uid=False)
        image.save_as(folder / f"{index:04d}.dcm", enforce_file_format=True)


def _decimals(values: list[float]) -> list[DSfloat]:
    """Numbers in the 16 characters that DICOM has for them."""
    return [DSfloat(float(value), auto_format=True) for value in values]


def _stepped(scan: Volume, voxels: float) -> NDArray[np.float64]:
    """The scan's affine, so many voxels further along every axis."""
    step = np.eye(4)
    step[:3, 3] = voxels
    return scan.affine @ step


def same_grid(mask: Volume, other: Volume) -> float:
    """Dice on the first mask's grid, of which the other's voxels are a permutation."""
    found = resample(other, mask.shape, mask.affine, interpolation="nearest").data
    return float(overlap(found > 0, mask.data > 0).dice)


def mirrored_back(mask: Volume, other: Volume) -> float:
    """Dice of a mask and that of the mirrored head."""
    return float(overlap(other.data[::-1] > 0, mask.data > 0).dice)


def between_grids(mask: Volume, other: Volume) -> float:
    """Dice on voxels of half the size, a quarter of a voxel away from either grid."""
    affine = _stepped(mask, -0.25) @ np.diag([0.5, 0.5, 0.5, 1.0])
    i, j, k = (2 * n + 1 for n in mask.shape)
    first, second = (resample(m, (i, j, k), affine).data > 0.5 for m in (mask, other))
    return float(overlap(first, second).dice)


CHANGES: dict[str, tuple[Change, Compare]] = {
    "origin +10 mm": (moved_origin(10.0), lambda a, b: same_grid(a, Volume(b.data, a.affine))),
    "origin -37 mm": (moved_origin(-37.0), lambda a, b: same_grid(a, Volume(b.data, a.affine))),
    "affine noise 1e-4 mm": (noisy_affine, same_grid),
    "noise 1 %": (noisy, same_grid),
    "intensities x 1000": (in_another_unit, same_grid),
    "gain of +-30 %": (shaded, same_grid),
    "mirrored": (mirrored, mirrored_back),
    "DICOM and back": (through_dicom, same_grid),
    "half a voxel": (half_a_voxel_on, between_grids),
}
ALONE = "half a voxel, the mask alone"


def change_of_volume(before: Volume, after: Volume) -> float:
    """Percent of the first mask's volume; from nothing to something without end."""
    first, second = (float(m.data.sum() * m.voxel_volume_mm3) for m in (before, after))
    if not first:
        return float("inf") if second else 0.0
    return 100 * (second / first - 1)


def mask_of(segmenter: Segmenter, volumes: Volumes) -> Volume:
    """A subject's mask, 0 or 1, on the grid of its reference scan."""
    result = segmenter.segment(volumes)
    return Volume(result.mask.astype(np.float32), result.shown.affine)


def compare(segmenter: Segmenter, volumes: Volumes) -> dict[str, tuple[float, float]]:
    """Return Dice and change of volume in percent of every change of a subject."""
    unchanged = mask_of(segmenter, volumes)
    found: dict[str, tuple[float, float]] = {}

    def add(name: str, mask: Volume, measure: Compare) -> None:
        found[name] = measure(unchanged, mask), change_of_volume(unchanged, mask)

    for name, (change, measure) in CHANGES.items():
        changed = {modality: change(scan) for modality, scan in volumes.items()}
        add(name, mask_of(segmenter, changed), measure)
    stepped = _stepped(unchanged, 0.5)
    there = resample(unchanged, unchanged.shape, stepped).data > 0.5
    add(ALONE, Volume(there.astype(np.float32), stepped), between_grids)
    if len(volumes) > 1 and "T1w" in volumes:
        fewer = {m: v for m, v in volumes.items() if m != "T1w"}
        add("T1w not given", mask_of(segmenter, fewer), same_grid)
    two = Segmenter(segmenter.bundle, device="cpu", sampling=segmenter.sampling, threads=2)
    add("two threads", mask_of(two, volumes), same_grid)
    return found


def main() -> int:
    """Segment all subjects in all ways, and print a table of means and worst cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subjects", nargs="+", type=Path, help="folders of subjects")
    parser.add_argument("--weights", help="name, folder or place on the Hub")
    parser.add_argument("--out", type=Path, help="CSV with a row for each subject and change")
    options = parser.parse_args()
    try:
        refuse_to_overwrite([options.out] if options.out else [], force=True)
        segmenter = Segmenter.from_pretrained(options.weights, device="cpu", threads=1)
    except MmccdError as error:  # what concerns all subjects, such as missing weights
        print(f"{error}\n{error.next_step or ''}", file=sys.stderr)
        return error.exit_code
    rows, failed = [], 0
    for folder in options.subjects:
        try:
            found = compare(segmenter, read_scans(find_subject(folder)).volumes)
        except MmccdError as error:
            print(f"{folder.name}: {error}", file=sys.stderr)
            failed += 1
            continue
        rows += [(folder.name, name, *values) for name, values in found.items()]
        lowest, change = min((dice, name) for name, (dice, _) in found.items())
        print(f"{folder.name}: lowest Dice {lowest:.3f} ({change})", file=sys.stderr)
    if not rows:
        return 6
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
    return 6 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
