"""Numbers of voxels that are those of the lesion table."""

from __future__ import annotations

import numpy as np
import pytest

from mmccd_cli.anomaly.mask import LeftOut, find_lesions
from mmccd_cli.outputs.numbers import number_left_out, number_lesions

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def test_lesions_have_the_numbers_of_the_record():
    mask = np.zeros((20, 20, 20), bool)
    mask[1:3, 1:3, 1:3] = mask[8:14, 8:14, 8:14] = mask[16:19, 2:5, 2:5] = True
    numbers = number_lesions(mask)
    lesions = find_lesions(mask, mask.astype(np.float32), AFFINE)
    assert len(lesions) == numbers.max() == 3
    for lesion in lesions:
        inside = numbers == lesion.id
        assert inside.sum() * 0.008 == pytest.approx(lesion.volume_ml)
        assert inside[tuple(slice(*limits) for limits in lesion.box)].sum() == inside.sum()


def test_more_lesions_than_sixteen_bits_have_numbers_of_their_own():
    mask = np.zeros((85, 85, 85), bool)
    mask[::2, ::2, ::2] = True
    mask[0, 0, 0] = False
    numbers = number_lesions(mask)
    assert numbers.max() == 43**3 - 1
    assert (np.bincount(numbers[mask])[1:] == 1).all()
    last = LeftOut(
        id=70_000, volume_ml=0.008, peak=1, mean=1, centroid_ras_mm=(0, 0, 0),
        box=((2, 3),) * 3, reason="",
    )  # fmt: skip
    assert number_left_out(mask, [last], AFFINE).max() == 70_000


def test_candidates_are_found_by_box_and_volume_and_the_unlisted_have_none():
    outside = np.zeros((20, 20, 20), bool)
    outside[2:10, 2:10, 2] = outside[3:5, 3:5, 6:8] = outside[15, 15, 15] = True
    # The box of the first holds the second one, too, as that of a curved candidate may.
    boxes = [((2, 10), (2, 10), (2, 9)), ((3, 5), (3, 5), (6, 8))]
    listed = [
        LeftOut(id=n, volume_ml=ml, peak=1, mean=1, centroid_ras_mm=(0, 0, 0), box=box, reason="")
        for n, ml, box in zip((4, 5), (0.512, 0.064), boxes, strict=True)
    ]
    numbers = number_left_out(outside, listed, AFFINE)
    assert (numbers == 4).sum() == 64
    assert (numbers == 5).sum() == 8
    assert numbers[15, 15, 15] == 0
    absent = LeftOut(
        id=6, volume_ml=1, peak=1, mean=1, centroid_ras_mm=(0, 0, 0), box=((17, 19),) * 3, reason=""
    )
    assert number_left_out(outside, [absent], AFFINE).max() == 0
