"""Volumes: another index order, or a part of them, is the same place in the world."""

from __future__ import annotations

import mmap
import pickle
from pathlib import Path

import numpy as np
import pytest
from grids import AFFINES, RAMP, SHEARED, SINGULAR

from mmccd_cli.errors import DataError, GeometryError
from mmccd_cli.inputs.volume import Volume, reorient, sparse_zeros
from mmccd_cli.template import transform_points


def place_of(volume: Volume, value: float) -> np.ndarray:
    """Where in the world the voxel with this value lies."""
    return transform_points(volume.affine, np.argwhere(volume.data == value)[0])


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_reorienting_moves_no_voxel_in_the_world(affine, codes):
    volume = Volume(RAMP, affine)
    turned = reorient(volume, codes)
    assert turned.orientation == codes
    np.testing.assert_allclose(place_of(turned, 77), place_of(volume, 77), atol=1e-9)
    np.testing.assert_array_equal(reorient(turned, volume.orientation).data, RAMP)


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.eye(3), SINGULAR, np.full((4, 4), np.inf)])
def test_a_volume_refuses_an_unusable_affine(affine):
    with pytest.raises(GeometryError, match="affine"):
        Volume(RAMP, affine)


@pytest.mark.parametrize("affine", [AFFINES["PIR"], SHEARED], ids=["PIR", "sheared"])
def test_cropping_moves_no_voxel_in_the_world(affine):
    volume = Volume(RAMP, affine)
    part = volume.cropped((slice(1, 4), slice(2, 6), slice(0, 3)))
    assert part.shape == (3, 4, 3)
    assert 62 in part.data
    np.testing.assert_allclose(place_of(part, 62), place_of(volume, 62), atol=1e-12)


@pytest.mark.parametrize("dtype", [complex, object, "U3", "M8[s]"])
def test_a_volume_holds_real_numbers(dtype):
    with pytest.raises(DataError, match="real numbers"):
        Volume(np.ones((2, 2, 2)).astype(int).astype(dtype), np.eye(4))


def test_the_volume_of_a_voxel_is_exact_under_shear():
    assert Volume(RAMP, SHEARED).voxel_volume_mm3 == pytest.approx(1.2 * 0.8 * 3)


def test_sparse_zeros_are_an_array_like_any_other():
    zeros = sparse_zeros((3, 4, 5), np.float32)
    assert zeros.shape == (3, 4, 5)
    assert zeros.dtype == np.float32
    assert not zeros.any()
    zeros[1:, 2] = 7
    assert zeros.sum() == 70
    assert not sparse_zeros((3, 4, 5), bool).any()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(zeros)), zeros)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells the pages")
def test_sparse_zeros_take_memory_only_where_something_is_written():
    def pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    before = pages()
    zeros = sparse_zeros((64, 1024, 1024), np.float32)  # 256 MB
    zeros[5, :, 3] = 1
    assert zeros.max() == 1  # what is only read is not there either
    assert (pages() - before) * mmap.PAGESIZE < 128e6
