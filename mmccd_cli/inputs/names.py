"""What the words of a file's name, or of a series' description, say about an image.

A name is split into tokens, and the tokens of the subject's own name are dropped first, so that an
id such as TCGA-FA-0001 is not read as a fractional anisotropy.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmccd_cli.config import MODALITIES

ANY_MODALITY = f"{', '.join(MODALITIES[:-1])} or {MODALITIES[-1]}"

_PREFIX = r"(?:2d|3d|ax|axial|cor|sag|tra|iso)*"
_SUFFIX = r"(?:2d|3d|w|wi|weighted|ax|axial|cor|sag|tra|iso|tse|fse|se|spc|space|cube)*"
_PHILIPS = r"(?:wip)?s"  # of sT1W_3D_TFE; "st1" alone may be a study
_TOKENS_OF_MODALITY = {
    "FLAIR": re.compile(rf"{_PREFIX}(?:t2f|(?:t2w?)?(?:flair|darkfluid)){_SUFFIX}"),
    "T2w": re.compile(rf"(?:{_PREFIX}t2|{_PHILIPS}t2w){_SUFFIX}"),
    "T1w": re.compile(
        rf"(?:{_PREFIX}(?:t1w?(?:n|native|pre|flair|mprage|tfe|ffe|vibe)?|mp2?rage|bravo|f?spgr)"
        rf"|{_PHILIPS}t1w){_SUFFIX}"
    ),
}
_T1_WITH_AGENT = re.compile(
    rf"{_PREFIX}(?:t1w?(?:c|ce|cm|km|ks|mdc|pc|gd|gad|gado\w*|post\w*|contrast\w*|enhanced)|ct1w?)"
    rf"{_SUFFIX}"
)
# fmt: off
_AGENT = {
    "ce", "clariscan", "dotarem", "gad", "gadavist", "gadobutrol", "gadolinium", "gadovist",
    "gado", "gd", "gddtpa", "magnevist", "mdc", "multihance", "postgad", "postgd", "prohance",
}
# fmt: on
# Words that mean contrast agent only beside "T1": elsewhere they may mean "after surgery".
_AGENT_BESIDE_T1 = {"c", "cm", "km", "pc", "post", "contrast", "postcontrast", "enhanced"}
# What an image was registered to follows: T2_to_T1, flair_reg_t1, or with BIDS FLAIR_space-T1w.
_BEFORE_ANOTHER = {"to", "in", "on", "reg", "coreg", "registered"}
_SPACE_OF_ANOTHER = re.compile(r"(?<![a-z0-9])space-(t[12]w?|flair)(?![a-z0-9])")
# Siemens calls FLAIR "t2_tirm_tra_dark-fluid" or "t2_spc_da-fl_sag".
_DARK_FLUID = re.compile(r"(?<![a-z0-9])(?:dark[^a-z0-9]+fluid|da[^a-z0-9]+fl)(?![a-z0-9])")
# Without "dark-fluid" such a T2 may be a STIR of the orbits or the spine as well as a FLAIR. As
# neither it is left out and named; as FLAIR or T2w it might be segmented for what it is not.
_INVERSION_RECOVERY = {"tir", "tirm"}
_NO_ENTRY = {"", "no", "none", "n", "0", "without", "no contrast"}
_NO_AGENT = {"pre", "non", "no", "without", "wo", "native", "precontrast", "noncontrast"}
# fmt: off
OTHER_IMAGE_WORDS = {
    "adc", "angio", "anomaly", "asl", "bffe", "bold", "cbf", "cbv", "ciss", "csi", "dce", "dsc",
    "dti", "dwi", "epi", "fa", "fgatir", "fieldmap", "fiesta", "fmap", "fmri", "hardi", "inv1",
    "inv2", "localizer", "map", "mapping", "maps", "md", "minip", "mip", "mnip", "mra", "mrv",
    "mtt", "pd", "pdw", "perf", "perfusion", "phase", "prob", "probseg", "psir", "pwi", "qsm",
    "rcbv", "residual", "scout", "spectroscopy", "star", "stir", "subtraction", "svs", "swan",
    "swi", "swip", "t1map", "t1rho", "t2map", "t2s", "t2star", "t2starw", "tensor", "tof", "trace",
    "tracew", "trufi", "ttp", "venc", "venography",
}
SPINE_WORDS = {"cervical", "cspine", "lspine", "lumbar", "spine", "thoracic", "tspine"}
_T2STAR_BESIDE_T2 = {"ffe", "fl2d", "fl3d", "gre", "haemo", "hemo", "me2d", "me3d", "medic"}
"""Gradient echoes: a T2 of these is T2*."""
_LESION_WORDS = {
    "dseg", "groundtruth", "gt", "label", "labels", "lesion", "lesions", "roi", "seg", "segm",
    "segmentation", "tumor", "tumour",
}
_LESION_WORDS_ALONE = {"consensus", "msk", "wmh"}  # WMH_01_FLAIR is a scan
# fmt: on
_BRAIN_WORDS = {"bet", "brain", "brainmask", "hdbet", "parenchyma", "skullstrip", "tissue"}
_MASK_WORDS = {"brainmask", "mask", "masks", "msk"}
# fmt: off
_PROCESSING_WORDS = {
    "bet", "bias", "biascorr", "biascorrected", "brain", "corrected", "defaced", "hdbet", "n4",
    "norm", "normalised", "normalized", "restore", "skull", "skullstrip", "skullstripped", "strip",
    "stripped", "unbiased", "unstripped",
}
# fmt: on
_WRITTEN_TOGETHER = re.compile(r"([a-z]*?)(?:masks?|seg(?:m|mentation)?)\d*")
_LESIONS_WRITTEN_TOGETHER = {"lesion", "lesions", "tumor", "tumour", "wmh"}


@dataclass(frozen=True, kw_only=True)
class NameReading:
    """What the name of one image file says.

    Attributes:
        path: The file.
        modality: The modality that it is taken for; None where it is left out.
        is_lesion_mask: Whether it is a mask of a lesion.
        has_agent: Whether its name says contrast agent.
        is_unclear: Whether it may be any image, for all that its name says.
        reason: Why it is left out, unless it has a modality.
    """

    path: Path
    modality: str | None = None
    is_lesion_mask: bool = False
    has_agent: bool = False
    is_unclear: bool = False
    reason: str = ""


def tokens_of(text: str) -> list[str]:
    """Split a name into its words of letters and digits, in lower case.

    The scan in whose space an image lies is left out where BIDS names it: FLAIR_space-T1w.
    """
    text = _DARK_FLUID.sub("darkfluid", text.lower().replace("*", "star"))
    words = re.findall(r"[a-z0-9]+", text)
    space = _SPACE_OF_ANOTHER.search(text)
    # t2_space-flair is no T2w in the space of a FLAIR, but a sequence of Siemens'.
    if space is None or (space[1] == "flair" and re.search(r"t[12]", text[: space.start()])):
        return words
    rest = re.findall(r"[a-z0-9]+", text[: space.start()] + text[space.end() :])
    return rest if modality_of(rest) else words


def names_agent(entry: str) -> bool:
    """Tell whether a scanner's entry for the contrast agent names one."""
    return entry.strip().lower() not in _NO_ENTRY


def agent_in(tokens: Sequence[str]) -> str | None:
    """Return the token that says contrast agent, if any."""
    if set(tokens) & _NO_AGENT:
        return None
    for token in tokens:
        if _T1_WITH_AGENT.fullmatch(token) or token in _AGENT:
            return token
    if modality_of(tokens) == "T1w":
        return next((token for token in tokens if token in _AGENT_BESIDE_T1), None)
    return None


def modality_of(tokens: Sequence[str]) -> str | None:
    """Return the modality that the tokens state, up to a "to" or the like (T1_to_FLAIR is T1)."""
    found = _stated(tokens)
    if "T1w" in found:  # T1_FLAIR is a T1-weighted sequence; FLAIR_T1 may be a FLAIR like the T1w
        return "T1w" if "T2w" not in found and found[0] == "T1w" else None
    if "FLAIR" in found:
        return "FLAIR"
    return None if _INVERSION_RECOVERY & set(tokens) else next(iter(found), None)


def _stated(tokens: Sequence[str]) -> list[str]:
    """All modalities that the tokens state, the first one's first."""
    found: list[str] = []
    for token in tokens:
        if token in _BEFORE_ANOTHER and found:
            break
        found += [name for name, known in _TOKENS_OF_MODALITY.items() if known.fullmatch(token)]
    return list(dict.fromkeys(found))


def names_modality(word: str) -> bool:
    """Tell whether a word by itself says T1w, T2w or FLAIR, with or without contrast agent."""
    return modality_of([word]) is not None or _T1_WITH_AGENT.fullmatch(word) is not None


def nifti_files(folder: Path) -> list[Path]:
    """List what is named as a NIfTI image in a folder, in the order of the names.

    A link to nowhere belongs to them: it is an image of a git-annex whose content is not here.
    """
    return sorted(
        path
        for path in folder.iterdir()
        if re.fullmatch(r"[^.].*?\.nii(\.gz)?", path.name, re.IGNORECASE) and not path.is_dir()
    )


def stem_of(path: Path) -> str:
    """Return a file's name without .nii or .nii.gz."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def how_to_convert(path: Path) -> str | None:
    """Say how to make NIfTI of a file that is named as FreeSurfer's or Analyze's format."""
    name = re.fullmatch(r"(.+)\.(mg[zh]|hdr|img)(\.gz)?", path.name, re.IGNORECASE)
    if name is None:
        return None
    known = "FreeSurfer's mri_convert" if name[2][0] in "mM" else "FSL's fslchfiletype NIFTI_GZ"
    words = shlex.join(["nib-convert", str(path), str(path.with_name(f"{name[1]}.nii.gz"))])
    return f"Convert it, with {known} or what comes with mmccd: {words}"


def read_names(
    files: Sequence[Path], folder_name: str, *, in_folders: bool = False
) -> list[NameReading]:
    """Tell by their words what the files of one subject are.

    Beside FLAIR, FLAIR_bias and FLAIR_brain are left out: they are the same image, processed.

    Args:
        files: All images of one folder.
        folder_name: Words that the names start with and that say nothing of the image.
        in_folders: Whether they lie in folders of modalities, which count where names say nothing.

    Returns:
        One reading a file, in the given order.
    """
    tokens = {path: tokens_of(stem_of(path)) for path in files}
    own_name = tokens_of(folder_name)
    for path, words in tokens.items():
        if words[: len(own_name)] == own_name and len(words) > len(own_name):
            tokens[path] = words[len(own_name) :]
    shared = _shared_start(list(tokens.values()))
    readings = [_read_name(path, words[shared:]) for path, words in tokens.items()]
    if in_folders:
        readings = [
            _read_name(it.path, [*tokens_of(it.path.parent.name), *tokens[it.path][shared:]])
            if it.is_unclear
            else it
            for it in readings
        ]
    for modality in MODALITIES:
        of_one = [reading.path for reading in readings if reading.modality == modality]
        if plain := _unprocessed(of_one):
            reason = f"{plain.name}, processed"
            readings = [
                NameReading(path=reading.path, reason=reason)
                if reading.modality == modality and reading.path != plain
                else reading
                for reading in readings
            ]
    return readings


def _unprocessed(paths: Sequence[Path]) -> Path | None:
    """Find the file whose name the others share, but for words such as "bias" or "brain"."""
    if len(paths) < 2:
        return None
    words = {path: tokens_of(stem_of(path)) for path in paths}
    plain, *others = sorted(paths, key=lambda path: len(words[path]))
    for path in others:
        added = list(words[path])
        for word in words[plain]:
            if word not in added:
                return None
            added.remove(word)
        if not added or not set(added) <= _PROCESSING_WORDS:
            return None
    return plain


def read_mask(path: Path, words: set[str]) -> NameReading:
    """Tell a lesion mask from other masks by the words of its name."""
    if words & _LESION_WORDS and not words & _BRAIN_WORDS:
        return NameReading(path=path, is_lesion_mask=True, reason="one of several lesion masks")
    return NameReading(path=path, reason="a mask, not an image")


def _shared_start(names: Sequence[list[str]]) -> int:
    """Count the leading tokens that all files share and that name no modality.

    "T1" and "T2" are points in time where a weighting follows: P1_T1_FLAIR beside P1_T1_T2.
    """
    if len(names) < 2:
        return 0
    shared = 0
    for column in zip(*(name[:-1] for name in names), strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    named = [place for place, word in enumerate(names[0][:shared]) if names_modality(word)]
    if not named:
        return shared
    may_be_times = all(re.fullmatch(r"t\d", names[0][place]) for place in named)
    rest = [word for name in names for word in name[shared:]]
    if may_be_times and any("t1" in word or "t2" in word for word in filter(names_modality, rest)):
        return shared
    return named[0]


def _with_parts(tokens: Sequence[str]) -> set[str]:
    """The words, and what those mean that are written together: LesionSeg, wmhmask, mask1, aseg."""
    words = set(tokens)
    for word in words - OTHER_IMAGE_WORDS - _LESION_WORDS - _MASK_WORDS:
        if parts := _WRITTEN_TOGETHER.fullmatch(word):
            words = words | {"lesion" if parts[1] in _LESIONS_WRITTEN_TOGETHER else "mask"}
    return words


def _read_name(path: Path, tokens: Sequence[str]) -> NameReading:
    words = _with_parts(tokens)
    if words & _LESION_WORDS_ALONE and not _stated(tokens):
        words.add("lesion")
    if words & (_LESION_WORDS | _MASK_WORDS):
        return read_mask(path, words)
    if other := sorted(words & OTHER_IMAGE_WORDS):
        return NameReading(path=path, reason=f"another kind of image ({', '.join(other)})")
    if agent := agent_in(tokens):
        reason = f"contrast-enhanced ({agent}), which is not T1w"
        return NameReading(path=path, has_agent=True, reason=reason)
    if body := sorted(words & SPINE_WORDS):
        return NameReading(path=path, reason=f"not of the head ({', '.join(body)})")
    if modality := modality_of(tokens):
        if modality == "T2w" and (echo := sorted(words & _T2STAR_BESIDE_T2)):
            return NameReading(path=path, reason=f"a gradient echo ({echo[0]}), which is T2*")
        return NameReading(path=path, modality=modality)
    if inverted := sorted(words & _INVERSION_RECOVERY):
        reason = f"inversion recovery ({inverted[0]}), which may be FLAIR or STIR"
    else:
        reason = f"its name states {' and '.join(_stated(tokens)) or 'no modality'}"
    return NameReading(path=path, is_unclear=True, reason=reason)
