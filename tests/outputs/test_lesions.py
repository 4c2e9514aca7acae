"""What is said of lesions and of what was left out: a table, and sentences where they are due."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmccd_cli.anomaly.mask import MOST_LISTED, LeftOut, LeftOutSmall, Lesion, MaskFindings
from mmccd_cli.outputs.anatomy import MIDLINE
from mmccd_cli.outputs.lesions import is_mask_warning, lesion_table, mask_warnings

LESION = Lesion(
    id=1,
    volume_ml=12.3456789,
    peak=0.99,
    mean=0.75,
    centroid_ras_mm=(-1.25, 20.0, 3.5),
    box=((1, 5), (2, 7), (3, 9)),
)
WEAK = LeftOut(**{**vars(LESION), "id": 2, "volume_ml": 1.2, "peak": 0.9}, reason="a\treason")
NONE = LeftOutSmall()
SMALL = LeftOutSmall(count=3, volume_ml=0.012)
HEAD = (
    b"index\tkept\tvolume_ml\tpeak\tmean\tx_mm\ty_mm\tz_mm\tbox\treason\tconfidence"
    b"\tside\tmidline_mm\n"
)
SETTINGS = {"space": "native", "reference_to_template": np.eye(4).tolist(), MIDLINE: 20.0}


def found(
    lesions: list[Lesion], left_out: list[LeftOut], left_out_small: LeftOutSmall
) -> MaskFindings:
    return MaskFindings(
        mask=np.zeros((1, 1, 1), bool),
        lesions=lesions,
        left_out=left_out,
        left_out_small=left_out_small,
    )


def test_the_table_has_a_row_for_each_and_one_for_what_is_only_counted() -> None:
    assert lesion_table(found([], [], NONE), settings={}) == HEAD
    assert lesion_table(found([LESION], [WEAK], SMALL), settings=SETTINGS) == HEAD + (
        b"1\tyes\t12.3457\t0.99\t0.75\t-1.25\t20\t3.5\t1:5,2:7,3:9\tn/a\tn/a\tleft\t21.25\n"
        b'2\tno\t1.2\t0.9\t0.75\t-1.25\t20\t3.5\t1:5,2:7,3:9\t"a\treason"\tn/a\tleft\t21.25\n'
        b"n/a\tno\t0.012\tn/a\tn/a\tn/a\tn/a\tn/a\tn/a\t"
        b"3 more, each below 10 mm3\tn/a\tn/a\tn/a\n"
    )
    many = lesion_table(found([], [WEAK] * MOST_LISTED, SMALL), settings={})
    assert b"\t3 more, below 10 mm3, or beyond the 100 largest\t" in many


@pytest.mark.parametrize(
    ("change", "due"),
    [
        ({}, False),
        ({"volume_ml": 12.0}, False),  # wide and faint, as healthy tissue is in many scans
        ({"mean": 0.82}, True),
        ({"mean": 0.82, "volume_ml": 0.09}, False),
        ({"mean": 0.82, "confidence": 0.1}, False),
        ({"confidence": 0.2}, True),  # by default 0.25 are needed with FLAIR
        ({"confidence": 0.4}, True),
        ({"volume_ml": 39.0, "confidence": 0.05}, True),  # larger than the mask: what is in it?
        ({"volume_ml": 4.9, "confidence": 0.05}, False),
    ],
)
def test_only_what_is_as_bright_as_a_lesion_is_warned_of(
    change: dict[str, float], due: bool
) -> None:
    said = mask_warnings(
        found([LESION], [replace(WEAK, **change)], LeftOutSmall(count=99, volume_ml=9.0))
    )
    assert len(said) == due
    assert all(map(is_mask_warning, said))
    assert mask_warnings(found([LESION], [], NONE)) == []


def test_an_empty_mask_is_told_in_words() -> None:
    assert mask_warnings(found([], [], NONE)) == ["The map stays below its threshold everywhere."]
    assert mask_warnings(found([], [], SMALL)) == [
        "Nothing was kept, but the map shows 3 candidates of 0.012 ml in all."
    ]
    bright = replace(WEAK, id=3, volume_ml=0.1, peak=0.98, reason="it is small")
    (said,) = mask_warnings(found([], [WEAK, bright], SMALL))
    assert said == (
        "Nothing was kept, but the map shows 5 candidates of 1.3 ml in all; the strongest has "
        "0.1 ml and a peak of 0.98, at (-1, 20, 4) mm: it is small."
    )
    assert is_mask_warning(said)
    assert not is_mask_warning("T2w was mended.")
    sure = replace(WEAK, id=4, volume_ml=0.02, peak=0.8, confidence=0.2)
    (said,) = mask_warnings(found([], [replace(bright, confidence=0.1), sure], NONE))
    assert "; the surest has 0.020 ml, a confidence of 0.20 and a peak of 0.8, at" in said


def test_a_mask_of_much_of_the_brain_is_doubted() -> None:
    plenty = replace(LESION, volume_ml=300.0)
    (said,) = mask_warnings(found([plenty], [], NONE), brain_ml=1200.0)
    assert said.startswith("The mask holds 25% of the brain")
    assert is_mask_warning(said)
    assert mask_warnings(found([plenty], [], NONE), brain_ml=2000.0) == []
