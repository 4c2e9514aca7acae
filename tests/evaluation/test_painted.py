"""The second painter paints what it says, and the instrument tells what is found."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmccd_cli.evaluation.painted import (
    PaintedPlan,
    PaintedRow,
    measure_painted,
    painted_table,
    write_painted,
)
from mmccd_cli.evaluation.second_painter import KINDS, Canvas, paint_lesions
from mmccd_cli.inputs.phantom import Phantom, make_phantom
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.pipeline import Pipeline
from mmccd_cli.preprocessing.subject import PreparedSubject
from mmccd_cli.weights.bundle import load_bundle

SHAPE, SPACING_MM = (50, 50, 50), (2.0, 2.0, 2.0)
VOLUMES_ML = (12.0, 2.0, 0.4, 0.05)


@pytest.fixture(scope="module")
def canvas() -> Canvas:
    """A ball of noise, 80 mm wide, in three scans."""
    noise = np.random.default_rng(0)
    middle = (np.indices(SHAPE).reshape(3, -1).T - 24.5).reshape(*SHAPE, 3)
    return Canvas(
        images={
            m: (0.25 * noise.standard_normal(SHAPE)).astype(np.float32)
            for m in ("FLAIR", "T2w", "T1w")
        },
        room=np.linalg.norm(middle, axis=-1) < 20,
        spacing_mm=SPACING_MM,
        scale=0.5,
    )


def test_lesions_have_the_volumes_that_were_asked_for_and_stay_where_there_is_room(
    canvas: Canvas,
) -> None:
    images, numbers, lesions = paint_lesions(canvas, VOLUMES_ML, np.random.default_rng(1))
    assert len(lesions) == len(VOLUMES_ML)
    for number, (lesion, volume_ml) in enumerate(zip(lesions, VOLUMES_ML, strict=True), start=1):
        assert np.count_nonzero(numbers == number) * 0.008 == pytest.approx(lesion.volume_ml)
        assert lesion.volume_ml == pytest.approx(volume_ml, rel=0.25, abs=0.025)
    for modality, image in images.items():
        changed = image != canvas.images[modality]
        assert not changed[~canvas.room].any()
        assert changed[numbers > 0].mean() > 0.99


def test_contrasts_are_drawn_for_each_scan_within_what_the_kind_looks_like(canvas: Canvas) -> None:
    lesions = [
        lesion
        for seed in range(40)
        for lesion in paint_lesions(canvas, [2.0], np.random.default_rng(seed))[2]
    ]
    assert {lesion.kind for lesion in lesions} == set(KINDS)
    for lesion in lesions:
        for modality, (low, high) in KINDS[lesion.kind][1].items():
            # an edge that fills half of a voxel weakens it, and texture moves it
            assert min(0.4 * low, low) - 0.6 < lesion.contrast[modality] < max(high, 0) + 0.6
    flair, t2w = np.array([[x.contrast["FLAIR"], x.contrast["T2w"]] for x in lesions]).T
    bright = np.array([lesion.kind == "bright" for lesion in lesions])
    assert abs(np.corrcoef(flair[bright], t2w[bright])[0, 1]) < 0.7  # each on its own
    assert flair.min() < -1  # both signs


def test_the_seed_decides_everything(canvas: Canvas) -> None:
    first, again, other = (
        paint_lesions(canvas, VOLUMES_ML, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first[0]["FLAIR"], again[0]["FLAIR"])
    assert first[2] == again[2]
    assert not np.array_equal(first[1], other[1])


def test_lesions_lie_apart_and_without_room_there_is_none(canvas: Canvas) -> None:
    _, numbers, lesions = paint_lesions(canvas, [8.0] * 4, np.random.default_rng(0))
    assert len(lesions) > 1
    for number in range(1, len(lesions) + 1):
        i, j, k = (numbers == number).nonzero()
        near = {int(n) for d in (-1, 1) for n in numbers[i + d, j, k]} - {0, number}
        assert not near
    full = replace(canvas, room=np.zeros(SHAPE, bool))
    assert paint_lesions(full, [1.0], np.random.default_rng(0))[2] == []
    assert paint_lesions(canvas, [500.0], np.random.default_rng(0))[2] == []


@pytest.fixture(scope="module")
def head() -> Phantom:
    return make_phantom(3, shape=(50, 56, 46), spacing_mm=(4, 4, 4), lesion=False)


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Pipeline:
    return Pipeline(load_bundle(bundle), device="cpu")


@pytest.fixture(scope="module")
def prepared(pipeline: Pipeline, head: Phantom) -> PreparedSubject:
    return pipeline.prepare(head.volumes, skull_strip="never")


PLAN = PaintedPlan(rounds=2, lesions=3, modality_sets=(("FLAIR", "T2w"), ("T2w",)))


def test_each_lesion_is_looked_for_in_each_set_of_scans(
    pipeline: Pipeline, prepared: PreparedSubject, tmp_path: Path
) -> None:
    rows = list(measure_painted(pipeline, "one", prepared, plan=PLAN))
    assert {row.modalities for row in rows} == {"FLAIR+T2w", "T2w"}
    places = [(row.round, row.lesion, row.volume_ml) for row in rows if row.modalities == "T2w"]
    assert len(places) == len(set(places)) == len(rows) / 2
    clear = [row for row in rows if row.contrast > 3 and row.volume_ml > 5]
    hidden = [row for row in rows if row.contrast < 0]
    assert clear
    assert all(row.found for row in clear)
    assert not any(row.kept for row in hidden)
    assert all(row.dice == 0 for row in rows if not row.kept and not row.found)
    again = list(measure_painted(pipeline, "one", prepared, plan=PLAN))
    assert again == rows
    write_painted(tmp_path / "painted.tsv", rows)
    with (tmp_path / "painted.tsv").open(newline="") as file:
        told = list(csv.DictReader(file, delimiter="\t"))
    assert [row["kept"] for row in told] == [str(row.kept) for row in rows]


def test_lesions_are_painted_away_from_the_subjects_own(
    pipeline: Pipeline, prepared: PreparedSubject, head: Phantom
) -> None:
    everywhere = Volume(np.ones(head.brain.shape, np.float32), head.affine)
    assert not list(measure_painted(pipeline, "one", prepared, reference=everywhere, plan=PLAN))


def row(**changes: object) -> PaintedRow:
    values = {
        "subject": "one",
        "round": 0,
        "lesion": 1,
        "kind": "bright",
        "volume_ml": 2.0,
        "modalities": "FLAIR",
        "contrast": 2.0,
        "found": True,
        "kept": True,
        "dice": 0.8,
        "found_before": False,
        "kept_before": False,
    }
    return PaintedRow(**{**values, **changes})  # type: ignore[arg-type]  # as given above


def test_the_table_tells_shares_by_volume_and_contrast() -> None:
    rows = [row(), row(kept=False, dice=0.0), row(contrast=-4.0, found=False, kept=False)]
    header, (line,) = painted_table(rows)
    cells = dict(zip(header, line, strict=True))
    assert cells["volume"] == "1-5 ml"
    assert cells["clear"] == "50 % (100 %), Dice 0.80, n 2"
    assert cells["reversed"] == "0 % (0 %), n 1"
    assert cells["strong"] == "-"
    assert cells["before painting"] == "0 % (0 %)"
    assert row(volume_ml=0.04).volume_class == "0.05-0.2 ml"
    assert row(volume_ml=200.0).volume_class == "20-150 ml"
    assert [row(contrast=c).contrast_class for c in (1.0, 2.0, 4.0)] == ["faint", "clear", "strong"]


def test_the_script_paints_into_the_folders_of_subjects(
    write_subject: Callable[..., Path], head: Phantom, bundle: Path, tmp_path: Path
) -> None:
    folder = write_subject(tmp_path, head, id="one", lesion=False)
    script = Path(__file__).resolve().parents[2] / "examples" / "painted_lesions.py"
    out = tmp_path / "painted.tsv"
    words = ["--weights", bundle, "--rounds", "1", "--lesions", "2", "--out", out]
    done = subprocess.run(
        [sys.executable, script, folder, tmp_path / "nobody", *words],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "nobody" in done.stderr
    assert "scans" in done.stdout
    assert len(out.read_text().splitlines()) > 2
