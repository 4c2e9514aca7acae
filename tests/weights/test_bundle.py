"""Bundles: what is written comes back, and everything that is not exactly right is refused."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import edit_index, replace_file, write_tiny_bundle
from safetensors.torch import load_file, save

from mmccd_cli.config import SamplingConfig
from mmccd_cli.errors import WeightsError
from mmccd_cli.weights import bundle as bundle_module
from mmccd_cli.weights.bundle import TEMPLATE, load_bundle, rewrite_bundle, verify_bundle
from mmccd_cli.weights.index import CARD, INDEX

NETWORK = "FLAIR-T2w.unet.safetensors"
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "tiny")


def test_what_is_written_comes_back(folder: Path) -> None:
    bundle = load_bundle(folder)
    verify_bundle(bundle)
    assert bundle.sources == ("FLAIR", "T2w")
    assert bundle.sha256 == hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()
    assert bundle.template.mask.any()
    assert all(image.dtype == np.float32 for image in bundle.template.images.values())


def test_each_method_loads_the_networks_it_needs(folder: Path) -> None:
    bundle = load_bundle(folder)
    x = torch.zeros(1, 1, 16, 16)
    for method in ("mmccd", "cyclic-unet"):
        cycle = bundle.cycle("FLAIR", SamplingConfig(method=method), torch.device("cpu"))
        assert cycle.backward(x).shape == x.shape
        assert (cycle.forward is None) == (method == "mmccd")
    with pytest.raises(WeightsError, match="no cycle for T1w"):
        bundle.cycle("T1w", SamplingConfig(), torch.device("cpu"))


def test_networks_of_one_architecture_share_nothing(folder: Path) -> None:
    bundle = load_bundle(folder)
    names = [name for name in bundle.files if name.endswith(".unet.safetensors")]
    one, other = (bundle.read_network(name) for name in names[:2])
    before = [value.clone() for value in other.state_dict().values()]
    with torch.no_grad():
        for value in one.parameters():
            value.fill_(7)
    assert all(a.equal(b) for a, b in zip(before, other.state_dict().values(), strict=True))
    assert not any(a is b for a, b in zip(one.modules(), other.modules(), strict=True))


def test_rewriting_keeps_networks_and_replaces_the_card(folder: Path) -> None:
    before = (folder / NETWORK).read_bytes()
    bundle = load_bundle(folder)
    rewrite_bundle(bundle, bundle.config, "# Another card\n")
    again = load_bundle(folder)
    verify_bundle(again)
    assert again.config == bundle.config
    assert (folder / NETWORK).read_bytes() == before
    assert (folder / CARD).read_text() == "# Another card\n"


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.update(format=2),
        lambda d: d.update(extra=1),
        lambda d: d.pop("files"),
        lambda d: d["bundle"].update(run="import os"),
        lambda d: d["bundle"]["unet"].update(layers=3),
        lambda d: d["bundle"]["unet"].update(norm_groups=0),
        lambda d: d["bundle"]["unet"].update(channel_multipliers=[0, 0]),
        lambda d: d["bundle"]["unet"].update(channel_multipliers=[1, -2]),
        lambda d: d["bundle"]["unet"].update(in_channels=3),
        lambda d: d["bundle"]["unet"].update(base_channels=2**39),
        lambda d: d["bundle"]["unet"].update(residual_blocks=10**6),
        lambda d: d["bundle"]["unet"].update(middle_attention=True, attention_heads=0),
        lambda d: d["bundle"]["denoiser"].update(time_conditioned=False),
        lambda d: d["bundle"]["template"].update(shape=[1024, 1024, 1024]),
        lambda d: d["bundle"]["template"].update(affine=[0.0] * 16),
        lambda d: d["bundle"]["template"]["affine"].__setitem__(3, 1e6),
        lambda d: d["bundle"]["template"]["affine"].__setitem__(11, -2e3),
        lambda d: d["bundle"]["cycles"].clear(),
        lambda d: d["bundle"].update(name=7),
        lambda d: d["files"].pop(TEMPLATE),
        lambda d: d["files"].update({"../outside": {"sha256": "0" * 64, "size": 1}}),
        lambda d: d["files"].update({"/etc/passwd": {"sha256": "0" * 64, "size": 1}}),
        lambda d: d["files"].update({"a/b": {"sha256": "0" * 64, "size": 1}}),
        lambda d: d["files"].update({".hidden": {"sha256": "0" * 64, "size": 1}}),
        lambda d: d["files"].update({INDEX: {"sha256": "0" * 64, "size": 1}}),
        lambda d: d["files"].update({"x": {"sha256": "0" * 64, "size": True}}),
        lambda d: d["files"].update({"x": {"sha256": "0" * 64, "size": 2**40}}),
        lambda d: d["files"].update({"x": {"sha256": "0" * 63 + "\n", "size": 1}}),
        lambda d: d["files"].update({f"f{i}": {"sha256": "0" * 64, "size": 1} for i in range(99)}),
    ],
)
def test_an_index_that_is_not_right_is_refused(folder: Path, edit: Edit) -> None:
    edit_index(folder, edit)
    with pytest.raises(WeightsError) as caught:
        load_bundle(folder)
    assert caught.value.exit_code == 4
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [b"", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": NaN}', b'{"format": 1e999}'],
)
def test_what_is_not_an_index_is_refused(folder: Path, raw: bytes) -> None:
    (folder / INDEX).write_bytes(raw)
    with pytest.raises(WeightsError):
        load_bundle(folder)


def test_an_index_of_endless_size_is_not_read(folder: Path) -> None:
    with (folder / INDEX).open("r+b") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(WeightsError, match="not a usable"):
        load_bundle(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nothing"):
        load_bundle(tmp_path / "nothing")


def test_a_changed_file_is_refused_with_both_hashes(folder: Path) -> None:
    raw = bytearray((folder / NETWORK).read_bytes())
    expected = hashlib.sha256(raw).hexdigest()
    raw[-1] ^= 1
    (folder / NETWORK).write_bytes(raw)
    with pytest.raises(WeightsError) as caught:
        verify_bundle(load_bundle(folder))
    cause = str(caught.value.cause)
    assert expected in cause
    assert hashlib.sha256(raw).hexdigest() in cause


@pytest.mark.parametrize("name", [NETWORK, TEMPLATE])
def test_a_header_that_lies_is_refused(folder: Path, name: str) -> None:
    raw = (folder / name).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length]
    lies = [
        (2**63).to_bytes(8, "little") + raw[8:],
        (length + 5).to_bytes(8, "little") + raw[8:],
        raw[:8] + header.replace(b'"shape":[', b'"shape":[9', 1) + raw[8 + length :],
        raw[: len(raw) // 2],
        b"\x80\x04cos\nsystem\n.",
        b"",
    ]
    for lie in lies:
        replace_file(folder, name, lie)
        with pytest.raises(WeightsError):
            verify_bundle(load_bundle(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(extra=torch.zeros(1)), "does not fit"),
        (lambda t: t.pop("stem.bias"), "does not fit"),
        (lambda t: t.update({"stem.bias": t["stem.bias"][:4].contiguous()}), "does not fit"),
        (lambda t: t.update({"stem.bias": torch.full_like(t["stem.bias"], torch.inf)}), "finite"),
        (lambda t: t.update({"stem.bias": t["stem.bias"].to(torch.int8)}), "neither"),
        (lambda t: t.update({"stem.bias": t["stem.bias"].bfloat16()}), "neither"),
    ],
)
def test_weights_of_another_network_are_refused(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    tensors = load_file(folder / NETWORK)
    change(tensors)
    replace_file(folder, NETWORK, save(tensors))
    with pytest.raises(WeightsError, match=message):
        verify_bundle(load_bundle(folder))


def test_a_small_file_that_claims_a_large_network_costs_no_memory(folder: Path) -> None:
    """The widest architecture that is allowed would take more than ten gigabytes."""
    large = {"base_channels": 4096, "channel_multipliers": [1] * 8, "residual_blocks": 8}
    edit_index(folder, lambda d: d["bundle"]["unet"].update(large))
    with pytest.raises(WeightsError, match="does not fit the architecture"):
        verify_bundle(load_bundle(folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.pop("mask"),
        lambda a: a.update(mask=np.zeros_like(a["mask"])),
        lambda a: a.update(mask=a["mask"][:-1]),
        lambda a: a.update(FLAIR=a["FLAIR"].astype(np.float32)),
        lambda a: [a.pop(name) for name in list(a) if name != "mask"],
    ],
)
def test_a_template_that_does_not_fit_is_refused(
    folder: Path, change: Callable[[dict[str, np.ndarray]], object]
) -> None:
    from safetensors.numpy import load_file as load_arrays
    from safetensors.numpy import save as save_arrays

    arrays = load_arrays(folder / TEMPLATE)
    change(arrays)
    raw = save_arrays({k: np.ascontiguousarray(v) for k, v in arrays.items()})
    replace_file(folder, TEMPLATE, raw)
    with pytest.raises(WeightsError, match="not a usable"):
        load_bundle(folder)


def test_a_template_has_its_images_in_one_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file gives them in any order, and what takes the first image must not differ."""
    read, orders = bundle_module.load_arrays, []
    for backwards in (False, True):

        def in_order(raw: bytes, backwards: bool = backwards) -> dict[str, Any]:
            return dict(sorted(read(raw).items(), reverse=backwards))

        monkeypatch.setattr(bundle_module, "load_arrays", in_order)
        orders.append(list(load_bundle(folder).template.images))
    assert orders[0] == orders[1]
    assert len(orders[0]) > 1
