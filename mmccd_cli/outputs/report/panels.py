"""The still pictures of a report: lesions, registration and brain mask, as small JPEG panels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mmccd_cli.outputs.numbers import Numbers
from mmccd_cli.outputs.pictures import (
    CONTOUR,
    PLANES,
    BoolArray,
    Color,
    FloatArray,
    Frame,
    Plane,
    annotate,
    frame_around,
    outline,
    outline_left_out,
    overlay,
    window,
)
from mmccd_cli.outputs.report.data import ReportData
from mmccd_cli.outputs.report.render import base64_of

Point = tuple[int, int, int]
Cut = Callable[[NDArray[Any]], FloatArray]
"""Cuts (I, J, K) data where a panel lies, and returns the panel's (H, W) pixels."""

EDGES: Color = (255, 210, 60)
TEMPLATE: Color = (255, 92, 200)
BRAIN: Color = (77, 181, 255)

_QUALITY = 85
_ROW_PX = 1090
_EDGE_SIGMA_PX = 2.5
_TILE_MM = 22.0
_THUMBNAIL_PX = 150
_LEVELS = (0.12, 0.26, 0.40, 0.54, 0.68, 0.82)  # of the brain's height


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a plane, its caption, and what it shows for those who do not see it."""

    image: Image.Image
    caption: str
    alt: str

    @property
    def url(self) -> str:
        """The picture as an address that holds it."""
        return f"data:image/jpeg;base64,{base64_of(jpeg(self.image))}"


class Panels:
    """All pictures of one subject, each made when it is asked for."""

    def __init__(self, data: ReportData) -> None:
        self._data = data
        self._brain_frame = frame_around(data.brain, data.spacing_mm, _ROW_PX)
        whole = tuple(slice(0, count) for count in data.brain.shape)
        self._wide_frame = Frame(whole, data.spacing_mm, 1.5)
        i, j, k = np.rint(ndimage.center_of_mass(data.brain)).astype(int)
        self._center = (int(i), int(j), int(k))
        self._first = data.points[0] if data.points else self._center
        self._greys: dict[str, FloatArray] = {}

    def lesion(self, number: int) -> list[Panel]:
        """Three planes through a lesion, by its place in the list, with map and outline."""
        center = self._data.points[number]
        what = f"with lesion {number + 1} outlined"
        return self._three(self._with_map, what, center, numbers=self._data.numbers)

    def overview(self) -> list[Panel]:
        """Three planes of the reference scan alone, through the largest lesion or the middle."""
        return self._three(self._scan_alone, "without overlay", self._first)

    def without_lesion(self) -> list[Panel]:
        """Three planes with the map, through the middle of the brain."""
        return self._three(self._with_map, "with the anomaly map", numbers=self._data.numbers)

    def edges_of(self, name: str) -> list[Panel]:
        """The reference with the edges of another modality."""

        def paint(cut: Cut) -> FloatArray:
            rgb = self._scan_alone(cut)
            rgb[_edges(cut(self._grey(name)))] = EDGES
            return rgb

        return self._three(paint, f"with the edges of {name}")

    def checkerboard_with(self, name: str) -> list[Panel]:
        """Tiles of the reference and of another modality in turn."""

        def paint(cut: Cut) -> FloatArray:
            ours, theirs = cut(self._grey(self._data.reference)), cut(self._grey(name))
            side = round(_TILE_MM * self._brain_frame.pixels_per_mm)
            rows, columns = (np.arange(count) // side for count in ours.shape)
            return overlay(np.where((rows[:, None] + columns) % 2, theirs, ours))

        return self._three(paint, f"in a checkerboard with {name}")

    def template(self) -> list[Panel]:
        """The reference with the outline of the template's brain and the template's edges."""
        image, mask = self._data.template_image, self._data.template_mask
        grey = None if image is None else window(image, mask if mask.any() else self._data.brain)

        def paint(cut: Cut) -> FloatArray:
            rgb = self._scan_alone(cut)
            inside = cut(mask)
            if grey is not None:
                core = ndimage.binary_erosion(inside > 0.5, iterations=6)
                rgb[_edges(cut(grey)) & core] = TEMPLATE
            outline(rgb, inside, TEMPLATE)
            return rgb

        return self._three(paint, "with the outline of the template")

    def brain(self) -> list[Panel]:
        """The outline of the brain mask at six levels and in two more planes."""

        def paint(cut: Cut) -> FloatArray:
            rgb = self._scan_alone(cut)
            outline(rgb, cut(self._data.brain), BRAIN)
            return rgb

        x, y, z = self._center
        heights = np.flatnonzero(self._data.brain.any(axis=(0, 1)))
        axial, coronal, sagittal = PLANES
        views = [(axial, (x, y, int(np.quantile(heights, level)))) for level in _LEVELS]
        # Beside the middle, where the falx is no edge of the brain.
        beside = x + round(15 / self._data.spacing_mm[0])
        views += [(coronal, (x, y, z)), (sagittal, (beside, y, z))]
        return self._panels(
            views, paint, what="with the outline of the brain mask", frame=self._wide_frame
        )

    def thumbnail(self) -> bytes:
        """An axial plane through the largest lesion, as a small JPEG."""
        rgb = self._with_map(partial(self._brain_frame.cut, plane=PLANES[0], center=self._first))
        picture = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
        picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.LANCZOS)
        return jpeg(picture)

    def _three(
        self,
        paint: Callable[[Cut], FloatArray],
        what: str,
        center: Point | None = None,
        *,
        numbers: Numbers | None = None,
    ) -> list[Panel]:
        """Three planes that meet in a voxel; by default in the middle of the brain."""
        views = [(plane, center or self._center) for plane in PLANES]
        return self._panels(views, paint, what=what, frame=self._brain_frame, numbers=numbers)

    def _panels(
        self,
        views: Iterable[tuple[Plane, Point]],
        paint: Callable[[Cut], FloatArray],
        *,
        what: str,
        frame: Frame,
        numbers: Numbers | None = None,
    ) -> list[Panel]:
        panels = []
        for plane, center in views:
            caption = plane.caption(self._data.affine, center)
            cut = partial(frame.cut, plane=plane, center=center)
            shown = None if numbers is None else cut(numbers, smooth=False)
            image = annotate(paint(cut), plane, pixels_per_mm=frame.pixels_per_mm, numbers=shown)
            panels.append(Panel(image, caption, f"{self._data.reference} {what}, {caption}"))
        return panels

    def _scan_alone(self, cut: Cut) -> FloatArray:
        return overlay(cut(self._grey(self._data.reference)))

    def _with_map(self, cut: Cut) -> FloatArray:
        rgb = overlay(cut(self._grey(self._data.reference)), cut(self._data.anomaly_map))
        outline_left_out(rgb, cut(self._data.outside))
        outline(rgb, cut(self._data.mask), CONTOUR)
        return rgb

    def _grey(self, name: str) -> FloatArray:
        """Return the intensities of a modality, scaled to [0, 1] in the brain."""
        if name not in self._greys:
            self._greys[name] = window(self._data.images[name], self._data.brain)
        return self._greys[name]


def jpeg(image: Image.Image) -> bytes:
    """Return an image as JPEG, its colours at full resolution so that outlines stay sharp."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()


def _edges(grey: FloatArray) -> BoolArray:
    """Find the strongest edges of a panel: zeros of the Laplacian where the slope is steep."""
    laplacian = ndimage.gaussian_laplace(grey, _EDGE_SIGMA_PX)
    slope = ndimage.gaussian_gradient_magnitude(grey, _EDGE_SIGMA_PX)
    positive = laplacian > 0
    crossing = positive & ~ndimage.binary_erosion(positive, border_value=1)
    steep = slope > max(0.4 * float(np.percentile(slope, 97)), 1e-4)
    edges: BoolArray = crossing & steep
    return edges
