"""The page over all reports of a folder: sortable, searchable, with what failed and why."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from pydantic import BaseModel

from mmccd_cli.config import NotNegative, Share
from mmccd_cli.errors import UsageError, unwritable
from mmccd_cli.files import check_json, open_regular, write_atomically
from mmccd_cli.outputs.report.checks import verdict
from mmccd_cli.outputs.report.page import SUMMARY, SUMMARY_VERSION
from mmccd_cli.outputs.report.render import read_data_block, render

if TYPE_CHECKING:
    from mmccd_cli.outputs.record import Outcome

COHORT_PAGE = "index.html"
REPORT_SUFFIX = "_report.html"

_MARK = "mmccd-cohort"
_PLACES = ("", "sub-*/figures/", "sub-*/ses-*/figures/")  # the last two in BIDS derivatives
_HEAD_BYTES = 200_000  # a report's summary, with its thumbnail, lies within
_ANY_FOLDERS = re.compile(r"[/\\].*[/\\]")


class Sign(BaseModel):
    """A check that found something unusual; see `mmccd_cli.outputs.report.checks.Check`."""

    name: str
    value: str
    suspicion: Share


class ReportSummary(BaseModel):
    """What this page shows of a subject: the data block of its report."""

    subject: str
    result: str = ""  # reports before 0.4.0 have none
    lesion_volume_ml: NotNegative
    lesions: int
    brain_litres: NotNegative
    suspicion: Share
    signs: list[Sign]
    warnings: int
    thumbnail: str


class Failure(NamedTuple):
    """A subject that failed: what happened and its likely cause, and what helps if known."""

    name: str
    reason: str
    next_step: str


def report_path(report_dir: Path, subject: str) -> Path:
    """Return where a subject's report goes."""
    return report_dir / f"{subject}{REPORT_SUFFIX}"


def reports_in(folder: Path) -> list[Path]:
    """Return the files in a folder of reports, or in BIDS derivatives, that are named as such."""
    return sorted(path for place in _PLACES for path in folder.glob(f"{place}*{REPORT_SUFFIX}"))


def is_report(path: Path) -> bool:
    """Tell whether a file is a report about a subject, as this version writes it."""
    return _read_block(path, SUMMARY) is not None


def check_cohort_page(report_dir: Path) -> None:
    """Refuse to replace a page that is none of ours.

    Raises:
        UsageError: There is one.
    """
    path = report_dir / COHORT_PAGE
    if path.exists() and _read_block(path, _MARK) is None:
        raise UsageError(
            f"{path} exists already and is no page of mmccd's.",
            next_step="Move it away, or give another --report-dir.",
        )


def write_cohort_page(
    report_dir: Path,
    outcomes: Sequence[Outcome],
    *,
    tables: Iterable[Path] = (),
) -> None:
    """Write `index.html` over all reports that lie in a folder, of this run and of earlier ones.

    Args:
        report_dir: The folder; made where it is missing.
        outcomes: What became of this run's subjects.
        tables: `summary*.tsv` of the results' folder: what failed in other shares of the cohort.

    Raises:
        UsageError: The page cannot be written.
    """
    summaries: list[Mapping[str, Any]] = []
    failures = _failures(outcomes, tables)
    for path in reports_in(report_dir):
        if (block := _read_block(path, SUMMARY)) is None:
            continue
        try:
            check_json(ReportSummary, block)
            summaries.append(
                {"result": "", **block, "file": path.relative_to(report_dir).as_posix()}
            )
        except ValueError as error:
            reason = f"Its data block cannot be read in full: {error}."
            failures.append(Failure(path.name, reason, "Segment the subject anew."))
    try:
        report_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(report_dir / COHORT_PAGE, cohort_page(summaries, failures))
    except OSError as error:
        message = f"The page {report_dir / COHORT_PAGE} could not be written."
        raise unwritable(message, error) from error


def cohort_page(summaries: Sequence[Mapping[str, Any]], failures: Sequence[Failure]) -> bytes:
    """Return the page over reports' data blocks, each with its file, and over failures."""
    ordered = sorted(summaries, key=lambda summary: -summary["lesion_volume_ml"])
    volumes_ml = [summary["lesion_volume_ml"] for summary in ordered]
    return render(
        "cohort.html",
        scripts=("memory.js", "ratings.js", "cohort.js"),
        mark_id=_MARK,
        mark={"summary_version": SUMMARY_VERSION},
        subjects=[{**each, "link": quote(os.fsencode(each["file"]))} for each in ordered],
        failures=failures,
        totals={
            "Reports": str(len(ordered)),
            "Failed": str(len(failures)),
            "With a lesion": str(sum(volume > 0 for volume in volumes_ml)),
            "Lesions in all": f"{sum(volumes_ml):.1f} ml",
            "Median of a subject": f"{median(volumes_ml or [0]):.2f} ml",
        },
        verdict=verdict,
    )


def _failures(outcomes: Sequence[Outcome], tables: Iterable[Path]) -> list[Failure]:
    """What failed, in this run and according to the tables of others."""
    found: dict[str, Failure] = {}
    for table in tables:
        for name, message in _failed_rows(table):
            # Tables of before 0.4.0 hold paths: take away too much rather than too little.
            found[name] = Failure(_last_part(name), _ANY_FOLDERS.sub("", message), "")
    for outcome in outcomes:
        found.pop(outcome.name, None)
        if (error := outcome.told) is not None:
            reason = " ".join(part for part in (error.message, error.cause) if part)
            found[outcome.name] = Failure(_last_part(outcome.name), reason, error.next_step or "")
    return list(found.values())


def _failed_rows(table: Path) -> list[tuple[str, str]]:
    try:
        with table.open(encoding="utf-8", errors="replace", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    except OSError:
        return []
    return [
        (row["subject"], row.get("error") or "")
        for row in rows
        if row.get("status") == "failed" and row.get("subject")
    ]


def _last_part(name: str) -> str:
    return os.path.basename(name.rstrip("/\\")) or name


def _read_block(path: Path, id: str) -> dict[str, Any] | None:
    """Return a page's data block, None where it is not there or of another version."""
    try:
        with open_regular(path) as stream:
            head = stream.read(_HEAD_BYTES).decode("utf-8", "replace")
        summary = read_data_block(head, id)
    except (OSError, ValueError):
        return None
    ours = isinstance(summary, dict) and summary.get("summary_version") == SUMMARY_VERSION
    return summary if ours else None
