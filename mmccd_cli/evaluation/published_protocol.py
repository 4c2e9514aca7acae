"""The published protocol: one slice a subject, and the best threshold for the very set scored.

Of the axial slices 70 to 89 of the BraTS grid (240 x 240 x 155 voxels of 1 mm, counted from 0 at
the lowest), each subject's slice with the most tumour is taken. Over all subjects, one threshold of
the map is searched for that gives the highest mean Dice, with the labels of these subjects: an
**oracle**, which no user has. Masks are not cleaned. Maps are compared inside the brain.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.components import BoolArray
from mmccd_cli.anomaly.metrics import measure_case, oracle_threshold
from mmccd_cli.errors import DataError
from mmccd_cli.evaluation.cases import Case, CaseRow, Prediction
from mmccd_cli.template import spacing_of

PUBLISHED = "published (ORACLE threshold)"
LEVELS = range(70, 90)
SHAPE, LEVEL_COUNT = (240, 240), 155
CANDIDATES = 1000


@dataclass(frozen=True, eq=False, kw_only=True)
class _Slice:
    """One map on one subject's slice; every array is three-dimensional with one axial level."""

    values: NDArray[np.float32]
    reference: BoolArray
    brain: BoolArray
    spacing_mm: tuple[float, float, float]
    axial_axis: int
    row: CaseRow


@dataclass
class PublishedProtocol:
    """Collects one slice of every map of every subject; an `Observer`.

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
        kept[case.subject] = _Slice(
            values=prediction.values[place].copy(),
            reference=case.reference[place].copy(),
            brain=prediction.brain[place].copy(),
            spacing_mm=prediction.spacing_mm,
            axial_axis=axis,
            row=row,
        )

    def rows(self) -> list[CaseRow]:
        """Find each map's oracle threshold and score its slices with it."""
        return [row for score, slices in self._slices.items() for row in _score_set(score, slices)]


def most_tumour(case: Case) -> int | None:
    """Index of the slice with the most tumour among the levels 70 to 89, the lowest of equal ones.

    Returns:
        Index along the axial axis; None where these levels show no tumour.

    Raises:
        DataError: The subject does not lie on the BraTS grid.
    """
    axis = case.axial_axis
    _check_grid(case, axis)
    assert case.reference is not None
    voxels = np.moveaxis(case.reference, axis, 0).sum(axis=(1, 2))
    upwards = case.grid.affine[2, axis] > 0
    indices = [level if upwards else LEVEL_COUNT - 1 - level for level in LEVELS]
    best = max(indices, key=lambda index: int(voxels[index]))
    return best if voxels[best] else None


def _check_grid(case: Case, axis: int) -> None:
    shape = case.grid.shape
    in_plane = tuple(n for a, n in enumerate(shape) if a != axis)
    spacing = spacing_of(case.grid.affine)
    if (*in_plane, shape[axis]) != (*SHAPE, LEVEL_COUNT) or not np.allclose(spacing, 1, atol=0.01):
        size = " x ".join(map(str, shape))
        raise DataError(
            f"The published protocol is not defined for {case.subject}.",
            cause=f"Its slices 70 to 89 are those of the BraTS grid (240 x 240 x 155 voxels of "
            f"1 mm), and this subject has {size} voxels of "
            f"{' x '.join(f'{s:.2f}' for s in spacing)} mm.",
            next_step="Use --protocol deployed.",
        )


def _score_set(score: str, slices: dict[str, _Slice]) -> list[CaseRow]:
    """Rows of one map over all subjects."""
    if not slices:
        return []
    # What lies outside the brain is never marked, and tumour there counts as missed.
    inside = [np.where(s.brain, s.values, -np.inf) for s in slices.values()]
    pooled = np.concatenate([v[np.isfinite(v)] for v in inside])
    candidates = np.unique(np.quantile(pooled, np.linspace(0, 1, CANDIDATES + 1)))
    threshold, _ = oracle_threshold(
        inside, [s.reference for s in slices.values()], candidates.tolist()
    )
    rows = []
    for values, one in zip(inside, slices.values(), strict=True):
        scores = measure_case(
            values > threshold,
            one.reference,
            one.spacing_mm,
            anomaly_map=one.values,
            brain=one.brain,
            axial_axis=one.axial_axis,
        )
        rule = f"ORACLE {threshold:.4g}"
        rows.append(replace(one.row, protocol=PUBLISHED, method=score, rule=rule, scores=scores))
    return rows
