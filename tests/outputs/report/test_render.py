"""Templates that cannot be broken out of, and pages that forbid themselves to load anything."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import subprocess
import sys
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from mmccd_cli.outputs.report.render import asset, environment, read_data_block, render

HOSTILE = "<script>alert('1')</script>\"&</style>"
SCRIPTS = ("memory.js", "cohort.js")


def cohort_page(**changes: object) -> str:
    content = {"mark_id": "mark", "mark": {}, "subjects": [], "failures": [], "verdict": str}
    content |= {"totals": {"Reports": "0"}}
    return render("cohort.html", scripts=SCRIPTS, **content | changes).decode()


def data_block(value: object) -> str:
    parts = environment().get_template("parts.html").module
    return str(parts.data_block("facts", value))  # type: ignore[attr-defined]  # a macro


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40) | st.just(HOSTILE))
def test_data_blocks_come_back_and_cannot_end_early(text):
    block = data_block({"name": text})
    assert block.count("<") == 2
    assert read_data_block("<title>x</title>" + block, "facts") == {"name": text}


def test_a_missing_or_cut_data_block_is_an_error():
    for text in ("", data_block(1).replace("facts", "other"), data_block({"a": 1})[:-20]):
        with pytest.raises(ValueError, match="facts"):
            read_data_block(text, "facts")


def test_text_and_attributes_are_escaped_and_a_missing_name_is_an_error():
    failure = {"name": HOSTILE, "reason": HOSTILE, "next_step": HOSTILE}
    text = cohort_page(mark_id=HOSTILE, mark={"name": HOSTILE}, failures=[failure])
    assert HOSTILE not in text
    assert (
        text.count(html.escape(HOSTILE).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")) == 5
    )
    with pytest.raises(UndefinedError, match="reason"):
        cohort_page(failures=[{"name": "a"}])


def test_names_that_are_no_utf8_can_be_written():
    name = b"caf\xe9.nii.gz".decode("utf-8", "surrogateescape")
    text = cohort_page(
        mark={"name": name}, failures=[dict.fromkeys(("name", "reason", "next_step"), name)]
    )
    assert text.count("caf\ufffd.nii.gz") == 5
    assert read_data_block(text, "mark") == {"name": "caf\ufffd.nii.gz"}


def test_a_page_runs_only_scripts_that_it_names_by_hash():
    text = cohort_page()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in html.unescape(policy[1]).split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "unsafe" not in policy[1]
    for kind, content in (
        *(("script-src", asset(name)) for name in SCRIPTS),
        ("style-src", asset("report.css")),
    ):
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert f"sha256-{digest}" in rules[kind]
    # What the browser hashes is what stands between the tags.
    for name in SCRIPTS:
        assert f"<script>{asset(name).decode()}</script>" in text
    assert f"<style>{asset('report.css').decode()}</style>" in text


def test_no_asset_of_ours_names_an_address_or_ends_its_element():
    names = [
        entry.name
        for entry in resources.files("mmccd_cli.outputs.report").joinpath("assets").iterdir()
    ]
    assert set(names) > {"report.css", *SCRIPTS}
    for name in names:
        text = asset(name).decode()
        assert "://" not in text
        assert "</" not in text


def test_only_style_and_script_of_ours_are_not_escaped():
    loader = environment().loader
    assert loader is not None
    sources = [loader.get_source(environment(), name)[0] for name in loader.list_templates()]
    unescaped = re.findall(r"{{[^}]*safe[^}]*}}|autoescape", "".join(sources))
    assert sorted(unescaped) == ["{{ script | safe }}", "{{ style | safe }}"]


def test_jinja_waits_until_a_page_is_made():
    code = "import sys, mmccd_cli.outputs.report.render; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
