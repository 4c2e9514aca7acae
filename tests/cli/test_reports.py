"""Reports of a cohort from the command line: kept over runs, and free of folders."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from report_cases import facts_of
from typer.testing import CliRunner, Result

from mmccd_cli.cli.app import app
from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.outputs.report import checks
from mmccd_cli.outputs.report.cohort import report_path
from mmccd_cli.outputs.report.data import ReportData

Mmccd = Callable[..., Result]


def rows(text: str) -> list[str]:
    """Subjects in the order of the table."""
    return re.findall(r'<a href="[^"]*">([^<]*)</a>', text)


def test_signs_of_failure_are_measured_once(
    mmccd: Mmccd,
    tmp_path: Path,
    write_subject: Callable[..., Path],
    tiny_phantom: Phantom,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured, measure = list[object](), checks._brain_checks

    def counted(data: ReportData) -> Iterator[checks.Check]:
        measured.append(data)
        return measure(data)

    monkeypatch.setattr(checks, "_brain_checks", counted)
    subject, page = write_subject(tmp_path, tiny_phantom), tmp_path / "report.html"
    done = mmccd("segment", subject, "--out", tmp_path / "map.nii.gz", "--report", page, "--json")
    assert done.exit_code == 0, done.output
    assert len(measured) == 1
    shown = re.search(r"<dt>Suspicion of failure</dt><dd>([0-9.]+)<", page.read_text("utf-8"))
    assert shown
    assert float(shown[1]) == pytest.approx(json.loads(done.stdout)["suspicion"], abs=0.0051)


def test_a_cohort_with_a_broken_subject_resumed(
    mmccd: Mmccd, tmp_path: Path, write_subject: Callable[..., Path], tiny_phantom: Phantom
) -> None:
    good = write_subject(tmp_path / "Jane Doe", tiny_phantom, "brats", id="good")
    broken = write_subject(tmp_path / "Jane Doe", tiny_phantom, "brats", id="broken")
    for file in broken.iterdir():
        file.write_bytes(file.read_bytes()[:500])
    reports = tmp_path / "reports"
    places = ["--out-dir", tmp_path / "out", "--report-dir", reports]
    first = mmccd("segment", good, broken, *places)
    assert first.exit_code == 6, first.output
    text = (reports / "index.html").read_text("utf-8")
    assert rows(text) == ["good"]
    assert "damaged" in text
    for path in (reports).iterdir():
        assert "Jane Doe" not in path.read_text("utf-8")  # "Jane" alone may occur in base64
        assert str(tmp_path) not in path.read_text("utf-8")
    before = report_path(reports, "good").stat().st_mtime_ns
    write_subject(tmp_path / "Jane Doe", tiny_phantom, "brats", id="broken")
    second = mmccd("segment", good, broken, *places, "--resume")
    assert second.exit_code == 0, second.output
    assert sorted(rows((reports / "index.html").read_text("utf-8"))) == ["broken", "good"]
    assert "<h2>Failed" not in (reports / "index.html").read_text("utf-8")
    assert report_path(reports, "good").stat().st_mtime_ns == before
    # Results that are gone are made again, and their reports with them.
    (reports / "broken_report.html").write_text("mine")
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    third = mmccd("segment", good, broken, *places, "--resume")
    assert third.exit_code == 6, third.output
    assert "run again with --force and without --resume" in third.output
    assert {path.name for path in (tmp_path / "out").glob("*.json")} == {"good.json"}
    assert report_path(reports, "good").stat().st_mtime_ns > before
    assert (reports / "broken_report.html").read_text() == "mine"


def test_the_line_of_a_report_makes_the_mask_that_it_shows(
    mmccd: Mmccd,
    tmp_path: Path,
    write_subject: Callable[..., Path],
    tiny_phantom: Phantom,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = write_subject(tmp_path / "data", tiny_phantom, "brats", id="s 1")
    monkeypatch.chdir(tmp_path)
    files = ["--out", "a map.nii.gz", "--report", "r.html", "--min-lesion", "100mm3"]
    assert mmccd("segment", subject, *files).exit_code == 0
    text = Path("r.html").read_text("utf-8")
    assert 'id="neighbours"' not in text  # one report is no cohort
    facts = facts_of(text)
    record = json.loads(Path("a map.json").read_text())
    own, said = facts["steps"][facts["own"]], list[str]()
    assert own["volume_ml"] == pytest.approx(record["lesion_volume_ml"])
    for step in (facts["steps"][2], facts["steps"][-2]):
        program, *words = shlex.split(step["command"])
        assert program == "mmccd"
        done = CliRunner().invoke(app, [*words, "--json"])
        assert done.exit_code == 0, done.output
        made = json.loads(done.stdout)
        assert made["lesion_volume_ml"] == pytest.approx(step["volume_ml"])
        assert len(made["lesions"]) == step["lesions"]
        assert made["settings"]["requested"]["min_lesion_mm3"] == 100
        said.append(done.stderr)
    for step, text in zip((facts["steps"][2], facts["steps"][-2]), said, strict=True):
        before = f"r.html still shows the mask of before (threshold {own['threshold']:g}"
        assert f"{before}, now {step['threshold']:g})" in text
    (line,) = re.findall("by mmccd (segment SUBJECT .* --force)", said[1])
    drawn = mmccd(*(str(subject) if word == "SUBJECT" else word for word in shlex.split(line)))
    assert drawn.exit_code == 0, drawn.stderr
    remade = json.loads(Path("a map.json").read_text())
    assert remade["output_sha256"] == made["output_sha256"]
    assert (remade["stale_outputs"], remade["outputs"]["report"]) == ({}, "r.html")
    assert mmccd("segment", subject, *files, "--force").exit_code == 0
    words = ["threshold", "a map.nii.gz", "--force", "--json", "--min-lesion"]
    for size in ("100mm3", "1ml"):  # the mask that the report shows
        same = CliRunner().invoke(app, [*words, size])
        assert "still shows" not in same.stderr
        made = json.loads(same.stdout)
        assert (made["stale_outputs"], made["outputs"]["report"]) == ({}, "r.html")
    again = mmccd("segment", subject, "--out", "a map.nii.gz", "--min-lesion", "20ml", "--resume")
    assert "new mask" in again.stderr
    assert "r.html still shows the mask of before (smallest lesion 1000, now" in again.stderr
    anew = mmccd("segment", subject, *files, "--resume")
    assert anew.exit_code == 0, anew.stderr
    assert "still shows" not in anew.stderr
    assert not json.loads(Path("a map.json").read_text()).get("stale_outputs")
    without = ["segment", subject, "--out", "a map.nii.gz", "--force", "--min-lesion"]
    assert "still shows" not in mmccd(*without, "100mm3").stderr
    assert json.loads(Path("a map.json").read_text())["outputs"]["report"] == "r.html"
    replaced = mmccd(*without, "20ml")
    assert "r.html still shows the mask of before (smallest lesion 100, now" in replaced.stderr
    assert "report" in json.loads(Path("a map.json").read_text())["stale_outputs"]


def test_report_options_that_cannot_be(mmccd: Mmccd, tmp_path: Path) -> None:
    subject = tmp_path / "s"
    for words, part in (
        (["--out", "m.nii.gz", "--report", "r.txt"], "not named .html"),
        (["--out", "m.nii.gz", "--report-dir", "r"], "any number of subjects"),
        (["--out-dir", "o", "--report-dir", "r", "--report", "r.html"], "both given"),
    ):
        result = mmccd("segment", subject, *words)
        assert result.exit_code == 2
        assert part in result.output


def test_nothing_that_is_written_or_printed_holds_a_folder(
    mmccd: Mmccd,
    tmp_path: Path,
    write_subject: Callable[..., Path],
    tiny_phantom: Phantom,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    home = Path("Jane Doe", "at home")
    cut = write_subject(home, tiny_phantom, "brats", id="cut")
    for file in cut.iterdir():
        file.write_bytes(file.read_bytes()[:500])
    (home / "empty").mkdir()
    unreadable = home / "dicom" / "Jane Doe 1970"
    unreadable.mkdir(parents=True)
    (unreadable / "DOE^JANE.dcm").write_bytes(bytes(128) + b"DICM" + bytes(300))
    flat = write_subject(home, tiny_phantom, "plain", id="flat")
    (flat / "flair.nii.gz").write_bytes(b"no image")
    folders = [cut, home / "empty", home / "gone", home / "dicom", flat, "elsewhere/empty"]
    result = mmccd("segment", *folders, "--out-dir", "out", "--report-dir", "reports", "--json")
    assert result.exit_code == 6, result.output
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["status"] for record in records] == ["failed"] * len(folders)
    names = {record["subject"] for record in records}
    assert names == {"cut", "empty (2)", "gone", "dicom", "flat", "empty (6)"}
    texts = [result.stdout, *(path.read_text() for path in Path("out").iterdir())]
    for text in [*texts, Path("reports", "index.html").read_text()]:
        for part in ("Jane Doe", "at home", "DOE^JANE", "elsewhere", str(tmp_path)):
            assert part not in text
    assert "at home" in result.stderr, "who typed it reads it whole"
    assert "DOE^JANE" not in result.stderr, "but for names of DICOM files"
