"""A whole training with folds: nobody is calibrated on by networks that know them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

import numpy as np
import pytest
import torch
from training_data import SUBJECTS, tiny_recipe, write_shards

from mmccd_cli.config import METHODS, MODALITIES
from mmccd_cli.errors import DataError, WeightsError
from mmccd_cli.training import calibration, foci_painting, run
from mmccd_cli.training.calibration import (
    OFFSETS,
    Calibration,
    _at_most,
    calibrate,
)
from mmccd_cli.training.calibration_data import CalibrationSubject, Fold, load_subjects
from mmccd_cli.training.networks import Spec
from mmccd_cli.training.normal_ranges import fit_normal_ranges
from mmccd_cli.training.painting import Painter
from mmccd_cli.training.recipes import CYCLES
from mmccd_cli.training.run import (
    FOLD_BUNDLE,
    BundleText,
    Training,
    split_folds,
)
from mmccd_cli.training.runtime import Runtime
from mmccd_cli.training.samples import SliceDataset
from mmccd_cli.training.slices import read_index, read_shard, write_index, write_shard
from mmccd_cli.weights.bundle import load_bundle, save_bundle, verify_bundle


class Trained(NamedTuple):
    training: Training
    out: Path
    calibration: Calibration


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("run")
    shards = write_shards(folder / "shards")
    training = Training(
        shards=shards,
        work=folder / "work",
        recipe=tiny_recipe(cycles=CYCLES[:1]),
        runtime=Runtime(device=torch.device("cpu")),
        text=BundleText(name="small"),
        folds=2,
    )
    bundle = training.write(training.work / FOLD_BUNDLE, training.train())
    lines: list[str] = []
    found = training.calibrate(bundle, folder / "out", report=lines.append)
    assert any("left out" in line for line in lines)
    return Trained(training, folder / "out", found)


def test_the_bundle_is_whole_and_calibrated_on_everybody(trained: Trained) -> None:
    bundle = load_bundle(trained.out)
    verify_bundle(bundle)
    assert set(bundle.config.scores) == {"mmccd", "cyclic-unet"}
    assert sorted(bundle.config.calibration["subjects"]) == SUBJECTS
    assert sorted(map(sorted, bundle.config.calibration["folds"])) == [["s0", "s2"], ["s1", "s3"]]
    assert set(bundle.template.normal) == set(MODALITIES)
    card = (trained.out / "README.md").read_text()
    assert card.count("| new |") == 2
    assert "| known |" not in card


def test_folds_know_nothing_of_their_own_subjects(trained: Trained) -> None:
    training = trained.training
    for number, left_out in enumerate(split_folds(SUBJECTS, 2)):
        fold = load_bundle(training.work / f"fold-{number}" / FOLD_BUNDLE)
        seen = [entry["id"] for entry in fold.config.training["subjects"]]
        assert sorted(seen + left_out) == SUBJECTS
        others = fit_normal_ranges(training.shards, seen, training.recipe)["FLAIR"].mean
        np.testing.assert_allclose(fold.template.normal["FLAIR"].mean, others, atol=0.02)


def test_a_bright_lesion_is_found_by_what_was_chosen(trained: Trained) -> None:
    row = trained.calibration.rows[0]
    assert row.dice > 0.8
    assert row.left_out_dice > 0.8
    assert row.left_out_dice <= row.dice + 1e-9
    assert {trial["ridge"] for trial in row.trials} == {1e-4, 1e-2}
    counting = set(row.config.weights)
    assert counting & {"restoration:FLAIR", "cycle:FLAIR", "atlas:FLAIR", "intensity:FLAIR"}
    assert row.reliability is not None
    assert row.reliability["expected_calibration_error"] < 0.1


def test_what_is_known_of_subjects_is_not_computed_again(trained: Trained) -> None:
    bundle = load_bundle(trained.out)
    folds = [Fold(bundle, SUBJECTS[:2])]
    load = partial(
        load_subjects,
        folds,
        trained.training.shards,
        device=torch.device("cpu"),
        painter=Painter(),
    )
    plain, masked = (replace(bundle.config.sampling, method=m) for m in ("cyclic-unet", "mmccd"))
    known, whole = load(sampling=plain), load(sampling=masked)
    for before, after, expected in zip(
        known, load(sampling=masked, known=known), whole, strict=True
    ):
        assert after.id == expected.id
        assert after.signals.keys() == expected.signals.keys()
        for modalities, signals in after.of_sets.items():
            assert signals.keys() == expected.of_sets[modalities].keys()
            assert all(signal is before.of_sets[modalities][n] for n, signal in signals.items())
        for name, signal in after.signals.items():
            np.testing.assert_array_equal(signal, expected.signals[name], err_msg=name)
            if name.startswith("cycle"):
                assert (signal != before.signals[name]).any()


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("healthy") / "shards", lesions=False)


def test_healthy_subjects_calibrate_by_a_budget(
    trained: Trained, healthy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[dict[str, Any]] = []

    def load(*whom: Any, **how: Any) -> list[CalibrationSubject]:
        loaded.append(how)
        return load_subjects(*whom, **how)

    monkeypatch.setattr(calibration, "load_subjects", load)
    found = calibrate(load_bundle(trained.out), healthy)
    assert "false positives" in found.config.calibration["criterion"]
    for row in found.rows:
        (score,) = found.config.scores[row.method]
        assert score.threshold_rule == "otsu"
        assert row.false_positive_ml <= 1.0
        assert row.in_words == f"{row.false_positive_ml:.2f} ml of false positives"
        assert set(score.weights) == {"restoration:FLAIR"}
    assert len(loaded) == 2, "one look for each method: there is nothing to learn from painted ones"
    assert not any("painter" in how for how in loaded)


def test_a_bundle_that_is_calibrated_on_healthy_subjects_can_be_used(
    trained: Trained, healthy: Path, tmp_path: Path
) -> None:
    training = replace(trained.training, shards=healthy, folds=0)
    found = training.calibrate(load_bundle(trained.out), tmp_path / "out")
    bundle = load_bundle(tmp_path / "out")
    assert bundle.config.scores == found.config.scores
    assert [row["method"] for row in bundle.config.calibration["healthy_rows"]] == list(METHODS)


def test_folds_of_healthy_subjects_are_calibrated_on_the_others(
    trained: Trained, healthy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(trained.out)
    folds = [Fold(bundle, ids) for ids in split_folds(SUBJECTS, 2)]
    # So that a threshold is kept as soon as it is tried, or never, by who is asked.
    monkeypatch.setattr(
        calibration, "mask_at", lambda item, *_: np.full(item.brain.shape, item.brain is noisy)
    )
    noisy: np.ndarray | None = None

    def load(*whom: Any, **how: Any) -> list[CalibrationSubject]:
        nonlocal noisy
        subjects = load_subjects(*whom, **how)
        noisy = subjects[0].brain
        return subjects

    monkeypatch.setattr(calibration, "load_subjects", load)
    found = calibrate(bundle, healthy, folds=folds)
    for method in METHODS:
        (own,), (other,) = (fold.scores[method] for fold in found.folds)
        assert own.threshold_rule == other.threshold_rule == "otsu"
        assert own.threshold_offset == OFFSETS[0], "without the noisy head"
        assert other.threshold_offset == OFFSETS[-1], "with it"


def test_it_is_told_whether_networks_know_whom_they_are_calibrated_on(
    trained: Trained, tmp_path: Path
) -> None:
    """The split need not be the one that they learnt from."""
    shards = shutil.copytree(trained.training.shards, tmp_path / "shards")
    bundle = load_bundle(trained.training.work / "fold-0" / FOLD_BUNDLE)
    index = read_index(shards)
    for entry in index["subjects"]:
        seen = entry["id"] in [own["id"] for own in bundle.config.training["subjects"]]
        entry["split"] = "train" if seen else "val"
    write_index(shards, index)
    for split, known in (("train", True), ("val", False)):
        rows = calibrate(bundle, shards, split=split).config.calibration["rows"]
        assert {row["networks_know_the_subjects"] for row in rows} == {known}


def test_a_fold_may_hold_all_lesions(trained: Trained, tmp_path: Path) -> None:
    """What counts more cannot be learnt without them: all signals count alike."""
    shards = shutil.copytree(trained.training.shards, tmp_path / "shards")
    for subject in SUBJECTS[1:]:
        shard = read_shard(shards, subject)
        write_shard(shards, subject, replace(shard, lesion=np.zeros_like(shard.lesion)))
    bundle = load_bundle(trained.out)
    folds = [Fold(bundle, ids) for ids in split_folds(SUBJECTS, 2)]
    found = calibrate(bundle, shards, folds=folds)
    for method in METHODS:
        (own,), (other,) = (fold.scores[method] for fold in found.folds)
        assert own.weights == {"restoration:FLAIR": 1.0}, "nobody else has a lesion"
        assert len(other.weights) > 1


def test_a_budget_that_cannot_be_kept_is_told(
    trained: Trained, healthy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "FALSE_POSITIVES_ML", -1.0)
    lines: list[str] = []
    found = calibrate(load_bundle(trained.out), healthy, report=lines.append)
    assert {score.threshold_offset for (score,) in found.config.scores.values()} == {OFFSETS[-1]}
    assert all("no threshold that is tried leaves -1 ml or less" in line for line in lines)
    assert "or the highest that was tried" in found.config.calibration["criterion"]


def test_a_checkpoint_is_not_continued_on_other_slices_of_the_same_subjects(
    trained: Trained, tmp_path: Path
) -> None:
    other = write_shards(tmp_path / "healthy", lesions=False)
    with pytest.raises(WeightsError, match="other data") as caught:
        replace(trained.training, shards=other).train()
    assert caught.value.cause == "Not the same: slices."


def test_a_checkpoint_is_not_continued_with_other_painted_lesions(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = replace(trained.training, only=["foci"])
    training.train()
    monkeypatch.setattr(foci_painting, "FLUID_FRACTION", 0.5)
    with pytest.raises(WeightsError, match="another recipe") as caught:
        training.train()
    assert caught.value.cause == "Not the same: painting."


def with_validation(shards: Path) -> Path:
    """The same prepared data, the last subject in the split `val`."""
    index = read_index(shards)
    index["subjects"][-1]["split"] = "val"
    write_index(shards, index)
    return shards


def test_a_damaged_validation_subject_is_an_error(trained: Trained, tmp_path: Path) -> None:
    shards = with_validation(write_shards(tmp_path / "shards"))
    (shards / f"{SUBJECTS[-1]}.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"s3\.safetensors cannot be read"):
        replace(trained.training, shards=shards, work=tmp_path / "work", folds=0).train()


def test_slices_and_whole_heads_are_never_in_memory_together(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = with_validation(write_shards(tmp_path / "shards"))
    read: list[ReferenceType[SliceDataset]] = []
    seen: list[str] = []

    def train_nothing(spec: Spec, dataset: Any, *_: Any, validation: Any, **__: Any) -> dict:
        seen.append(type(dataset).__name__)
        assert validation.subjects == ("s3",)
        if isinstance(dataset, SliceDataset):
            read.extend([ref(dataset), ref(validation)])
        else:
            assert all(one() is None for one in read)
        return {}

    monkeypatch.setattr(run, "train_network", train_nothing)
    replace(trained.training, shards=shards, work=tmp_path / "work", folds=0).train()
    assert set(seen) == {"SliceDataset", "FociDataset"}


def test_folds_need_subjects() -> None:
    assert split_folds(["a", "b", "c"], 2) == [["a", "c"], ["b"]]
    with pytest.raises(DataError, match="3 folds"):
        split_folds(["a", "b"], 3)


def test_a_score_without_its_atlas_is_not_a_bundle(trained: Trained, tmp_path: Path) -> None:
    bundle = load_bundle(trained.out)
    bare = replace(bundle.template, normal={})
    (score, *_) = bundle.config.scores["cyclic-unet"]
    score = replace(score, weights={**score.weights, "atlas:FLAIR": 1.0})
    config = replace(bundle.config, scores={"cyclic-unet": (score,)})
    save_bundle(tmp_path / "bare", config, template=bare, networks={}, card="# card\n")
    with pytest.raises(WeightsError) as raised:
        load_bundle(tmp_path / "bare")
    assert "normal range of FLAIR" in str(raised.value.cause)


def test_many_subjects_are_thinned_evenly(trained: Trained) -> None:
    bundle = load_bundle(trained.out)
    folds = [Fold(bundle, [f"a{n}" for n in range(50)]), Fold(bundle, ["b0", "b1", "b2"])]
    fewer = _at_most(20, folds)
    assert [len(fold.subjects) for fold in fewer] == [17, 1]
    assert fewer[0].subjects[:2] == ["a0", "a3"]
    assert [fold.subjects for fold in _at_most(53, folds)] == [fold.subjects for fold in folds]
