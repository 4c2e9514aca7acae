"""Which modality a series is: by its sequence parameters first, by its description only then.

The limits are those of brain protocols from 1 to 7 tesla. Where parameters and description
contradict each other the parameters win, because descriptions are typed by people and copied from
protocol to protocol. Only what no parameter can tell, such as a perfusion map, is left to words.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmccd_cli.inputs.names import OTHER_IMAGE_WORDS, SPINE_WORDS, agent_in, modality_of

# Values of ImageType that make an image something else than a scan of ours.
_OTHER_TYPES = {
    "LOCALIZER": "a localizer",
    "SCOUT": "a localizer",
    "DIFFUSION": "diffusion",
    "ADC": "a diffusion map",
    "FA": "a diffusion map",
    "TRACEW": "diffusion",
    "PERFUSION": "perfusion",
    "ASL": "perfusion",
    "SWI": "susceptibility-weighted",
    "MIP": "a projection",
    "MNIP": "a projection",
    "MAX_IP": "a projection",
    "MIN_IP": "a projection",
    "PROJECTION IMAGE": "a projection",
    "SUBTRACT": "a subtraction",
    "SUBTRACTION": "a subtraction",
    "P": "a phase image",
    "PHASE": "a phase image",
    "PHASE MAP": "a phase image",
    "R": "the real part of an image",
    "REAL": "the real part of an image",
    "I": "the imaginary part of an image",
    "IMAGINARY": "the imaginary part of an image",
    "T1 MAP": "a map of T1",
    "T2 MAP": "a map of T2",
    "T2_STAR MAP": "a map of T2*",
    "FMRI": "functional",
    "MOSAIC": "a mosaic of slices",
    "SCREEN SAVE": "a screen shot",
    "FAT": "a fat image",
    "OPP_PHASE": "an opposed-phase image",
    "OUT_PHASE": "an opposed-phase image",
    "FLOW_ENCODED": "angiography",
}
_UNKNOWN = "neither its parameters nor its description tell the modality"
# These name a contrast, which the parameters tell better: the second echo of "PD T2" is T2w.
_CONTRASTS = {"pd", "pdw", "star", "stir", "t2s", "t2star", "t2starw"}
# fmt: off
_OTHER_WORDS = (OTHER_IMAGE_WORDS - _CONTRASTS) | {
    "asset", "b0", "b1", "calib", "calibration", "dadc", "dir", "edwi", "loc", "localiser",
    "mosaic", "pca", "pha", "report", "resting", "screenshot", "shim", "sub", "survey", "3plane",
}
_OTHER_BODY = SPINE_WORDS | {
    "abdomen", "ankle", "breast", "chest", "elbow", "femur", "foot", "hand", "heart", "hip",
    "knee", "liver", "pelvis", "prostate", "shoulder", "wrist",
}
# fmt: on
_REFORMATTED = {"MPR", "REFORMATTED", "CPR"}
_WORDS_OF_REFORMATS = {"mpr", "mprs", "reformat", "reformats", "reformatted", "rfmt"}


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """How an image was acquired, as far as its header says.

    Args:
        kinds: Scanning sequence: SE, IR, GR, EP, RM.
        variants: Sequence variant: SK, SP, SS, MP, ...
        repetition_ms: TR.
        echo_ms: TE.
        inversion_ms: TI, None without inversion.
        flip_deg: Flip angle.
        echo_number: Which of several echoes.
        image_type: ORIGINAL or DERIVED, PRIMARY or SECONDARY, and what the vendor adds.
        has_agent: Whether a contrast agent was recorded.
        b_value: Diffusion weighting in s/mm², or None.
        is_angiography: Whether flow is what the image shows.
        is_balanced: Whether it is a steady-state sequence of mixed contrast.
        words: Words of the series' description.
        body_part: Body part examined, in lower case.
    """

    kinds: frozenset[str]
    variants: frozenset[str]
    repetition_ms: float | None
    echo_ms: float | None
    inversion_ms: float | None
    flip_deg: float | None
    echo_number: int | None
    image_type: tuple[str, ...]
    has_agent: bool
    b_value: float | None
    is_angiography: bool
    is_balanced: bool
    words: tuple[str, ...]
    body_part: str


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """What a series was taken for.

    Args:
        modality: None where it is none of ours.
        reason: The parameters or words that decided.
        derived: 0 as acquired, 1 processed, 2 reformatted from another series.
        has_agent: Whether there was contrast agent in the blood.
    """

    modality: str | None = None
    reason: str
    derived: int = 0
    has_agent: bool = False

    @property
    def is_known(self) -> bool:
        """Whether it is one of ours, or known to be something else."""
        return self.modality is not None or self.reason != _UNKNOWN


def recognise(acquisition: Acquisition) -> Recognition:
    """Tell T1w, T2w and FLAIR from everything else that a study holds."""
    if other := _other_image(acquisition):
        return Recognition(reason=other)
    modality, other = _by_parameters(acquisition)
    if other:
        return Recognition(reason=f"{other} ({_parameters(acquisition)})")
    described = modality_of(acquisition.words)
    if modality:
        reason = _parameters(acquisition)
        if described not in (None, modality):
            reason += f"; its description says {described}"
    elif described and not _CONTRASTS & set(acquisition.words):
        modality, reason = described, "by its description; the parameters do not decide"
    else:
        return Recognition(reason=_UNKNOWN)
    agent = acquisition.has_agent or agent_in(acquisition.words) is not None
    if modality == "T1w" and agent:
        return Recognition(reason="contrast-enhanced, which is not T1w")
    return Recognition(
        modality=modality, reason=reason, derived=_derived(acquisition), has_agent=agent
    )


def known_words(acquisition: Acquisition) -> str:
    """Return the words of the description that are known to be about images, and no others.

    A description is free text, so it may hold a name.
    """
    # fmt: off
    known = _OTHER_WORDS | _CONTRASTS | _OTHER_BODY | _WORDS_OF_REFORMATS | {
        "2d", "3d", "ax", "axial", "brain", "c", "ce", "contrast", "cor", "coronal", "cube", "dark",
        "fat", "ffe", "fl", "fl3d", "flash", "fluid", "fs", "fse", "gd", "gre", "head", "ir",
        "iso", "obl", "p2", "post", "pre", "propeller", "sag", "sagittal", "se", "space", "spc",
        "spir", "tfe", "tfl", "tir", "tirm", "tra", "transversal", "tse", "vibe", "vista", "w",
        "with", "without", "wo",
    }
    # fmt: on
    words = [word for word in acquisition.words if word in known or modality_of([word])]
    return " ".join(words[:6])


def _other_image(acquisition: Acquisition) -> str | None:
    """Say what it is where it cannot be one of ours, whatever its contrast."""
    for value in acquisition.image_type:
        if value in _OTHER_TYPES:
            return _OTHER_TYPES[value]
    if "EP" in acquisition.kinds:
        return "echo-planar (diffusion, perfusion or functional)"
    if acquisition.b_value:
        return "diffusion"
    if acquisition.is_angiography:
        return "angiography"
    if acquisition.is_balanced:
        return "a balanced steady-state sequence"
    body = _OTHER_BODY & {acquisition.body_part, *acquisition.words}
    if body:
        return f"not of the head ({', '.join(sorted(body))})"
    words = _OTHER_WORDS & set(acquisition.words)
    return f"another kind of image ({', '.join(sorted(words))})" if words else None


def _by_parameters(acquisition: Acquisition) -> tuple[str | None, str | None]:
    """Return the modality, or what else it is, or twice None where the parameters do not decide."""
    tr, te = acquisition.repetition_ms, acquisition.echo_ms
    if tr is None or te is None:
        return None, None
    kinds = acquisition.kinds
    if ("GR" in kinds and "SE" not in kinds) or (not kinds and tr < 100):
        return _gradient_echo(acquisition, tr, te)
    if acquisition.inversion_ms is not None:
        return _inverted_spin_echo(tr, te, acquisition.inversion_ms)
    if "IR" in kinds:  # with an inversion time that is not stated: FLAIR, STIR or T1w
        return None, None
    if te <= 40 and tr <= 1500:
        return "T1w", None
    if te >= 60 and tr >= 1500:
        return "T2w", None
    if te < 60 and tr >= 1800:
        return None, "proton-density-weighted"
    return None, None


def _inverted_spin_echo(tr: float, te: float, ti: float) -> tuple[str | None, str | None]:
    if ti >= 1500 and te >= 60:
        return "FLAIR", None
    if ti < 350:
        return None, "fat-suppressed by inversion (STIR)"
    if ti < 1500 and te < 60 and tr <= 4500:
        return "T1w", None
    return None, None


def _gradient_echo(acquisition: Acquisition, tr: float, te: float) -> tuple[str | None, str | None]:
    ti, flip = acquisition.inversion_ms, acquisition.flip_deg
    if te >= 13:
        return None, "T2*-weighted"
    if ti is not None or "MP" in acquisition.variants:
        return ("T1w", None) if ti is None or 300 <= ti <= 1500 else (None, None)
    if flip is None:
        return None, None
    if tr < 20 and flip > 30:
        return None, "a balanced steady-state sequence"
    if tr <= 60:
        return ("T1w", None) if flip >= 6 else (None, "proton-density-weighted")
    return ("T1w", None) if tr <= 700 and flip >= 45 else (None, None)


def _parameters(acquisition: Acquisition) -> str:
    values = {
        "TR": acquisition.repetition_ms,
        "TE": acquisition.echo_ms,
        "TI": acquisition.inversion_ms,
    }
    told = ", ".join(f"{name} {value:g} ms" for name, value in values.items() if value is not None)
    kinds = "/".join(sorted(acquisition.kinds))
    return f"{kinds}, {told}" if kinds else told


def _derived(acquisition: Acquisition) -> int:
    values, words = set(acquisition.image_type), set(acquisition.words)
    if values & _REFORMATTED or words & _WORDS_OF_REFORMATS:
        return 2
    return 1 if values & {"DERIVED", "SECONDARY"} else 0
