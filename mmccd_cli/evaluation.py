"""Evaluation as deployed: labelled subjects, whole volumes, native grid, threshold fixed before."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from mmccd_cli.baselines import (
    BASELINES,
    AdaptiveThreshold,
    EdgeThreshold,
    FixedThreshold,
    IntensityBaseline,
    ThresholdRule,
)
from mmccd_cli.errors import DataError
from mmccd_cli.files import write_atomically
from mmccd_cli.metrics import CaseScores, Summary, score_case, summarise_cases
from mmccd_cli.pipeline import Segmenter
from mmccd_cli.preprocessing.brain_mask import find_brain
from mmccd_cli.subjects import Subject
from mmccd_cli.volume import Volume, read_nifti

RIVAL_RULES: Mapping[str, Mapping[str, ThresholdRule]] = {
    "flair-z": {
        "fixed": FixedThreshold(1.4),
        "adaptive": AdaptiveThreshold(0.6),
        "edge": EdgeThreshold(),
    },
    "flair-t2w-z": {"fixed": FixedThreshold(2.0), "adaptive": AdaptiveThreshold(1.0)},
    "t2w-z": {"fixed": FixedThreshold(1.2)},
    "t1w-z": {"fixed": FixedThreshold(1.0)},
}
"""What learns nothing, with the one number of each rule chosen on the 17 training gliomas."""


@dataclass(frozen=True)
class Method:
    """One row of the table: a segmenter on some of the modalities.

    Attributes:
        name: Name of the row.
        segmenter: The segmenter.
        modalities: Given to it; None for all that a subject has.
    """

    name: str
    segmenter: Segmenter
    modalities: tuple[str, ...] | None = None


@dataclass(frozen=True)
class CaseRow:
    """One method on one subject.

    Attributes:
        method: Name of the row.
        subject: Id.
        seconds: From volumes in memory to the mask.
        scores: All scores.
    """

    method: str
    subject: str
    seconds: float
    scores: CaseScores


def evaluate_subjects(
    subjects: Sequence[Subject],
    methods: Sequence[Method],
    *,
    rivals: bool = True,
    report: Callable[[str, int, int], None] = lambda subject, done, total: None,
) -> list[CaseRow]:
    """Score every method on every subject.

    Args:
        subjects: Subjects with a segmentation; any label above 0 is a lesion.
        methods: What is compared.
        rivals: Whether intensity thresholds (`RIVAL_RULES`) join the table.
        report: Called with each subject's id, its number and the number of all.

    Raises:
        DataError: A subject has no segmentation, or it does not lie on the reference's grid.
    """
    rows: list[CaseRow] = []
    for number, subject in enumerate(subjects, start=1):
        report(subject.id, number, len(subjects))
        volumes = {m: read_nifti(path)[0] for m, path in subject.paths.items()}
        reference = _reference_labels(subject, next(iter(volumes.values())))
        rows += [_score_method(method, subject, volumes, reference) for method in methods]
        if rivals:
            rows += _score_rivals(subject, volumes, reference)
    return rows


def summarise_rows(rows: Sequence[CaseRow]) -> dict[str, dict[str, Summary]]:
    """Mean, SD and bootstrap interval of every score, by method, in the order of the rows."""
    names = list(dict.fromkeys(row.method for row in rows))
    return {n: summarise_cases([r.scores for r in rows if r.method == n]) for n in names}


def write_rows(path: Path, rows: Sequence[CaseRow]) -> None:
    """Write one line a method and subject as CSV."""
    stream = io.StringIO()
    columns = ["method", "subject", "seconds", *(field.name for field in fields(CaseScores))]
    writer = csv.DictWriter(stream, columns)
    writer.writeheader()
    for row in rows:
        scores = {name: f"{value:.6g}" for name, value in asdict(row.scores).items()}
        writer.writerow(
            {
                "method": row.method,
                "subject": row.subject,
                "seconds": f"{row.seconds:.2f}",
                **scores,
            }
        )
    write_atomically(path, stream.getvalue().encode())


def _score_method(
    method: Method, subject: Subject, volumes: Mapping[str, Volume], labels: Volume
) -> CaseRow:
    chosen = {
        m: v for m, v in volumes.items() if method.modalities is None or m in method.modalities
    }
    began = time.perf_counter()
    result = method.segmenter.segment(chosen)
    seconds = time.perf_counter() - began
    grid = chosen[result.reference]
    if grid.shape != labels.shape:
        raise DataError(
            f"the segmentation of {subject.id} is not on the grid of {result.reference}"
        )
    scores = score_case(
        result.mask,
        labels.data > 0,
        labels.spacing_mm,
        anomaly_map=result.anomaly_map,
        brain=result.brain,
    )
    return CaseRow(method.name, subject.id, seconds, scores)


def _score_rivals(
    subject: Subject, volumes: Mapping[str, Volume], labels: Volume
) -> Iterator[CaseRow]:
    """Intensity thresholds on the same volumes; only where all modalities share one grid."""
    images = {m: v.data for m, v in volumes.items() if v.shape == labels.shape}
    brain = find_brain(volumes).mask
    for name, rules in RIVAL_RULES.items():
        baseline = BASELINES[name]
        if set(baseline.weights) <= set(images):
            yield from _score_rival(baseline, rules, subject, images, brain, labels)


def _score_rival(
    baseline: IntensityBaseline,
    rules: Mapping[str, ThresholdRule],
    subject: Subject,
    images: Mapping[str, np.ndarray],
    brain: np.ndarray,
    labels: Volume,
) -> Iterator[CaseRow]:
    began = time.perf_counter()
    scored = baseline.score(images, brain, labels.spacing_mm)
    shared = time.perf_counter() - began
    for rule_name, rule in rules.items():
        began = time.perf_counter()
        mask = baseline.segment(scored, rule)
        seconds = shared + time.perf_counter() - began
        scores = score_case(
            mask, labels.data > 0, labels.spacing_mm, anomaly_map=scored.values, brain=brain
        )
        yield CaseRow(f"{baseline.name} ({rule_name})", subject.id, seconds, scores)


def _reference_labels(subject: Subject, grid: Volume) -> Volume:
    if subject.segmentation is None:
        raise DataError(
            f"{subject.id} has no segmentation to compare with",
            next_step="evaluate subjects that have a *_seg.nii.gz beside their scans",
        )
    labels, _ = read_nifti(subject.segmentation, allow_constant=True)
    if labels.shape != grid.shape or not np.allclose(labels.affine, grid.affine, atol=1e-2):
        raise DataError(f"{subject.segmentation} does not lie on the grid of its images")
    return labels
