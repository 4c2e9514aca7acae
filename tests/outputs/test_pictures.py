"""The overview picture: upright, to scale, and the same whatever the orientation of the file."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mmccd_cli.inputs.phantom import make_affine
from mmccd_cli.inputs.volume import Volume, reorient
from mmccd_cli.outputs.pictures import (
    MAP_OPACITY,
    PLANES,
    annotate,
    largest_cuts,
    overlay,
    overview_png,
)

SHAPE = (30, 40, 20)
AFFINE = make_affine(SHAPE, (2, 2, 4), "RAS")


def opened(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


@pytest.fixture
def scene() -> tuple[Volume, Volume, Volume]:
    """A box-shaped head, with an anomaly on its right, in front, above."""
    head, score = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    head[3:27, 4:36, 2:18] = 100 + np.indices((24, 32, 16)).sum(axis=0)
    score[20:24, 26:32, 12:15] = 1
    return Volume(head, AFFINE), Volume(score, AFFINE), Volume(score > 0.5, AFFINE)


@pytest.mark.parametrize("codes", ["LPS", "LAS", "PIR", "SAL"])
def test_the_picture_does_not_depend_on_the_order_of_the_voxels(scene, codes):
    head, score, mask = scene
    turned = [reorient(volume, codes) for volume in scene]
    assert overview_png(head, score.data, mask.data) == overview_png(
        turned[0], turned[1].data, turned[2].data
    )


def test_sides_are_right_and_the_scale_is_in_mm(scene):
    head, score, mask = scene
    picture = opened(overview_png(head, score.data, mask.data))
    colored = np.ptp(picture, axis=2) > 60
    colored[:, -50:] = False  # colour bar
    rows, columns = np.nonzero(colored)
    axial = columns < 130
    # The head is 24 x 2 mm wide, plus margins of 6 mm, at 2 pixels a mm.
    assert columns[axial].mean() > 8 + 2 * (6 + 24 * 2) / 2
    assert rows.min() > picture.shape[0] / 2
    width, height = np.ptp(columns[axial]) + 1, np.ptp(rows[axial]) + 1
    assert width == pytest.approx(4 * 2 * 2, abs=5)
    assert height == pytest.approx(6 * 2 * 2, abs=5)


def test_what_is_left_out_has_a_grey_outline_and_the_rest_a_number(scene):
    head, score, mask = scene
    other = score.data.copy()
    other[6:10, 10:16, 12:15] = 0.7
    below = opened(overview_png(head, other, mask.data, threshold=0.75))
    above = opened(overview_png(head, other, mask.data, threshold=0.5))
    changed = np.abs(above - below).sum(axis=2) > 0
    changed[:, -50:] = False  # colour bar
    rows, columns = np.nonzero(changed)
    assert len(rows) > 20
    assert columns.max() < 3 * 130
    assert (np.ptp(above[changed], axis=1) < 20).all()  # light grey, and dark inside of it
    plain = opened(overview_png(head, score.data, mask.data * 0))
    numbered = opened(overview_png(head, score.data, mask.data))
    white = (numbered.min(axis=2) > 220) & (plain.min(axis=2) <= 220)
    assert white.sum() > 10


def test_the_color_bar_marks_the_threshold(scene):
    head, score, mask = scene
    for threshold in (0.3, 0.8):
        bar = opened(overview_png(head, score.data, mask.data, threshold=threshold))[:, -46:-20]
        mark = (bar[..., 1] > 240) & (bar[..., 0] < 80)
        rows = np.nonzero(mark.any(axis=1))[0]
        colors = np.nonzero((np.ptp(bar, axis=2) > 60).any(axis=1))[0]
        share = (colors.max() - rows.mean()) / np.ptp(colors)
        assert share == pytest.approx(threshold, abs=0.02)


def test_a_scale_bar_has_its_length():
    rgb = np.zeros((100, 200, 3), np.float32)
    for pixels_per_mm, length in ((1.0, 50), (2.5, 50), (40.0, None)):
        panel = np.asarray(annotate(rgb, PLANES[0], pixels_per_mm=pixels_per_mm))
        bar = panel[-9:-6].min(axis=(0, 2))
        if length is None:
            assert bar.max() == 0
        else:
            assert (panel[-8].min(axis=1) > 200).sum() == pytest.approx(length, abs=1)


def test_cuts_go_where_most_of_the_lesion_is():
    mask = np.zeros(SHAPE, bool)
    mask[3:13, 6, 7] = mask[10, 5:12, 7] = mask[10, 9, 5:15] = True
    mask[20:, 30:, 18] = True  # another, larger one
    assert largest_cuts(mask, (slice(3, 13), slice(5, 12), slice(5, 15))) == (10, 6, 7)


def test_the_map_does_not_hide_what_lies_below():
    grey = np.array([[0.0, 1.0]], np.float32)
    rgb = overlay(grey, np.ones_like(grey))
    np.testing.assert_allclose(rgb[0, 1] - rgb[0, 0], (1 - MAP_OPACITY) * 255)
    assert MAP_OPACITY <= 0.35


def test_without_a_lesion_and_with_a_brain(scene):
    head, score, mask = scene
    content = overview_png(head, score.data * 0, mask.data * 0, brain=head.data > 0, title="Case 1")
    assert Image.open(io.BytesIO(content)).format == "PNG"


def test_extreme_images_still_give_a_picture():
    for data in (np.zeros(SHAPE), np.ones(SHAPE)):
        assert overview_png(Volume(data, AFFINE), np.zeros(SHAPE), np.zeros(SHAPE, bool))


def test_a_phantom_as_a_whole(tiny_phantom):
    content = overview_png(
        tiny_phantom.volumes["FLAIR"],
        tiny_phantom.lesion.astype(np.float32),
        tiny_phantom.lesion,
        brain=tiny_phantom.brain,
    )
    height, width, _ = opened(content).shape
    assert 600 < height < 900
    assert 800 < width < 1200


def test_shapes_have_to_agree(scene):
    head, score, mask = scene
    with pytest.raises(ValueError, match="shape"):
        overview_png(head, score.data[1:], mask.data)
