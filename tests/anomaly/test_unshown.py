"""Places far from healthy tissue that a map does not show are told, and nothing else is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from mmccd_cli import Segmenter
from mmccd_cli.anomaly.unshown import LEAST_ML, UnshownPlace, unshown_places
from mmccd_cli.errors import notes_and_warnings
from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.template import NormalRange

SHAPE = (40, 50, 40)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
AFFINE[:3, 3] = -40
FLUID = {"FLAIR": -4.0, "T2w": 4.0, "T1w": -4.0}
OLD_BLOOD = {"FLAIR": -4.0, "T2w": -4.0, "T1w": 0.0}
OEDEMA = {"FLAIR": 4.0, "T2w": 4.0, "T1w": -2.0}


def ball(radius_mm: float) -> np.ndarray:
    """True about the voxel (20, 25, 15)."""
    distance = np.linalg.norm(np.indices(SHAPE).T * 2 - np.array([40, 50, 30]), axis=-1).T
    return distance <= radius_mm


def places(
    change: Mapping[str, float], where: np.ndarray, shown: np.ndarray | None = None
) -> list[UnshownPlace]:
    """What is told where scans differ so far from tissue of mean 0.5 and spread 1."""
    normal = NormalRange(np.full(SHAPE, 0.5, np.float32), np.ones(SHAPE, np.float32))
    return unshown_places(
        {m: np.where(where, 0.5 + by, 0.5).astype(np.float32) for m, by in change.items()},
        dict.fromkeys(change, normal),
        within=np.ones(SHAPE, dtype=bool),
        shown=np.zeros(SHAPE, dtype=bool) if shown is None else shown,
        affine=AFFINE,
    )


@pytest.mark.parametrize(("kind", "change"), [("fluid", FLUID), ("dark", OLD_BLOOD)])
def test_a_place_is_told_with_its_volume_and_centre(kind: str, change: dict[str, float]) -> None:
    (found,) = places(change, ball(15))
    assert found.kind == kind
    assert found.volume_ml == pytest.approx(4 / 3 * np.pi * 1.5**3, rel=0.15)
    assert found.middle_ras_mm == pytest.approx((0, 10, -10), abs=2)


@pytest.mark.parametrize("own", [("FLAIR", "T2w"), ("FLAIR", "T1w")])
def test_two_scans_are_enough_and_one_is_not(own: tuple[str, str]) -> None:
    assert len(places({m: FLUID[m] for m in own}, ball(15))) == 1
    for modality in own:
        assert not places({modality: FLUID[modality]}, ball(15))


def test_the_map_is_for_the_rest() -> None:
    assert not places(OEDEMA, ball(15)), "what is bright on FLAIR is a matter of the map"
    assert not places(FLUID, ball(15), shown=ball(12))
    assert places(FLUID, ball(15), shown=ball(6)), "the map shows a small part only"


def test_small_places_sheets_and_what_lies_within_the_usual_range_are_not_told() -> None:
    assert not places(FLUID, ball(6)), f"less than {LEAST_ML} ml"
    sheet = np.zeros(SHAPE, dtype=bool)
    sheet[:, :, 20] = True
    assert not places(FLUID, sheet)
    assert not places({m: by * 0.4 for m, by in FLUID.items()}, ball(15))


def test_a_result_warns_of_it_in_the_world_of_its_map(
    segmenter: Segmenter, tiny_phantom: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = segmenter.bundle.template
    shape = template.mask.shape
    healthy = NormalRange(np.zeros(shape, np.float32), np.ones(shape, np.float32))
    taught = replace(template, normal={"FLAIR": healthy, "T2w": healthy})
    monkeypatch.setattr(segmenter, "bundle", replace(segmenter.bundle, template=taught))
    prepared = segmenter.prepare(tiny_phantom.volumes)
    cyst = (
        np.linalg.norm(np.indices(shape).T - np.argwhere(prepared.brain).mean(axis=0), axis=-1).T
        < 5
    )  # voxels
    images = {m: np.where(cyst, FLUID[m], i) for m, i in prepared.images.items()}
    warnings = notes_and_warnings(segmenter.infer(replace(prepared, images=images)).notes)[1]
    (told,) = [text for text in warnings if text.startswith("Not in the map")]
    assert "fluid" in told
    x, y, z = map(float, told[told.index("(") + 1 : told.index(")")].split(","))
    head = np.argwhere(tiny_phantom.brain).mean(axis=0)
    assert (
        np.linalg.norm(tiny_phantom.affine[:3, :3] @ head + tiny_phantom.affine[:3, 3] - [x, y, z])
        < 8
    )
