"""`mmccd doctor`: what works here, as text to paste into a question."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import JsonConsole

if TYPE_CHECKING:
    from mmccd_cli.cli.doctor_checks import Finding

_SIGNS = {"ok": "ok  ", "note": "note", "fail": "FAIL"}


@command
def doctor(
    *,
    offline: options.Offline = False,
    cache_dir: options.CacheDir = None,
    console: JsonConsole,
) -> None:
    """Check this installation: packages, processor, memory, devices, weights, cache, network.

    Ends with 0 where mmccd can segment here, also where something optional is missing; with 4
    where weights are damaged or missing, 5 where torch or a device does not compute, 1 where a
    package is missing or a check itself breaks. The text names no person and no folder of theirs.
    """
    from mmccd_cli.cli.doctor_checks import examine, verdict

    findings: list[Finding] = []
    for finding in examine(offline=offline, cache_dir=cache_dir):
        findings.append(finding)
        if not console.as_json:
            console.result(_line(finding))
    code = verdict(findings)
    if console.as_json:
        described = [finding.describe() for finding in findings]
        console.result(json.dumps({"exit_code": code, "findings": described}))
    raise typer.Exit(code)


def _line(finding: Finding) -> str:
    line = f"{_SIGNS[finding.status]}  {finding.check:<9}  {finding.text}"
    return f"{line}\n{'':17}{finding.next_step}" if finding.next_step else line
