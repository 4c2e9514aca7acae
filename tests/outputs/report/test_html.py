"""HTML that cannot be broken out of, and pages that forbid themselves to load anything."""

from __future__ import annotations

import base64
import hashlib
import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmccd_cli.outputs.report.html import (
    Markup,
    asset,
    data_block,
    element,
    packed_block,
    page,
    read_data_block,
)

HOSTILE = "<script>alert('1')</script>\"&</style>"


def test_text_and_attributes_are_escaped_and_markup_is_not():
    made = element("p", HOSTILE, [element("b", "x"), None, 3], title=HOSTILE, data_key=1)
    assert made.count("<script") == 0
    assert made.endswith("<b>x</b>3</p>")
    assert 'data-key="1"' in made
    assert re.fullmatch(r'<p title="[^"<>]*" data-key="1">[^<>]*<b>x</b>3</p>', made)


def test_attributes_without_value_and_elements_without_end():
    assert element("input", hidden=True, checked=False, class_="a") == '<input hidden class="a">'
    assert element("line", x1=0) == '<line x1="0"></line>'


@given(st.text(alphabet=st.characters(), max_size=40) | st.just(HOSTILE))
def test_data_blocks_come_back_and_cannot_end_early(text):
    block = data_block("facts", {"name": text})
    assert block.count("<") == 2
    readable = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    assert read_data_block("<title>x</title>" + block, "facts") == {"name": readable}


def test_a_missing_or_cut_data_block_is_an_error():
    for text in ("", data_block("other", 1), data_block("facts", {"a": 1})[:-20]):
        with pytest.raises(ValueError, match="facts"):
            read_data_block(text, "facts")


def test_names_that_are_no_utf8_can_be_written():
    name = b"caf\xe9.nii.gz".decode("utf-8", "surrogateescape")
    assert page(name, Markup(), element("p", name), script="cohort.js").decode("utf-8")


def test_a_page_runs_only_scripts_that_it_names_by_hash():
    code = b"globalThis.x = 1;"
    text = page(
        HOSTILE, packed_block("code", code), element("p"), script="report.js", more_scripts=[code]
    ).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in html.unescape(policy[1]).split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "unsafe" not in policy[1]
    for kind, content in (
        ("script-src", asset("report.js")),
        ("script-src", code),
        ("style-src", asset("report.css")),
    ):
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert f"sha256-{digest}" in rules[kind]
    # What the browser hashes is what stands between the tags.
    assert f"<script>{asset('report.js').decode()}</script>" in text
    assert f"<style>{asset('report.css').decode()}</style>" in text
    assert text.count(HOSTILE) == 0


def test_no_asset_of_ours_names_an_address_or_ends_its_element():
    for name in ("report.css", "report.js", "cohort.js"):
        text = asset(name).decode()
        assert "://" not in text
        assert "</" not in text
