"""Painted lesions: where they lie, how large and how bright they are."""

from __future__ import annotations

import numpy as np
import pytest

from mmccd_cli.training.painting import CONTRASTS, Painter, paint

SHAPE, SPACING = (48, 56, 40), (2.0, 2.0, 2.0)


def healthy_ball() -> np.ndarray:
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    return np.asarray(sum(a**2 for a in axes) < 0.9)


def painted(seed: int, **changes: object) -> tuple[dict[str, np.ndarray], np.ndarray]:
    images = {modality: np.zeros(SHAPE, np.float32) for modality in CONTRASTS}
    return paint(
        images,
        healthy_ball(),
        Painter(**changes),  # type: ignore[arg-type]  # of the fields' types
        spacing_mm=SPACING,
        generator=np.random.default_rng(seed),
    )


def test_lesions_lie_in_healthy_tissue_and_have_their_size() -> None:
    images, numbers = painted(0, count=5, volumes_ml=(2.0, 2.0))
    assert not (numbers > 0)[~healthy_ball()].any()
    volumes_ml = np.bincount(numbers.ravel())[1:] * 0.008
    assert len(volumes_ml) == 5
    assert ((volumes_ml > 1.0) & (volumes_ml < 3.0)).all()
    touched = images["FLAIR"] != 0
    assert not touched[~healthy_ball()].any()


def test_contrast_is_in_robust_standard_deviations_and_signed() -> None:
    images, numbers = painted(1, count=6, volumes_ml=(1.0, 4.0))
    for number in range(1, numbers.max() + 1):
        for modality, (low, high) in CONTRASTS.items():
            values = images[modality][numbers == number]
            strongest = values[np.abs(values).argmax()]
            assert low - 1e-4 <= strongest <= high + 1e-4


def test_dark_lesions_have_the_opposite_sign() -> None:
    images, numbers = painted(2, count=4, volumes_ml=(1.0, 2.0), dark_fraction=1.0)
    assert (images["FLAIR"][numbers > 0] < 0).all()
    assert (images["T1w"][numbers > 0] > 0).all()


def test_a_seed_gives_the_same_lesions_and_another_others() -> None:
    same = [painted(3)[1] for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert (painted(4)[1] != same[0]).any()


def test_the_order_of_the_scans_does_not_matter() -> None:
    images = {modality: np.zeros(SHAPE, np.float32) for modality in CONTRASTS}
    turned = dict(reversed(images.items()))
    first, second = (
        paint(
            scans,
            healthy_ball(),
            Painter(),
            spacing_mm=SPACING,
            generator=np.random.default_rng(4),
        )[0]
        for scans in (images, turned)
    )
    for modality in CONTRASTS:
        np.testing.assert_array_equal(first[modality], second[modality])


@pytest.mark.parametrize("volumes_ml", [(0.05, 0.05), (500.0, 500.0)])
def test_extremes_are_painted_or_left_out(volumes_ml: tuple[float, float]) -> None:
    _, numbers = painted(5, count=2, volumes_ml=volumes_ml)
    assert numbers.max() <= 2
    if volumes_ml[0] < 1:
        assert (numbers > 0).sum() >= 2
    else:
        assert not numbers.any(), "there is no room for half a litre"
