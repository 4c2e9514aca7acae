"""What is wrong with a subject on the template's grid, before anything is computed from it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.errors import Caution, DataError
from mmccd_cli.preprocessing.agreement import disagreements
from mmccd_cli.preprocessing.contrast import shows_agent
from mmccd_cli.preprocessing.damaged_slices import lost_slices, uneven_slices
from mmccd_cli.preprocessing.sampling import AlignedScan
from mmccd_cli.template import Template

_MIN_OVERLAP = 0.8
_MIN_COVERED = 0.95


def misfits(
    images: Mapping[str, NDArray[np.float32]],
    covered: Mapping[str, NDArray[np.bool_]],
    template: Template,
    *,
    reference: str,
) -> dict[str, str]:
    """Find scans that would spoil the result.

    Args:
        images: Modality -> (I, J, K) float32 on the template's grid, normalised.
        covered: Modality -> (I, J, K) bool, the part of the brain that it shows.
        template: The template.
        reference: The modality that the others lie on.

    Returns:
        Modality -> what is wrong with it, in words that go on from its name.
    """
    if not template.images:  # a bare grid knows neither left and right nor tissue
        return {}
    wrong = disagreements(images, covered, reference=reference, spacing_mm=template.spacing_mm)
    if "T1w" in images and shows_agent(images["T1w"], covered["T1w"], template):
        wrong.setdefault(
            "T1w",
            "shows places far brighter than tissue is, as vessels are after contrast agent was "
            "given, and the scores are of scans from before",
        )
    return wrong


def check_overlap(brain: NDArray[np.bool_], template: Template) -> list[str]:
    """Refuse a brain that does not lie on the template, and doubt one that hardly does.

    Args:
        brain: (I, J, K) bool on the template's grid.
        template: The template.

    Raises:
        DataError: They do not overlap.
    """
    if template.images and not brain.any():
        raise DataError(
            "The template of these weights and the brain do not overlap.",
            cause="The weights register no scan, so they fit scans in the space of their template "
            "alone; or the template was moved.",
            next_step="Use other --weights, or bring the scans to that space.",
        )
    dice = overlap(brain, template.mask).dice
    # A bare grid, of a template that is yet to be made, has no brain to compare.
    if not template.images or dice >= _MIN_OVERLAP:
        return []
    text = f"Brain and template overlap poorly (Dice {dice:.2f}); check the alignment."
    return [Caution(text)]


def check_coverage(
    scans: Mapping[str, AlignedScan],
    covered: Mapping[str, NDArray[np.bool_]],
    brain: NDArray[np.bool_],
) -> list[str]:
    """Say which scans lack slices or a part of the brain, or have slices of another brightness.

    Args:
        scans: Modality -> scan, and the brain that it shows.
        covered: Modality -> (I, J, K) bool on the template's grid, the same brain there.
        brain: (I, J, K) bool, the whole brain there.
    """
    lost = {name: lost_slices(scan.brain) for name, scan in scans.items()}
    uneven = {name: uneven_slices(scan.volume, scan.brain) for name, scan in scans.items()}
    shares = {name: seen.sum() / max(1, brain.sum()) for name, seen in covered.items()}
    told = [
        f"{name} is empty in {count} of its slices through the brain: what lies there, or next to "
        "it, may be missed."
        for name, count in lost.items()
        if count
    ]
    told += [
        f"{name} is far brighter or darker in {count} of its slices through the brain than in the "
        "slices beside: what is marked there may be no lesion."
        for name, count in uneven.items()
        if count
    ]
    told += [
        f"{name} shows only {share:.0%} of the brain."
        for name, share in shares.items()
        if share < _MIN_COVERED
    ]
    return [Caution(text) for text in told]
