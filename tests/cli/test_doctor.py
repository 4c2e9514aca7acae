"""What `mmccd doctor` says of an installation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hub_server import Fault, loopback_hub
from typer.testing import CliRunner

from mmccd_cli.cli import doctor
from mmccd_cli.cli.app import app
from mmccd_cli.errors import ComputeError
from mmccd_cli.weights.registry import embedded_root

ROOT = Path(__file__).resolve().parents[2]


def _said(*words: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    result = CliRunner().invoke(app, ["doctor", "--json", *words])
    said = json.loads(result.stdout)
    assert said["exit_code"] == result.exit_code
    by_check: dict[str, list[dict[str, str]]] = {}
    for finding in said["findings"]:
        by_check.setdefault(finding["check"], []).append(finding)
    return result.exit_code, by_check


def test_it_says_what_works_here() -> None:
    code, found = _said("--offline")
    assert code == 0
    assert set(found) == {
        "program", "packages", "processor", "memory", "torch", "device", "weights", "cache",
        "network", "extras",
    }  # fmt: skip
    assert "convolution right to" in found["device"][0]["text"]
    assert "sha256" in found["weights"][0]["text"]
    assert str(Path.home()) not in json.dumps(found)
    shown = CliRunner().invoke(app, ["doctor", "--offline"])
    assert shown.exit_code == 0
    assert "\x1b" not in shown.stdout
    assert all(line[:4] in ("ok  ", "note", "    ") for line in shown.stdout.splitlines())


def test_a_device_that_does_not_compute_ends_with_5(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ComputeError(f"the device {name} cannot be used", cause="no kernel image")

    monkeypatch.setattr("mmccd_cli.translation.devices.choose_device", refuse)
    code, found = _said("--offline")
    assert code == 5
    assert "no kernel image" in found["device"][0]["text"]


def _fake_cuda(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """So many devices that compute, as the CPU does, and a driver that knows their memory."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("mmccd_cli.translation.devices.choose_device", lambda name: Cuda())
    monkeypatch.setattr("mmccd_cli.translation.devices.describe_device", lambda d: "cuda (H200)")
    monkeypatch.setattr("torch.Tensor.to", lambda self, device: self)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (3 << 30, 8 << 30))


class Cuda:
    """Stands for a device."""

    type = "cuda"


def test_every_cuda_device_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_cuda(monkeypatch, 2)
    code, found = _said("--offline")
    assert code == 0
    assert len(found["device"]) == 3
    assert "3.0 of 8.0 GiB free" in found["device"][2]["text"]


@pytest.mark.parametrize("broken", ["mem_get_info", "device", "wrong"])
def test_cuda_that_is_there_but_broken_ends_with_5(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that fails after the first operation, a device that is lost, wrong results."""
    _fake_cuda(monkeypatch, 1)

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nCompile with more")

    if broken == "mem_get_info":
        monkeypatch.setattr("torch.cuda.mem_get_info", fail)
    elif broken == "device":
        monkeypatch.setattr("torch.Tensor.to", fail)
    else:
        monkeypatch.setattr("torch.Tensor.to", lambda self, device: 1.1 * self)
    code, found = _said("--offline")
    assert code == 5
    said = found["device"][1]
    assert said["status"] == "fail"
    assert said["next_step"] == "--device cpu"
    assert ("right to" if broken == "wrong" else "unspecified launch failure") in said["text"]
    assert "Compile" not in said["text"]


def test_a_benchmark_on_a_device_that_is_not_there_ends_with_5() -> None:
    ended = CliRunner().invoke(app, ["benchmark", "--device", "cuda:77"])
    assert ended.exit_code == 5, ended.stderr
    assert "cuda:77" in ended.stderr
    assert "--device cpu" in ended.stderr


def test_a_damaged_bundle_ends_with_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = embedded_root()
    if root is None or not any(root.glob("*/bundle.json")):
        pytest.skip("no embedded bundle in this checkout")
    shutil.copytree(root, tmp_path / "weights")
    damaged = next(tmp_path.glob("weights/*/template.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0\0")
    monkeypatch.setattr("mmccd_cli.weights.registry.embedded_root", lambda: tmp_path / "weights")
    code, found = _said("--offline")
    assert code == 4
    assert [f["status"] for f in found["weights"]].count("fail") == 1


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("x")

    monkeypatch.setattr("mmccd_cli.weights.hub.list_cached", broken)
    code, found = _said("--offline")
    assert code == 1
    assert "ZeroDivisionError" in found["cache"][0]["text"]
    assert "extras" in found


def test_missing_packages_fail_and_missing_extras_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-package"))
    monkeypatch.setattr(doctor, "EXTRAS", {"magic": ("wonders", ("no-such-package",))})
    code, found = _said("--offline")
    assert code == 1
    assert found["packages"][0]["next_step"] == "pip install no-such-package"
    assert found["extras"][0]["status"] == "note"


def test_any_answer_shows_that_the_hub_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with loopback_hub() as hub:
        hub.faults.append(Fault("/", "status:403", method="HEAD"))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        assert [f.status for f in doctor._network(False)] == ["ok"]
        assert [request.status for request in hub.log] == [403]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    (finding,) = doctor._network(False)
    assert finding.status == "note"
    assert finding.exit_code == 0


def test_the_extras_are_those_of_the_package() -> None:
    tomllib = pytest.importorskip("tomllib")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {
        name: [line.split(">")[0] for line in lines]
        for name, lines in declared["optional-dependencies"].items()
        if name not in ("test", "dev")
    }
    assert {name: list(packages) for name, (_, packages) in doctor.EXTRAS.items()} == extras
    required = {line.split(">")[0] for line in declared["dependencies"]}
    assert set(doctor.PACKAGES) <= required
