"""Signs that a result may have failed, measured on images that everybody has.

Each check gives a suspicion between 0 (as expected) and 1 (clearly not). A subject's suspicion is
1 - (1 - a)(1 - b)(1 - c)...: one clear sign is enough, and several weak ones add up. It orders a
cohort for the eye; it is not the probability of anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.outputs.lesions import is_mask_warning
from mmccd_cli.outputs.report.data import ReportData
from mmccd_cli.preprocessing.agreement import SHIFT_MM, agreement
from mmccd_cli.preprocessing.subject import PreparedSubject
from mmccd_cli.template import Template, correlation

Verdict = Literal["good", "look", "bad"]

_SHIFTS = tuple(
    (sign * 6 * (axis == 0), sign * 6 * (axis == 1), sign * 6 * (axis == 2))
    for axis, sign in product(range(3), (-1, 1))
)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One measured sign: its value and what is usual in words, and how suspicious it is, 0 to 1."""

    name: str
    value: str
    expected: str
    suspicion: float

    @property
    def verdict(self) -> Verdict:
        """See `verdict`."""
        return verdict(self.suspicion)


def verdict(suspicion: float) -> Verdict:
    """Return "good", "look" or "bad", which are also the names of the pages' colours."""
    return "good" if suspicion < 0.25 else "look" if suspicion < 0.75 else "bad"


def suspicion(checks: Sequence[Check]) -> float:
    """Return the suspicion that all checks give together, in [0, 1]."""
    return round(1 - math.prod(1 - check.suspicion for check in checks), 3)


def check_subject(data: ReportData, warnings: Sequence[str]) -> list[Check]:
    """Measure all signs.

    Args:
        data: The subject.
        warnings: What the run said should be read before its result is trusted; what it said of
            the mask, which the report shows elsewhere, does not count.
    """
    return [
        *_brain_checks(data),
        *_template_checks(data),
        *_modality_checks(data),
        *_map_checks(data),
        _warning_check(warnings),
    ]


def _ramp(value: float, fine: float, bad: float) -> float:
    """0 up to `fine`, 1 from `bad` on, a straight line between them; either may be the larger."""
    return float(np.clip((value - fine) / (bad - fine), 0, 1))


def _brain_checks(data: ReportData) -> Iterator[Check]:
    litres = data.brain_litres
    yield Check(
        name="Brain volume",
        value=f"{litres:.2f} l",
        expected="0.9 to 1.9 l",
        suspicion=max(_ramp(litres, 0.9, 0.6), _ramp(litres, 1.9, 2.3)),
    )
    edge = data.at_edge
    yield Check(
        name="Brain mask at the edge of the scan",
        value=f"{edge:.0%} of its surface",
        expected="up to 10%",
        suspicion=_ramp(edge, 0.10, 0.40),
    )


def _template_checks(data: ReportData) -> Iterator[Check]:
    prepared, template = data.prepared, data.template
    common = [name for name in prepared.images if name in template.images]
    if not common:
        return
    dice = overlap(prepared.brain, template.mask).dice
    yield Check(
        name="Overlap of brain and template",
        value=f"Dice {dice:.2f}",
        expected="at least 0.89",
        suspicion=_ramp(dice, 0.89, 0.78),
    )
    likeness = _likeness(prepared, template, common)
    yield Check(
        name="Likeness with the template",
        value=f"mean correlation {likeness:.2f}",
        expected="at least 0.32",
        suspicion=_ramp(likeness, 0.32, 0.15),
    )
    shifted = max(_likeness(prepared, template, common, shift_mm=shift) for shift in _SHIFTS)
    gain = shifted / max(likeness, 0.05) - 1
    yield Check(
        name="Scans lie on the template",
        value=_of_shift(gain, 6),
        expected="any shift matches worse",
        suspicion=_ramp(gain, 0.0, 0.20),
    )


def _modality_checks(data: ReportData) -> Iterator[Check]:
    prepared, reference = data.prepared, data.reference
    for name in (modality for modality in prepared.images if modality != reference):
        both = prepared.covered[reference] & prepared.covered[name]
        images = prepared.images[reference], prepared.images[name]
        found = agreement(*images, inside=both, spacing_mm=data.template.spacing_mm)
        if found is None:
            continue
        yield Check(
            name=f"{name} lies on {reference}",
            value=_of_shift(found.gain_by_shift, round(SHIFT_MM)),
            expected="any shift matches worse",
            suspicion=_ramp(found.gain_by_shift, -0.10, 0.05),
        )
        yield Check(
            name=f"{name} shows the head of {reference}",
            value=f"its mirror image tells {found.mirrored:.0%} of what it tells",
            expected="up to 60%",
            suspicion=_ramp(found.mirrored, 0.60, 0.80),
        )
    for name, covered in prepared.covered.items():
        share = covered.sum() / max(1, prepared.brain.sum())
        if share < 0.95:
            yield Check(
                name=f"{name} shows the brain",
                value=f"{share:.0%} of it",
                expected="at least 95%",
                suspicion=_ramp(share, 0.95, 0.60),
            )


def _map_checks(data: ReportData) -> Iterator[Check]:
    inside = data.anomaly_map[data.brain]
    share = float(data.mask[data.brain].mean())
    yield Check(
        name="Lesions",
        value=f"{share:.1%} of the brain",
        expected="up to 15%",
        suspicion=_ramp(share, 0.15, 0.35),
    )
    median = float(np.median(inside)) / max(data.threshold, 1e-6)
    yield Check(
        name="Middle value of the map",
        value=f"{median:.0%} of the threshold",
        expected="up to 8%",
        suspicion=_ramp(median, 0.08, 0.35),
    )


def _warning_check(warnings: Sequence[str]) -> Check:
    number = sum(not is_mask_warning(text) for text in warnings)
    return Check(
        name="Warnings besides those of the mask",
        value=str(number),
        expected="none",
        suspicion=1 - 0.5**number,
    )


def _of_shift(gain: float, mm: int) -> str:
    """Say how much better or worse the best shift matches."""
    return f"the best shift by {mm} mm matches {abs(gain):.0%} {'better' if gain > 0 else 'worse'}"


def _likeness(
    prepared: PreparedSubject,
    template: Template,
    names: Sequence[str],
    *,
    shift_mm: tuple[int, int, int] = (0, 0, 0),
) -> float:
    """Mean correlation of normalised scans with the template's, optionally shifted first."""
    shift = [round(mm / spacing) for mm, spacing in zip(shift_mm, template.spacing_mm, strict=True)]

    def moved(image: NDArray[Any]) -> NDArray[Any]:
        return np.roll(image, shift, axis=(0, 1, 2))  # the margins hold no brain

    values = []
    for name in names:
        inside = moved(prepared.covered[name]) & template.mask
        ours = moved(prepared.images[name])[inside]
        values.append(correlation(ours, template.images[name][inside]) or 0.0)
    return float(np.mean(values))
