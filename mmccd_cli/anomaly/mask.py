"""From an anomaly map to its mask and lesions: the step that needs no network.

The mask is a function of the map as it is written, its grid, the scan's threshold and the score's
settings, and of nothing else. All of them are in the result's files, so a new mask made from these
equals, voxel by voxel, the one of a new run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.components import (
    BoolArray,
    FloatArray,
    JudgedComponents,
    component_sizes,
    fill_holes,
    judge_components,
    label_components,
    voxel_mm3_of,
)
from mmccd_cli.anomaly.confidence import confidences, describe_candidates
from mmccd_cli.anomaly.score import map_from_score, score_from_map
from mmccd_cli.config import ScoreConfig, to_dict
from mmccd_cli.errors import UsageError
from mmccd_cli.template import (
    Box,
    affine_of_box,
    bounding_box,
    spacing_of,
    voxel_volume_mm3,
)

L = TypeVar("L", bound="Lesion")


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One connected component of a mask.

    Attributes:
        id: 1 for the largest, then by falling volume.
        volume_ml: Volume in millilitres.
        peak: Highest value of the anomaly map inside.
        mean: Mean value of the anomaly map inside.
        centroid_ras_mm: Centre of the voxels in RAS+ world coordinates, mm.
        box: Voxel indices ((i0, i1), (j0, j1), (k0, k1)), the end excluded.
        confidence: How sure it is that this is a lesion, in [0, 1]; None where the bundle does not
            know.
    """

    id: int
    volume_ml: float
    peak: float
    mean: float
    centroid_ras_mm: tuple[float, float, float]
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    confidence: float | None = None


@dataclass(frozen=True, kw_only=True)
class LeftOut(Lesion):
    """A candidate: what the map shows above its threshold and the mask does not hold.

    Attributes:
        reason: Which rule left it out, what it has and what it would need.
    """

    reason: str


@dataclass(frozen=True, kw_only=True)
class LeftOutSmall:
    """Candidates that are counted and not listed.

    Attributes:
        count: How many there are.
        volume_ml: Their volume in all.
    """

    count: int = 0
    volume_ml: float = 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskFindings:
    """All that a map shows above its threshold: each voxel is in the mask or left out.

    Attributes:
        mask: (I, J, K) bool.
        lesions: Its components, the largest first.
        left_out: Components above the threshold that are not in it, the largest first, numbered
            after the lesions; of those of `LEAST_LISTED_MM3`, the `MOST_LISTED` largest.
        left_out_small: All others that are not in it.
    """

    mask: BoolArray
    lesions: list[Lesion]
    left_out: list[LeftOut]
    left_out_small: LeftOutSmall


LEAST_LISTED_MM3 = 10.0
"""Below this volume a candidate that was left out is only counted."""
MOST_LISTED = 100
LARGEST_MM3 = 1e12
"""No lesion is as large; what is asked for of its volume must be less."""


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """What the user may set of the way from map to mask; None takes the bundle's calibration.

    Attributes:
        threshold: Value of the map above which a voxel belongs to the mask.
        min_lesion_mm3: Smallest lesion.
        min_confidence: Least confidence of a lesion.

    Raises:
        UsageError: One of them is out of its range.
    """

    threshold: float | None = None
    min_lesion_mm3: float | None = None
    min_confidence: float | None = None

    def __post_init__(self) -> None:
        ranges = {
            "threshold": (lambda value: 0 < value < 1, "above 0 and below 1"),
            "min_lesion_mm3": (lambda value: 0 <= value < LARGEST_MM3, "of mm3 from 0 on"),
            "min_confidence": (lambda value: 0 <= value <= 1, "from 0 to 1"),
        }
        for name, (fits, range_in_words) in ranges.items():
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if value is not None and not (number and fits(value)):
                raise UsageError(
                    f"{name} cannot be {value!r}.",
                    next_step=f"Give a number {range_in_words}, or None for the calibrated one.",
                )

    def applied_to(self, config: ScoreConfig) -> ScoreConfig:
        """Return a score's settings with the user's choices in it.

        Raises:
            UsageError: A confidence is asked for, and the weights do not know any.
        """
        if self.min_confidence is not None and config.confidence is None:
            raise UsageError(
                "These weights do not know how sure a lesion is.",
                next_step="Leave --min-confidence out, or use the default weights.",
            )
        chosen = {name: value for name, value in asdict(self).items() if value is not None}
        if self.threshold not in (None, config.threshold) and config.confidence is not None:
            chosen["judged_above"] = config.judged_above or config.threshold
        return replace(config, **chosen)

    def describe(self) -> dict[str, Any]:
        """Return what was asked for, as a record holds it; "auto" is as calibrated."""
        return {name: "auto" if value is None else value for name, value in asdict(self).items()}


AS_CALIBRATED = MaskOptions()

MASK_SETTINGS = (
    "threshold",
    "judged_above",
    "min_lesion_mm3",
    "min_fraction_of_largest",
    "min_seed_mm3",
    "confidence",
    "min_confidence",
    "fill_holes",
)
"""What of a score's settings changes the mask and not the map."""


def mask_settings(config: ScoreConfig) -> dict[str, Any]:
    """Return the part of a score's settings that changes the mask and not the map."""
    values = to_dict(config)
    return {name: values[name] for name in MASK_SETTINGS}


def mask_and_lesions(
    anomaly_map: NDArray[np.float32],
    config: ScoreConfig,
    *,
    affine: NDArray[np.float64],
    scan_threshold: float,
) -> MaskFindings:
    """Threshold a map, keep what counts, and list the lesions and what was left out.

    Args:
        anomaly_map: (I, J, K) float32 in [0, 1].
        config: Threshold, seeds, sizes and holes.
        affine: (4, 4), voxel index to RAS+ mm.
        scan_threshold: The scan's threshold in score units, which the map was made with.
    """
    whole = np.zeros(anomaly_map.shape, dtype=bool)
    lowest = min(config.threshold, config.judged_above or config.threshold)
    box = bounding_box(anomaly_map > lowest)  # a small part of a head, and of memory
    if whole[box].size == 0:
        return MaskFindings(mask=whole, lesions=[], left_out=[], left_out_small=LeftOutSmall())
    found = _findings(
        anomaly_map[box], config, affine=affine_of_box(affine, box), scan_threshold=scan_threshold
    )
    whole[box] = found.mask
    return replace(
        found,
        mask=whole,
        lesions=[_moved(lesion, box) for lesion in found.lesions],
        left_out=[_moved(lesion, box) for lesion in found.left_out],
    )


def _moved(lesion: L, origin: Box) -> L:
    """A lesion of a part of a grid, as one of the whole."""
    i, j, k = (
        (low + part.start, high + part.start)
        for (low, high), part in zip(lesion.box, origin, strict=True)
    )
    return replace(lesion, box=(i, j, k))


def _findings(
    anomaly_map: NDArray[np.float32],
    config: ScoreConfig,
    *,
    affine: NDArray[np.float64],
    scan_threshold: float,
) -> MaskFindings:
    """`mask_and_lesions` of a part of a map."""
    judged = _judge(
        anomaly_map,
        config,
        spacing_mm=spacing_of(affine),
        voxel_mm3=voxel_mm3_of(affine),
        scan_threshold=scan_threshold,
    )
    mask = fill_holes(judged.components.mask, config.fill_holes)
    lesions = find_lesions(mask, anomaly_map, affine, judged=judged)
    labels = judged.components.labels
    outside = np.where(mask, labels.dtype.type(0), labels)
    voxels, boxes = component_sizes(outside)
    voxel_mm3 = voxel_volume_mm3(affine)
    order = [int(index) for index in np.argsort(-voxels, kind="stable") if voxels[index]]
    listed = [index for index in order if voxels[index] * voxel_mm3 >= LEAST_LISTED_MM3 - 1e-6]
    del listed[MOST_LISTED:]
    left_out = []
    for number, index in enumerate(listed, start=len(lesions) + 1):
        found = _measure(outside, index, boxes[index], anomaly_map=anomaly_map, affine=affine)
        found["confidence"] = judged.confidence_of(index)
        reason = _reason(judged, index, config, voxel_mm3=voxel_mm3)
        left_out.append(LeftOut(id=number, **found, reason=reason))
    others = voxels[order[len(listed) :]]
    small = LeftOutSmall(
        count=len(others), volume_ml=round(float(others.sum() * voxel_mm3 / 1000), 6)
    )
    return MaskFindings(mask=mask, lesions=lesions, left_out=left_out, left_out_small=small)


def mask_from_map(
    anomaly_map: NDArray[np.float32],
    config: ScoreConfig,
    *,
    spacing_mm: Sequence[float],
    scan_threshold: float,
    voxel_mm3: float | None = None,
) -> BoolArray:
    """Threshold an anomaly map, keep the components that count and fill their holes.

    Args:
        anomaly_map: (I, J, K), in [0, 1].
        config: Threshold of the map, seeds, component sizes and holes.
        spacing_mm: Voxel size.
        scan_threshold: The scan's threshold in score units, which the map was made with.
        voxel_mm3: Volume of a voxel; None where the grid has no shear.
    """
    judged = _judge(
        anomaly_map,
        config,
        spacing_mm=spacing_mm,
        voxel_mm3=voxel_mm3,
        scan_threshold=scan_threshold,
    )
    return fill_holes(judged.components.mask, config.fill_holes)


def number_candidates(
    anomaly_map: NDArray[np.float32],
    config: ScoreConfig,
    *,
    spacing_mm: Sequence[float],
    scan_threshold: float,
    voxel_mm3: float | None = None,
) -> tuple[NDArray[np.integer[Any]], NDArray[np.float64] | None]:
    """Number all that the mask could hold, whatever confidence it asks for.

    Args:
        anomaly_map: See `mask_from_map`, like all others.
        config: See `mask_from_map`.
        spacing_mm: See `mask_from_map`.
        scan_threshold: See `mask_from_map`.
        voxel_mm3: See `mask_from_map`.

    Returns:
        (I, J, K) integers, the candidate at each voxel, 0 where there is none; and the confidence
        of each, number 1 first, (N,); None where the score does not know.
    """
    judged = _judge(
        anomaly_map,
        replace(config, min_confidence=0.0),
        spacing_mm=spacing_mm,
        voxel_mm3=voxel_mm3,
        scan_threshold=scan_threshold,
    )
    labels = judged.components.labels
    return np.where(judged.components.mask, labels, labels.dtype.type(0)), judged.confidence


@dataclass(frozen=True, eq=False, kw_only=True)
class _Judged:
    """Components of a map above its threshold, and why they count.

    Attributes:
        components: The components, and which of them count.
        seed_value: Value of the map above which a voxel is a seed.
        confidence: (N,) of each component; None where the score does not know.
    """

    components: JudgedComponents
    seed_value: np.float32
    confidence: NDArray[np.float64] | None

    def confidence_of(self, index: int) -> float | None:
        """Of one component, rounded as it is written."""
        return None if self.confidence is None else round(float(self.confidence[index]), 4)

    def surest_of(self, inside: BoolArray, box: Any) -> float | None:
        """Of the surest component in a lesion, whose filled holes may join several."""
        if self.confidence is None:
            return None
        held = np.unique(self.components.labels[box][inside])
        return max(self.confidence_of(int(label) - 1) or 0.0 for label in held if label)


def _judge(
    anomaly_map: NDArray[np.float32],
    config: ScoreConfig,
    *,
    spacing_mm: Sequence[float],
    scan_threshold: float,
    voxel_mm3: float | None = None,
) -> _Judged:
    """Tell which components count: by their confidence where it is known, else by seeds."""
    seed_value = np.float32(map_from_score(np.array(config.seed_threshold), scan_threshold, config))
    sure = config.confidence is not None
    components = judge_components(
        anomaly_map > config.threshold,
        spacing_mm,
        voxel_mm3=voxel_mm3,
        seeds=None if sure or config.min_seed_mm3 <= 0 else anomaly_map > seed_value,
        min_seed_mm3=config.min_seed_mm3,
        min_fraction_of_largest=0.0 if sure else config.min_fraction_of_largest,
        min_volume_mm3=config.min_lesion_mm3,
    )
    judge = partial(
        _confidences,
        anomaly_map=anomaly_map,
        config=config,
        spacing_mm=spacing_mm,
        voxel_mm3=voxel_mm3,
        scan_threshold=scan_threshold,
    )
    confidence = judge(components)
    if confidence is None:
        return _Judged(components=components, seed_value=seed_value, confidence=None)
    if config.judged_above is not None:
        whole = judge_components(anomaly_map > config.judged_above, spacing_mm)
        confidence = _inherited(confidence, components, whole, of_whole=judge(whole))
    kept = components.kept & (confidence >= config.min_confidence)
    return _Judged(
        components=replace(components, kept=kept), seed_value=seed_value, confidence=confidence
    )


def _confidences(
    found: JudgedComponents,
    *,
    anomaly_map: NDArray[np.float32],
    config: ScoreConfig,
    spacing_mm: Sequence[float],
    scan_threshold: float,
    voxel_mm3: float | None = None,
) -> NDArray[np.float64] | None:
    """(N,) confidence of each component; None where the score does not know."""
    if config.confidence is None:
        return None
    start = 0.0 if config.confidence.above_threshold else scan_threshold
    scores = score_from_map(anomaly_map[found.labels > 0], start, config)
    features = describe_candidates(
        found.labels, found.voxels, scores, spacing_mm=spacing_mm, voxel_mm3=voxel_mm3
    )
    return confidences(features, config.confidence)


def _inherited(
    own: NDArray[np.float64],
    components: JudgedComponents,
    whole: JudgedComponents,
    *,
    of_whole: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """(N,) confidence of components above another threshold than the calibrated one.

    Each has that of the surest candidate that it is a part of, or holds: so a higher threshold
    takes voxels off a mask, and a lower one adds some. Of one that meets none it is its own.
    """
    if of_whole is None:
        return own
    both = (components.labels > 0) & (whole.labels > 0)
    numbers = components.labels[both].astype(np.int64) - 1
    surest = np.full(len(own), -1.0)
    np.maximum.at(surest, numbers, of_whole[whole.labels[both].astype(np.int64) - 1])
    return np.where(surest >= 0, surest, own)


def _reason(judged: _Judged, index: int, config: ScoreConfig, *, voxel_mm3: float) -> str:
    """Say which rule leaves a component out: of two that do, the one that asks for more."""
    found = judged.components
    if judged.confidence is not None and judged.confidence[index] < config.min_confidence:
        return _below(float(judged.confidence[index]), config.min_confidence)
    if found.seed_voxels is not None and not found.has_seeds[index]:
        held = volume_in_words(found.seed_voxels[index] * voxel_mm3)
        needed = volume_in_words(found.least_seed_voxels * voxel_mm3)
        core = _below_one(judged.seed_value)
        return f"its core above {core} has {held}, {needed} are needed"
    own = volume_in_words(found.voxels[index] * voxel_mm3)
    largest_mm3 = found.largest_voxels * voxel_mm3
    by_share = judged.confidence is None
    if by_share and config.min_fraction_of_largest * largest_mm3 > config.min_lesion_mm3:
        share, largest = f"{100 * config.min_fraction_of_largest:g}%", volume_in_words(largest_mm3)
        return f"{own} is less than {share} of the largest component's {largest}"
    smallest = volume_in_words(config.min_lesion_mm3)
    return f"{own} is less than the smallest lesion of {smallest}"


def _below(confidence: float, least: float) -> str:
    """Say that a confidence is too low, with as many digits as it takes to see it."""
    digits = next(n for n in range(2, 18) if n == 17 or float(f"{confidence:.{n}f}") < least)
    return f"its confidence {confidence:.{digits}f} is below {least:g}"


def _below_one(value: np.float32) -> str:
    """Write a value of the map so that it can be told from 1."""
    digits = math.ceil(-math.log10(max(1.0 - float(value), 1e-7)))
    return f"{value:.{max(2, digits)}f}"


def volume_in_words(mm3: float) -> str:
    """Write a volume in mm3 where it is small, else in ml."""
    return f"{mm3:.3g} mm3" if mm3 < 100 else f"{mm3 / 1000:.2f} ml"


def find_lesions(
    mask: BoolArray,
    anomaly_map: FloatArray,
    affine: NDArray[np.float64],
    *,
    judged: _Judged | None = None,
) -> list[Lesion]:
    """List the components of a mask, the largest first.

    Args:
        mask: (I, J, K) bool.
        anomaly_map: (I, J, K) float on the same grid.
        affine: (4, 4), voxel index to RAS+ mm.
        judged: The components that the mask was made of, which know their confidence.

    Returns:
        The lesions; none for an empty mask.
    """
    labels, voxels, boxes = label_components(mask)
    order = np.argsort(-voxels, kind="stable")
    lesions = []
    for number, index in enumerate(order, start=1):
        box = boxes[index]
        found = _measure(labels, index, box, anomaly_map=anomaly_map, affine=affine)
        if judged is not None:
            found["confidence"] = judged.surest_of(labels[box] == index + 1, box)
        lesions.append(Lesion(id=number, **found))
    return lesions


def _measure(
    labels: NDArray[np.integer[Any]],
    index: int,
    box: Any,
    *,
    anomaly_map: FloatArray,
    affine: NDArray[np.float64],
) -> dict[str, Any]:
    """The fields of a `Lesion` but its id, of the component with the label `index` + 1."""
    inside = labels[box] == index + 1
    values = anomaly_map[box][inside].astype(np.float64)
    start = np.array([s.start for s in box], dtype=float)
    x, y, z = affine[:3, :3] @ (np.argwhere(inside).mean(axis=0) + start) + affine[:3, 3]
    return {
        "volume_ml": float(values.size * (voxel_volume_mm3(affine) / 1000)),
        "peak": float(values.max()),
        "mean": float(values.mean()),
        "centroid_ras_mm": (float(x), float(y), float(z)),
        "box": tuple((int(s.start), int(s.stop)) for s in box),
    }
