"""The report of one subject: complete, harmless, and with its overlays where they belong."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from mmccd_cli.anomaly.mask import LeftOut, LeftOutSmall
from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.inputs.volume import Volume, reorient
from mmccd_cli.outputs.report.data import report_data
from mmccd_cli.outputs.report.page import SUMMARY, subject_report
from mmccd_cli.outputs.report.panels import Panels
from mmccd_cli.outputs.report.render import read_data_block
from mmccd_cli.outputs.report.viewer import library_code, library_licence, small_grid
from mmccd_cli.pipeline import Pipeline, SegmentationResult
from mmccd_cli.template import Template

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
NO_UTF8 = b"caf\xe9.nii.gz".decode("utf-8", "surrogateescape")


@dataclass(frozen=True, eq=False)
class Case:
    """A segmented phantom and all that a report is made from."""

    result: SegmentationResult
    volumes: dict[str, Volume]
    template: Template
    record: dict[str, Any]

    def report(self) -> str:
        return subject_report(
            self.result, self.volumes, template=self.template, record=self.record
        ).decode()


@pytest.fixture(scope="module")
def case(segmenter: Pipeline, tiny_phantom: Phantom) -> Case:
    volumes = {name: tiny_phantom.volumes[name] for name in ("FLAIR", "T2w")}
    result = segmenter.segment(volumes)
    record = {
        "subject": HOSTILE,
        "reference": result.reference,
        "lesion_volume_ml": sum(lesion.volume_ml for lesion in result.lesions),
        "threshold": result.threshold,
        "lesions": result.lesions,
        "inputs": {
            "FLAIR": {"file": HOSTILE, "sha256": "0" * 64},
            "T2w": {"file": NO_UTF8, "sha256": "1" * 64},
        },
        "ignored": [{"file": HOSTILE, "reason": "contrast"}],
        "bundle": {"name": "tiny", "version": HOSTILE, "sha256": "2" * 64, "hub": None},
        "settings": {**result.settings, "requested": {"threshold": "auto"}},
        "seed": 0,
        "device": "cpu",
        "threads": 1,
        "versions": {"mmccd": "0"},
        "seconds": result.seconds,
        "warnings": ["<b>one</b>"],
        "notes": [f"{NO_UTF8} was mended."],
    }
    return Case(result, volumes, segmenter.bundle.template, record)


@pytest.fixture(scope="module")
def report(case: Case) -> str:
    return case.report()


def without_data(report: str) -> str:
    """The page without library, images and pictures, whose base64 may look like anything."""
    report = re.sub(r'<script type="application/gzip"[^<]*</script>', "", report)
    return re.sub(r"base64,[A-Za-z0-9+/=]*", "", report)


def embedded(report: str, name: str) -> nib.Nifti1Image:
    block = re.search(rf'<script type="application/gzip" id="viewer-{name}">([^<]*)<', report)
    assert block is not None
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(block[1])))


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
    assert scripts == ["application/json", "application/json", None]
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
    assert any(sign["name"] == "Warnings" for sign in summary["signs"])
    assert base64.b64decode(summary["thumbnail"])[:2] == b"\xff\xd8"


def centre_of(image: nib.Nifti1Image, above: float) -> np.ndarray:
    index = np.argwhere(np.asarray(image.dataobj) > above).mean(axis=0)
    return nib.affines.apply_affine(image.affine, index)


def test_the_viewers_images_lie_where_the_files_do(case, report):
    mask = nib.Nifti1Image(case.result.mask.astype(np.uint8), case.result.shown.affine)
    expected = centre_of(mask, 0.5)
    assert centre_of(embedded(report, "mask"), 0.5) == pytest.approx(expected, abs=1)
    assert embedded(report, "mask").header["intent_code"] == 1002
    threshold = case.result.threshold
    values = nib.Nifti1Image(case.result.anomaly_map, case.result.shown.affine)
    found = centre_of(embedded(report, "map"), 255 * threshold)
    assert found == pytest.approx(centre_of(values, threshold), abs=1)
    scan, brain = (
        embedded(report, "reference"),
        nib.Nifti1Image(case.result.brain.astype(np.uint8), case.result.shown.affine),
    )
    assert centre_of(scan, 60) == pytest.approx(centre_of(brain, 0.5), abs=8)


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (0.5, 0.6, 5.0), (2.0, 2.0, 2.0)])
def test_the_viewers_grid_is_small_and_covers_the_same_box(spacing):
    shape, affine = (300, 310, 40), np.diag([*spacing, 1.0])
    affine[:3, 3] = (-20, 7, 3)
    small_shape, small = small_grid(shape, affine)
    assert np.prod(small_shape) <= 1_500_000
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
        prepared=replace(case.result.prepared, reference_volume=shown),
    )
    ours = Panels(report_data(replace(case.result, lesions=[]), case.volumes, case.template))
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


def test_the_library_is_the_one_that_its_licence_names():
    assert hashlib.sha256(library_code()).hexdigest() in library_licence()
    assert "BSD 2-Clause License" in library_licence()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium that draws WebGL in software."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    with driver.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        opened = playwright.chromium.launch(executable_path=found, args=arguments)
        yield opened
        opened.close()


def opened(browser: Any, path: Path, script: str = "") -> tuple[Any, list[str], list[str]]:
    """A page from the disk, with the addresses that it asked for and what it complained of."""
    context = browser.new_context(viewport={"width": 900, "height": 700})
    context.set_default_timeout(120_000)
    if script:
        context.add_init_script(script)
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    page.goto(path.as_uri())
    page.wait_for_selector("#viewer[data-state]", state="attached")
    return page, [url for url in asked if not url.startswith("data:")], said


def test_a_browser_draws_it_from_the_disk_and_asks_nothing(browser, case, report, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report, encoding="utf-8")
    page, asked, said = opened(browser, path)
    assert asked == [path.as_uri()]
    assert said == []
    assert page.title().startswith(HOSTILE)
    if page.get_attribute("#viewer", "data-state") == "drawn":
        page.click("button[data-point] >> nth=0")
        readout = page.text_content("#viewer-position")
        assert readout is not None
        numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", readout)]
        point = np.array(case.result.lesions[0].centroid_ras_mm)
        assert np.array(numbers[:3]) == pytest.approx(point, abs=15)
        assert numbers[3] >= case.result.threshold - 0.1
    else:
        assert page.is_visible("#viewer-message")


def test_without_webgl_the_pictures_remain_and_a_sentence_says_so(browser, report, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report, encoding="utf-8")
    page, asked, said = opened(
        browser, path, "HTMLCanvasElement.prototype.getContext = () => null;"
    )
    assert page.get_attribute("#viewer", "data-state") == "fallback"
    assert page.is_visible("#viewer-message")
    assert not page.is_visible("#viewer")
    assert page.is_visible(".panels img >> nth=0")
    assert (asked, said) == ([path.as_uri()], [])
