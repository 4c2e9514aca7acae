"""Several processes train as one would, survive no loss of another silently, and go on."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_data import write_shards

from mmccd_cli.errors import ComputeError, UsageError
from mmccd_cli.training import runtime
from mmccd_cli.training.runtime import Runtime, make_runtime

TESTS = Path(__file__).parents[1]
PROGRAM = TESTS / "tiny_training.py"
DENOISER = "FLAIR-T2w.diffusion"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
PATIENCE_S = 300


def start(words: list[object], *launcher: str, **environment: object) -> subprocess.Popen[str]:
    """Start a training, alone, by `torchrun`, or as one of two processes."""
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    always = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, str(PROGRAM), "train", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | always | {name: str(value) for name, value in environment.items()},
    )


def start_two(words: list[object], kill: str) -> list[subprocess.Popen[str]]:
    """Start two processes as `torchrun` would, but without anybody who watches over them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2}
    return [
        start(words, RANK=rank, LOCAL_RANK=rank, MMCCD_TEST_KILL=kill, **place) for rank in (0, 1)
    ]


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        said, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    return process.returncode, said


def logs(out: Path) -> dict[str, list[list[str]]]:
    """Name of a network -> the rows of its log."""
    found = sorted(out.with_name(f"{out.name}.work").glob("*.csv"))
    return {path.stem: list(csv.reader(path.read_text().splitlines())) for path in found}


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one_and_go_on_after_any_kill(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards")

    def words(name: str) -> list[object]:
        how = ["--device", "cpu", "--precision", "fp32", "--calibrate-on", "none"]
        return ["--prepared", shards, "--out", tmp_path / name, *how]

    for name, launcher in (("alone", ()), ("both", TORCHRUN)):
        code, said = end(start(words(name), *launcher))
        assert code == 0, said
    alone, both = logs(tmp_path / "alone"), logs(tmp_path / "both")
    assert alone.keys() == both.keys() > {DENOISER, "restoration"}
    for name, rows in alone.items():
        assert len(rows) == len(both[name]) > 2
        losses = [[float(row[1]) for row in one[1:]] for one in (rows, both[name])]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4), name

    for kill, killed, survivor in (("5 1", 1, 0), ("7 0", 0, 1)):
        pair = start_two(words("killed"), kill)
        assert end(pair[killed])[0] == -9
        code, said = end(pair[survivor])
        assert code == 5, said
        assert "Another process of this training has ended" in said
        assert "Traceback" not in said
    code, said = end(start(words("killed"), *TORCHRUN, MMCCD_TEST_KILL="9 0 1"))
    assert code != 0, "both were killed"
    log = logs(tmp_path / "killed")
    assert [len(rows) for rows in log.values()] == [10, 3]
    code, said = end(start(words("killed"), *TORCHRUN))
    assert code == 0, said
    assert logs(tmp_path / "killed") == both
    for path in (tmp_path / "both").glob("*.safetensors"):
        weights, expected = load_file(tmp_path / "killed" / path.name), load_file(path)
        assert all(weights[key].equal(value) for key, value in expected.items()), path.name


# What torchrun announces, on devices that are not there


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The second of two processes on a machine with two GPUs, and what it did to join."""
    done: dict[str, Any] = {"backends": []}
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(runtime.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runtime.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(runtime.torch.cuda, "set_device", lambda d: done.update(own=str(d)))
    monkeypatch.setattr(runtime, "choose_device", torch.device)
    monkeypatch.setattr(
        runtime.dist, "init_process_group", lambda kind, timeout: done["backends"].append(kind)
    )
    monkeypatch.setattr(runtime.dist, "new_group", lambda backend, timeout: (backend, timeout))
    return done


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_of_a_machine_takes_a_gpu_of_its_own(
    name: str, joined: dict[str, Any]
) -> None:
    made = make_runtime(name)
    assert (str(made.device), made.rank, made.world_size) == ("cuda:1", 1, 2)
    assert joined == {"backends": ["nccl"], "own": "cuda:1"}
    assert made.patient == ("gloo", runtime.WORK_TIMEOUT), "no GPU waits hours for another's file"
    assert made.precision == "bf16"


def test_a_gpu_that_is_asked_for_by_number_is_kept(joined: dict[str, Any]) -> None:
    assert str(make_runtime("cuda:0").device) == "cuda:0"


def test_without_gpus_processes_meet_on_the_cpu(
    joined: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.torch.cuda, "is_available", lambda: False)
    assert make_runtime("auto").device.type == "cpu"
    assert joined == {"backends": ["gloo"]}
    with pytest.raises(UsageError, match="mps") as caught:
        make_runtime("mps")
    assert "--device cpu" in (caught.value.next_step or "")


def test_more_processes_than_gpus_are_refused_with_the_right_number(
    joined: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="there are 2") as caught:
        make_runtime("auto")
    assert "--nproc-per-node 2" in (caught.value.next_step or "")


@pytest.mark.parametrize("value", ["two", "", "-1"])
def test_an_environment_that_is_none_of_torchrun(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(UsageError, match="told apart") as caught:
        make_runtime("cpu")
    assert "torchrun" in (caught.value.next_step or "")


def test_a_world_without_an_address_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some schedulers set the size of the world and nothing else."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="told apart"):
        make_runtime("cpu")


# What goes wrong within a step

PAIR = Runtime(device=torch.device("cpu"), world_size=2)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/pytorch/third_party/gloo/pair.cc:534] Connection closed by peer\nmore"),
        RuntimeError("[gloo/buffer.cc:81] Timed out waiting 600000ms for recv operation"),
        torch.distributed.DistBackendError("collective timed out"),
    ],
)
def test_a_lost_process_is_told_in_a_sentence(error: RuntimeError) -> None:
    with (
        pytest.raises(ComputeError, match="has ended or does not answer") as caught,
        PAIR.explaining(),
    ):
        raise error
    assert "more" not in (caught.value.cause or "")
    assert "last checkpoint" in (caught.value.next_step or "")


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_bug_stays_a_bug(world_size: int) -> None:
    with (
        pytest.raises(RuntimeError, match="shapes"),
        replace(PAIR, world_size=world_size).explaining(),
    ):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("world_size", [1, 2])
def test_memory_that_ends_is_told_with_what_helps(error: Exception, world_size: int) -> None:
    with (
        pytest.raises(ComputeError, match="memory of cpu does not suffice") as caught,
        replace(PAIR, world_size=world_size).explaining(),
    ):
        raise error
    assert "--batch-size" in (caught.value.next_step or "")
