"""Words become devices that work, or an error that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmccd_cli import host
from mmccd_cli.errors import ComputeError, UsageError
from mmccd_cli.translation import devices
from mmccd_cli.translation.engine import explaining_device


def test_cpu_and_auto_work_everywhere() -> None:
    assert devices.choose_device("cpu") == torch.device("cpu")
    torch.zeros(1, device=devices.choose_device("auto"))


@pytest.mark.parametrize(
    "name", ["", "gpu", "CPU", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "mps:0", "cuda:0:1", "meta"]
)
def test_other_words_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is not known"):
        devices.choose_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "cuda:200", "mps"])
def test_a_device_that_fails_is_named_and_auto_passes_it_over(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, device: torch.device, **kwargs: object) -> torch.Tensor:
        raise RuntimeError("no kernel image is available\nand much more")

    monkeypatch.setattr(devices.torch, "ones", broken)
    with pytest.raises(ComputeError, match=name) as caught:
        devices.choose_device(name)
    assert "much more" not in (caught.value.cause or "")
    assert "--device cpu" in (caught.value.next_step or "")
    assert devices.choose_device("auto") == torch.device("cpu")


def test_batch_size_follows_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter((0, 1 << 30, 4 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (next(free), 80 << 30))
    sizes = [devices.choose_batch_size(torch.device("cuda"), 128 * 128, 32) for _ in range(4)]
    assert sizes[0] == 1
    assert sizes == sorted(sizes)
    assert 4 * sizes[1] == pytest.approx(sizes[2], abs=4)
    assert sizes[3] == devices.ACCELERATOR_BATCH_MAX


def test_the_cpu_takes_its_best_batch_unless_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    8388608 kB\n"}
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: answers[str(self)])
    monkeypatch.setattr(host, "_cgroup_memory", lambda: None)
    cpu = torch.device("cpu")
    assert devices.choose_batch_size(cpu, 128 * 128, 32) == devices.CPU_BATCH
    monkeypatch.setattr(host, "_cgroup_memory", lambda: 128 << 20)
    assert devices.choose_batch_size(cpu, 128 * 128, 32) == 2
    answers["/proc/meminfo"] = "MemAvailable: 5 kB\n"
    assert devices.choose_batch_size(cpu, 128 * 128, 32) == 1


# Precision


CUDA, CPU, MPS = (torch.device(name) for name in ("cuda", "cpu", "mps"))


@pytest.mark.parametrize(
    ("device", "capability", "chosen"),
    [(CUDA, (6, 1), "fp32"), (CUDA, (9, 0), "fp16"), (CPU, None, "fp32"), (MPS, None, "fp32")],
)
def test_halves_are_chosen_where_they_are_fast(
    device: torch.device, capability: Any, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert devices.choose_precision("auto", device) == chosen


@pytest.mark.parametrize(
    ("name", "device"), [("bf16", CPU), ("fp16", CPU), ("fp16", MPS), ("bf16", MPS)]
)
def test_halves_that_a_device_lacks_are_refused(
    name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_computes_bf16", lambda: False)
    with pytest.raises(ComputeError, match=name) as caught:
        devices.choose_precision(name, device)
    assert "--precision" in (caught.value.next_step or "")


def test_other_precisions_are_refused() -> None:
    with pytest.raises(UsageError, match="is not known"):
        devices.choose_precision("int8", CPU)


def test_native_bf16_is_told_from_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.platform, "machine", lambda: "x86_64")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not devices.cpu_computes_bf16()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert devices.cpu_computes_bf16()
    assert devices.choose_precision("bf16", CPU) == "bf16"


def test_the_cpu_is_described_with_its_threads() -> None:
    text = devices.describe_device(torch.device("cpu"))
    assert text == f"cpu ({torch.get_num_threads()} threads)"


# CUDA that is there, but not as it should be


def test_cuda_is_described_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"H200 of {device}")
    assert devices.describe_device(torch.device("cuda:1")) == "cuda:1 (H200 of cuda:1)"


@pytest.mark.parametrize("there", [True, False])
def test_cuda_has_halves_but_not_always_both(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: there)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "V100")
    assert devices.choose_precision("fp16", CUDA) == "fp16"
    if there:
        assert devices.choose_precision("bf16", CUDA) == "bf16"
        return
    with pytest.raises(ComputeError, match=r"V100.* does not compute with bf16"):
        devices.choose_precision("bf16", CUDA)


def test_a_driver_that_does_not_tell_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest batch is tried; it is halved where memory does not suffice."""

    def broken(device: torch.device) -> tuple[int, int]:
        raise RuntimeError("CUDA driver error: operation not supported")

    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    assert devices.choose_batch_size(CUDA, 128 * 128, 32) == devices.ACCELERATOR_BATCH_MAX


def test_a_full_device_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")

    monkeypatch.setattr(devices.torch, "ones", full)
    with pytest.raises(ComputeError, match="cuda:3 cannot be used") as caught:
        devices.choose_device("cuda:3")
    assert "out of memory" in (caught.value.cause or "")


def test_what_an_older_torch_does_not_say_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.mps, "recommended_max_memory", raising=False)
    assert devices.free_memory(MPS) is None
    monkeypatch.setattr(devices.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not devices.cpu_computes_bf16()


def test_an_older_torch_has_no_error_of_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "AcceleratorError", raising=False)
    with pytest.raises(ComputeError, match="stopped computing"), explaining_device(CUDA, "it"):
        raise RuntimeError("CUDA error: unspecified launch failure")
