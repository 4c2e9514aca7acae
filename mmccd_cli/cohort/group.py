"""All results of a folder together, in the space of the template: how often, how much, where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.cohort.derivative_outcomes import name_of_result
from mmccd_cli.cohort.derivatives import tell_validators
from mmccd_cli.cohort.results import read_result
from mmccd_cli.cohort.steps import TEMPLATE_CODE
from mmccd_cli.errors import DataError, MmccdError, WeightsError, as_mmccd_error
from mmccd_cli.files import write_atomically
from mmccd_cli.inputs.nifti import encode_nifti, make_grid
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.outputs.anatomy import MIDLINE, midline_of, place_of
from mmccd_cli.outputs.bids import maps_in, outputs_beside
from mmccd_cli.outputs.images import MASK_DESCRIPTION, is_described
from mmccd_cli.outputs.lesions import EMPTY, encode_tsv
from mmccd_cli.outputs.record import read_sidecar, template_identity
from mmccd_cli.preprocessing.spatial import resample
from mmccd_cli.progress import Progress, silent
from mmccd_cli.template import Template

FOLDER = "group"
"""Where, in the folder of the results, all that is said of the group lies."""
FILES = ("frequency.nii.gz", "mean.nii.gz", "subjects.tsv", "lesions.tsv", "index.html")
_LEAST_SEEN = 0.5  # share of the subjects that a voxel must be seen in
_OTHER_WEIGHTS = "It was made with other weights than the others."

SUBJECT_COLUMNS = (
    "subject",
    "lesion_volume_ml",
    "lesions",
    "largest_lesion_ml",
    "left_ml",
    "right_ml",
    "brain_volume_ml",
    "suspicion",
    "seconds",
    "map",
)
LESION_COLUMNS = (
    "subject",
    "index",
    "volume_ml",
    "peak",
    "mean",
    "side",
    "midline_mm",
    "template_x_mm",
    "template_y_mm",
    "template_z_mm",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Member:
    """A subject of the group; its name tells sessions and runs apart."""

    name: str
    map: Path
    record: Mapping[str, Any]


class UnusedResult(NamedTuple):
    """A result that is not in the maps of its group, and why.

    It has failed where it is damaged; else it was made with other weights, and is as it should be.
    """

    subject: str
    reason: str
    failed: bool = True


@dataclass(frozen=True, eq=False, kw_only=True)
class GroupMaps:
    """What a group has in common, on the grid of the template.

    Attributes:
        frequency: (I, J, K) float32, share of the subjects with a lesion in a voxel, among those
            whose brain holds it; 0 where less than half of them do.
        mean: (I, J, K) float32, mean of their maps in the same way.
        number: How many subjects there are.
    """

    frequency: NDArray[np.float32]
    mean: NDArray[np.float32]
    number: int


def find_members(out: Path) -> tuple[list[Member], list[UnusedResult]]:
    """Find all results of a folder, or of a derivative data set of BIDS.

    Returns:
        Those with a record, also where their maps are gone; and those whose record is damaged or
        gone.

    Raises:
        DataError: There is no such folder, or none with a record in it.
    """
    if not out.is_dir():
        raise DataError(f"There is no folder {out}.", next_step="Check the name.")
    found, damaged = list[Member](), list[UnusedResult]()
    for map_file in maps_in(out) or _maps_beside_each_other(out):
        files = outputs_beside(map_file)
        file = files["sidecar"].name
        name = name_of_result(map_file.name)
        try:
            record = read_sidecar(files["sidecar"]).record
        except FileNotFoundError:
            damaged.append(UnusedResult(name, f"Its record {file} is gone."))
        except (OSError, ValueError) as error:
            if files["mask"].is_file():  # else it is somebody else's
                damaged.append(UnusedResult(name, f"{file} holds no record: {error}."))
        else:
            if record["outputs"]["mask"] != map_file.name:  # else another mask of some map
                found.append(Member(name=name, map=map_file, record=record))
    if not found:
        raise DataError(
            f"{out} holds no result of mmccd{' that can be read' if damaged else ''}.",
            cause=damaged[0].reason if damaged else None,
            next_step="Segment subjects first: mmccd segment SUBJECT... --out-dir DIR",
        )
    return found, damaged


def _maps_beside_each_other(out: Path) -> list[Path]:
    """Name the maps of all results of a folder, also where one or its record is gone."""
    named = set[Path]()
    for record in out.glob("*.json"):
        maps = [record.with_suffix(end) for end in (".nii.gz", ".nii")]
        named.add(next((path for path in maps if path.is_file()), maps[0]))
    for mask in out.glob("*_mask.nii*"):
        stem, _, end = mask.name.rpartition("_mask")
        if (path := mask.with_name(stem + end)).is_file() and path not in named:
            named |= {path} if is_described(mask, MASK_DESCRIPTION) else set()
    return sorted(named)


def template_of(
    members: Sequence[Member],
    *,
    weights: str | None = None,
    offline: bool = False,
    cache_dir: Path | None = None,
) -> tuple[Template, str]:
    """Return the template that most of the results lie on, and the hash of their bundle.

    The template is that of the given bundle, else of the one that their records name, else of the
    default one. Other weights serve if they have the same.

    Raises:
        WeightsError: The bundle is not there, or is another by now.
    """
    from mmccd_cli.weights.bundle import load_bundle
    from mmccd_cli.weights.resolve import resolve_weights

    hashes = Counter(member.record["bundle"]["sha256"] for member in members)
    ((most, _),) = hashes.most_common(1)
    made_by = next(m.record["bundle"] for m in members if m.record["bundle"]["sha256"] == most)
    cause: str | None = None
    for spec in [weights] if weights else [made_by.get("hub") or made_by["name"], None]:
        try:
            bundle = load_bundle(resolve_weights(spec, offline=offline, cache_dir=cache_dir))
        except WeightsError as error:
            if weights:
                raise
            cause = cause or error.message
            continue
        if bundle.sha256 in hashes:
            return bundle.template, bundle.sha256
        if bundle.template_sha256 == template_identity(made_by):
            return bundle.template, most
        own = bundle.config
        cause = cause or f"{spec} is {own.name} {own.version}, a bundle with another template."
    raise WeightsError(
        f"The weights that made the results, {made_by['name']} {made_by['version']}, are needed "
        "for their template.",
        cause=cause,
        next_step="Give the folder of that bundle: --weights FOLDER; or segment the subjects anew.",
    )


def combine(
    members: Sequence[Member],
    template: Template,
    bundle_sha256: str,
    *,
    advance: Progress = silent,
) -> tuple[GroupMaps, list[Member], list[UnusedResult]]:
    """Add up all results that lie in the space of one template.

    Returns:
        The maps, the members that are in them, and those that are not.

    Raises:
        DataError: None of them can be used.
    """
    lesion, total, seen = (np.zeros(template.shape, np.float32) for _ in range(3))
    used: list[Member] = []
    unused: list[UnusedResult] = []
    for number, member in enumerate(members, start=1):
        if member.record["bundle"]["sha256"] != bundle_sha256:
            unused.append(UnusedResult(member.name, _OTHER_WEIGHTS, failed=False))
            continue
        try:
            parts = _in_template(member, template)
        except (MmccdError, OSError) as error:
            told = as_mmccd_error(error).without_folders([str(member.map)])
            unused.append(UnusedResult(member.name, told.message))
        else:
            for whole, part in zip((lesion, total, seen), parts, strict=True):
                whole += part
            used.append(member)
        advance(number, len(members))
    if not used:
        first = unused[0]
        raise DataError(
            "None of the results can be brought to the template.",
            cause=f"{first.subject}: {first.reason}",
            next_step="Segment the subjects anew: mmccd segment ... --force",
        )
    often = seen >= max(1.0, _LEAST_SEEN * len(used))
    shares = [
        np.where(often, whole / np.maximum(seen, 1), 0).astype(np.float32)
        for whole in (lesion, total)
    ]
    return GroupMaps(frequency=shares[0], mean=shares[1], number=len(used)), used, unused


def _in_template(
    member: Member, template: Template
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Lesions, map and brain of a subject on the grid of the template."""
    result = read_result(member.map)
    to_template = result.to_template
    if to_template is None:
        raise DataError("Its record does not say how it lies to the template.")
    back = np.linalg.inv(to_template)

    def moved(values: NDArray[Any]) -> NDArray[np.float32]:
        volume = Volume(values.astype(np.float32), result.map.affine)
        return resample(volume, template.shape, template.affine, matrix=back, smooth=True).data

    share = moved(result.map.data > 0)
    seen = share >= 0.5
    values = np.where(seen, moved(result.map.data) / np.maximum(share, 0.5), 0)
    found = (moved(result.mask) >= 0.5) & seen
    return found.astype(np.float32), values.astype(np.float32), seen.astype(np.float32)


def write_group(
    out: Path,
    template: Template,
    bundle_sha256: str,
    *,
    members: Sequence[Member],
    damaged: Sequence[UnusedResult] = (),
    advance: Progress = silent,
) -> tuple[list[Path], list[UnusedResult]]:
    """Write what a group has in common: two maps, two tables and a page.

    Returns:
        The files, and the results that are not in them.
    """
    from mmccd_cli.outputs.report.group import group_page

    maps, used, unused = combine(members, template, bundle_sha256, advance=advance)
    unused = [*damaged, *unused]
    grid = make_grid(template.shape, template.affine, code=TEMPLATE_CODE)
    placed = {member.map: lesion_rows(member, template) for member in used}
    subjects = [subject_row(member, placed[member.map]) for member in used]
    lesions = [row for rows in placed.values() for row in rows]
    folder = out / FOLDER
    contents = {
        folder / f"{name}.nii.gz": encode_nifti(
            values,
            grid,
            intent="estimate",
            description=f"mmccd {name}, subjects: {maps.number}",
            display_range=(0.0, 1.0),
        )
        for name, values in (("frequency", maps.frequency), ("mean", maps.mean))
    }
    contents[folder / "subjects.tsv"] = _table(SUBJECT_COLUMNS, subjects)
    contents[folder / "lesions.tsv"] = _table(LESION_COLUMNS, lesions)
    contents[folder / "index.html"] = group_page(
        template,
        frequency=maps.frequency,
        mean=maps.mean,
        subjects=subjects,
        lesions=lesions,
        left_out=[(each.subject, each.reason) for each in unused],
    )
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        write_atomically(path, content)
    tell_validators(out, FOLDER)
    return list(contents), unused


def subject_row(member: Member, lesions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the table of subjects says of one, whose rows in the other table are given.

    What its record does not say is None.
    """
    record = member.record
    left, right = (
        round(sum(lesion["volume_ml"] for lesion in lesions if lesion["side"] == side), 6)
        for side in ("left", "right")
    )
    return {
        "subject": member.name,
        "lesion_volume_ml": record["lesion_volume_ml"],
        "lesions": len(lesions),
        "largest_lesion_ml": lesions[0]["volume_ml"] if lesions else None,
        "left_ml": left,
        "right_ml": right,
        "brain_volume_ml": record.get("brain_volume_ml"),
        "suspicion": record.get("suspicion"),
        "seconds": round(sum(record["seconds"].values()), 1),
        "map": record["outputs"]["map"],
    }


def lesion_rows(member: Member, template: Template) -> list[dict[str, Any]]:
    """Return the rows of a subject's lesions, also of those that older records have."""
    settings = {**member.record["settings"], MIDLINE: midline_of(template)}
    rows = []
    for lesion in member.record["lesions"]:
        place = place_of(lesion["centroid_ras_mm"], settings)
        row = dict.fromkeys(LESION_COLUMNS)
        row |= {name: lesion[name] for name in ("volume_ml", "peak", "mean")}
        row |= {"subject": member.name, "index": lesion["id"]}
        row["volume_ml"] = round(lesion["volume_ml"], 6)
        if place is not None:
            row |= {"side": place.side, "midline_mm": place.midline_mm}
            row |= dict(zip(LESION_COLUMNS[-3:], place.template_ras_mm, strict=True))
        rows.append(row)
    return rows


def _table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    def cell(value: Any) -> str:
        if value is None:
            return EMPTY
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    return encode_tsv(columns, ([cell(row[name]) for name in columns] for row in rows))
