"""Resampling is exact."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from mmccd_cli.inputs.phantom import make_phantom
from mmccd_cli.inputs.volume import Volume, reorient
from mmccd_cli.preprocessing import spatial
from mmccd_cli.preprocessing.spatial import cut_out, doubled, resample, same_grid, same_voxels

SHEARED = np.array([[0.9, 0.2, 0.1, -7], [0.0, -1.1, 0.3, 12], [0.1, 0.0, 1.5, -9], [0, 0, 0, 1]])


def _ramp(affine: np.ndarray, shape: tuple[int, int, int] = (24, 24, 24)) -> Volume:
    """A volume whose value is x + 2 y + 3 z of its world."""
    index = np.stack([*np.indices(shape), np.ones(shape)])
    world = np.einsum("ab,bijk->aijk", affine, index)
    return Volume(world[0] + 2 * world[1] + 3 * world[2], affine)


@pytest.mark.parametrize("affine", [np.diag([1.0, 1, 1, 1]), np.diag([-1.0, -2, 1, 1]), SHEARED])
def test_linear_resampling_is_exact_under_any_affine(affine: np.ndarray) -> None:
    volume = _ramp(affine)
    middle = affine @ np.array([11.5, 11.5, 11.5, 1])
    target = np.diag([0.5, 0.5, 0.5, 1.0])
    target[:3, 3] = middle[:3] - 1
    moved = resample(volume, (5, 5, 5), target)
    assert moved.data == pytest.approx(_ramp(target, (5, 5, 5)).data, abs=1e-3)
    assert (moved.affine == target).all()


def test_matrix_leads_from_the_new_world_to_the_old() -> None:
    shift = np.eye(4)
    shift[0, 3] = 4
    volume = _ramp(np.eye(4))
    moved = resample(volume, volume.shape, volume.affine, matrix=shift, fill=-1)
    assert moved.data[:20] == pytest.approx(volume.data[:20] + 4, abs=1e-4)
    assert (moved.data[20:] == -1).all()


def test_same_grid() -> None:
    volume = _ramp(SHEARED)
    moved = SHEARED.copy()
    moved[0, 3] += 0.005
    assert same_grid(volume, Volume(volume.data, moved))
    moved[0, 3] += 0.02
    assert not same_grid(volume, Volume(volume.data, moved))
    assert not same_grid(volume, Volume(volume.data[:-1], SHEARED))


def test_same_voxels_in_another_order() -> None:
    volume = _ramp(SHEARED, (24, 22, 20))
    for codes in ("RAS", "LPS", "PIR"):
        turned = reorient(volume, codes)
        assert same_voxels(volume, turned)
        assert same_voxels(turned, volume)
    moved = turned.affine.copy()
    moved[0, 3] += 0.1
    assert not same_voxels(volume, Volume(turned.data, moved))
    assert not same_voxels(volume, Volume(turned.data[:-1], turned.affine))


def test_smoothing_only_along_axes_that_get_coarser() -> None:
    data = np.random.default_rng(0).normal(size=(16, 16, 16))
    volume = Volume(data, np.diag([1.0, 1, 3, 1]))

    def sampled(values: Volume, spacing_mm: float, smooth: bool) -> np.ndarray:
        # The same voxel centres as those of the volume, taken for a coarser grid's.
        affine = np.diag([spacing_mm, spacing_mm, 3, 1])
        shape = (16 if spacing_mm == 1 else 5,) * 2 + (16,)
        return resample(values, shape, affine, smooth=smooth).data

    np.testing.assert_array_equal(sampled(volume, 1.0, True), sampled(volume, 1.0, False))
    assert sampled(volume, 3.0, True).std() < 0.5 * sampled(volume, 3.0, False).std()
    along_z = np.zeros((16, 16, 16))
    along_z[:, :, 8] = 1
    kept = sampled(Volume(along_z, volume.affine), 3.0, True)
    assert kept == pytest.approx(along_z[:5, :5], abs=1e-5)


def test_doubling_is_interpolation_by_cubic_splines() -> None:
    volume = Volume(np.random.default_rng(2).normal(size=(9, 7, 11)).astype(np.float32), SHEARED)
    finer = doubled(volume)
    np.testing.assert_allclose(finer.data[::2, ::2, ::2], volume.data, atol=1e-5)
    points = np.indices(finer.shape) / 2
    expected = ndimage.map_coordinates(volume.data, points, order=3, mode="mirror")
    np.testing.assert_allclose(finer.data, expected, atol=1e-5)
    at = np.array([3, 4, 5, 1])
    np.testing.assert_allclose(finer.affine @ np.append(2 * at[:3], 1), volume.affine @ at)


def test_a_small_focus_keeps_more_of_its_volume_by_doubling() -> None:
    """One voxel of 8 mm3 at +1, all others at -1.5: between linear samples half of it is lost."""
    values = np.full((9, 9, 9), -1.5, np.float32)
    values[4, 4, 4] = 1.0
    volume, fine = Volume(values, np.diag([2.0, 2.0, 2.0, 1.0])), np.diag([0.5, 0.5, 0.5, 1.0])
    shape = (33, 33, 33)
    plain = float((resample(volume, shape, fine).data > 0).sum() / 8)
    kept = float((resample(doubled(volume), shape, fine).data > 0).sum() / 8)
    assert plain < 2.5
    assert kept > 1.5 * plain


def test_a_resampled_volume_owns_its_values() -> None:
    """The image that it was copied from is gone by then."""
    volume = Volume(np.random.default_rng(0).normal(size=(40, 40, 40)), np.eye(4))
    first = resample(volume, (40, 40, 40), np.eye(4))
    for _ in range(5):
        resample(Volume(np.zeros((40, 40, 40)), np.eye(4)), (40, 40, 40), np.eye(4), smooth=True)
    np.testing.assert_allclose(first.data, volume.data, atol=1e-6)


@pytest.mark.parametrize("shape", [(48, 50, 46), (47, 49, 45)])
def test_a_very_fine_scan_is_thinned_before_it_is_blurred(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int]
) -> None:
    """To the same values but for rounding and the tails of the blur, and at the same places."""
    fine = make_phantom(0, shape=shape, spacing_mm=(4, 4, 4)).volumes["FLAIR"]
    grid = (10, 10, 10), fine.affine @ np.diag([4.6, 4.8, 4.5, 1.0])
    slow = resample(fine, *grid, smooth=True).data
    monkeypatch.setattr("mmccd_cli.preprocessing.spatial.LARGE", 1)
    quick = resample(fine, *grid, smooth=True).data
    assert not np.array_equal(quick, slow)
    assert np.abs(quick - slow).max() < 0.06 * slow.max()
    inside = _ramp(SHEARED, (47, 48, 49))
    thinned = resample(inside, (9, 9, 9), SHEARED @ _coarse(4.5, 6.0), smooth=True)
    assert thinned.data == pytest.approx(
        _ramp(SHEARED @ _coarse(4.5, 6.0), (9, 9, 9)).data, abs=0.1
    )


def _coarse(step: float, first: float) -> np.ndarray:
    coarse = np.diag([step, step, step, 1.0])
    coarse[:3, 3] = first
    return coarse


@pytest.mark.parametrize("ratio", [1.2, 2.0, 5.0])
def test_an_image_is_blurred_as_simpleitk_would(ratio: float) -> None:
    data = np.random.default_rng(0).random((16, 17, 18), np.float32)
    gaussian = sitk.DiscreteGaussianImageFilter()
    gaussian.SetVariance((ratio**2 - 1) / 2.3548**2)
    gaussian.SetUseImageSpacing(False)
    expected = sitk.GetArrayFromImage(gaussian.Execute(sitk.GetImageFromArray(data)))
    np.testing.assert_allclose(spatial._smoothed(data, np.full(3, ratio)), expected, atol=2e-6)


@pytest.mark.parametrize("large", [False, True])
def test_what_a_mask_leaves_is_that_of_a_copy(monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    """In slabs, too, whose blocks of voxels must fit."""
    rng = np.random.default_rng(0)
    data, mask = rng.random((23, 17, 19)).astype(np.float32), rng.random((23, 17, 19)) > 0.5
    grid = (5, 4, 6), SHEARED @ _coarse(4.2, 1.0)
    monkeypatch.setattr(spatial, "LARGE", 1 if large else 2**25)
    for image in (data, mask):
        copy = Volume(np.where(mask, image, np.float32(0)), SHEARED)
        expected = resample(copy, *grid, smooth=True).data
        with monkeypatch.context() as patched:
            patched.setattr(spatial, "_SLAB_VOXELS", 17 * 19 * 4)
            part = cut_out(image, mask, SHEARED, samples=grid[1])
            assert (part.data.size < data.size) == large
            np.testing.assert_array_equal(resample(part, *grid, smooth=True).data, expected)


def test_doubling_a_part_is_a_part_of_the_doubled() -> None:
    volume = Volume(np.random.default_rng(2).normal(size=(9, 7, 11)).astype(np.float32), SHEARED)
    part = doubled(volume, (slice(0, 4), slice(3, 7), slice(5, 6)))
    np.testing.assert_array_equal(part.data, doubled(volume).data[:7, 6:, 10:11])
    np.testing.assert_allclose(part.affine @ [0, 0, 0, 1], SHEARED @ [0, 3, 5, 1])
