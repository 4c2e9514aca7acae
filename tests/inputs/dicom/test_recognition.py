"""Which modality a series is taken for, with the parameters of real protocols."""

from __future__ import annotations

from typing import Any

import pytest

from mmccd_cli.inputs.dicom.recognition import Acquisition, known_words, recognise
from mmccd_cli.inputs.names import tokens_of


def acquired(
    kinds: str = "",
    tr: float | None = None,
    te: float | None = None,
    ti: float | None = None,
    flip: float | None = None,
    words: str = "",
    **rest: Any,
) -> Acquisition:
    values: dict[str, Any] = {
        "variants": frozenset(),
        "echo_number": None,
        "image_type": ("ORIGINAL", "PRIMARY", "M", "ND"),
        "has_agent": False,
        "b_value": None,
        "is_angiography": False,
        "is_balanced": False,
        "body_part": "brain",
    }
    parts = frozenset(kinds.split())
    return Acquisition(
        kinds=parts,
        repetition_ms=tr,
        echo_ms=te,
        inversion_ms=ti,
        flip_deg=flip,
        words=tuple(tokens_of(words)),
        **{**values, **rest},
    )


MP = {"variants": frozenset({"SK", "SP", "MP"})}


@pytest.mark.parametrize(
    ("modality", "acquisition"),
    [
        # Siemens
        ("FLAIR", acquired("SE IR", 9000, 94, 2500, 150)),
        ("FLAIR", acquired("SE IR", 5000, 388, 1800, 120, **MP)),  # 3D SPACE
        ("T2w", acquired("SE", 6000, 99, None, 150)),
        ("T2w", acquired("SE", 3200, 408, None, 120)),  # 3D SPACE
        ("T1w", acquired("SE", 500, 8.4, None, 90)),
        ("T1w", acquired("GR IR", 2300, 2.98, 900, 9, **MP)),
        ("T1w", acquired("GR", 250, 2.46, None, 70)),  # 2D FLASH
        ("T1w", acquired("GR", 11, 4.9, None, 15)),  # 3D FLASH
        # GE, which calls some of its sequences research mode
        ("FLAIR", acquired("SE IR", 8802, 120, 2250, 160)),
        ("FLAIR", acquired("RM", 6000, 130, 1850, 90)),
        ("T1w", acquired("GR", 8.2, 3.2, 450, 12, variants=frozenset({"SS", "SP", "SK"}))),
        ("T1w", acquired("SE IR", 2500, 24, 750, 111)),  # T1 FLAIR
        ("T2w", acquired("RM", 5000, 102, None, 142)),
        # Philips, which leaves the inversion time out of a turbo field echo
        ("FLAIR", acquired("IR", 11000, 125, 2800, 90)),
        ("T1w", acquired("GR", 8.1, 3.7, None, 8, variants=frozenset({"MP"}))),
        ("T2w", acquired("SE", 3000, 80, None, 90)),
        # 7 T and low field
        ("FLAIR", acquired("SE IR", 8000, 300, 2200, 120)),
        ("T1w", acquired("SE", 450, 15, None, 90)),
        # None of ours, whatever the description says
        (None, acquired("EP", 5000, 90, words="T2 trace")),
        (None, acquired("SE", 6000, 99, b_value=1000.0, words="T2")),
        (None, acquired("GR", 28, 20, None, 15, words="t1")),  # SWI
        (None, acquired("GR", 600, 20, None, 20)),  # T2*
        (None, acquired("SE IR", 4000, 40, 150, 150, words="T2 TIRM")),  # STIR
        (None, acquired("SE", 2500, 15, None, 150, words="T2 first echo")),  # PD
        (None, acquired("GR", 5, 2.5, None, 60)),  # balanced
        (None, acquired("GR", 21, 3.6, None, 18, is_angiography=True)),
        (None, acquired("GR", 20, 3.7, None, 3)),  # PD of a variable-flip-angle series
        (None, acquired("SE", 6000, 99, body_part="cspine")),
        (None, acquired("SE", 6000, 99, words="sag t2 c spine")),
        (None, acquired("SE", 6000, 99, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))),
        (None, acquired("GR", 6, 3, 900, 9, image_type=("DERIVED", "SECONDARY", "MIP"))),
        (None, acquired("SE", 5000, 300, image_type=("ORIGINAL", "PRIMARY", "P", "ND"))),
        # What only words can tell
        (None, acquired("SE IR", 7500, 300, 3000, 120, words="3D DIR")),
        (None, acquired("GR", 21, 3.6, None, 18, words="TOF 3D")),
        (None, acquired("SE", 6000, 99, words="T2 map")),
        # Parameters before descriptions
        ("FLAIR", acquired("SE IR", 9000, 94, 2500, 150, words="ax t2")),
        ("T2w", acquired("SE", 6000, 99, words="flair")),
        ("T2w", acquired("SE", 4500, 98, words="PD T2")),  # the second echo
        # Descriptions where parameters are missing or do not decide
        ("FLAIR", acquired(words="AX T2 FLAIR")),
        ("FLAIR", acquired("SE IR", 9000, 94, words="t2_tirm_tra_dark-fluid flair")),
        ("FLAIR", acquired("SE IR", 9000, 94, words="t2_tirm_tra_dark-fluid")),
        (None, acquired("SE IR", 9000, 94, words="t2_tirm_cor")),  # or STIR
        ("T1w", acquired("SE", words="T1 SE sag")),
        (None, acquired(words="brain")),
        (None, acquired(words="PD T2")),
        (None, acquired("SE IR", 9000, 94)),
    ],
)
def test_modality(modality, acquisition):
    assert recognise(acquisition).modality == modality


@pytest.mark.parametrize(
    "acquisition",
    [
        acquired("SE", 500, 8, has_agent=True),
        acquired("SE", 500, 8, words="T1 SE +C"),
        acquired("GR IR", 2300, 3, 900, 9, words="MPRAGE Gd"),
        acquired("SE", 500, 8, words="t1_tse_km"),
        acquired("SE", 500, 8, words="t1_tse_pc"),
    ],
)
def test_t1w_after_contrast_agent_is_left_out(acquisition):
    recognition = recognise(acquisition)
    assert recognition.modality is None
    assert "contrast-enhanced" in recognition.reason


def test_flair_after_contrast_agent_stays_and_says_so():
    recognition = recognise(acquired("SE IR", 9000, 94, 2500, has_agent=True))
    assert recognition.modality == "FLAIR"
    assert recognition.has_agent


def test_the_reason_names_the_parameters_and_a_contradiction():
    reason = recognise(acquired("SE IR", 9000, 94, 2500, words="ax t2 tse")).reason
    assert reason == "IR/SE, TR 9000 ms, TE 94 ms, TI 2500 ms; its description says T2w"


def test_reformats_are_told_from_what_was_acquired():
    original = acquired("GR IR", 2300, 3, 900, 9)
    processed = acquired("GR IR", 2300, 3, 900, 9, image_type=("DERIVED", "SECONDARY"))
    reformatted = acquired("GR IR", 2300, 3, 900, 9, words="MPRAGE ax MPR")
    assert [recognise(a).derived for a in (original, processed, reformatted)] == [0, 1, 2]


def test_only_known_words_of_a_description_are_repeated():
    acquisition = acquired(words="Doe Jane AX T2 FLAIR 19610203 for Dr House +C")
    assert known_words(acquisition) == "ax t2 flair c"
