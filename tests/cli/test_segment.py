"""The program as users meet it: outputs, messages and exit codes."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from mmccd_cli import __version__
from mmccd_cli.cli.app import app
from mmccd_cli.config import PRESETS, SamplingConfig, choose_sampling
from mmccd_cli.inputs.phantom import Phantom, make_phantom

ROOT = Path(__file__).resolve().parents[2]

Write = Callable[..., Path]
Run = Callable[..., Result]
Spoil = Callable[[Path], None]


@pytest.fixture
def subject(tmp_path: Path, write_subject: Write, tiny_phantom: Phantom) -> Path:
    """A folder of FLAIR, T2w and T1w."""
    return write_subject(tmp_path / "data", tiny_phantom, "brats", lesion=True)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"mmccd {__version__}\n")


def test_segment_writes_map_mask_and_record(run: Run, subject: Path, tmp_path: Path) -> None:
    result = run(subject, "--out", tmp_path / "map.nii.gz", "--picture", tmp_path / "look.png")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert "map.nii.gz" in result.stderr
    reference = nib.load(next(subject.glob("*flair.nii.gz")))
    values, mask = (nib.load(tmp_path / name) for name in ("map.nii.gz", "map_mask.nii.gz"))
    for image in (values, mask):
        assert image.shape == reference.shape
        np.testing.assert_array_equal(image.affine, reference.affine)
    data = np.asanyarray(values.dataobj)
    assert data.dtype == np.float32
    assert data.min() >= 0
    assert data.max() <= 1
    assert mask.get_data_dtype() == np.uint8
    assert (tmp_path / "look.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "map.json").read_text()
    assert not [named for named in (str(tmp_path), "/data/") if named in text]
    assert not re.search(r"(?<!candi)date", text)
    record = json.loads(text)
    voxels = np.asanyarray(mask.dataobj).sum()
    assert record["lesion_volume_ml"] == pytest.approx(voxels * 0.064, rel=1e-6)
    assert record["outputs"]["picture"] == "look.png"
    assert set(record["inputs"]) == {"FLAIR", "T2w", "T1w"}
    assert record["bundle"]["name"] == "tiny"
    assert record["settings"]["requested"]["threshold"] == "auto"


def test_a_scan_that_does_not_belong_is_left_out_of_the_result_and_stays_in_the_report(
    run: Run, subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def misfits(*_: object, **__: object) -> dict[str, str]:
        return {"T2w": "is another head's"}

    monkeypatch.setattr("mmccd_cli.preprocessing.subject.misfits", misfits)
    extras = ("--picture", tmp_path / "look.png", "--report", tmp_path / "look.html")
    result = run(subject, "--out", tmp_path / "with.nii.gz", *extras)
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / "with.json").read_text())
    assert record["warnings"][0].startswith("T2w is another head's. It was left out;")
    assert "T2w" in record["inputs"]
    assert "T2w" not in record["settings"]["score"]["modalities"]
    assert "is another head" in (tmp_path / "look.html").read_text()
    flair, t1w = (next(subject.glob(f"*{name}.nii.gz")) for name in ("flair", "t1"))
    assert run("--flair", flair, "--t1", t1w, "--out", tmp_path / "without.nii.gz").exit_code == 0
    for end in (".nii.gz", "_mask.nii.gz"):
        assert (tmp_path / f"with{end}").read_bytes() == (tmp_path / f"without{end}").read_bytes()


def test_separate_files(run: Run, subject: Path, tmp_path: Path) -> None:
    flair = next(subject.glob("*flair.nii.gz"))
    result = run("--flair", flair, "--out", tmp_path / "map.nii")
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / "map.json").read_text())
    assert list(record["inputs"]) == ["FLAIR"]
    assert record["settings"]["score"]["modalities"] == ["FLAIR"]
    assert (tmp_path / "map_mask.nii").is_file()


def test_json_is_all_of_stdout(run: Run, subject: Path, tmp_path: Path) -> None:
    result = run(subject, "--out", tmp_path / "map.nii.gz", "--json", "-vv")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout) == json.loads((tmp_path / "map.json").read_text())


def test_quiet_says_nothing(run: Run, subject: Path, tmp_path: Path) -> None:
    result = run(subject, "--out", tmp_path / "map.nii.gz", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_settings_reach_the_result(run: Run, subject: Path, tmp_path: Path) -> None:
    result = run(
        subject, "--out", tmp_path / "map.nii.gz", "--preset", "fast", "--seed", 7,
        "--threshold", "0.9", "--min-lesion", "0.5ml", "--threads", 1, "--batch-size", 3,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / "map.json").read_text())
    assert record["settings"]["sampling"]["method"] == "cyclic-unet"
    assert record["seed"] == 7
    assert record["threshold"] == 0.9
    assert record["settings"]["score"]["min_lesion_mm3"] == 500
    assert record["threads"] == 1
    values, mask = (
        np.asanyarray(nib.load(tmp_path / name).dataobj)
        for name in ("map.nii.gz", "map_mask.nii.gz")
    )
    assert (values[mask > 0] > 0.9).mean() > 0.9  # filled holes may lie below


def test_a_given_brain_mask_is_used(
    run: Run, subject: Path, tmp_path: Path, tiny_phantom: Phantom
) -> None:
    half = tiny_phantom.brain.copy()
    half[: half.shape[0] // 2] = False
    mask = tmp_path / "brain.nii.gz"
    nib.save(nib.Nifti1Image(half.astype(np.uint8), tiny_phantom.affine), mask)
    result = run(subject, "--out", tmp_path / "map.nii.gz", "--skull-strip", mask)
    assert result.exit_code == 0, result.stderr
    data = np.asanyarray(nib.load(tmp_path / "map.nii.gz").dataobj)
    assert data[~half].max() == 0
    assert data[half].max() > 0
    assert json.loads((tmp_path / "map.json").read_text())["inputs"]["brain_mask"]["file"]


# Input data that cannot be used: exit 3, one message, nothing written.


def _only_t1(folder: Path) -> None:
    for name in ("flair", "t2"):
        next(folder.glob(f"*_{name}.nii.gz")).unlink()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _truncated(folder: Path) -> None:
    path = next(folder.glob("*flair.nii.gz"))
    path.write_bytes(path.read_bytes()[:5000])


def _second_flair(folder: Path) -> None:
    path = next(folder.glob("*flair.nii.gz"))
    path.with_name("other_flair.nii.gz").write_bytes(path.read_bytes())


BAD_INPUTS: dict[str, tuple[Spoil, str]] = {
    "missing modality": (_only_t1, "T1w"),
    "empty folder": (_empty, "empty"),
    "an image that cannot be read": (_truncated, "flair.nii.gz"),  # of all kinds: test_nifti
    "two files for one modality": (_second_flair, "FLAIR"),
}


@pytest.mark.parametrize("kind", BAD_INPUTS)
def test_bad_input_exits_3_with_one_message_and_writes_nothing(
    run: Run, subject: Path, tmp_path: Path, kind: str
) -> None:
    spoil, named = BAD_INPUTS[kind]
    spoil(subject)
    before = _files(tmp_path)
    result = run(subject, "--out", tmp_path / "map.nii.gz", "--json")
    assert result.exit_code == 3, result.stderr
    (record,) = map(json.loads, result.stdout.splitlines())
    assert (record["status"], record["error"]["exit_code"]) == ("failed", 3)
    assert result.stderr.count("error:") == 1
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    assert _files(tmp_path) == before


# Usage: exit 2, nothing written.

USAGE = {
    "no subject": ["--out", "map.nii.gz"],
    "no output": ["SUBJECT"],
    "two outputs": ["SUBJECT", "--out", "map.nii.gz", "--out-dir", "out"],
    "many subjects, one output": ["SUBJECT", "SUBJECT", "--out", "map.nii.gz"],
    "folder and files": ["SUBJECT", "--t1", "a.nii.gz", "--out", "map.nii.gz"],
    "not a NIfTI name": ["SUBJECT", "--out", "map.png"],
    "no such output folder": ["SUBJECT", "--out", "nowhere/map.nii.gz"],
    "threshold": ["SUBJECT", "--out", "map.nii.gz", "--threshold", "2"],
    "volume": ["SUBJECT", "--out", "map.nii.gz", "--min-lesion", "10kg"],
    "preset": ["SUBJECT", "--out", "map.nii.gz", "--preset", "best"],
    "method": ["SUBJECT", "--out", "map.nii.gz", "--method", "magic"],
    "bands": ["SUBJECT", "--out", "map.nii.gz", "--band-stride", "7"],
    "batch": ["SUBJECT", "--out", "map.nii.gz", "--batch-size", "0"],
    "device": ["SUBJECT", "--out", "map.nii.gz", "--device", "abacus"],
    "stripper": ["SUBJECT", "--out", "map.nii.gz", "--skull-strip", "knife"],
    "null without list": ["SUBJECT", "--out", "map.nii.gz", "--null"],
    "picture": ["SUBJECT", "--out", "map.nii.gz", "--picture", "look.jpg"],
    "force and resume": ["SUBJECT", "--out", "map.nii.gz", "--force", "--resume"],
    "unknown option": ["SUBJECT", "--out", "map.nii.gz", "--magic"],
    "picture is the map's mask": ["SUBJECT", "--out-dir", "out", "--picture", "a/b.png"],
}


@pytest.mark.parametrize("kind", USAGE)
def test_usage_errors_exit_2(
    run: Run, subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = _files(tmp_path)
    result = run(*(str(subject) if word == "SUBJECT" else word for word in USAGE[kind]))
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr
    assert _files(tmp_path) == before


def test_existing_output_needs_force(run: Run, subject: Path, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text("mine")
    result = run(subject, "--out", tmp_path / "map.nii.gz")
    assert result.exit_code == 2
    assert (tmp_path / "map.json").read_text() == "mine"
    assert not (tmp_path / "map.nii.gz").exists()
    assert run(subject, "--out", tmp_path / "map.nii.gz", "-f").exit_code == 0
    assert json.loads((tmp_path / "map.json").read_text())["status"] == "done"


def test_an_input_is_never_overwritten(run: Run, subject: Path) -> None:
    flair = next(subject.glob("*flair.nii.gz"))
    content = flair.read_bytes()
    assert run(subject, "--out", flair, "--force").exit_code == 2
    assert flair.read_bytes() == content


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere"], 3, "nowhere"),
        (["BraTS-000", "--weights", "BraTS-000"], 4, "BraTS-000"),
        (["BraTS-000", "--device", "cuda:99"], 5, "cuda:99"),
    ],
)
def test_what_cannot_be_used_is_named_and_nothing_is_written(
    run: Run,
    subject: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(subject.parent)
    result = run(*words, "--out", "map.nii.gz")
    assert result.exit_code == code
    assert said in result.stderr
    assert _files(subject.parent) == {str(p.relative_to(subject.parent)) for p in subject.iterdir()}


def test_a_bug_is_one_sentence_and_a_traceback_only_with_vv(
    run: Run, subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmccd_cli.cohort.steps.JobSteps.write", lambda *_, **__: 1 / 0)
    result = run(subject, "--out", tmp_path / "map.nii.gz")
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stderr
    assert "-vv" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in run(subject, "--out", tmp_path / "map.nii.gz", "-vv").stderr


def test_a_full_disk_leaves_nothing_behind(
    run: Run, subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = _files(tmp_path)
    monkeypatch.setattr("mmccd_cli.files.os.fsync", refuse)
    result = run(subject, "--out", tmp_path / "map.nii.gz")
    assert result.exit_code == 5
    assert "No space left" in result.stderr
    assert "df -h" in result.stderr
    assert _files(tmp_path) == before


def test_dry_run_says_what_each_file_is_and_writes_nothing(
    run: Run, subject: Path, tmp_path: Path
) -> None:
    before = _files(tmp_path)
    result = run(subject, "--out", tmp_path / "map.nii.gz", "--dry-run", "--json", "--workers", 0)
    assert result.exit_code == 0, result.stderr
    assert _files(tmp_path) == before
    plan = json.loads(result.stdout)
    assert plan["status"] == "planned"
    assert plan["modalities"] == ["FLAIR", "T2w"]
    assert plan["inputs"]["T1w"]["file"].endswith("t1.nii.gz")


def test_dry_run_finds_what_headers_tell(run: Run, subject: Path, tmp_path: Path) -> None:
    (flair,) = subject.glob("*_flair.nii.gz")
    whole = nib.load(flair)
    values, words = np.asanyarray(whole.dataobj), (subject, "--out", tmp_path / "m.nii.gz")
    spoilt = {
        "holds 2 volumes": np.stack([values, values], axis=-1),
        "is a single slice": values[:, :, 20],
    }
    for said, data in spoilt.items():
        nib.save(nib.Nifti1Image(data, whole.affine), flair)
        result = run(*words, "--dry-run")
        assert (result.exit_code, said in result.stderr) == (3, True), result.stderr
    flair.write_text("no image")
    assert "The content is text" in run(*words, "--dry-run").stderr
    metres = np.diag([1e-3, 1e-3, 1e-3, 1]) @ whole.affine
    nib.save(nib.Nifti1Image(values, metres), flair)
    assert "cannot be a head" in run(*words, "--dry-run").stderr


@pytest.mark.parametrize("kind", ["stripper", "folder", "steps"])
def test_dry_run_refuses_what_the_run_itself_would(
    run: Run, subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    words: list[object] = [subject, "--out-dir", tmp_path / "out", "--skull-strip", "knife"]
    if kind == "folder":
        words = [subject, "--out-dir", tmp_path / "out"]
        monkeypatch.setattr(Path, "mkdir", _refused)
    if kind == "steps":
        words = [subject, "--out-dir", tmp_path / "out", "--steps", 1001]
    before = _files(tmp_path)
    results = [run(*words, *dry) for dry in ((), ("--dry-run",))]
    assert [result.exit_code for result in results] == [2, 2]
    assert results[0].stderr == results[1].stderr
    said = {"stripper": "knife", "folder": "out cannot be written", "steps": "more than the 1000"}
    assert said[kind] in results[1].stderr
    assert _files(tmp_path) == before


def _refused(*_: object, **__: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_dry_run_names_no_table_where_no_subject_can_be_used(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(tmp_path / "a", tmp_path / "b", "--out-dir", out, "--dry-run")
    assert "2 subjects: 2 failed" in result.stderr
    assert str(out) not in result.stderr


def test_dry_run_doubts_a_file_that_is_named_after_contrast_agent(
    run: Run, subject: Path, tmp_path: Path
) -> None:
    (flair,), (t1,) = subject.glob("*_flair.nii.gz"), subject.glob("*_t1.nii.gz")
    t1 = t1.rename(tmp_path / "t1c.nii.gz")
    words = ("--flair", flair, "--t1", t1, "--out", tmp_path / "m.nii.gz", "--dry-run")
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    assert "warning: t1c.nii.gz was given as T1w" in result.stderr
    (warning,) = json.loads(result.stdout)["warnings"]
    assert "contrast agent" in warning


# Many subjects.


@pytest.fixture
def cohort(tmp_path: Path, write_subject: Write, tiny_phantom: Phantom) -> list[Path]:
    """Three subjects of which the second cannot be read."""
    folders = [
        write_subject(tmp_path / "data", tiny_phantom, "brats", id=f"case-{n}") for n in "abc"
    ]
    _truncated(folders[1])
    return folders


def test_one_bad_subject_stops_none_of_the_others(
    run: Run, cohort: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run(*cohort, tmp_path / "nowhere", "--out-dir", out, "--json")
    assert result.exit_code == 6, result.stderr
    records = {item["subject"]: item for item in map(json.loads, result.stdout.splitlines())}
    assert {name: item["status"] for name, item in records.items()} == {
        "nowhere": "failed",
        "case-a": "done",
        "case-b": "failed",
        "case-c": "done",
    }
    assert records["case-b"]["error"]["exit_code"] == 3
    assert _files(out) == {
        f"case-{n}{end}"
        for n in "ac"
        for end in (".nii.gz", "_mask.nii.gz", ".json", "_lesions.tsv")
    } | {"summary.tsv"}
    assert "2 done, 2 failed" in result.stderr


def test_a_loop_of_links_stops_none_of_the_others(run: Run, subject: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    result = run(tmp_path / "loop", subject, "--out-dir", tmp_path / "out", "--dry-run")
    assert result.exit_code == 6, result.stderr
    assert "There is no folder" in result.stderr
    alone = run(tmp_path / "loop", "--out", tmp_path / "map.nii.gz", "--dry-run", "--json")
    assert alone.exit_code == 3, alone.stderr
    assert json.loads(alone.stdout)["subject"] == "loop"


def test_a_batch_gives_what_single_runs_give(run: Run, cohort: list[Path], tmp_path: Path) -> None:
    assert run(cohort[2], cohort[0], "--out-dir", tmp_path / "out").exit_code == 0
    assert run(cohort[0], "--out", tmp_path / "map.nii.gz", "--batch-size", 5).exit_code == 0
    both = (
        np.asanyarray(nib.load(path).dataobj)
        for path in (tmp_path / "out" / "case-a.nii.gz", tmp_path / "map.nii.gz")
    )
    np.testing.assert_allclose(*both, atol=1e-5)


@pytest.mark.parametrize("way", ["-", "--null", "--from"])
def test_lists_of_subjects(run: Run, cohort: list[Path], tmp_path: Path, way: str) -> None:
    folders = [str(cohort[0]), str(cohort[2])]
    text = "".join(f"{path}\0" if way == "--null" else f"{path}\n" for path in folders)
    (tmp_path / "list").write_text(text)
    words = ["--from", tmp_path / "list"] if way == "--from" else ["-"]
    words += ["--null"] if way == "--null" else []
    result = run(*words, "--out-dir", tmp_path / "out", "--dry-run", "--json", stdin=text)
    assert result.exit_code == 0, result.stderr
    names = [json.loads(line)["subject"] for line in result.stdout.splitlines()]
    assert names == ["case-a", "case-c"]


def test_an_empty_list_is_an_error(run: Run, tmp_path: Path) -> None:
    assert run("-", "--out-dir", tmp_path / "out", stdin="\n").exit_code == 2


def test_two_subjects_of_one_name_are_refused(
    run: Run, subject: Path, tmp_path: Path, write_subject: Write, tiny_phantom: Phantom
) -> None:
    other = write_subject(tmp_path / "other", tiny_phantom, "brats")
    result = run(subject, other, "--out-dir", tmp_path / "out")
    assert result.exit_code == 2
    assert str(other) in result.stderr
    assert not (tmp_path / "out").exists()
    # The same folder twice is no contradiction.
    assert run(subject, subject, "--out-dir", tmp_path / "out", "--dry-run").exit_code == 0


def test_resume_skips_what_is_up_to_date(run: Run, subject: Path, tmp_path: Path) -> None:
    words = (subject, "--out", tmp_path / "map.nii.gz", "--resume", "--json")
    assert json.loads(run(*words).stdout)["status"] == "done"
    assert json.loads(run(*words).stdout)["status"] == "skipped"
    again = json.loads(run(*words, "--threshold", "0.7").stdout)
    assert (again["status"], again["threshold"]) == ("done", 0.7)
    (tmp_path / "map_mask.nii.gz").unlink()
    assert json.loads(run(*words, "--threshold", "0.7").stdout)["status"] == "done"


def test_resume_compares_the_precision_that_was_asked_for(
    run: Run, subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmccd_cli.translation.devices.cpu_computes_bf16", lambda: True)
    words = (subject, "--out", tmp_path / "map.nii.gz", "--resume", "--json")
    runs = [run(*words, "--precision", p) for p in ("auto", "bf16", "bf16", "auto")]
    statuses = [json.loads(result.stdout)["status"] for result in runs]
    assert statuses == ["done", "done", "skipped", "done"]


def test_resume_overwrites_nothing_that_is_not_ours(
    run: Run, subject: Path, tmp_path: Path
) -> None:
    (tmp_path / "map.json").write_text('{"my": "thesis"}')
    assert run(subject, "--out", tmp_path / "map.nii.gz", "--resume").exit_code == 2
    assert (tmp_path / "map.json").read_text() == '{"my": "thesis"}'


@pytest.mark.parametrize("earlier", [None, "look.png"])
@pytest.mark.parametrize("way", [(), ("--threshold", "0.7"), ("--dry-run",)])
def test_resume_leaves_a_picture_that_is_not_the_result_s(
    run: Run, subject: Path, tmp_path: Path, earlier: str | None, way: tuple[str, ...]
) -> None:
    words = (subject, "--out", tmp_path / "map.nii.gz")
    asked = ("--picture", tmp_path / earlier) if earlier else ()
    assert run(*words, *asked).exit_code == 0
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"holiday")
    kept = {path: path.read_bytes() for path in tmp_path.glob("map*")}
    result = run(*words, "--picture", photo, "--resume", *way)
    assert result.exit_code == 2, result.stderr
    assert "photo.png exists already" in " ".join(result.stderr.split())
    assert photo.read_bytes() == b"holiday"
    assert kept == {path: path.read_bytes() for path in kept}
    photo.unlink()
    assert run(*words, "--picture", photo, "--resume").exit_code == 0
    assert photo.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("how", ["--out", "--out-dir"])
def test_resume_goes_on_where_a_record_is_damaged(
    run: Run, subject: Path, tmp_path: Path, how: str
) -> None:
    out, name = {
        "--out": (tmp_path / "map.nii.gz", str(tmp_path / "look.png")),
        "--out-dir": (tmp_path / "out", "look.png"),
    }[how]
    words = (subject, how, out, "--picture", name)
    assert run(*words).exit_code == 0
    (record,) = (path for path in tmp_path.rglob("*.json") if "data" not in path.parts)
    record.write_bytes(record.read_bytes()[:100])
    # Who chose the name of a picture must say that it may go; a subject's own name says it.
    assert run(*words, "--resume").exit_code == (2 if how == "--out" else 0)
    assert run(*words, "--force").exit_code == 0
    assert "up to date" in run(*words, "--resume").stderr


# A demonstration.


def test_demo(mmccd: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = partial(make_phantom, shape=(50, 56, 46), spacing_mm=(4, 4, 4))
    monkeypatch.setattr("mmccd_cli.cohort.demo.make_phantom", small)
    result = mmccd("demo", "--out-dir", tmp_path / "demo")
    assert result.exit_code == 0, result.stderr
    assert "Dice" in result.stdout
    assert {"anomaly.nii.gz", "anomaly_mask.nii.gz", "anomaly.json", "anomaly.png"} < _files(
        tmp_path / "demo"
    )
    assert mmccd("demo", "--out-dir", tmp_path / "demo").exit_code == 2
    for path in (tmp_path / "demo").glob("anomaly*"):
        path.unlink()
    scan, *_ = (tmp_path / "demo" / "phantom").iterdir()
    own = scan.read_bytes()
    scan.write_bytes(b"my own scan")
    assert mmccd("demo", "--out-dir", tmp_path / "demo").exit_code == 2
    assert scan.read_bytes() == b"my own scan"
    scan.write_bytes(own)
    assert mmccd("demo", "--out-dir", tmp_path / "demo").exit_code == 0
    assert scan.read_bytes() == own


# Values of options.


def test_presets() -> None:
    default = SamplingConfig(num_inference_steps=2, seed=3)
    assert choose_sampling(default) == default
    assert choose_sampling(default, "fast").method == "cyclic-unet"
    paper = choose_sampling(default, "paper", num_inference_steps=50, band_width=None)
    assert (paper.num_inference_steps, paper.band_width, paper.band_stride) == (50, 16, 2)
    assert paper.seed == 3
    assert set(PRESETS) == {"fast", "balanced", "paper"}


def test_a_list_that_ends_its_lines_with_nul_is_told_of_null(run, tmp_path: Path) -> None:
    done = run("-", "--out-dir", tmp_path, stdin="one\0two\0")
    assert done.exit_code == 2
    assert "Add --null" in done.stderr
