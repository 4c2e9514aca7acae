"""Pages from templates: escaped throughout, and reaching nothing outside themselves."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from mmccd_cli.files import parse_json
from mmccd_cli.outputs.record import readable

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, *, scripts: Sequence[str], **content: Any) -> bytes:
    """Return a whole page that the browser forbids to load, send or run anything else.

    Args:
        template: File in `templates`.
        scripts: Files in `assets` with the page's scripts, in the order in which they are run.
        content: What the template shows. Text may hold anything: it is escaped, and bytes that are
            no valid UTF-8 become U+FFFD.
    """
    style, codes = asset("report.css"), [asset(name) for name in scripts]
    allowed = " ".join(_hash(code) for code in codes)
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {allowed}; base-uri 'none'; form-action 'none'"
    )
    page = environment().get_template(template)
    code = [each.decode() for each in codes]
    text = page.render(policy=policy, style=style.decode(), scripts=code, **content)
    return readable(text).encode()


@cache
def environment() -> Environment:
    """Return what reads the templates: it escapes all text, and a name that is missing raises."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("mmccd_cli.outputs.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False}
    return made


def read_data_block(page: str, id: str) -> Any:
    """Return the value of a page's `data_block`; see `templates/parts.html`.

    Raises:
        ValueError: There is none, or it is damaged.
    """
    opening = f'<script type="application/json" id="{id}">'
    start = page.find(opening)
    end = page.find("</script>", start)
    if start < 0 or end < 0:
        raise ValueError(f"the page has no {id}")
    return parse_json(page[start + len(opening) : end].encode())


def base64_of(content: bytes) -> str:
    """Return bytes as base64, which needs no escaping."""
    return base64.b64encode(content).decode()


def asset(name: str) -> bytes:
    """Return a file of `assets`."""
    return (resources.files("mmccd_cli.outputs.report") / "assets" / name).read_bytes()


def _hash(content: bytes) -> str:
    return f"'sha256-{base64_of(hashlib.sha256(content).digest())}'"
