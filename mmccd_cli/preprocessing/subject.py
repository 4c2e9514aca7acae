"""From a subject's scans to normalised images on the template's grid, and back.

Every image is interpolated once: all matrices are composed before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.config import MODALITIES, PreprocessingConfig
from mmccd_cli.errors import DataError
from mmccd_cli.inputs.volume import Volume, reorient
from mmccd_cli.preprocessing.brain import BrainMask, find_brain, imaged
from mmccd_cli.preprocessing.intensity import IntensityScale, normalise
from mmccd_cli.preprocessing.spatial import (
    Interpolation,
    register,
    resample,
    same_grid,
)
from mmccd_cli.template import Template

Matrix = NDArray[np.float64]

_MIN_WEIGHT = 0.05  # less than this share of a sample lies inside the mask: leave it out
_MARGIN_VOXELS = 4
_MIN_OVERLAP = 0.8
_SCALE_RANGE = (0.75, 1.35)
_MIN_COVERED = 0.95
_SAME_SPACE_OVERLAP = 0.85
_SAME_SPACE_DEGREES = 8.0
_SAME_SPACE_MM = 8.0


@dataclass(frozen=True, eq=False)
class PreparedSubject:
    """A subject on the template's grid, and the way back to its reference scan.

    Args:
        images: Modality -> (I, J, K) float32, normalised; the background value outside the brain
            and where the modality was not imaged.
        brain: (I, J, K) bool on the template's grid.
        covered: Modality -> (I, J, K) bool, the part of the brain that the modality shows.
        affine: (4, 4) of the template's grid.
        to_reference: (4, 4) reference world -> template world, RAS+ mm: the matrix with which
            template-space data are resampled to the reference grid.
        reference: The reference modality.
        reference_volume: Its scan as it came in.
        reference_brain: (I, J, K) bool on the reference grid.
        matrices: Modality -> (4, 4) reference world -> that modality's world, RAS+ mm.
        scales: Modality -> the intensity map that was applied.
        brain_method: How the brain mask was found.
        notes: What the user should know.
        seconds: Stage -> seconds.
    """

    images: dict[str, NDArray[np.float32]]
    brain: NDArray[np.bool_]
    covered: dict[str, NDArray[np.bool_]]
    affine: Matrix
    to_reference: Matrix
    reference: str
    reference_volume: Volume
    reference_brain: NDArray[np.bool_]
    matrices: dict[str, Matrix]
    scales: dict[str, IntensityScale]
    brain_method: str
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


def prepare_subject(
    volumes: Mapping[str, Volume],
    template: Template,
    settings: PreprocessingConfig,
    *,
    brain_mask: Volume | None = None,
    skull_strip: str = "auto",
    seed: int = 0,
    threads: int = 1,
) -> PreparedSubject:
    """Align, strip, resample and normalise a subject's scans.

    Args:
        volumes: Modality ("FLAIR", "T2w", "T1w") -> scan, on one grid or several.
        template: The space to go to.
        settings: Intensity normalisation, and whether to register with the template.
        brain_mask: A mask in the reference's world, on any grid, or None.
        skull_strip: "auto", "never" or the name of a skull stripper.
        seed: Seed of the samples that registration looks at.
        threads: Number of threads. Registration takes one whatever this says: a second makes it
            slower, and its result different in the last bits.

    Returns:
        Images on the template's grid and what is needed to go back.

    Raises:
        DataError: No known modality, no brain, or no contrast.
    """
    volumes = {name: volumes[name] for name in MODALITIES if name in volumes}
    if not volumes:
        raise DataError(f"The subject has none of the modalities {', '.join(MODALITIES)}.")
    reference = next(iter(volumes))
    grid = volumes[reference]
    notes: list[str] = []
    seconds: dict[str, float] = {}

    with _stage(seconds, "modality_registration"):
        matrices = _align_modalities(volumes, reference, seed, notes)
    with _stage(seconds, "brain_mask"):
        found = find_brain(
            volumes, method=skull_strip, given=brain_mask, matrices=matrices, threads=threads
        )
        notes.extend(found.notes)
        masks = _masks_of_modalities(volumes, reference, matrices, found)
    with _stage(seconds, "template_registration"):
        from_template = _align_template(
            volumes[reference], found.mask, reference, template, settings, seed, notes
        )
    with _stage(seconds, "resampling"):
        brain, sampled = _to_template_grid(
            volumes, masks, found.mask, matrices, from_template, reference, template, threads
        )
        if template.images:  # a bare grid, of a template yet to be made, has no brain to compare
            _check_overlap(brain, template, notes)
    with _stage(seconds, "intensity"):
        images, covered, scales = {}, {}, {}
        for name, (data, seen) in sampled.items():
            covered[name] = seen & brain
            images[name], scales[name] = normalise(data, covered[name], settings.intensity)
            share = covered[name].sum() / max(1, brain.sum())
            if share < _MIN_COVERED:
                notes.append(f"{name} shows only {share:.0%} of the brain.")
    return PreparedSubject(
        images=images,
        brain=brain,
        covered=covered,
        affine=template.affine,
        to_reference=np.linalg.inv(from_template),
        reference=reference,
        reference_volume=grid,
        reference_brain=found.mask,
        matrices=matrices,
        scales=scales,
        brain_method=found.method,
        notes=tuple(notes),
        seconds=seconds,
    )


def to_reference_grid(
    data: NDArray[np.floating] | NDArray[np.bool_],
    prepared: PreparedSubject,
    interpolation: Interpolation = "linear",
    *,
    threads: int = 1,
) -> NDArray[np.float32]:
    """Bring template-space data back to the grid of the reference scan.

    Linear interpolation is weighted by the brain mask, so that values do not fade at its edge.

    Args:
        data: (I, J, K) values on the template's grid; what lies outside the brain is not used.
        prepared: What `prepare_subject` returned.
        interpolation: "linear" or "nearest".
        threads: Number of threads.

    Returns:
        (I, J, K) float32 on the reference grid, 0 outside the reference's brain.
    """
    box = _box(prepared.reference_brain, 0)
    shape = tuple(s.stop - s.start for s in box)
    affine = _shifted(prepared.reference_volume.affine, box)

    def moved(values: NDArray, how: Interpolation) -> NDArray[np.float32]:
        volume = Volume(values, prepared.affine)
        matrix = prepared.to_reference
        return resample(
            volume, shape, affine, interpolation=how, matrix=matrix, threads=threads
        ).data

    values = np.where(prepared.brain, data, np.float32(0))
    inner = moved(values, interpolation)
    if interpolation == "linear":
        weight = moved(prepared.brain, "linear")
        inner = np.where(weight > _MIN_WEIGHT, inner / np.maximum(weight, _MIN_WEIGHT), 0)
    result = np.zeros(prepared.reference_volume.shape, dtype=np.float32)
    result[box] = np.where(prepared.reference_brain[box], inner, 0)
    return result


@contextmanager
def _stage(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 3)


def _align_modalities(
    volumes: Mapping[str, Volume], reference: str, seed: int, notes: list[str]
) -> dict[str, Matrix]:
    """Matrices from the reference's world to each modality's; one grid means the identity."""
    matrices = {reference: np.eye(4)}
    grid = volumes[reference]
    for name, volume in volumes.items():
        if name == reference:
            continue
        if same_grid(grid, volume):
            matrices[name] = np.eye(4)
            continue
        result = register(grid, volume, kind="rigid", seed=seed)
        matrices[name] = result.matrix
        moved = _mean_displacement(result.matrix, grid)
        notes.append(
            f"{name} lies on another grid: moved rigidly by {moved:.1f} mm to {reference}."
        )
    return matrices


def _mean_displacement(matrix: Matrix, grid: Volume) -> float:
    """Displacement of the grid's centre in mm."""
    center = grid.affine @ np.array([*(np.array(grid.shape) - 1) / 2, 1.0])
    return float(np.linalg.norm((matrix @ center - center)[:3]))


def _masks_of_modalities(
    volumes: Mapping[str, Volume],
    reference: str,
    matrices: Mapping[str, Matrix],
    found: BrainMask,
) -> dict[str, NDArray[np.bool_]]:
    """The imaged part of the brain on each modality's own grid."""
    grid = volumes[reference]
    brain = Volume(found.mask, grid.affine)
    masks = {}
    for name, volume in volumes.items():
        own = found.mask
        if not same_grid(grid, volume):
            inverse = np.linalg.inv(matrices[name])
            own = resample(brain, volume.shape, volume.affine, matrix=inverse).data >= 0.5
        masks[name] = imaged(volume, own)
        if not masks[name].any():
            raise DataError(f"{name} does not show the brain that {reference} shows.")
    return masks


def _align_template(
    volume: Volume,
    brain: NDArray[np.bool_],
    reference: str,
    template: Template,
    settings: PreprocessingConfig,
    seed: int,
    notes: list[str],
) -> Matrix:
    """Matrix from the template's world to the reference's world."""
    if settings.template_registration == "none":
        return np.eye(4)
    names = [reference, *(name for name in MODALITIES if name in template.images)]
    name = next(name for name in names if name in template.images)
    fixed = Volume(np.where(template.mask, template.images[name], 0), template.affine)
    low = float(fixed.data.min())
    fixed = Volume(np.where(template.mask, fixed.data - low + 1, 0), template.affine)
    # One order of axes for all, so that the samples that registration draws do not depend on it.
    moving = reorient(Volume(np.where(brain, volume.data, 0), volume.affine), "RAS")
    result = register(
        fixed,
        moving,
        kind="affine",
        fixed_mask=ndimage.binary_dilation(template.mask, iterations=3),
        moving_mask=None,
        seed=seed,
    )
    if _is_in_template_space(result.matrix, brain, volume.affine, template):
        return np.eye(4)
    scales = np.linalg.svd(result.matrix[:3, :3], compute_uv=False)
    if _SCALE_RANGE[0] <= scales.min() and scales.max() <= _SCALE_RANGE[1]:
        return result.matrix
    notes.append(
        "Warning: the registration to the template ended at implausible scales "
        f"({scales.min():.2f} to {scales.max():.2f}); centres and sizes were matched instead."
    )
    return _match_moments(template, brain, volume.affine)


def _is_in_template_space(
    matrix: Matrix, brain: NDArray[np.bool_], affine: Matrix, template: Template
) -> bool:
    """Whether the headers put the brain on the template, and registration agrees roughly.

    Then the headers stand: whoever brought the scans there did so with sharper images than a mean
    of many brains, and the training subjects were taken as they lay, too.
    """
    laid = resample(Volume(brain, affine), template.shape, template.affine).data >= 0.5
    overlap = 2 * (laid & template.mask).sum() / max(1, laid.sum() + template.mask.sum())
    if overlap < _SAME_SPACE_OVERLAP:
        return False
    left, _, right = np.linalg.svd(matrix[:3, :3])
    cosine = (np.trace(left @ right) - 1) / 2
    turn_deg = float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))
    centre = _centre(template.mask, template.affine)
    shift_mm = float(np.linalg.norm(matrix[:3, :3] @ centre + matrix[:3, 3] - centre))
    return turn_deg < _SAME_SPACE_DEGREES and shift_mm < _SAME_SPACE_MM


def _match_moments(template: Template, brain: NDArray[np.bool_], affine: Matrix) -> Matrix:
    """Translation and one scale that match centre and volume of two masks."""
    ours, theirs = _centre(brain, affine), _centre(template.mask, template.affine)
    volumes = [
        mask.sum() * abs(np.linalg.det(a[:3, :3]))
        for mask, a in ((brain, affine), (template.mask, template.affine))
    ]
    scale = float(np.clip((volumes[0] / volumes[1]) ** (1 / 3), *_SCALE_RANGE))
    matrix = np.diag([scale, scale, scale, 1.0])
    matrix[:3, 3] = ours - scale * theirs
    return matrix


def _centre(mask: NDArray[np.bool_], affine: Matrix) -> NDArray[np.float64]:
    center = np.array([*ndimage.center_of_mass(mask), 1.0])
    return (affine @ center)[:3]


def _to_template_grid(
    volumes: Mapping[str, Volume],
    masks: Mapping[str, NDArray[np.bool_]],
    brain: NDArray[np.bool_],
    matrices: Mapping[str, Matrix],
    from_template: Matrix,
    reference: str,
    template: Template,
    threads: int,
) -> tuple[NDArray[np.bool_], dict[str, tuple[NDArray[np.float32], NDArray[np.bool_]]]]:
    """The brain, and each modality with where it was imaged, on the template's grid."""
    grid = volumes[reference]
    weight = _sample(brain, brain, grid.affine, from_template, template, threads)
    sampled = {}
    for name, volume in volumes.items():
        matrix, mask = matrices[name] @ from_template, masks[name]
        # Modalities on one grid that show all of the brain share its mask, and so its weight.
        shared = np.array_equal(matrix, from_template) and same_grid(volume, grid)
        own = weight
        if not shared or not np.array_equal(mask, brain):
            own = _sample(mask, mask, volume.affine, matrix, template, threads)
        values = _sample(volume.data, mask, volume.affine, matrix, template, threads)
        # Blurring image and mask alike and dividing keeps the background out of the brain's edge.
        values = np.where(own > _MIN_WEIGHT, values / np.maximum(own, _MIN_WEIGHT), 0)
        sampled[name] = values, own >= 0.5
    return weight >= 0.5, sampled


def _sample(
    data: NDArray,
    mask: NDArray[np.bool_],
    affine: Matrix,
    matrix: Matrix,
    template: Template,
    threads: int,
) -> NDArray[np.float32]:
    """Mean of what a mask leaves of an image in each voxel of the template's grid."""
    box = _box(mask, _MARGIN_VOXELS)
    masked = Volume(np.where(mask[box], data[box], np.float32(0)), _shifted(affine, box))
    return resample(
        masked, template.shape, template.affine, matrix=matrix, smooth=True, threads=threads
    ).data


def _box(mask: NDArray[np.bool_], margin: int) -> tuple[slice, slice, slice]:
    """Bounding box of a mask, with a margin, within the grid."""
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    i, j, k = (
        slice(max(0, s.start - margin), min(n, s.stop + margin))
        for s, n in zip(box, mask.shape, strict=True)
    )
    return i, j, k


def _shifted(affine: Matrix, box: tuple[slice, slice, slice]) -> Matrix:
    """Affine of the part of a grid that a box cuts out."""
    shifted = affine.copy()
    shifted[:, 3] = affine @ np.array([*(s.start for s in box), 1.0])
    return shifted


def _check_overlap(brain: NDArray[np.bool_], template: Template, notes: list[str]) -> None:
    total = brain.sum() + template.mask.sum()
    dice = 2 * (brain & template.mask).sum() / max(1, total)
    if dice < _MIN_OVERLAP:
        notes.append(
            f"Warning: brain and template overlap poorly (Dice {dice:.2f}); check the alignment."
        )
