"""What the network of small foci learns from, and what it must never learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_data import SMALL_FOCI, SUBJECTS, tiny_recipe, write_shards

from mmccd_cli.config import TrainingConfig
from mmccd_cli.errors import DataError
from mmccd_cli.template import Quantisation
from mmccd_cli.training import foci_painting
from mmccd_cli.training.foci import FociLoss, FociSpec
from mmccd_cli.training.foci_subjects import REACH, FociDataset, _head, load_foci_dataset
from mmccd_cli.training.networks import train_network
from mmccd_cli.training.runtime import Runtime
from mmccd_cli.training.slices import SubjectVolumes
from mmccd_cli.training.trainer import sample_generator

SCALE = 0.5
ON_CPU = Runtime(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> FociDataset:
    shards = write_shards(tmp_path_factory.mktemp("foci") / "shards")
    return load_foci_dataset(shards, TrainingConfig(), scale=SCALE)


def loss_of(dataset: FociDataset, *, augment: bool = True) -> FociLoss:
    config = TrainingConfig(augment=augment)
    spec = FociSpec(SMALL_FOCI)
    return FociLoss(spec=spec, dataset=dataset, scale=SCALE, config=config, runtime=ON_CPU)


def test_a_sample_depends_on_its_generator_alone(dataset: FociDataset) -> None:
    loss = loss_of(dataset)
    once, again = (loss.draw(sample_generator(0, 3, 1)) for _ in range(2))
    other = loss.draw(sample_generator(0, 3, 2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not torch.equal(once.inputs, other.inputs)
    assert once.inputs.shape == (1, 15, 24, 24)
    assert once.target.shape == once.weight.shape == (1, 1, 24, 24)


def test_own_lesions_and_the_outside_never_count(dataset: FociDataset) -> None:
    """Without augmentation rows stay where they are, and every slice of every head is asked."""
    loss = loss_of(dataset, augment=False)
    healthy = np.stack([head.healthy for head in dataset.heads])
    anywhere = healthy.any(axis=(0, 3))
    counted = torch.stack([loss.draw(sample_generator(0, 0, i)).weight[0, 0] for i in range(40)])
    assert not counted[:, ~torch.from_numpy(anywhere)].any()
    assert counted.any()
    for number, head in enumerate(dataset.heads):
        own = slice(5 + number, 10 + number), slice(7, 13), slice(8, 12)
        assert not head.healthy[own].any(), "the subject's own lesion, four slices are added below"


def test_lesions_are_bright_on_flair_and_marked_and_some_are_small(dataset: FociDataset) -> None:
    """Painted voxels stand out of the healthy ones in the middle FLAIR slice."""
    loss, painted, others, sizes = loss_of(dataset, augment=False), [], [], []
    for index in range(150):
        sample = loss.draw(sample_generator(1, 0, index))
        flair, marked = sample.inputs[0, 3], sample.target[0, 0] > 0
        if not sample.inputs[0, 12].any() or not marked.any():
            continue
        painted.append(float(flair[marked].mean()))
        others.append(float(flair[(sample.weight[0, 0] > 0) & ~marked].mean()))
        sizes.append(int(marked.sum()))
    assert len(painted) > 20
    assert np.mean(painted) > np.mean(others) + 0.4
    assert min(sizes) <= 4
    assert max(sizes) >= 12


def test_some_lesions_come_in_pairs(dataset: FociDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all in pairs, more is marked on both sides than with none."""
    heads = [replace(head, white=head.healthy) for head in dataset.heads]
    loss = loss_of(replace(dataset, heads=heads), augment=False)
    middle = round(2 * dataset.middle)
    shares = []
    for fraction in (0.0, 1.0):
        monkeypatch.setattr("mmccd_cli.training.foci_painting.PAIRED_FRACTION", fraction)
        marked = both = 0
        for index in range(150):
            target = loss.draw(sample_generator(3, 0, index)).target[0, 0] > 0
            for row, column in target.nonzero().tolist():
                other = middle - row
                marked += 1
                both += 0 <= other < len(target) and bool(
                    target[max(other - 2, 0) : other + 3, max(column - 2, 0) : column + 3].any()
                )
        shares.append(both / marked)
    assert shares[1] > shares[0] + 0.2


def test_brightness_beside_the_ventricles_is_doubtful() -> None:
    """There and nowhere else; and what lies beside them is white matter."""
    shape = (40, 40, 40)
    brain = np.zeros(shape, dtype=bool)
    brain[2:38, 2:38, 2:38] = True
    ventricles, cap = (slice(16, 24),) * 3, (slice(25, 28), slice(18, 22), slice(18, 22))
    grey, far = (slice(12, 15), slice(18, 22), slice(18, 22)), (slice(32, 34),) * 3
    t1w, t2w, flair = (np.full(shape, value, np.float32) for value in (1.0, 0.0, 0.0))
    t1w[ventricles], t2w[ventricles], t1w[grey] = -3.0, 5.0, -1.0
    flair[cap], flair[far] = 3.0, 3.0
    images = {"T1w": t1w * SCALE, "T2w": t2w * SCALE, "FLAIR": flair * SCALE}
    head = _head(
        SubjectVolumes(images, brain, np.zeros(shape, dtype=bool)),
        TrainingConfig(),
        quantisation=Quantisation(),
        scale=SCALE,
        spacing=(2.0, 2.0, 2.0),
    )
    inside = (..., slice(REACH, -REACH))
    doubtful, beside = head.doubtful[inside], head.beside[inside]
    assert doubtful[cap].all()
    assert not doubtful[far].any()
    assert beside[cap].any()
    assert not beside[13, 20, 20]
    assert not beside[ventricles].any()
    assert not beside[far].any()


def test_lesions_lie_beside_ventricles(
    dataset: FociDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [replace(head, beside=head.healthy.copy()) for head in dataset.heads]
    for head in left:
        head.beside[12:] = False
    loss = loss_of(replace(dataset, heads=left), augment=False)

    def share_on_the_left(fraction: float) -> float:
        monkeypatch.setattr(foci_painting, "BESIDE_FRACTION", fraction)
        drawn = [loss.draw(sample_generator(5, 0, index)).target[0, 0] for index in range(60)]
        total = torch.stack(drawn).sum(0)
        return float(total[:12].sum() / total.sum())

    assert share_on_the_left(1.0) > share_on_the_left(0.0) + 0.2


def test_doubtful_brightness_hardly_counts(dataset: FociDataset) -> None:
    heads = [replace(head, doubtful=head.healthy) for head in dataset.heads]
    loss = loss_of(replace(dataset, heads=heads), augment=False)
    for index in range(10):
        sample = loss.draw(sample_generator(6, 0, index))
        healthy = sample.weight[(sample.weight > 0) & (sample.target == 0)]
        torch.testing.assert_close(healthy, torch.full_like(healthy, foci_painting.DOUBTFUL_WEIGHT))


def test_small_lesions_weigh_more(dataset: FociDataset) -> None:
    loss = loss_of(dataset, augment=False)
    drawn = [loss.draw(sample_generator(2, 0, index)) for index in range(60)]
    weights = torch.cat([sample.weight[sample.target > 0] for sample in drawn])
    assert float(weights.max()) > 2
    healthy = torch.cat([sample.weight[sample.target == 0] for sample in drawn])
    assert set(healthy.unique().tolist()) >= {0.0, 1.0}


def test_every_scan_is_sometimes_absent_but_never_all(dataset: FociDataset) -> None:
    loss = loss_of(dataset)
    shown = torch.stack(
        [loss.draw(sample_generator(0, 1, i)).inputs[0, 12:, 12, 12] for i in range(80)]
    )
    assert (shown.sum(1) >= 1).all()
    assert ((shown.mean(0) > 0.4) & (shown.mean(0) < 0.85)).all()


def test_a_few_steps_lower_the_loss(dataset: FociDataset, tmp_path: Path) -> None:
    training = TrainingConfig(
        iterations=30, batch_size=4, learning_rate=5e-3, warmup_iterations=1, ema_decay=0.5
    )
    recipe = replace(tiny_recipe(), foci_training=training)
    losses: list[float] = []
    runtime = replace(ON_CPU, report_every=10)
    weights = train_network(
        FociSpec(SMALL_FOCI),
        dataset,
        recipe,
        runtime=runtime,
        folder=tmp_path,
        report=lambda progress: losses.append(progress.loss),
    )
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_without_healthy_tissue_nothing_is_learnt(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards")
    with pytest.raises(DataError, match="no healthy slice"):
        load_foci_dataset(shards, TrainingConfig(lesion_dilation_mm=200.0), scale=SCALE)
    with pytest.raises(DataError):
        load_foci_dataset(shards, TrainingConfig(), scale=SCALE, split="val")
    only = load_foci_dataset(shards, TrainingConfig(), scale=SCALE, subjects=SUBJECTS[:1])
    assert len(only.heads) == 1
