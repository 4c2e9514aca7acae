"""Where a brain lies in the template: an affine map with one sharp optimum.

Template and scan show the same contrast, so their intensities can be compared directly. The sum of
robustly weighted squared differences over all voxels is smooth, and its optimum is found to a
hundredth of a millimetre; mutual information of random samples ends a millimetre or two apart when
a header's origin moves. What the header says of the origin is not used at all: the brain starts
with its centre on the template's.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mmccd_cli.inputs.volume import Volume, reorient_array
from mmccd_cli.preprocessing.least_squares import normal_equations
from mmccd_cli.preprocessing.spatial import LARGE, centre_of_mass, resample, working_grid
from mmccd_cli.template import (
    Template,
    affine_of_box,
    bounding_box,
    median_and_deviation,
    transform_points,
    voxel_volume_mm3,
)

Matrix = NDArray[np.float64]

SCALE_RANGE = (0.75, 1.35)
"""Ratios of brain sizes to the template's that are plausible in an adult."""

_RADIUS_MM = 60.0  # unit of the parameters: there a scale moves as much as a translation
_STARTS_DEG = (-20.0, 0.0, 20.0)
_STARTS_KEPT = 2
_CLIP = 3.0  # robust standard deviations; fluid and fat say little about place
_INSIDE = 4.0  # what the brain stands above the background, in the same unit
_OUTLIER = 1.5  # differences beyond it, lesions above all, hardly count
_FINER = 0.75  # voxel size of the moved image, as a share of the fixed one's
_MARGIN_VOXELS = 2
_TERMS = 20  # of an exponential; exact for turns of a radian


@dataclass(frozen=True, kw_only=True)
class _Level:
    """One resolution: voxel size, what may change, and when to stop."""

    spacing_mm: float
    kind: str
    iterations: int
    tolerance_mm: float


_COARSE = _Level(spacing_mm=8.0, kind="similarity", iterations=15, tolerance_mm=0.05)
_LEVELS = (
    _Level(spacing_mm=4.0, kind="affine", iterations=30, tolerance_mm=0.01),
    _Level(spacing_mm=3.0, kind="affine", iterations=30, tolerance_mm=0.001),
)


def align_to_template(
    scan: Volume, brain: NDArray[np.bool_], template: Template, *, modality: str
) -> Matrix:
    """Find the affine map from the template's world to a scan's world.

    Args:
        scan: The scan; only its brain is looked at.
        brain: (I, J, K) bool on its grid, not empty.
        template: What to align with.
        modality: The scan's; where the template has no such image, the masks are compared.

    Returns:
        (4, 4) float64, RAS+ mm. Scales beyond `SCALE_RANGE` are for the caller to judge.

    Source:
        Second-order minimisation (Benhimane and Malis 2004): the gradient is the mean of both
        images' gradients. Weights of Geman and McClure.
    """
    centred, to_scan = _centred(scan, brain, template)
    fixed = _Pyramid(_standardised(*_template_image(template, modality)))
    box = bounding_box(brain)
    shown = scan.data if modality in template.images else brain
    # Of a very fine scan every second voxel says enough, and takes an eighth of the memory.
    every = 2 if brain[box].size > LARGE else 1
    thinned = (slice(None, None, every),) * 3
    part = affine_of_box(centred, box) @ np.diag([every, every, every, 1.0])
    # One order of axes for all, so that rounding does not depend on how voxels are stored.
    inside, _ = reorient_array(brain[box][thinned], part, "RAS")
    # Nothing holds the image as it was while it is blurred: of a fine scan it is large.
    moving = _Pyramid(
        _standardised(Volume(*reorient_array(shown[box][thinned], part, "RAS")), inside)
    )
    matrix = _best_start(fixed, moving, _size_ratio(brain, scan, template))
    for level in _LEVELS:
        matrix, _ = _minimise(fixed, moving, matrix, level=level)
    return to_scan @ matrix


def match_moments(scan: Volume, brain: NDArray[np.bool_], template: Template) -> Matrix:
    """Return the translation and the one scale that match centre and volume of two masks."""
    scale = _size_ratio(brain, scan, template)
    matrix = np.diag([scale, scale, scale, 1.0])
    centre = centre_of_mass(template.mask, template.affine)
    matrix[:3, 3] = centre_of_mass(brain, scan.affine) - scale * centre
    return matrix


class _Pyramid:
    """An image at several resolutions, all made from one that is as fine as any of them needs.

    The image itself is used up.
    """

    def __init__(self, image: Volume) -> None:
        self._finest = _coarsened(image, _FINER * _LEVELS[-1].spacing_mm, overwrite=True)
        self._levels: dict[float, Volume] = {}

    def at(self, spacing_mm: float) -> Volume:
        """The image, blurred as its new voxels ask for."""
        if spacing_mm not in self._levels:
            self._levels[spacing_mm] = _coarsened(self._finest, spacing_mm)
        return self._levels[spacing_mm]


def _coarsened(image: Volume, spacing_mm: float, *, overwrite: bool = False) -> Volume:
    shape, affine = working_grid(image, spacing_mm, padding_mm=2 * spacing_mm)
    return resample(image, shape, affine, smooth=True, overwrite=overwrite)


@dataclass(frozen=True)
class _FixedGrid:
    """The fixed image's voxels, in units of a brain's radius from the grid's centre."""

    image: Volume

    @cached_property
    def chosen(self) -> NDArray[np.intp]:
        """Flat indices of the voxels that are compared: the brain and what is around it."""
        inside = self.image.data > _INSIDE / 2
        return np.flatnonzero(ndimage.binary_dilation(inside, iterations=2))

    @cached_property
    def from_unit(self) -> Matrix:
        """(4, 4) from the units of the parameters to the world."""
        middle = (np.array(self.image.shape) - 1) / 2
        matrix = np.diag([_RADIUS_MM] * 3 + [1.0])
        matrix[:3, 3] = transform_points(self.image.affine, middle)
        return matrix

    @cached_property
    def points(self) -> NDArray[np.float64]:
        """(N, 3) of the chosen voxels, in those units."""
        index = np.stack(np.unravel_index(self.chosen, self.image.shape), axis=1)
        return transform_points(np.linalg.inv(self.from_unit) @ self.image.affine, index)

    def gradient(self, image: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, 3) slopes of an image on this grid, by unit, at the chosen voxels."""
        slopes = np.stack([slope.ravel()[self.chosen] for slope in np.gradient(image)], axis=-1)
        by_unit = np.linalg.inv(self.image.affine[:3, :3]) * _RADIUS_MM
        return np.einsum("nk,kl->nl", slopes, by_unit)  # not "@": see `transform_points`


def _minimise(
    fixed: _Pyramid, moving: _Pyramid, matrix: Matrix, *, level: _Level
) -> tuple[Matrix, float]:
    """Gauss-Newton steps at one resolution; returns the matrix and the mean difference left."""
    grid = _FixedGrid(fixed.at(level.spacing_mm))
    # Sampling a finer image than the fixed one keeps interpolation from drawing to its voxels.
    other = moving.at(_FINER * level.spacing_mm)
    target = grid.image.data.ravel()[grid.chosen].astype(np.float64)
    to_unit = np.linalg.inv(grid.from_unit)
    for _ in range(level.iterations):
        moved = resample(other, grid.image.shape, grid.image.affine, matrix=matrix).data
        seen = moved.ravel()[grid.chosen].astype(np.float64)
        difference = target - seen
        weight = 1 / (1 + (difference / _OUTLIER) ** 2) ** 2
        slopes = grid.gradient((moved + grid.image.data) / 2)
        jacobian = _jacobian(seen, slopes, grid.points, kind=level.kind)
        normal, slope = normal_equations(jacobian, weight, difference)
        normal[np.diag_indices_from(normal)] += 1e-9 * np.trace(normal) / len(normal)
        step = np.linalg.solve(normal, slope)
        generator = _generator(step[:-2], level.kind)
        matrix = matrix @ grid.from_unit @ _exponential(generator) @ to_unit
        if np.abs(generator).max() * _RADIUS_MM < level.tolerance_mm:
            break
    return matrix, float(np.minimum(difference**2, _INSIDE).mean())


def _jacobian(
    seen: NDArray[np.float64],
    slopes: NDArray[np.float64],
    points: NDArray[np.float64],
    *,
    kind: str,
) -> NDArray[np.float64]:
    """(N, P + 2) change of the moved image with each parameter of `_generator`.

    The last two are its gain and its offset, which are solved for and left: scans differ in them
    as they please.
    """
    found = np.empty((len(seen), 14 if kind == "affine" else 9))
    if kind == "affine":
        for row in range(3):
            np.multiply(slopes[:, [row]], points, out=found[:, 3 * row : 3 * row + 3])
    else:
        found[:, :3] = np.cross(points, slopes)
        found[:, 3] = (slopes * points).sum(axis=1)
    found[:, -5:-2], found[:, -2], found[:, -1] = slopes, seen, 1
    return found


def _generator(step: NDArray[np.float64], kind: str) -> Matrix:
    """(4, 4) whose exponential is the map that a step of the parameters means."""
    generator = np.zeros((4, 4))
    generator[:3, 3] = step[-3:]
    if kind == "affine":
        generator[:3, :3] = step[:9].reshape(3, 3)
    else:
        x, y, z, size = step[:4]
        generator[:3, :3] = [[size, -z, y], [z, size, -x], [-y, x, size]]
    return generator


def _exponential(generator: Matrix) -> Matrix:
    """The map that small steps of a generator add up to, by its series.

    SciPy's `expm` wakes a thread on each core for it, which then waits busily for a tenth of a
    second.
    """
    found = term = np.eye(4)
    for power in range(1, _TERMS + 1):
        term = term @ generator / power
        found = found + term
    return found


def _best_start(fixed: _Pyramid, moving: _Pyramid, scale: float) -> Matrix:
    """Turn the brain about its centre, and improve what fits best at a coarse resolution."""
    grid = _FixedGrid(fixed.at(_COARSE.spacing_mm))
    other = moving.at(_FINER * _COARSE.spacing_mm)
    centre = centre_of_mass(grid.image.data > _INSIDE / 2, grid.image.affine)

    def mismatch(matrix: Matrix) -> float:
        moved = resample(other, grid.image.shape, grid.image.affine, matrix=matrix).data
        return float(np.minimum((moved - grid.image.data) ** 2, _INSIDE).mean())

    starts = []
    for degrees in itertools.product(_STARTS_DEG, repeat=3):
        start = np.eye(4)
        start[:3, :3] = scale * Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
        start[:3, 3] = centre - start[:3, :3] @ centre
        starts.append(start)
    ranked = sorted(starts, key=mismatch)[:_STARTS_KEPT]
    return min(
        (_minimise(fixed, moving, start, level=_COARSE) for start in ranked), key=lambda e: e[1]
    )[0]


def _standardised(image: Volume, brain: NDArray[np.bool_]) -> Volume:
    """Cut out the brain; intensities in robust standard deviations, well above the background.

    The background around it makes interpolation fade at an edge of the scan, too, where otherwise
    a hair decided between a value and none.
    """
    box = bounding_box(brain)
    inside = brain[box]
    values = image.data[box][inside]
    median, spread = median_and_deviation(values)
    values -= median
    values /= spread or 1e-12
    np.clip(values, -_CLIP, _CLIP, out=values)
    values += _INSIDE
    padded = np.zeros([n + 2 * _MARGIN_VOXELS for n in inside.shape], dtype=np.float32)
    padded[(slice(_MARGIN_VOXELS, -_MARGIN_VOXELS),) * 3][inside] = values
    around = np.eye(4)
    around[:3, 3] = -_MARGIN_VOXELS
    return Volume(padded, affine_of_box(image.affine, box) @ around)


def _template_image(template: Template, modality: str) -> tuple[Volume, NDArray[np.bool_]]:
    image = template.images.get(modality, template.mask)
    return Volume(image, template.affine), template.mask


def _centred(scan: Volume, brain: NDArray[np.bool_], template: Template) -> tuple[Matrix, Matrix]:
    """The scan's affine with the brain's centre on the template's, and the way back."""
    back = np.eye(4)
    back[:3, 3] = centre_of_mass(brain, scan.affine) - centre_of_mass(
        template.mask, template.affine
    )
    return np.linalg.inv(back) @ scan.affine, back


def _size_ratio(brain: NDArray[np.bool_], scan: Volume, template: Template) -> float:
    """How much longer the brain is than the template's, within what is plausible."""
    ours = brain.sum() * voxel_volume_mm3(scan.affine)
    theirs = template.mask.sum() * voxel_volume_mm3(template.affine)
    return float(np.clip((ours / theirs) ** (1 / 3), *SCALE_RANGE))
