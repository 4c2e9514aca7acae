"""The record of one run that the sidecar holds and that --json prints.

It says all that changed a number, and neither the date nor any folder: both can say more about a
person than a result should carry. A sidecar of BIDS holds it under the one key `mmccd`, beside the
keys that BIDS knows.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmccd_cli import __version__
from mmccd_cli.errors import MmccdError, as_mmccd_error, notes_and_warnings
from mmccd_cli.files import check_json, read_json
from mmccd_cli.outputs.anatomy import MIDLINE, midline_of
from mmccd_cli.outputs.lesions import describe_mask, mask_warnings
from mmccd_cli.outputs.schema import RECORD_VERSION, DoneRecord
from mmccd_cli.template import voxel_volume_mm3
from mmccd_cli.weights.hub import cached_id

if TYPE_CHECKING:
    from mmccd_cli.inputs.subjects import Subject
    from mmccd_cli.pipeline import SegmentationResult
    from mmccd_cli.weights.bundle import Bundle

KEY_IN_BIDS = "mmccd"
"""Where a sidecar of BIDS holds the record."""

_FIELDS_OF_BIDS = ("Description", "Sources", "SpatialReference", "Manual")
"""What 0.2.0 wrote among the fields of a record."""
_SURROGATES = re.compile("[\ud800-\udfff]")

_DISTRIBUTIONS = (
    "torch",
    "numpy",
    "scipy",
    "nibabel",
    "SimpleITK",
    "connected-components-3d",
    "pydicom",
)


@dataclass(frozen=True)
class Outcome:
    """What became of one subject.

    Attributes:
        name: The subject's id, or the name of the folder that should have held one.
        status: "done", "skipped" because its result was there already, "failed", or "planned".
        record: See `describe_result`; empty where it failed.
        error: Why it failed: an `MmccdError`, or anything else where there is a bug.
        from_map: Whether only the mask was made anew, from the map that was there.
        paths: What `error` may name, as it was typed.
    """

    name: str
    status: Literal["done", "skipped", "failed", "planned"]
    record: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None
    from_map: bool = False
    paths: tuple[str, ...] = ()

    @property
    def told(self) -> MmccdError | None:
        """The error as files may hold it: without folders, which may name a person."""
        if self.error is None:
            return None
        return as_mmccd_error(self.error).without_folders((self.name, *self.paths))


def describe_result(
    subject: Subject,
    result: SegmentationResult,
    bundle: Bundle,
    *,
    inputs: Mapping[str, Mapping[str, str]],
    requested: Mapping[str, Any],
    outputs: Mapping[str, str],
    notes: list[str],
    seconds: Mapping[str, float],
    threads: int,
) -> dict[str, Any]:
    """Return the record of a finished subject.

    Notes and seconds are those from outside of the pipeline; `requested` is what --resume compares.
    """
    said, warnings = notes_and_warnings([*notes, *result.notes])
    settings = {
        **result.settings,
        MIDLINE: midline_of(bundle.template),
        "requested": requested,
    }
    brain_mm3 = np.count_nonzero(result.brain) * voxel_volume_mm3(result.shown.affine)
    brain_ml = round(brain_mm3 / 1000, 3)
    return {
        "record_version": RECORD_VERSION,
        "subject": subject.id,
        "status": "done",
        **describe_mask(result, threshold=result.threshold, settings=settings),
        "reference": result.reference,
        "outputs": outputs,
        "output_sha256": {},
        "stale_outputs": {},
        "inputs": inputs,
        "ignored": describe_ignored(subject),
        "bundle": describe_bundle(bundle),
        "settings": settings,
        "seed": requested["sampling"]["seed"],
        "device": result.device,
        "threads": threads,
        "versions": versions(),
        "seconds": {
            stage: round(value, 3) for stage, value in {**seconds, **result.seconds}.items()
        },
        "peak_memory_mib": peak_memory_mib(),
        "warnings": [*warnings, *mask_warnings(result, brain_ml=brain_ml)],
        "notes": said,
        "brain_volume_ml": brain_ml,
        "suspicion": None,
    }


def describe_failure(outcome: Outcome) -> dict[str, Any]:
    """Return the record of a subject that could not be done."""
    error = outcome.told
    assert error is not None  # it failed
    return {
        "record_version": RECORD_VERSION,
        "subject": outcome.name,
        "status": "failed",
        "error": {
            "message": error.message,
            "cause": error.cause,
            "next_step": error.next_step,
            "exit_code": error.exit_code,
        },
    }


def template_identity(bundle: Mapping[str, Any]) -> str:
    """Tell by a hash to which template the results of a record's `bundle` were registered.

    Records before version 0.15.0 do not hold it; for them the hash of the weights stands.
    """
    return str(bundle.get("template_sha256") or bundle["sha256"])


def describe_bundle(bundle: Bundle) -> dict[str, str | None]:
    """Return name, version and hashes of the weights, and their commit if they are the Hub's."""
    return {
        "name": bundle.config.name,
        "version": bundle.config.version,
        "sha256": bundle.sha256,
        "template_sha256": bundle.template_sha256,
        "hub": cached_id(bundle.folder),
    }


def describe_ignored(subject: Subject) -> list[dict[str, str]]:
    """Return the files that were left out, each with its reason."""
    return [{"file": path.name, "reason": reason} for path, reason in subject.left_out]


def versions() -> dict[str, str]:
    """Return the versions of everything that computes."""
    own = {"mmccd": __version__, "python": platform.python_version()}
    return own | package_versions(_DISTRIBUTIONS)


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages by their names; those that are not installed are left out."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_memory_mib() -> float | None:
    """Return the largest resident memory of this process so far, None where nobody counts it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


@dataclass(frozen=True)
class Sidecar:
    """What a sidecar holds: the checked record and, for BIDS, other fields, beside or around it."""

    record: dict[str, Any]
    fields: dict[str, Any]
    is_nested: bool


def read_sidecar(path: Path) -> Sidecar:
    """Read a sidecar, also one for BIDS that 0.2.0 wrote, where all keys stand side by side.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds no record, or one with a field that is missing or cannot be; the text
            is a clause that says which.
    """
    content = check_json(dict[str, Any], read_json(path))
    is_nested = KEY_IN_BIDS in content
    known = content.keys() - {KEY_IN_BIDS} if is_nested else _FIELDS_OF_BIDS
    fields = {key: value for key, value in content.items() if key in known}
    rest = {key: value for key, value in content.items() if key not in known}
    record = rest[KEY_IN_BIDS] if is_nested else rest
    if check_json(DoneRecord, record).status != "done":
        raise ValueError("it is the record of a result that was skipped")
    return Sidecar(record, fields, is_nested)


def read_record(path: Path) -> dict[str, Any] | None:
    """Read the record of a sidecar; None where there is none that can be read in full."""
    try:
        return read_sidecar(path).record
    except (OSError, ValueError):
        return None


def encode_sidecar(record: Mapping[str, Any], fields: Mapping[str, Any]) -> bytes:
    """Return the bytes of a sidecar; with fields for BIDS, the record has a key of its own."""
    return encode_json({**fields, KEY_IN_BIDS: record} if fields else record)


def to_json(record: Any, *, indent: int | None = None) -> str:
    """Return a record as strict JSON; a float that is not finite becomes null."""
    return readable(
        json.dumps(_as_json(record), indent=indent, allow_nan=False, ensure_ascii=False)
    )


def readable(text: str) -> str:
    """Return text in which what is in no encoding, as names of files may be, is U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def jsonable(record: Any) -> Any:
    """Return a record as it would be read back from JSON."""
    return json.loads(to_json(record))


def encode_json(content: Any) -> bytes:
    """Return the bytes of a JSON file, such as a sidecar."""
    return to_json(content, indent=2).encode() + b"\n"


def _as_json(value: Any) -> Any:
    """Reduce a value to what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _as_json(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_as_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
