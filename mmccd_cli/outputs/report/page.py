"""The report of one subject: one HTML file that opens from the disk and asks no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmccd_cli import __version__
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.outputs.images import plain
from mmccd_cli.outputs.report.checks import Check, check_subject, suspicion
from mmccd_cli.outputs.report.data import Material, gather
from mmccd_cli.outputs.report.html import Markup, data_block, element, join, page
from mmccd_cli.outputs.report.panels import Drawing, Panel
from mmccd_cli.outputs.report.tables import (
    check_table,
    ignored_table,
    input_table,
    intensity_histogram,
    lesion_table,
    map_histogram,
    run_table,
    whole_record,
)
from mmccd_cli.outputs.report.viewer import (
    library_code,
    library_licence,
    viewer_data,
    viewer_section,
)
from mmccd_cli.template import Template

if TYPE_CHECKING:
    from mmccd_cli.pipeline import SegmentationResult

SUMMARY = "mmccd-summary"
"""Id of the data block that `report_cohort` reads."""
SUMMARY_VERSION = 1

_MAX_PICTURED = 12
_CONVENTION = (
    "In all still pictures the patient’s left is on the left (neurological convention), marked "
    "L and R; sagittal cuts have the back (P) on the left."
)


def subject_report(
    result: SegmentationResult,
    volumes: Mapping[str, Volume],
    template: Template,
    record: Mapping[str, Any],
) -> bytes:
    """Return a subject's report.

    Args:
        result: What the pipeline returned, with its prepared subject.
        volumes: Modality -> scan, as it was read.
        template: The bundle's template.
        record: What the sidecar says; see `mmccd_cli.outputs.record`.

    Returns:
        An HTML file with everything in it.

    Raises:
        ValueError: The result has no prepared subject.
    """
    record = plain(record)
    material = gather(result, volumes, template)
    checks = check_subject(material, record["warnings"])
    drawing = Drawing(material)
    summary = _summary(record, material, checks, drawing)
    sections = [
        _header(record, material, checks),
        _lesions(material, drawing),
        _checks(checks, record["warnings"]),
        _registration(material, drawing),
        _brain(material, drawing),
        _intensities(material),
        _inputs(record, volumes, material),
        _run(record),
    ]
    return page(
        f"{record['subject']} – mmccd report",
        # The summary comes first: the cohort's page reads only the beginning of each report.
        join([data_block(SUMMARY, summary), viewer_data(material)]),
        join(sections),
        script="report.js",
        more_scripts=[library_code()],
    )


def _summary(
    record: Mapping[str, Any], material: Material, checks: Sequence[Check], drawing: Drawing
) -> dict[str, Any]:
    """What the cohort's page shows of a subject."""
    return {
        "summary_version": SUMMARY_VERSION,
        "subject": record["subject"],
        "status": "done",
        "lesion_volume_ml": record["lesion_volume_ml"],
        "lesions": len(material.lesions),
        "brain_litres": round(material.brain_litres, 4),
        "suspicion": suspicion(checks),
        "signs": [
            {"name": check.name, "value": check.value, "suspicion": round(check.suspicion, 3)}
            for check in checks
            if check.verdict != "good"
        ],
        "warnings": len(record["warnings"]),
        "bundle": f"{record['bundle']['name']} {record['bundle']['version']}",
        "thumbnail": base64.b64encode(drawing.thumbnail()).decode(),
    }


def _header(record: Mapping[str, Any], material: Material, checks: Sequence[Check]) -> Markup:
    share = material.mask.sum() / max(1, material.brain.sum())
    doubt = suspicion(checks)
    facts = {
        "Lesion volume": f"{record['lesion_volume_ml']:.2f} ml",
        "Lesions": str(len(material.lesions)),
        "Share of the brain": f"{share:.1%}",
        "Brain": f"{material.brain_litres:.2f} l",
        "Suspicion of failure": f"{doubt:.2f}",
    }
    links = {
        "lesions": "Lesions",
        "checks": "Checks",
        "registration": "Registration",
        "brain": "Brain mask",
        "intensities": "Intensities",
        "inputs": "Inputs",
        "run": "Settings",
    }
    about = (
        f"Anomaly map and mask by mmccd {__version__} with {record['bundle']['name']} "
        f"{record['bundle']['version']}, on the grid of {material.reference}. Research use only, "
        "not for diagnosis."
    )
    return join(
        [
            element(
                "header",
                element("h1", record["subject"]),
                element("p", about, class_="faint"),
                element(
                    "nav",
                    element(
                        "ul",
                        [
                            element("li", element("a", name, href=f"#{anchor}"))
                            for anchor, name in links.items()
                        ],
                    ),
                    aria_label="Parts of this report",
                ),
            ),
            element(
                "dl",
                [
                    element("div", element("dt", name), element("dd", value))
                    for name, value in facts.items()
                ],
                class_="facts",
            ),
            viewer_section(),
        ]
    )


def _lesions(material: Material, drawing: Drawing) -> Markup:
    number = len(material.lesions)
    pictured = min(number, _MAX_PICTURED)
    if not number:
        text = "No lesion was found. The pictures show the map in the middle of the brain."
    elif pictured < number:
        text = f"Pictures of the {pictured} largest of {number} lesions; the table lists all."
    else:
        text = "Each lesion in the cuts that show most of it."
    scale = element(
        "p",
        element("span", element("span", class_="swatch heat"), "map, 0 to 1"),
        element("span", element("span", class_="swatch contour"), "outline of the mask"),
        class_="legend",
    )
    parts: list[Any] = [
        element("h2", "Lesions", id="lesions"),
        lesion_table(material) if number else None,
        element("p", f"{text} {_CONVENTION}"),
        scale,
        _row("Scan alone", drawing.overview()),
    ]
    if not number:
        parts.append(_row("With the map", drawing.without_lesion()))
    for index, lesion in enumerate(material.lesions[:pictured]):
        title = f"Lesion {lesion.id}: {lesion.volume_ml:.3g} ml"
        parts.append(_row(title, drawing.lesion(index)))
    return element("section", parts)


def _checks(checks: Sequence[Check], warnings: Sequence[str]) -> Markup:
    explained = (
        "Each sign counts between 0 (as expected) and 1 (clearly unusual); one clear sign makes "
        "the suspicion 1, weak ones add up. It orders subjects for a closer look and is no "
        "probability; a large tumour is unusual, too."
    )
    notes = (
        element("ul", [element("li", text) for text in warnings], class_="notes")
        if warnings
        else element("p", "None.")
    )
    return element(
        "section",
        element("h2", "Checks", id="checks"),
        element("p", explained),
        check_table(checks),
        element("h3", "Notes and warnings of the run"),
        notes,
    )


def _registration(material: Material, drawing: Drawing) -> Markup:
    reference = material.reference
    parts: list[Any] = [element("h2", "Registration", id="registration")]
    others = [name for name in material.images if name != reference]
    if others:
        parts.append(
            element(
                "p",
                element("span", class_="swatch edges"),
                "Edges of a modality, drawn on the reference, run along the same sulci and "
                "ventricles where the registration is right; in the checkerboard, outlines go "
                "on unbroken from tile to tile.",
            )
        )
    for name in others:
        parts.append(_row(f"Edges of {name} on {reference}", drawing.edges_of(name)))
        parts.append(_row(f"{reference} and {name} in turn", drawing.checkerboard_with(name)))
    if material.template_mask.any():
        parts += [
            element(
                "p",
                element("span", class_="swatch template"),
                "The template’s brain, moved to the subject: its outline fits roughly, ventricles "
                "and midline lie on the subject’s.",
            ),
            _row(f"Outline and edges of the template on {reference}", drawing.template()),
        ]
    return element("section", parts)


def _brain(material: Material, drawing: Drawing) -> Markup:
    method = material.prepared.brain_method
    found = "as the scans came" if method == "stripped" else f"found by: {method}"
    return element(
        "section",
        element("h2", "Brain mask", id="brain"),
        element(
            "p",
            element("span", class_="swatch brain"),
            f"Outline of the brain mask ({found}): all of the brain inside, eyes, skull and neck "
            "outside.",
        ),
        element("div", [panel.figure() for panel in drawing.brain()], class_="panels many"),
    )


def _intensities(material: Material) -> Markup:
    drawings = [map_histogram(material)]
    drawings += [intensity_histogram(material, name) for name in material.images]
    return element(
        "section",
        element("h2", "Intensities", id="intensities"),
        element("div", drawings, class_="histograms"),
    )


def _inputs(record: Mapping[str, Any], volumes: Mapping[str, Volume], material: Material) -> Markup:
    return element(
        "section",
        element("h2", "Inputs", id="inputs"),
        input_table(record, volumes, material.prepared.matrices),
        ignored_table(record) if record["ignored"] else None,
    )


def _run(record: Mapping[str, Any]) -> Markup:
    return element(
        "section",
        element("h2", "Settings, weights and versions", id="run"),
        run_table(record),
        element("details", element("summary", "The whole record"), whole_record(record)),
        element("details", element("summary", "Licences"), element("pre", library_licence())),
    )


def _row(title: str, panels: Sequence[Panel]) -> Markup:
    return element(
        "div",
        element("h3", title),
        element("div", [panel.figure() for panel in panels], class_="panels"),
        class_="lesion",
    )
