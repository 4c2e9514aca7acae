"""What the JSON beside a NIfTI file says of it, as dcm2niix and BIDS write it."""

from __future__ import annotations

from pathlib import Path

from mmccd_cli.files import read_json
from mmccd_cli.inputs.names import stem_of

_MOST_BYTES = 1 << 20
_KEYS = ("ContrastBolusIngredient", "ContrastBolusAgent")
_NO_AGENT = {"", "no", "none", "n", "0", "without", "no contrast"}


def names_agent(entry: str) -> bool:
    """Tell whether a scanner's entry for the contrast agent names one."""
    return entry.strip().lower() not in _NO_AGENT


def says_agent(image: Path) -> bool:
    """Tell whether the JSON beside an image says that it was taken after contrast agent.

    Source: BIDS 1.10, "ContrastBolusIngredient". A JSON that cannot be read says nothing.
    """
    sidecar = sidecar_of_image(image)
    if not sidecar.is_file():
        return False
    try:
        said = read_json(sidecar, most_bytes=_MOST_BYTES)
    except (OSError, ValueError):
        return False
    entries = [said.get(key) for key in _KEYS] if isinstance(said, dict) else []
    return any(isinstance(entry, str) and names_agent(entry) for entry in entries)


def sidecar_of_image(image: Path) -> Path:
    """Where the JSON of an image would lie."""
    return image.with_name(f"{stem_of(image)}.json")
