"""A group: maps in the space of the template, tables and a page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mmccd_cli import Segmenter
from mmccd_cli.cli.app import app
from mmccd_cli.cohort.group import combine, find_members
from mmccd_cli.errors import DataError
from mmccd_cli.inputs.nifti import make_grid, read_nifti, write_nifti
from mmccd_cli.inputs.phantom import make_phantom

NAMES = ("case-a", "case-b", "case-c")


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory,
    segmenter: Segmenter,
    write_subject: Callable[..., Path],
) -> Path:
    """Results of three subjects in different orientations; do not change them."""
    folder = tmp_path_factory.mktemp("group")
    subjects = [
        write_subject(
            folder / "data",
            make_phantom(seed, shape=(40, 44, 36), spacing_mm=(5, 5, 5), orientation=orientation),
            id=name,
        )
        for seed, (name, orientation) in enumerate(zip(NAMES, ("RAS", "LPS", "PIR"), strict=True))
    ]
    list(segmenter.segment_cohort(subjects, folder / "out"))
    return folder / "out"


def _group(out: Path, bundle: Path, *words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["group", str(out), "--weights", str(bundle), *words])
    return done.exit_code, done.stdout, done.stderr


def test_a_group_has_maps_tables_and_a_page(
    results: Path, bundle: Path, segmenter: Segmenter, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(results, tmp_path / "out"))
    code, stdout, stderr = _group(out, bundle, "--json")
    assert code == 0, stderr
    said = json.loads(stdout)
    assert (said["subjects"], said["left_out"]) == (3, [])
    assert {path.name for path in (out / "group").iterdir()} == {
        *("frequency.nii.gz", "mean.nii.gz"),
        *("subjects.tsv", "lesions.tsv", "index.html"),
    }
    template = segmenter.bundle.template
    frequency, mean = (
        read_nifti(out / "group" / f"{name}.nii.gz", allow_constant=True)[0]
        for name in ("frequency", "mean")
    )
    np.testing.assert_allclose(frequency.affine, template.affine, atol=1e-4)
    thirds = np.round(frequency.data * 6) / 6  # of three subjects, or of two that show a voxel
    np.testing.assert_allclose(frequency.data, thirds, atol=1e-6)
    assert 0 < frequency.data.max() <= 1
    assert 0.5 < mean.data.max() <= 1
    rows = (out / "group" / "subjects.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows] == ["subject", *NAMES]
    head, *lesions = (out / "group" / "lesions.tsv").read_text().splitlines()
    records = [json.loads((out / f"{name}.json").read_text()) for name in NAMES]
    assert len(lesions) == sum(len(record["lesions"]) for record in records)
    first = dict(zip(head.split("\t"), lesions[0].split("\t"), strict=True))
    assert first["side"] in ("left", "right", "midline")
    assert float(first["template_x_mm"]) == pytest.approx(
        records[0]["lesions"][0]["template_ras_mm"][0], rel=1e-4
    )
    page = (out / "group" / "index.html").read_text()
    assert all(name in page for name in NAMES)
    assert page.count("data:image/jpeg") == 16
    assert _group(out, bundle)[0] == 2
    (out / "group" / "index.html").unlink()
    (out / "group" / "subjects.tsv").write_text("mine")
    assert _group(out, bundle)[0] == 2
    assert (out / "group" / "subjects.tsv").read_text() == "mine"
    assert _group(out, bundle, "--force")[0] == 0


def test_a_lesion_lies_where_it_lay_in_the_scan(results: Path, segmenter: Segmenter) -> None:
    member = find_members(results)[0][0]
    bundle = segmenter.bundle
    maps, used, left_out = combine([member], bundle.template, bundle.sha256)
    assert (len(used), left_out, maps.number) == (1, [], 1)
    found = np.argwhere(maps.frequency > 0)
    centre = bundle.template.affine[:3, :3] @ found.mean(axis=0) + bundle.template.affine[:3, 3]
    lesions = member.record["lesions"]
    weights = [lesion["volume_ml"] for lesion in lesions]
    expected = np.average([it["template_ras_mm"] for it in lesions], axis=0, weights=weights)
    np.testing.assert_allclose(centre, expected, atol=4)
    volume = maps.frequency.sum() * np.prod(bundle.template.spacing_mm) / 1000
    assert volume == pytest.approx(member.record["lesion_volume_ml"], rel=0.25)


def test_names_that_speak_of_a_space_are_not_mixed_up(
    results: Path, bundle: Path, tmp_path: Path
) -> None:
    records = {}
    for name, source in (("p_space-A", "case-a"), ("p_space-B", "case-b")):
        for path in results.glob(f"{source}*"):
            target = tmp_path / path.name.replace(source, name)
            target.write_bytes(path.read_bytes())
        records[name] = json.loads((tmp_path / f"{name}.json").read_text())
    code, _, stderr = _group(tmp_path, bundle)
    assert code == 0, stderr
    lines = (tmp_path / "group" / "subjects.tsv").read_text().splitlines()
    head, *rows = (line.split("\t") for line in lines)
    found = {cells[0]: dict(zip(head, cells, strict=True)) for cells in rows}
    assert found.keys() == records.keys()
    for name, row in found.items():
        sides = float(row["left_ml"]) + float(row["right_ml"])
        assert sides <= float(row["lesion_volume_ml"]) + 1e-3
        assert int(row["lesions"]) == len(records[name]["lesions"])
        largest = max(lesion["volume_ml"] for lesion in records[name]["lesions"])
        assert float(row["largest_lesion_ml"]) == pytest.approx(largest, rel=1e-4)


def test_results_of_other_weights_are_left_out_with_the_reason(
    results: Path, bundle: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(results, tmp_path / "out"))
    (out / "case-a.json").with_name("half.json").write_bytes((out / "case-a.json").read_bytes())
    for name, change in (("case-a", {"bundle": "0" * 64}), ("case-b", {"map": "1" * 64})):
        record = json.loads((out / f"{name}.json").read_text())
        if "bundle" in change:
            record["bundle"]["sha256"] = change["bundle"]
        else:
            record["output_sha256"]["map"] = change["map"]
        (out / f"{name}.json").write_text(json.dumps(record))
    (out / "torn.json").write_bytes((out / "case-c.json").read_bytes()[:300])
    shutil.copy(out / "case-c_mask.nii.gz", out / "torn_mask.nii.gz")
    (out / "split.json").write_text('{"val": []}')  # somebody else's
    for end in ("", "_mask"):
        shutil.copy(out / f"case-c{end}.nii.gz", out / f"bare{end}.nii.gz")
        write_nifti(out / f"other{end}.nii.gz", np.ones((2, 2, 2)), make_grid((2, 2, 2), np.eye(4)))
    done = CliRunner().invoke(
        app, ["threshold", str(out / "case-c.nii.gz"), "--out", str(out / "strict.nii.gz")]
    )
    assert done.exit_code == 0, "a mask that stands alone is no result"
    code, stdout, stderr = _group(out, bundle, "--json")
    assert code == 6, stderr
    said = json.loads(stdout)
    reasons = {it["subject"]: it["reason"] for it in said["left_out"]}
    assert said["subjects"] == 1
    assert reasons.keys() == {"case-a", "case-b", "half", "torn", "bare"}
    assert [it["subject"] for it in said["left_out"] if not it["failed"]] == ["case-a"]
    assert "no map" in reasons["half"]
    assert "torn.json holds no record: it is not JSON" in reasons["torn"]
    assert "torn is left out" in stderr
    assert "bare is left out: Its record bare.json is gone." in stderr
    page = (out / "group" / "index.html").read_text()
    assert "torn.json holds no record" in page
    assert str(tmp_path) not in page + stdout, "a page may be passed on"
    assert "other weights" in reasons["case-a"]
    assert "is not the map" in reasons["case-b"]
    assert "case-a is left out" in stderr


def test_weights_of_the_same_template_serve_in_place_of_those_that_made_the_results(
    results: Path, bundle: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(results, tmp_path / "out"))
    for name in NAMES:
        record = json.loads((out / f"{name}.json").read_text())
        record["bundle"]["sha256"] = "0" * 64
        (out / f"{name}.json").write_text(json.dumps(record))
    code, stdout, stderr = _group(out, bundle, "--json")
    assert code == 0, stderr
    assert json.loads(stdout)["subjects"] == 3
    for name in NAMES:
        record["bundle"]["template_sha256"] = None  # as in records of older versions
        (out / f"{name}.json").write_text(json.dumps(record))
    code, _, stderr = _group(out, bundle, "--force")
    assert code == 4
    assert "another template" in stderr


def test_a_folder_without_results_or_with_unknown_weights_is_refused(
    results: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no result"):
        find_members(tmp_path)
    done = CliRunner().invoke(app, ["group", str(results)])  # no weights are called so
    assert done.exit_code == 4
    assert "tiny 0.0.1" in done.stderr
    assert "--weights FOLDER" in done.stderr
    only_damaged = tmp_path / "case-a.json"
    only_damaged.write_bytes(b"{")
    shutil.copy(results / "case-a_mask.nii.gz", tmp_path)
    with pytest.raises(DataError, match="can be read") as caught:
        find_members(tmp_path)
    assert "case-a.json" in (caught.value.cause or "")
    assert not (results / "group").exists()
