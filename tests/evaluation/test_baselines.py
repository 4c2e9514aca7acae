"""Intensity baselines on a phantom, and their known numbers on real scans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.errors import DataError
from mmccd_cli.evaluation.baselines import BASELINES, SHIPPED_CONSTANTS
from mmccd_cli.evaluation.cases import Case, Prediction, load_case
from mmccd_cli.evaluation.methods import IntensityScorer, RuleMethod
from mmccd_cli.inputs.subjects import find_subject
from mmccd_cli.inputs.volume import Volume


def phantom(*, dimmer: float = 0.0) -> Case:
    """A noisy ball of a brain with a lesion: bright on FLAIR and T2w, dark on T1w."""
    i, j, k = np.mgrid[:36, :36, :36]
    brain = (i - 18) ** 2 + (j - 18) ** 2 + (k - 18) ** 2 < 15**2
    lesion = (i - 20) ** 2 + (j - 16) ** 2 + (k - 18) ** 2 < 7**2
    noise = np.random.default_rng(0).normal(size=(3, *brain.shape))
    contrasts = {"FLAIR": 5.0 - dimmer, "T2w": 4.0, "T1w": -4.0}
    images = {
        m: np.where(brain, 100 + 5 * (n + contrast * lesion), 0).astype(np.float32)
        for (m, contrast), n in zip(contrasts.items(), noise, strict=True)
    }
    case = Case(
        subject="a",
        volumes={m: Volume(data, np.eye(4)) for m, data in images.items()},
        reference=lesion,
    )
    case.shared("brain", lambda: brain)
    return case


def rows(name: str, constants: Mapping[str, float], case: Case) -> dict[str, Prediction]:
    found = RuleMethod(IntensityScorer(name), constants).predict(case)
    return {prediction.method: prediction for prediction in found}


@pytest.mark.parametrize("name", list(BASELINES))
def test_every_baseline_finds_the_lesion_of_the_phantom(name: str) -> None:
    case = phantom()
    found = rows(name, {"fixed": 2.0, "adaptive": 0.6}, case)
    edge = ["flair-z (edge)"] if name == "flair-z" else []
    assert list(found) == [f"{name} (fixed)", f"{name} (adaptive)", *edge]
    words = [prediction.rule for prediction in found.values()]
    assert words == ["fixed 2", "adaptive 0.6", *["edge 0.9 to 1.9" for _ in edge]]
    for prediction in found.values():
        assert prediction.values.dtype == np.float32
        assert not prediction.values[~prediction.brain].any()
        assert case.reference is not None
        assert overlap(prediction.mask, case.reference).dice > 0.8


def test_an_unreachable_threshold_marks_nothing() -> None:
    found = rows("flair-z", {"fixed": 99.0, "adaptive": 99.0}, phantom())
    assert not found["flair-z (fixed)"].mask.any()


def test_only_the_contour_rule_asks_for_a_bright_core() -> None:
    case = phantom(dimmer=3.4)  # from five standard deviations to less than two
    found = rows("flair-z", {"fixed": 0.9, "adaptive": 0.6}, case)
    assert found["flair-z (fixed)"].mask.any()
    assert not found["flair-z (edge)"].mask.any()


def test_a_missing_scan_makes_no_row_and_a_flat_one_is_named() -> None:
    case = phantom()
    flat = Volume(np.ones(case.grid.shape, dtype=np.float32), np.eye(4))
    brain = case.shared("brain", dict)[0]
    alone, dull = (
        Case(subject="b", volumes={"FLAIR": v}, reference=case.reference) for v in (case.grid, flat)
    )
    dull.shared("brain", lambda: brain)
    assert IntensityScorer("flair-t2w-z").score(alone) is None
    with pytest.raises(DataError, match="contrast"):
        IntensityScorer("flair-z").score(dull)


def test_scans_on_another_grid_of_the_same_shape_are_not_added_up() -> None:
    case = phantom()
    moved = np.eye(4)
    moved[0, 3] = 20.0
    scans = {**case.volumes, "T2w": Volume(case.volumes["T2w"].data, moved)}
    elsewhere = Case(subject="c", volumes=scans, reference=case.reference)
    elsewhere.shared("brain", lambda: case.shared("brain", dict)[0])
    assert IntensityScorer("flair-t2w-z").score(elsewhere) is None
    assert IntensityScorer("flair-z").score(elsewhere) is not None


def test_every_baseline_has_shipped_constants() -> None:
    assert set(SHIPPED_CONSTANTS) == set(BASELINES)
    assert all(set(c) == {"fixed", "adaptive"} for c in SHIPPED_CONSTANTS.values())


@pytest.mark.realdata
@pytest.mark.slow
def test_baselines_reach_their_known_dice_on_gliomas(real_data: Path) -> None:
    known = {
        "flair-z (fixed)": 0.730,
        "flair-z (adaptive)": 0.787,
        "flair-z (edge)": 0.663,
        "flair-t2w-z (fixed)": 0.739,
        "flair-t2w-z (adaptive)": 0.759,
        "t2w-z (fixed)": 0.452,
    }
    dice: dict[str, list[float]] = {name: [] for name in known}
    for subject in (
        "Brats18_TCIA02_135_1",
        "Brats18_CBICA_AME_1",
        "Brats18_2013_3_1",
        "Brats18_TCIA10_637_1",
        "Brats18_TCIA01_425_1",
    ):
        case = load_case(find_subject(real_data / "glioma" / subject))
        for name, constants in SHIPPED_CONSTANTS.items():
            for method, prediction in rows(name, constants, case).items():
                if method in known:
                    assert case.reference is not None
                    dice[method].append(overlap(prediction.mask, case.reference).dice)
    for name, values in dice.items():
        assert np.mean(values) == pytest.approx(known[name], abs=0.0006), name
