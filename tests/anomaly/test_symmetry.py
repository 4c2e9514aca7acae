"""Mirror, middle plane and asymmetry on arrays small enough to see through."""

from __future__ import annotations

import numpy as np
import pytest
from grids import block

from mmccd_cli.anomaly.symmetry import (
    asymmetry,
    middle_of_template,
    middle_plane,
    mirror,
    other_side,
    smooth_inside,
)
from mmccd_cli.template import Template

ONE_MM = (1.0, 1.0, 1.0)


def test_smooth_inside_keeps_a_constant_up_to_the_edge() -> None:
    brain = block((12, 12, 12), (2, 10), (2, 10), (2, 10))
    score = np.where(brain, 3.0, 99.0)
    smooth = smooth_inside(score, brain, sigma_mm=2.0, spacing_mm=(1.0, 1.0, 2.0))
    np.testing.assert_allclose(smooth, np.where(brain, 3.0, 0.0), rtol=1e-5)
    assert not smooth_inside(score, brain & False, sigma_mm=2.0, spacing_mm=ONE_MM).any()


def test_mirror_by_hand() -> None:
    line = np.array([1, 2, 3, 4, 5])
    volume = np.broadcast_to(line[None, :, None], (2, 5, 2))
    np.testing.assert_array_equal(mirror(volume, 1, 2.0)[0, :, 0], [5, 4, 3, 2, 1])
    np.testing.assert_array_equal(mirror(volume, 1, 1.5)[0, :, 0], [4, 3, 2, 1, 0])
    np.testing.assert_array_equal(mirror(volume, 1, 3.0)[0, :, 0], [0, 0, 5, 4, 3])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_asymmetry_keeps_the_side_that_is_alone(axis: int) -> None:
    brain = np.zeros((24, 20, 20), dtype=bool)
    brain[3:20, 4:16, 4:16] = True  # the middle of 3 .. 19 is 11
    both = block(brain.shape, (5, 8), (7, 12), (7, 12))
    both |= block(brain.shape, (15, 18), (7, 12), (7, 12))
    lesion = block(brain.shape, (12, 18), (13, 16), (4, 10))
    brain, both, lesion = (np.moveaxis(a, 0, axis) for a in (brain, both, lesion))
    score = (4.0 * both + 4.0 * lesion).astype(np.float32)
    centre = middle_plane(score, brain, axis)
    assert centre == 11.0
    corrected = asymmetry(score, brain, ONE_MM, axis=axis, centre=centre, weight=0.5, sigma_mm=1.0)
    assert corrected[both].mean() < 3.0
    assert corrected[lesion].mean() > 3.8
    assert not corrected[~brain].any()


def test_middle_plane_of_a_uniform_brain_is_its_middle() -> None:
    brain = block((20, 10, 10), (4, 15), (2, 8), (2, 8))
    assert middle_plane(np.ones(brain.shape), brain, 0) == 9.0


def test_the_other_side_shows_a_spot_where_its_mirror_image_would_be() -> None:
    brain = block((20, 12, 12), (4, 15), (2, 10), (2, 10))
    template = Template({}, brain, np.eye(4))
    assert middle_of_template(template) == 9.0
    spot = np.zeros(brain.shape, dtype=np.float32)
    spot[7, 5, 5] = 100.0
    opposite = other_side(spot, brain, centre=9.0, spacing_mm=ONE_MM)
    assert np.unravel_index(int(opposite.argmax()), brain.shape) == (11, 5, 5)
    assert opposite.max() < 20, "it is blurred"
    assert not opposite[~mirror(brain, 0, 9.0)].any()
