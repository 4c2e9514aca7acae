"""The synthetic head: deterministic, of human size, and one head on any grid."""

from __future__ import annotations

import numpy as np
import pytest

from mmccd_cli.config import MODALITIES
from mmccd_cli.inputs.phantom import make_affine, make_phantom
from mmccd_cli.inputs.volume import reorient
from mmccd_cli.template import transform_points

COARSE = {"shape": (50, 56, 46), "spacing_mm": (4.0, 4.0, 4.0)}


def world_center(mask, affine):
    return transform_points(affine, np.argwhere(mask)).mean(axis=0)


def test_the_default_grid_is_that_of_brats():
    expected = [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(make_affine((240, 240, 155), (1, 1, 1), "LPS"), expected)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR", "ASL"])
def test_the_affine_points_as_asked(orientation, tiny_phantom):
    phantom = make_phantom(0, shape=(50, 50, 50), spacing_mm=(4, 4, 4), orientation=orientation)
    assert all(volume.orientation == orientation for volume in phantom.volumes.values())
    np.testing.assert_allclose(
        world_center(phantom.brain, phantom.affine),
        world_center(tiny_phantom.brain, tiny_phantom.affine),
        atol=1.5,
    )


def test_equal_seeds_give_equal_heads_and_others_do_not(tiny_phantom):
    again, other = make_phantom(0, **COARSE), make_phantom(1, **COARSE)
    for modality in MODALITIES:
        data = tiny_phantom.volumes[modality].data
        np.testing.assert_array_equal(data, again.volumes[modality].data)
        assert not np.array_equal(data, other.volumes[modality].data)


def test_one_modality_does_not_depend_on_the_others(tiny_phantom):
    alone = make_phantom(0, modalities=["T1w"], **COARSE)
    assert list(alone.volumes) == ["T1w"]
    np.testing.assert_array_equal(alone.volumes["T1w"].data, tiny_phantom.volumes["T1w"].data)


def test_the_brain_has_human_size_and_the_background_is_zero(tiny_phantom):
    voxel_ml = tiny_phantom.volumes["T1w"].voxel_volume_mm3 / 1000
    assert 1300 < tiny_phantom.brain.sum() * voxel_ml < 1550
    assert 5 < tiny_phantom.lesion.sum() * voxel_ml < 40
    assert not (tiny_phantom.lesion & ~tiny_phantom.brain).any()
    for volume in tiny_phantom.volumes.values():
        assert np.all(volume.data[~tiny_phantom.brain] == 0)
        assert np.all(volume.data[tiny_phantom.brain] > 0)


def test_contrast_is_that_of_each_modality():
    phantom = make_phantom(0, noise=0.0, bias=0.0, **COARSE)
    flair, t2, t1 = (phantom.volumes[m].data for m in MODALITIES)
    lesion, normal = phantom.lesion, phantom.brain & ~phantom.lesion
    assert np.median(flair[lesion]) > np.percentile(flair[normal], 95)
    assert np.median(t2[lesion]) > np.median(t2[normal])
    assert np.median(t1[lesion]) < np.median(t1[normal])
    fluid = normal & (t2 > np.percentile(t2[normal], 97))
    assert np.median(flair[fluid]) < np.percentile(flair[normal], 20)
    assert np.median(t1[fluid]) < np.percentile(t1[normal], 20)


def test_no_lesion(tiny_phantom):
    healthy = make_phantom(0, lesion=False, **COARSE)
    assert not healthy.lesion.any()
    far = tiny_phantom.brain & ~tiny_phantom.lesion
    before, after = tiny_phantom.volumes["FLAIR"].data[far], healthy.volumes["FLAIR"].data[far]
    assert np.mean(np.isclose(before, after, rtol=0.01)) > 0.9


def test_a_skull_surrounds_the_same_brain(tiny_phantom):
    head = make_phantom(0, skull=True, **COARSE)
    np.testing.assert_array_equal(head.brain, tiny_phantom.brain)
    for volume in head.volumes.values():
        assert np.all(np.isfinite(volume.data))
        outside = volume.data[~head.brain]
        assert np.mean(outside > 0.3 * np.median(volume.data[head.brain])) > 0.1


def test_a_pose_moves_the_head_and_not_the_grid(tiny_phantom):
    pose = np.eye(4)
    pose[:3, 3] = (8, -4, 12)
    moved = make_phantom(0, pose=pose, **COARSE)
    np.testing.assert_array_equal(moved.affine, tiny_phantom.affine)
    shift = world_center(moved.brain, moved.affine) - world_center(
        tiny_phantom.brain, tiny_phantom.affine
    )
    np.testing.assert_allclose(shift, (8, -4, 12), atol=1e-6)


def test_a_turned_grid_shows_the_same_head(tiny_phantom):
    turned = make_phantom(
        0, shape=(60, 60, 60), spacing_mm=(4, 4, 4), rotation_deg=(8, -12, 20), orientation="RAS"
    )
    np.testing.assert_allclose(
        world_center(turned.brain, turned.affine),
        world_center(tiny_phantom.brain, tiny_phantom.affine),
        atol=1,
    )
    assert not np.allclose(turned.affine[:3, :3], np.diag(np.diag(turned.affine[:3, :3])))


def test_permuted_copies_hold_the_same_values(tiny_phantom):
    volume = tiny_phantom.volumes["T2w"]
    assert np.array_equal(
        np.sort(reorient(volume, "PIR").data, axis=None), np.sort(volume.data, axis=None)
    )
