"""The bias field of a scan: what differs smoothly from healthy tissue at the same places.

Coils see what is near them brighter, which multiplies intensities, and scanners weigh tissues
differently, which adds to them. Both change slowly across a brain; a lesion is a place. So a
polynomial is fitted to the difference from the atlas, on a grid of twice its voxels, robustly, and
again without the places that stand out from it: once as a gain, before intensities are normalised,
and once as an offset, afterwards.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.polynomial import polynomial
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.config import IntensityConfig
from mmccd_cli.preprocessing.intensity import center_and_width, is_standardised
from mmccd_cli.preprocessing.least_squares import normal_equations
from mmccd_cli.template import NormalRange

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

_LEAST_SPREAD = 0.3  # robust standard deviations; the atlas's own is less where few brains lie
_OUTLIER = 1.5  # spreads; differences beyond it hardly count
_ROUNDS, _STEPS = 2, 8  # of leaving places out, and of weighing voxels anew
_BLUR_MM = 6.0  # over which a place must stand out
_STANDS_OUT = 0.7  # spreads, after the blur
_GROWN_MM = 8.0  # how far such places are grown before they are left out
_MOST_SPREADS = 3.0  # that a voxel counts in the blur
_LEAST_VOXELS = 200  # of the thinned grid, for each degree and one more
_GAIN_DEGREE, _GAIN_ROUNDS = 2, 2
_LEAST_GAIN, _GREATEST_GAIN = 0.3, 3.0  # of one round
_FAINT_GAIN = 0.05  # standard deviation of a gain's logarithm of which half is taken off


def remove_bias_field(
    image: FloatArray,
    seen: BoolArray,
    normal: NormalRange,
    *,
    degree: int,
    sign: int,
    unit: float,
    spacing_mm: tuple[float, float, float],
) -> FloatArray:
    """Take a polynomial off a scan, so that its healthy tissue is as bright as usual everywhere.

    Args:
        image: (I, J, K) float32, normalised, on the template's grid.
        seen: (I, J, K) bool, brain that the scan shows and the atlas knows.
        normal: What healthy tissue looks like, in the image's unit.
        degree: Of the polynomial, over all three axes together; 0 is a constant.
        sign: 1 where anomalies are bright, -1 where they are dark, 0 where they may be either.
        unit: One robust standard deviation, in the image's unit.
        spacing_mm: Voxel size.

    Returns:
        (I, J, K) float32, less the field at every voxel; the image itself where too little of the
        brain is seen.
    """
    field = _smooth_field(
        image - normal.mean,
        seen,
        normal.spread,
        degree=degree,
        sign=sign,
        unit=unit,
        spacing_mm=spacing_mm,
    )
    return image if field is None else (image - field).astype(np.float32)


def divide_by_gain(
    data: FloatArray,
    seen: BoolArray,
    normal: NormalRange,
    *,
    sign: int,
    settings: IntensityConfig,
    spacing_mm: tuple[float, float, float],
) -> FloatArray:
    """Divide a scan by the smooth gain that makes its healthy tissue as bright as the atlas says.

    A faint gain cannot be told from how tissues differ between scanners, and hardly counts: of one
    whose logarithm has the standard deviation s, s^2 / (s^2 + 0.05^2) is taken off.

    Args:
        data: (I, J, K) float32, intensities of the scanner, on the template's grid.
        seen: (I, J, K) bool, brain that the scan shows and the atlas knows.
        normal: What healthy tissue looks like once it is normalised.
        sign: See `remove_bias_field`.
        settings: How it is normalised.
        spacing_mm: Voxel size.

    Returns:
        (I, J, K) float32; the scan itself where too little of the brain is seen, or where many of
        its values are negative, so that its zero is not the absence of signal.
    """
    values = data[seen]
    if values.size == 0 or is_standardised(values):
        return data
    gain = np.zeros(data.shape)  # its logarithm
    for _ in range(_GAIN_ROUNDS):
        even = data * np.exp(-gain)
        center, width = center_and_width(even[seen], settings.method)
        if not width > 0:
            return data
        unit = width / settings.scale
        expected = np.maximum(normal.mean + center / unit, 0)
        more = _smooth_field(
            (even - center) / unit - normal.mean,
            seen,
            normal.spread,
            degree=_GAIN_DEGREE,
            sign=sign,
            unit=settings.scale,
            spacing_mm=spacing_mm,
            of=expected,
        )
        if more is None:
            return data
        gain += np.log(np.clip(1 + more, _LEAST_GAIN, _GREATEST_GAIN))
    gain -= gain[seen].mean()
    variance = float(gain[seen].var())
    share = variance / (variance + _FAINT_GAIN**2)
    return (data * np.exp(-share * gain)).astype(np.float32)


def _smooth_field(
    difference: FloatArray,
    seen: BoolArray,
    spread: FloatArray,
    *,
    degree: int,
    sign: int,
    unit: float,
    spacing_mm: tuple[float, float, float],
    of: FloatArray | None = None,
) -> NDArray[np.float64] | None:
    """(I, J, K) polynomial that, times `of`, comes nearest to a difference from the atlas.

    None where too little of the brain is seen. `of` is 1 by default; all else is as in
    `remove_bias_field`.
    """
    kept = [_every_second(n) for n in difference.shape]
    thinned = np.ix_(*kept)
    seen_here = seen[thinned]
    if seen_here.sum() < _LEAST_VOXELS * (degree + 1):
        return None
    axes = [np.linspace(-1.0, 1.0, n) for n in difference.shape]
    powers = [p for p in itertools.product(range(degree + 1), repeat=3) if sum(p) <= degree]
    places = [
        axis[number][index]
        for axis, number, index in zip(axes, kept, np.nonzero(seen_here), strict=True)
    ]
    terms = np.stack(
        [places[0] ** i * places[1] ** j * places[2] ** k for i, j, k in powers], axis=1
    )
    if of is not None:
        terms *= of[thinned][seen_here][:, np.newaxis]
    here = difference[thinned][seen_here].astype(np.float64)
    width = np.maximum(spread[thinned][seen_here].astype(np.float64), _LEAST_SPREAD * unit)
    blur = _Blur(seen_here, [2 * mm for mm in spacing_mm])
    found = _fit(terms, here, width)
    for _ in range(_ROUNDS):
        left = _spreads_left(found, terms, here, width=width)
        usual = ~blur.stands_out(np.clip(left, -_MOST_SPREADS, _MOST_SPREADS), sign)
        if usual.sum() < len(usual) / 4:
            break
        found = _fit(terms[usual], here[usual], width[usual])
    coefficients = np.zeros((degree + 1,) * 3)
    for power, value in zip(powers, found, strict=True):
        coefficients[power] = value
    found_here = polynomial.polygrid3d(axes[0], axes[1], axes[2], coefficients)
    return np.asarray(found_here, dtype=np.float64)


def _every_second(count: int) -> NDArray[np.intp]:
    """Indices along an axis, the same from either end: a head and its mirror image agree."""
    from_end = np.minimum(np.arange(count), np.arange(count)[::-1])
    return np.flatnonzero(from_end % 2 == 0)


def _spreads_left(
    found: NDArray[np.float64],
    terms: NDArray[np.float64],
    difference: NDArray[np.float64],
    *,
    width: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(N,) what (P,) coefficients leave of the difference at each voxel, in its spread."""
    return (difference - np.einsum("np,p->n", terms, found)) / width


def _fit(
    terms: NDArray[np.float64], difference: NDArray[np.float64], width: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(P,) coefficients by weights of Geman and McClure, from no field on."""
    found = np.zeros(terms.shape[1])
    for _ in range(_STEPS):
        left = _spreads_left(found, terms, difference, width=width)
        weight = 1 / (width * (1 + (left / _OUTLIER) ** 2)) ** 2
        matrix, target = normal_equations(terms, weight, difference)
        matrix[np.diag_indices_from(matrix)] += 1e-6 * np.trace(matrix) / len(matrix)
        found[:] = np.linalg.solve(matrix, target)
    return found


class _Blur:
    """Finds places that stand out, among voxels of a brain on a grid."""

    def __init__(self, seen: BoolArray, spacing_mm: list[float]) -> None:
        self._seen = seen
        self._sigma = [_BLUR_MM / mm for mm in spacing_mm]
        self._steps = max(1, round(_GROWN_MM / min(spacing_mm)))
        self._share = self._blurred(np.ones(int(seen.sum())))

    def stands_out(self, left: NDArray[np.float64], sign: int) -> BoolArray:
        """(N,) bool, of what a fit left at each voxel."""
        blurred = self._blurred(left) / np.maximum(self._share, 0.2)
        beyond = (np.abs(blurred) if sign == 0 else sign * blurred) > _STANDS_OUT
        return ndimage.binary_dilation(beyond & self._seen, iterations=self._steps)[self._seen]

    def _blurred(self, values: NDArray[np.float64]) -> FloatArray:
        volume = np.zeros(self._seen.shape, np.float32)
        volume[self._seen] = values
        return ndimage.gaussian_filter(volume, self._sigma)
