"""Signals of a subject: signs, units, the outside, and the second pass, with networks by hand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmccd_cli.anomaly.atlas import RARER_IN_GREY
from mmccd_cli.config import (
    MODALITIES,
    CycleConfig,
    DiffusionConfig,
    IntensityConfig,
    PreprocessingConfig,
    SamplingConfig,
    ScoreConfig,
    UNetConfig,
)
from mmccd_cli.errors import DeviceMemoryError, UsageError
from mmccd_cli.signals import SignalModel
from mmccd_cli.template import NormalRange, Template
from mmccd_cli.translation.engine import LEFT_RIGHT, Execution
from mmccd_cli.translation.translators import Cycle
from mmccd_cli.weights.bundle import Bundle, BundleConfig, TemplateConfig

SHAPE = (24, 28, 6)
SCALE = 0.5
SAMPLING = SamplingConfig(band_width=8, band_stride=8)
FLAIR = ScoreConfig(
    modalities=("FLAIR",),
    weights={"cycle:FLAIR": 1.0},
    asymmetry_weight=0.0,
    median_mm=0.0,
    erosion_mm=0.0,
    threshold_rule="fixed",
    threshold_offset=1.0,
)


class HandMadeBundle(Bundle):
    """A bundle whose cycles are functions instead of networks; counts what is loaded."""

    def cycle(self, source: str, sampling: SamplingConfig, device: torch.device) -> Cycle:
        LOADED.append(source)
        return CYCLES[source]


LOADED: list[str] = []
CYCLES: dict[str, Cycle] = {}
PASSES: list[int] = []


def tissue(x: Tensor) -> Tensor:
    """What a network without lesions would say: healthy tissue is 0.5, the rest background."""
    return torch.where(x > -2.5, torch.full_like(x, 0.5), x)


def imagine(x: Tensor, seen: Tensor, condition_noise: Tensor, start_noise: Tensor) -> Tensor:
    PASSES.append(len(x))
    return tissue(x)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    LOADED.clear()
    PASSES.clear()
    perfect = Cycle(lambda x: x, forward=tissue, imagine=imagine)  # type: ignore[arg-type]
    CYCLES.update({"FLAIR": perfect, "T1w": perfect})


def bundle(sign: int = 1) -> HandMadeBundle:
    network = UNetConfig(base_channels=8, channel_multipliers=(1, 2))
    config = BundleConfig(
        name="by hand",
        version="0",
        cycles=(CycleConfig("FLAIR", "T2w", sign=sign), CycleConfig("T1w", "FLAIR", sign=-1)),
        unet=network,
        denoiser=replace(network, in_channels=2, time_conditioned=True),
        diffusion=DiffusionConfig(),
        preprocessing=PreprocessingConfig(IntensityConfig(scale=SCALE, background=-3.0)),
        sampling=SAMPLING,
        scores={"mmccd": (FLAIR,)},
        template=TemplateConfig(tuple(np.eye(4).ravel()), SHAPE),
    )
    template = Template({}, np.ones(SHAPE, dtype=bool), np.diag([2.0, 2.0, 2.0, 1.0]))
    return HandMadeBundle(config=config, template=template, sha256="", folder=Path())


def subject() -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
    """Brain of 0.5 in background of -3, with a spot 1.5 brighter and one 1.5 darker."""
    brain = np.zeros(SHAPE, dtype=bool)
    brain[3:21, 4:25, 1:5] = True
    image = np.where(brain, np.float32(0.5), np.float32(-3))
    image[6:9, 8:11, 2:4] = 2.0
    image[14:17, 15:18, 2:4] = -1.0
    return {"FLAIR": image, "T1w": image.copy(), "T2w": image + 1}, brain


BRIGHT = np.zeros(SHAPE, dtype=bool)
BRIGHT[6:9, 8:11, 2:4] = True
DARK = np.zeros(SHAPE, dtype=bool)
DARK[14:17, 15:18, 2:4] = True


def signals(
    config: ScoreConfig = FLAIR,
    sampling: SamplingConfig = SAMPLING,
    sign: int = 1,
    advance: Any = lambda done, total: None,
) -> dict[str, NDArray[np.float32]]:
    images, brain = subject()
    model = SignalModel(bundle(sign), sampling, torch.device("cpu"), batch_size=7)
    return model.signals(images, brain, config, advance=advance)


T1W = replace(FLAIR, modalities=("T1w",), weights={"cycle:T1w": 1.0})


@pytest.mark.parametrize("method", ["mmccd", "cyclic-unet"])
@pytest.mark.parametrize(
    ("sign", "residual", "bright", "dark"),
    [
        (1, "signed", 3.0, -3.0),
        (-1, "signed", -3.0, 3.0),
        (0, "signed", 3.0, 3.0),  # a sign that is not known cannot be kept
        (1, "absolute", 3.0, 3.0),
        (-1, "absolute", 3.0, 3.0),
        (1, "squared", 9.0, 9.0),
    ],
)
def test_signs_and_units(method: Any, sign: int, residual: Any, bright: float, dark: float) -> None:
    """A spot 1.5 off is 3 robust standard deviations of 0.5 off."""
    config, sampling = replace(FLAIR, residual=residual), replace(SAMPLING, method=method)
    signal = signals(config, sampling, sign)["cycle:FLAIR"]
    np.testing.assert_allclose(signal[BRIGHT], bright, rtol=1e-5)
    np.testing.assert_allclose(signal[DARK], dark, rtol=1e-5)
    np.testing.assert_allclose(signal[~BRIGHT & ~DARK], 0, atol=1e-6)


def test_what_is_dark_on_t1w_is_positive() -> None:
    signal = signals(T1W)["cycle:T1w"]
    assert (signal[DARK] > 2.9).all()
    assert (signal[BRIGHT] < -2.9).all()


def test_intensities_are_in_robust_standard_deviations_inside_the_brain() -> None:
    config = ScoreConfig(
        modalities=("FLAIR", "T2w"), weights={"cycle:FLAIR": 1.0, "intensity:T2w": 0.5}
    )
    values = signals(config)
    assert set(values) == {"cycle:FLAIR", "intensity:FLAIR", "intensity:T2w"}
    _, brain = subject()
    assert values["intensity:T2w"][10, 10, 1] == pytest.approx(3.0)
    for signal in values.values():
        assert signal.shape == SHAPE
        assert signal.dtype == np.float32
        assert not signal[~brain].any()


def test_bias_fields_are_taken_off_where_the_bundle_asks_for_it() -> None:
    """Of what is imaged only, and for all signals alike."""
    shape = (48, 56, 40)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    brain = x**2 + y**2 + z**2 < 0.8
    rng = np.random.default_rng(0)
    image = np.where(brain, SCALE * (y + 0.1 * rng.standard_normal(shape)), -3).astype(np.float32)
    image[:, :, 30:] = -3
    plain = bundle()
    normal = NormalRange(np.zeros(shape, np.float32), np.full(shape, SCALE / 2, np.float32))
    template = replace(plain.template, mask=np.ones(shape, dtype=bool), normal={"FLAIR": normal})
    found = []
    for degree in (None, 2):
        config = replace(plain.config, bias_field_degree=degree)
        model = SignalModel(
            replace(plain, config=config, template=template), SAMPLING, torch.device("cpu")
        )
        score = replace(FLAIR, weights={"atlas:FLAIR": 1.0, "intensity:FLAIR": 1.0})
        found.append(model.signals({"FLAIR": image}, brain, score))
    seen = brain & (np.arange(40) < 30)
    before, after = (values["intensity:FLAIR"] for values in found)
    assert before[seen].std() > 0.3
    assert after[seen].std() < 0.15
    np.testing.assert_array_equal(after[brain & ~seen], before[brain & ~seen])
    np.testing.assert_allclose(found[1]["atlas:FLAIR"][seen], after[seen] - 0.5, atol=1e-5)


class Sure(nn.Module):
    """A network of small foci that sees one everywhere."""

    config = UNetConfig(in_channels=15)

    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 1, *x.shape[2:]), 3.0)


def test_small_foci_are_rarer_in_grey_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HandMadeBundle, "network", lambda *_: Sure())
    t1w = np.full(SHAPE, SCALE, dtype=np.float32)
    t1w[:12] = -SCALE
    plain = bundle()
    template = replace(plain.template, normal={"T1w": NormalRange(t1w, np.ones_like(t1w))})
    images, brain = subject()
    config = replace(FLAIR, foci_weight=1.0)
    found = []
    for each in (plain, replace(plain, template=template)):
        model = SignalModel(each, SAMPLING, torch.device("cpu"))
        found.append(model.signals(images, brain, config)["foci:FLAIR"])
    without, with_atlas = found
    np.testing.assert_allclose(without, 3.0 * brain)
    np.testing.assert_allclose(with_atlas[12:], 3.0 * brain[12:])
    np.testing.assert_allclose(with_atlas[:12], (3.0 - RARER_IN_GREY) * brain[:12])


def test_only_the_cycles_that_count_are_loaded_and_each_once() -> None:
    images, brain = subject()
    model = SignalModel(bundle(), SAMPLING, torch.device("cpu"))
    config = ScoreConfig(
        modalities=("FLAIR", "T1w"), weights={"cycle:FLAIR": 1.0, "cycle:T1w": 0.0}
    )
    for _ in range(2):
        values = model.signals(images, brain, config)
    assert LOADED == ["FLAIR"]
    assert "cycle:T1w" not in values


def test_progress_reaches_its_end_and_passes_are_counted() -> None:
    """Brain of 18 x 21: three bands an axis, four slices, two cycles."""
    reports: list[tuple[int, int]] = []
    config = ScoreConfig(
        modalities=("FLAIR", "T1w"), weights={"cycle:FLAIR": 1.0, "cycle:T1w": 1.0}
    )
    signals(config, advance=lambda done, total: reports.append((done, total)))
    done = [d for d, _ in reports]
    assert done == sorted(done)
    assert reports[-1] == (48, 48)
    assert sum(PASSES) == 48
    assert {total for _, total in reports} == {48}
    plain = replace(SAMPLING, method="cyclic-unet")
    signals(sampling=plain, advance=lambda done, total: reports.append((done, total)))
    assert reports[-1] == (4, 4), "slices"


class OneSided(nn.Module):
    """Shifts what it sees towards one side."""

    config = UNetConfig(base_channels=8, channel_multipliers=(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : len(MODALITIES)].roll(1, dims=LEFT_RIGHT)


@pytest.mark.parametrize(
    ("kind", "method"),
    [("cycle", "mmccd"), ("cycle", "cyclic-unet"), ("restoration", "cyclic-unet")],
)
def test_a_mirrored_head_has_mirrored_signals(
    monkeypatch: pytest.MonkeyPatch, kind: str, method: str
) -> None:
    """Where that is wanted; a network that tells the sides apart shows where it is not."""
    monkeypatch.setattr(HandMadeBundle, "network", lambda *_: OneSided())
    one_sided = lambda x, *_: x.roll(1, dims=LEFT_RIGHT)  # noqa: E731
    CYCLES["FLAIR"] = Cycle(lambda x: x, forward=one_sided, imagine=one_sided)  # type: ignore[arg-type]
    images, brain = subject()
    sampling = replace(SAMPLING, method=method)  # type: ignore[arg-type]
    name = f"{kind}:FLAIR"
    for mirrored in ((), (kind,)):
        config = replace(FLAIR, weights={name: 1.0}, mirrored=mirrored)
        model = SignalModel(bundle(), sampling, torch.device("cpu"))
        found = model.signals({"FLAIR": images["FLAIR"]}, brain, config)[name]
        turned = np.ascontiguousarray(images["FLAIR"][::-1])
        again = model.signals({"FLAIR": turned}, brain[::-1].copy(), config)[name]
        assert found.any()
        assert np.allclose(found, again[::-1], atol=1e-4) == bool(mirrored)


def test_the_crop_is_a_multiple_for_both_networks() -> None:
    """A brain of any size fits: padding is background, and is cut off again."""
    sizes: list[tuple[int, ...]] = []

    def record(x: Tensor, *rest: Tensor) -> Tensor:
        sizes.append(tuple(x.shape[-2:]))
        return x

    CYCLES["FLAIR"] = Cycle(lambda x: x, imagine=record)  # type: ignore[arg-type]
    original = bundle()
    stem = replace(original.config.denoiser, pixel_unshuffle=3)
    odd = replace(original, config=replace(original.config, denoiser=stem))
    images, brain = subject()
    SignalModel(odd, SAMPLING, torch.device("cpu")).signals(images, brain, FLAIR)
    assert set(sizes) == {(18, 24)}


def test_too_many_steps_are_refused_before_anything_is_read() -> None:
    sampling = SamplingConfig(num_inference_steps=1001)
    with pytest.raises(UsageError, match="1000"):
        Bundle.cycle(bundle(), "FLAIR", sampling, torch.device("cpu"))


# What a device cannot do


class FakeDevice:
    """Says it is CUDA and lives on the CPU, so that the ways out can be walked without a GPU."""

    type = "cuda"

    def __str__(self) -> str:
        return "cuda"


def full_device(monkeypatch: pytest.MonkeyPatch, *, fits: int) -> list[str]:
    """A device that holds `fits` slices a pass; returns where passes are tried, in order."""
    monkeypatch.setattr("mmccd_cli.signals.choose_precision", lambda name, device: "fp16")
    monkeypatch.setattr("mmccd_cli.signals.describe_device", str)
    monkeypatch.setattr("mmccd_cli.signals.release_memory", lambda device: None)
    monkeypatch.setattr("mmccd_cli.translation.engine.release_memory", lambda device: None)
    tried: list[str] = []

    def compute(x: Tensor, *_: Any, execution: Execution, **__: Any) -> Tensor:
        tried.append(f"{execution.device.type} {execution.batch_size}")
        if execution.device.type == "cuda" and execution.batch_size > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.ones_like(x)

    monkeypatch.setattr("mmccd_cli.signals.plain_residual", compute)
    return tried


def plain_model(**options: Any) -> SignalModel:
    sampling = replace(SAMPLING, method="cyclic-unet")
    return SignalModel(bundle(), sampling, FakeDevice(), batch_size=4, **options)  # type: ignore[arg-type]


def test_a_small_device_is_used_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = full_device(monkeypatch, fits=1)
    model = plain_model(may_use_cpu=True)
    computed = model.compute(*subject(), FLAIR)
    assert tried == ["cuda 4", "cuda 2", "cuda 1"]
    assert not computed.place.notes


def test_the_cpu_takes_over_from_a_full_device(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = full_device(monkeypatch, fits=0)
    model = plain_model(may_use_cpu=True)
    for _ in range(2):  # once full, it is not tried again
        computed = model.compute(*subject(), FLAIR)
        (note,) = computed.place.notes
        assert note.startswith("The memory of cuda")
        assert (computed.place.device.type, computed.place.precision) == ("cpu", "fp32")
        assert computed.values["cycle:FLAIR"].any()
    assert tried == ["cuda 4", "cuda 2", "cuda 1", "cpu 4", "cpu 4"]


def test_a_device_that_was_named_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    full_device(monkeypatch, fits=0)
    with pytest.raises(DeviceMemoryError, match="single slice"):
        plain_model().signals(*subject(), FLAIR)


BRIGHTEST = 100.0
"""Of a scan that is too bright for half precision."""


def overflowing(monkeypatch: pytest.MonkeyPatch, wait: Any = lambda: None) -> list[Any]:
    """Networks that overflow on bright scans in half precision; returns the precisions tried."""
    seen: list[Any] = []

    def overflow(x: Tensor, *_: Any, execution: Execution, **__: Any) -> Tensor:
        seen.append(execution.autocast)
        beyond = execution.autocast is not None and x.max() >= BRIGHTEST
        if beyond:
            wait()
        return torch.full_like(x, torch.inf if beyond else 1.0)

    full_device(monkeypatch, fits=4)
    monkeypatch.setattr("mmccd_cli.signals.plain_residual", overflow)
    return seen


def bright_subject() -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
    images, brain = subject()
    images["FLAIR"][BRIGHT] = BRIGHTEST
    return images, brain


def test_half_precision_that_overflows_is_given_up_for_one_subject(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that no result depends on the subjects before it."""
    seen = overflowing(monkeypatch)
    model = plain_model()
    found = [model.compute(*scans, FLAIR) for scans in (subject(), bright_subject(), subject())]
    assert seen == [torch.float16, torch.float16, None, torch.float16]
    assert [computed.place.precision for computed in found] == ["fp16", "fp32", "fp16"]
    assert [len(computed.place.notes) for computed in found] == [0, 1, 0]
    assert "fp16 overflowed" in found[1].place.notes[0]
    assert np.isfinite(found[1].values["cycle:FLAIR"]).all()


def test_two_subjects_may_overflow_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    overflowing(monkeypatch, Barrier(2, timeout=30).wait)
    model = plain_model()
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(model.compute, *bright_subject(), FLAIR) for _ in range(2)]
    for computed in (each.result() for each in running):
        assert computed.place.precision == "fp32"
        assert len(computed.place.notes) == 1


def test_two_subjects_may_find_a_device_full_beside_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meet = Barrier(2, timeout=30).wait

    def compute(x: Tensor, *_: Any, execution: Execution, **__: Any) -> Tensor:
        if execution.device.type == "cuda":
            if execution.batch_size == 1:
                meet()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.ones_like(x)

    full_device(monkeypatch, fits=0)
    monkeypatch.setattr("mmccd_cli.signals.plain_residual", compute)
    model = plain_model(may_use_cpu=True)
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(model.compute, *subject(), FLAIR) for _ in range(2)]
    assert [len(each.result().place.notes) for each in running] == [1, 1]
    assert LOADED == ["FLAIR", "FLAIR"], "once for each device"


def test_a_batch_is_as_large_as_its_own_networks_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def choose(device: torch.device, pixels: int, channels: int) -> int:
        asked.append(channels)
        return 4

    monkeypatch.setattr("mmccd_cli.signals.choose_batch_size", choose)
    plain = bundle()
    wide = replace(plain.config.denoiser, base_channels=16)
    each = replace(plain, config=replace(plain.config, denoiser=wide))
    monkeypatch.setattr(HandMadeBundle, "network", lambda *_: Sure())
    config = replace(FLAIR, foci_weight=1.0)
    for method in ("mmccd", "cyclic-unet"):
        model = SignalModel(each, replace(SAMPLING, method=method), torch.device("cpu"))  # type: ignore[arg-type]
        model.signals(*subject(), config)
    assert asked == [Sure.config.base_channels, 16, Sure.config.base_channels, 8]


def test_a_device_too_full_for_the_networks_is_left_for_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others may fill a device between its choice and the first network that goes there."""
    tried = full_device(monkeypatch, fits=4)
    cycle = HandMadeBundle.cycle

    def loaded(self: HandMadeBundle, source: str, sampling: SamplingConfig, device: Any) -> Any:
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cycle(self, source, sampling, device)

    monkeypatch.setattr(HandMadeBundle, "cycle", loaded)
    model = plain_model(may_use_cpu=True)
    assert model.signals(*subject(), FLAIR)["cycle:FLAIR"].any()
    assert tried == ["cpu 4"]
    with pytest.raises(DeviceMemoryError, match="a network"):
        plain_model().signals(*subject(), FLAIR)
