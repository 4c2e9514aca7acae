"""Networks learn from scans less their bias fields, as found beside the same subjects' atlas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_data import LESION_LEVEL, SHAPE, SUBJECTS, tiny_recipe, write_shards

from mmccd_cli.template import Quantisation, Template
from mmccd_cli.training import run
from mmccd_cli.training.normal_ranges import fit_normal_ranges, without_bias_fields
from mmccd_cli.training.run import BundleText, Training
from mmccd_cli.training.runtime import Runtime
from mmccd_cli.training.samples import SliceDataset
from mmccd_cli.training.slices import (
    SubjectVolumes,
    read_index,
    read_template,
    read_volumes,
    write_index,
    write_shard,
    write_template,
)

LEVELS = Quantisation()
SHADED = SUBJECTS[1]
TWICE = (2, 2, 2)
SLOPE = np.linspace(-1.0, 1.0, 2 * SHAPE[1])[None, :, None]
"""Shading from back to front, in the unit of the images."""


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four subjects on a grid of twice the voxels; the FLAIR of one is shaded."""
    folder = write_shards(tmp_path / "shards")
    for subject in SUBJECTS:
        small = read_volumes(folder, subject, LEVELS)
        images = {m: np.kron(image, np.ones(TWICE)) for m, image in small.images.items()}
        brain, lesion = (np.kron(mask, np.ones(TWICE)) > 0 for mask in (small.brain, small.lesion))
        if subject == SHADED:
            images["FLAIR"] = np.where(brain, images["FLAIR"] + SLOPE, images["FLAIR"])
        write_shard(folder, subject, SubjectVolumes(images, brain, lesion).as_shard(LEVELS))
    index = read_index(folder)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    known = np.kron(read_template(folder, affine).mask, np.ones(TWICE)) > 0
    write_template(folder, Template({}, known, affine))
    write_index(folder, {**index, "shape": list(known.shape)})
    return folder


def slope(volumes: SubjectVolumes) -> float:
    """How much brighter healthy FLAIR is in the front than in the back, as a share of `SLOPE`."""
    inside = volumes.brain & ~volumes.lesion
    where = np.broadcast_to(SLOPE, inside.shape)[inside]
    return float(np.polyfit(where, volumes.images["FLAIR"][inside], 1)[0])


def test_the_field_of_one_subject_goes_and_its_lesion_stays(shards: Path) -> None:
    recipe = tiny_recipe()
    change = without_bias_fields(
        shards, recipe, lambda: fit_normal_ranges(shards, SUBJECTS, recipe)
    )
    assert change is not None
    before = read_volumes(shards, SHADED, LEVELS)
    after = change(before)
    assert slope(before) > 0.9
    assert abs(slope(after)) < 0.25
    assert after.images["FLAIR"][before.lesion].mean() == pytest.approx(LESION_LEVEL, abs=0.5)
    np.testing.assert_array_equal(
        after.images["FLAIR"][~before.brain], before.images["FLAIR"][~before.brain]
    )


def test_a_recipe_without_bias_fields_leaves_scans_as_they_are(shards: Path) -> None:
    recipe = tiny_recipe(bias_field_degree=None)
    never = pytest.fail  # nobody need learn an atlas for that
    assert without_bias_fields(shards, recipe, lambda: never("an atlas was learnt")) is None


@pytest.mark.parametrize("degree", [None, 2])
def test_networks_learn_from_what_is_left(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, degree: int | None
) -> None:
    seen: list[Any] = []

    def remember(spec: Any, dataset: Any, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        seen.append(dataset)
        return {}

    monkeypatch.setattr(run, "train_network", remember)
    Training(
        shards=shards,
        work=tmp_path / "work",
        recipe=tiny_recipe(bias_field_degree=degree),
        runtime=Runtime(device=torch.device("cpu")),
        text=BundleText(name="small"),
    ).train()
    slices = next(d for d in seen if isinstance(d, SliceDataset))
    heads = next(d for d in seen if not isinstance(d, SliceDataset))
    of_slices = slices.values("FLAIR", slice(None))[slices.healthy]
    of_heads = np.concatenate([LEVELS.decode(h.levels[0])[h.healthy] for h in heads.heads])
    for values in (of_slices.numpy(), of_heads):
        # A quarter of all tissue is shaded, by 0.5 on average.
        assert (values.std() > 0.35) == (degree is None)


def test_scans_come_in_the_same_order_each_time(shards: Path) -> None:
    orders = {tuple(read_volumes(shards, SHADED, LEVELS).images) for _ in range(20)}
    assert orders == {("FLAIR", "T1w", "T2w")}
