"""What is killed at any moment leaves nothing half, and the next run completes its work."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from training_data import write_shards

from mmccd_cli.cohort.summary import Summary
from mmccd_cli.errors import DataError
from mmccd_cli.files import remove_leftovers
from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.outputs.images import output_paths, write_outputs
from mmccd_cli.outputs.record import Outcome

TESTS = Path(__file__).parent
KILLS = 17
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def write_two_results(folder: Path) -> None:
    """What a cohort does at the end of each subject, without what it computes."""
    for name in ("a", "b"):
        paths = output_paths(folder / f"{name}.nii.gz")
        remove_leftovers(*paths.values(), folder / "summary.tsv")
        contents = {kind: f"{kind} of {name}".encode() * 1000 for kind in paths}
        hashes = {kind: hashlib.sha256(c).hexdigest() for kind, c in contents.items()}
        contents["sidecar"] = json.dumps(hashes).encode()
        ordered = ["map", "mask", "table", "sidecar"]
        write_outputs({paths[kind]: contents[kind] for kind in ordered}, force=True)
        Summary(folder).add(Outcome(name, "failed", error=DataError("of no matter")))


def killed_at(operation: int, folder: Path) -> bool:
    """Write in a child that kills itself at that operation; whether it came to that."""
    child = os.fork()
    if child == 0:
        count = 0

        def counted(real: Callable[..., object]) -> Callable[..., object]:
            def call(*given: object, **options: object) -> object:
                nonlocal count
                count += 1
                if count == operation:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*given, **options)

            return call

        for name in ("open", "fsync", "replace", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            write_two_results(folder)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@needs_fork
def test_killed_at_any_operation_nothing_is_half(tmp_path: Path) -> None:
    operation = 0
    while True:
        operation += 1
        folder = tmp_path / str(operation)
        folder.mkdir()
        was_killed = killed_at(operation, folder)
        for sidecar in folder.glob("*.json"):
            for kind, path in output_paths(sidecar.with_suffix(".nii.gz")).items():
                if kind != "sidecar":
                    found = hashlib.sha256(path.read_bytes()).hexdigest()
                    assert found == json.loads(sidecar.read_text())[kind]
        write_two_results(folder)
        expected = {p.name for n in "ab" for p in output_paths(Path(f"{n}.nii.gz")).values()}
        assert {path.name for path in folder.iterdir()} == {*expected, "summary.tsv"}
        if not was_killed:
            break
    assert operation > 30, "every operation had its turn"


def kill_often(work: Path, words: list[object], *, seed: int, train: bool = False) -> None:
    plan = {
        "words": [str(word) for word in words],
        "work": str(work),
        "kills": int(os.environ.get("MMCCD_KILLS", KILLS)),
        "seed": seed,
        "train": train,
    }
    done = subprocess.run(
        [sys.executable, TESTS / "kill_loop.py", json.dumps(plan)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["kills"] == plan["kills"]
    reference, out = work / "reference", work / "out"
    names = {path.relative_to(reference) for path in reference.rglob("*") if path.is_file()}
    assert {path.relative_to(out) for path in out.rglob("*") if path.is_file()} == names
    for name in names:
        if name.suffix == ".gz" or name.suffix == ".safetensors":
            assert (out / name).read_bytes() == (reference / name).read_bytes(), name


@pytest.fixture
def bids(tmp_path: Path, write_subject: Callable[..., Path], tiny_phantom: Phantom) -> Path:
    root = tmp_path / "raw"
    for number in (1, 2):
        write_subject(root, tiny_phantom, "bids", id=f"sub-0{number}")
    description = {"Name": "Tiny", "BIDSVersion": "1.10.0"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    return root


@needs_fork
@pytest.mark.slow
def test_bids_derivatives_survive_kills(bids: Path, bundle: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    words = ["bids", bids, "OUT", "participant", "--resume", "--report", "--picture"]
    settings = ["--weights", bundle, "--device", "cpu", "--preset", "fast", "--threads", 1]
    kill_often(work, [*words, *settings, "--workers", 0], seed=1)


@needs_fork
@pytest.mark.slow
def test_reports_survive_kills(bids: Path, bundle: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    words = ["segment", bids / "sub-01", bids / "sub-02", "--out-dir", "OUT", "--resume"]
    settings = ["--weights", bundle, "--device", "cpu", "--preset", "fast", "--threads", 1]
    reports = ["--report-dir", "OUT/reports", "--workers", 0]
    kill_often(work, [*words, *settings, *reports], seed=2)


@needs_fork
@pytest.mark.slow
def test_trainings_survive_kills(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    shards = write_shards(tmp_path / "shards")
    words = ["train", "--prepared", shards, "--out", "OUT/new", "--device", "cpu", "--threads", 1]
    kill_often(work, words, seed=3, train=True)
