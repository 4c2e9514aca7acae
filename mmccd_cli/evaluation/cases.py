"""Evaluation: methods x subjects -> rows of scores, as deployed and by the published protocol.

*Deployed*: whole volumes on their own grid, every number fixed before the subject is seen.
*Published*: one slice a subject and the best threshold for the very set that is scored, see
`published_protocol`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.components import BoolArray
from mmccd_cli.anomaly.metrics import CaseMetrics, measure_case, measure_healthy
from mmccd_cli.errors import CONCERNS_ALL, DataError, MmccdError, as_mmccd_error, let_go
from mmccd_cli.inputs.scans import read_image
from mmccd_cli.inputs.subjects import Subject
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.progress import silent
from mmccd_cli.training.dataset import read_lesion

T = TypeVar("T")

DEPLOYED = "deployed"

SubjectListener = Callable[[str, int, int], None]
"""Called with what is being done, the number of the subject, and the number of all."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """One subject in memory.

    Attributes:
        subject: Id.
        volumes: Modality -> scan.
        reference: (I, J, K) bool, the lesions; None for a healthy subject.
    """

    subject: str
    volumes: Mapping[str, Volume]
    reference: BoolArray | None
    _shared: dict[Hashable, tuple[Any, float]] = field(default_factory=dict, repr=False)

    def shared(self, key: Hashable, make: Callable[[], T]) -> tuple[T, float]:
        """Make once what several methods need, such as the brain mask.

        Returns:
            It, and the seconds it took when it was made, which count for every method alike.
        """
        if key not in self._shared:
            began = time.perf_counter()
            made = make()
            self._shared[key] = made, time.perf_counter() - began
        return self._shared[key]

    @property
    def grid(self) -> Volume:
        """The first scan, on whose grid the reference lies."""
        return next(iter(self.volumes.values()))

    @property
    def axial_axis(self) -> int:
        """The axis across axial slices."""
        return int(np.abs(self.grid.affine[2, :3]).argmax())


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidates:
    """All that a mask could hold, whatever confidence it asks for.

    Attributes:
        labels: (I, J, K) integers, the candidate at each voxel; 0 is none.
        confidence: (N,) how sure each is, number 1 first.
        min_confidence: What the mask asks for.
        modalities: What they were found in.
    """

    labels: NDArray[np.integer[Any]]
    confidence: NDArray[np.float64]
    min_confidence: float
    modalities: tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Prediction:
    """What one row of the table says about one subject.

    Attributes:
        method: Name of the row.
        score: Name of the map, which rows that differ in their threshold share.
        rule: The threshold in words.
        mask: (I, J, K) bool.
        values: (I, J, K) float32, higher where more anomalous, before any threshold.
        brain: (I, J, K) bool.
        spacing_mm: Voxel size of their grid.
        seconds: From volumes in memory to the mask.
        passes: Slices that went through a network, each time counted.
        candidates: On the same grid; None where the method does not know how sure it is.
        voxel_mm3: Volume of a voxel of their grid; None where it has no shear.
    """

    method: str
    score: str
    rule: str
    mask: BoolArray
    values: NDArray[np.float32]
    brain: BoolArray
    spacing_mm: tuple[float, float, float]
    seconds: float
    passes: int
    candidates: Candidates | None = None
    voxel_mm3: float | None = None


class Method(Protocol):
    """Something that can be evaluated."""

    @property
    def name(self) -> str:
        """What a reader knows it by, also where it has several rows."""

    @property
    def weights(self) -> str:
        """Name of its weights; empty where nothing is learned."""

    @property
    def seen(self) -> frozenset[str]:
        """Ids of the subjects that its weights or constants were made with."""

    def predict(self, case: Case) -> Iterator[Prediction]:
        """Yield one prediction for each of its rows; none where the case lacks a modality."""


PlannedCase = tuple[Subject, bool, Sequence[Method]]
"""A subject, whether it is healthy, and what is compared on it."""


@dataclass(frozen=True, kw_only=True)
class CaseRow:
    """One method on one subject.

    Attributes:
        protocol: `DEPLOYED` or `published_protocol.PUBLISHED`.
        method: Name of the row.
        rule: The threshold in words.
        weights: Name of the weights.
        subject: Id.
        healthy: Whether the subject has no lesion, so that only false positives count.
        seen: Whether the weights or constants were made with this subject: such rows flatter.
        passes: Slices through a network for the whole volume.
        seconds: For the whole volume.
        scores: All scores.
    """

    protocol: str
    method: str
    rule: str
    weights: str
    subject: str
    healthy: bool
    seen: bool
    passes: int
    seconds: float
    scores: CaseMetrics = field(repr=False)


Inspect = Callable[[Case, Prediction, CaseRow], None]
"""Looks at every prediction and its row while they are in memory."""

LeaveOut = Callable[[Method, Subject], None]
"""Told of each subject that lacks a scan which a method needs."""

Fail = Callable[[Subject, MmccdError], None]
"""Told of each subject that cannot be scored, and why."""


def stop(subject: Subject, error: MmccdError) -> None:
    """Let the first subject that cannot be scored stop everything; a `Fail`."""
    raise error


@contextlib.contextmanager
def tolerating(subject: Subject, fail: Fail) -> Iterator[None]:
    """Hand what fails on one subject to `fail`; what concerns all of them is raised."""
    try:
        yield
    except CONCERNS_ALL:
        raise
    except Exception as error:  # a bug met on one subject must not lose the others
        let_go(error)
        fail(subject, as_mmccd_error(error))


def load_case(subject: Subject, *, healthy: bool = False) -> Case:
    """Read a subject's scans and, unless it is healthy, its reference.

    Raises:
        DataError: There is no reference, or it does not lie on the grid of the first scan.
    """
    volumes = {m: read_image(subject, m)[0] for m in subject.paths}
    if healthy:
        return Case(subject=subject.id, volumes=volumes, reference=None)
    if subject.segmentation is None:
        raise DataError(
            f"{subject.id} has no segmentation to compare with.",
            next_step="Give healthy subjects by --healthy, others with a *_seg.nii.gz.",
        )
    reference = read_lesion(subject.segmentation, next(iter(volumes.values())))
    return Case(subject=subject.id, volumes=volumes, reference=reference)


def evaluate_cases(
    cases: Sequence[PlannedCase],
    *,
    inspect: Inspect = silent,
    leave_out: LeaveOut = silent,
    fail: Fail = stop,
    report: SubjectListener = silent,
) -> Iterator[list[CaseRow]]:
    """Score every method on every subject, as deployed.

    Nobody is left out silently: a row without a subject is told to `leave_out` or `fail`.

    Yields:
        The rows of one subject after the other.

    Raises:
        MmccdError: A subject has no reference, or a result does not lie on its grid, unless `fail`
            takes it.
    """
    for number, (subject, healthy, methods) in enumerate(cases, start=1):
        report("evaluating", number, len(cases))
        rows: list[CaseRow] = []
        with tolerating(subject, fail):
            case = load_case(subject, healthy=healthy)
            for method in methods:
                with tolerating(subject, fail):
                    scored = list(_rows(case, method, inspect))
                    rows += scored
                    if not scored:
                        leave_out(method, subject)
        yield rows


def _rows(case: Case, method: Method, inspect: Inspect) -> Iterator[CaseRow]:
    for prediction in method.predict(case):
        row = _score(case, method, prediction)
        inspect(case, prediction, row)
        yield row


def _score(case: Case, method: Method, prediction: Prediction) -> CaseRow:
    if case.reference is None:
        scores = measure_healthy(
            prediction.mask, prediction.spacing_mm, voxel_mm3=prediction.voxel_mm3
        )
    elif case.reference.shape != prediction.mask.shape:
        raise DataError(
            f"The reference of {case.subject} is not on the grid of {prediction.method}'s result.",
            next_step="Evaluate on scans that share the grid of their segmentation.",
        )
    else:
        scores = measure_case(
            prediction.mask,
            case.reference,
            prediction.spacing_mm,
            anomaly_map=prediction.values,
            brain=prediction.brain,
            axial_axis=case.axial_axis,
            voxel_mm3=prediction.voxel_mm3,
        )
    return CaseRow(
        protocol=DEPLOYED,
        method=prediction.method,
        rule=prediction.rule,
        weights=method.weights,
        subject=case.subject,
        healthy=case.reference is None,
        seen=case.subject in method.seen,
        passes=prediction.passes,
        seconds=prediction.seconds,
        scores=scores,
    )
