"""Two results of a subject: what is new, gone, grown or shrunk, on whatever grids they lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mmccd_cli import Segmenter
from mmccd_cli.cli.app import app
from mmccd_cli.cohort.compare import compare, find_position, match_lesions, others_remark
from mmccd_cli.cohort.jobs import RunSettings
from mmccd_cli.cohort.results import Result
from mmccd_cli.errors import DataError
from mmccd_cli.files import sha256_of_file
from mmccd_cli.inputs.nifti import make_grid, read_nifti, write_nifti
from mmccd_cli.inputs.phantom import make_phantom
from mmccd_cli.inputs.volume import Volume

SHAPE = (20, 22, 24)
BALL = np.linalg.norm(np.indices(SHAPE) - np.array([10, 11, 12])[:, None, None, None], axis=0) < 9


def result(
    boxes: dict[tuple[int, int, int], int],
    *,
    affine: Any = None,
    scan: str = "one",
    settings: Any = None,
) -> Result:
    """A result with cubic lesions: corner to edge, in voxels."""
    affine = np.diag([2.0, 2, 2, 1]) if affine is None else affine
    mask = np.zeros(SHAPE, bool)
    for corner, edge in boxes.items():
        mask[tuple(slice(start, start + edge) for start in corner)] = True
    record = {
        "inputs": {"FLAIR": {"file": "f.nii.gz", "sha256": scan}},
        "reference": "FLAIR",
        "outputs": {"map": "map.nii.gz"},
        "settings": {"space": "native", **(settings or {})},
        "bundle": {"sha256": "b"},
    }
    values = np.where(mask, 0.9, 0.2) * BALL
    volume = Volume(values.astype(np.float32), affine)
    return Result(record=record, map=volume, grid=make_grid(SHAPE, affine), mask=mask)


def changes(a: Result, b: Result) -> dict[str, tuple[list[int], list[int]]]:
    found = compare(a, b, find_position(a, b))
    return {lesion.change: (lesion.ids_a, lesion.ids_b) for lesion in found.lesions}


def test_each_lesion_is_told_what_became_of_it() -> None:
    a = result({(6, 6, 8): 4, (12, 12, 12): 2, (6, 14, 12): 3})
    b = result({(6, 6, 8): 4, (12, 12, 12): 3, (11, 5, 14): 2})
    found = compare(a, b, find_position(a, b))
    by_change = {lesion.change: lesion for lesion in found.lesions}
    assert by_change.keys() == {"same", "grown", "gone", "new"}
    assert (by_change["grown"].volume_a_ml, by_change["grown"].volume_b_ml) == (0.064, 0.216)
    assert (by_change["new"].ids_a, by_change["new"].ids_b) == ([], [3])
    assert (by_change["new"].peak_a, by_change["new"].peak_b) == pytest.approx((0.2, 0.9))
    assert by_change["gone"].centroid_ras_mm == (14.0, 30.0, 26.0)
    assert found.dice == pytest.approx(2 * (64 + 8) / (64 + 8 + 27 + 64 + 27 + 8))
    np.testing.assert_allclose(found.difference[12, 6, 15], 0.7, atol=1e-6)
    assert [lesion.change for lesion in found.lesions][:2] == ["gone", "grown"]
    back = {lesion.change: lesion for lesion in compare(b, a, find_position(b, a)).lesions}
    assert back.keys() == {"same", "shrunk", "gone", "new"}


def test_lesions_that_merge_or_split_are_told_together() -> None:
    a = result({(6, 6, 8): 3, (6, 10, 8): 3})
    b = result({(6, 6, 8): 3, (6, 10, 8): 3, (7, 9, 9): 1})
    ((lesion),) = compare(a, b, find_position(a, b)).lesions
    assert (lesion.change, lesion.ids_a, lesion.ids_b) == ("same", [1, 2], [1])
    ((lesion),) = compare(b, a, find_position(b, a)).lesions
    assert (lesion.ids_a, lesion.ids_b) == ([1], [1, 2])


def test_a_touch_is_no_match_and_nothing_is_no_lesion() -> None:
    assert changes(result({(5, 8, 8): 4}), result({(8, 11, 11): 4})) == {
        "gone": ([1], []),
        "new": ([], [1]),
    }
    empty = result({})
    found = compare(empty, empty, find_position(empty, empty))
    assert (found.dice, found.lesions) == (1.0, [])
    assert match_lesions(np.zeros(SHAPE, int), np.zeros(SHAPE, int)) == []


def test_what_the_other_examination_does_not_show_is_not_new() -> None:
    a, b = result({}), result({(6, 6, 8): 4})
    a.map.data[:11] = 0
    assert changes(a, b) == {"out of view": ([], [1])}


def test_another_grid_is_reached_through_world_coordinates() -> None:
    boxes = {(6, 6, 8): 4, (12, 12, 12): 1}
    a = result(boxes)
    flipped = np.diag([-2.0, 2, 2, 1])
    flipped[0, 3] = 2 * (SHAPE[0] - 1)
    b = result({(SHAPE[0] - x - n, y, z): n for (x, y, z), n in boxes.items()}, affine=flipped)
    found = compare(a, b, find_position(a, b))
    assert (found.dice, {lesion.change for lesion in found.lesions}) == (1.0, {"same"})


def test_the_smallest_lesion_survives_a_coarser_grid() -> None:
    fine = result({(11, 11, 13): 1}, affine=np.diag([2.0, 2, 2, 1]))
    coarse = result({}, affine=np.diag([3.0, 3, 3, 1]))
    found = compare(coarse, fine, find_position(coarse, fine))
    assert [(it.change, it.volume_b_ml) for it in found.lesions] == [("new", 0.008)]


def test_over_the_template_the_other_head_position_is_undone() -> None:
    to_template = np.eye(4)
    moved = np.eye(4)
    moved[:3, 3] = (-4, 6, 2)
    boxes = {(8, 8, 8): 4}
    a = result(boxes, settings={"reference_to_template": to_template.tolist()})
    shifted = np.diag([2.0, 2, 2, 1])
    shifted[:3, 3] = (4, -6, -2)
    b = result(
        boxes,
        affine=shifted,
        scan="two",
        settings={"reference_to_template": moved.tolist()},
    )
    position = find_position(a, b)
    assert position.by == "template"
    assert "--scan-a" in str(position.remark)
    assert compare(a, b, position).dice == 1.0
    without = result(boxes, scan="three")
    assert find_position(a, without).by == "headers"
    a.record["bundle"] = {"sha256": "c", "template_sha256": "t"}
    assert find_position(a, b).by == "headers"
    b.record["bundle"] = {"sha256": "d", "template_sha256": "t"}
    assert find_position(a, b).by == "template"


def test_another_examination_is_registered(tmp_path: Path) -> None:
    head = make_phantom(0, shape=(44, 50, 42), spacing_mm=(5, 5, 5))
    data, affine = head.volumes["FLAIR"].data, head.affine
    moved = affine.copy()
    moved[:3, 3] += (9, -6, 4)
    paths = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    for path, position in zip(paths, (affine, moved), strict=True):
        write_nifti(path, data, make_grid(data.shape, position))
    a, b = (result({}, scan=sha256_of_file(path)) for path in paths)
    found = find_position(a, b, (paths[0], paths[1]))
    assert found.by == "registration"
    np.testing.assert_allclose(found.matrix[:3, 3], (9, -6, 4), atol=0.5)
    with pytest.raises(DataError, match="is not the FLAIR"):
        find_position(a, b, (paths[1], paths[0]))


def test_the_command_tells_two_thresholds_apart(
    segmenter: Segmenter, write_subject: Callable[..., Path], tmp_path: Path
) -> None:
    phantom = make_phantom(0, shape=(34, 38, 30), spacing_mm=(6, 6, 6))
    folder = write_subject(tmp_path / "data", phantom, "brats", id="case")
    for name, value in (("low", 0.3), ("high", 0.8)):
        list(
            segmenter.segment_cohort(
                [folder], tmp_path / name, settings=RunSettings(threshold=value)
            )
        )
    low, high = (tmp_path / name / "case.nii.gz" for name in ("low", "high"))
    words = ["compare", str(low), str(high), "--out", str(tmp_path / "d.nii.gz")]
    words += ["--table", str(tmp_path / "d.tsv")]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("\n") == 1, "an object a line"
    said = json.loads(done.stdout)
    assert (said["position"], said["differs"], said["warnings"]) == ("same scan", ["threshold"], [])
    assert said["a"]["scans"] == ["FLAIR", "T2w"]
    assert said["difference_ml"] < 0
    assert {lesion["change"] for lesion in said["lesions"]} <= {"shrunk", "gone", "same"}
    rows = (tmp_path / "d.tsv").read_text().splitlines()
    assert len(rows) == 1 + len(said["lesions"])
    assert rows[0].split("\t")[:3] == ["change", "ids_a", "ids_b"]
    difference = read_nifti(tmp_path / "d.nii.gz", allow_constant=True)[0]
    assert not difference.data.any()  # the masks differ, the maps do not
    assert CliRunner().invoke(app, words).exit_code == 2  # both files exist
    text = CliRunner().invoke(app, [*words, "--force"])
    assert "ml before" in text.stdout
    assert CliRunner().invoke(app, [*words, "--scan-a", str(low)]).exit_code == 2
    (high.parent / "case_mask.nii.gz").unlink()
    assert CliRunner().invoke(app, [*words, "--force"]).exit_code == 3


BESIDE = ("_mask.nii.gz", ".json", "_lesions.tsv")


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_another_mask_of_a_map_is_found_with_its_map(
    segmenter: Segmenter, write_subject: Callable[..., Path], tmp_path: Path
) -> None:
    phantom = make_phantom(0, shape=(34, 38, 30), spacing_mm=(6, 6, 6))
    folder = write_subject(tmp_path / "data", phantom, "brats", id="sub-01")
    own, strict = tmp_path / "map.nii.gz", tmp_path / "strict.nii.gz"
    segmenter.segment_files(folder, out=own)
    assert run("threshold", own, "--threshold", "0.8", "--out", strict).exit_code == 0
    done = run("compare", own, strict, "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["differs"] == ["threshold"]
    assert [said[name]["mask"] for name in "ab"] == ["map_mask.nii.gz", "strict.nii.gz"]
    assert [said[name]["map"] for name in "ab"] == ["map.nii.gz"] * 2
    assert said["difference_ml"] < 0
    for given in (own, strict):
        read = [given.with_name(given.name.replace(".nii.gz", end)) for end in BESIDE]
        for name in [*filter(Path.exists, read), strict]:
            before = name.read_bytes()
            refused = run("compare", strict, given, "--table", name, "--force")
            assert (refused.exit_code, "is the input" in refused.stderr) == (2, True), name
            assert name.read_bytes() == before

    alone = tmp_path / "alone.nii.gz"
    segmenter.segment_files({"FLAIR": folder / "sub-01_flair.nii.gz"}, out=alone)
    other = run("compare", own, alone)
    assert "Made with different scans\n  FLAIR and T2w before, FLAIR after" in other.stdout
    assert other.stderr == ""
    write_nifti(strict, read_nifti(strict)[0].data * 0, make_grid((34, 38, 30), np.eye(4)))
    changed = run("compare", own, strict)
    assert (changed.exit_code, "is not the mask that" in changed.stderr) == (3, True)
    beside = tmp_path / "map_mask.nii.gz"
    write_nifti(beside, read_nifti(beside)[0].data * 0, make_grid((34, 38, 30), np.eye(4)))
    edited = run("compare", own, alone)
    assert (edited.exit_code, f"{beside} is not the mask that" in edited.stderr) == (3, True)
    own.rename(tmp_path / "moved.nii.gz")
    missing = run("compare", strict, alone)
    assert (missing.exit_code, "its map map.nii.gz is not beside it" in missing.stderr) == (3, True)


def test_a_mask_given_as_a_map_is_called_one_and_its_map_is_named(
    bundle: Path, write_subject: Callable[..., Path], tmp_path: Path
) -> None:
    phantom = make_phantom(0, shape=(34, 38, 30), spacing_mm=(6, 6, 6))
    folder = write_subject(tmp_path / "data", phantom, "brats", id="01")
    words = ("segment", folder, "--weights", bundle, "--device", "cpu")
    own, strict = tmp_path / "map.nii.gz", tmp_path / "strict.nii.gz"
    for where in (("--out", own), ("--bids-out", tmp_path)):
        assert run(*words, *where).exit_code == 0
    assert run("threshold", own, "--threshold", "0.8", "--out", strict).exit_code == 0
    (in_bids,), (mask_in_bids,) = (
        list(tmp_path.glob(f"sub-01/anat/*_{end}.nii.gz")) for end in ("probseg", "mask")
    )
    mask = tmp_path / "map_mask.nii.gz"
    stray = tmp_path / "stray.nii.gz"
    stray.write_bytes(mask.read_bytes())
    for given, named in ((mask, own), (strict, own), (mask_in_bids, in_bids), (stray, None)):
        before = given.read_bytes()
        refused = [run("threshold", given, "--force")]
        refused += [run("compare", own, given)] if given != strict else []  # which has a record
        for result in refused:
            assert result.exit_code == 3
            assert f"{given} is a mask, and no anomaly map" in result.stderr
            help = f"the map beside it: {named}" if named else "the map that it was made from"
            assert help in result.stderr
        assert given.read_bytes() == before
    scan = next(folder.glob("*_flair.nii.gz"))
    assert "There is no record" in run("threshold", scan, "--force").stderr


def test_two_people_are_told_apart_where_their_labels_say_it() -> None:
    def named(subject: str, scan: str) -> Result:
        made = result({}, scan=scan)
        return replace(made, record={**made.record, "subject": subject})

    remark = others_remark(named("sub-01_ses-a", "one"), named("sub-02_ses-a", "two"))
    assert "sub-01 and sub-02" in str(remark)
    assert others_remark(named("sub-01_ses-a", "one"), named("sub-01_ses-b", "two")) is None
    assert others_remark(named("2021", "one"), named("2023", "two")) is None
    assert others_remark(named("sub-01", "one"), named("sub-02", "one")) is None


def test_scans_whose_hashes_are_not_known_are_not_the_same() -> None:
    settings = {"reference_to_template": np.eye(4).tolist()}
    for unknown in ("", None):
        a, b = (result({}, scan=unknown, settings=settings) for _ in range(2))  # type: ignore[arg-type]
        position = find_position(a, b)
        assert (position.by, position.remark is None) == ("template", False)
        a.record["subject"], b.record["subject"] = "sub-01", "sub-02"  # type: ignore[index]
        assert "sub-01 and sub-02" in str(others_remark(a, b))


def test_a_lesion_is_looked_for_within_its_box(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = {(6, 6, 8): 4, (12, 12, 12): 2, (6, 14, 12): 3}
    a, b = result(edges), result({**edges, (12, 12, 12): 3})
    sizes, isin = list[int](), np.isin
    monkeypatch.setattr(np, "isin", lambda of, ids: sizes.append(of.size) or isin(of, ids))
    assert len(compare(a, b, find_position(a, b)).lesions) == 3
    assert sizes
    assert max(sizes) <= 64
