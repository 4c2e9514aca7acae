"""What the pages do in a browser: headless Chromium, from the disk, without any network."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_cases import HOSTILE, Case, facts_of, in_mask

from mmccd_cli.errors import DataError
from mmccd_cli.outputs.record import Outcome
from mmccd_cli.outputs.report.cohort import report_path, write_cohort_page

PATIENCE_MS = 300_000
"""A machine may be busy: all waits are for a state, and only what never comes takes this long."""
NO_STORAGE = """Object.defineProperty(window, "localStorage", {
  get() { throw new DOMException("refused", "SecurityError"); } });"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    with driver.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox"], timeout=PATIENCE_MS
        )
        yield opened
        opened.close()


class Opened:
    """A page from the disk, with the addresses that it asked for and what it complained of."""

    def __init__(self, browser: Any, path: Path, script: str = "") -> None:
        self.context = browser.new_context(viewport={"width": 1000, "height": 900})
        self.context.set_default_timeout(PATIENCE_MS)
        if script:
            self.context.add_init_script(script)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url.split("#")[0]))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog: {dialog.message}"))
        self.page.goto(path.as_uri())
        if path.name.endswith("_report.html"):
            self.wait()

    def wait(self) -> None:
        """Until the report in view has started its viewer, or said that it cannot."""
        self.page.wait_for_selector("#viewer[data-state]", state="attached")

    def text(self, selector: str) -> str:
        return str(self.page.text_content(selector)).strip()

    def choose(self, name: str, value: str) -> None:
        self.page.locator(f"#viewer-{name}").fill(value)

    def picture(self, plane: str) -> np.ndarray:
        """The pixels of a plane, (H, W, 3), once it is drawn."""
        url = self.page.wait_for_function(
            """(id) => document.getElementById("viewer-stage").ariaBusy === "false"
            && document.getElementById(id).toDataURL()""",
            arg=f"viewer-{plane}",
        ).json_value()
        png = base64.b64decode(url.partition(",")[2])
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)

    def saved(self, selector: str) -> tuple[str, str]:
        """Name and text of the file that a button or link saves."""
        with self.page.expect_download() as waiting:
            self.page.click(selector)
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_text("utf-8")


def is_outlined(picture: np.ndarray) -> np.ndarray:
    """Where the colour of the mask's outline is."""
    red, green, blue = np.moveaxis(picture, -1, 0)
    return (green > 190) & (red < 130) & (blue > 140)


@pytest.fixture(scope="module")
def folder(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three reports with an index: `a`, `b & c` and one whose name is hostile."""
    made: Path = tmp_path_factory.mktemp("reports")
    for number, subject in enumerate(("a", "b & c", HOSTILE)):
        record = {**case.record, "subject": subject, "lesion_volume_ml": 3.0 - number}
        text = replace(case, record=record).report(index="index.html")
        report_path(made, subject.replace("/", "")).write_text(text, encoding="utf-8")
    failed = Outcome("broken", "failed", error=DataError("No scan.", next_step="Look."))
    write_cohort_page(made, [failed])
    return made


@pytest.fixture
def opened(browser: Any, folder: Path) -> Opened:
    return Opened(browser, report_path(folder, "a"))


def test_it_draws_from_the_disk_and_asks_nothing(opened: Opened, folder: Path, case: Case):
    assert opened.page.get_attribute("#viewer", "data-state") == "drawn"
    for plane in ("axial", "coronal", "sagittal"):
        picture = opened.picture(plane)
        assert is_outlined(picture).sum() > 20
        assert picture.max() > 150
    opened.page.click("button[data-point] >> nth=0")
    opened.picture("axial")
    place = opened.text("#viewer-position")
    numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", place.split(";")[0])]
    point = np.array(case.result.lesions[0].centroid_ras_mm)
    assert np.array(numbers[:3]) == pytest.approx(point, abs=15)
    assert "lesion 1" in place
    assert opened.asked == [report_path(folder, "a").as_uri()]
    assert opened.said == []


def test_the_slider_redraws_mask_volume_and_command(opened: Opened, folder: Path):
    report = report_path(folder, "a").read_text("utf-8")
    facts = facts_of(report)
    assert opened.text("#viewer-volume").endswith("(this result)")
    before = opened.picture("axial")
    z = facts["start"][2]
    sizes = [in_mask(report, step)[..., z].sum() for step in range(len(facts["steps"]))]
    other = int(np.argmax(np.abs(np.array(sizes) - sizes[facts["own"]])))
    opened.choose("threshold", str(other))
    step = facts["steps"][other]
    assert f"{step['volume_ml']:.2f} ml in {step['lesions']} lesion" in opened.text(
        "#viewer-volume"
    )
    assert opened.text("#viewer-command") == step["command"]
    assert opened.page.get_attribute("#viewer-threshold", "aria-valuetext").startswith(
        f"{step['threshold']:.2f}"
    )
    tick = float(opened.page.get_attribute("#viewer-colors .tick", "x1"))
    assert tick == pytest.approx(10 + 200 * step["threshold"])
    assert (is_outlined(opened.picture("axial")) != is_outlined(before)).sum() > 20
    opened.page.click("#viewer-threshold-reset")
    np.testing.assert_array_equal(opened.picture("axial"), before)
    assert opened.said == []


def test_the_least_confidence_moves_candidates_in_and_out_of_the_mask(
    browser: Any, case: Case, tmp_path: Path
):
    (lesion, *_), (candidate, *_) = case.result.lesions, case.result.left_out
    judged = {"lesions": [replace(lesion, confidence=0.8)]}
    judged["left_out"] = [replace(candidate, confidence=0.3, reason="its confidence is low")]
    score = {**case.result.settings["score"], "min_confidence": 0.5}
    score["confidence"] = {"weights": [1.0, 1.0, 0.0], "bias": -3.0}
    settings = {**case.record["settings"], "score": score}
    page = tmp_path / "a_report.html"
    sure = replace(case, result=replace(case.result, **judged))
    page.write_text(replace(sure, record={**case.record, "settings": settings}).report(), "utf-8")
    opened = Opened(browser, page)
    before = opened.text("#viewer-volume")
    outlined = is_outlined(opened.picture("axial")).sum()
    opened.choose("confidence", "0.9")
    assert is_outlined(opened.picture("axial")).sum() < outlined
    assert f"lesion {lesion.id}" not in opened.text("#viewer-position")
    assert "its confidence is lower" in opened.text("#viewer-position")
    assert "--min-confidence 0.9 --force" in opened.text("#viewer-command")
    opened.choose("confidence", "0.2")
    more = sum(found.volume_ml for found in (lesion, candidate))
    assert float(opened.text("#viewer-volume").split()[0]) == pytest.approx(more, abs=0.011)
    opened.choose("threshold", "0")
    assert opened.page.is_disabled("#viewer-confidence")
    opened.page.click("#viewer-threshold-reset")
    assert opened.text("#viewer-volume") == before
    assert opened.said == []


def test_every_scan_with_its_window(opened: Opened):
    flair = opened.picture("axial")
    opened.page.select_option("#viewer-scan", "T2w")
    t2w = opened.picture("axial")
    assert np.abs(flair - t2w).mean() > 2
    assert "T2w" in opened.text("#viewer-position")
    low = float(opened.page.get_attribute("#viewer-level", "min"))
    opened.choose("level", str(low))
    assert opened.picture("axial").mean() > t2w.mean() + 5
    opened.page.click("#viewer-window-reset")
    np.testing.assert_array_equal(opened.picture("axial"), t2w)


def test_overlays_can_be_taken_away(opened: Opened):
    opened.page.uncheck("#viewer-mask-shown")
    assert is_outlined(opened.picture("axial")).sum() == 0
    colour = np.ptp(opened.picture("axial"), axis=-1) > 60
    opened.choose("map-opacity", "0")
    assert (np.ptp(opened.picture("axial"), axis=-1) > 60).sum() < colour.sum()


def test_the_convention_is_remembered(opened: Opened):
    left = is_outlined(opened.picture("axial"))
    opened.page.select_option("#viewer-side", "right")
    right = is_outlined(opened.picture("axial"))
    middle = left.shape[1] / 2
    assert (np.nonzero(left)[1].mean() < middle) != (np.nonzero(right)[1].mean() < middle)
    opened.page.reload()
    opened.wait()
    assert opened.page.input_value("#viewer-side") == "right"
    np.testing.assert_array_equal(is_outlined(opened.picture("axial")), right)


def test_keys_move_through_the_scan(opened: Opened):
    def place() -> list[float]:
        opened.picture("axial")
        words = opened.text("#viewer-position").split(" mm")[0]
        return [float(n) for n in re.findall(r"-?\d+", words)]

    opened.page.focus("#viewer-axial")
    first = place()
    opened.page.keyboard.press("PageUp")
    opened.page.keyboard.press("ArrowRight")
    assert np.subtract(place(), first) == pytest.approx([4, 0, 4], abs=0.6)
    opened.page.select_option("#viewer-side", "right")
    opened.page.focus("#viewer-axial")
    opened.page.keyboard.press("ArrowRight")
    assert np.subtract(place(), first) == pytest.approx([0, 0, 4], abs=0.6)


def test_a_rating_is_kept_and_saved(opened: Opened):
    opened.page.check("#rating [value=doubtful]")
    opened.page.fill("#rating [name=comment]", "the rim\tonly")
    assert "Kept" in opened.text("#rating-status")
    name, text = opened.saved("#rating-save")
    assert name == "a_rating.tsv"
    header, row = (line.split("\t") for line in text.splitlines())
    assert header == ["subject", "result", "rating", "comment"]
    assert [row[0], *row[2:]] == ["a", "doubtful", "the rim only"]
    opened.page.reload()
    opened.wait()
    assert opened.page.is_checked("#rating [value=doubtful]")
    name, text = opened.saved("a[download]")
    assert name == "a_lesions.csv"
    assert text.startswith("index,kept,volume_ml")


def test_without_storage_all_else_works(browser: Any, folder: Path):
    opened = Opened(browser, report_path(folder, "a"), NO_STORAGE)
    assert opened.page.get_attribute("#viewer", "data-state") == "drawn"
    opened.page.select_option("#viewer-side", "right")
    opened.page.check("#rating [value=good]")
    assert "keeps nothing" in opened.text("#rating-status")
    assert "\tgood\t" in opened.saved("#rating-save")[1]
    index = Opened(browser, folder / "index.html", NO_STORAGE)
    index.page.select_option("#subjects tbody select >> nth=1", "bad")
    assert index.text("#rated") == "1 bad"
    index.page.evaluate("dispatchEvent(new Event('focus'))")
    assert index.text("#rated") == "1 bad"
    assert opened.said == index.said == []


@pytest.mark.parametrize(
    "script",
    [
        "HTMLCanvasElement.prototype.getContext = () => null;",
        "delete window.DecompressionStream;",
        # As browsers do that let no page read what it has drawn.
        "CanvasRenderingContext2D.prototype.getImageData = (x, y, w, h) => new ImageData(w, h);",
    ],
)
def test_where_it_cannot_draw_the_pictures_remain_and_a_sentence_says_so(
    browser: Any, folder: Path, script: str
):
    opened = Opened(browser, report_path(folder, "a"), script)
    assert opened.page.get_attribute("#viewer", "data-state") == "fallback"
    assert "still pictures" in opened.text("#viewer-message")
    assert not opened.page.is_visible("#viewer")
    assert opened.page.is_visible(".panels img >> nth=0")
    assert opened.page.is_visible("#rating")
    assert opened.said == []


def test_without_scripts_nothing_is_shown_that_does_nothing(browser: Any, folder: Path):
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(report_path(folder, "a").as_uri())
    for selector in ("#viewer", "#rating", "#previous", "button[data-point] >> nth=0"):
        assert not page.is_visible(selector)
    assert page.is_visible(".panels img >> nth=0")
    page.goto((folder / "index.html").as_uri())
    assert not page.is_visible("#filters")
    assert page.locator("#subjects tbody tr").count() == 3


def test_the_index_sorts_and_filters(browser: Any, folder: Path):
    opened = Opened(browser, folder / "index.html")
    page = opened.page

    def shown() -> list[str]:
        rows = page.locator("#subjects tbody tr:not([hidden]) th").all_text_contents()
        return [row.strip() for row in rows]

    assert shown() == ["a", "b & c", HOSTILE]
    page.click("#subjects th button >> text=Lesions, ml")
    assert shown() == [HOSTILE, "b & c", "a"]
    page.fill("#filters [name=least]", "1.5")
    assert shown() == ["b & c", "a"]
    assert not page.is_visible("#failed")
    page.fill("#filters [name=text]", "B &")
    assert shown() == ["b & c"]
    assert opened.text("#shown") == "1 of 3 shown, 0 of 1 failed"
    page.click("#filters [type=reset]")
    page.wait_for_function(
        "() => document.querySelectorAll('#subjects tbody tr[hidden]').length === 0"
    )
    page.select_option("#filters [name=status]", "failed")
    assert shown() == []
    assert page.is_visible("#failed")
    page.select_option("#filters [name=status]", "")
    page.select_option("#subjects tbody tr:has-text('b & c') select", "bad")
    page.select_option("#filters [name=rating]", "none")
    assert shown() == [HOSTILE, "a"]
    assert opened.text("#rated") == "1 bad"
    assert opened.said == []


def test_ratings_go_from_page_to_page_and_through_a_table(
    browser: Any, folder: Path, tmp_path: Path
):
    opened = Opened(browser, folder / "index.html")
    page = opened.page
    page.select_option("#subjects tbody tr:has-text('b & c') select", "doubtful")
    name, text = opened.saved("#ratings-save")
    assert name == "ratings.tsv"
    assert [line.split("\t")[2] for line in text.splitlines()] == [
        "rating",
        "n/a",
        "doubtful",
        "n/a",
    ]
    table = tmp_path / "ratings.tsv"
    table.write_text(text.replace("doubtful\tn/a", "good\twhole") + "x\ty\tbad\tn/a\n")
    page.set_input_files("#ratings-load", table)
    page.wait_for_function(
        "() => document.getElementById('ratings-status').textContent.includes('added')"
    )
    assert "3 added, 1 of other subjects" in opened.text("#ratings-status")
    assert opened.text("#rated") == "1 good"
    page.click("#subjects a >> text='b & c'")
    page.wait_for_selector("#rating [value=good]:checked")
    assert page.input_value("#rating [name=comment]") == "whole"
    page.check("#rating [value=bad]")
    page.click("#neighbours a >> nth=0")
    page.wait_for_function("() => document.getElementById('rated')?.textContent === '1 bad'")
    assert opened.said == []


def test_neighbours_are_those_of_the_index_as_it_was_sorted(browser: Any, folder: Path):
    opened = Opened(browser, folder / "index.html")
    page = opened.page
    page.click("#subjects th button >> text=Lesions, ml")
    page.click("#subjects a >> text='b & c'")
    opened.wait()
    page.click("nav a[href='#checks']")
    page.reload()
    opened.wait()
    page.click("#next")
    page.wait_for_function("() => document.title.startsWith('a ')")
    opened.wait()
    assert not page.is_visible("#next")
    page.click("#previous")
    page.wait_for_function("() => document.title.startsWith('b & c')")
    assert set(opened.asked) <= {path.as_uri() for path in folder.iterdir()}
    assert opened.said == []


@pytest.mark.parametrize(
    "files",
    ['["a_report.html", "https://x.invalid/b_report.html"]', '[1, "../../b_report.html"]', "{"],
)
def test_a_link_leads_nowhere_else(browser: Any, folder: Path, files: str):
    opened = Opened(browser, report_path(folder, "a"))
    opened.page.evaluate(
        """(files) => { location.hash =
        "list=" + encodeURIComponent(`{"files": ${files}, "at": 0}`); }""",
        files,
    )
    opened.page.reload()
    opened.wait()
    assert not opened.page.is_visible("#next")
    assert opened.said == []
