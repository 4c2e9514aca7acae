"""Skull strippers: functions from a raw head to the brain on the same grid.

A stripper's network, and torch with it, is imported only when the stripper runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.errors import DataError, UsageError
from mmccd_cli.host import give_back_freed_memory
from mmccd_cli.inputs.volume import Volume, reorient_array, sparse_zeros
from mmccd_cli.preprocessing.spatial import LARGE
from mmccd_cli.template import bounding_box, spacing_of

Finder = Callable[[Volume, int], NDArray[np.bool_]]
SURROUNDINGS_MM = 6.0


@dataclass(frozen=True)
class SkullStripper:
    """A way to find the brain in a raw head.

    Args:
        find: From a scan and a number of threads to a bool mask on the scan's grid.
        preferred: Modalities, the best input first. A reference scan that is as good as another
            comes before it, so that the brain is the same whether that is given or not.
        doubtful: Of these, the ones whose masks somebody should look at.
        find_surroundings: Like `find`, of the brain and all that lies within `SURROUNDINGS_MM` of
            it, in less time; None where there is no such way.
    """

    find: Finder
    preferred: tuple[str, ...]
    doubtful: tuple[str, ...] = ()
    find_surroundings: Finder | None = None


def deepbet(volume: Volume, threads: int = 1) -> NDArray[np.bool_]:
    """Find the brain with the two networks of deepbet, whose weights come with this package.

    Trained on T1w of healthy adults, and as good on FLAIR: on four raw examinations of glioma and
    multiple sclerosis, with slices of 3 to 5.5 mm, its masks have a Dice of 0.96 to 0.98 with the
    majority of HD-BET's masks of all three scans, from T1w and from FLAIR; from T2w 0.95 to 0.97,
    with 55 to 139 ml too much around the brain. Of lesions painted at the rim of these brains, 24
    to 50 mm wide, it keeps 98 % or more on FLAIR, where they are bright, and as little as 86 % on
    T1w, where they are dark. Needs about 5 s of one core and 0.7 GB.

    Args:
        volume: A raw head.
        threads: Number of threads.

    Returns:
        (I, J, K) bool on the volume's grid.

    Raises:
        DataError: No brain is seen.
    """
    from mmccd_cli.preprocessing.deepbet import find_brain

    return _found_upright(volume, lambda image, _: find_brain(image), threads=threads)


def deepbet_surroundings(volume: Volume, threads: int = 1) -> NDArray[np.bool_]:
    """Find what lies within `SURROUNDINGS_MM` of the brain, with deepbet's coarse network alone.

    Args:
        volume: See `deepbet`.
        threads: See `deepbet`.

    Returns:
        (I, J, K) bool on the volume's grid.

    Raises:
        DataError: No brain is seen.
    """
    from mmccd_cli.preprocessing.deepbet import find_surroundings

    def find(image: NDArray[np.float32], spacing_mm: tuple[float, ...]) -> NDArray[np.bool_]:
        return find_surroundings(image, spacing_mm, margin_mm=SURROUNDINGS_MM)

    return _found_upright(volume, find, threads=threads)


def _found_upright(
    volume: Volume,
    find: Callable[[NDArray[np.float32], tuple[float, ...]], NDArray[np.bool_]],
    *,
    threads: int,
) -> NDArray[np.bool_]:
    """What is found in an upright head of so large voxels, on the grid of the head as it lies."""
    import torch

    upright, affine = reorient_array(volume.data, volume.affine, "RAS")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        mask = find(upright, spacing_of(affine))
    except ValueError as error:
        raise DataError(
            "deepbet sees no brain in the image.",
            cause="The image is not a head, or its orientation in the file is wrong.",
            next_step="Give a brain mask with --skull-strip MASK.nii.gz",
        ) from error
    finally:
        torch.set_num_threads(before)
    turned, _ = reorient_array(mask, affine, volume.orientation)
    found, box = sparse_zeros(turned.shape, bool), bounding_box(turned)
    found[box] = turned[box]
    if volume.data.size > LARGE:
        give_back_freed_memory()  # of the networks, which none of a fine scan's arrays fits into
    return found


STRIPPERS = {
    "deepbet": SkullStripper(
        deepbet,
        ("FLAIR", "T1w", "T2w"),
        doubtful=("T2w",),
        find_surroundings=deepbet_surroundings,
    )
}


def check_method(name: str) -> None:
    """Refuse what is no way to find a brain.

    Args:
        name: "auto", "never" or the name of a skull stripper.

    Raises:
        UsageError: It is none of these.
    """
    known = ("auto", "never", *STRIPPERS)
    if name not in known:
        raise UsageError(
            f"There is no skull stripper named {name!r}.",
            next_step=f"Give one of these: {', '.join(known)}.",
        )
