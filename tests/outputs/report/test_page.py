"""The report of one subject: complete, harmless, and with its overlays where they belong."""

from __future__ import annotations

import base64
import csv
import html
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from report_cases import HOSTILE, Case, facts_of, in_mask, packed, unpacked

from mmccd_cli.anomaly.mask import LeftOut, LeftOutSmall
from mmccd_cli.inputs.volume import Volume, reorient
from mmccd_cli.outputs.anatomy import MIDLINE
from mmccd_cli.outputs.lesions import COLUMNS, PLACE
from mmccd_cli.outputs.numbers import number_lesions
from mmccd_cli.outputs.report.data import report_data
from mmccd_cli.outputs.report.page import SCRIPTS, SUMMARY
from mmccd_cli.outputs.report.panels import Panels
from mmccd_cli.outputs.report.render import read_data_block
from mmccd_cli.outputs.report.viewer import small_grid


def without_data(report: str) -> str:
    """The page without images and pictures, whose base64 may look like anything."""
    report = re.sub(r'<script type="application/gzip"[^<]*</script>', "", report)
    return re.sub(r"base64,[A-Za-z0-9+/=]*", "", report)


def test_everything_that_a_reader_needs_is_there(case, report):
    text = without_data(report)
    for part in ("Lesions", "Registration", "Brain mask", "Inputs", "neurological", "RAS mm"):
        assert part in text
    assert text.count("Research use only") == 1
    assert "0" * 64 in text
    assert "2" * 64 in text
    rows = text.count('type="button" hidden')
    assert rows == len(case.result.lesions) + len(case.result.left_out) > 0
    assert text.count('<tr class="left-out">') == len(case.result.left_out)
    images = re.findall(r"<img[^>]*>", text)
    assert len(images) > 15
    assert all('alt="' in image for image in images)


class Elements(HTMLParser):
    """What a browser would make of a page: its elements with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_names_cannot_break_out(report):
    text = without_data(report)
    elements = Elements(text).found
    scripts = [attributes.get("type") for tag, attributes in elements if tag == "script"]
    assert scripts == ["application/json", "application/json", *[None] * len(SCRIPTS)]
    assert not any(key.startswith("on") for _, attributes in elements for key in attributes)
    assert "b" not in {tag for tag, _ in elements}
    assert "caf\ufffd.nii.gz" in text
    assert "&lt;script&gt;alert(1)" in text


def test_it_refers_to_nothing_outside(report):
    places = {
        attributes[key]
        for _, attributes in Elements(without_data(report)).found
        for key in ("src", "href", "action", "data", "poster", "srcset")
        if key in attributes
    }
    assert places
    assert all(str(place).startswith(("data:", "#")) for place in places)
    assert "url(" not in without_data(report)
    assert str(Path(__file__).resolve().parents[3]) not in report
    assert len(report) < 6_000_000


def test_the_summary_stands_at_the_beginning(case, report):
    summary = read_data_block(report[:200_000], SUMMARY)
    assert summary["subject"] == HOSTILE
    assert summary["lesion_volume_ml"] == pytest.approx(case.record["lesion_volume_ml"])
    assert 0 <= summary["suspicion"] <= 1
    assert any(sign["name"] == "Warnings besides those of the mask" for sign in summary["signs"])
    assert base64.b64decode(summary["thumbnail"])[:2] == b"\xff\xd8"


def centre_of(inside: np.ndarray, affine: Any) -> np.ndarray:
    return nib.affines.apply_affine(np.array(affine), np.argwhere(inside).mean(axis=0))


def test_the_viewers_images_lie_where_the_files_do(case, report):
    facts, affine = facts_of(report), case.result.shown.affine
    mask, values = case.result.mask, case.result.anomaly_map
    own = in_mask(report, facts["own"])
    assert own.sum() == mask.sum()  # a small grid is kept
    pairs = (
        (own, mask),
        (unpacked(report, "map", "u1") > 50, values > 0.5),
        (unpacked(report, "numbers", "<u2") == 1, number_lesions(mask) == 1),
    )
    for shown, there in pairs:
        expected = centre_of(there, affine)
        assert centre_of(shown, facts["affine"]) == pytest.approx(expected, abs=0.01)
    assert np.array(facts["inverse"]) @ np.array(facts["affine"]) == pytest.approx(
        np.eye(4), abs=1e-3
    )
    assert facts["start"] == pytest.approx(np.argwhere(own).mean(axis=0), abs=4)


def test_the_viewer_has_every_scan(case, report):
    facts = facts_of(report)
    i, j, k = facts["shape"]
    assert [scan["name"] for scan in facts["scans"]] == ["FLAIR", "T2w"]
    for scan in facts["scans"]:
        mosaic = np.asarray(Image.open(io.BytesIO(packed(report, f"scan-{scan['name']}"))))
        columns = mosaic.shape[1] // i
        slices = [mosaic[n // columns * j :, n % columns * i :][:j, :i].T for n in range(k)]
        grey = np.stack(slices, axis=-1) / 255 * (scan["high"] - scan["low"]) + scan["low"]
        volume = reorient(case.volumes[scan["name"]], "RAS")
        at = np.rint(
            nib.affines.apply_affine(facts["affine"], np.indices((i, j, k)).reshape(3, -1).T)
        )
        index = np.rint(nib.affines.apply_affine(np.linalg.inv(volume.affine), at)).astype(int)
        there = volume.data[tuple(index.T)].reshape(i, j, k)
        inside = there > 0
        assert np.corrcoef(grey[inside], there[inside])[0, 1] > 0.93
        probe = mosaic[-facts["probe"] // 2]
        assert probe[2] > 230 > 25 > probe[-3]


def test_the_table_can_be_downloaded_with_commas(case, report):
    link = re.search(r'download="[^"]*_lesions.csv" href="data:text/csv;base64,([^"]*)"', report)
    assert link is not None
    rows = list(csv.reader(io.StringIO(base64.b64decode(link[1]).decode())))
    assert rows[0] == [*COLUMNS, *PLACE]
    assert len(rows) >= 1 + len(case.result.lesions) + len(case.result.left_out)
    assert float(rows[1][2]) == pytest.approx(case.result.lesions[0].volume_ml, rel=1e-4)


def test_other_thresholds_can_be_read_without_a_script(report):
    text = without_data(report)
    steps = facts_of(report)["steps"]
    assert len(steps) >= 19
    for number, step in enumerate(steps):
        shown = f'<td class="number">{step["volume_ml"]:.2f}</td>'
        assert shown in text
        command = f"<code>{html.escape(step['command']).replace('&#x27;', '&#39;')}</code>"
        assert (command in text) == (number != facts_of(report)["own"])


def test_only_one_of_several_reports_leads_to_an_index(case, report):
    assert 'id="neighbours"' not in report
    text = case.report(index="../../index.html")
    assert '<a href="../../index.html">' in text


def test_a_rating_belongs_to_one_result_of_a_subject(case, report):
    changed = {**case.record, "output_sha256": {"map": "3" * 64, "mask": "5" * 64}}
    ids = [
        read_data_block(text, SUMMARY)["result"]
        for text in (report, case.report(), replace(case, record=changed).report())
    ]
    assert ids[0] == ids[1] != ids[2]


def test_confidence_has_a_column_where_it_is_known(case):
    unsure = [replace(lesion, confidence=None) for lesion in case.result.lesions]
    result = replace(case.result, lesions=unsure, left_out=[])
    assert ">Confidence<" not in without_data(replace(case, result=result).report())
    sure = [replace(lesion, confidence=0.876) for lesion in unsure]
    result = replace(case.result, lesions=sure, left_out=[])
    text = without_data(replace(case, result=result).report())
    assert ">Confidence<" in text
    assert text.count('<td class="number">0.88</td>') >= len(sure)


def test_sides_have_a_column_where_the_midline_is_known(case):
    assert ">Side<" not in without_data(case.report())
    lesion = case.result.lesions[0]
    there = case.record["settings"]["reference_to_template"]
    x = nib.affines.apply_affine(np.array(there), lesion.centroid_ras_mm)[0]
    for midline, side in ((x + 20, "left"), (x - 20, "right")):
        settings = {**case.record["settings"], MIDLINE: float(midline)}
        record = {**case.record, "settings": settings}
        text = without_data(replace(case, record=record).report())
        assert ">Side<" in text
        assert f"<td>{side}</td>" in text


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (0.5, 0.6, 5.0), (2.0, 2.0, 2.0)])
def test_the_viewers_grid_is_small_and_covers_the_same_box(spacing):
    shape, affine = (400, 410, 60), np.diag([*spacing, 1.0])
    affine[:3, 3] = (-20, 7, 3)
    small_shape, small = small_grid(shape, affine)
    assert np.prod(small_shape) <= 4_000_000
    first = [nib.affines.apply_affine(a, (-0.5, -0.5, -0.5)) for a in (affine, small)]
    last = [
        nib.affines.apply_affine(a, np.array(s) - 0.5)
        for a, s in ((affine, shape), (small, small_shape))
    ]
    assert first[0] == pytest.approx(first[1])
    assert np.all(last[1] - last[0] >= -1e-6)
    assert np.all(last[1] - last[0] <= 2 * np.diag(small)[:3])
    if spacing[2] == 5.0:
        assert small[2, 2] == 5.0


@pytest.mark.parametrize("codes", ["LPS", "SAR"])
def test_pictures_do_not_depend_on_the_order_of_the_voxels(case: Case, codes: str):
    def turned(array: np.ndarray) -> np.ndarray:
        return reorient(Volume(array.astype(np.float32), case.result.shown.affine), codes).data

    volumes = {name: reorient(volume, codes) for name, volume in case.volumes.items()}
    shown = volumes["FLAIR"]
    assert case.result.prepared is not None
    other = replace(
        case.result,
        anomaly_map=turned(case.result.anomaly_map),
        mask=turned(case.result.mask) > 0,
        brain=turned(case.result.brain) > 0,
        shown=shown,
        lesions=[],
        left_out=[],
        prepared=replace(case.result.prepared, reference_volume=shown),
    )
    alone = replace(case.result, lesions=[], left_out=[])
    ours = Panels(report_data(alone, case.volumes, case.template))
    theirs = Panels(report_data(other, volumes, case.template))
    pairs = zip(
        [*ours.without_lesion(), *ours.edges_of("T2w"), *ours.template(), *ours.brain()],
        [*theirs.without_lesion(), *theirs.edges_of("T2w"), *theirs.template(), *theirs.brain()],
        strict=True,
    )
    for a, b in pairs:
        assert a.caption == b.caption
        # Interpolating the template along other axes may differ in the last bit.
        assert np.mean(np.asarray(a.image) != np.asarray(b.image)) < 0.002


def test_the_pictures_of_a_lesion_show_its_outline(case):
    panels = Panels(report_data(case.result, case.volumes, case.template))
    for panel in panels.lesion(0):
        pixels = np.asarray(panel.image).astype(int)
        outline = (pixels[..., 1] > 200) & (pixels[..., 0] < 150)
        assert outline.sum() > 20


def test_without_lesion_and_in_template_space(case, segmenter):
    (lesion, *_) = case.result.lesions
    left_out = LeftOut(**vars(lesion), reason="it is <small>")
    none = np.zeros_like(case.result.mask)
    empty = replace(case.result, mask=none, lesions=[], left_out=[left_out])
    record = {**case.record, "lesions": [], "lesion_volume_ml": 0.0, "warnings": []}
    text = replace(case, result=empty, record=record).report()
    assert "No lesion was found. Nothing was kept, but the map shows 1 candidate of" in text
    assert text.count("it is &lt;small&gt;") == 2
    nothing = replace(empty, left_out=[], left_out_small=LeftOutSmall())
    text = replace(case, result=nothing, record=record).report()
    assert "No lesion was found. The map stays below its threshold everywhere." in text
    assert '<tr class="left-out">' not in text
    assert case.result.prepared is not None
    moved = segmenter.infer(case.result.prepared, space="template")
    assert "Edges of T2w on FLAIR" in replace(case, result=moved, record=record).report()


def test_many_lesions_are_all_listed_and_the_largest_pictured(case):
    (first, *_) = case.result.lesions
    many = [replace(first, id=number) for number in range(1, 21)]
    result = replace(case.result, lesions=many, left_out=[])
    text = without_data(replace(case, result=result).report())
    assert "12 largest of 20 lesions" in text
    assert text.count('type="button" hidden') == 20
