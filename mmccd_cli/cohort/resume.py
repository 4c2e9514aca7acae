"""What an earlier run left: whether it can stay, or its map can give the mask that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmccd_cli.anomaly.mask import AS_CALIBRATED, MASK_SETTINGS
from mmccd_cli.cohort.jobs import Job
from mmccd_cli.config import without_retired
from mmccd_cli.errors import DataError
from mmccd_cli.files import sha256_of_file
from mmccd_cli.inputs.scans import describe_inputs
from mmccd_cli.outputs.extras import EXTRA_OUTPUTS
from mmccd_cli.outputs.images import MAP_DESCRIPTION, MASK_DESCRIPTION, first_bytes, is_described
from mmccd_cli.outputs.record import Sidecar, encode_sidecar, jsonable, read_record, read_sidecar
from mmccd_cli.outputs.remask import score_of_record
from mmccd_cli.outputs.schema import RECORD_VERSION

_BEGINNING = len('{\n  "record_version"')


@dataclass(frozen=True)
class PreviousResult:
    """An earlier result whose map is the one that is asked for; current where all else is, too."""

    record: dict[str, Any]
    is_current: bool


def find_previous(
    job: Job, bundle_sha256: str, requested: Mapping[str, Any]
) -> PreviousResult | None:
    """Compare what lies at a job's outputs with what is asked for.

    Returns:
        The previous result; None where its map has other inputs, weights or settings, is not the
        one that its sidecar speaks of, or cannot give all that is asked for.
    """
    sidecar = find_result(job)
    if sidecar is None:
        return None
    record = sidecar.record
    earlier, now = _requested(record), jsonable(requested)
    hashes = record["output_sha256"]
    same_map = (
        record["bundle"]["sha256"] == bundle_sha256
        and _without_mask(earlier) == _without_mask(now)
        and record["inputs"] == jsonable(describe_inputs(job.subject, job.brain_mask))
        and record["reference"] in record["inputs"]
        and hashes.get("map") == sha256_of_file(job.targets["map"])
    )
    if not same_map:
        return None
    current = (
        earlier == now
        and all(record["outputs"].get(kind) == job.names[kind] for kind in job.extras)
        and sidecar.is_nested == bool(job.sidecar_fields)
        and "left_out" in record  # those before 0.3.0 do not say what their masks left out
        and all(path.is_file() for path in job.targets.values())
        and hashes.get("mask") == sha256_of_file(job.targets["mask"])
    )
    if current:
        return PreviousResult(record, True)
    remakes = all(not EXTRA_OUTPUTS[kind].needs_prepared for kind in job.extras)
    if not remakes or (job.extras and now["space"] != "native"):
        return None
    return PreviousResult(record, False)


def find_result(job: Job) -> Sidecar | None:
    """Read the record of the result at a job's places; None where none is, or a damaged one."""
    try:
        sidecar = read_sidecar(job.targets["sidecar"])
        score_of_record(sidecar.record, AS_CALIBRATED)
    except (OSError, ValueError, DataError):
        return None
    return sidecar if job.targets["map"].is_file() else None


def foreign_outputs(job: Job) -> list[Path]:
    """Name what lies at the outputs' places and was not made by mmccd, so may not be replaced.

    A damaged result is known by how its record begins, or by the headers of its images. Extras may
    have any name, so they are known by the record that names them.
    """
    existing = {kind: path for kind, path in job.targets.items() if path.exists()}
    if list(existing) == ["report"]:
        return [] if _is_report(existing["report"]) else [existing["report"]]
    sidecar, images = job.targets["sidecar"], {"map": MAP_DESCRIPTION, "mask": MASK_DESCRIPTION}
    own = encode_sidecar({"record_version": RECORD_VERSION}, job.sidecar_fields)[:_BEGINNING]
    record = read_record(sidecar)
    is_ours = (
        record is not None
        or (sidecar.is_file() and own.startswith(first_bytes(sidecar, _BEGINNING)))
        or any(is_described(job.targets[kind], text) for kind, text in images.items())
    )
    if not is_ours:
        return list(existing.values())
    extras = [kind for kind in job.extras if kind in existing]
    return [existing[kind] for kind in extras if not _is_our_extra(job, kind, record)]


def _is_our_extra(job: Job, kind: str, record: Mapping[str, Any] | None) -> bool:
    """Tell whether an extra that lies there belongs to the result.

    Where a damaged record cannot tell, it does if its name is made from the subject's.
    """
    if record is None:
        return job.makes_folder or (kind == "report" and _is_report(job.targets[kind]))
    stale = record.get("stale_outputs", {}).get(kind, {})
    return job.names[kind] in (record["outputs"].get(kind), stale.get("file"))


def _is_report(path: Path) -> bool:
    from mmccd_cli.outputs.report.cohort import is_report

    return is_report(path)


def _requested(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says was asked for, without settings that are gone by now."""
    requested = dict(record["settings"]["requested"])
    if isinstance(sampling := requested.get("sampling"), dict):
        requested["sampling"] = without_retired(sampling)
    return requested


def _without_mask(requested: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in requested.items() if name not in MASK_SETTINGS}
