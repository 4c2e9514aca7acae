"""A template of one's own: the mean of subjects that share a space, made symmetric.

What one side of the brain says about the other is measured across the template's middle plane, and
the atlas counts both sides as one. A mean brain that is turned by two degrees moves the other side
by seven millimetres at the front and the back; here the plane between its sides becomes the middle
plane of the grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm, logm

from mmccd_cli.config import MODALITIES
from mmccd_cli.errors import DataError
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.preprocessing.spatial import resample
from mmccd_cli.preprocessing.subject import PreparedSubject
from mmccd_cli.preprocessing.template_alignment import align_to_template
from mmccd_cli.template import Template


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
        """The mean image over the subjects that have brain at a voxel, and the majority's brain.

        Raises:
            DataError: No subject was counted in.
        """
        if not self._count:
            raise DataError(
                "No subject of the split `train` could be prepared.",
                next_step="Read why subjects were left out, or give another --split.",
            )
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
