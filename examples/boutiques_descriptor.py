"""Print the Boutiques descriptor of `mmccd segment`, made from the options of the program.

Platforms such as CBRAIN read it to offer the program in a form. After a change of the options:

    python examples/boutiques_descriptor.py > examples/boutiques.json
    bosh validate examples/boutiques.json        # pip install boutiques
"""

from __future__ import annotations

import inspect
import json
import re
from typing import Any, Literal, get_args, get_origin

import typer

from mmccd_cli import __version__
from mmccd_cli.cli import segment
from mmccd_cli.cli.app import app

READ = ("subjects", "t1", "t2", "flair", "subjects_from", "like")
"""What names a file or folder that must be there."""
LEFT_OUT = ("help",)
DESTINATIONS = ("out", "out_dir", "bids_out")


def descriptor() -> dict[str, Any]:
    """Return the descriptor."""
    command: Any = typer.main.get_command(app).commands["segment"]  # type: ignore[attr-defined]
    types = inspect.signature(segment.segment).parameters
    inputs = [
        _input(one, types[one.name].annotation)
        for one in command.params
        if one.name not in LEFT_OUT
    ]
    keys = " ".join(each["value-key"] for each in inputs)
    return {
        "name": "mmccd segment",
        "description": "Segment what is anomalous in brain MRI (FLAIR, T2w, T1w) without labels of "
        "any anomaly: an anomaly map, a mask and a record. Research use only.",
        "author": "The mmccd developers",
        "tool-version": __version__,
        "schema-version": "0.5",
        "command-line": f"mmccd segment {keys}",
        "inputs": inputs,
        "groups": [
            {
                "id": "destination",
                "name": "Where the results go",
                "members": list(DESTINATIONS),
                "mutually-exclusive": True,
                "one-is-required": True,
            }
        ],
        "output-files": _outputs(),
        "tags": {"domain": ["neuroinformatics"], "modality": ["MRI"]},
    }


def _input(option: Any, annotation: Any) -> dict[str, Any]:
    """Describe an option or argument, whose values have the annotated type."""
    flag = next((name for name in option.opts if name.startswith("--")), None)
    described: dict[str, Any] = {
        "id": option.name,
        "name": option.name.replace("_", " "),
        "description": " ".join((option.help or "").split()),
        "value-key": f"[{option.name.upper()}]",
        "optional": not option.required,
    }
    if flag:
        described["command-line-flag"] = flag
    declared, info = get_args(annotation)[:2]
    kinds = {get_origin(part) or part: get_args(part) for part in get_args(declared) or [declared]}
    if get_origin(declared) is Literal:
        kinds = {Literal: get_args(declared)}
    if bool in kinds or getattr(info, "count", False):
        return described | {"type": "Flag"}
    if list in kinds:
        described["list"] = True
    if option.name in READ:
        return described | {"type": "File"}
    if Literal in kinds:
        return described | {"type": "String", "value-choices": list(kinds[Literal])}
    if int in kinds and info.parser is None:
        return described | {"type": "Number", "integer": True}
    return described | {"type": "String"}


def _outputs() -> list[dict[str, Any]]:
    """Describe the files of one result, and the folders of many."""
    suffixes = {"map": ".nii.gz", "mask": "_mask.nii.gz", "record": ".json"}
    suffixes["table"] = "_lesions.tsv"
    files = [
        {
            "id": kind,
            "name": kind,
            "path-template": f"[OUT]{suffix}",
            "path-template-stripped-extensions": [".nii.gz"],
            "optional": True,
        }
        for kind, suffix in suffixes.items()
    ]
    folders = [
        {
            "id": f"results_{name}",
            "name": re.sub("_", " ", name),
            "path-template": f"[{name.upper()}]",
            "optional": True,
        }
        for name in DESTINATIONS[1:]
    ]
    return files + folders


if __name__ == "__main__":
    print(json.dumps(descriptor(), indent=2))
