"""What a result says of its lesions and of what was left out: record, warnings and table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeAlias

from mmccd_cli.anomaly.mask import LEAST_LISTED_MM3, MOST_LISTED, LeftOut, Lesion
from mmccd_cli.outputs.anatomy import Place, place_of

if TYPE_CHECKING:
    from mmccd_cli.anomaly.mask import MaskFindings
    from mmccd_cli.pipeline import SegmentationResult

    Findings: TypeAlias = MaskFindings | SegmentationResult

COLUMNS = (
    "index",
    "kept",
    "volume_ml",
    "peak",
    "mean",
    "x_mm",
    "y_mm",
    "z_mm",
    "box",
    "reason",
    "confidence",
)
"""All but the last ones."""
PLACE = ("side", "midline_mm")
"""The last columns, see `mmccd_cli.outputs.anatomy`."""
PLACE_FIELDS = tuple(field.name for field in fields(Place))
EMPTY = "n/a"

_NOTHING_KEPT = "Nothing was kept, but the map shows "
_NOTHING_SHOWN = "The map stays below its threshold everywhere."
_BRIGHT_LEFT_OUT = "Left out of the mask: "
_BRIGHT = 0.82  # mean of the map from which a candidate is about as bright as lesions are
_DOUBTFUL = 0.125  # confidence of what might be a lesion: half of the least that a default asks for
_SOME_ML, _MANY_ML = 0.1, 5.0
_MUCH_OF_BRAIN = "The mask holds "
_MUCH = 0.2  # share of the brain; the largest of 26 labelled gliomas has 0.17


def describe_mask(
    found: Findings, *, threshold: float, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the part of a record that speaks of the mask, with the place of each lesion.

    Args:
        found: What the map shows above its threshold.
        threshold: Value of the map above which a voxel belongs to the mask.
        settings: Of the record, which tell how the map lies to the template.
    """

    def placed(lesion: Lesion) -> dict[str, Any]:
        place = place_of(lesion.centroid_ras_mm, settings)
        volume = {"volume_ml": round(lesion.volume_ml, 6)}
        return asdict(lesion) | volume | (asdict(place) if place else dict.fromkeys(PLACE_FIELDS))

    return {
        "lesion_volume_ml": round(sum(lesion.volume_ml for lesion in found.lesions), 6),
        "threshold": threshold,
        "lesions": [placed(lesion) for lesion in found.lesions],
        "left_out": [placed(candidate) for candidate in found.left_out],
        "left_out_small": found.left_out_small,
    }


def mask_warnings(found: Findings, *, brain_ml: float | None = None) -> list[str]:
    """Say what should be looked at: a mask that is empty, too large, or without something bright.

    That it is too large shows where the volume of the brain is known.
    """
    left_out, small = found.left_out, found.left_out_small
    if found.lesions:
        return _warnings_of_found(found.lesions, left_out, brain_ml)
    number = len(left_out) + small.count
    if number == 0:
        return [_NOTHING_SHOWN]
    volume_ml = sum(candidate.volume_ml for candidate in left_out) + small.volume_ml
    return [f"{_NOTHING_KEPT}{_counted(number, volume_ml)} in all{_strongest(left_out)}."]


def _warnings_of_found(
    lesions: Sequence[Lesion], left_out: Sequence[LeftOut], brain_ml: float | None
) -> list[str]:
    kept_ml = sum(lesion.volume_ml for lesion in lesions)
    said = []
    if brain_ml and kept_ml > _MUCH * brain_ml:
        said.append(
            f"{_MUCH_OF_BRAIN}{100 * kept_ml / brain_ml:.0f}% of the brain, more than tumours do: "
            "the scans may differ much from those of the training. Look at it before use."
        )
    bright = [found for found in left_out if _is_bright(found, beside_ml=kept_ml)]
    if bright:
        found = _counted(len(bright), sum(candidate.volume_ml for candidate in bright))
        what = "a lesion" if len(bright) == 1 else "lesions"
        said.append(
            f"{_BRIGHT_LEFT_OUT}{found} that may be {what}, beside {_ml(kept_ml)} in it"
            f"{_strongest(bright)}."
        )
    return said


def is_mask_warning(text: str) -> bool:
    """Tell whether a sentence is one of `mask_warnings`, which a new mask renews."""
    return text.startswith((_NOTHING_KEPT, _NOTHING_SHOWN, _BRIGHT_LEFT_OUT, _MUCH_OF_BRAIN))


def lesion_table(found: Findings, *, settings: Mapping[str, Any]) -> bytes:
    """Return the table of all that the map shows above its threshold, a row each.

    What is only counted has the last row, where there is any. The record's settings tell how the
    map lies to the template.
    """
    rows = [
        [*_row(each), *place_cells(each, settings)] for each in (*found.lesions, *found.left_out)
    ]
    if (small := found.left_out_small).count:
        reason = f"{small.count} more, {_why_unlisted(found.left_out)}"
        known = {"kept": "no", "volume_ml": f"{small.volume_ml:.6g}", "reason": reason}
        rows.append([known.get(name, EMPTY) for name in (*COLUMNS, *PLACE)])
    return encode_tsv([*COLUMNS, *PLACE], rows)


def encode_tsv(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> bytes:
    """Return the bytes of a table with tabs between its columns."""
    text = io.StringIO()
    csv.writer(text, "excel-tab", lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()


def place_cells(lesion: Lesion, settings: Mapping[str, Any]) -> list[str]:
    """Return side and midline_mm of a lesion as a table holds them."""
    place = place_of(lesion.centroid_ras_mm, settings)
    return [EMPTY, EMPTY] if place is None else [place.side, f"{place.midline_mm:.6g}"]


def numbers_of(lesion: Lesion) -> list[str]:
    """Return volume_ml, peak, mean, x_mm, y_mm and z_mm of a lesion as a table holds them."""
    numbers = (lesion.volume_ml, lesion.peak, lesion.mean, *lesion.centroid_ras_mm)
    return [f"{number:.6g}" for number in numbers]


def _row(lesion: Lesion) -> list[Any]:
    kept, reason = ("no", lesion.reason) if isinstance(lesion, LeftOut) else ("yes", EMPTY)
    box = ",".join(f"{first}:{end}" for first, end in lesion.box)
    confidence = EMPTY if lesion.confidence is None else f"{lesion.confidence:g}"
    return [lesion.id, kept, *numbers_of(lesion), box, reason, confidence]


def _why_unlisted(left_out: Sequence[LeftOut]) -> str:
    """Say why candidates are counted and not listed; no option of the mask has a part in it."""
    below = f"below {LEAST_LISTED_MM3:g} mm3"
    full = len(left_out) >= MOST_LISTED
    return f"{below}, or beyond the {MOST_LISTED} largest" if full else f"each {below}"


def _is_bright(candidate: LeftOut, *, beside_ml: float) -> bool:
    """Tell whether it might be a lesion after all, or hides one: it may be larger than the mask."""
    if candidate.volume_ml < _SOME_ML:
        return False
    if candidate.volume_ml > max(beside_ml, _MANY_ML):
        return True
    if candidate.confidence is None:
        return candidate.mean >= _BRIGHT
    return candidate.confidence >= _DOUBTFUL


def _strongest(left_out: Sequence[LeftOut]) -> str:
    """Describe the candidate that is most like a lesion.

    That is the one with the highest confidence; where none is known the one with the highest peak,
    those of some volume first.
    """
    if not left_out:
        return ""
    sure = [found for found in left_out if found.confidence is not None]
    if sure:
        it = max(sure, key=lambda found: (found.confidence or 0.0, found.volume_ml))
        name, known = "surest", f", a confidence of {it.confidence:.2f}"
    else:
        it = max(left_out, key=lambda found: (found.volume_ml >= _SOME_ML, found.peak, found.mean))
        name, known = "strongest", ""
    place = ", ".join(f"{mm:.0f}" for mm in it.centroid_ras_mm)
    return (
        f"; the {name} has {_ml(it.volume_ml)}{known} and a peak of {it.peak:.3g}, at ({place}) "
        f"mm: {it.reason}"
    )


def _counted(number: int, ml: float) -> str:
    return f"{number} candidate{'' if number == 1 else 's'} of {_ml(ml)}"


def _ml(volume: float) -> str:
    return f"{volume:.3f} ml" if volume < 0.1 else f"{volume:.1f} ml"
