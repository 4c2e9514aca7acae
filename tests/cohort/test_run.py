"""Cohorts from files to files: order, shares, failures, interruptions and resuming."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mmccd_cli import Segmenter
from mmccd_cli.cli.app import app
from mmccd_cli.cohort.jobs import RunSettings
from mmccd_cli.cohort.plan import RunPolicy, SubjectSelection
from mmccd_cli.cohort.run import segment_cohort
from mmccd_cli.errors import DataError, UsageError, WeightsError
from mmccd_cli.inputs.phantom import make_phantom
from mmccd_cli.outputs.lesions import is_mask_warning
from mmccd_cli.outputs.record import Outcome

PASSING = ("seconds", "peak_memory_mib")
"""What of a record differs from run to run."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_subject: Callable[..., Path]) -> Path:
    """Four subjects on a 6 mm grid, the third of which cannot be read."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate("abcd"):
        phantom = make_phantom(seed, shape=(34, 38, 30), spacing_mm=(6, 6, 6))
        write_subject(folder, phantom, "brats", id=f"case-{name}")
    spoilt = next(folder.glob("case-c/*flair.nii.gz"))
    spoilt.write_bytes(spoilt.read_bytes()[:3000])
    return folder


@pytest.fixture(scope="module")
def results(data: Path, segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a cohort of all four leaves; tests may look at it only."""
    out = tmp_path_factory.mktemp("results")
    list(segmenter.segment_cohort(sorted(data.iterdir()), out))
    return out


@pytest.fixture
def folders(data: Path, tmp_path: Path) -> list[Path]:
    """The subjects, for tests that change them."""
    shutil.copytree(data, tmp_path / "data")
    return sorted((tmp_path / "data").iterdir())


@pytest.fixture
def done(results: Path, tmp_path: Path) -> Path:
    """The results, for tests that change them."""
    shutil.copytree(results, tmp_path / "out")
    return tmp_path / "out"


def _run(
    segmenter: Segmenter, folders: list[Path], out: Path, **options: Any
) -> dict[str, Outcome]:
    return {o.name: o for o in segmenter.segment_cohort(folders, out, **options)}


def _bytes(out: Path) -> dict[str, bytes]:
    paths = [*out.glob("*.nii.gz"), *out.glob("*_lesions.tsv")]
    return {path.name: path.read_bytes() for path in sorted(paths)}


def _records(out: Path) -> dict[str, dict[str, Any]]:
    found = {path.name: json.loads(path.read_text()) for path in out.glob("*.json")}
    return {n: {k: v for k, v in r.items() if k not in PASSING} for n, r in found.items()}


def test_neither_order_nor_the_thread_changes_a_byte(
    segmenter: Segmenter, folders: list[Path], tmp_path: Path, results: Path
) -> None:
    outcomes = _run(segmenter, folders[::-1], tmp_path / "1", workers=0)
    assert [o.status for o in outcomes.values()] == ["done", "failed", "done", "done"]
    assert isinstance(outcomes["case-c"].error, DataError)
    _run(segmenter, folders, tmp_path / "2", workers=3)
    assert len(_bytes(results)) == 9
    assert _bytes(results) == _bytes(tmp_path / "1")
    assert _records(results) == _records(tmp_path / "1")
    assert _bytes(results) == _bytes(tmp_path / "2")


def test_no_more_subjects_than_workers_wait_and_no_array_is_kept(
    segmenter: Segmenter, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most, prepare = 0, Segmenter.prepare

    def counted(self: Any, volumes: Any, **options: Any) -> Any:
        nonlocal most
        prepared = prepare(self, volumes, **options)
        alive.add(prepared)
        most = max(most, len(alive))
        return prepared

    def broken(*_: Any, **__: Any) -> None:
        raise DataError("no")

    monkeypatch.setattr(Segmenter, "prepare", counted)
    good = [*folders[:2], folders[3]]
    outcomes = list(_run(segmenter, good, tmp_path / "1", workers=1).values())
    assert {o.status for o in outcomes} == {"done"}
    assert most <= 2  # the one on the device, and the one ahead
    monkeypatch.setattr(Segmenter, "infer", broken)
    outcomes += _run(segmenter, good, tmp_path / "2", workers=2).values()
    gc.collect()
    assert len(alive) == 0


def test_on_a_cpu_networks_run_beside_each_other_but_for_the_last_that_is_alone(
    segmenter: Segmenter, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int]] = []
    infer, threads = Segmenter.infer, segmenter.threads

    def watched(self: Any, prepared: Any, **options: Any) -> Any:
        alone = threading.current_thread() is threading.main_thread()
        seen.append((alone, torch.get_num_threads()))
        return infer(self, prepared, **options)

    monkeypatch.setattr(Segmenter, "infer", watched)
    good = [*folders[:2], folders[3]]
    outcomes = _run(segmenter, good, tmp_path / "out", workers=2)
    assert {o.status for o in outcomes.values()} == {"done"}
    assert sorted(seen) == [(False, max(1, threads // 2))] * 2 + [(True, threads)]
    assert {o.record["threads"] for o in outcomes.values()} == {threads}


def test_weights_are_loaded_once_and_not_for_what_cannot_be_read(
    segmenter: Segmenter, folders: list[Path], tmp_path: Path, results: Path
) -> None:
    """And the first record speaks of what was read before that."""
    loaded: list[str] = []

    def load() -> Segmenter:
        loaded.append("once")
        next(folders[0].glob("*flair.nii.gz")).write_bytes(b"another scan")
        return segmenter

    def run(folders: list[Path], load: Callable[[], Segmenter]) -> list[Outcome]:
        cohort = SubjectSelection(folders=folders, out_dir=tmp_path / "out").plan()
        return [*segment_cohort(cohort, load, settings=RunSettings(), policy=RunPolicy())]

    assert [o.status for o in run([folders[2]], load)] == ["failed"]
    assert loaded == []
    outcomes = run(folders[:2], load)
    assert loaded == ["once"]
    for outcome in outcomes:
        expected = json.loads((results / f"{outcome.name}.json").read_text())
        assert outcome.record["inputs"] == expected["inputs"]

    def fail() -> Segmenter:
        raise WeightsError("none")

    with pytest.raises(WeightsError):
        run(folders[3:], fail)


def test_a_name_stops_none_of_the_others(
    segmenter: Segmenter, folders: list[Path], tmp_path: Path
) -> None:
    long, too_long = "n" * 240, "n" * 250
    unknown = [os.fsdecode(b"caf\xe8"), os.fsdecode(b"caf\xe9")]
    given = [folders[0].rename(tmp_path / long)]
    given += [Path(shutil.copytree(given[0], tmp_path / name)) for name in (too_long, *unknown)]
    outcomes = list(segmenter.segment_cohort([*given, folders[1]], tmp_path / "out"))
    statuses = {outcome.name: outcome.status for outcome in outcomes}
    done = [long, "caf_e8", "caf_e9", "case-b"]
    assert statuses == {too_long: "failed", **dict.fromkeys(done, "done")}
    assert "name is too long" in str(outcomes[0].error)
    assert sorted(_bytes(tmp_path / "out")) == sorted(
        f"{name}{end}" for name in done for end in (".nii.gz", "_mask.nii.gz", "_lesions.tsv")
    )


# Resuming.

CUTS = [
    RunSettings(threshold=0.8),
    RunSettings(min_lesion_mm3=5e4),
    RunSettings(threshold=0.3, min_lesion_mm3=500),
    RunSettings(),
]


def test_a_mask_from_the_map_equals_that_of_a_new_run(
    segmenter: Segmenter,
    folders: list[Path],
    tmp_path: Path,
    done: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Be it made by --resume or by `mmccd threshold`."""
    resumed, cut = (shutil.copytree(done, tmp_path / name) for name in ("resumed", "cut"))
    fresh = [tmp_path / f"new-{number}" for number in range(len(CUTS))]
    for out, settings in zip(fresh, CUTS, strict=True):
        list(segmenter.segment_cohort(folders[:1], out, settings=settings))
    assert len({_bytes(out)["case-a_mask.nii.gz"] for out in fresh}) == len(CUTS)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the networks ran")

    def table(out: Path) -> str:
        return (out / "summary.tsv").read_text()

    def same(out: Path, other: Path) -> None:
        assert _bytes(out).items() >= _bytes(other).items()
        assert _records(out).items() >= _records(other).items()
        # All but the last column, the seconds.
        rows = [re.findall(r"^case-a\t.*(?=\t)", table(folder), re.M) for folder in (out, other)]
        assert rows[0] == rows[1] != []

    monkeypatch.setattr(Segmenter, "infer", never)
    monkeypatch.setattr(Segmenter, "prepare", never)
    for out, settings in zip(fresh, CUTS, strict=True):
        for status, from_map in (("done", True), ("skipped", False)):
            (outcome,) = segmenter.segment_cohort(
                folders[:1], resumed, settings=settings, resume=True
            )
            assert (outcome.status, outcome.from_map) == (status, from_map), outcome.error
            if from_map:
                same(resumed, out)
        options = {"--threshold": settings.threshold, "--min-lesion": settings.min_lesion_mm3}
        words = [word for pair in options.items() if pair[1] is not None for word in pair]
        result = _threshold(cut / "case-a.nii.gz", *words, "--force", "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["subject"] == "case-a"
        same(cut, out)
        assert table(cut).count("\n") == 5  # all rows stay


def test_what_differs_is_done_again(
    segmenter: Segmenter, folders: list[Path], done: Path, bundle: Path
) -> None:
    out = done

    def resume(**options: Any) -> tuple[str, bool]:
        chosen = options.pop("segmenter", segmenter)
        outcome = _run(chosen, folders[:1], out, resume=True, **options)["case-a"]
        assert outcome.error is None
        return outcome.status, outcome.from_map

    whole = ("done", False)
    other_seed = Segmenter.from_pretrained(bundle, device="cpu", preset="fast", seed=1)
    record = json.loads((out / "case-a.json").read_text())
    record["settings"]["requested"]["sampling"]["second_pass"] = False  # a setting that is gone
    (out / "case-a.json").write_text(json.dumps(record))
    assert resume() == ("skipped", False)
    # Another seed, another space, another input, and a map that is not the record's.
    assert resume(segmenter=other_seed) == whole
    assert resume(settings=RunSettings(space="template")) == whole
    assert resume() == whole
    flair = next(folders[0].glob("*flair.nii.gz"))
    flair.write_bytes(next(folders[3].glob("*flair.nii.gz")).read_bytes())
    assert resume() == whole
    (out / "case-a.nii.gz").write_bytes((out / "case-b.nii.gz").read_bytes())
    assert resume() == whole
    # A mask that is not the record's comes from the map.
    (out / "case-a_mask.nii.gz").write_bytes((out / "case-b_mask.nii.gz").read_bytes())
    assert resume() == ("done", True)
    assert resume() == ("skipped", False)


def test_results_before_there_was_a_table_get_theirs_from_the_map(
    segmenter: Segmenter, folders: list[Path], done: Path, results: Path
) -> None:
    for name in ("case-a", "case-b"):
        path = done / f"{name}.json"
        record = json.loads(path.read_text())
        (done / record["outputs"].pop("table")).unlink()
        del record["left_out"], record["left_out_small"]
        record["warnings"] = [said for said in record["warnings"] if not is_mask_warning(said)]
        path.write_text(json.dumps(record))
    outcome = _run(segmenter, folders[:1], done, resume=True)["case-a"]
    assert (outcome.status, outcome.from_map) == ("done", True), outcome.error
    result = _threshold(done / "case-b.nii.gz", "--force")
    assert result.exit_code == 0, result.stderr
    assert _bytes(done) == _bytes(results)
    assert _records(done) == _records(results)
    assert _run(segmenter, folders[:1], done, resume=True)["case-a"].status == "skipped"


def test_what_nobody_knows_stops_only_its_own_subject_before_it_is_prepared(
    segmenter: Segmenter, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, given = tmp_path / "out", {"extras": {"picture": "look.png"}}
    list(segmenter.segment_cohort(folders[:2], out, **given))
    for path in [*out.glob("case-a[._][!l]*"), out / "case-a_lesions.tsv"]:
        path.unlink()
    picture = (out / "case-a_look.png").read_bytes()
    prepared: list[object] = []
    prepare = Segmenter.prepare
    monkeypatch.setattr(
        Segmenter, "prepare", lambda *a, **o: prepared.append(a) or prepare(*a, **o)
    )
    good = [folders[0], folders[1], folders[3]]
    first, *others = segmenter.segment_cohort(good, out, resume=True, **given)
    assert [o.status for o in others] == ["skipped", "done"]
    assert isinstance(first.error, UsageError)
    assert "Move it away" in str(first.error.next_step)
    assert len(prepared) == 1
    assert {path.name for path in out.glob("case-a*")} == {"case-a_look.png"}
    assert (out / "case-a_look.png").read_bytes() == picture


def test_the_template_space(segmenter: Segmenter, folders: list[Path], tmp_path: Path) -> None:
    settings = RunSettings(space="template")
    outcome = _run(segmenter, folders[:1], tmp_path, settings=settings)["case-a"]
    template = segmenter.bundle.template
    for name in ("case-a.nii.gz", "case-a_mask.nii.gz"):
        image = nib.load(tmp_path / name)
        assert image.shape == template.shape
        np.testing.assert_allclose(image.affine, template.affine, atol=1e-4)
        assert image.header["sform_code"] == 5
    values, mask = (
        np.asanyarray(nib.load(tmp_path / f"case-a{end}.nii.gz").dataobj) for end in ("", "_mask")
    )
    assert values.max() > 0.5
    assert mask.any()
    volume = outcome.record["lesion_volume_ml"]
    assert volume == pytest.approx(mask.sum() * np.prod(template.spacing_mm) / 1000)
    assert np.shape(outcome.record["settings"]["reference_to_template"]) == (4, 4)


# New masks without weights.


def _threshold(*words: object) -> Any:
    return CliRunner().invoke(app, ["threshold", *map(str, words)])


def test_threshold_takes_maps_among_masks_and_needs_force(done: Path) -> None:
    before = _bytes(done)
    words = (*done.glob("*.nii.gz"), "--threshold", 0.8, "--min-lesion", "0.5ml")
    refused = _threshold(*words)
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert _bytes(done) == before
    result = _threshold(*words, "--force", "--json")
    assert result.exit_code == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert sorted(record["subject"] for record in records) == ["case-a", "case-b", "case-d"]
    assert {record["threshold"] for record in records} == {0.8}


def test_threshold_can_write_elsewhere(tmp_path: Path, done: Path) -> None:
    before = _bytes(done)
    own = done / "case-a.nii.gz"
    out = tmp_path / "other.nii.gz"
    result = _threshold(own, "--out", out, "--threshold", 0.8)
    assert result.exit_code == 0, result.stderr
    assert _bytes(done) == before
    record = json.loads((tmp_path / "other.json").read_text())
    assert record["settings"]["requested"]["threshold"] == 0.8
    assert record["outputs"]["mask"] == "other.nii.gz"
    assert (tmp_path / "other_lesions.tsv").read_text().startswith("index\tkept\t")


def test_threshold_on_the_own_mask_replaces_its_record_too(done: Path) -> None:
    before, own = _bytes(done), done / "case-a.nii.gz"
    words = (own, "--out", done / ".." / done.name / "case-a_mask.nii.gz", "--threshold", 0.8)
    assert "--force" in _threshold(*words).stderr
    result = _threshold(*words, "--force")
    assert result.exit_code == 0, result.stderr
    after = _bytes(done)
    assert after.keys() == before.keys()
    record = json.loads((done / "case-a.json").read_text())
    assert record["threshold"] == 0.8
    assert (
        record["output_sha256"]["mask"]
        == hashlib.sha256((done / "case-a_mask.nii.gz").read_bytes()).hexdigest()
    )


def test_threshold_refuses_what_does_not_belong_together(done: Path) -> None:
    before = _bytes(done)
    (done / "case-b.json").unlink()
    (done / "case-d.json").write_bytes((done / "case-a.json").read_bytes())
    for name in ("case-b", "case-d"):
        result = _threshold(done / f"{name}.nii.gz", "--force")
        assert result.exit_code == 3, result.stderr
        assert "Traceback" not in result.stderr
        # So it is where its own mask is named beside it, which is left out.
        both = _threshold(*done.glob(f"{name}*.nii.gz"), "--force")
        assert (both.exit_code, both.stderr) == (3, result.stderr)
    folder = _threshold(done, "--force")
    assert folder.exit_code == 2
    assert "It is a folder." in folder.stderr
    assert _bytes(done) == before


def test_threshold_needs_no_torch() -> None:
    code = (
        "import sys, mmccd_cli.cohort.threshold, mmccd_cli.cli.app;sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


# The program as a process.


@pytest.fixture
def start(
    bundle: Path, folders: list[Path], tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts `mmccd segment` on the readable subjects, with records on stdout."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        given = [*map(str, [folders[0], folders[1], folders[3]]), "--out-dir", str(tmp_path / "o")]
        process = subprocess.Popen(
            [sys.executable, "-m", "mmccd_cli", "segment", *given, "--json", "--weights",
             str(bundle), "--device", "cpu", "--preset", "fast",
             "--workers", "1", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_killed_run_loses_nothing_and_does_nothing_twice(
    start: Callable[..., subprocess.Popen[str]],
    segmenter: Segmenter,
    folders: list[Path],
    tmp_path: Path,
    results: Path,
) -> None:
    process = start()
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    out = tmp_path / "o"
    whole = {path.name for path in out.glob("*.json")}
    assert first["outputs"]["sidecar"] in whole
    for name in whole:  # whatever is there under its name is whole
        assert {"map", "mask"} == set(json.loads((out / name).read_text())["output_sha256"])
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("case-a*")}
    for name in ("case-b.nii.gz", "summary.tsv"):
        (out / f".{name}.0123abcd.tmp").write_text("half")
    good = [folders[0], folders[1], folders[3]]
    outcomes = {o.name: o for o in segmenter.segment_cohort(good, out, resume=True)}
    assert next(o.status for o in outcomes.values()) == "skipped"
    assert {o.status for o in outcomes.values()} <= {"skipped", "done"}
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert _bytes(out) == _bytes(results)
    assert not list(out.glob(".*.tmp"))
    table = (out / "summary.tsv").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in table[1:]) == ["case-a", "case-b", "case-d"]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_run_ends_at_once_and_leaves_only_whole_results(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start()
    assert process.stdout is not None
    json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said
    assert not [path for path in (tmp_path / "o").iterdir() if path.name.startswith(".")]


def test_a_reader_that_leaves_ends_the_run_quietly(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start("-q")
    assert process.stdout is not None
    json.loads(process.stdout.readline())
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=240) == 141
    results = {path.name for path in (tmp_path / "o").glob("*.json")}
    assert "case-a.json" in results
    for name in results:
        assert (tmp_path / "o" / name.replace(".json", "_mask.nii.gz")).is_file()


# Real scans.


@pytest.mark.slow
@pytest.mark.realdata
def test_real_scans_give_in_a_cohort_what_they_give_alone(real_data: Path, tmp_path: Path) -> None:
    segmenter = Segmenter.from_pretrained(device="cpu", preset="fast")
    good = [real_data / "raw" / "TCGA-FG-6692", real_data / "metastasis" / "BraTS-MET-00110-000"]
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "flair.nii.gz").write_bytes((good[0] / "flair.nii.gz").read_bytes()[:50000])
    out = tmp_path / "out"
    outcomes = list(segmenter.segment_cohort([good[0], broken, good[1]], out, workers=2))
    assert [o.status for o in outcomes] == ["done", "failed", "done"]
    other = Segmenter.from_pretrained(device="cpu", preset="fast", batch_size=5)
    alone = other.segment_files(good[0]).result  # the one that is stripped and registered
    stored = np.asanyarray(nib.load(out / f"{good[0].name}.nii.gz").dataobj)
    np.testing.assert_allclose(stored, alone.anomaly_map, atol=1e-4)
    again = segmenter.segment_cohort(good, out, resume=True, settings=RunSettings(threshold=0.7))
    assert [(o.status, o.from_map) for o in again] == [("done", True)] * 2
