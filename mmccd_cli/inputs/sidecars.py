"""What the JSON beside a NIfTI file says of it, as dcm2niix and BIDS write it.

Source: BIDS 1.10, "Magnetic Resonance Imaging"; seconds, where DICOM has milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmccd_cli.files import read_json
from mmccd_cli.inputs.dicom.recognition import Acquisition, Recognition, recognise
from mmccd_cli.inputs.names import names_agent, stem_of, tokens_of

_MOST_BYTES = 1 << 20
_LONGEST_SECONDS = 60.0
"""Of any time that makes a contrast; what is longer is no number of seconds."""


def sidecar_of_image(image: Path) -> Path:
    """Where the JSON of an image would lie."""
    return image.with_name(f"{stem_of(image)}.json")


def says_agent(image: Path) -> bool:
    """Tell whether the JSON beside an image says that it was taken after contrast agent."""
    return _has_agent(_read(image))


def recognise_by_sidecar(image: Path) -> Recognition | None:
    """Tell the modality of an image by the parameters in the JSON beside it, as that of DICOM.

    Returns:
        What it is or why it is left out; None where the JSON does not tell.
    """
    said = _read(image)
    repetition, echo = (_milliseconds(said, f"{name}Time") for name in ("Repetition", "Echo"))
    if repetition is None or echo is None:
        return None
    flip = said.get("FlipAngle")
    acquisition = Acquisition(
        kinds=frozenset(_words(said, "ScanningSequence")),
        variants=frozenset(_words(said, "SequenceVariant")),
        repetition_ms=repetition,
        echo_ms=echo,
        inversion_ms=_milliseconds(said, "InversionTime"),
        flip_deg=float(flip) if isinstance(flip, int | float) and flip > 0 else None,
        echo_number=None,
        image_type=tuple(_words(said, "ImageType")),
        has_agent=_has_agent(said),
        b_value=None,
        is_angiography=False,
        is_balanced=False,
        words=tuple(tokens_of(" ".join(_texts(said, "SeriesDescription", "ProtocolName")))),
        body_part=" ".join(_texts(said, "BodyPartExamined")).lower(),
    )
    found = recognise(acquisition)
    return found if found.is_known else None


def _read(image: Path) -> Mapping[str, Any]:
    """The JSON beside an image; empty where there is none that can be read."""
    sidecar = sidecar_of_image(image)
    if not sidecar.is_file():
        return {}
    try:
        said = read_json(sidecar, most_bytes=_MOST_BYTES)
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _has_agent(said: Mapping[str, Any]) -> bool:
    return any(map(names_agent, _texts(said, "ContrastBolusIngredient", "ContrastBolusAgent")))


def _texts(said: Mapping[str, Any], *keys: str) -> list[str]:
    return [said[key] for key in keys if isinstance(said.get(key), str)]


def _words(said: Mapping[str, Any], key: str) -> list[str]:
    """Values that DICOM separates by a backslash; JSON has a list of them, or one text."""
    value = said.get(key)
    if isinstance(value, str):
        value = re.split(r"[\\_/,\s]+", value)
    texts = value if isinstance(value, list) else []
    return [text.upper() for text in texts if isinstance(text, str) and text]


def _milliseconds(said: Mapping[str, Any], key: str) -> float | None:
    value = said.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return 1000.0 * value if 0 < value < _LONGEST_SECONDS else None
