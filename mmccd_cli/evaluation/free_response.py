"""The free-response curve: lesions found against false positives a scan, by the least confidence.

- A lesion is a 26-connected component of the reference. It is *found* when the candidates that are
  sure enough cover at least a tenth of its voxels: touching it by a voxel is not finding it.
- A candidate is *right* when at least a tenth of its voxels lie in the reference, and a *false
  positive* otherwise, so also when it touches no lesion at all.
- Components under `LEAST_LESION_MM3` are counted on neither side; they do cover.

Lesions are pooled over scans. Candidates are those of the map as it is written, before their holes
are filled.

Source: free-response curves are due to Bunch et al. 1978 (Proc. SPIE 127), and Metrics Reloaded
(Maier-Hein et al., Nature Methods 2024) recommends them for detection. The tenth of a lesion, and
lesions of 3 mm3 and more, are those of the MS segmentation challenge of 2016 (Commowick et al.,
Scientific Reports 2018); `metrics.lesion_overlap` counts with the same tenth. We ask nothing
more of candidates than what is said above; the challenge also limits what of them may lie outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.components import BoolArray, label_components, straight_voxel_mm3
from mmccd_cli.anomaly.metrics import MIN_OVERLAP
from mmccd_cli.evaluation.cases import Case, CaseRow, Prediction
from mmccd_cli.files import write_atomically
from mmccd_cli.outputs.lesions import EMPTY, encode_tsv

LEAST_LESION_MM3 = 3.0
"""Volume under which components are not counted."""
FALSE_POSITIVE_RATES = (1, 2, 4)
"""False positives a scan at which summaries tell the sensitivity."""
LEVELS = 1000
"""Confidences are told apart to this fraction."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Detections:
    """What the candidates of one or several scans find, whatever confidence is asked for.

    Attributes:
        found_at: (L,) the highest least confidence at which each lesion is found; NaN for those
            that no candidates cover far enough.
        right_at: (R,) confidence of each candidate that lies on lesions.
        false_at: (F,) confidence of each other candidate.
        scans: How many scans.
    """

    found_at: NDArray[np.float64]
    right_at: NDArray[np.float64]
    false_at: NDArray[np.float64]
    scans: int = 1

    @classmethod
    def pooled(cls, parts: Sequence[Detections]) -> Detections:
        """Those of several scans as one."""
        return cls(
            found_at=np.concatenate([part.found_at for part in parts]),
            right_at=np.concatenate([part.right_at for part in parts]),
            false_at=np.concatenate([part.false_at for part in parts]),
            scans=sum(part.scans for part in parts),
        )


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """What a least confidence gives; the fields are columns of the table.

    Attributes:
        min_confidence: What is asked of a candidate.
        sensitivity: Share of the lesions that are found; NaN without lesions.
        precision: Share of the candidates that are right; NaN without candidates.
        f1: Harmonic mean of both; NaN without lesions.
        false_positives_per_scan: Candidates that are not right, by scans.
        lesions: Number of lesions.
        scans: Number of scans.
    """

    min_confidence: float
    sensitivity: float
    precision: float
    f1: float
    false_positives_per_scan: float
    lesions: int
    scans: int


def detect(
    labels: NDArray[np.integer[Any]],
    confidence: NDArray[np.float64],
    reference: BoolArray | None,
    *,
    voxel_mm3: float,
) -> Detections:
    """Compare the candidates of one scan with its lesions.

    Args:
        labels: (I, J, K) integers, the candidate at each voxel; 0 is none.
        confidence: (N,) how sure each is, number 1 first.
        reference: (I, J, K) bool; None for a healthy subject.
        voxel_mm3: Volume of a voxel.
    """
    voxels = np.bincount(labels.ravel(), minlength=len(confidence) + 1)[1:]
    lesions, lesion_voxels, _ = label_components(
        np.zeros(labels.shape, bool) if reference is None else reference
    )
    both = (labels > 0) & (lesions > 0)
    shape = (len(lesion_voxels) + 1, len(confidence) + 1)
    pairs = np.ravel_multi_index((lesions[both], labels[both]), shape)
    shared = np.bincount(pairs, minlength=math.prod(shape)).reshape(shape)[1:, 1:]
    surest = np.argsort(-confidence, kind="stable")
    least = np.maximum(MIN_OVERLAP * lesion_voxels, 1)
    covered = np.cumsum(shared[:, surest], axis=1) >= least[:, None]
    needed = np.count_nonzero(~covered, axis=1)  # candidates that do not suffice yet
    found_at = np.append(confidence[surest], np.nan)[needed]
    right = shared.sum(axis=0) >= np.maximum(MIN_OVERLAP * voxels, 1)
    counted = voxels * voxel_mm3 >= LEAST_LESION_MM3 - 1e-6
    return Detections(
        found_at=found_at[lesion_voxels * voxel_mm3 >= LEAST_LESION_MM3 - 1e-6],
        right_at=confidence[counted & right],
        false_at=confidence[counted & ~right],
    )


def operating_point(found: Detections, min_confidence: float) -> OperatingPoint:
    """Count what is found by the candidates of a least confidence."""
    hits = int(np.count_nonzero(found.found_at >= min_confidence))
    right = int(np.count_nonzero(found.right_at >= min_confidence))
    wrong = int(np.count_nonzero(found.false_at >= min_confidence))
    lesions = len(found.found_at)
    sensitivity = hits / lesions if lesions else math.nan
    precision = right / (right + wrong) if right + wrong else math.nan
    f1 = 2 * sensitivity * precision / (sensitivity + precision) if hits and right else 0.0
    return OperatingPoint(
        min_confidence=min_confidence,
        sensitivity=sensitivity,
        precision=precision,
        f1=f1 if lesions else math.nan,
        false_positives_per_scan=wrong / found.scans,
        lesions=lesions,
        scans=found.scans,
    )


def free_response(found: Detections) -> list[OperatingPoint]:
    """All operating points, from confidence 1 down to 0: one wherever a count changes."""
    told = np.concatenate([found.found_at, found.right_at, found.false_at])
    levels = np.floor(told[~np.isnan(told)] * LEVELS) / LEVELS
    falling = np.unique(np.concatenate([[0.0, 1.0], levels]))[::-1]
    return [operating_point(found, float(level)) for level in falling]


def sensitivity_at(points: Sequence[OperatingPoint], rate: float) -> float:
    """The highest sensitivity with at most so many false positives a scan; NaN without lesions."""
    allowed = [p.sensitivity for p in points if p.false_positives_per_scan <= rate]
    return max(allowed, default=0.0)


@dataclass
class FreeResponse:
    """Collects the detections of every method that knows how sure it is; called as an `Inspect`."""

    _found: dict[tuple[str, bool], list[Detections]] = field(default_factory=dict)
    _given: dict[str, set[str]] = field(default_factory=dict)
    _default: dict[str, float] = field(default_factory=dict)

    def __call__(self, case: Case, prediction: Prediction, row: CaseRow) -> None:
        """Keep what one prediction finds."""
        known = prediction.candidates
        if known is not None:
            voxel_mm3 = prediction.voxel_mm3 or straight_voxel_mm3(prediction.spacing_mm)
            found = detect(known.labels, known.confidence, case.reference, voxel_mm3=voxel_mm3)
            self._found.setdefault((row.method, row.healthy), []).append(found)
            self._given.setdefault(row.method, set()).add("+".join(known.modalities))
            self._default[row.method] = known.min_confidence

    def curves(self) -> Iterator[Curve]:
        """One curve a method, labelled and healthy subjects apart."""
        for (method, healthy), scans in self._found.items():
            pooled = Detections.pooled(scans)
            yield Curve(
                method=method,
                healthy=healthy,
                modalities=" or ".join(sorted(self._given[method])),
                points=free_response(pooled),
                default=operating_point(pooled, self._default[method]),
            )


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The free response of one method, from confidence 1 down to 0, and what its masks have."""

    method: str
    healthy: bool
    modalities: str
    points: Sequence[OperatingPoint]
    default: OperatingPoint

    def describe(self) -> dict[str, Any]:
        """As plain values, for the summary; what is undefined is None."""
        rates = {
            f"sensitivity_at_{rate}_fp": sensitivity_at(self.points, rate)
            for rate in FALSE_POSITIVE_RATES
        }
        numbers = {**asdict(self.default), **({} if self.healthy else rates)}
        return {
            "method": self.method,
            "healthy": self.healthy,
            "modalities": self.modalities,
            **{name: None if math.isnan(n) else round(n, 5) for name, n in numbers.items()},
        }


def curves_path(out: Path) -> Path:
    """Where the curves of a CSV are written."""
    return out.with_suffix(".froc.tsv")


def write_curves(path: Path, curves: Sequence[Curve]) -> None:
    """Write one line an operating point, all or nothing; what is undefined is n/a."""
    header = ["method", "healthy", "modalities", *(f.name for f in fields(OperatingPoint))]
    rows = (
        [curve.method, int(curve.healthy), curve.modalities]
        + [EMPTY if math.isnan(n) else f"{n:.6g}" for n in astuple(point)]
        for curve in curves
        for point in curve.points
    )
    write_atomically(path, encode_tsv(header, rows))
