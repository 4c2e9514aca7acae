"""Records as they are read back: what cannot be read in full is no record, and names no place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from typer.testing import CliRunner, Result

from mmccd_cli import Segmenter
from mmccd_cli.cli.app import app
from mmccd_cli.cohort.jobs import RunSettings, plan_job
from mmccd_cli.cohort.steps import JobSteps
from mmccd_cli.inputs.phantom import make_phantom
from mmccd_cli.inputs.subjects import Subject, find_subject
from mmccd_cli.outputs.bids import BIDS_OUTPUTS
from mmccd_cli.outputs.record import read_record
from mmccd_cli.outputs.schema import AnyRecord

OneResult = tuple[Subject, Path]
NAN = float("nan")


@pytest.fixture(scope="module")
def result(
    tmp_path_factory: pytest.TempPathFactory,
    segmenter: Segmenter,
    write_subject: Callable[..., Path],
) -> OneResult:
    """A subject, and the folder of its result; do not change its files."""
    folder = tmp_path_factory.mktemp("result")
    phantom = make_phantom(0, shape=(34, 38, 30), spacing_mm=(6, 6, 6))
    subject = write_subject(folder / "data", phantom, "brats", id="case")
    list(segmenter.segment_cohort([subject], folder / "out"))
    return find_subject(subject), folder / "out"


@pytest.fixture
def received(result: OneResult, tmp_path: Path) -> Path:
    """A copy of the result in a folder of its own, beside something precious."""
    (tmp_path / "precious.txt").write_text("precious")
    return shutil.copytree(result[1], tmp_path / "received")


def threshold(folder: Path) -> Result:
    map_file = str(folder / "case.nii.gz")
    return CliRunner().invoke(app, ["threshold", map_file, "--threshold", "0.7", "--force"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def edit(folder: Path, where: str, value: Any) -> None:
    """Set, or with `...` remove, a field of the record, such as "lesions.0.peak"."""
    record = json.loads((folder / "case.json").read_text())
    *path, last = [int(key) if key.isdigit() else key for key in where.split(".")]
    part = record
    for key in path:
        part = part[key]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    (folder / "case.json").write_text(json.dumps(record))


EDITS = [
    *(("record_version", 2), ("record_version", True), ("record_version", ...)),
    *(("subject", ...), ("status", "failed"), ("status", "skipped"), ("status", ...)),
    *(("threshold", NAN), ("threshold", "0.5"), ("threshold", 10**400), ("threshold", ...)),
    *(("lesions", None), ("lesions", {}), ("lesions.0", 1), ("lesions.0.peak", "high")),
    *(("lesions.0.box", [1, 2, 3]), ("lesions.0.volume_ml", -1), ("lesion_volume_ml", None)),
    *(("versions", ...), ("versions", "0.2.0"), ("versions.mmccd", 2), ("versions.torch", [])),
    *(("settings", []), ("settings", ...), ("settings.requested", None), ("settings.score", [])),
    *(("settings.calibrated_mask", ...), ("settings.score.weights", ...)),
    *(("settings.score_threshold_of_this_scan", "1"), ("settings.calibrated_mask.threshold", 7)),
    *(("output_sha256", ...), ("output_sha256.map", 5), ("outputs", []), ("outputs.mask", ...)),
    *(("inputs", None), ("inputs.FLAIR", "x"), ("bundle", None), ("bundle.sha256", "short")),
    *(("warnings", "none"), ("warnings", [3]), ("reference", None), ("seconds", None)),
    *(("settings.requested.deep", json.loads("[" * n + "]" * n)) for n in (300, 700, 900)),
]
NAMES = ["../precious.txt", "sub/x.tsv", "..", ".", "", "a\0b", None]


@pytest.mark.parametrize(("where", "value"), EDITS)
def test_a_record_with_a_wrong_field_is_none(
    result: OneResult, received: Path, segmenter: Segmenter, where: str, value: Any
) -> None:
    edit(received, where, value)
    before = contents(received)
    refused = threshold(received)
    assert refused.exit_code == 3, refused.stderr
    assert "cause: " in refused.stderr
    assert contents(received) == before
    steps = JobSteps(pipeline=segmenter, settings=RunSettings(threshold=0.7))
    assert steps.find_previous(plan_job(result[0], received)) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 200_000, '{"mmccd": null}', '{"record_version": 1}']
)
def test_what_holds_no_record_is_refused_in_a_sentence(received: Path, text: str) -> None:
    (received / "case.json").write_text(text)
    assert read_record(received / "case.json") is None
    refused = threshold(received)
    assert refused.exit_code == 3
    assert "case.json holds no record that can be read in full" in refused.stderr


@pytest.mark.parametrize("kind", ["mask", "sidecar", "picture", *BIDS_OUTPUTS])
def test_a_record_cannot_name_a_place(received: Path, kind: str) -> None:
    before = contents(received.parent)
    for name in (*NAMES, str(received.parent / "precious.txt")):
        edit(received, f"outputs.{kind}", name)
        before["received/case.json"] = (received / "case.json").read_bytes()
        assert threshold(received).exit_code == 3, name
        assert contents(received.parent) == before


def test_files_are_named_after_the_map_whatever_its_record_says(received: Path) -> None:
    for kind in ("map", "mask", "sidecar", *BIDS_OUTPUTS):
        edit(received, f"outputs.{kind}", "summary.tsv")
    edit(received, "output_sha256.mask", "0" * 64)
    before = contents(received)
    done = threshold(received)
    assert done.exit_code == 0, done.stderr
    changed = {name for name, content in contents(received).items() if before[name] != content}
    assert changed == {"case_mask.nii.gz", "case_lesions.tsv", "case.json", "summary.tsv"}
    assert (received / "summary.tsv").read_text().startswith("subject\tstatus\t")


def test_a_link_that_leads_out_is_replaced_and_not_followed(received: Path) -> None:
    precious = received.parent / "precious.txt"
    record = received.parent / "record.json"
    (received / "case.json").rename(record)
    (received / "case.json").symlink_to(record)
    (received / "case_mask.nii.gz").unlink()
    (received / "case_mask.nii.gz").symlink_to(precious)
    (received / "summary.tsv").unlink()
    (received / "summary.tsv").symlink_to(precious)
    before = record.read_bytes()
    done = threshold(received)
    assert done.exit_code == 0, done.stderr
    assert (precious.read_text(), record.read_bytes()) == ("precious", before)
    assert not (received / "case_mask.nii.gz").is_symlink()
    assert read_record(received / "case.json")["threshold"] == 0.7


def test_with_resume_a_subject_whose_record_cannot_be_read_is_done_anew(
    result: OneResult, received: Path, segmenter: Segmenter
) -> None:
    edit(received, "lesions", None)
    folder = next(iter(result[0].paths.values())).parent
    (outcome,) = segmenter.segment_cohort([folder], received, resume=True)
    assert (outcome.status, outcome.from_map, outcome.error) == ("done", False, None)
    for name in ("case.nii.gz", "case_mask.nii.gz"):
        assert (received / name).read_bytes() == (result[1] / name).read_bytes()


@pytest.mark.parametrize(
    ("content", "is_ours"),
    [
        *((torn, True) for torn in (b"", b'{\n  "rec', b'{\n  "record_version": 1,\n  "su')),
        *((foreign, False) for foreign in (b"{}", b'{\n  "Modality": "MR"\n}', b"\0\0\0")),
    ],
)
def test_with_resume_a_damaged_record_without_images_is_replaced_if_it_is_ours(
    content: bytes, is_ours: bool, result: OneResult, received: Path, segmenter: Segmenter
) -> None:
    for path in received.glob("case*.nii.gz"):
        path.unlink()
    (received / "case.json").write_bytes(content)
    folder = next(iter(result[0].paths.values())).parent
    (outcome,) = segmenter.segment_cohort([folder], received, resume=True)
    assert outcome.status == ("done" if is_ours else "failed")
    if not is_ours:
        assert "Move it away" in (outcome.told.next_step or "")
        assert (received / "case.json").read_bytes() == content


def test_every_kind_of_record_fits_the_schema(
    result: OneResult, received: Path, bundle: Path, tmp_path: Path
) -> None:
    folder = next(iter(result[0].paths.values())).parent
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "flair.nii.gz").write_bytes(b"no image")
    words = ["segment", str(folder), str(tmp_path / "broken"), "--out-dir", str(received)]
    words += ["--weights", str(bundle), "--device", "cpu", "--preset", "fast", "--json"]
    ways = (["--resume"], ["--dry-run", "--force"])
    runs = [CliRunner().invoke(app, [*words, *way]) for way in ways]
    records = [json.loads(line) for run in runs for line in run.stdout.splitlines()]
    records.append(json.loads((received / "case.json").read_text()))
    found = [TypeAdapter(AnyRecord).validate_json(json.dumps(each)).status for each in records]
    assert set(found) == {"done", "skipped", "failed", "planned"}
    schema = json.loads(CliRunner().invoke(app, ["schema"]).stdout)
    parts = {name: part["properties"] for name, part in schema["$defs"].items()}
    assert parts["DoneRecord"].keys() == records[-1].keys()
    assert parts["LesionRecord"].keys() == records[-1]["lesions"][0].keys()
    assert "the end excluded" in parts["LesionRecord"]["box"]["description"]
    fields = [field for part in parts.values() for field in part.values()]
    assert all({"description", "$ref", "const"} & field.keys() for field in fields)
