"""From a map to its mask and lesions, on arrays small enough to count by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from grids import block
from numpy.typing import NDArray
from scores import LESION, PLAIN, SHAPE, SPACING, signal

from mmccd_cli.anomaly.mask import find_lesions, mask_from_map
from mmccd_cli.anomaly.score import map_from_score
from mmccd_cli.config import ScoreConfig


def mask_of(values: NDArray[np.float32], config: ScoreConfig) -> NDArray[np.bool_]:
    """The mask of a score whose scan has the threshold 1."""
    anomaly_map = map_from_score(values, 1.0, config)
    return mask_from_map(anomaly_map, config, spacing_mm=SPACING, scan_threshold=1.0)


def test_the_mask_at_one_half_is_the_score_above_its_threshold() -> None:
    mask = mask_of(signal(), PLAIN)
    np.testing.assert_array_equal(mask, signal() > 1)
    assert mask.dtype == bool


def test_a_higher_threshold_gives_a_smaller_mask() -> None:
    ramp = np.broadcast_to(np.linspace(-2, 4, SHAPE[0], dtype=np.float32)[:, None, None], SHAPE)
    masks = [mask_of(ramp, replace(PLAIN, threshold=t)) for t in (0.3, 0.5, 0.9)]
    sizes = [int(mask.sum()) for mask in masks]
    assert sizes[0] > sizes[1] > sizes[2] > 0
    assert not (masks[2] & ~masks[0]).any()


def test_small_components_go_by_volume_in_millimetres() -> None:
    values = np.zeros(SHAPE, dtype=np.float32)
    values[LESION] = 4  # 180 voxels, 1440 mm3
    values[3:5, 3:5, 3:5] = 4  # 8 voxels, 64 mm3
    keep = replace(PLAIN, min_lesion_mm3=64.0)
    assert mask_of(values, keep).sum() == 188
    drop = replace(PLAIN, min_lesion_mm3=65.0)
    np.testing.assert_array_equal(mask_of(values, drop), LESION)
    share = replace(PLAIN, min_fraction_of_largest=0.05)
    np.testing.assert_array_equal(mask_of(values, share), LESION)


def test_components_need_seeds() -> None:
    """Both spots exceed the threshold; only one exceeds the seeds' over enough volume."""
    values = np.zeros(SHAPE, dtype=np.float32)
    values[LESION] = 4
    values[3:7, 3:7, 3:7] = 2
    config = replace(PLAIN, seed_threshold=2.4, min_seed_mm3=80.0)
    np.testing.assert_array_equal(mask_of(values, config), LESION)
    assert mask_of(values, PLAIN).sum() == LESION.sum() + 64
    much = replace(config, min_seed_mm3=1441.0)
    assert not mask_of(values, much).any()


def test_holes_are_filled_as_the_settings_say() -> None:
    shell = np.zeros(SHAPE, dtype=np.float32)
    shell[LESION] = 4
    shell[10:12, 10:12, 10] = 0  # enclosed
    tunnel = shell.copy()
    tunnel[10:12, 10:12, 8:13] = 0  # open at both ends, closed in each axial plane
    for kind, shell_filled, tunnel_filled in (
        ("none", False, False),
        ("volume", True, False),
        ("planes", True, True),
    ):
        config = replace(PLAIN, fill_holes=kind)  # type: ignore[arg-type]
        assert mask_of(shell, config)[10, 10, 10] == shell_filled
        assert mask_of(tunnel, config)[10, 10, 10] == tunnel_filled


def test_nothing_above_the_threshold_is_an_empty_mask() -> None:
    for config in (PLAIN, replace(PLAIN, min_seed_mm3=80.0, fill_holes="planes")):
        assert not mask_of(np.full(SHAPE, -9, dtype=np.float32), config).any()


def test_lesions_come_by_volume_and_lie_in_world_coordinates() -> None:
    mask = block((10, 10, 10), (1, 2), (1, 2), (1, 3)) | block((10, 10, 10), (4, 8), (5, 7), (6, 9))
    anomaly_map = np.where(mask, 0.5, 0.0).astype(np.float32)
    anomaly_map[5, 5, 7] = 0.9
    affine = np.diag([-2.0, 1.0, 3.0, 1.0])
    affine[:3, 3] = (100.0, -50.0, 10.0)
    first, second = find_lesions(mask, anomaly_map, affine)
    assert (first.id, second.id) == (1, 2)
    assert first.volume_ml == pytest.approx(24 * 6 / 1000)
    assert first.box == ((4, 8), (5, 7), (6, 9))
    assert first.centroid_ras_mm == pytest.approx((100 - 2 * 5.5, -50 + 5.5, 10 + 3 * 7))
    assert first.peak == pytest.approx(0.9)
    assert first.mean == pytest.approx((23 * 0.5 + 0.9) / 24)
    assert second.volume_ml == pytest.approx(2 * 6 / 1000)
    assert find_lesions(np.zeros_like(mask), anomaly_map, affine) == []
