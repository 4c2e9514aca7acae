"""Measure registration on real scans: `python registration_yardsticks.py [DATA]`.

1. A raw patient whose data set has its own transforms: the distance between theirs and ours.
2. Brains moved by known rigid transforms, another contrast than the fixed one: what is left.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.inputs.nifti import read_nifti
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.preprocessing.registration import refine, register
from mmccd_cli.preprocessing.spatial import resample

_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SUBJECTS = ("Brats18_CBICA_ABM_1", "Brats18_TCIA10_639_1", "Brats18_2013_2_1")
Row = tuple[str, float, float, float]


def itk_text_transform(path: Path) -> NDArray[np.float64]:
    """Read an ITK text transform as a (4, 4) matrix, RAS+ mm."""
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    values = np.array(lines["Parameters"].split(), dtype=float)
    centre = np.array(lines["FixedParameters"].split(), dtype=float)
    matrix = np.eye(4)
    matrix[:3, :3] = values[:9].reshape(3, 3)
    matrix[:3, 3] = values[9:] + centre - matrix[:3, :3] @ centre
    return _RAS_FROM_LPS @ matrix @ _RAS_FROM_LPS


def brain_points(volume: Volume, count: int = 20_000) -> NDArray[np.float64]:
    """(N, 4) homogeneous world points spread over the nonzero voxels."""
    indices = np.argwhere(volume.data > 0)
    indices = indices[:: max(1, len(indices) // count)]
    return np.c_[indices, np.ones(len(indices))] @ volume.affine.T


def distances_mm(
    points: NDArray[np.float64], ours: NDArray[np.float64], theirs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Distance between the images of the points under two matrices."""
    return np.linalg.norm((points @ (ours - theirs).T)[:, :3], axis=1)


def random_motion(
    seed: int, centre: NDArray[np.float64], degrees: float = 15.0, shift_mm: float = 20.0
) -> NDArray[np.float64]:
    """A turn about a random axis through the centre and a shift in a random direction."""
    generator = np.random.default_rng(seed)
    axis, shift = generator.normal(size=(2, 3))
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    motion = np.eye(4)
    motion[:3, :3] = turn
    motion[:3, 3] = centre - turn @ centre + shift_mm * shift / np.linalg.norm(shift)
    return motion


def against_data_set(folder: Path) -> list[Row]:
    """Rigid T1w and T2w to FLAIR of a raw patient against the data set's own (affine) ones."""
    flair, _ = read_nifti(folder / "flair.nii.gz")
    brain, _ = read_nifti(folder / "brainmask_common_space.nii.gz")
    common = itk_text_transform(folder / "study1_FLAIR_to_common_space.txt")
    points = brain_points(brain) @ common.T
    back = np.linalg.inv(common)
    inside = resample(brain, flair.shape, flair.affine, matrix=back).data >= 0.5
    rows = []
    for name, label in (("t1", "T1W"), ("t2", "T2W")):
        theirs = itk_text_transform(folder / f"study1_{label}_intrastudy_to_FLAIR.txt")
        moving, _ = read_nifti(folder / f"{name}.nii.gz")
        start = time.process_time()
        ours = refine(flair, moving, register(flair, moving), brain=inside)
        errors = distances_mm(points, ours, theirs)
        rows.append((f"{label} -> FLAIR", errors.mean(), errors.max(), time.process_time() - start))
    return rows


def known_motion(folder: Path, subject: str, suffix: str, seed: int) -> Row:
    """Error left after a brain was turned by 15 degrees and shifted by 20 mm."""
    fixed, _ = read_nifti(folder / subject / f"{subject}_flair.nii.gz")
    other, _ = read_nifti(folder / subject / f"{subject}_{suffix}.nii.gz")
    points = brain_points(fixed)
    motion = random_motion(seed, points.mean(axis=0)[:3])
    # The moved scan lies on another, larger grid, so that nothing helps but the image.
    affine = other.affine.copy()
    affine[:, 3] = other.affine @ np.array([-7.0, -3.0, -9.0, 1.0])
    moving = resample(other, (252, 248, 175), affine, matrix=np.linalg.inv(motion))
    start = time.process_time()
    found = register(fixed, moving, seed=seed)
    found = refine(fixed, moving, found, brain=fixed.data > 0, seed=seed)
    errors = distances_mm(points, found, motion)
    seconds = time.process_time() - start
    return f"{subject} {suffix} seed {seed}", errors.mean(), errors.max(), seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("MMCCD_TEST_DATA", "../shared/data")
    parser.add_argument("data", type=Path, nargs="?", default=default, help="folder of scans")
    parser.add_argument("--seeds", type=int, default=2, help="known motions a subject")
    options = parser.parse_args()
    print(f"{'case':44}{'mean mm':>9}{'max mm':>9}{'CPU s':>8}")
    rows = against_data_set(options.data / "raw" / "openms_patient12")
    for row in rows:
        print(f"{row[0]:44}{row[1]:9.2f}{row[2]:9.2f}{row[3]:8.1f}")
    for subject in _SUBJECTS:
        for seed in range(options.seeds):
            suffix = ("t1", "t2")[seed % 2]
            row = known_motion(options.data / "glioma", subject, suffix, seed)
            print(f"{row[0]:44}{row[1]:9.2f}{row[2]:9.2f}{row[3]:8.1f}", flush=True)


if __name__ == "__main__":
    main()
