"""The published protocol: one slice a subject, and the best threshold for the very set scored.

Of the axial slices 70 to 89 of the BraTS grid (240 x 240 x 155 voxels of 1 mm, counted from 0 at
the lowest), each subject's slice with the most tumour is taken. Over all subjects, one threshold of
the map is searched for that gives the highest mean Dice, with the labels of these subjects: an
**oracle**, which no user has. Masks are not cleaned. Maps are compared inside the brain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.components import BoolArray
from mmccd_cli.anomaly.metrics import CaseMetrics, measure_case, oracle_threshold
from mmccd_cli.errors import DataError
from mmccd_cli.evaluation.cases import Case, CaseRow, Prediction

PUBLISHED = "published (ORACLE threshold)"
LEVELS = range(70, 90)
"""The axial slices, the lowest of the head first, of which one is taken."""
SHAPE, LEVEL_COUNT = (240, 240), 155
"""Size of a slice in voxels, and how many there are."""
CANDIDATES = 1000
"""Thresholds that the oracle tries, at even quantiles of the map."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _Slice:
    """One map on one subject's slice.

    Attributes:
        inside: (I, J, K) float32 with one axial level, -inf outside the brain.
        reference: Same shape, bool.
        measure: Mask -> scores.
        row: Of the whole volume.
    """

    inside: NDArray[np.float32]
    reference: BoolArray
    measure: Callable[[BoolArray], CaseMetrics]
    row: CaseRow


@dataclass
class PublishedProtocol:
    """Collects one slice of every map of every subject; called as an `Inspect`.

    Attributes:
        without_tumour: Subjects left out because their slices 70 to 89 show no tumour.
    """

    without_tumour: set[str] = field(default_factory=set)
    _slices: dict[str, dict[str, _Slice]] = field(default_factory=dict)

    def __call__(self, case: Case, prediction: Prediction, row: CaseRow) -> None:
        """Keep the subject's slice; healthy subjects and further rows of one map are passed over.

        Raises:
            DataError: The subject does not lie on the BraTS grid.
        """
        kept = self._slices.setdefault(prediction.score, {})
        if case.reference is None or case.subject in kept:
            return
        level = most_tumour(case)
        if level is None:
            self.without_tumour.add(case.subject)
            return
        axis = case.axial_axis
        place = tuple(slice(level, level + 1) if a == axis else slice(None) for a in range(3))
        # What lies outside the brain is never marked, and tumour there counts as missed.
        values, brain = prediction.values[place], prediction.brain[place].copy()
        inside, reference = np.where(brain, values, -np.inf), case.reference[place].copy()
        measure = partial(
            measure_case,
            reference=reference,
            spacing_mm=prediction.spacing_mm,
            anomaly_map=inside,
            brain=brain,
            axial_axis=axis,
            voxel_mm3=prediction.voxel_mm3,
        )
        kept[case.subject] = _Slice(inside=inside, reference=reference, measure=measure, row=row)

    def rows(self) -> list[CaseRow]:
        """Find each map's oracle threshold and score its slices with it."""
        maps = ((score, list(kept.values())) for score, kept in self._slices.items() if kept)
        return [row for score, slices in maps for row in _score_set(score, slices)]


def most_tumour(case: Case) -> int | None:
    """Index of the slice with the most tumour among the levels 70 to 89, the lowest of equal ones.

    Returns:
        Index along the axial axis; None where these levels show no tumour.

    Raises:
        DataError: The subject does not lie on the BraTS grid.
    """
    axis, shape, spacing = case.axial_axis, case.grid.shape, case.grid.spacing_mm
    in_plane = tuple(n for a, n in enumerate(shape) if a != axis)
    if (*in_plane, shape[axis]) != (*SHAPE, LEVEL_COUNT) or not np.allclose(spacing, 1, atol=0.01):
        raise DataError(
            f"The published protocol is not defined for {case.subject}.",
            cause=f"Its slices 70 to 89 are those of the BraTS grid (240 x 240 x 155 voxels of "
            f"1 mm), and this subject has {' x '.join(map(str, shape))} voxels of "
            f"{' x '.join(f'{s:.2f}' for s in spacing)} mm.",
            next_step="Use --protocol deployed.",
        )
    assert case.reference is not None
    voxels = np.moveaxis(case.reference, axis, 0).sum(axis=(1, 2))
    upwards = case.grid.affine[2, axis] > 0
    indices = [level if upwards else LEVEL_COUNT - 1 - level for level in LEVELS]
    best = max(indices, key=lambda index: int(voxels[index]))
    return best if voxels[best] else None


def _score_set(score: str, slices: list[_Slice]) -> list[CaseRow]:
    """Rows of one map over all subjects."""
    pooled = np.concatenate([s.inside[np.isfinite(s.inside)] for s in slices])
    candidates = np.unique(np.quantile(pooled, np.linspace(0, 1, CANDIDATES + 1)))
    threshold, _ = oracle_threshold(
        [s.inside for s in slices], [s.reference for s in slices], candidates.tolist()
    )
    rows = (replace(s.row, scores=s.measure(s.inside > threshold)) for s in slices)
    rule = f"ORACLE {threshold:.4g}"
    return [replace(row, protocol=PUBLISHED, method=score, rule=rule) for row in rows]
