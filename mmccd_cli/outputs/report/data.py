"""All that a report shows of one subject, brought to one grid and one order of axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from mmccd_cli.anomaly.mask import LeftOut, Lesion
from mmccd_cli.config import MODALITIES
from mmccd_cli.inputs.volume import Volume, reorient
from mmccd_cli.outputs.numbers import Numbers, number_left_out, number_lesions
from mmccd_cli.outputs.pictures import BoolArray, FloatArray, largest_cuts
from mmccd_cli.preprocessing.spatial import resample, same_grid
from mmccd_cli.preprocessing.subject import PreparedSubject
from mmccd_cli.template import (
    Box,
    Template,
    bounding_box,
    spacing_of,
    transform_points,
    voxel_volume_mm3,
)

if TYPE_CHECKING:
    from mmccd_cli.pipeline import SegmentationResult

_MARGIN_MM = 25.0  # around the brain mask: wide enough to see what the mask has missed


@dataclass(frozen=True, eq=False, kw_only=True)
class ReportData:
    """A subject on the grid of its map, in RAS order, cut to the brain's surroundings.

    Args:
        affine: (4, 4) from the indices of all arrays to RAS+ mm.
        reference: Modality of the reference scan.
        images: Modality -> (I, J, K) float32, moved to the reference; the reference is the first.
        brain: (I, J, K) bool.
        at_edge: Share of the brain's surface that lies on the edge of the scan, [0, 1].
        anomaly_map: (I, J, K) float32 in [0, 1].
        mask: (I, J, K) bool.
        numbers: (I, J, K) uint32, the id of the lesion or of the candidate that was left out; 0
            for none.
        threshold: Value of the map above which a voxel belongs to the mask.
        lesions: As the result lists them; their boxes are indices of the file, not of this grid.
        left_out: Likewise.
        points: (I, J, K) indices on this grid of the cuts that show each lesion.
        template_image: (I, J, K) float32, the template's mean image; None where it has none.
        template_mask: (I, J, K) bool, the template's brain.
        prepared: The subject in template space.
        template: The template.
    """

    affine: NDArray[np.float64]
    reference: str
    images: dict[str, FloatArray]
    brain: BoolArray
    at_edge: float
    anomaly_map: FloatArray
    mask: BoolArray
    numbers: Numbers
    threshold: float
    lesions: list[Lesion]
    left_out: list[LeftOut]
    points: list[tuple[int, int, int]]
    template_image: FloatArray | None
    template_mask: BoolArray
    prepared: PreparedSubject
    template: Template

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along each axis."""
        return spacing_of(self.affine)

    @cached_property
    def outside(self) -> BoolArray:
        """What is above the threshold and not in the mask, (I, J, K) bool."""
        return (self.anomaly_map > self.threshold) & ~self.mask

    @property
    def brain_litres(self) -> float:
        """Volume of the brain mask."""
        return float(self.brain.sum()) * voxel_volume_mm3(self.affine) / 1e6

    @property
    def lesion_share(self) -> float:
        """Share of the brain's voxels that the mask holds."""
        return float(self.mask.sum() / max(1, self.brain.sum()))

    @property
    def points_mm(self) -> list[list[float]]:
        """`points` in RAS+ mm, rounded."""
        return [
            [round(float(mm), 2) for mm in transform_points(self.affine, point)]
            for point in self.points
        ]


def report_data(
    result: SegmentationResult, volumes: Mapping[str, Volume], template: Template
) -> ReportData:
    """Bring a result, its scans and the template to the grid of the map.

    Raises:
        ValueError: The result has no prepared subject.
    """
    prepared = result.prepared
    if prepared is None:
        raise ValueError("a report needs the prepared subject")
    crop = _Crop.around(result.brain, result.shown)
    in_template_space = result.shown is not prepared.reference_volume
    to_template = np.eye(4) if in_template_space else prepared.to_reference
    images = {result.reference: crop.of(result.shown.data)}
    for name in prepared.images:
        if name == result.reference:
            continue
        if in_template_space:
            images[name] = crop.of(prepared.images[name])
        elif same_grid(volumes[name], result.shown):
            images[name] = crop.of(volumes[name].data)
        else:
            images[name] = crop.resampled(volumes[name], prepared.matrices[name])
    outside = (result.anomaly_map > result.threshold) & ~result.mask
    left_out = number_left_out(outside, result.left_out, result.shown.affine)
    names = [result.reference, *MODALITIES]
    chosen = next((name for name in names if name in template.images), None)
    return ReportData(
        affine=crop.affine,
        reference=result.reference,
        images=images,
        brain=crop.of(result.brain) > 0,
        at_edge=_share_at_edge(result.brain),
        anomaly_map=crop.of(result.anomaly_map),
        mask=crop.of(result.mask) > 0,
        numbers=crop.of(number_lesions(result.mask) + left_out).astype(np.uint32),
        threshold=result.threshold,
        lesions=list(result.lesions),
        left_out=list(result.left_out),
        points=[crop.point_of(lesion, result.mask) for lesion in result.lesions],
        template_image=crop.resampled(Volume(template.images[chosen], template.affine), to_template)
        if chosen
        else None,
        template_mask=crop.resampled(
            Volume(template.mask.astype(np.float32), template.affine), to_template
        )
        > 0.5,
        prepared=prepared,
        template=template,
    )


@dataclass(frozen=True, eq=False)
class _Crop:
    """The part of a volume's grid around its brain, and that part's affine in RAS order."""

    box: Box
    cut: Volume
    affine: NDArray[np.float64]

    @classmethod
    def around(cls, brain: BoolArray, shown: Volume) -> _Crop:
        margin = [round(_MARGIN_MM / mm) for mm in shown.spacing_mm]
        box = bounding_box(brain, margin)
        cut = shown.cropped(box)
        return cls(box, cut, reorient(cut, "RAS").affine)

    def of(self, data: ArrayLike) -> FloatArray:
        """An array on the whole grid."""
        part = np.asarray(data)[self.box].astype(np.float32)
        return reorient(replace(self.cut, data=part), "RAS").data

    def resampled(self, volume: Volume, matrix: NDArray[np.float64]) -> FloatArray:
        """Another volume; the matrix leads from this grid's world to the volume's."""
        lowest = float(volume.data.min())
        moved = resample(volume, self.cut.shape, self.cut.affine, matrix=matrix, fill=lowest)
        return reorient(moved, "RAS").data

    def point_of(self, lesion: Lesion, mask: BoolArray) -> tuple[int, int, int]:
        """Index of the cuts, one a plane, that show most of a lesion."""
        i, j, k = (slice(*limits) for limits in lesion.box)
        largest = [
            index - crop.start
            for index, crop in zip(largest_cuts(mask, (i, j, k)), self.box, strict=True)
        ]
        world = transform_points(self.cut.affine, largest)
        x, y, z = np.rint(
            transform_points(np.asarray(np.linalg.inv(self.affine), dtype=np.float64), world)
        ).astype(int)
        return int(x), int(y), int(z)


def _share_at_edge(brain: BoolArray) -> float:
    """Share of the mask's surface voxels that lie on the six faces of the grid."""
    surface = brain & ~ndimage.binary_erosion(brain, border_value=0)
    inner = surface[1:-1, 1:-1, 1:-1].sum()
    total = int(surface.sum())
    return float(total - inner) / max(1, total)
