"""Where the brain is: detection of skull-stripped scans, and skull stripping of raw ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import cc3d
import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.components import component_sizes, fill_holes
from mmccd_cli.config import MODALITIES
from mmccd_cli.errors import Caution, DataError
from mmccd_cli.inputs.volume import Volume, sparse_zeros
from mmccd_cli.preprocessing.skull_strippers import STRIPPERS, check_method
from mmccd_cli.preprocessing.spatial import LARGE, resample, same_grid
from mmccd_cli.template import Box, bounding_box

# A stripped scan is empty in 82-90 % of its box, a raw head in 7-65 %; a brain has 1.0-1.7 litres,
# a head mostly more than 2.7. Between lies room for tight crops and for swollen brains.
_MIN_EMPTY = 0.2
_MAX_BRAIN_LITRES = 2.4
_MAX_BORDER_FRACTION = 0.5
# A raw head on exact zeros may be as small where little of it was imaged. The largest of 31
# stripped brains has 1.73 litres; of anything larger a skull stripper leaves almost all, or half.
# The same holds of a brain with a margin of skull: of one of 5 mm it leaves 85 to 97 %.
_DOUBTFUL_LITRES = 1.8
_MIN_LEFT_OF_BRAIN = 0.88
_MIN_BRAIN_LITRES = 0.05
_MIN_HOLE_LITRES = 0.005  # a zero region larger than this was not imaged; smaller ones are noise
_MM3_PER_LITRE = 1e6
_MAX_LOST_MM = 12.0  # empty slices in a row; what lies farther apart is not one brain
_SMALL_BRAIN_LITRES = 0.7
_LARGEST_BRAIN_LITRES = 5.0  # with room for any hydrocephalus
_LEVELS = 100.0  # to which the values of a given mask are rounded
_MIN_FLATNESS = 0.5  # of a mask: share of neighbours at one level
_DEFAULT_STRIPPER = "deepbet"
_MOST_LEFT_OUT = 0.12  # of a brain, because another scan shows none there; a slip was 6 %
_TOLD_LITRES = 0.005
_BRIGHT_PERCENTILE = 99.0
_TRACE = 0.005  # of what bright voxels have: less is what interpolation leaves around a brain
_RIPPLE = 0.05  # the same of ripples, and the share of negative voxels from which on there are some
_RIPPLING = (0.01, 0.03)
_STANDARDISED = 0.25  # share of negative voxels

Align = Callable[[str, NDArray[np.bool_]], Mapping[str, NDArray[np.float64]]]
"""Takes a modality and the brain on its grid; returns modality -> (4, 4) from the reference's world
to that modality's, RAS+ mm. Missing ones are the identity."""


def _not_moved(_source: str, _brain: NDArray[np.bool_]) -> Mapping[str, NDArray[np.float64]]:
    return {}


@dataclass(frozen=True, eq=False)
class BrainMask:
    """The brain on the reference grid.

    Args:
        mask: (I, J, K) bool on the reference grid.
        method: How it was found: "stripped", "given", or the name of a skull stripper.
        notes: What the user should know.
    """

    mask: NDArray[np.bool_]
    method: str
    notes: tuple[str, ...] = ()


def zero_background(volume: Volume) -> Volume:
    """Return a scan whose background is 0, where it was another constant.

    Scans that were z-scored, or that carry an offset as CT does, have one value in all corners
    and in a large part of the image. It is subtracted; differences of intensities stay.

    Args:
        volume: Any scan.
    """
    corners = volume.data[np.ix_(*[[0, -1]] * 3)]
    background = corners.flat[0]
    if background == 0 or (corners != background).any():
        return volume
    if (volume.data == background).mean() < _MIN_EMPTY:
        return volume
    return Volume(volume.data - background, volume.affine)


def is_skull_stripped(volumes: Mapping[str, Volume]) -> tuple[bool, str]:
    """Whether scans hold only a brain on an empty background.

    Args:
        volumes: Modality -> volume; all of them must look stripped.

    Returns:
        The answer, and a sentence of the measurement behind it.
    """
    return _looks_stripped(volumes, _Occupied(volumes))


def _looks_stripped(volumes: Mapping[str, Volume], shown: _Occupied) -> tuple[bool, str]:
    reasons = []
    for name, volume in volumes.items():
        # Of a very fine scan every second voxel says enough; labels take four times the memory.
        every = 2 if volume.data.size > LARGE else 1
        thinned = volume.data[::every, ::every, ::every]
        occupied = shown[name] if every == 1 else _occupied(thinned)
        empty = 1 - float(occupied.mean())
        litres = _litres(occupied, volume) * every**3
        if litres > _MAX_BRAIN_LITRES:  # not yet said of its largest piece, which takes longer
            litres = _litres(_largest_component(occupied), volume) * every**3
        border = _border_fraction(occupied)
        reason = f"{name}: {empty:.0%} of the voxels are empty, the rest is {litres:.1f} litres"
        if empty < _MIN_EMPTY or litres > _MAX_BRAIN_LITRES or border > _MAX_BORDER_FRACTION:
            return False, reason
        reasons.append(reason)
    return True, "; ".join(reasons)


def find_brain(
    volumes: Mapping[str, Volume],
    *,
    method: str = "auto",
    given: Volume | None = None,
    align: Align = _not_moved,
    threads: int = 1,
) -> BrainMask:
    """Find the brain on the grid of the reference modality.

    Args:
        volumes: Modality -> volume. The first of FLAIR, T2w, T1w is the reference.
        method: "auto" (stripped scans are left alone, raw heads stripped), "never", or the name
            of a skull stripper (see `STRIPPERS`).
        given: A mask in the reference's world, on any grid; it wins over `method`.
        align: Tells how the scans lie to each other. Called once, when the brain is known in one
            of them, so that scans may be registered by their brains, and beside a skull stripper.
        threads: Number of threads.

    Returns:
        The mask, how it was found, and notes.

    Raises:
        DataError: There is no brain, or the skull stripper is not installed.
        UsageError: There is no such method.
    """
    reference = next(name for name in MODALITIES if name in volumes)
    grid = volumes[reference]
    if given is not None:
        _check_given(given)
        mask = onto(grid, given, np.eye(4), mask=given.data > 0.5)
        align(reference, mask := _checked(mask, grid, "The given mask"))
        return BrainMask(mask, "given")
    check_method(method)
    shown = _Occupied(volumes)
    own = _DEFAULT_STRIPPER if method == "auto" else method
    stripping = _Stripping(volumes, own, threads=threads, shown=shown)
    stripped, reason = (True, "") if method == "never" else _looks_stripped(volumes, shown)
    if method == "never" or (method == "auto" and stripped and not stripping.finds_a_head):
        mask = _nonzero_brain(shown, reference, align(reference, shown[reference]))
        return BrainMask(_checked(mask, grid, "The scan"), "stripped")
    source, name = stripping.source, stripping.name
    matrices = align(source, stripping.mask)
    mask = onto(grid, volumes[source], matrices.get(source, np.eye(4)), mask=stripping.mask)
    told = [f"Raw head ({reason}): skull stripped with {name} on the {source}."]
    lost = stripping.contradicted(mask, matrices, reference=reference)
    if (litres := _litres(lost, grid)) >= _TOLD_LITRES:
        told.append(f"Of it, {1000 * litres:.0f} ml are no brain on another scan: left out.")
    mask = _checked(mask & ~lost, grid, name)
    if not stripped and source in STRIPPERS[name].doubtful:
        told.append(
            Caution(f"{name} may leave skull around the brain of a {source}; look at its outline.")
        )
    if (litres := _litres(mask, grid)) > _MAX_BRAIN_LITRES or litres < _SMALL_BRAIN_LITRES:
        told.append(Caution(f"The brain mask of {litres:.1f} litres has no plausible size."))
    return BrainMask(mask, name, tuple(told))


@dataclass(frozen=True)
class _Stripping:
    """What a skull stripper makes of the scan that it likes best, computed when first asked for."""

    volumes: Mapping[str, Volume]
    name: str
    threads: int
    shown: _Occupied

    @property
    def source(self) -> str:
        """The modality that it looks at."""
        return next(m for m in STRIPPERS[self.name].preferred if m in self.volumes)

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """(I, J, K) on the grid of that scan."""
        return STRIPPERS[self.name].find(self.volumes[self.source], self.threads)

    @property
    def witness(self) -> str | None:
        """Another modality that shows where the brain is; None where there is none."""
        stripper = STRIPPERS[self.name]
        others = (m for m in stripper.preferred if m in self.volumes and m != self.source)
        return next((m for m in others if m not in stripper.doubtful), None)

    def contradicted(
        self,
        brain: NDArray[np.bool_],
        matrices: Mapping[str, NDArray[np.float64]],
        *,
        reference: str,
    ) -> NDArray[np.bool_]:
        """The part of a brain that is far from all that is brain on the witness.

        Skull that is taken for brain on one scan is not on another. What the witness did not image
        it does not contradict; and where it would contradict much, it is the witness that is wrong.

        Args:
            brain: (I, J, K) bool on the grid of the reference.
            matrices: Modality -> (4, 4) from the reference's world to that scan's, RAS+ mm.
            reference: The reference modality.

        Returns:
            (I, J, K) bool, a subset of `brain`.
        """
        nothing = np.zeros_like(brain)
        find, name = STRIPPERS[self.name].find_surroundings, self.witness
        if find is None or name is None:
            return nothing
        try:
            near = find(self.volumes[name], self.threads)
        except DataError:
            return nothing
        grid, scan = self.volumes[reference], self.volumes[name]
        matrix = matrices.get(name, np.eye(4))
        shown = onto(grid, scan, matrix, mask=np.ones(scan.shape, dtype=bool))
        far = brain & shown & ~onto(grid, scan, matrix, mask=near)
        return far if far.sum() <= _MOST_LEFT_OUT * brain.sum() else nothing

    @property
    def finds_a_head(self) -> bool:
        """Whether what looks like a large stripped brain is a head on a background of zeros."""
        scan = self.volumes[self.source]
        occupied = self.shown[self.source]
        if _litres(occupied, scan) <= _DOUBTFUL_LITRES:
            return False
        return bool(self.mask.sum() < _MIN_LEFT_OF_BRAIN * occupied.sum())


def onto(
    grid: Volume, volume: Volume, matrix: NDArray[np.float64], *, mask: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Bring a mask to another grid.

    Args:
        grid: Has the grid that is wanted.
        volume: Has the mask's grid.
        matrix: (4, 4) from the wanted grid's world to the volume's, RAS+ mm.
        mask: (I, J, K) bool.
    """
    if same_grid(volume, grid) and np.array_equal(matrix, np.eye(4)):
        return mask
    values = Volume(mask.astype(np.float32), volume.affine)
    return resample(values, grid.shape, grid.affine, matrix=matrix).data >= 0.5


def imaged(volume: Volume, brain: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The part of the brain that a scan covers: all but large regions of exact zeros.

    Args:
        volume: A scan.
        brain: (I, J, K) bool on the scan's grid.

    Returns:
        (I, J, K) bool, a subset of `brain`.
    """
    box = bounding_box(brain)
    zeros = brain[box] & (volume.data[box] == 0)
    min_voxels = _MIN_HOLE_LITRES * _MM3_PER_LITRE / volume.voxel_volume_mm3
    if zeros.sum() < min_voxels:
        return brain
    seen = brain
    for part in _parts_with(zeros, min_voxels):
        holes = cc3d.dust(zeros[part], threshold=min_voxels, connectivity=6, binary_image=True)
        if seen is brain:
            seen = sparse_zeros(brain.shape, bool)
            seen[box] = brain[box]
        seen[box][part] &= ~holes
    return seen


def _parts_with(mask: NDArray[np.bool_], min_voxels: float) -> Iterator[Box]:
    """Boxes that hold the components of so many voxels, each one whole in one of them at least.

    What hangs together does so in blocks of two voxels a side, too, of which there are an eighth.
    """
    counts: NDArray = mask
    for axis, size in enumerate(mask.shape):
        counts = np.add.reduceat(counts, np.arange(0, size, 2), axis=axis, dtype=np.uint8)
    labels = cc3d.connected_components(counts > 0, connectivity=6)
    voxels = np.bincount(labels.ravel(), weights=counts.ravel())[1:]
    boxes = component_sizes(labels)[1]
    for index in np.flatnonzero(voxels >= min_voxels):
        i, j, k = (slice(2 * side.start, 2 * side.stop) for side in boxes[index])
        yield i, j, k


def _nonzero_brain(
    shown: _Occupied, reference: str, matrices: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.bool_]:
    """Union over the modalities, so that a cut field of view in one does not cut the brain."""
    grid = shown.volumes[reference]
    occupied = shown[reference].copy()
    for name, volume in shown.volumes.items():
        if name != reference:
            matrix = matrices.get(name, np.eye(4))
            occupied |= onto(grid, volume, matrix, mask=shown[name])
    return fill_holes(_largest_component(_across_lost_slices(occupied, grid)))


def _across_lost_slices(mask: NDArray[np.bool_], grid: Volume) -> NDArray[np.bool_]:
    """A mask with what lies on both sides of empty slices in them, so that these do not part it."""
    whole = mask.copy()
    for axis, spacing_mm in enumerate(grid.spacing_mm):
        slices, filled = np.moveaxis(mask, axis, 0), np.moveaxis(whole, axis, 0)
        shown = np.flatnonzero(slices.any(axis=(1, 2)))
        for before, after in pairwise(shown):
            if 0 < (after - before - 1) * spacing_mm <= _MAX_LOST_MM:
                filled[before + 1 : after] |= slices[before] & slices[after]
    return whole


def _checked(mask: NDArray[np.bool_], grid: Volume, origin: str) -> NDArray[np.bool_]:
    litres = _litres(mask, grid)
    if litres < _MIN_BRAIN_LITRES:
        raise DataError(
            f"{origin} shows no brain: only {litres * 1000:.0f} ml were found.",
            cause="The image is empty, cut off, or not a head.",
            next_step="Look at the image; give a brain mask with --skull-strip MASK.nii.gz",
        )
    if litres > _LARGEST_BRAIN_LITRES:
        raise DataError(
            f"{origin} shows no brain: {litres:.1f} litres are more than any has.",
            cause="It holds the whole head or box, or the voxel spacing in its header is wrong.",
            next_step="Look at the image; give a brain mask with --skull-strip MASK.nii.gz",
        )
    return mask


def _check_given(given: Volume) -> None:
    """Refuse an image as a brain mask: few of its neighbouring voxels are equal.

    Masks, label maps and maps of probability are flat but for their edges.
    """
    levels = np.rint(given.data[::2] * (_LEVELS / max(float(given.data.max()), 1e-6)))
    ahead, behind = levels[:, 1:], levels[:, :-1]
    inside = (ahead > 0) & (behind > 0)
    if inside.any() and (ahead == behind)[inside].mean() < _MIN_FLATNESS:
        raise DataError(
            "The brain mask that was given is an image, and no mask.",
            cause="A mask is 1 in the brain and 0 elsewhere; this holds intensities.",
            next_step="Give the mask that a skull stripper wrote, or leave --skull-strip out.",
        )


class _Occupied:
    """Where scans show something, found once; of very fine ones whenever it is asked for."""

    def __init__(self, volumes: Mapping[str, Volume]) -> None:
        self.volumes = volumes
        self._known: dict[str, NDArray[np.bool_]] = {}

    def __getitem__(self, name: str) -> NDArray[np.bool_]:
        """(I, J, K) bool on the grid of the scan, not to be written to."""
        if name in self._known:
            return self._known[name]
        data = self.volumes[name].data
        found = _occupied(data)
        if data.size <= LARGE:
            self._known[name] = found
        return found


def _occupied(data: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where a scan shows more than what resampling leaves around a stripped brain.

    Interpolation by splines leaves ripples, which go below zero and are up to a tenth as bright as
    the brain. Tissue is below zero only in scans that were standardised, and then much of it.
    """
    every = 2 if data.size > LARGE else 1
    values = data[::every, ::every, ::every]
    values = np.abs(values[values != 0])
    if not values.size:
        return np.zeros(data.shape, dtype=bool)
    bright = np.percentile(values, _BRIGHT_PERCENTILE)
    if data.min() >= 0:
        return data > _TRACE * bright
    above, below = data > _TRACE * bright, data < -_TRACE * bright
    negative = below.sum() / max(1, below.sum() + above.sum())
    if negative > _STANDARDISED:
        return above | below
    return data > np.interp(negative, _RIPPLING, (_TRACE, _RIPPLE)) * bright


def _litres(mask: NDArray[np.bool_], grid: Volume) -> float:
    return float(mask.sum()) * grid.voxel_volume_mm3 / _MM3_PER_LITRE


def _largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    box = bounding_box(mask)
    largest = np.zeros(mask.shape, dtype=bool)
    if mask[box].size:
        largest[box] = cc3d.largest_k(mask[box], k=1, connectivity=6) > 0
    return largest


def _border_fraction(mask: NDArray[np.bool_]) -> float:
    """Share of the six faces of the box that a mask occupies."""
    faces = [np.take(mask, index, axis=axis) for axis in range(3) for index in (0, -1)]
    return float(np.mean([face.mean() for face in faces]))
