"""What a result says of its lesions and of what was left out: record, warnings and table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmccd_cli.anomaly.mask import LeftOut, LeftOutSmall, Lesion
from mmccd_cli.outputs.anatomy import place_of

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
EMPTY = "n/a"

_NOTHING_KEPT = "Nothing was kept, but the map shows "
_NOTHING_SHOWN = "The map stays below its threshold everywhere."
_BRIGHT_LEFT_OUT = "Left out of the mask: "
_BRIGHT = 0.82  # mean of the map from which a candidate is about as bright as lesions are
_DOUBTFUL = 0.25  # confidence from which a candidate might be a lesion
_SOME_ML = 0.1
_MUCH_OF_BRAIN = "The mask holds "
_MUCH = 0.2  # share of the brain; the largest of 26 labelled gliomas has 0.17


def describe_mask(
    lesions: Sequence[Lesion],
    left_out: Sequence[LeftOut],
    left_out_small: LeftOutSmall,
    *,
    threshold: float,
) -> dict[str, Any]:
    """Return the part of a record that speaks of the mask.

    Args:
        lesions: Components of the mask, the largest first.
        left_out: Candidates that are not in it, the largest first.
        left_out_small: Those that are only counted.
        threshold: Value of the map above which a voxel belongs to the mask.
    """
    return {
        "lesion_volume_ml": round(sum(lesion.volume_ml for lesion in lesions), 6),
        "threshold": threshold,
        "lesions": lesions,
        "left_out": left_out,
        "left_out_small": left_out_small,
    }


def mask_warnings(
    lesions: Sequence[Lesion],
    left_out: Sequence[LeftOut],
    left_out_small: LeftOutSmall,
    *,
    brain_ml: float | None = None,
) -> list[str]:
    """Say what should be looked at: a mask that is empty, too large, or without something bright.

    Too large is known where the volume of the brain is. See `describe_mask` for what is given.
    """
    if lesions:
        return _warnings_of_found(lesions, left_out, brain_ml)
    number = len(left_out) + left_out_small.count
    if number == 0:
        return [_NOTHING_SHOWN]
    listed_ml = sum(candidate.volume_ml for candidate in left_out)
    found = _counted(number, listed_ml + left_out_small.volume_ml)
    return [f"{_NOTHING_KEPT}{found} in all{_strongest(left_out)}."]


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
    bright = [found for found in left_out if _is_bright(found)]
    if bright:
        found = _counted(len(bright), sum(candidate.volume_ml for candidate in bright))
        said.append(
            f"{_BRIGHT_LEFT_OUT}{found} that may be lesions, beside {_ml(kept_ml)} in it"
            f"{_strongest(bright)}."
        )
    return said


def is_mask_warning(text: str) -> bool:
    """Tell whether a sentence is one of `mask_warnings`, which a new mask renews."""
    return text.startswith((_NOTHING_KEPT, _NOTHING_SHOWN, _BRIGHT_LEFT_OUT, _MUCH_OF_BRAIN))


def lesion_table(
    lesions: Sequence[Lesion],
    left_out: Sequence[LeftOut],
    left_out_small: LeftOutSmall,
    *,
    settings: Mapping[str, Any],
) -> bytes:
    """Return the table of all that the map shows above its threshold, a row each.

    What is only counted has the last row, where there is any. See `describe_mask` for what is
    given; the record's settings tell how the map lies to the template.
    """
    rows = [_row(lesion, "yes", EMPTY) for lesion in lesions]
    rows += [_row(candidate, "no", candidate.reason) for candidate in left_out]
    if left_out_small.count:
        volume = f"{left_out_small.volume_ml:.6g}"
        reason = f"{left_out_small.count} more that are too small or too many to be listed"
        rows.append([EMPTY, "no", volume, *[EMPTY] * (len(COLUMNS) - 5), reason, EMPTY])
    places = [place_cells(found, settings) for found in (*lesions, *left_out)]
    places += [[EMPTY] * len(PLACE)] * (len(rows) - len(places))
    placed = ([*row, *place] for row, place in zip(rows, places, strict=True))
    return encode_tsv([*COLUMNS, *PLACE], placed)


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


def _row(lesion: Lesion, kept: str, reason: str) -> list[Any]:
    box = ",".join(f"{first}:{end}" for first, end in lesion.box)
    confidence = EMPTY if lesion.confidence is None else f"{lesion.confidence:g}"
    return [lesion.id, kept, *numbers_of(lesion), box, reason, confidence]


def _is_bright(candidate: LeftOut) -> bool:
    """Tell whether it might be a lesion after all."""
    if candidate.volume_ml < _SOME_ML:
        return False
    if candidate.confidence is None:
        return candidate.mean >= _BRIGHT
    return candidate.confidence >= _DOUBTFUL


def _strongest(left_out: Sequence[LeftOut]) -> str:
    """Describe the candidate with the highest peak; those of some volume come first."""
    if not left_out:
        return ""
    it = max(left_out, key=lambda found: (found.volume_ml >= _SOME_ML, found.peak, found.mean))
    place = ", ".join(f"{mm:.0f}" for mm in it.centroid_ras_mm)
    return (
        f"; the strongest has {_ml(it.volume_ml)} and a peak of {it.peak:.3g}, at ({place}) mm: "
        f"{it.reason}"
    )


def _counted(number: int, ml: float) -> str:
    return f"{number} candidate{'' if number == 1 else 's'} of {_ml(ml)}"


def _ml(volume: float) -> str:
    return f"{volume:.3f} ml" if volume < 0.1 else f"{volume:.1f} ml"
