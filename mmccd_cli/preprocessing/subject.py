"""From a subject's scans to normalised images on the template's grid."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.config import MODALITIES, PreprocessingConfig
from mmccd_cli.errors import Caution, DataError
from mmccd_cli.host import give_back_freed_memory
from mmccd_cli.inputs.volume import Volume, sparse_zeros
from mmccd_cli.preprocessing.bias_field import divide_by_gain
from mmccd_cli.preprocessing.brain import BrainMask, find_brain, imaged, onto, zero_background
from mmccd_cli.preprocessing.checks import check_coverage, check_overlap, misfits
from mmccd_cli.preprocessing.contrast import check_contrast
from mmccd_cli.preprocessing.intensity import normalise
from mmccd_cli.preprocessing.registration import refine, register
from mmccd_cli.preprocessing.sampling import MARGIN_VOXELS, AlignedScan, Matrix, Sampler
from mmccd_cli.preprocessing.spatial import LARGE, same_voxels
from mmccd_cli.preprocessing.template_alignment import SCALE_RANGE, align_to_template, match_moments
from mmccd_cli.progress import Stopwatch
from mmccd_cli.template import Template, bounding_box, voxel_volume_mm3

_SIGN_OF_LESIONS = {"FLAIR": 1, "T2w": 1, "T1w": -1}  # bright, bright, dark, as most are
# Volume of the brain as a share of the template's; of adults it is 0.6 to 1.3. Below the first,
# slabs and halves ended 1.5 to 5 cm away, up to the second those that were stretched.
_TOO_LITTLE, _LITTLE = 0.5, 0.65


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedSubject:
    """A subject on the template's grid, and the way back to its reference scan.

    Args:
        images: Modality -> (I, J, K) float32, normalised; the background value outside the brain
            and where the modality was not imaged. Scans that do not belong to the reference are
            left out.
        brain: (I, J, K) bool on the template's grid.
        covered: Modality -> (I, J, K) bool, the part of the brain that the modality shows.
        affine: (4, 4) of the template's grid.
        to_reference: (4, 4) reference world -> template world, RAS+ mm: the matrix with which
            template-space data are resampled to the reference grid.
        reference: The reference modality.
        reference_volume: Its scan as it came in, its background 0.
        reference_brain: (I, J, K) bool on the reference grid.
        matrices: Modality -> (4, 4) reference world -> that modality's world, RAS+ mm; also of
            scans that are left out.
        brain_method: How the brain mask was found.
        notes: What happened; a `Caution` is to be read before trusting the result.
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
    brain_method: str
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    def without_surroundings(self) -> PreparedSubject:
        """The same with a reference scan that is 0 away from the brain, where it takes no memory.

        Map and mask need no more of it; pictures do.
        """
        scan, box = self.reference_volume, bounding_box(self.reference_brain, MARGIN_VOXELS)
        if scan.data.size > LARGE:
            give_back_freed_memory()
        data = sparse_zeros(scan.shape, np.float32)
        data[box] = scan.data[box]
        return replace(self, reference_volume=Volume(data, scan.affine))


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

    Those that do not belong to the reference, and a T1w after contrast agent, are named and left
    out: the rest is prepared as if they had not been given.

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
        DataError: No known modality, no brain, no contrast, or no overlap with the template.
    """
    prepare = partial(
        _prepare,
        template=template,
        settings=settings,
        brain_mask=brain_mask,
        skull_strip=skull_strip,
        seed=seed,
        threads=threads,
    )
    prepared = prepare(volumes)
    reference = prepared.reference
    wrong = misfits(prepared.images, prepared.covered, template, reference=reference)
    left_out = {name: reason for name, reason in wrong.items() if name != reference}
    told = [f"{name} {reason}." for name, reason in wrong.items() if name == reference]
    if left_out:
        told += [
            f"{name} {reason}. It was left out; look at it in a viewer, over the {reference}."
            for name, reason in left_out.items()
        ]
        rest, matrices = {n: v for n, v in volumes.items() if n not in left_out}, prepared.matrices
        prepared = prepare(rest)
        prepared = replace(prepared, matrices={**matrices, **prepared.matrices})
    return replace(prepared, notes=(*map(Caution, told), *prepared.notes))


def _prepare(
    volumes: Mapping[str, Volume],
    *,
    template: Template,
    settings: PreprocessingConfig,
    brain_mask: Volume | None,
    skull_strip: str,
    seed: int,
    threads: int,
) -> PreparedSubject:
    """Do what `prepare_subject` does with all scans that it is given."""
    volumes = _known_modalities(volumes)
    reference = next(iter(volumes))
    grid = volumes[reference]
    watch = Stopwatch()
    found, matrices = _find_brain_and_align(
        volumes, given=brain_mask, method=skull_strip, seed=seed, threads=threads, watch=watch
    )
    notes = [*_describe_motion(volumes, matrices, reference), *found.notes]
    with watch.stage("brain_mask"):
        head = AlignedScan(volume=grid, brain=found.mask, matrix=np.eye(4))
        scans = {name: _find_in(v, head, matrices[name]) for name, v in volumes.items()}
        if hidden := [name for name, scan in scans.items() if not scan.brain.any()]:
            raise DataError(
                f"{hidden[0]} does not show the brain that {reference} shows.",
                cause="Their headers place them apart, or one of them is another subject's.",
                next_step="Look at both in a viewer, or leave that scan away.",
            )
    with watch.stage("template_registration"):
        from_template = np.eye(4)
        if settings.template_registration != "none":
            from_template, warnings = _align_template(head, template, reference)
            notes += warnings
    with watch.stage("resampling"):
        sampler = Sampler(template, from_template, head, threads=threads)
        brain = sampler.share >= 0.5
        sampled = {name: sampler.sample(scan) for name, scan in scans.items()}
        notes += check_overlap(brain, template)
    with watch.stage("intensity"):
        covered = {name: seen & brain for name, (_, seen) in sampled.items()}
        images = {
            name: _normalised(data, covered[name], template, name=name, settings=settings)
            for name, (data, _) in sampled.items()
        }
        notes += check_coverage(scans, covered, brain)
        notes += check_contrast(images, covered, template)
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
        brain_method=found.method,
        notes=tuple(notes),
        seconds=watch.seconds,
    )


def _known_modalities(volumes: Mapping[str, Volume]) -> dict[str, Volume]:
    known = {m: zero_background(volumes[m]) for m in MODALITIES if m in volumes}
    if not known:
        raise DataError(f"The subject has none of the modalities {', '.join(MODALITIES)}.")
    return known


def _find_brain_and_align(
    volumes: Mapping[str, Volume],
    *,
    given: Volume | None,
    method: str,
    seed: int,
    threads: int,
    watch: Stopwatch,
) -> tuple[BrainMask, dict[str, Matrix]]:
    """Register the scans with the reference, and beside that, if there are threads, find the brain.

    Where it is known, it decides how the scans lie. A registration takes one thread, and so is the
    same beside others.
    """
    grid = next(iter(volumes.values()))
    moved = [name for name, volume in volumes.items() if not same_voxels(grid, volume)]
    matrices = {name: np.eye(4) for name in volumes}
    with ThreadPoolExecutor(max(1, min(threads, len(moved)))) as pool:
        running = {name: pool.submit(register, grid, volumes[name], seed=seed) for name in moved}

        def align(source: str, brain: NDArray[np.bool_]) -> dict[str, Matrix]:
            found = {name: one.result() for name, one in running.items()}
            brain = onto(grid, volumes[source], found.get(source, np.eye(4)), mask=brain)
            refined = [
                pool.submit(refine, grid, volumes[name], matrix, brain=brain, seed=seed)
                for name, matrix in found.items()
            ]
            matrices.update(zip(found, (one.result() for one in refined), strict=True))
            return matrices

        if threads == 1:
            with watch.stage("modality_registration"):
                wait(running.values())
        with watch.stage("brain_mask"):
            free = max(1, threads - len(moved))
            found = find_brain(volumes, method=method, given=given, align=align, threads=free)
    return found, matrices


def _describe_motion(
    volumes: Mapping[str, Volume], matrices: Mapping[str, Matrix], reference: str
) -> list[str]:
    """Say which scans were moved to the reference, and by how many mm at its centre."""
    grid = volumes[reference]
    center = grid.affine @ np.array([*(np.array(grid.shape) - 1) / 2, 1.0])
    notes = []
    for name, volume in volumes.items():
        if not same_voxels(grid, volume):
            moved = float(np.linalg.norm((matrices[name] @ center - center)[:3]))
            notes.append(
                f"{name} lies on another grid: moved rigidly by {moved:.1f} mm to {reference}."
            )
    return notes


def _find_in(volume: Volume, head: AlignedScan, matrix: Matrix) -> AlignedScan:
    """Find the brain of the reference scan in another scan."""
    brain = onto(volume, head.volume, np.linalg.inv(matrix), mask=head.brain)
    return AlignedScan(volume=volume, brain=imaged(volume, brain), matrix=matrix)


def _align_template(
    head: AlignedScan, template: Template, modality: str
) -> tuple[Matrix, list[str]]:
    """Matrix from the template's world to the reference's world, and warnings.

    Of slabs and halves of brains it ends centimetres away, mostly after stretching them.
    """
    ml = head.brain.sum() * head.volume.voxel_volume_mm3 / 1000
    whole = template.mask.sum() * voxel_volume_mm3(template.affine) / 1000
    share = ml / whole if template.images else 1.0  # a bare grid's mask is no brain
    shown = f"{modality} shows {ml:.0f} ml of brain, {share:.0%} of the template's"
    if share < _TOO_LITTLE:
        raise _too_little(shown)
    matrix = align_to_template(head.volume, head.brain, template, modality=modality)
    scales = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    if SCALE_RANGE[0] <= scales.min() and scales.max() <= SCALE_RANGE[1]:
        doubt = Caution(f"{shown}; if that is a part of it, check how it lies on the template.")
        return matrix, [doubt] if share < _LITTLE else []
    if share < _LITTLE:
        raise _too_little(shown)
    warning = Caution(
        "The registration to the template ended at implausible scales "
        f"({scales.min():.2f} to {scales.max():.2f}); centres and sizes were matched instead."
    )
    return match_moments(head.volume, head.brain, template), [warning]


def _too_little(shown: str) -> DataError:
    return DataError(
        f"{shown}: too little to find its place there.",
        cause="The scan is a slab or a part of a head, or the brain mask is wrong.",
        next_step="Give a scan of the whole brain; if this is one, its mask: --skull-strip "
        "MASK.nii.gz",
    )


def _normalised(
    data: NDArray[np.float32],
    seen: NDArray[np.bool_],
    template: Template,
    *,
    name: str,
    settings: PreprocessingConfig,
) -> NDArray[np.float32]:
    """A scan on the template's grid, less its gain where the template knows healthy tissue."""
    normal = template.normal.get(name)
    if normal is not None:
        data = divide_by_gain(
            data,
            seen & template.mask,
            normal,
            sign=_SIGN_OF_LESIONS[name],
            settings=settings.intensity,
            spacing_mm=template.spacing_mm,
        )
    return normalise(data, seen, settings.intensity, name=name)
