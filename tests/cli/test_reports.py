"""Reports of a cohort from the command line: kept over runs, and free of folders."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.outputs.report.cohort import report_path

Mmccd = Callable[..., Result]


def rows(text: str) -> list[str]:
    """Subjects in the order of the table."""
    return re.findall(r'<a href="[^"]*">([^<]*)</a>', text)


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
    assert "Failed" not in (reports / "index.html").read_text("utf-8")
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
