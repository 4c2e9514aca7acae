"""`mmccd compare`: two results of one subject against each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import JsonConsole
from mmccd_cli.cli.options import input_option, output_option
from mmccd_cli.errors import UsageError
from mmccd_cli.files import refuse_to_overwrite, write_all_atomically

if TYPE_CHECKING:
    from mmccd_cli.cohort.compare import Comparison, Position
    from mmccd_cli.cohort.results import Result

_COLUMNS = ("change", "ids_a", "ids_b", "volume_a_ml", "volume_b_ml", "peak_a", "peak_b")


@command
def compare(
    *,
    a: Annotated[
        Path, typer.Argument(metavar="A", help="Map of the first result, or another mask of a map.")
    ],
    b: Annotated[Path, typer.Argument(metavar="B", help="The same of the second result.")],
    scan_a: Annotated[
        Path | None,
        input_option(help="Reference scan of A, where B is of another examination."),
    ] = None,
    scan_b: Annotated[
        Path | None,
        input_option(help="Reference scan of B, which is registered rigidly to that of A."),
    ] = None,
    out: Annotated[
        Path | None,
        output_option(
            metavar="DIFFERENCE.nii.gz", help="Write B's map minus A's, on the grid of A."
        ),
    ] = None,
    table: Annotated[
        Path | None,
        output_option(metavar="FILE.tsv", help="Write what became of each lesion."),
    ] = None,
    force: options.Force = False,
    console: JsonConsole,
) -> None:
    """Compare two results of one subject: two thresholds, two weights or two time points.

    Lesions are one and the same where they overlap; they have grown or shrunk where their volume
    changed by more than a fifth and 0.05 ml.

    Examples:
      mmccd compare old.nii.gz new.nii.gz
      mmccd compare map.nii.gz strict.nii.gz
      mmccd compare 2021.nii.gz 2023.nii.gz --scan-a f21.nii.gz --scan-b f23.nii.gz
    """
    if (scan_a is None) != (scan_b is None):
        raise UsageError(
            "One scan alone cannot be registered.", next_step="Give both --scan-a and --scan-b."
        )
    scans = None if scan_a is None or scan_b is None else (scan_a, scan_b)
    written = [path for path in (out, table) if path is not None]
    from mmccd_cli.cohort.compare import compare as compare_results
    from mmccd_cli.cohort.compare import find_position, others_remark
    from mmccd_cli.cohort.results import files_of_result, read_result
    from mmccd_cli.inputs.nifti import encode_nifti, is_compressed_name

    read = [*files_of_result(a).values(), *files_of_result(b).values(), *(scans or ())]
    refuse_to_overwrite(written, read, force=force)
    first, second = read_result(a), read_result(b)
    with console.progress() as progress:
        progress.begin("finding how the scans lie to each other", told=scans is not None)
        position = find_position(first, second, scans)
        found = compare_results(first, second, position)
    warnings = [str(text) for text in (position.remark, others_remark(first, second)) if text]
    for text in warnings:
        console.warning(text)
    contents = {}
    if out is not None:
        contents[out] = encode_nifti(
            found.difference,
            first.grid,
            compress=is_compressed_name(out),
            intent="estimate",
            description="mmccd difference of two anomaly maps",
            display_range=(-1.0, 1.0),
        )
    if table is not None:
        contents[table] = _table(found)
    write_all_atomically(contents)
    record = _record(first, second, position, found=found) | {"warnings": warnings}
    console.answer(record, *_lines(first, second, found))


def _record(a: Result, b: Result, position: Position, *, found: Comparison) -> dict[str, Any]:
    return {
        "a": _named(a),
        "b": _named(b),
        "position": position.by,
        "matrix_a_to_b": position.matrix.tolist(),
        "dice": round(found.dice, 6),
        "map_correlation": None if found.correlation is None else round(found.correlation, 6),
        "difference_ml": round(sum(b.volumes_ml) - sum(a.volumes_ml), 6),
        "lesions": [asdict(lesion) for lesion in found.lesions],
        "differs": _differing(a, b),
    }


def _named(result: Result) -> dict[str, Any]:
    record = result.record
    return {
        "subject": record["subject"],
        "map": record["outputs"]["map"],
        "mask": record["outputs"]["mask"],
        "scans": _scans(result),
        "threshold": record["threshold"],
        "lesion_volume_ml": round(sum(result.volumes_ml), 6),
        "lesions": len(result.volumes_ml),
    }


def _scans(result: Result) -> list[str]:
    """Name the modalities that the map was made from."""
    record = result.record
    counted = record["settings"]["score"].get("modalities", list(record["inputs"]))
    return [name for name in record["inputs"] if name in counted]


def _differing(a: Result, b: Result) -> list[str]:
    """Name what was not the same when the two were made, beside the examination itself."""
    asked = [result.record["settings"]["requested"] for result in (a, b)]
    found = [name for name in asked[0] | asked[1] if asked[0].get(name) != asked[1].get(name)]
    weights, version = ([r.record[key] for r in (a, b)] for key in ("bundle", "versions"))
    found += ["scans"] if _scans(a) != _scans(b) else []
    found += ["weights"] if weights[0]["sha256"] != weights[1]["sha256"] else []
    return found + (["version"] if version[0]["mmccd"] != version[1]["mmccd"] else [])


def _lines(a: Result, b: Result, found: Comparison) -> list[str]:
    """Say for people what the record says."""
    counts = Counter(lesion.change for lesion in found.lesions)
    said = ", ".join(f"{number} {change}" for change, number in counts.items())
    before, after = sum(a.volumes_ml), sum(b.volumes_ml)
    lines = [
        f"{before:.2f} ml before, {after:.2f} ml after ({after - before:+.2f} ml); "
        f"Dice {found.dice:.3f}",
        f"Lesions: {said or 'none in either'}",
    ]
    if differing := _differing(a, b):
        lines.append(f"Made with different {' and '.join(differing)}")
    if "scans" in differing:
        lines.append(f"  {' and '.join(_scans(a))} before, {' and '.join(_scans(b))} after")
    for lesion in found.lesions:
        numbers = [" and ".join(map(str, ids)) or "-" for ids in (lesion.ids_a, lesion.ids_b)]
        place = ", ".join(f"{mm:.0f}" for mm in lesion.centroid_ras_mm)
        lines.append(
            f"  {lesion.change:<11} {numbers[0]:>5} -> {numbers[1]:<5} "
            f"{lesion.volume_a_ml:8.3f} -> {lesion.volume_b_ml:8.3f} ml, "
            f"peak {lesion.peak_a:.2f} -> {lesion.peak_b:.2f}, at ({place}) mm"
        )
    return lines


def _table(found: Comparison) -> bytes:
    from mmccd_cli.outputs.lesions import EMPTY, encode_tsv

    def cell(value: Any) -> str:
        if isinstance(value, list):
            return ",".join(map(str, value)) or EMPTY
        return value if isinstance(value, str) else f"{value:.6g}"

    rows = [
        [*(cell(getattr(it, name)) for name in _COLUMNS), *map(cell, it.centroid_ras_mm)]
        for it in found.lesions
    ]
    return encode_tsv([*_COLUMNS, "x_mm", "y_mm", "z_mm"], rows)
