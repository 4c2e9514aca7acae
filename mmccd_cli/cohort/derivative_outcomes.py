"""What became of the sessions of a BIDS derivative data set: results, failures, their table."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmccd_cli.cohort.derivatives import LOG, tell_validators
from mmccd_cli.cohort.summary import Summary
from mmccd_cli.errors import (
    ComputeError,
    DataError,
    MmccdError,
    UsageError,
    WeightsError,
    unwritable,
)
from mmccd_cli.files import check_json, read_json, write_atomically
from mmccd_cli.outputs.bids import maps_in, outputs_beside
from mmccd_cli.outputs.record import Outcome, describe_failure, encode_json, read_record
from mmccd_cli.outputs.schema import FailedRecord

_MAP_OF_BIDS = re.compile(r"(sub-.+)_space-[^_]+_desc-anomaly_probseg\.nii\.gz")
_FAILED = "failed-"


class GroupSummary(NamedTuple):
    """What the table of a derivative data set tells.

    Attributes:
        table: The file.
        results: How many results are in it.
        failures: The sessions that failed, and have not been done since.
    """

    table: Path
    results: int
    failures: list[Outcome]


def summarise_derivatives(out: Path, source: Path | None = None) -> GroupSummary:
    """Write the table of all results of a derivative data set, and the page over their reports.

    Both tell of all results, whichever run made them, and of all sessions that failed; the page is
    written where there is a report.

    The results are read again once the table is written, until they are those in the table, so
    that of two tasks of a cluster that do this at once neither loses the other's last result.

    Args:
        out: Root of the derivative data set.
        source: Root of the data set that was read: whom it does not hold any more has not failed.

    Raises:
        DataError: There is no such folder, or no result and no failure in it.
        UsageError: Table or page cannot be written, or are somebody else's.
    """
    if not out.is_dir():
        raise DataError(f"There is no folder {out}.", next_step="Check the name.")
    written: tuple[list[Outcome], list[dict[str, Any]]] | None = None
    while (found := (_results(out), _failed_records(out))) != written:
        results, failed = written = found
        failures = [_failure_of(record) for record in failed if _is_in(source, record["subject"])]
        everything = [*results, *failures]
        if not everything:
            raise DataError(
                f"{out} holds no result of mmccd.",
                next_step="Run the level participant first.",
            )
        summary = Summary(out, everyone=sorted(outcome.name for outcome in everything))
        summary.add(*everything)
    _write_index(out, failures)
    return GroupSummary(summary.path, len(results), failures)


def note_failure(root: Path, outcome: Outcome) -> None:
    """Keep the record of a session that failed, and forget it once the session is done.

    Each has a file of its own, because several tasks of a cluster cannot write one. Nothing is
    kept where the data set has not been begun.

    Raises:
        UsageError: The record cannot be written.
        StorageError: The disk is full.
    """
    path = _file_of_failure(root, outcome.name)
    try:
        if outcome.status != "failed":
            path.unlink(missing_ok=True)
        elif root.is_dir():
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, encode_json(describe_failure(outcome)))
            tell_validators(root, LOG)
    except OSError as error:
        raise unwritable(f"The record {path} could not be written.", error) from error


def earlier_failures(root: Path, now: Iterable[Outcome] = ()) -> list[Outcome]:
    """Return the sessions that failed in earlier runs, or in other shares, and not `now`."""
    known = {outcome.name for outcome in now}
    return [_failure_of(it) for it in _failed_records(root) if it["subject"] not in known]


def _file_of_failure(root: Path, name: str) -> Path:
    # By a name that says nothing to readers of BIDS; the hash tells apart what looks the same.
    shown = re.sub(r"[^A-Za-z0-9]+", "-", name)[:60]
    return root / LOG / f"{_FAILED}{shown}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}.json"


def _failed_records(root: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted((root / LOG).glob(f"{_FAILED}*.json")):
        try:
            record = check_json(dict[str, Any], read_json(path))
            check_json(FailedRecord, record)
        except (OSError, ValueError):
            continue  # done in the meantime, or somebody else's
        found.append(record)
    return found


def _failure_of(record: Mapping[str, Any]) -> Outcome:
    """Turn the record of a failure into what it was made from."""
    said = record["error"]
    kinds = (UsageError, DataError, WeightsError, ComputeError)
    kind = next((kind for kind in kinds if kind.exit_code == said["exit_code"]), MmccdError)
    error = kind(said["message"], cause=said["cause"], next_step=said["next_step"])
    return Outcome(record["subject"], "failed", error=error)


def _is_in(source: Path | None, name: str) -> bool:
    """Tell whether a session's participant is in a data set, as far as that can be known."""
    if source is None or not name.startswith("sub-") or not any(source.glob("sub-*")):
        return True
    return (source / name.partition("_")[0]).is_dir()


def _write_index(out: Path, failures: Sequence[Outcome]) -> None:
    from mmccd_cli.outputs.report.cohort import check_cohort_page, reports_in, write_cohort_page

    if reports_in(out):
        check_cohort_page(out)
        write_cohort_page(out, failures)


def _results(out: Path) -> list[Outcome]:
    records = (read_record(outputs_beside(path)["sidecar"]) for path in maps_in(out))
    return [row_of_result(record) for record in records if record]


def row_of_result(record: dict[str, Any]) -> Outcome:
    """Return a result as the table has it: named after its map, which tells runs apart."""
    return Outcome(name_of_result(record["outputs"]["map"]), "done", record)


def name_of_result(map_name: str) -> str:
    """Return what tells a result from all others of its folder: how the name of its map begins."""
    if match := _MAP_OF_BIDS.fullmatch(map_name):
        return match[1]
    return re.sub(r"\.nii(\.gz)?$", "", map_name, flags=re.IGNORECASE)
