"""How well a mask or a map agrees with a reference, in millimetres and millilitres.

Conventions for empty masks, so that a mean over subjects is always defined and never flattered:

- both empty: a perfect answer; overlaps are 1, distances 0.
- only one of them empty: a complete miss; overlaps (also a ratio whose denominator is 0) are 0 and
  distances the diagonal of the volume, the largest that could have been measured.
- AUROC and AUPRC need both classes: NaN otherwise, and `summarise` leaves NaN out and counts it.
- a healthy subject without a reference has false positives and nothing else: the rest is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.anomaly.components import (
    BoolArray,
    FloatArray,
    label_components,
    straight_voxel_mm3,
)
from mmccd_cli.template import bounding_box

MIN_OVERLAP = 0.1
"""Share of a lesion's voxels that must be covered for it to count as found."""
CONFIDENCE = 0.95
RESAMPLES = 10_000
"""Confidence and number of resampled means of bootstrap intervals."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Voxel-wise agreement of two masks, each value in [0, 1]."""

    dice: float
    jaccard: float
    precision: float
    recall: float


@dataclass(frozen=True, kw_only=True)
class SurfaceDistance:
    """Distance between the surfaces of two masks, mm.

    Attributes:
        assd_mm: Average symmetric surface distance: the mean over the voxels of both surfaces.
        hd95_mm: The larger of the 95th percentiles of the two directions.
    """

    assd_mm: float
    hd95_mm: float


@dataclass(frozen=True, kw_only=True)
class LesionOverlap:
    """Agreement counted by lesion instead of by voxel.

    Attributes:
        f1: Harmonic mean of sensitivity and precision.
        sensitivity: Found reference lesions / reference lesions.
        precision: Predicted components that lie on a lesion / predicted components.
        reference_lesions: Number of lesions in the reference.
        predicted_lesions: Number of components predicted.
    """

    f1: float
    sensitivity: float
    precision: float
    reference_lesions: int
    predicted_lesions: int


@dataclass(frozen=True, kw_only=True)
class CaseMetrics:
    """All that is reported for one subject; the field names are the columns of the table."""

    dice: float
    jaccard: float
    precision: float
    recall: float
    auroc: float
    auprc: float
    assd_mm: float
    hd95_mm: float
    lesion_f1: float
    lesion_sensitivity: float
    lesion_precision: float
    predicted_ml: float
    reference_ml: float
    false_positive_ml: float
    false_positive_healthy_slices_ml: float


@dataclass(frozen=True, kw_only=True)
class MetricSummary:
    """Mean, spread and confidence interval of one metric over subjects.

    Attributes:
        mean: Mean over the subjects with a value.
        sd: Sample standard deviation (n - 1); 0 for a single subject.
        low: Lower end of the bootstrap interval of the mean.
        high: Upper end.
        n: Subjects with a value.
        undefined: Subjects left out because the metric is NaN for them.
    """

    mean: float
    sd: float
    low: float
    high: float
    n: int
    undefined: int


def overlap(mask: BoolArray, reference: BoolArray) -> Overlap:
    """Compare two masks voxel by voxel.

    Args:
        mask: (I, J, K) bool, the prediction.
        reference: (I, J, K) bool.

    Returns:
        Dice, Jaccard, precision and recall.
    """
    predicted, actual = int(mask.sum()), int(reference.sum())
    shared = int(np.count_nonzero(mask & reference))
    if predicted == 0 and actual == 0:
        return Overlap(dice=1.0, jaccard=1.0, precision=1.0, recall=1.0)
    return Overlap(
        dice=2 * shared / (predicted + actual),
        jaccard=shared / (predicted + actual - shared),
        precision=_ratio(shared, predicted),
        recall=_ratio(shared, actual),
    )


def auroc(scores: FloatArray, reference: BoolArray) -> float:
    """Compute the area under the ROC curve, exactly and with ties counted half.

    Args:
        scores: Any shape; pass only the voxels of the brain, for the background is no success.
        reference: Same shape, bool.

    Returns:
        In [0, 1]; NaN without both classes.
    """
    true_positives, false_positives = _ranked_counts(scores, reference)
    if true_positives[-1] == 0 or false_positives[-1] == 0:
        return float("nan")
    heights = (true_positives[1:] + true_positives[:-1]) / 2
    area = float(np.sum(np.diff(false_positives) * heights))
    return area / float(true_positives[-1] * false_positives[-1])


def auprc(scores: FloatArray, reference: BoolArray) -> float:
    """Compute the average precision: precision summed over the steps of recall.

    Args:
        scores: Any shape; pass only the voxels of the brain.
        reference: Same shape, bool.

    Returns:
        In [0, 1]; NaN without both classes.
    """
    true_positives, false_positives = _ranked_counts(scores, reference)
    if true_positives[-1] == 0 or false_positives[-1] == 0:
        return float("nan")
    precision = true_positives[1:] / (true_positives[1:] + false_positives[1:])
    return float(np.sum(precision * np.diff(true_positives)) / true_positives[-1])


def surface_distance(
    mask: BoolArray, reference: BoolArray, spacing_mm: Sequence[float]
) -> SurfaceDistance:
    """Measure how far the surfaces of two masks are apart.

    The surface is every voxel of a mask that has a face neighbour outside it; the edge of the
    volume is an outside. In a volume of a single slice, surfaces are the contours in that slice.

    Args:
        mask: (I, J, K) bool.
        reference: (I, J, K) bool.
        spacing_mm: Voxel size, mm; need not be the same along the axes.

    Returns:
        ASSD and HD95, mm.
    """
    if not mask.any() and not reference.any():
        return SurfaceDistance(assd_mm=0.0, hd95_mm=0.0)
    spacing = tuple(float(s) for s in spacing_mm)
    if not mask.any() or not reference.any():
        diagonal = float(np.linalg.norm(np.array(mask.shape) * spacing))
        return SurfaceDistance(assd_mm=diagonal, hd95_mm=diagonal)
    box = bounding_box(mask | reference)
    faces = _faces(mask.shape)
    first, second = _surface(mask[box], faces), _surface(reference[box], faces)
    to_second = ndimage.distance_transform_edt(~second, sampling=spacing)[first]
    to_first = ndimage.distance_transform_edt(~first, sampling=spacing)[second]
    return SurfaceDistance(
        assd_mm=float((to_second.sum() + to_first.sum()) / (to_second.size + to_first.size)),
        hd95_mm=float(max(np.percentile(to_second, 95), np.percentile(to_first, 95))),
    )


def lesion_overlap(
    mask: BoolArray,
    reference: BoolArray,
    spacing_mm: Sequence[float],
    *,
    min_volume_mm3: float = 0.0,
    voxel_mm3: float | None = None,
) -> LesionOverlap:
    """Count lesions that were found and components that are lesions.

    A lesion is a 26-connected component. A reference lesion is found when at least a tenth of its
    voxels are in the mask, for touching by a voxel is not finding; a predicted component is right
    when at least a tenth of its voxels are in the reference. One component may find several
    lesions, and several one.

    Args:
        mask: (I, J, K) bool.
        reference: (I, J, K) bool.
        spacing_mm: Voxel size, mm.
        min_volume_mm3: Components smaller than this are not counted on either side (they still
            count as voxels to overlap with).
        voxel_mm3: Volume of a voxel; None where the grid has no shear.

    Returns:
        F1, sensitivity, precision and the two counts.
    """
    least = min_volume_mm3 / (voxel_mm3 or straight_voxel_mm3(spacing_mm))
    found, actual = _covered_components(reference, mask, least)
    right, predicted = _covered_components(mask, reference, least)
    sensitivity, precision = _ratio(found, actual), _ratio(right, predicted)
    if actual == 0 and predicted == 0:
        sensitivity = precision = 1.0
    return LesionOverlap(
        f1=_ratio(2 * sensitivity * precision, sensitivity + precision),
        sensitivity=sensitivity,
        precision=precision,
        reference_lesions=actual,
        predicted_lesions=predicted,
    )


def false_positive_ml(
    mask: BoolArray,
    reference: BoolArray,
    spacing_mm: Sequence[float],
    *,
    voxel_mm3: float | None = None,
) -> float:
    """Measure the volume that is in the mask and not in the reference, ml; see `volume_ml`."""
    return volume_ml(mask & ~reference, spacing_mm, voxel_mm3=voxel_mm3)


def false_positive_healthy_slices_ml(
    mask: BoolArray,
    reference: BoolArray,
    spacing_mm: Sequence[float],
    *,
    axial_axis: int = 2,
    voxel_mm3: float | None = None,
) -> float:
    """Measure the volume of the mask in the axial slices without any lesion, ml.

    Args:
        mask: (I, J, K) bool.
        reference: (I, J, K) bool.
        spacing_mm: Voxel size, mm.
        axial_axis: The axis across axial slices.
        voxel_mm3: Volume of a voxel; None where the grid has no shear.

    Returns:
        ml; NaN where every slice holds a lesion.
    """
    healthy = ~np.moveaxis(reference, axial_axis, 0).any(axis=(1, 2))
    if not healthy.any():
        return float("nan")
    inside = np.moveaxis(mask, axial_axis, 0)[healthy]
    return volume_ml(inside, spacing_mm, voxel_mm3=voxel_mm3)


def volume_ml(
    mask: BoolArray, spacing_mm: Sequence[float], *, voxel_mm3: float | None = None
) -> float:
    """Measure the volume of a mask, ml.

    Args:
        mask: (I, J, K) bool.
        spacing_mm: Voxel size, mm.
        voxel_mm3: Volume of a voxel; None where the grid has no shear.
    """
    return int(np.count_nonzero(mask)) * (voxel_mm3 or straight_voxel_mm3(spacing_mm)) / 1000


def measure_case(
    mask: BoolArray,
    reference: BoolArray,
    spacing_mm: Sequence[float],
    *,
    anomaly_map: FloatArray | None = None,
    brain: BoolArray | None = None,
    axial_axis: int = 2,
    voxel_mm3: float | None = None,
) -> CaseMetrics:
    """Compute every metric of one subject.

    Args:
        mask: (I, J, K) bool, as written.
        reference: (I, J, K) bool.
        spacing_mm: Voxel size, mm.
        anomaly_map: (I, J, K) float for AUROC and AUPRC; NaN without it.
        brain: (I, J, K) bool, where the map is judged; required with a map.
        axial_axis: The axis across axial slices.
        voxel_mm3: Volume of a voxel; None where the grid has no shear.

    Raises:
        ValueError: For arrays of different shapes, or a map without a brain.
    """
    shapes = {a.shape for a in (mask, reference, anomaly_map, brain) if a is not None}
    if len(shapes) > 1:
        raise ValueError(f"The arrays differ in shape: {sorted(shapes)}.")
    if anomaly_map is not None and brain is None:
        raise ValueError("An anomaly map is judged inside the brain: pass `brain`.")
    mask, reference = mask.astype(bool), reference.astype(bool)
    lesions = lesion_overlap(mask, reference, spacing_mm, voxel_mm3=voxel_mm3)
    areas = {"auroc": float("nan"), "auprc": float("nan")}
    if anomaly_map is not None and brain is not None:
        inside, truth = anomaly_map[brain], reference[brain]
        areas = {"auroc": auroc(inside, truth), "auprc": auprc(inside, truth)}
    return CaseMetrics(
        **asdict(overlap(mask, reference)),
        **areas,
        **asdict(surface_distance(mask, reference, spacing_mm)),
        lesion_f1=lesions.f1,
        lesion_sensitivity=lesions.sensitivity,
        lesion_precision=lesions.precision,
        predicted_ml=volume_ml(mask, spacing_mm, voxel_mm3=voxel_mm3),
        reference_ml=volume_ml(reference, spacing_mm, voxel_mm3=voxel_mm3),
        false_positive_ml=false_positive_ml(mask, reference, spacing_mm, voxel_mm3=voxel_mm3),
        false_positive_healthy_slices_ml=false_positive_healthy_slices_ml(
            mask, reference, spacing_mm, axial_axis=axial_axis, voxel_mm3=voxel_mm3
        ),
    )


def measure_healthy(
    mask: BoolArray, spacing_mm: Sequence[float], *, voxel_mm3: float | None = None
) -> CaseMetrics:
    """Measure the false positives of a healthy subject; every other metric is NaN.

    Args:
        mask: (I, J, K) bool, as written.
        spacing_mm: Voxel size, mm.
        voxel_mm3: Volume of a voxel; None where the grid has no shear.
    """
    wrong = volume_ml(mask, spacing_mm, voxel_mm3=voxel_mm3)
    known = {
        "predicted_ml": wrong,
        "reference_ml": 0.0,
        "false_positive_ml": wrong,
        "false_positive_healthy_slices_ml": wrong,
    }
    return CaseMetrics(**{f.name: known.get(f.name, float("nan")) for f in fields(CaseMetrics)})


def bootstrap_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """Find the percentile bootstrap interval of a mean over subjects.

    Args:
        values: One value a subject; NaN is left out.
        seed: Of the resampling, so that the interval is reproducible.

    Returns:
        (low, high); NaN for no values.
    """
    data = np.asarray(values, dtype=np.float64)
    data = data[~np.isnan(data)]
    if data.size == 0:
        return (float("nan"), float("nan"))
    generator = np.random.default_rng(seed)
    means = data[generator.integers(0, data.size, size=(RESAMPLES, data.size))].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return (float(low), float(high))


def summarise(values: Sequence[float], *, seed: int = 0) -> MetricSummary:
    """Summarise one metric over subjects: mean, SD and the bootstrap 95 % interval of the mean."""
    data = np.asarray(values, dtype=np.float64)
    defined = data[~np.isnan(data)]
    low, high = bootstrap_interval(values, seed=seed)
    return MetricSummary(
        mean=float(defined.mean()) if defined.size else float("nan"),
        sd=float(defined.std(ddof=1)) if defined.size > 1 else 0.0,
        low=low,
        high=high,
        n=int(defined.size),
        undefined=int(data.size - defined.size),
    )


def summarise_cases(cases: Sequence[CaseMetrics], *, seed: int = 0) -> dict[str, MetricSummary]:
    """Summarise every column of a table of subjects, by column name."""
    return {
        field.name: summarise([getattr(case, field.name) for case in cases], seed=seed)
        for field in fields(CaseMetrics)
    }


def dice_by_threshold(
    scores: FloatArray,
    reference: BoolArray,
    thresholds: Sequence[float],
    *,
    missed_voxels: int = 0,
) -> NDArray[np.float64]:
    """Compute the Dice of `score > threshold` for many thresholds at once, without cleaning.

    Args:
        scores: Scores of the voxels that can be marked, any shape.
        reference: Same shape, bool.
        thresholds: (T,).
        missed_voxels: Reference voxels that lie outside `scores` and so can never be marked.

    Returns:
        (T,) float64.
    """
    flat = np.asarray(scores).ravel()
    cuts = np.asarray(thresholds, dtype=np.float64)
    every, lesion = np.sort(flat), np.sort(flat[np.asarray(reference).ravel()])
    predicted = every.size - np.searchsorted(every, cuts, side="right")
    shared = lesion.size - np.searchsorted(lesion, cuts, side="right")
    total = predicted + lesion.size + missed_voxels
    return np.divide(2.0 * shared, total, out=np.ones(cuts.size), where=total > 0)


def oracle_threshold(
    scores: Sequence[FloatArray], references: Sequence[BoolArray], thresholds: Sequence[float]
) -> tuple[float, float]:
    """Find the threshold of the highest mean Dice over a set, with the labels of that very set.

    What published tables report; it flatters, so name it "oracle" wherever it is shown.

    Args:
        scores: One array a subject, inside the brain.
        references: One bool array a subject, same shapes.
        thresholds: (T,) candidates.

    Returns:
        (threshold, mean Dice); the lowest threshold of several that are equally good.
    """
    dice = np.mean(
        [dice_by_threshold(s, r, thresholds) for s, r in zip(scores, references, strict=True)],
        axis=0,
    )
    best = int(np.argmax(dice))
    return float(thresholds[best]), float(dice[best])


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else 0.0


def _ranked_counts(
    scores: FloatArray, reference: BoolArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Count true and false positives at every distinct threshold, from none to all marked."""
    flat = np.asarray(scores).ravel()
    order = np.argsort(-flat, kind="stable")
    ranked, truth = flat[order], np.asarray(reference, dtype=bool).ravel()[order]
    is_end = np.append(np.diff(ranked) != 0, True)[: ranked.size]
    true_positives = np.cumsum(truth, dtype=np.float64)[is_end]
    false_positives = np.flatnonzero(is_end) + 1 - true_positives
    return np.concatenate([[0.0], true_positives]), np.concatenate([[0.0], false_positives])


def _faces(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The neighbours of a voxel through its faces; none along an axis of a single voxel."""
    faces = ndimage.generate_binary_structure(3, 1)
    for axis, length in enumerate(shape):
        if length == 1:
            np.moveaxis(faces, axis, 0)[::2] = False
    return faces


def _surface(mask: BoolArray, faces: NDArray[np.bool_]) -> NDArray[Any]:
    inner = ndimage.binary_erosion(np.pad(mask, 1), faces)[1:-1, 1:-1, 1:-1]
    return mask & ~inner


def _covered_components(
    components: BoolArray, cover: BoolArray, least_voxels: float
) -> tuple[int, int]:
    """Count the components that a second mask covers far enough, and all components."""
    labels, voxels, _ = label_components(components)
    shared = np.bincount(labels[cover], minlength=voxels.size + 1)[1:]
    counted = voxels >= least_voxels * (1 - 1e-6)
    covered = counted & (shared >= MIN_OVERLAP * voxels) & (shared > 0)
    return int(covered.sum()), int(counted.sum())
