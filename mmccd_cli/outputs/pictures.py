"""Pictures of a brain in three planes: the panels that all pictures are made of, and an overview.

Panels are upright and to scale in mm, with the patient's left on the left (the neurological
convention), whatever the order of the voxels in the file.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from mmccd_cli.anomaly.components import label_components
from mmccd_cli.inputs.volume import Volume, reorient
from mmccd_cli.outputs.numbers import number_lesions
from mmccd_cli.template import Box, bounding_box, transform_points

Color = tuple[int, int, int]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

CONTOUR: Color = (64, 255, 200)
"""Colour of the mask's outline."""

LEFT_OUT: Color = (215, 215, 215)
"""Colour of the outline of what the map shows above its threshold and the mask leaves out."""

MAP_OPACITY = 0.35
"""Of the map at most, so that what lies below stays visible; the outline says where the mask is."""

_MARGIN_MM = 6.0
_PIXELS_PER_MM = 2.0
_SCALE_BARS_MM = (10, 20, 50)
_TEXT = (235, 235, 235)
_FAINT = (150, 150, 150)
_DARK = (60, 60, 60)
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
    """The part of a RAS grid that panels show, and their scale."""

    box: tuple[slice, ...]
    spacing_mm: tuple[float, float, float]
    pixels_per_mm: float = _PIXELS_PER_MM

    def cut(
        self, data: NDArray[Any], plane: Plane, center: Sequence[int], *, smooth: bool = True
    ) -> FloatArray:
        """Return a cut through a voxel of (I, J, K) data as a panel's (H, W) pixels.

        Numbers that stand for things must not be smooth.
        """
        index = list(self.box)
        index[plane.across] = slice(center[plane.across], center[plane.across] + 1)
        upright = np.moveaxis(data[tuple(index)], (plane.up, plane.right), (0, 1))[::-1, :, 0]
        across, along = (
            max(1, round(count * self.spacing_mm[axis] * self.pixels_per_mm))
            for count, axis in zip(upright.shape, (plane.up, plane.right), strict=True)
        )
        method = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
        resized = Image.fromarray(np.ascontiguousarray(upright, dtype=np.float32)).resize(
            (along, across), method
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
    low, high = window_limits(data, region)
    grey: FloatArray = np.clip((data - low) / max(high - low, 1e-6), 0, 1)
    return grey


def window_limits(data: FloatArray, region: BoolArray) -> tuple[float, float]:
    """Return the intensities of a region that are shown black and white."""
    low, high = np.percentile(data[region], (0.5, 99.7))
    return float(low), float(high)


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


def outline_left_out(rgb: FloatArray, outside: FloatArray) -> None:
    """Draw the outline of what was left out: light, with a dark line inside it."""
    outline(rgb, outside, _DARK, width=2)
    outline(rgb, outside, LEFT_OUT, width=1)


def annotate(
    rgb: FloatArray,
    plane: Plane,
    *,
    pixels_per_mm: float,
    numbers: FloatArray | None = None,
) -> Image.Image:
    """Return a panel with the letters of its two sides, a scale bar and numbers.

    Args:
        rgb: (H, W, 3), 0 to 255.
        plane: What it shows.
        pixels_per_mm: Its scale.
        numbers: (H, W), which number stands beside which pixels; 0 for none.
    """
    panel = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(panel)
    middle = panel.height // 2
    for x, letter, anchor in zip((4, panel.width - 4), plane.letters, ("lm", "rm"), strict=True):
        _write(draw, (x, middle), letter, anchor=anchor)
    fitting = [mm for mm in _SCALE_BARS_MM if mm * pixels_per_mm < 0.3 * panel.width]
    if fitting:
        right, bottom, length = panel.width - 8, panel.height - 8, fitting[-1] * pixels_per_mm
        draw.rectangle([(right - length - 1, bottom - 1), (right + 1, bottom + 2)], "black")
        draw.rectangle([(right - length, bottom), (right, bottom + 1)], _TEXT)
        _write(draw, (right, bottom - 4), f"{fitting[-1] // 10} cm", anchor="rb", size=11)
    if numbers is not None:
        _write_numbers(draw, numbers.round().astype(int))
    return panel


def _write_numbers(draw: ImageDraw.ImageDraw, numbers: NDArray[np.integer[Any]]) -> None:
    """Write each number above the right end of the first row of its pixels."""
    for number in np.setdiff1d(numbers, 0):
        rows, columns = np.nonzero(numbers == number)  # row by row
        x = int(columns[rows == rows[0]].max()) + 2
        place = (min(x, numbers.shape[1] - 18), max(int(rows[0]), 14))
        _write(draw, place, str(number), anchor="lb", size=13)


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    *,
    anchor: str,
    size: int = 16,
) -> None:
    draw.text(place, text, _TEXT, _font(size), anchor, stroke_width=2, stroke_fill="black")


def overview_png(
    background: Volume,
    anomaly_map: ArrayLike,
    mask: ArrayLike,
    *,
    threshold: float = 0.5,
    brain: ArrayLike | None = None,
    title: str = "",
) -> bytes:
    """Return a PNG: above, three planes of the image; below, the same with map and contours.

    The planes are those that show most of the largest lesion, or without one the middle of the
    brain. Lesions are outlined and numbered; what the map shows above its threshold and the mask
    leaves out has a grey outline.

    Args:
        background: The image to show, in any orientation.
        anomaly_map: (I, J, K) in [0, 1] on the grid of the background.
        mask: (I, J, K) bool or integers on the same grid.
        threshold: Value of the map above which a voxel may belong to the mask.
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
    grey, numbers = window(image.data, region), number_lesions(found)
    outside = (scores > threshold) & ~found
    rows: list[list[Image.Image]] = [[], []]
    for plane in PLANES:
        cut = partial(frame.cut, plane=plane, center=center)
        rgb = overlay(cut(grey), cut(scores))
        outline_left_out(rgb, cut(outside))
        outline(rgb, cut(found), CONTOUR)
        scale = frame.pixels_per_mm
        rows[0].append(annotate(overlay(cut(grey)), plane, pixels_per_mm=scale))
        shown = cut(numbers, smooth=False)
        rows[1].append(annotate(rgb, plane, pixels_per_mm=scale, numbers=shown))
    captions = [plane.caption(image.affine, center) for plane in PLANES]
    buffer = io.BytesIO()
    _arrange(rows, captions, title=title, threshold=threshold).save(buffer, "PNG")
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
    """Return the indices of three cuts, one across each axis, that show most of a mask in a box."""
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


def palette() -> list[tuple[int, int, int]]:
    """Return the colours of the map's values 0, 0.01, ... 1."""
    return [(int(r), int(g), int(b)) for r, g, b in _color(np.linspace(0, 1, 101))]


def _arrange(
    rows: list[list[Image.Image]], captions: list[str], *, title: str, threshold: float
) -> Image.Image:
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
    corner = (left + 4, head + height + gap + 10)
    _draw_color_bar(canvas, corner, height=height - 20, threshold=threshold)
    return canvas


def _draw_color_bar(
    canvas: Image.Image, corner: tuple[int, int], *, height: int, threshold: float
) -> None:
    """Draw the colours of 0 to 1, with a mark across them at the threshold."""
    left, top = corner
    scores = np.repeat(np.linspace(1, 0, height)[:, None], 12, axis=1)
    canvas.paste(Image.fromarray(_color(scores).astype(np.uint8)), corner)
    draw = ImageDraw.Draw(canvas)
    for score in (0.0, threshold, 1.0):
        y = top + round((1 - score) * (height - 1))
        draw.text((left + 19, y), f"{score:.2g}", _FAINT, _font(12), anchor="lm")
        if score == threshold:
            draw.line([(left - 4, y), (left + 16, y)], "black", width=4)
            draw.line([(left - 4, y), (left + 16, y)], CONTOUR, width=2)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
