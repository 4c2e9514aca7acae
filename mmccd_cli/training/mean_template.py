"""A template of one's own: the mean of subjects that share a space, made symmetric.

What one side of the brain says about the other is measured across the template's middle plane, and
the atlas counts both sides as one. A mean brain that is turned by two degrees moves the other side
by seven millimetres at the front and the back; here the plane between its sides becomes the middle
plane of the grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm, logm

from mmccd_cli.config import MODALITIES
from mmccd_cli.errors import DataError, MmccdError
from mmccd_cli.inputs.scans import read_image
from mmccd_cli.inputs.subjects import Subject
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.preprocessing.brain import find_brain
from mmccd_cli.preprocessing.spatial import resample
from mmccd_cli.preprocessing.subject import PreparedSubject
from mmccd_cli.preprocessing.template_alignment import align_to_template
from mmccd_cli.template import Template, bounding_box
from mmccd_cli.training.recipes import Recipe

GRID_MULTIPLE = 16
"""Of slices' height and width, so that networks can halve them four times."""
GRID_MARGIN_MM = 2.0
"""Room between the brains and the border of the grid."""
SUBJECTS_FOR_GRID = 32
"""Of a large data set so many are enough."""


def common_grid(subjects: Sequence[Subject], recipe: Recipe, *, strict: bool) -> Template:
    """A RAS+ grid around the brains of subjects that share a space.

    Args:
        subjects: Those that share it.
        recipe: Its voxel size.
        strict: Whether the first that cannot be read stops everything.

    Raises:
        DataError: Their brains lie so differently that they cannot share one, or none can be read.
    """
    corners: list[NDArray] = []
    last_error: MmccdError | None = None
    for subject in subjects:
        if len(corners) == SUBJECTS_FOR_GRID:
            break
        try:
            corners.append(_brain_corners(subject))
        except MmccdError as error:
            if strict:
                raise
            last_error = error  # the subject is left out, with its reason, when its turn comes
    if not corners:
        raise last_error or DataError("There is no subject to take the grid from.")
    stacked = np.stack(corners)
    apart_mm = float(np.ptp(stacked.mean(axis=2), axis=0).max())
    if apart_mm > 40:
        raise DataError(
            "The subjects do not share a space.",
            cause=f"The centres of their brains lie up to {apart_mm:.0f} mm apart.",
            next_step="Give --template BUNDLE to register them to its template.",
        )
    low = stacked[:, :, 0].min(axis=0) - GRID_MARGIN_MM
    high = stacked[:, :, 1].max(axis=0) + GRID_MARGIN_MM
    return _empty_template(low, high, recipe.spacing_mm)


class MeanTemplate:
    """Running mean of prepared subjects.

    Args:
        grid: Where they lie.
        background: Value outside the brain.
    """

    def __init__(self, grid: Template, background: float) -> None:
        self._grid, self._background = grid, background
        self._sums = {modality: np.zeros(grid.shape) for modality in MODALITIES}
        self._brain = np.zeros(grid.shape)
        self._count = 0

    def add(self, prepared: PreparedSubject) -> None:
        """Count one subject in."""
        for name, image in prepared.images.items():
            self._sums[name] += np.where(prepared.brain, image, 0.0)
        self._brain += prepared.brain
        self._count += 1

    def template(self) -> Template:
        """The mean image over the subjects that have brain at a voxel, and the majority's brain."""
        mask, count = self._brain >= self._count / 2, np.maximum(self._brain, 1)
        images = {
            name: np.where(mask, total / count, self._background).astype(np.float32)
            for name, total in self._sums.items()
        }
        return Template(images, mask, self._grid.affine)


def symmetrised(template: Template) -> Template:
    """Turn a mean brain so that its sides are mirror images of each other, and average them.

    Args:
        template: Its grid's first axis runs from left to right; its normal ranges are dropped.

    Returns:
        A template on the same grid, equal to its own reflection along the first axis.
    """
    matrix = _onto_middle_plane(template)
    mask = _both_sides(template.mask.astype(np.float32), template, matrix) >= 0.5
    images = {}
    for name, image in template.images.items():
        background = float(image[~template.mask].mean()) if not template.mask.all() else 0.0
        both = _both_sides(image, template, matrix, fill=background)
        images[name] = np.where(mask, both, np.float32(background))
    return Template(images, mask, template.affine)


def _onto_middle_plane(template: Template) -> NDArray[np.float64]:
    """Half of the way on which a brain's mirror image comes to lie on the brain.

    Returns:
        (4, 4) float64 from the world of the symmetric template to that of the given one. Reflected
        at the grid's middle and then moved there, a point comes to its place on the other side;
        two reflections are a turn by twice the angle between their planes.
    """
    middle = template.affine @ np.append((np.array(template.shape) - 1) / 2, 1)
    reflection = np.diag([-1.0, 1.0, 1.0, 1.0])
    reflection[0, 3] = 2 * middle[0]
    brain = template.mask[::-1]
    found = [
        logm(
            align_to_template(
                Volume(image[::-1].copy(), template.affine), brain, template, modality=name
            )
        )
        for name, image in template.images.items()
    ]
    across = reflection @ expm(np.mean(np.real(found), axis=0))
    return np.asarray(expm(np.real(logm(across @ reflection)) / 2))


def _both_sides(
    image: NDArray[np.float32],
    template: Template,
    matrix: NDArray[np.float64],
    *,
    fill: float = 0.0,
) -> NDArray[np.float32]:
    """The mean of a turned image and its reflection."""
    volume = Volume(image, template.affine)
    turned = resample(volume, template.shape, template.affine, matrix=matrix, fill=fill).data
    return np.asarray((turned + turned[::-1]) / 2, np.float32)


def _brain_corners(subject: Subject) -> NDArray:
    """(3, 2) lowest and highest position of a subject's brain along each axis, RAS+ mm."""
    reference = MODALITIES[0]
    volume, _ = read_image(subject, reference)
    box = bounding_box(find_brain({reference: volume}).mask)
    ends = itertools.product(*((s.start, s.stop - 1) for s in box))
    world = np.array([volume.affine @ np.array([*end, 1.0]) for end in ends])[:, :3]
    return np.stack([world.min(axis=0), world.max(axis=0)], axis=1)


def _empty_template(low: NDArray, high: NDArray, spacing: float) -> Template:
    voxels = np.ceil((high - low) / spacing).astype(int) + 1
    multiples = np.array([GRID_MULTIPLE, GRID_MULTIPLE, 1])
    size = -(-voxels // multiples) * multiples
    # Whole millimetres, so that grids made from slightly different subjects are comparable.
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = np.round((low + high) / 2 - (size - 1) / 2 * spacing)
    return Template({}, np.ones(size, dtype=bool), affine)
