"""Side and distance from the midline are the template's, wherever the scan lies."""

from __future__ import annotations

import numpy as np
import pytest

from mmccd_cli.inputs.phantom import make_phantom
from mmccd_cli.outputs.anatomy import MIDLINE, Place, midline_of, place_of
from mmccd_cli.template import Template

TURNED = np.array([[0, -1, 0, 40], [1, 0, 0, -7], [0, 0, 1, 3], [0, 0, 0, 1]], dtype=float)


@pytest.fixture(scope="module")
def template() -> Template:
    """A healthy head whose left half is not quite its right half."""
    head = make_phantom(
        1, shape=(40, 50, 40), spacing_mm=(5, 5, 5), orientation="RAS", lesion=False, noise=0.01
    )
    images = {name: volume.data for name, volume in head.volumes.items()}
    return Template(images, head.brain, head.affine)


def test_the_midline_is_where_the_template_is_its_own_mirror_image(template: Template) -> None:
    inside = np.argwhere(template.mask)[:, 0]
    middle = template.affine[0, 0] * (inside.min() + inside.max()) / 2 + template.affine[0, 3]
    found = midline_of(template)
    assert found is not None
    assert abs(found - middle) <= 5
    moved = template.affine.copy()
    moved[0, 3] += 50
    elsewhere = midline_of(Template(template.images, template.mask, moved))
    assert elsewhere == pytest.approx(found + 50)


def test_a_grid_without_a_brain_has_no_midline(template: Template) -> None:
    assert midline_of(Template({}, template.mask, template.affine)) is None


@pytest.mark.parametrize(
    ("x", "side"), [(-30, "left"), (7.5, "left"), (8, "midline"), (13, "midline"), (30, "right")]
)
def test_the_side_is_told_by_the_template(x: float, side: str) -> None:
    settings = {"space": "native", "reference_to_template": TURNED.tolist(), MIDLINE: 11.0}
    scan = np.linalg.inv(TURNED) @ [x, 5.0, 6.0, 1.0]  # the same point in the world of the scan
    away = abs(x - 11)
    assert place_of(scan[:3], settings) == Place(
        side=side, midline_mm=away, template_ras_mm=(x, 5.0, 6.0)
    )
    in_template = {**settings, "space": "some template"}
    assert place_of((x, 5.0, 6.0), in_template) == place_of(scan[:3], settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"reference_to_template": TURNED.tolist()},
        {"reference_to_template": TURNED.tolist(), MIDLINE: None},
        {"reference_to_template": [[1, 2], [3, 4]], MIDLINE: 0.0},
        {"reference_to_template": np.zeros((4, 4)).tolist(), MIDLINE: 0.0},
    ],
)
def test_what_the_record_does_not_tell_is_not_guessed(settings: dict) -> None:
    assert place_of((1.0, 2.0, 3.0), settings) is None
