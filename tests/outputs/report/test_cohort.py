"""The page over a folder of reports: sorted, linked, with what failed; kept over runs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from mmccd_cli.errors import DataError, UsageError
from mmccd_cli.outputs.record import Outcome, readable
from mmccd_cli.outputs.report.cohort import (
    check_cohort_page,
    report_path,
    write_cohort_page,
)
from mmccd_cli.outputs.report.page import SUMMARY, SUMMARY_VERSION

HOSTILE = '<script>alert(1)</script>"'


def write_report(folder: Path, subject: str, **changes: Any) -> None:
    """A report that holds nothing but its summary."""
    summary: dict[str, Any] = {
        "summary_version": SUMMARY_VERSION,
        "subject": readable(subject),
        "lesion_volume_ml": 1.0,
        "lesions": 1,
        "brain_litres": 1.4,
        "suspicion": 0.0,
        "signs": [],
        "warnings": 0,
        "thumbnail": "",
    }
    text = json.dumps(summary | changes).replace("<", r"\u003c")  # as pages are written
    block = f'<script type="application/json" id="{SUMMARY}">{text}</script>'
    report_path(folder, subject).write_text(block)


def shown(folder: Path) -> str:
    return (folder / "index.html").read_text("utf-8")


def rows(text: str) -> list[str]:
    """Subjects in the order of the table."""
    return re.findall(r'<a href="[^"]*">([^<]*)</a>', text)


def test_subjects_are_sorted_by_lesion_volume_and_every_column_has_its_key(tmp_path):
    for name, volume in (("a", 2.0), ("b", 30.0), ("c", 0.5)):
        write_report(tmp_path, name, lesion_volume_ml=volume, suspicion=volume / 60)
    write_cohort_page(tmp_path, [])
    assert rows(shown(tmp_path)) == ["b", "a", "c"]
    for key in ('data-key="30.0"', 'data-key="0.5"', 'aria-sort="descending"'):
        assert key in shown(tmp_path)


def test_totals_stand_above_the_table(tmp_path):
    for name, volume in (("a", 2.0), ("b", 30.0), ("c", 0.0)):
        write_report(tmp_path, name, lesion_volume_ml=volume)
    write_cohort_page(tmp_path, [Outcome("d", "failed", error=DataError("no"))])
    totals = re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", shown(tmp_path))
    assert dict(totals) == {
        "Reports": "3",
        "Failed": "1",
        "With a lesion": "2",
        "Lesions in all": "32.0 ml",
        "Median of a subject": "2.00 ml",
    }


def test_reports_of_bids_are_found_in_their_folders(tmp_path):
    folders = (".", "sub-01/figures", "sub-02/ses-a/figures", "elsewhere/figures", "sub-03/anat")
    for number, folder in enumerate(folders):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        write_report(tmp_path / folder, f"s{number}", result="0123456789abcdef")
    write_cohort_page(tmp_path, [])
    assert sorted(hrefs(shown(tmp_path))) == [
        "s0_report.html",
        "sub-01/figures/s1_report.html",
        "sub-02/ses-a/figures/s2_report.html",
    ]
    assert shown(tmp_path).count('data-result="0123456789abcdef"') == 3


def test_signs_of_failure_are_named(tmp_path):
    sign = {"name": "Brain volume", "value": "0.40 l", "suspicion": 1.0}
    write_report(tmp_path, "a", suspicion=1.0, signs=[sign])
    write_cohort_page(tmp_path, [])
    assert "Brain volume: 0.40 l" in shown(tmp_path)
    assert '<span class="bad">1.00</span>' in shown(tmp_path)


def test_names_are_escaped_and_links_lead_to_the_files(tmp_path):
    names = ["a b#c?d%e", os.fsdecode(b"caf\xe9"), "ünï", "<i>"]
    for name in names:
        write_report(tmp_path, name)
    error = DataError(HOSTILE, cause=HOSTILE, next_step=HOSTILE)
    write_cohort_page(tmp_path, [Outcome(HOSTILE, "failed", error=error)])
    text = shown(tmp_path)
    assert HOSTILE not in text
    assert "<i>" not in text
    links = {os.fsencode(unquote(href, errors="surrogateescape")) for href in hrefs(text)}
    assert links == {os.fsencode(report_path(tmp_path, name).name) for name in names}


def hrefs(text: str) -> list[str]:
    return re.findall(r'<a href="([^"]*)">', text)


def test_failures_come_with_their_reasons_and_without_folders(tmp_path):
    folder = tmp_path / "Jane Doe 1970" / "sub 1"
    error = DataError(
        f"{folder} is empty: no image in it.",
        cause=f"Or {folder}/flair.nii.gz is damaged.",
        next_step=f"gzip -t '{folder}/flair.nii.gz'",
    )
    bug = ValueError("array of /srv/data/x/y.nii is odd")
    write_cohort_page(
        tmp_path / "reports",
        [
            Outcome("sub 1", "failed", error=error, paths=(str(folder),)),
            Outcome("s2", "failed", error=bug),
        ],
    )
    text = shown(tmp_path / "reports")
    for part in ("sub 1 is empty: no image", "flair.nii.gz is damaged", "gzip -t", "ValueError"):
        assert part in text
    assert "y.nii is odd" in text
    for part in ("Jane", "/srv", str(tmp_path)):
        assert part not in text


def test_other_shares_failures_are_kept_until_they_are_done(tmp_path):
    table = tmp_path / "summary_shard-2-of-2.tsv"
    lines = (
        "subject\tstatus\terror",
        "/Jane Doe/s1\tfailed\t/Jane Doe/s1/a.nii: no brain",
        "s2\tfailed\tcut",
        "s3\tdone\t",
    )
    table.write_text("\n".join(lines) + "\n")
    write_cohort_page(tmp_path, [Outcome("s2", "done")], tables=[table, tmp_path / "absent.tsv"])
    assert "a.nii: no brain" in shown(tmp_path)
    assert "Jane" not in shown(tmp_path)
    assert ">s1<" in shown(tmp_path)
    assert ">s2<" not in shown(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"lesion_volume_ml": None},
        {"warnings": "3"},
        {"signs": [1]},
        {"signs": [{"name": HOSTILE, "value": "1", "suspicion": "2"}]},
        {"suspicion": -1},
        {"thumbnail": json.loads("[" * 700 + "]" * 700)},
    ],
)
def test_an_edited_report_blocks_none_of_the_others(tmp_path, changes):
    write_report(tmp_path, "edited", **changes)
    write_report(tmp_path, "whole")
    for name, content in (("deep", "[" * 99_000), ("nan", '{"lesion_volume_ml": NaN}')):
        report_path(tmp_path, name).write_text(
            f'<script type="application/json" id="{SUMMARY}">{content}</script>'
        )
    write_cohort_page(tmp_path, [])
    assert rows(shown(tmp_path)) == ["whole"]
    assert "edited_report.html" in shown(tmp_path)
    assert HOSTILE not in shown(tmp_path)


def test_only_pages_of_ours_are_replaced_and_read(tmp_path):
    check_cohort_page(tmp_path / "absent")
    (tmp_path / "a_report.html").write_bytes(b"\xff<p>not ours")
    write_cohort_page(tmp_path, [])
    check_cohort_page(tmp_path)
    assert rows(shown(tmp_path)) == []
    (tmp_path / "index.html").write_text("my homepage")
    with pytest.raises(UsageError, match=r"index\.html exists"):
        check_cohort_page(tmp_path)
