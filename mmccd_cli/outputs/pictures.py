"""Pictures of a brain in three planes: the panels that all pictures are made of, and an overview.

Panels are upright and to scale in mm, with the patient's left on the left (the neurological
convention), whatever the order of the voxels in the file.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from mmccd_cli.anomaly.components import label_components
from mmccd_cli.inputs.volume import Volume, reorient
from mmccd_cli.template import Box, bounding_box, transform_points

Color = tuple[int, int, int]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

CONTOUR: Color = (64, 255, 200)
"""Colour of the mask's outline."""

MAP_OPACITY = 0.35
"""Of the map at most, so that what lies below stays visible; the outline says where the mask is."""

_MARGIN_MM = 6.0
_PIXELS_PER_MM = 2.0
_TEXT = (235, 235, 235)
_FAINT = (150, 150, 150)
# Dark red to yellow; brightness rises with the value, so that it also reads without colour.
_COLORS = np.array([(70, 0, 40), (180, 20, 40), (240, 90, 20), (255, 180, 30), (255, 250, 160)])


@dataclass(frozen=True, kw_only=True)
class Plane:
    """A cut through a RAS volume: axis 0 is x, 1 is y, 2 is z.

    Attributes:
        name: What it is called.
        across: The axis that the cut is perpendicular to.
        right: The axis that runs to the right.
        up: The axis that runs upwards.
        letters: What its left and its right side show.
    """

    name: str
    across: int
    right: int
    up: int
    letters: tuple[str, str]

    def caption(self, affine: NDArray[np.float64], center: Sequence[int]) -> str:
        """Return name and position of a cut, for example "axial, z = 12 mm"."""
        world = transform_points(affine, center)
        return f"{self.name}, {'xyz'[self.across]} = {round(world[self.across])} mm"


PLANES = (
    Plane(name="axial", across=2, right=0, up=1, letters=("L", "R")),
    Plane(name="coronal", across=1, right=0, up=2, letters=("L", "R")),
    Plane(name="sagittal", across=0, right=1, up=2, letters=("P", "A")),
)


@dataclass(frozen=True, eq=False)
class Frame:
    """The part of a RAS grid that panels show, and their scale.

    Args:
        box: Voxels along each axis.
        spacing_mm: Their size.
        pixels_per_mm: Scale of the panels.
    """

    box: tuple[slice, ...]
    spacing_mm: tuple[float, float, float]
    pixels_per_mm: float = _PIXELS_PER_MM

    def cut(self, data: NDArray[Any], plane: Plane, center: Sequence[int]) -> FloatArray:
        """Return a cut through (I, J, K) data as a panel's (H, W) pixels."""
        index = list(self.box)
        index[plane.across] = slice(center[plane.across], center[plane.across] + 1)
        upright = np.moveaxis(data[tuple(index)], (plane.up, plane.right), (0, 1))[::-1, :, 0]
        across, along = (
            max(1, round(count * self.spacing_mm[axis] * self.pixels_per_mm))
            for count, axis in zip(upright.shape, (plane.up, plane.right), strict=True)
        )
        resized = Image.fromarray(np.ascontiguousarray(upright, dtype=np.float32)).resize(
            (along, across), Image.Resampling.BILINEAR
        )
        return np.asarray(resized)


def frame_around(
    region: BoolArray, spacing_mm: tuple[float, float, float], width_px: int | None = None
) -> Frame:
    """Return the smallest frame around a region, with a margin.

    Args:
        region: (I, J, K) bool, not empty.
        spacing_mm: Size of its voxels.
        width_px: Width that three planes beside each other may take; None for 2 pixels a mm.
    """
    box = bounding_box(region, [round(_MARGIN_MM / mm) for mm in spacing_mm])
    if width_px is None:
        return Frame(box, spacing_mm)
    x_mm, y_mm, _ = (
        (part.stop - part.start) * mm for part, mm in zip(box, spacing_mm, strict=True)
    )
    return Frame(box, spacing_mm, width_px / (2 * x_mm + y_mm))


def window(data: FloatArray, region: BoolArray) -> FloatArray:
    """Return intensities scaled to [0, 1] between low and high percentiles in a region."""
    low, high = np.percentile(data[region], (0.5, 99.7))
    grey: FloatArray = np.clip((data - low) / max(high - low, 1e-6), 0, 1)
    return grey


def overlay(grey: FloatArray, score: FloatArray | None = None) -> FloatArray:
    """Return an (H, W, 3) picture of grey pixels, with those of an anomaly map on top.

    Args:
        grey: (H, W) in [0, 1].
        score: (H, W) in [0, 1]; the more anomalous, the more opaque.
    """
    rgb = np.repeat(255 * grey[..., None], 3, axis=2)
    if score is None:
        return rgb
    score = np.clip(score, 0, 1)[..., None]
    opacity = MAP_OPACITY * np.clip(score / 0.6, 0, 1)
    blended: FloatArray = (1 - opacity) * rgb + opacity * _color(score[..., 0])
    return blended


def outline(rgb: FloatArray, inside: FloatArray, color: Color, width: int = 2) -> None:
    """Draw the outline of an (H, W) mask, along its inner side, into a picture."""
    found = inside > 0.5
    rgb[found & ~ndimage.binary_erosion(found, iterations=width)] = color


def label_sides(rgb: FloatArray, plane: Plane) -> Image.Image:
    """Return a panel with the letters of its two sides."""
    panel = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(panel)
    middle = panel.height // 2
    for x, letter, anchor in zip((4, panel.width - 4), plane.letters, ("lm", "rm"), strict=True):
        draw.text(
            (x, middle), letter, _TEXT, _font(16), anchor, stroke_width=2, stroke_fill="black"
        )
    return panel


def overview_png(
    background: Volume,
    anomaly_map: ArrayLike,
    mask: ArrayLike,
    *,
    brain: ArrayLike | None = None,
    title: str = "",
) -> bytes:
    """Return a PNG: above, three planes of the image; below, the same with map and contour.

    The planes are those that show most of the largest lesion, or without one the middle of the
    brain.

    Args:
        background: The image to show, in any orientation.
        anomaly_map: (I, J, K) in [0, 1] on the grid of the background.
        mask: (I, J, K) bool or integers on the same grid.
        brain: (I, J, K) bool to crop to; by default where the background is not 0.
        title: A line above the picture.

    Raises:
        ValueError: The shapes differ.
    """
    image = reorient(background, "RAS")
    scores = to_ras(background, anomaly_map)
    found = to_ras(background, mask) > 0
    region = image.data != 0 if brain is None else to_ras(background, brain) > 0
    if not region.any():
        region = np.ones(image.shape, dtype=bool)
    center = _center(found, region)
    frame = frame_around(region, image.spacing_mm)
    grey = window(image.data, region)
    rows: list[list[Image.Image]] = [[], []]
    for plane in PLANES:
        pixels, score, inside = (frame.cut(data, plane, center) for data in (grey, scores, found))
        rgb = overlay(pixels, score)
        outline(rgb, inside, CONTOUR)
        rows[0].append(label_sides(overlay(pixels), plane))
        rows[1].append(label_sides(rgb, plane))
    captions = [plane.caption(image.affine, center) for plane in PLANES]
    buffer = io.BytesIO()
    _arrange(rows, title, captions).save(buffer, "PNG")
    return buffer.getvalue()


def to_ras(background: Volume, values: ArrayLike) -> FloatArray:
    """Return an array on a volume's grid in RAS order.

    Raises:
        ValueError: Its shape is not the volume's.
    """
    array = np.asarray(values)
    if array.shape != background.shape:
        raise ValueError(f"the shape {array.shape} differs from the image's {background.shape}")
    return reorient(Volume(array.astype(np.float32), background.affine), "RAS").data


def largest_cuts(mask: BoolArray, box: Box) -> tuple[int, int, int]:
    """Return the indices of three cuts, one across each axis, that show most of a mask in a box.

    Args:
        mask: (I, J, K) bool.
        box: Where to look, such as the box of a lesion; not empty.
    """
    inside = mask[box]
    counts = (inside.sum(axis=axes) for axes in ((1, 2), (0, 2), (0, 1)))
    i, j, k = (int(n.argmax()) + part.start for n, part in zip(counts, box, strict=True))
    return i, j, k


def _center(found: BoolArray, region: BoolArray) -> tuple[int, ...]:
    if not found.any():
        return tuple(round(c) for c in ndimage.center_of_mass(region))
    _, voxels, boxes = label_components(found)
    return largest_cuts(found, boxes[int(np.argmax(voxels))])


def _color(score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    stops = np.linspace(0, 1, len(_COLORS))
    return np.stack([np.interp(score, stops, channel) for channel in _COLORS.T], axis=-1)


def _arrange(rows: list[list[Image.Image]], title: str, captions: list[str]) -> Image.Image:
    """Put the panels in a table with the title above, captions and a colour bar below."""
    gap, head, foot = 8, 34, 30
    widths = [panel.width for panel in rows[0]]
    height = max(panel.height for panel in rows[0])
    bar_width = 46
    size = (
        sum(widths) + gap * (len(widths) + 1) + bar_width,
        head + 2 * height + gap + foot,
    )
    canvas = Image.new("RGB", size)
    draw = ImageDraw.Draw(canvas)
    draw.text((gap, head // 2), title, _TEXT, _font(18), anchor="lm")
    for row, panels in enumerate(rows):
        left = gap
        for panel in panels:
            top = head + row * (height + gap) + (height - panel.height) // 2
            canvas.paste(panel, (left, top))
            left += panel.width + gap
    left = gap
    for width, caption in zip(widths, captions, strict=True):
        draw.text((left + width // 2, size[1] - foot // 2), caption, _FAINT, _font(14), anchor="mm")
        left += width + gap
    _draw_color_bar(canvas, (left + 4, head + height + gap + 10), height=height - 20)
    return canvas


def _draw_color_bar(canvas: Image.Image, corner: tuple[int, int], *, height: int) -> None:
    left, top = corner
    scores = np.repeat(np.linspace(1, 0, height)[:, None], 12, axis=1)
    canvas.paste(Image.fromarray(_color(scores).astype(np.uint8)), corner)
    draw = ImageDraw.Draw(canvas)
    for score in (0.0, 0.5, 1.0):
        position = (left + 16, top + round((1 - score) * (height - 1)))
        draw.text(position, f"{score:g}", _FAINT, _font(12), anchor="lm")


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
