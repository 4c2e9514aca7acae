"""A picture of a result to look at: three planes, with and without the anomaly map on top."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from mmccd_cli.files import write_atomically
from mmccd_cli.volume import Volume, reorient

_MARGIN_MM = 6.0
_PIXELS_PER_MM = 2.0
_MAX_OPACITY = 0.7
_CONTOUR = (64, 255, 200)
_TEXT = (235, 235, 235)
_FAINT = (150, 150, 150)
# Dark red to yellow; brightness rises with the value, so that it also reads without colour.
_COLORS = np.array([(70, 0, 40), (180, 20, 40), (240, 90, 20), (255, 180, 30), (255, 250, 160)])


@dataclass(frozen=True)
class _Plane:
    """A cut through a RAS volume: axis 0 is x, 1 is y, 2 is z."""

    name: str
    across: int  # the axis that the cut is perpendicular to
    right: int
    up: int
    letters: tuple[str, str]


_PLANES = (
    _Plane("axial", 2, 0, 1, ("L", "R")),
    _Plane("coronal", 1, 0, 2, ("L", "R")),
    _Plane("sagittal", 0, 1, 2, ("P", "A")),
)


def render_overview(
    background: Volume,
    anomaly_map: ArrayLike,
    mask: ArrayLike,
    path: Path,
    *,
    brain: ArrayLike | None = None,
    title: str = "",
) -> None:
    """Write the picture of `overview_png` to a file, whole or not at all.

    Raises:
        OSError: The folder cannot be written; nothing is left behind.
    """
    write_atomically(
        Path(path), overview_png(background, anomaly_map, mask, brain=brain, title=title)
    )


def overview_png(
    background: Volume,
    anomaly_map: ArrayLike,
    mask: ArrayLike,
    *,
    brain: ArrayLike | None = None,
    title: str = "",
) -> bytes:
    """Return a PNG: above, three planes of the image; below, the same with map and contour.

    The planes meet at the peak of the largest lesion, or in the middle of the brain without one.
    They are upright with the patient's left on the left, and to scale in mm.

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
    scores = _turned(background, anomaly_map).data
    found = _turned(background, mask).data > 0
    region = image.data != 0 if brain is None else _turned(background, brain).data > 0
    if not region.any():
        region = np.ones(image.shape, dtype=bool)
    center = _center(scores, found, region)
    box = _box(region, image.spacing_mm)
    grey = _windowed(image.data, region)
    rows: list[list[Image.Image]] = [[], []]
    for plane in _PLANES:
        plain, overlay = (
            _panel(plane, grey, scores * shown, found & shown, center, box, image.spacing_mm)
            for shown in (False, True)
        )
        rows[0].append(plain)
        rows[1].append(overlay)
    buffer = io.BytesIO()
    _arrange(rows, title, _captions(image, center)).save(buffer, "PNG")
    return buffer.getvalue()


def _turned(background: Volume, values: ArrayLike) -> Volume:
    array = np.asarray(values)
    if array.shape != background.shape:
        raise ValueError(f"the shape {array.shape} differs from the image's {background.shape}")
    return reorient(Volume(array.astype(np.float32), background.affine), "RAS")


def _center(
    scores: NDArray[np.float32], found: NDArray[np.bool_], region: NDArray[np.bool_]
) -> tuple[int, ...]:
    if not found.any():
        return tuple(round(c) for c in ndimage.center_of_mass(region))
    labels, _ = ndimage.label(found, structure=np.ones((3, 3, 3)))
    largest = labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1
    peak = np.argmax(np.where(largest, scores, -np.inf))
    return tuple(int(i) for i in np.unravel_index(peak, scores.shape))


def _box(region: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> tuple[slice, ...]:
    """The smallest box around the region, with a margin."""
    (tight,) = ndimage.find_objects(region.astype(np.uint8))
    return tuple(
        slice(max(0, part.start - round(_MARGIN_MM / mm)), part.stop + round(_MARGIN_MM / mm))
        for part, mm in zip(tight, spacing_mm, strict=True)
    )


def _windowed(data: NDArray[np.float32], region: NDArray[np.bool_]) -> NDArray[np.float32]:
    low, high = np.percentile(data[region], (0.5, 99.7))
    grey: NDArray[np.float32] = np.clip((data - low) / max(high - low, 1e-6), 0, 1)
    return grey


def _panel(
    plane: _Plane,
    grey: NDArray[np.float32],
    scores: NDArray[np.float32],
    found: NDArray[np.bool_],
    center: tuple[int, ...],
    box: tuple[slice, ...],
    spacing_mm: tuple[float, float, float],
) -> Image.Image:
    """One plane as an RGB image with letters of its sides."""

    def cut(data: NDArray[Any]) -> NDArray[np.float32]:
        index = list(box)
        index[plane.across] = slice(center[plane.across], center[plane.across] + 1)
        upright = np.moveaxis(data[tuple(index)], (plane.up, plane.right), (0, 1))[::-1, :, 0]
        size = (
            max(1, round(upright.shape[1] * spacing_mm[plane.right] * _PIXELS_PER_MM)),
            max(1, round(upright.shape[0] * spacing_mm[plane.up] * _PIXELS_PER_MM)),
        )
        resized = Image.fromarray(np.ascontiguousarray(upright, dtype=np.float32)).resize(
            size, Image.Resampling.BILINEAR
        )
        return np.asarray(resized)

    rgb = np.repeat(255 * cut(grey)[..., None], 3, axis=2)
    score = np.clip(cut(scores), 0, 1)[..., None]
    opacity = _MAX_OPACITY * np.clip(score / 0.6, 0, 1)
    rgb = (1 - opacity) * rgb + opacity * _color(score[..., 0])
    inside = cut(found) > 0.5
    rgb[inside & ~ndimage.binary_erosion(inside, iterations=2)] = _CONTOUR
    panel = Image.fromarray(rgb.astype(np.uint8))
    draw = ImageDraw.Draw(panel)
    middle = panel.height // 2
    draw.text((4, middle), plane.letters[0], _TEXT, _font(16), anchor="lm")
    draw.text((panel.width - 4, middle), plane.letters[1], _TEXT, _font(16), anchor="rm")
    return panel


def _color(score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    stops = np.linspace(0, 1, len(_COLORS))
    return np.stack([np.interp(score, stops, channel) for channel in _COLORS.T], axis=-1)


def _captions(image: Volume, center: tuple[int, ...]) -> list[str]:
    """Plane and position of each cut, for example "axial, z = 12 mm"."""
    world = image.affine[:3, :3] @ center + image.affine[:3, 3]
    return [f"{p.name}, {'xyz'[p.across]} = {world[p.across]:.0f} mm" for p in _PLANES]


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
    _draw_color_bar(canvas, left + 4, head + height + gap + 10, height - 20)
    return canvas


def _draw_color_bar(canvas: Image.Image, left: int, top: int, height: int) -> None:
    scores = np.repeat(np.linspace(1, 0, height)[:, None], 12, axis=1)
    canvas.paste(Image.fromarray(_color(scores).astype(np.uint8)), (left, top))
    draw = ImageDraw.Draw(canvas)
    for score in (0.0, 0.5, 1.0):
        position = (left + 16, top + round((1 - score) * (height - 1)))
        draw.text(position, f"{score:g}", _FAINT, _font(12), anchor="lm")


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
