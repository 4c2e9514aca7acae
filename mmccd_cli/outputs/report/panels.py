"""The still pictures of a report: lesions, registration and brain mask, as small JPEG panels."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image
from scipy import ndimage

from mmccd_cli.outputs.pictures import (
    CONTOUR,
    PLANES,
    BoolArray,
    Color,
    FloatArray,
    Frame,
    Plane,
    frame_around,
    label_sides,
    outline,
    overlay,
    window,
)
from mmccd_cli.outputs.report.data import ReportData
from mmccd_cli.outputs.report.render import base64_of

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
    """One picture of a plane.

    Args:
        image: The picture.
        caption: Plane and position.
        alt: What it shows, for those who do not see it.
    """

    image: Image.Image
    caption: str
    alt: str

    @property
    def url(self) -> str:
        """The picture as an address that holds it."""
        return f"data:image/jpeg;base64,{base64_of(jpeg(self.image))}"


class Panels:
    """All pictures of one subject.

    Args:
        data: The subject.
    """

    def __init__(self, data: ReportData) -> None:
        self._data = data
        self._brain_frame = frame_around(data.brain, data.spacing_mm, _ROW_PX)
        whole = tuple(slice(0, count) for count in data.brain.shape)
        self._wide_frame = Frame(whole, data.spacing_mm, 1.5)
        self._greys: dict[str, FloatArray] = {}

    @cached_property
    def center(self) -> tuple[int, int, int]:
        """Where the planes of a picture of no lesion meet: the middle of the brain."""
        i, j, k = np.rint(ndimage.center_of_mass(self._data.brain)).astype(int)
        return int(i), int(j), int(k)

    def lesion(self, number: int) -> list[Panel]:
        """Three planes through a lesion, by its place in the list, with map and outline."""
        center = self._data.points[number]
        return self._three(center, self._with_map, f"with lesion {number + 1} outlined")

    def overview(self) -> list[Panel]:
        """Three planes of the reference scan alone, through the largest lesion or the middle."""
        points = self._data.points
        return self._three(points[0] if points else self.center, self._plain, "without overlay")

    def without_lesion(self) -> list[Panel]:
        """Three planes with the map, through the middle of the brain."""
        return self._three(self.center, self._with_map, "with the anomaly map")

    def edges_of(self, name: str) -> list[Panel]:
        """The reference with the edges of another modality."""

        def paint(plane: Plane, center: Sequence[int]) -> FloatArray:
            rgb = self._plain(plane, center)
            cut = self._brain_frame.cut(self._grey(name), plane, center)
            rgb[_edges(cut)] = EDGES
            return rgb

        return self._three(self.center, paint, f"with the edges of {name}")

    def checkerboard_with(self, name: str) -> list[Panel]:
        """Tiles of the reference and of another modality in turn."""

        def paint(plane: Plane, center: Sequence[int]) -> FloatArray:
            ours, theirs = (
                self._brain_frame.cut(self._grey(modality), plane, center)
                for modality in (self._data.reference, name)
            )
            side = round(_TILE_MM * self._brain_frame.pixels_per_mm)
            rows, columns = (np.arange(count) // side for count in ours.shape)
            return overlay(np.where((rows[:, None] + columns) % 2, theirs, ours))

        return self._three(self.center, paint, f"in a checkerboard with {name}")

    def template(self) -> list[Panel]:
        """The reference with the outline of the template's brain and the template's edges."""
        data = self._data

        def paint(plane: Plane, center: Sequence[int]) -> FloatArray:
            rgb = self._plain(plane, center)
            inside = self._brain_frame.cut(data.template_mask, plane, center)
            if data.template_image is not None:
                cut = self._brain_frame.cut(self._grey(""), plane, center)
                core = ndimage.binary_erosion(inside > 0.5, iterations=6)
                rgb[_edges(cut) & core] = TEMPLATE
            outline(rgb, inside, TEMPLATE)
            return rgb

        return self._three(self.center, paint, "with the outline of the template")

    def brain(self) -> list[Panel]:
        """The outline of the brain mask at six levels and in two more planes."""
        heights = np.flatnonzero(self._data.brain.any(axis=(0, 1)))
        x, y, z = self.center
        axial, coronal, sagittal = PLANES
        levels = [(x, y, int(np.quantile(heights, level))) for level in _LEVELS]
        cuts = [(axial, level) for level in levels]
        # Beside the middle, where the falx is no edge of the brain.
        beside = x + round(15 / self._data.spacing_mm[0])
        cuts += [(coronal, (x, y, z)), (sagittal, (beside, y, z))]
        return [
            self._panel(plane, center, self._with_brain, "with the outline of the brain mask")
            for plane, center in cuts
        ]

    def thumbnail(self) -> bytes:
        """An axial plane through the largest lesion, as a small JPEG."""
        points = self._data.points
        panel = self._with_map(PLANES[0], points[0] if points else self.center)
        picture = Image.fromarray(np.clip(panel, 0, 255).astype(np.uint8))
        picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.LANCZOS)
        return jpeg(picture)

    def _three(
        self, center: Sequence[int], paint: Callable[[Plane, Sequence[int]], FloatArray], what: str
    ) -> list[Panel]:
        return [self._panel(plane, center, paint, what) for plane in PLANES]

    def _panel(
        self,
        plane: Plane,
        center: Sequence[int],
        paint: Callable[[Plane, Sequence[int]], FloatArray],
        what: str,
    ) -> Panel:
        caption = plane.caption(self._data.affine, center)
        alt = f"{self._data.reference} {what}, {caption}"
        return Panel(label_sides(paint(plane, center), plane), caption, alt)

    def _plain(self, plane: Plane, center: Sequence[int]) -> FloatArray:
        grey = self._grey(self._data.reference)
        return overlay(self._brain_frame.cut(grey, plane, center))

    def _with_map(self, plane: Plane, center: Sequence[int]) -> FloatArray:
        data, frame = self._data, self._brain_frame
        grey = frame.cut(self._grey(data.reference), plane, center)
        rgb = overlay(grey, frame.cut(data.anomaly_map, plane, center))
        outline(rgb, frame.cut(data.mask, plane, center), CONTOUR)
        return rgb

    def _with_brain(self, plane: Plane, center: Sequence[int]) -> FloatArray:
        frame = self._wide_frame
        rgb = overlay(frame.cut(self._grey(self._data.reference), plane, center))
        outline(rgb, frame.cut(self._data.brain, plane, center), BRAIN)
        return rgb

    def _grey(self, name: str) -> FloatArray:
        """Windowed intensities of a modality, or of the template under the name ""."""
        if name not in self._greys:
            data = self._data
            image = data.images[name] if name else data.template_image
            region = data.brain if name else data.template_mask
            assert image is not None  # the template is asked for only where it has an image
            self._greys[name] = window(image, region if region.any() else data.brain)
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
