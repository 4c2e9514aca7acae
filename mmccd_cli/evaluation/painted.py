"""Which lesions are found: painted ones, by size, contrast and set of scans.

Lesions of a painter that nothing is trained on are painted into the healthy tissue of prepared
subjects, on the template's grid, and the subjects are segmented as they then are. Intensities are
normalised again, as a lesion of that size would have changed them. Registration and stripping are
those of the scan without lesions, and all sets of scans share them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from mmccd_cli.anomaly.components import BoolArray, erode, label_components
from mmccd_cli.anomaly.metrics import MIN_OVERLAP
from mmccd_cli.config import MODALITIES
from mmccd_cli.evaluation.methods import find_candidates
from mmccd_cli.evaluation.second_painter import Canvas, paint_lesions
from mmccd_cli.files import write_atomically
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.outputs.lesions import encode_tsv
from mmccd_cli.pipeline import Pipeline
from mmccd_cli.preprocessing.intensity import normalise
from mmccd_cli.preprocessing.spatial import resample
from mmccd_cli.preprocessing.subject import PreparedSubject
from mmccd_cli.training.calibration_data import FROM_LESIONS_MM, FROM_RIM_MM

VOLUMES_ML = (0.05, 0.2, 1.0, 5.0, 20.0, 150.0)
"""Ends of the classes of volume; drawn evenly in the logarithm between the outer ones."""
CONTRASTS = (1.5, 3.0)
"""Ends of the classes of contrast, robust standard deviations."""
CONTRAST_CLASSES = ("faint", "clear", "strong", "reversed")
"""By the scan that shows a lesion best: under, between and above these ends; reversed are dark on
FLAIR or T2w, or bright on T1w, whatever the strength."""


@dataclass(frozen=True, kw_only=True)
class PaintedPlan:
    """What is painted.

    Attributes:
        rounds: How often a subject is painted.
        lesions: Lesions a time.
        modality_sets: Which scans are given, None for all that a subject has; sets that it does not
            have, or of which the bundle knows no scan, are passed over.
        seed: Of all randomness; a subject's lesions depend on it, its id and the round only.
    """

    rounds: int = 5
    lesions: int = 4
    modality_sets: Sequence[tuple[str, ...] | None] = (None, *((m,) for m in MODALITIES))
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PaintedRow:
    """One painted lesion in one set of scans; the fields are columns of the table.

    Attributes:
        subject: Id.
        round: Number of the time that the subject was painted.
        lesion: Number of the lesion.
        kind: See `second_painter.KINDS`.
        volume_ml: Its volume.
        modalities: The scans that were given.
        contrast: Its change in the one of them that shows it best, in robust standard deviations;
            negative against the direction of most lesions.
        found: Whether candidates cover at least a tenth of it.
        kept: Whether the mask does.
        dice: Of the lesion, and all components of the mask that touch it.
        found_before: Whether candidates did before it was painted.
        kept_before: Whether the mask did.
    """

    subject: str
    round: int
    lesion: int
    kind: str
    volume_ml: float
    modalities: str
    contrast: float
    found: bool
    kept: bool
    dice: float
    found_before: bool
    kept_before: bool

    @property
    def volume_class(self) -> str:
        """Its class of volume, in words."""
        number = int(np.searchsorted(VOLUMES_ML[1:-1], self.volume_ml, side="right"))
        return f"{VOLUMES_ML[number]:g}-{VOLUMES_ML[number + 1]:g} ml"

    @property
    def contrast_class(self) -> str:
        """One of `CONTRAST_CLASSES`."""
        if self.contrast < 0:
            return CONTRAST_CLASSES[-1]
        return CONTRAST_CLASSES[int(np.searchsorted(CONTRASTS, self.contrast, side="right"))]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Found:
    """What one run shows.

    Attributes:
        candidates: (I, J, K) bool, all that the mask could hold.
        mask: (I, J, K) bool.
    """

    candidates: BoolArray
    mask: BoolArray

    def dice(self, lesion: BoolArray) -> float:
        """Overlap of a lesion and all components of the mask that touch it."""
        labels, voxels, _ = label_components(self.mask)
        shared = np.bincount(labels[lesion], minlength=len(voxels) + 1)[1:]
        touching = int(voxels[shared > 0].sum())
        return 2 * int(shared.sum()) / (int(lesion.sum()) + touching)


def measure_painted(
    pipeline: Pipeline,
    subject: str,
    prepared: PreparedSubject,
    *,
    reference: Volume | None = None,
    plan: PaintedPlan,
) -> Iterator[PaintedRow]:
    """Paint lesions into a prepared subject and tell which are found.

    The reference is more than 0 where it has lesions of its own, if there are any.

    Yields:
        One row for each lesion and set of scans.

    Raises:
        WeightsError: The bundle has no cycle for a set of scans.
        ComputeError: Device or memory fails.
    """
    template = pipeline.bundle.template
    intensity = pipeline.bundle.config.preprocessing.intensity
    canvas = Canvas(
        images=prepared.images,
        room=_healthy(prepared, reference, template.spacing_mm),
        spacing_mm=template.spacing_mm,
        scale=intensity.scale,
    )
    available, known = tuple(prepared.images), set(pipeline.bundle.sources)
    wanted = dict.fromkeys(own or available for own in plan.modality_sets)
    chosen = [own for own in wanted if set(own) <= set(available) and set(own) & known]
    before = {own: _segment(pipeline, prepared, own) for own in chosen}
    for number in range(plan.rounds):
        generator = np.random.default_rng([plan.seed, number, *subject.encode()])
        low, high = np.log([VOLUMES_ML[0], VOLUMES_ML[-1]])
        volumes = np.exp(generator.uniform(low, high, plan.lesions)).tolist()
        images, numbers, lesions = paint_lesions(canvas, volumes, generator)
        painted = replace(
            prepared,
            images={m: normalise(i, prepared.covered[m], intensity) for m, i in images.items()},
        )
        for own in chosen:
            after = _segment(pipeline, painted, own)
            for index, lesion in enumerate(lesions, start=1):
                yield PaintedRow(
                    subject=subject,
                    round=number,
                    lesion=index,
                    kind=lesion.kind,
                    volume_ml=lesion.volume_ml,
                    modalities="+".join(own),
                    contrast=lesion.visible(own),
                    dice=after.dice(numbers == index),
                    found=_covers(after.candidates, numbers == index),
                    kept=_covers(after.mask, numbers == index),
                    found_before=_covers(before[own].candidates, numbers == index),
                    kept_before=_covers(before[own].mask, numbers == index),
                )


def _healthy(
    prepared: PreparedSubject, reference: Volume | None, spacing_mm: tuple[float, float, float]
) -> BoolArray:
    """Where lesions may lie: brain that all scans show, away from its rim and its own lesions."""
    shown = np.all([prepared.brain, *prepared.covered.values()], axis=0)
    healthy = erode(shown, FROM_RIM_MM, spacing_mm)
    if reference is None:
        return healthy
    own = Volume((reference.data > 0).astype(np.float32), reference.affine)
    matrix = np.linalg.inv(prepared.to_reference)
    there = resample(own, shown.shape, prepared.affine, matrix=matrix).data > 0
    return healthy & erode(~there, FROM_LESIONS_MM, spacing_mm)


def _segment(pipeline: Pipeline, prepared: PreparedSubject, own: tuple[str, ...]) -> _Found:
    """Segment a prepared subject of which only some scans are given, on the template's grid."""
    given = replace(
        prepared, images={m: prepared.images[m] for m in own}, reference=own[0], notes=()
    )
    result = pipeline.infer(given, space="template")
    known = find_candidates(pipeline, result)
    candidates = result.mask if known is None else known.labels > 0
    return _Found(candidates=candidates, mask=result.mask)


def _covers(mask: BoolArray, lesion: BoolArray) -> bool:
    return bool(mask[lesion].mean() >= MIN_OVERLAP)


def write_painted(path: Path, rows: Sequence[PaintedRow]) -> None:
    """Write one line a lesion and set of scans as TSV, all or nothing."""
    cells = ([f"{v:.4g}" if isinstance(v, float) else v for v in astuple(row)] for row in rows)
    write_atomically(path, encode_tsv([field.name for field in fields(PaintedRow)], cells))


def painted_table(rows: Sequence[PaintedRow]) -> tuple[list[str], list[list[str]]]:
    """Lay out how many lesions are found and kept, by set of scans, volume and contrast.

    Returns:
        Header and lines. A cell holds the shares of lesions that the mask keeps and, in brackets,
        that candidates find, the median Dice of those kept, and their number.
    """
    volumes = [f"{a:g}-{b:g} ml" for a, b in pairwise(VOLUMES_ML)]
    lines = []
    for own in dict.fromkeys(row.modalities for row in rows):
        of_set = [row for row in rows if row.modalities == own]
        for volume in volumes:
            here = [row for row in of_set if row.volume_class == volume]
            if here:
                by_contrast = (
                    [row for row in here if row.contrast_class == name] for name in CONTRAST_CLASSES
                )
                lines.append([own, volume, *map(_cell, by_contrast), _before(here)])
    return ["scans", "volume", *CONTRAST_CLASSES, "before painting"], lines


def _cell(rows: Sequence[PaintedRow]) -> str:
    if not rows:
        return "-"
    kept, found = (100 * np.mean([getattr(r, name) for r in rows]) for name in ("kept", "found"))
    dice = [row.dice for row in rows if row.kept]
    told = f", Dice {np.median(dice):.2f}" if dice else ""
    return f"{kept:.0f} % ({found:.0f} %){told}, n {len(rows)}"


def _before(rows: Sequence[PaintedRow]) -> str:
    names = ("kept_before", "found_before")
    kept, found = (100 * np.mean([getattr(r, name) for r in rows]) for name in names)
    return f"{kept:.0f} % ({found:.0f} %)"
