"""What differs smoothly from healthy tissue goes, and lesions stay."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mmccd_cli.config import IntensityConfig
from mmccd_cli.preprocessing.bias_field import divide_by_gain, remove_bias_field
from mmccd_cli.preprocessing.intensity import normalise
from mmccd_cli.preprocessing.least_squares import normal_equations
from mmccd_cli.template import NormalRange

SHAPE = (60, 72, 56)
SPACING = (2.0, 2.0, 2.0)
UNIT = 0.5
X, Y, Z = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
BRAIN = X**2 + Y**2 + Z**2 < 0.81
FIELD = (UNIT * (0.8 * Y - 0.6 * Z + 0.7 * X * Y + 0.9 * Y**2 - 0.3)).astype(np.float32)


def tissue() -> tuple[np.ndarray, NormalRange]:
    """A healthy brain of folded tissue, and the range that it is drawn from."""
    rng = np.random.default_rng(0)
    folds = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2.0)
    mean = (UNIT * folds / folds.std()).astype(np.float32)
    noise = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.0)
    healthy = (mean + 0.5 * UNIT * noise / noise.std()).astype(np.float32)
    return healthy, NormalRange(mean, np.full(SHAPE, 0.5 * UNIT, np.float32))


HEALTHY, NORMAL = tissue()


def flattened(image: np.ndarray, *, sign: int = 1, degree: int = 2) -> np.ndarray:
    return remove_bias_field(
        image, BRAIN, NORMAL, degree=degree, sign=sign, unit=UNIT, spacing_mm=SPACING
    )


def error(found: np.ndarray, inside: np.ndarray = BRAIN) -> float:
    """Root mean square of what is left of the field, in robust standard deviations."""
    left = (found - HEALTHY)[inside] / UNIT
    return float(np.sqrt(np.mean(left**2)))


@pytest.mark.parametrize("sign", [1, -1, 0])
def test_a_smooth_field_goes(sign: int) -> None:
    assert error(HEALTHY + FIELD) > 0.4
    assert error(flattened(HEALTHY + FIELD, sign=sign)) < 0.1


@pytest.mark.parametrize("shape", [SHAPE, (59, 72, 55)])
def test_a_mirrored_head_has_the_mirrored_field(shape: tuple[int, int, int]) -> None:
    part = tuple(slice(n) for n in shape)
    image, brain = (HEALTHY + FIELD)[part], BRAIN[part]
    mean, spread = NORMAL.mean[part], NORMAL.spread[part]
    turned = slice(None, None, -1)
    found, again = (
        remove_bias_field(
            image[side],
            brain[side],
            NormalRange(mean[side], spread[side]),
            degree=2,
            sign=1,
            unit=UNIT,
            spacing_mm=SPACING,
        )
        for side in (slice(None), turned)
    )
    np.testing.assert_allclose(found, again[turned], atol=1e-4)


def test_a_scan_without_a_field_stays_as_it_is() -> None:
    assert error(flattened(HEALTHY)) < 0.1


def test_a_field_of_higher_degree_than_wanted_stays() -> None:
    assert error(flattened(HEALTHY + FIELD, degree=1)) > 0.15


@pytest.mark.parametrize(("sign", "contrast"), [(1, 3.0), (-1, -3.0), (0, 3.0), (0, -3.0)])
def test_a_large_lesion_is_no_field(sign: int, contrast: float) -> None:
    """A lesion of an eighth of the brain, on one side, keeps its contrast."""
    lesion = (X - 0.45) ** 2 + Y**2 + Z**2 < 0.45**2
    assert 0.1 < lesion[BRAIN].mean() < 0.2
    image = HEALTHY + FIELD + np.float32(UNIT * contrast) * lesion
    found = flattened(image, sign=sign)
    assert error(found, BRAIN & ~lesion) < 0.15
    kept = (found - HEALTHY)[lesion].mean() / UNIT
    assert kept == pytest.approx(contrast, rel=0.1)


def test_what_is_not_seen_teaches_nothing() -> None:
    image = HEALTHY + FIELD
    seen = BRAIN & (Z < 0.2)
    wrong = np.where(seen, image, np.float32(-3))
    settings = {"degree": 2, "sign": 1, "unit": UNIT, "spacing_mm": SPACING}
    found = remove_bias_field(wrong, seen, NORMAL, **settings)
    assert error(found, seen) < 0.1


def test_of_a_few_voxels_nothing_is_learnt() -> None:
    image, seen = HEALTHY + FIELD, np.zeros(SHAPE, bool)
    seen[28:32, 30:36, 20:24] = True
    settings = {"degree": 2, "sign": 1, "unit": UNIT, "spacing_mm": SPACING}
    assert remove_bias_field(image, seen, NORMAL, **settings) is image


def test_sums_by_block_are_those_of_all() -> None:
    rng = np.random.default_rng(0)
    columns, weight, target = rng.random((5000, 14)), rng.random(5000), rng.random(5000)
    matrix, side = normal_equations(columns, weight, target)
    np.testing.assert_allclose(matrix, columns.T @ (columns * weight[:, None]))
    np.testing.assert_allclose(side, columns.T @ (target * weight))


COIL = np.exp(0.25 * Y - 0.2 * Z + 0.15 * X**2).astype(np.float32)
SETTINGS = IntensityConfig(scale=UNIT)


def scanned(healthy: np.ndarray = HEALTHY) -> np.ndarray:
    """Intensities as a scanner has them: nothing is 0, the brain's median is 4 deviations."""
    return np.where(BRAIN, 100 * (healthy + 4 * UNIT), 0).astype(np.float32)


def evened(data: np.ndarray) -> np.ndarray:
    return divide_by_gain(data, BRAIN, NORMAL, sign=1, settings=SETTINGS, spacing_mm=SPACING)


def normalised(data: np.ndarray) -> np.ndarray:
    return normalise(data, BRAIN, SETTINGS)


def unevenness(data: np.ndarray) -> float:
    """Standard deviation of what multiplies the scan, in the brain."""
    return float(np.log(data[BRAIN] / scanned()[BRAIN]).std())


def test_a_gain_goes() -> None:
    seen = scanned() * COIL
    assert unevenness(seen) > 0.12
    assert unevenness(evened(seen)) < 0.03
    assert error(normalised(seen)) > 0.45
    assert error(normalised(evened(seen))) < 0.25


def test_a_gain_takes_contrast_along_which_no_offset_gives_back() -> None:
    """Tissue in the dark has less contrast, too."""
    seen = normalised(scanned() * COIL)
    assert error(flattened(normalised(evened(scanned() * COIL)))) < 0.5 * error(flattened(seen))


def test_a_faint_gain_hardly_counts() -> None:
    faint = scanned() * COIL**0.1
    taken = np.log(evened(faint)[BRAIN] / faint[BRAIN])
    assert unevenness(faint) > 0.012
    assert taken.std() < 0.25 * unevenness(faint)


def test_a_scan_whose_zero_is_no_absence_of_signal_is_not_divided() -> None:
    scores = np.where(BRAIN, HEALTHY, 0).astype(np.float32)
    assert evened(scores) is scores


def test_too_little_brain_for_a_gain_is_left_alone() -> None:
    seen = scanned() * COIL
    few = BRAIN & (np.cumsum(BRAIN).reshape(SHAPE) < 2000)
    assert divide_by_gain(seen, few, NORMAL, sign=1, settings=SETTINGS, spacing_mm=SPACING) is seen


def test_a_lesion_keeps_its_contrast_under_a_gain() -> None:
    ball = (X - 0.3) ** 2 + (Y + 0.3) ** 2 + Z**2 < 0.09
    lesion = HEALTHY + 3 * UNIT * ball.astype(np.float32)
    found, true = (normalised(evened(scanned(lesion) * gain)) for gain in (COIL, 1.0))
    assert found[ball].mean() - HEALTHY[ball].mean() > 2.5 * UNIT
    assert found[ball].mean() == pytest.approx(true[ball].mean(), abs=0.4 * UNIT)
