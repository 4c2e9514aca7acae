"""Whether two scans show one head in one place, by how much they tell of each other.

Mutual information of what stands out from its surroundings: it is high where tissues lie on each
other, whatever their contrasts, and no absolute value of it is right for all pairs. So it is
compared with what it is after a shift, and with the other scan's mirror image: a right pair gets
worse by both. Of scans on one grid nothing else asks whether they belong together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.preprocessing.contrast import away_from_rim, local_contrast

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

SHIFT_MM = 4.0
"""How far scans are shifted."""
_BINS = 32
_LEAST_VOXELS = 2000
_EVERY = 2  # voxels; more would say the same

# Of 93 pairs of scans of 31 heads, every shift made each worse, by 10 % or more, and the mirror
# image told at most 0.57 of what the scan told. Mirrored by mistake it told 1.8 times as much and
# more, of another head 0.55 to 2.8 times; 5 mm away, some shift gained 30 % or more.
_OF_ANOTHER_HEAD, _MIRRORED = 0.72, 1.5
_DISPLACED = 0.05


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How two scans lie to each other.

    Attributes:
        gain_by_shift: How much more they tell of each other after the best of six shifts by
            `SHIFT_MM`, as a share; negative where every shift makes it less.
        mirrored: What the mirror image of one tells of the other, as a share of what itself tells.
    """

    gain_by_shift: float
    mirrored: float


def agreement(
    fixed: FloatArray,
    moving: FloatArray,
    *,
    inside: BoolArray,
    spacing_mm: tuple[float, float, float],
) -> Agreement | None:
    """Measure how two scans lie to each other.

    Args:
        fixed: (I, J, K) float32, of any contrast, on a grid whose first axis goes from left to
            right through a brain in the middle.
        moving: (I, J, K) float32, another scan on this grid.
        inside: (I, J, K) bool, the part of the brain that both show.
        spacing_mm: Voxel size.

    Returns:
        The measurement, None where too little is shown by both, or voxels are larger than the
        shift, so that what stands out is lost between them.
    """
    if max(spacing_mm) > SHIFT_MM:
        return None
    steps = [max(1, round(SHIFT_MM / mm)) for mm in spacing_mm]
    index = _sampled(inside, spacing_mm, steps)
    if len(index) < _LEAST_VOXELS:
        return None
    ours = local_contrast(fixed, inside, spacing_mm)[tuple(index.T)]
    theirs = local_contrast(moving, inside, spacing_mm)
    edges = _bin_edges(theirs[tuple(index.T)])
    binned = np.digitize(ours, _bin_edges(ours))

    def told_by(image: FloatArray, shift: Sequence[int] = (0, 0, 0)) -> float:
        values = image[tuple((index + shift).T)]
        return _mutual_information(binned, np.digitize(values, edges))

    here = max(told_by(theirs), 1e-6)
    shifted = max(
        told_by(theirs, [sign * step if axis == k else 0 for k in range(3)])
        for (axis, step), sign in product(enumerate(steps), (-1, 1))
    )
    return Agreement(gain_by_shift=shifted / here - 1, mirrored=told_by(theirs[::-1]) / here)


def disagreements(
    images: Mapping[str, FloatArray],
    covered: Mapping[str, BoolArray],
    *,
    reference: str,
    spacing_mm: tuple[float, float, float],
) -> dict[str, str]:
    """Find scans that do not lie on the reference, or are of another head.

    Args:
        images: Modality -> (I, J, K) float32 on the template's grid, normalised.
        covered: Modality -> (I, J, K) bool, the part of the brain that it shows.
        reference: The modality that the others lie on.
        spacing_mm: Voxel size.

    Returns:
        Modality -> what is wrong with it, in words that go on from its name.
    """
    found = {}
    for name in (modality for modality in images if modality != reference):
        both = covered[reference] & covered[name]
        measured = agreement(images[reference], images[name], inside=both, spacing_mm=spacing_mm)
        if measured is not None and (doubt := _doubt(measured, reference)):
            found[name] = doubt
    return found


def _doubt(measured: Agreement, reference: str) -> str | None:
    if measured.mirrored >= _MIRRORED:
        return f"looks like a mirror image: turned left to right, it fits {reference} better"
    if measured.mirrored >= _OF_ANOTHER_HEAD:
        return (
            f"does not seem to show the head that {reference} shows: it tells hardly more of it "
            "than its mirror image does"
        )
    if measured.gain_by_shift >= _DISPLACED:
        return f"seems not to lie on {reference}: moved by {SHIFT_MM:g} mm, it fits better"
    return None


def _sampled(
    inside: BoolArray, spacing_mm: tuple[float, float, float], steps: Sequence[int]
) -> NDArray[np.intp]:
    """(N, 3) voxels away from the rim of a brain, and as far from the edge of the grid."""
    index = np.argwhere(away_from_rim(inside, spacing_mm))[::_EVERY]
    within = (index >= steps) & (index < np.array(inside.shape) - steps)
    return np.asarray(index[within.all(axis=1)])


def _bin_edges(values: NDArray[np.floating]) -> NDArray[np.floating]:
    low, high = np.percentile(values, (1, 99))
    return np.linspace(low, high, _BINS - 1)


def _mutual_information(a: NDArray[np.intp], b: NDArray[np.intp]) -> float:
    joint = np.bincount(a * _BINS + b, minlength=_BINS**2).reshape(_BINS, _BINS) / a.size
    product_of_sums = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    some = joint > 0
    return float((joint[some] * np.log(joint[some] / product_of_sums[some])).sum())
