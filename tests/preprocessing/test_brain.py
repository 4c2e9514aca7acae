"""Raw and stripped scans are told apart, and the brain is found in both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from mmccd_cli.anomaly.components import fill_holes
from mmccd_cli.anomaly.metrics import overlap
from mmccd_cli.errors import DataError, UsageError
from mmccd_cli.inputs.nifti import read_nifti
from mmccd_cli.inputs.phantom import Phantom, make_phantom
from mmccd_cli.inputs.volume import Volume, reorient
from mmccd_cli.preprocessing.brain import find_brain, imaged, is_skull_stripped, zero_background
from mmccd_cli.preprocessing.deepbet import _largest_piece, _sampled
from mmccd_cli.preprocessing.skull_strippers import (
    STRIPPERS,
    SURROUNDINGS_MM,
    SkullStripper,
    deepbet,
    deepbet_surroundings,
)


@pytest.fixture(scope="module")
def head() -> Phantom:
    return make_phantom(0, shape=(60, 60, 46), spacing_mm=(4, 4, 4), skull=True)


def test_stripped_and_raw_phantoms_are_told_apart(tiny_phantom: Phantom, head: Phantom) -> None:
    assert is_skull_stripped(tiny_phantom.volumes)[0]
    answer, reason = is_skull_stripped(head.volumes)
    assert not answer
    assert "litres" in reason


def test_stripped_scan_is_left_alone(tiny_phantom: Phantom) -> None:
    found = find_brain(tiny_phantom.volumes)
    assert found.method == "stripped"
    assert overlap(found.mask, tiny_phantom.brain).dice > 0.99


@pytest.mark.parametrize("trace", [1e-7, 2e-3])
@pytest.mark.parametrize("signed", [False, True])
def test_traces_around_a_stripped_brain_are_none_of_it(
    tiny_phantom: Phantom, trace: float, signed: bool
) -> None:
    """Resampling leaves them: in a rim around the brain, or all over the background."""
    scan, draw = tiny_phantom.volumes["FLAIR"], np.random.default_rng(0)
    bright = np.percentile(scan.data[tiny_phantom.brain], 99)
    left = trace * bright * draw.uniform(-1 if signed else 0, 1, scan.shape)
    rim = ndimage.binary_dilation(scan.data != 0, iterations=2)
    clean = find_brain({"FLAIR": scan}).mask
    for where in (rim, np.ones(scan.shape, dtype=bool)):
        traced = np.where((scan.data == 0) & where, left, scan.data).astype(np.float32)
        found = find_brain({"FLAIR": Volume(traced, scan.affine)})
        assert found.method == "stripped"
        assert np.array_equal(found.mask, clean)


def test_ripples_of_splines_are_none_of_the_brain(tiny_phantom: Phantom) -> None:
    scan = tiny_phantom.volumes["FLAIR"]
    moved = ndimage.shift(scan.data.astype(np.float64), (0.5, 0.5, 0.5), order=3)
    there = ndimage.shift(tiny_phantom.brain.astype(np.float64), (0.5, 0.5, 0.5), order=1)
    assert (moved != 0).sum() > 1.5 * tiny_phantom.brain.sum()
    found = find_brain({"FLAIR": Volume(moved.astype(np.float32), scan.affine)})
    assert found.method == "stripped"
    assert overlap(found.mask, there > 0.25).dice > 0.97


@pytest.mark.parametrize(("left", "method"), [(0.5, "deepbet"), (0.95, "stripped")])
def test_a_head_as_small_as_a_brain_is_still_a_head(
    monkeypatch: pytest.MonkeyPatch, head: Phantom, left: float, method: str
) -> None:
    """Little coverage and exact zeros around: a skull stripper says which of the two it is."""
    scan = head.volumes["FLAIR"]
    inside = head.brain | (np.random.default_rng(0).random(scan.shape) < 0.03)
    low = np.flatnonzero(inside.any(axis=(0, 1)))[0]
    shown = np.where(inside, np.maximum(scan.data, 1.0), 0.0).astype(np.float32)
    shown[:, :, :low] = 0
    litres = (shown != 0).sum() * scan.voxel_volume_mm3 / 1e6
    size = np.cbrt(2.0 / litres)
    small = Volume(shown, scan.affine @ np.diag([size, size, size, 1.0]))
    assert is_skull_stripped({"FLAIR": small})[0]

    def find(volume: Volume, threads: int) -> np.ndarray:
        occupied = np.flatnonzero(volume.data)
        mask = np.zeros(volume.shape, dtype=bool)
        mask.ravel()[occupied[: int(left * len(occupied))]] = True
        return mask

    monkeypatch.setitem(STRIPPERS, "deepbet", SkullStripper(find, ("FLAIR",)))
    found = find_brain({"FLAIR": small})
    assert found.method == method
    assert any("Raw head" in note for note in found.notes) == (method == "deepbet")


def test_small_negative_values_are_brain(tiny_phantom: Phantom) -> None:
    scan = tiny_phantom.volumes["FLAIR"]
    data = scan.data.copy()
    data[tiny_phantom.brain & (np.random.default_rng(0).random(data.shape) < 0.05)] = -3
    found = find_brain({"FLAIR": Volume(data, scan.affine)})
    assert overlap(found.mask, tiny_phantom.brain).dice > 0.99


def test_cut_field_of_view_is_seen_and_does_not_cut_the_brain(tiny_phantom: Phantom) -> None:
    flair = tiny_phantom.volumes["FLAIR"]
    data = flair.data.copy()
    data[:, :, :20] = 0
    volumes = {**tiny_phantom.volumes, "FLAIR": Volume(data, flair.affine)}
    found = find_brain(volumes)
    assert overlap(found.mask, tiny_phantom.brain).dice > 0.99
    seen = imaged(volumes["FLAIR"], found.mask)
    assert not seen[:, :, :20].any()
    assert (seen[:, :, 20:] == found.mask[:, :, 20:]).all()
    assert imaged(volumes["T2w"], found.mask).sum() == found.mask.sum()


def test_given_mask_wins_and_may_lie_on_another_grid(head: Phantom) -> None:
    flair = head.volumes["FLAIR"]
    flipped = flair.affine @ np.array(
        [[-1, 0, 0, 59], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float
    )
    found = find_brain(head.volumes, given=Volume(head.brain[::-1], flipped))
    assert found.method == "given"
    assert (found.mask == head.brain).all()


@pytest.mark.parametrize("kind", ["probabilities", "labels", "255"])
def test_what_tells_the_brain_may_be_given_as_its_mask(head: Phantom, kind: str) -> None:
    depth = ndimage.distance_transform_edt(head.brain)
    values = {
        "probabilities": 1 / (1 + np.exp(-4 * (depth - 0.5))) * (depth > 0),
        "labels": head.brain * (1 + np.arange(46) // 8 + 10 * (np.arange(60) // 20)[:, None]),
        "255": head.brain * 255.0,
    }[kind]
    found = find_brain(head.volumes, given=Volume(values, head.affine))
    assert overlap(found.mask, head.brain).dice > 0.9


def test_an_image_is_no_brain_mask(head: Phantom, tiny_phantom: Phantom) -> None:
    scan = head.volumes["T1w"]
    for factor in (1.0, 1 / scan.data.max(), 100 / scan.data.max()):
        with pytest.raises(DataError, match="is an image, and no mask"):
            find_brain(head.volumes, given=Volume(scan.data * factor, scan.affine))
    stripped = tiny_phantom.volumes["T1w"]
    with pytest.raises(DataError, match="is an image, and no mask"):
        find_brain(tiny_phantom.volumes, given=stripped)


def test_no_brain_has_ten_litres(head: Phantom) -> None:
    everywhere = np.ones(head.brain.shape)
    with pytest.raises(DataError, match=r"10\.6 litres are more than any has"):
        find_brain(head.volumes, given=Volume(everywhere, head.affine))


def test_raw_head_goes_to_the_stripper(head: Phantom, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(volume: Volume, threads: int) -> np.ndarray:
        return head.brain

    monkeypatch.setitem(STRIPPERS, "deepbet", replace(STRIPPERS["deepbet"], find=fake))
    found = find_brain(head.volumes)
    assert found.method == "deepbet"
    assert any("Raw head" in note for note in found.notes)
    for source, doubts in (("FLAIR", False), ("T2w", True)):
        found = find_brain({source: head.volumes[source]})
        assert any("look at its outline" in note for note in found.notes) == doubts


def test_the_brain_is_the_same_with_t1w_and_without(
    head: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more scan changes the result no more than it must."""
    seen = []

    def fake(volume: Volume, threads: int) -> np.ndarray:
        seen.append(next(name for name, scan in head.volumes.items() if scan is volume))
        return head.brain

    stripper = replace(STRIPPERS["deepbet"], find=fake, find_surroundings=None)
    monkeypatch.setitem(STRIPPERS, "deepbet", stripper)
    for given in (["FLAIR", "T2w", "T1w"], ["FLAIR", "T2w"], ["FLAIR", "T1w"], ["T2w", "T1w"]):
        find_brain({name: head.volumes[name] for name in given})
    assert seen == ["FLAIR", "FLAIR", "FLAIR", "T1w"]


def _with_witness(
    monkeypatch: pytest.MonkeyPatch, head: Phantom, *, brain: np.ndarray, near: np.ndarray
) -> list[str]:
    """Let FLAIR show one brain and another scan what is near to it; names of these other scans."""
    asked: list[str] = []

    def find_surroundings(volume: Volume, threads: int) -> np.ndarray:
        asked.append(next(name for name, scan in head.volumes.items() if scan is volume))
        return near

    stripper = replace(
        STRIPPERS["deepbet"], find=lambda *_: brain, find_surroundings=find_surroundings
    )
    monkeypatch.setitem(STRIPPERS, "deepbet", stripper)
    return asked


def test_skull_that_is_none_on_the_t1w_is_left_out(
    head: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = ndimage.binary_dilation(head.brain)
    skull = np.zeros(head.brain.shape, dtype=bool)
    skull[:, :, -12:] = ndimage.binary_dilation(near)[:, :, -12:] & ~near[:, :, -12:]
    asked = _with_witness(monkeypatch, head, brain=head.brain | skull, near=near)
    found = find_brain(head.volumes)
    assert asked == ["T1w"]
    assert np.array_equal(found.mask, head.brain)
    millilitres = skull.sum() * head.volumes["FLAIR"].voxel_volume_mm3 / 1000
    assert any(f"{millilitres:.0f} ml are no brain on another scan" in note for note in found.notes)


def test_a_t1w_on_which_hardly_a_brain_is_seen_takes_nothing_off(
    head: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = head.brain.copy()
    half[:30] = False
    _with_witness(monkeypatch, head, brain=head.brain, near=half)
    found = find_brain(head.volumes)
    assert np.array_equal(found.mask, head.brain)
    assert not any("left out" in note for note in found.notes)


def test_what_the_t1w_did_not_image_stays_in_the_brain(
    head: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    low = np.flatnonzero(head.brain.any(axis=(0, 1)))[0] + 4
    t1w = head.volumes["T1w"]
    shift = np.eye(4)
    shift[2, 3] = low
    cut = Volume(t1w.data[:, :, low:].copy(), t1w.affine @ shift)
    volumes = {"FLAIR": head.volumes["FLAIR"], "T1w": cut}
    _with_witness(
        monkeypatch,
        Phantom(**{**vars(head), "volumes": volumes}),
        brain=head.brain,
        near=head.brain[:, :, low:],
    )
    assert np.array_equal(find_brain(volumes).mask, head.brain)


@pytest.mark.parametrize("given", [["T1w"], ["T2w", "T1w"], ["FLAIR", "T2w"]])
def test_only_a_t1w_says_where_there_is_no_brain(
    head: Phantom, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    asked = _with_witness(monkeypatch, head, brain=head.brain, near=head.brain)
    assert np.array_equal(find_brain({m: head.volumes[m] for m in given}).mask, head.brain)
    assert not asked


def test_a_t1w_that_shows_no_brain_at_all_says_nothing(
    head: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    stripper = replace(STRIPPERS["deepbet"], find=lambda *_: head.brain)
    monkeypatch.setitem(STRIPPERS, "deepbet", stripper)
    empty = Volume(np.full(head.brain.shape, np.float32(7)), head.affine)
    with pytest.raises(DataError, match="sees no brain"):
        deepbet_surroundings(empty)
    found = find_brain({"FLAIR": head.volumes["FLAIR"], "T1w": empty})
    assert np.array_equal(found.mask, head.brain)


def test_the_mirror_image_of_a_head_has_the_mirror_image_of_its_brain(head: Phantom) -> None:
    scan = head.volumes["FLAIR"]
    there = deepbet(Volume(scan.data[::-1].copy(), scan.affine))[::-1]
    assert overlap(deepbet(scan), there).dice > 0.99


def test_the_surroundings_of_a_brain_hold_it_and_little_more(head: Phantom) -> None:
    near = deepbet_surroundings(head.volumes["T1w"])
    assert near[head.brain].mean() > 0.98
    distance = ndimage.distance_transform_edt(~head.brain, sampling=head.volumes["T1w"].spacing_mm)
    assert np.percentile(distance[near], 99) < 2 * SURROUNDINGS_MM


def test_deepbet_finds_the_brain_of_a_head_that_lies_otherwise(head: Phantom) -> None:
    turned = reorient(head.volumes["T1w"], "PIL")
    brain = reorient(Volume(head.brain, head.affine), "PIL").data > 0.5
    assert overlap(deepbet(turned), brain).dice > 0.9


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_deepbet_sees_no_brain_in_a_constant_image(value: float) -> None:
    with pytest.raises(DataError, match="sees no brain"):
        deepbet(Volume(np.full((40, 40, 40), value), np.eye(4)))


def test_no_brain_and_unknown_methods_are_errors(tiny_phantom: Phantom) -> None:
    with pytest.raises(UsageError, match="magic") as caught:
        find_brain(tiny_phantom.volumes, method="magic")
    assert "never" in str(caught.value.next_step)
    nothing = Volume(np.zeros((20, 20, 20)), np.eye(4))
    with pytest.raises(DataError, match="no brain"):
        find_brain({"FLAIR": nothing}, method="never")


@pytest.mark.slow
@pytest.mark.realdata
def test_detection_on_all_real_scans(real_data: Path) -> None:
    wrong = []
    for path in sorted(real_data.glob("*/*/*flair.nii.gz")):
        scan = zero_background(read_nifti(path)[0])  # as preparing does
        stripped, reason = is_skull_stripped({"FLAIR": scan})
        if stripped == (path.parent.parent.name == "raw"):
            wrong.append(f"{path}: {reason}")
    assert not wrong


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize("name", ["t1", "flair"])
def test_deepbet_agrees_with_the_mask_of_the_data_set(real_data: Path, name: str) -> None:
    volume, _ = read_nifti(real_data / "raw" / "openms_patient12" / f"{name}.nii.gz")
    litres = deepbet(volume).sum() * volume.voxel_volume_mm3 / 1e6
    assert 1.3 < litres < 1.7


@pytest.mark.parametrize("old", [1, 7, 128, 155, 512])
@pytest.mark.parametrize("new", [1, 5, 128, 256])
def test_nearest_voxels_are_those_of_torch(old: int, new: int) -> None:
    import torch
    from torch.nn.functional import interpolate

    values = np.arange(old, dtype=np.float32)
    theirs = interpolate(torch.from_numpy(values)[None, None], new, mode="nearest-exact")
    assert np.array_equal(_sampled(values, (new,)), theirs[0, 0].numpy())


def test_a_very_fine_scan_is_told_apart_by_every_second_voxel(
    head: Phantom, tiny_phantom: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmccd_cli.preprocessing.brain.LARGE", 1)
    assert is_skull_stripped(tiny_phantom.volumes)[0]
    assert not is_skull_stripped(head.volumes)[0]


def test_what_touches_no_edge_of_the_brain_box_is_filled(tiny_phantom: Phantom) -> None:
    """As it is in the whole image; a cleft that is open to the outside is not."""
    scan = tiny_phantom.volumes["FLAIR"]
    data = scan.data.copy()
    hole = tuple(int(n) for n in ndimage.center_of_mass(tiny_phantom.brain))
    data[hole] = 0
    cleft = np.flatnonzero(tiny_phantom.brain[hole[0], hole[1]])[-3:]
    data[hole[0], hole[1], cleft] = 0
    found = find_brain({"FLAIR": Volume(data, scan.affine)}, method="never").mask
    assert found[hole]
    occupied = data != 0
    assert np.array_equal(found, ndimage.binary_fill_holes(occupied))
    assert not found[hole[0], hole[1], cleft[-1]]


@pytest.mark.parametrize("shape", [(20, 24, 22), (35, 21, 50), (9, 40, 24)])
def test_pieces_and_holes_may_be_found_before_voxels_are_repeated(shape: tuple[int, ...]) -> None:
    def whole(mask: np.ndarray) -> np.ndarray:
        return fill_holes(_largest_piece(mask))

    rng = np.random.default_rng(0)
    for _ in range(10):
        noise = ndimage.gaussian_filter(rng.random((20, 21, 22)), 1.0)
        mask = noise > np.quantile(noise, rng.uniform(0.3, 0.7))
        few = _sampled(mask, tuple(map(min, mask.shape, shape)))
        expected = whole(_sampled(mask, shape))
        np.testing.assert_array_equal(_sampled(whole(few), shape), expected)


def test_what_was_not_imaged_is_found_in_parts_as_in_the_whole() -> None:
    rng, changed = np.random.default_rng(0), 0
    for _ in range(20):
        noise = ndimage.gaussian_filter(rng.random((31, 24, 37)), rng.uniform(0.7, 1.5))
        data = np.where(noise > np.quantile(noise, 0.25), noise, 0)
        scan = Volume(data, np.diag([rng.uniform(3, 8)] * 3 + [1.0]))
        brain = np.zeros(data.shape, bool)
        brain[3:29, 2:-2, 5:] = True
        labels, _ = ndimage.label(brain & (scan.data == 0))
        large = np.bincount(labels.ravel()) * scan.voxel_volume_mm3 >= 5000
        large[0] = False
        changed += large.any()
        np.testing.assert_array_equal(imaged(scan, brain), brain & ~large[labels])
    assert changed > 5
