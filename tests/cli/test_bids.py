"""`mmccd bids` and `mmccd segment --bids-out` on a tiny data set, checked by the BIDS validator."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from mmccd_cli.cli.app import app
from mmccd_cli.cli.bids import repeat_options
from mmccd_cli.inputs.nifti import make_grid, write_nifti
from mmccd_cli.inputs.phantom import Phantom

Call = Callable[..., Result]
_LEVELS = ("participant", "group")
_MAP = "space-orig_desc-anomaly_probseg"


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory, tiny_phantom: Phantom) -> Path:
    """A BIDS data set: runs and contrast agent in sub-01, two sessions in sub-02, sub-03 broken."""
    root = tmp_path_factory.mktemp("study") / "raw"
    grid = make_grid(tiny_phantom.brain.shape, tiny_phantom.affine)
    names = {
        "sub-01/anat/sub-01_run-1_FLAIR": "FLAIR",
        "sub-01/anat/sub-01_run-2_FLAIR": "FLAIR",
        "sub-01/anat/sub-01_T2w": "T2w",
        "sub-01/anat/sub-01_ce-gd_T1w": "T1w",
        "sub-02/ses-a/anat/sub-02_ses-a_FLAIR": "FLAIR",
        "sub-02/ses-b/anat/sub-02_ses-b_T2w": "T2w",
        "sub-03/anat/sub-03_FLAIR": "FLAIR",
    }
    for name, modality in names.items():
        path = root / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(path, tiny_phantom.volumes[modality].data, grid)
    path.write_bytes(path.read_bytes()[:2000])
    description = {"Name": "Tiny", "BIDSVersion": "1.10.0", "Authors": ["A. Uthor", "B. Uthor"]}
    (root / "dataset_description.json").write_text(json.dumps(description))
    return root


@pytest.fixture(scope="module")
def first_run(mmccd: Call, data_set: Path) -> tuple[Result, Path]:
    """What a run over all participants said, and where it wrote."""
    out = data_set.parent / "out"
    return mmccd("bids", data_set, out, "participant", "--json"), out


def _issues(root: Path) -> list[str]:
    """Everything that the BIDS validator has to say about a data set, warnings too."""
    beside = Path(sys.executable).parent  # of an environment that was not activated
    program = shutil.which("bids-validator-deno", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("no bids-validator-deno; pip install bids-validator-deno")
    done = subprocess.run(
        [program, str(root), "--format", "json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if not done.stdout.startswith("{"):
        pytest.skip(f"bids-validator-deno does not run here: {done.stderr[:200]}")
    found = json.loads(done.stdout)["issues"]["issues"]
    return [f"{i['severity']} {i['code']} {i.get('location')}" for i in found]


def _image(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def _lesion_rows(anat: Path) -> list[list[str]]:
    (table,) = anat.glob("*_dseg.tsv")
    return [line.split("\t") for line in table.read_text().splitlines()]


def _table(mmccd: Call, out: Path) -> str:
    """What the level group writes; it also tells that a session had failed."""
    assert mmccd("bids", "unused", out, "group").exit_code in (0, 6)
    return (out / "summary.tsv").read_text()


def test_a_broken_participant_stops_none_of_the_others(first_run: tuple[Result, Path]) -> None:
    result, out = first_run
    assert result.exit_code == 6, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert {record["subject"]: record["status"] for record in records} == {
        "sub-01": "done",
        "sub-02_ses-a": "done",
        "sub-02_ses-b": "done",
        "sub-03": "failed",
    }
    assert not (out / "sub-03").exists()


def test_the_derivatives_are_valid(first_run: tuple[Result, Path]) -> None:
    assert _issues(first_run[1]) == []


def test_the_validator_would_object(first_run: tuple[Result, Path], tmp_path: Path) -> None:
    spoilt = shutil.copytree(first_run[1], tmp_path / "spoilt")
    (map_file,) = (spoilt / "sub-01").glob("anat/*_probseg.nii.gz")
    map_file.rename(map_file.with_name("sub-01_anomaly.nii.gz"))
    assert any("error" in issue for issue in _issues(spoilt))


def test_sidecars_say_what_was_used(first_run: tuple[Result, Path]) -> None:
    anat = first_run[1] / "sub-01" / "anat"
    record = json.loads((anat / f"sub-01_{_MAP}.json").read_text())
    flair = "bids:raw:sub-01/anat/sub-01_run-1_FLAIR.nii.gz"
    assert record["Sources"] == [flair, "bids:raw:sub-01/anat/sub-01_T2w.nii.gz"]
    assert record["SpatialReference"] == flair
    keys = {"Description", "Sources", "SpatialReference", "Manual", "mmccd"}
    assert record.keys() == keys  # PyBIDS takes `subject` beside them for an entity
    ignored = {entry["file"]: entry["reason"] for entry in record["mmccd"]["ignored"]}
    assert "another run" in ignored["sub-01_run-2_FLAIR.nii.gz"]
    assert "contrast-enhanced" in ignored["sub-01_ce-gd_T1w.nii.gz"]
    mask = json.loads((anat / "sub-01_space-orig_label-L_desc-mmccd_mask.json").read_text())
    assert mask["Type"] == "Lesion"
    assert mask["Sources"] == [f"bids::sub-01/anat/sub-01_{_MAP}.nii.gz"]


def test_numbered_lesions_are_those_of_the_table(first_run: tuple[Result, Path]) -> None:
    anat = first_run[1] / "sub-01" / "anat"
    numbers = _image(anat / "sub-01_space-orig_desc-lesions_dseg.nii.gz")
    mask = _image(anat / "sub-01_space-orig_label-L_desc-mmccd_mask.nii.gz")
    np.testing.assert_array_equal(numbers > 0, mask > 0)
    header, *rows = _lesion_rows(anat)
    assert header[:3] == ["index", "name", "volume_ml"]
    assert rows
    for row in rows:
        assert float(row[2]) == pytest.approx((numbers == int(row[0])).sum() * 0.064, rel=1e-4)
    record = json.loads((anat / f"sub-01_{_MAP}.json").read_text())["mmccd"]
    outside = (_image(anat / f"sub-01_{_MAP}.nii.gz") > record["threshold"]) & (mask == 0)
    left_out = [*record["left_out"], record["left_out_small"]]
    assert sum(part["volume_ml"] for part in left_out) == pytest.approx(outside.sum() * 0.064)
    assert {path.name for path in anat.glob("*.tsv")} == {record["outputs"]["lesion_table"]}


def test_a_new_threshold_renews_all_that_shows_the_mask_without_inference(
    first_run: tuple[Result, Path], mmccd: Call, data_set: Path, tmp_path: Path
) -> None:
    """`mmccd threshold` leaves what `--resume` with that threshold leaves."""
    outs = [shutil.copytree(first_run[1], tmp_path / name) for name in ("resumed", "cut")]
    resumed, cut = (out / "sub-01" / "anat" for out in outs)
    (outs[0] / "dataset_description.json").unlink()  # its links are relative to where it was
    words = ("bids", data_set, outs[0], "participant", "--participant_label", "sub-01")
    assert "exist already" in mmccd(*words).stderr
    again = mmccd(*words, "--resume")
    assert again.exit_code == 0, again.stderr
    assert "up to date" in again.stderr
    numbers = _image(resumed / "sub-01_space-orig_desc-lesions_dseg.nii.gz")
    higher = mmccd(*words, "--resume", "--threshold", "0.9")
    assert higher.exit_code == 0, higher.stderr
    assert "new mask" in higher.stderr
    fewer = _image(resumed / "sub-01_space-orig_desc-lesions_dseg.nii.gz")
    assert 0 < (fewer > 0).sum() < (numbers > 0).sum()
    assert len(_lesion_rows(resumed)) == fewer.max() + 1
    assert json.loads(next(resumed.glob("*_mask.json")).read_text())["Threshold"] == 0.9
    (map_file,) = cut.glob("*_probseg.nii.gz")
    tables = [_table(mmccd, outs[1])]
    result = CliRunner().invoke(app, ["threshold", str(map_file), "--threshold", "0.9", "-f"])
    tables.append((outs[1] / "summary.tsv").read_text())
    assert tables[0] != tables[1] == _table(mmccd, outs[1])
    assert result.exit_code == 0, result.stderr
    assert "still shows" not in result.stderr
    for kind in ("_mask.nii.gz", "_mask.json", "_dseg.nii.gz", "_dseg.tsv", "_dseg.json"):
        (one,), (other,) = resumed.glob(f"*{kind}"), cut.glob(f"*{kind}")
        assert one.read_bytes() == other.read_bytes(), kind
    sidecars = [json.loads(next(a.glob("*_probseg.json")).read_text()) for a in (resumed, cut)]
    records = [sidecar.pop("mmccd") for sidecar in sidecars]
    assert sidecars[0] == sidecars[1]
    for name in ("outputs", "lesions", "left_out", "left_out_small", "warnings"):
        assert records[0][name] == records[1][name]
    assert records[0]["output_sha256"] == records[1]["output_sha256"]
    assert _issues(outs[1]) == []


def test_a_result_of_0_2_0_moves_its_record_under_one_key_without_inference(
    first_run: tuple[Result, Path], mmccd: Call, data_set: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(first_run[1], tmp_path / "out")
    (out / "dataset_description.json").unlink()  # its links are relative to where it was
    path = out / "sub-01" / "anat" / f"sub-01_{_MAP}.json"
    sidecar = json.loads(path.read_text())
    record = sidecar.pop("mmccd")
    left_out = [record.pop(name) for name in ("left_out", "left_out_small")]
    path.write_text(json.dumps(record | sidecar))
    words = ("bids", data_set, out, "participant", "--participant_label", "sub-01", "--resume")
    again = mmccd(*words)
    assert "new mask" in again.stderr, again.stderr
    moved = json.loads(path.read_text())
    assert moved.keys() == {*sidecar, "mmccd"}
    assert not moved["mmccd"].keys() & sidecar.keys()
    assert [moved["mmccd"][name] for name in ("left_out", "left_out_small")] == left_out
    assert "up to date" in mmccd(*words).stderr


def test_pybids_reads_the_derivatives(first_run: tuple[Result, Path]) -> None:
    bids = pytest.importorskip("bids")
    root = str(first_run[1])
    for options in ({"validate": False}, {"is_derivative": True}):
        layout = bids.BIDSLayout(root, **options)
        (found,) = layout.get(subject="01", desc="anomaly", extension=".nii.gz")
        assert found.get_entities()["suffix"] == "probseg"
        assert found.get_metadata()["mmccd"]["subject"] == "sub-01"


def test_reports_have_an_index_that_leads_to_them_and_back(
    mmccd: Call, data_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    wanted = ["participant", "--participant-label", "01", "02", "--report"]
    done = mmccd("bids", data_set, out, *wanted)
    assert done.exit_code == 0, done.stderr
    index = out / "index.html"
    written = index.read_text("utf-8")
    links = re.findall(r'<a href="([^"]*_report.html)">', written)
    assert sorted(links) == [
        "sub-01/figures/sub-01_report.html",
        "sub-02/ses-a/figures/sub-02_ses-a_report.html",
        "sub-02/ses-b/figures/sub-02_ses-b_report.html",
    ]
    for link in links:
        (back,) = re.findall(r'<a href="([^"]*index.html)">', (out / link).read_text("utf-8"))
        assert (out / link).parent.joinpath(back).resolve() == index.resolve()
    assert _issues(out) == []
    index.unlink()
    _table(mmccd, out)
    assert index.read_text("utf-8") == written
    index.write_text("mine")
    refused = mmccd("bids", data_set, out, *wanted, "--force")
    assert refused.exit_code == 2
    assert "index.html exists already" in refused.stderr


def test_group_writes_one_table(
    first_run: tuple[Result, Path], mmccd: Call, tmp_path: Path
) -> None:
    out = shutil.copytree(first_run[1], tmp_path / "out")
    header, *rows = [row.split("\t") for row in _table(mmccd, out).splitlines()]
    assert [row[:2] for row in rows] == [
        ["sub-01", "done"],
        ["sub-02_ses-a", "done"],
        ["sub-02_ses-b", "done"],
        ["sub-03", "failed"],
    ]
    assert header[2] == "lesion_volume_ml"
    found = {path.name for path in (out / "group").iterdir()}
    assert found >= {"frequency.nii.gz", "lesions.tsv", "index.html"}
    assert _issues(out) == []
    (out / "sub-01" / "anat" / f"sub-01_{_MAP}.json").write_text("{")
    partial = mmccd("bids", "unused", out, "group")
    assert partial.exit_code == 6, partial.stderr
    assert f"sub-01 is left out: sub-01_{_MAP}.json holds no record" in partial.stderr
    nothing = mmccd("bids", "unused", tmp_path / "nothing", "group")
    assert nothing.exit_code == 3
    assert "There is no folder" in nothing.stderr


def test_a_session_that_failed_is_told_until_it_is_done(
    first_run: tuple[Result, Path], mmccd: Call, data_set: Path, tmp_path: Path
) -> None:
    raw, out = (shutil.copytree(path, tmp_path / path.name) for path in (data_set, first_run[1]))
    participant, group = (partial(mmccd, "bids", raw, out, level) for level in _LEVELS)
    again = participant("--participant-label", "01", "--report", "--force")
    assert again.exit_code == 0, again.stderr
    assert "sub-03" in (out / "index.html").read_text("utf-8")
    told = group()
    assert told.exit_code == 6
    assert "3 results, 1 failed" in told.stderr
    assert re.search(r"sub-03  sub-03_FLAIR.nii.gz is damaged", told.stderr)
    assert "sub-03_FLAIR.nii.gz is damaged" in (out / "index.html").read_text("utf-8")
    assert str(tmp_path) not in "".join(p.read_text() for p in (out / "log").iterdir())
    assert _issues(out) == []
    shutil.move(raw / "sub-03", tmp_path / "left out")
    assert group().exit_code == 0  # nobody asks for it any more
    shutil.move(tmp_path / "left out", raw / "sub-03")
    good = raw / "sub-02" / "ses-a" / "anat" / "sub-02_ses-a_FLAIR.nii.gz"
    shutil.copy(good, raw / "sub-03" / "anat" / "sub-03_FLAIR.nii.gz")
    assert participant("--participant-label", "03").exit_code == 0
    done = group()
    assert (done.exit_code, "4 results: " in done.stderr) == (0, True)
    assert "\nsub-03\tdone\t" in (out / "summary.tsv").read_text()
    assert not list((out / "log").iterdir())


def test_a_dry_run_says_which_files_are_meant_and_writes_nothing(
    mmccd: Call, data_set: Path, tmp_path: Path
) -> None:
    words = ("bids", data_set, tmp_path / "out", "participant", "--dry-run", "--run", 2)
    result = mmccd(*words, "--participant-label", "01", "02", "--quiet", "--json")
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line)["subject"] for line in result.stdout.splitlines()] == [
        "sub-01",
        "sub-02_ses-a",
        "sub-02_ses-b",
    ]
    result = mmccd(*words, "--participant-label", "sub-01")
    assert "sub-01_run-2_FLAIR.nii.gz" in result.stderr
    assert "sub-01_run-2_space-orig" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["study"], 2, "is not one of 'participant', 'group'"),
        (["participant", "--skull-strip", "mask.nii.gz"], 2, "one brain mask"),
        (["participant", "--participant-label", "77"], 3, "no participant sub-77"),
        (["participant", "--bids-filter-file", "missing.json"], 2, "missing.json"),
    ],
)
def test_faults_of_the_mmccd(
    mmccd: Call, data_set: Path, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    result = mmccd("bids", data_set, tmp_path / "out", *words)
    assert result.exit_code == code
    assert said in " ".join(result.stderr.split())
    assert "Value error" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_shares_are_whole_and_do_not_overlap(mmccd: Call, data_set: Path, tmp_path: Path) -> None:
    said = [
        mmccd("bids", data_set, tmp_path / "out", "participant", "--dry-run", "--shard", f"{i}/2")
        for i in (1, 2)
    ]
    names = ("sub-01:", "sub-02_ses-a:", "sub-02_ses-b:", "sub-03:")
    for name in names:
        assert sum(f"\n{name}" in f"\n{result.stderr}" for result in said) == 1


def test_segment_writes_derivatives_of_any_folder(
    mmccd: Call, data_set: Path, tmp_path: Path
) -> None:
    case = tmp_path / "data" / "case_7"
    case.mkdir(parents=True)
    shutil.copy(data_set / "sub-02/ses-b/anat/sub-02_ses-b_T2w.nii.gz", case / "t2.nii.gz")
    out = tmp_path / "out"
    for contradiction in (["--out-dir", out], ["--space", "template"]):
        assert mmccd("segment", case, "--bids-out", out, *contradiction).exit_code == 2
    result = mmccd("segment", case, data_set / "sub-02" / "ses-a", "--bids-out", out, "-q")
    assert result.exit_code == 0, result.stderr
    record = json.loads((out / "sub-case7" / "anat" / f"sub-case7_{_MAP}.json").read_text())
    assert record["Sources"] == ["bids:data:case_7/t2.nii.gz"]
    assert (out / "sub-02" / "ses-a" / "anat" / f"sub-02_ses-a_{_MAP}.nii.gz").is_file()
    assert not (out / "summary.tsv").exists()
    assert _issues(out) == []


def test_labels_may_follow_their_option_in_a_row() -> None:
    words = ["in", "participant", "--label", "01", "02", "-v", "--label", "03", "--other", "4"]
    expected = [*words[:4], "--label", *words[4:]]
    assert repeat_options(words, ["--label"]) == expected
