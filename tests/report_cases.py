"""What the tests of reports share: a result, and what a page holds."""

from __future__ import annotations

import base64
import gzip
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.outputs.report.checks import check_subject
from mmccd_cli.outputs.report.data import report_data
from mmccd_cli.outputs.report.page import subject_report
from mmccd_cli.outputs.report.render import read_data_block
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

    def report(self, index: str = "") -> str:
        data = report_data(self.result, self.volumes, self.template)
        return subject_report(
            self.result,
            self.volumes,
            record=self.record,
            data=data,
            checks=check_subject(data, self.record["warnings"]),
            index=index,
        ).decode()


def make_case(segmenter: Pipeline, phantom: Phantom) -> Case:
    """A phantom's result, with names that try to break out of the page."""
    volumes = {name: phantom.volumes[name] for name in ("FLAIR", "T2w")}
    result = segmenter.segment(volumes)
    record = {
        "subject": HOSTILE,
        "reference": result.reference,
        "outputs": {"map": "the map.nii.gz"},
        "output_sha256": {"map": "3" * 64, "mask": "4" * 64},
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


def facts_of(report: str) -> dict[str, Any]:
    """What the viewer's script reads first."""
    facts: dict[str, Any] = read_data_block(report, "viewer-facts")
    return facts


def packed(report: str, name: str) -> bytes:
    """A packed image of the viewer, as it stands in the page."""
    block = re.search(rf'<script type="application/gzip" id="viewer-{name}">([^<]*)<', report)
    assert block is not None
    return base64.b64decode(block[1])


def unpacked(report: str, name: str, dtype: str) -> np.ndarray:
    """An image of numbers of the viewer, (I, J, K)."""
    values = np.frombuffer(gzip.decompress(packed(report, name)), dtype)
    return values.reshape(facts_of(report)["shape"], order="F")


def in_mask(report: str, step: int) -> np.ndarray:
    """The mask that the viewer shows at a threshold, (I, J, K) bool."""
    patterns = np.array(facts_of(report)["patterns"])
    return (patterns[unpacked(report, "codes", "<u2")] >> step) & 1 > 0
