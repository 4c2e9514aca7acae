"""A mean brain that lies askew, and what comes of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mmccd_cli.inputs.phantom import make_phantom
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.preprocessing.spatial import resample
from mmccd_cli.template import Template
from mmccd_cli.training.mean_template import symmetrised


@pytest.fixture(scope="module")
def straight() -> Template:
    """A phantom and its mirror image, as a template's images are."""
    phantom = make_phantom(
        3, shape=(50, 56, 46), spacing_mm=(4, 4, 4), orientation="RAS", lesion=False
    )
    brain = phantom.brain | phantom.brain[::-1]
    images = {}
    for name, volume in phantom.volumes.items():
        image = volume.data
        scaled = (image - np.median(image[brain])) / image[brain].std()
        images[name] = np.where(brain, (scaled + scaled[::-1]) / 2, -3).astype(np.float32)
    return Template(images, brain, np.diag([4.0, 4, 4, 1]))


def turned(template: Template, degrees: float, moved_mm: float) -> Template:
    """The same brain, turned about the axis from foot to head, and moved to the right."""
    middle = template.affine @ np.append((np.array(template.shape) - 1) / 2, 1)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = middle[:3] - matrix[:3, :3] @ (middle[:3] + np.array([moved_mm, 0, 0]))

    def move(image: np.ndarray, fill: float) -> np.ndarray:
        volume = Volume(image.astype(np.float32), template.affine)
        return resample(volume, template.shape, template.affine, matrix=matrix, fill=fill).data

    images = {name: move(image, -3.0) for name, image in template.images.items()}
    return Template(images, move(template.mask, 0.0) >= 0.5, template.affine)


@pytest.mark.parametrize(("degrees", "moved_mm"), [(0.0, 0.0), (4.0, 0.0), (-3.0, 5.0)])
def test_a_brain_that_lies_askew_becomes_symmetric(
    straight: Template, degrees: float, moved_mm: float
) -> None:
    found = symmetrised(turned(straight, degrees, moved_mm))
    np.testing.assert_array_equal(found.mask, found.mask[::-1])
    np.testing.assert_array_equal(found.affine, straight.affine)
    both = found.mask & straight.mask
    assert both.sum() > 0.95 * straight.mask.sum()
    for name, image in found.images.items():
        np.testing.assert_array_equal(image, image[::-1])
        assert np.corrcoef(image[both], straight.images[name][both])[0, 1] > 0.93


def test_averaging_the_sides_alone_would_blur_it(straight: Template) -> None:
    """What the turn before it is for."""
    askew = turned(straight, 5.0, 4.0)
    truth, image = straight.images["T1w"], askew.images["T1w"]
    found, blurred = symmetrised(askew).images["T1w"], (image + image[::-1]) / 2
    inside = straight.mask
    likeness = [float(np.corrcoef(i[inside], truth[inside])[0, 1]) for i in (found, blurred)]
    assert likeness[0] > likeness[1] + 0.05
