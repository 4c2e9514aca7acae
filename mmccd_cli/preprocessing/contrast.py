"""Whether a scan shows the contrast that its name says, by its likeness to the template's images.

Scans given under each other's names lie on the template as others do, for outlines and fluid align
them. What then tells them apart is the contrast of a place to its surroundings: over the whole
brain, coils and large lesions weigh more than grey and white matter do.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.errors import Caution
from mmccd_cli.template import Template, correlation, median_and_deviation

_SURROUNDINGS_MM = 42.0  # side of the box that a place is compared with
_LEAST = 0.22  # correlation below which a scan resembles nothing
_STRANGE = 0.15
"""The same, far below what all scans of 34 subjects have: 0.25 and more. One that was laid upside
down or turned has less than 0.1."""
_DOUBT = 0.02  # by which another modality's correlation must be higher
_FAVOURED = {"T1w": 0.04}
"""Modality -> how much more scans of others resemble its image in the template.

Of 32 subjects' scans under their own names, FLAIR resembles T1w by up to 0.013 more than FLAIR,
and T1w by at least 0.05; all other pairs are apart by 0.08 and more.
"""

_RIM_MM = 6.0  # of the brain, where fat and sinuses may be left, and whose outline all heads share
_LEAST_VOXELS = 2000
_BRIGHTEST = 99.9
_WITH_AGENT = 4.5
"""Robust deviations above the median. That percentile of 31 scans without agent has up to 2.9, of
four with agent 7.5 and more."""


def check_contrast(
    images: Mapping[str, NDArray[np.float32]],
    covered: Mapping[str, NDArray[np.bool_]],
    template: Template,
) -> list[Caution]:
    """Say which scans look as if they were given under another's name.

    Args:
        images: Modality -> (I, J, K) float32 on the template's grid, normalised.
        covered: Modality -> (I, J, K) bool, the part of the brain that it shows.
        template: What they are compared with; a modality that it does not have is passed over.
    """
    said = []
    for name in (modality for modality in images if modality in template.images):
        likeness = _likeness(images[name], covered[name], template)
        other = max(likeness, key=likeness.__getitem__)
        if likeness[other] > max(_LEAST, likeness[name] + _DOUBT):
            said.append(
                Caution(
                    f"The scan given as {name} looks like {other}: its tissues stand out from each "
                    f"other as on the template's {other}, and not as on its {name}. Look at it in "
                    "a viewer; if files were mixed up, the result is wrong."
                )
            )
        elif likeness[other] < _STRANGE and covered[name].any():
            said.append(
                Caution(
                    f"The scan given as {name} resembles no modality of the template where it "
                    "lies: its header may place or turn it wrongly, or it is another subject's. "
                    "Look at it in a viewer, over the other scans."
                )
            )
    return said


def shows_agent(image: NDArray[np.float32], covered: NDArray[np.bool_], template: Template) -> bool:
    """Tell whether a T1w scan looks as if it was taken after contrast agent was given.

    Vessels and plexus are then far brighter than tissue ever is.

    Args:
        image: (I, J, K) float32 on the template's grid, normalised.
        covered: (I, J, K) bool, the part of the brain that it shows.
        template: Whose brain it lies in.
    """
    values = image[away_from_rim(covered & template.mask, template.spacing_mm)]
    if values.size < _LEAST_VOXELS:
        return False
    median, deviation = median_and_deviation(values)
    if np.percentile(values, _BRIGHTEST) <= median + _WITH_AGENT * deviation:
        return False
    likeness = _likeness(image, covered, template)  # lesions on FLAIR are as bright
    return max(likeness, key=likeness.__getitem__) == "T1w"


def away_from_rim(
    mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
) -> NDArray[np.bool_]:
    """(I, J, K) bool, what lies some 6 mm inside a mask."""
    steps = max(1, round(_RIM_MM / min(spacing_mm)))
    return np.asarray(ndimage.binary_erosion(mask, iterations=steps))


def local_contrast(
    image: NDArray[np.float32], mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
) -> NDArray[np.float32]:
    """What stands out from the mean of its surroundings, as far as they lie in a mask.

    Args:
        image: (I, J, K) float32.
        mask: (I, J, K) bool.
        spacing_mm: Voxel size; the surroundings are a box with sides of 42 mm.

    Returns:
        (I, J, K) float32, of use inside the mask only.
    """
    size = [2 * round(_SURROUNDINGS_MM / mm / 2) + 1 for mm in spacing_mm]
    values, weight = np.where(mask, image, 0).astype(np.float32), mask.astype(np.float32)
    mean = ndimage.uniform_filter(values, size)
    mean /= np.maximum(ndimage.uniform_filter(weight, size), 1e-3)
    return values - mean


def _likeness(
    image: NDArray[np.float32], covered: NDArray[np.bool_], template: Template
) -> dict[str, float]:
    """Modality of the template -> correlation of its local contrast with an image's."""
    inside = covered & template.mask
    ours = local_contrast(image, covered, template.spacing_mm)[inside]
    return {
        name: (correlation(ours, values[inside]) or 0.0) - _FAVOURED.get(name, 0.0)
        for name, values in _contrasts(template).items()
    }


@lru_cache(maxsize=1)
def _contrasts(template: Template) -> dict[str, NDArray[np.float32]]:
    return {
        name: local_contrast(image, template.mask, template.spacing_mm)
        for name, image in template.images.items()
    }
