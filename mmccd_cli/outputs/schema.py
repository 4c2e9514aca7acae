"""What a record must hold: its fields with their units, checked when a record is read back.

A record may hold more than is listed here, as those of a later version do; what is listed must be
there and be of its type. `mmccd schema` prints it as JSON Schema.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema

RECORD_VERSION = 1
ON_MIDLINE_MM = 3.0
"""A lesion whose centre is no farther from the midline than this lies on neither side."""
SIDE_TOLD = f"Side of the patient by the template; midline within {ON_MIDLINE_MM:g} mm of it."
MIDLINE_TOLD = "Distance of the centre from the midline of the template"


def _without_folder(name: str) -> str:
    if name in ("", ".", "..") or os.path.basename(name) != name or "\0" in name:
        raise ValueError(f"the name of a file must be a name without folders, got {name[:80]!r}")
    return name


PlainName = Annotated[
    str,
    AfterValidator(_without_folder),
    WithJsonSchema({"type": "string", "pattern": r"^(?!\.{1,2}$)[^/\x00]+$"}),
]
"""Name of a file without any folder, so that it can lie in one place only."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Side = Literal["left", "right", "midline"]
Volume = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Limits = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]]


class _Checked(BaseModel):
    """A part of a record: its fields are checked, more are allowed, no number is NaN."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


class LesionRecord(_Checked):
    """One connected component of the mask."""

    id: int = Field(ge=1, description="1 for the largest, then by falling volume.")
    volume_ml: Volume = Field(description="Volume, mL.")
    peak: Share = Field(description="Highest value of the anomaly map inside.")
    mean: Share = Field(description="Mean value of the anomaly map inside.")
    centroid_ras_mm: tuple[float, float, float] = Field(
        description="Centre of the voxels in RAS+ world coordinates, mm."
    )
    box: tuple[Limits, Limits, Limits] = Field(
        description="Voxel indices [[i0, i1], [j0, j1], [k0, k1]] from 0, the end excluded."
    )
    confidence: Share | None = Field(
        default=None,
        description="How sure it is that this is a lesion; null where the weights do not know.",
    )
    side: Side | None = Field(
        default=None,
        description=f"{SIDE_TOLD} Null, as all of its place, where the record does not tell.",
    )
    midline_mm: Volume | None = Field(default=None, description=f"{MIDLINE_TOLD}, mm.")
    template_ras_mm: tuple[float, float, float] | None = Field(
        default=None, description="The centre in the world of the template, RAS+ mm."
    )


class LeftOutRecord(LesionRecord):
    """A component of the map above its threshold that is not in the mask."""

    id: int = Field(ge=1, description="Goes on from the lesions', the largest first.")
    reason: str = Field(description="Which rule left it out, what it has and what it would need.")


class LeftOutSmallRecord(_Checked):
    """Components above the threshold that are not in the mask, and too small or many to list."""

    count: int = Field(ge=0, description="How many there are.")
    volume_ml: Volume = Field(description="Their volume in all, mL.")


class NamedFile(_Checked):
    """A file that is read."""

    file: PlainName = Field(description="Its name; of a DICOM series, the number of the series.")


class InputFile(NamedFile):
    """A file that was read."""

    sha256: Sha256 = Field(description="SHA-256 of its bytes; of a DICOM series, of all files.")


class IgnoredFile(NamedFile):
    """A file that is left out."""

    reason: str = Field(description="Why it is left out.")


class Outputs(_Checked):
    """The files that were written with this record, by kind; further kinds are optional."""

    __pydantic_extra__: dict[str, PlainName]

    map: PlainName = Field(description="Anomaly map, float32 in [0, 1].")
    mask: PlainName = Field(description="Mask, uint8.")
    sidecar: PlainName = Field(description="The file with this record.")


class StaleFile(_Checked):
    """A file of the result that shows a mask from before the record's."""

    file: PlainName = Field(description="Its name.")
    threshold: Share = Field(description="The threshold of the mask that it shows.")
    min_lesion_mm3: float | None = Field(
        default=None, description="Its smallest lesion; null where it is not known."
    )
    min_confidence: float | None = Field(
        default=None, description="Its least confidence; null where it is not known."
    )
    shown_sha256: Sha256 | None = Field(
        default=None,
        description="Hash over the mask and the lesion table that it shows. Records before 0.7.0 "
        "have none.",
    )


class BundleRecord(_Checked):
    """The weights."""

    name: str = Field(description="Name of the bundle.")
    version: str = Field(description="Version of the bundle.")
    sha256: Sha256 = Field(description="Hash over all its files.")
    template_sha256: Sha256 | None = Field(
        default=None, description="Hash of its template; null in older records."
    )
    hub: str | None = Field(description="Where it came from on the Hub; null if from elsewhere.")


class Settings(_Checked):
    """All that changed a number."""

    requested: dict[str, Any] = Field(description="What was asked for; --resume compares it.")
    score: dict[str, Any] = Field(description="The score's settings that were used.")
    calibrated_mask: dict[str, Any] = Field(description="What makes the mask, as calibrated.")
    score_threshold_of_this_scan: float = Field(description="In units of the score, not the map.")


class Versions(_Checked):
    """Versions of all that computed, by name."""

    __pydantic_extra__: dict[str, str]

    mmccd: str = Field(description="Version of mmccd that made the map.")


class _Record(_Checked):
    record_version: int = Field(ge=1, le=1, description="Grows when a field's meaning changes.")
    subject: str = Field(description="The subject's id, or what was given in its place.")


class DoneRecord(_Record):
    """The record of a subject that has a result, as its sidecar holds it."""

    status: Literal["done", "skipped"] = Field(description="Skipped is what is up to date.")
    lesion_volume_ml: Volume = Field(description="Volume of the mask, mL.")
    threshold: Share = Field(description="Value of the map above which a voxel is in the mask.")
    lesions: list[LesionRecord] = Field(description="The mask's components, the largest first.")
    left_out: list[LeftOutRecord] = Field(
        default=[],
        description="What the map shows above its threshold and the mask does not hold, the "
        "largest first: at most 100, of 10 mm3 or more. Records before 0.3.0 have none.",
    )
    left_out_small: LeftOutSmallRecord = Field(
        default=LeftOutSmallRecord(count=0, volume_ml=0.0),
        description="All else above the threshold that the mask does not hold.",
    )
    reference: str = Field(description="Modality whose grid map and mask have.")
    outputs: Outputs
    output_sha256: dict[str, Sha256] = Field(description="SHA-256 of map and mask.")
    stale_outputs: dict[str, StaleFile] = Field(
        default={},
        description="Kind of output to a file that was not made anew with the mask.",
    )
    inputs: dict[str, InputFile] = Field(description="Modality, or brain_mask, to its file.")
    ignored: list[IgnoredFile] = Field(description="Files that were left out.")
    bundle: BundleRecord
    settings: Settings
    seed: int = Field(description="Seed of all that is random.")
    device: str = Field(description="What computed.")
    threads: int = Field(ge=1, description="Threads of the CPU.")
    versions: Versions
    seconds: dict[str, float] = Field(description="Stage to its time, s.")
    peak_memory_mib: float | None = Field(description="Largest memory, MiB; null if not known.")
    warnings: list[str] = Field(description="Sentences to read before trusting the result.")
    notes: list[str] = Field(
        default=[],
        description="Sentences of what happened, as it should. Records before 0.4.0 have them "
        "among the warnings.",
    )
    brain_volume_ml: Volume | None = Field(
        default=None, description="Volume of the brain mask, mL. Records before 0.4.0 have none."
    )
    suspicion: Share | None = Field(
        default=None,
        description="How much the signs of failure of the report count together; null where none "
        "was asked for.",
    )


class ErrorRecord(_Checked):
    """Why a subject failed."""

    message: str = Field(description="What failed, on which file.")
    cause: str | None = Field(description="The likely cause.")
    next_step: str | None = Field(description="The command or action that helps.")
    exit_code: int = Field(description="What the program ends with where it is the only subject.")


class FailedRecord(_Record):
    """The record of a subject that could not be done.

    It is printed, and in no file but `log/failed-*.json` of BIDS derivatives.
    """

    status: Literal["failed"]
    error: ErrorRecord


class PlannedRecord(_Record):
    """The record of a subject with --dry-run, from the names and headers of its files alone."""

    status: Literal["planned"]
    layout: str = Field(description="What the subject's folder was taken for.")
    inputs: dict[str, NamedFile] = Field(description="Modality, or brain_mask, to its file.")
    ignored: list[IgnoredFile] = Field(description="Files that would be left out.")
    modalities: list[str] = Field(description="Those that the score would use.")
    outputs: dict[str, PlainName] = Field(description="Kind of output to its file's name.")
    only_the_mask: bool = Field(description="Whether the map that is there would be kept.")
    bundle: BundleRecord
    warnings: list[str] = Field(
        default=[], description="Sentences to read first, of what names and headers say."
    )
    notes: list[str] = Field(default=[], description="Sentences of what headers say.")


AnyRecord = Annotated[
    DoneRecord | FailedRecord | PlannedRecord,
    Field(
        discriminator="status",
        title="Record of mmccd",
        description="A line of --json, a sidecar, or the key `mmccd` of a sidecar of BIDS.",
    ),
]


def record_schema() -> dict[str, Any]:
    """Return the JSON Schema of all records: of files, and of the lines that --json prints."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return dialect | TypeAdapter[Any](AnyRecord).json_schema()
