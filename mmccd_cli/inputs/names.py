"""What the words of a file's name, or of a series' description, say about an image."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PREFIX = r"(?:2d|3d|ax|axial|cor|sag|tra|iso)*"
_SUFFIX = r"(?:2d|3d|w|wi|weighted|ax|axial|cor|sag|tra|iso|tse|fse|se|spc|space|cube)*"
_TOKENS_OF_MODALITY = {
    "FLAIR": re.compile(rf"{_PREFIX}(?:t2f|(?:t2w?)?(?:flair|darkfluid)){_SUFFIX}"),
    "T2w": re.compile(rf"{_PREFIX}t2{_SUFFIX}"),
    "T1w": re.compile(
        rf"{_PREFIX}(?:t1w?(?:n|native|pre|flair|mprage)?|mp2?rage|bravo|f?spgr){_SUFFIX}"
    ),
}
T1_WITH_AGENT = re.compile(
    rf"{_PREFIX}t1w?(?:c|ce|cm|km|gd|gad|gado\w*|post\w*|contrast\w*|enhanced){_SUFFIX}"
)
_AGENT = {"ce", "gd", "gad", "gado", "gadolinium", "gadovist", "gadobutrol", "postgd", "postgad"}
# Words that mean contrast agent only beside "T1": elsewhere they may mean "after surgery".
_AGENT_BESIDE_T1 = {"c", "cm", "km", "post", "contrast", "postcontrast", "enhanced"}
_NO_AGENT = {"pre", "non", "no", "without", "wo", "native", "precontrast", "noncontrast"}
# fmt: off
OTHER_IMAGE_WORDS = {
    "adc", "angio", "anomaly", "asl", "bold", "cbf", "cbv", "dsc", "dti", "dwi", "epi", "fa",
    "fgatir", "hardi", "localizer", "map", "md", "mra", "pd", "pdw", "perf", "phase", "prob",
    "probseg", "pwi", "qsm", "residual", "scout", "star", "stir", "swan", "swi", "t1map", "t1rho",
    "t2map", "t2s", "t2star", "t2starw", "tof",
}
LESION_WORDS = {
    "dseg", "groundtruth", "gt", "label", "labels", "lesion", "lesions", "roi", "seg", "segm",
    "segmentation", "tumor", "tumour",
}
# fmt: on
BRAIN_WORDS = {"bet", "brain", "brainmask", "hdbet", "parenchyma", "skullstrip", "tissue"}
MASK_WORDS = {"brainmask", "mask", "masks", "msk"}


def tokens_of(text: str) -> list[str]:
    """Split a name into its words of letters and digits, in lower case."""
    return re.findall(r"[a-z0-9]+", text.lower().replace("*", "star"))


def agent_in(tokens: Sequence[str]) -> str | None:
    """Return the token that says contrast agent, if any."""
    if set(tokens) & _NO_AGENT:
        return None
    for token in tokens:
        if T1_WITH_AGENT.fullmatch(token) or token in _AGENT:
            return token
    if modality_of(tokens) == "T1w":
        return next((token for token in tokens if token in _AGENT_BESIDE_T1), None)
    return None


def modality_of(tokens: Sequence[str]) -> str | None:
    """Return the modality that the tokens state, up to a "to", "in" or "on" (T1_to_FLAIR is T1)."""
    found: set[str] = set()
    for token in tokens:
        if token in ("to", "in", "on") and found:
            break
        found |= {name for name, known in _TOKENS_OF_MODALITY.items() if known.fullmatch(token)}
    if "T1w" in found:  # T1_FLAIR is a T1-weighted sequence
        return "T1w" if "T2w" not in found else None
    return "FLAIR" if "FLAIR" in found else next(iter(found), None)
