"""Scans as if from another scanner stay the same head."""

from __future__ import annotations

import numpy as np
import pytest

from mmccd_cli.training.scanners import acquire, stretch_contrast

VALUES = np.linspace(-6, 10, 400, dtype=np.float32)
SPACING = (2.0, 2.0, 2.0)


def head() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((20, 24, 16)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_contrast_keeps_the_order_of_tissues_and_zero(seed: int) -> None:
    stretched = stretch_contrast(VALUES, 0.45, np.random.default_rng(seed))
    assert (np.diff(stretched) > 0).all()
    zero = stretch_contrast(np.zeros(1, np.float32), 0.45, np.random.default_rng(seed))
    assert float(zero[0]) == pytest.approx(0.0, abs=1e-6)
    assert np.abs(stretched - VALUES).max() > 0.1


def test_no_strength_changes_nothing() -> None:
    same = stretch_contrast(VALUES, 0.0, np.random.default_rng(0))
    np.testing.assert_allclose(same, VALUES, atol=1e-5)


def test_an_acquisition_depends_on_its_generator_alone_and_keeps_the_head() -> None:
    image = head()
    image[5:15, 5:19, 4:12] += 5.0
    once, again = (acquire(image, SPACING, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    likeness = [
        np.corrcoef(image.ravel(), acquire(image, SPACING, np.random.default_rng(n)).ravel())[0, 1]
        for n in range(20)
    ]
    assert min(likeness) > 0.85
    assert max(likeness) < 1.0
