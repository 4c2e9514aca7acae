"""HTML that is escaped by construction, and pages that reach nothing outside themselves."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable
from importlib import resources
from typing import Any

_SURROGATES = re.compile("[\ud800-\udfff]")
_VOID = {"img", "meta", "input"}


class Markup(str):
    """Text that is HTML already; any other text is escaped where it is put into an element."""


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """Return an element.

    Args:
        name: Its tag.
        children: `Markup` as it is, lists one by one, None as nothing, all else escaped.
        attributes: `class_` for class and `data_key` for data-key; True for an attribute without
            a value; None and False for none.
    """
    shown = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{shown}>")
    return Markup(f"<{name}{shown}>{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Markup:
    """Return children one after the other, each escaped unless it is `Markup`."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, list | tuple):
            parts.append(join(child))
        else:
            parts.append(html.escape(readable(str(child))))
    return Markup("".join(parts))


def readable(text: str) -> str:
    """Return text in which bytes that are no valid UTF-8 have become U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def data_block(id: str, value: Any) -> Markup:
    """Return JSON for scripts to read; it is never run, and cannot end its element early."""
    text = readable(json.dumps(value, ensure_ascii=False, allow_nan=False))
    return _data_element(id, "application/json", text.replace("<", "\\u003c"))


def packed_block(id: str, compressed: bytes) -> Markup:
    """Return gzipped bytes for scripts to read, as base64."""
    return _data_element(id, "application/gzip", base64.b64encode(compressed).decode())


def read_data_block(page: str, id: str) -> Any:
    """Return the value of a `data_block` in a page.

    Raises:
        ValueError: There is none, or it is damaged.
    """
    opening = f'<script type="application/json" id="{id}">'
    start = page.find(opening)
    end = page.find("</script>", start)
    if start < 0 or end < 0:
        raise ValueError(f"the page has no {id}")
    return json.loads(page[start + len(opening) : end])


def image_url(content: bytes, kind: str = "jpeg") -> str:
    """Return an image's bytes as an address that holds them."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def page(
    title: str, head: Markup, body: Markup, *, script: str, more_scripts: Iterable[bytes] = ()
) -> bytes:
    """Return a whole page that the browser forbids to load, send or run anything else.

    Args:
        title: Its title.
        head: Data blocks that stand before the body.
        body: Its content.
        script: File in `assets` with its script.
        more_scripts: Code that the script may run besides.
    """
    style, code = asset("report.css").decode(), asset(script).decode()
    allowed = " ".join(_hash(text) for text in (code.encode(), *more_scripts))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style.encode())}; "
        f"script-src {allowed}; base-uri 'none'; form-action 'none'"
    )
    parts = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("meta", name="robots", content="noindex"),
        element("title", title),
        element("style", Markup(style)),
        head,
    ]
    whole = element(
        "html",
        element("head", parts),
        element("body", body, element("script", Markup(code))),
        lang="en",
    )
    return f"<!doctype html>\n{whole}\n".encode()


def asset(name: str) -> bytes:
    """Return a file of `assets`."""
    return (resources.files("mmccd_cli.outputs.report") / "assets" / name).read_bytes()


def _attribute(key: str, value: Any) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(readable(str(value)))}"'


def _data_element(id: str, kind: str, text: str) -> Markup:
    return element("script", Markup(text), type=kind, id=id)


def _hash(content: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
