"""The published network can be expressed; names and results of a network are a file format.

`python tests/translation/test_unet.py` writes the golden file anew: only after a deliberate change
of the architecture, which makes every trained bundle unreadable.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmccd_cli.config import UNetConfig, from_dict, to_dict
from mmccd_cli.training.recipes import RECIPES
from mmccd_cli.translation.blocks import Pointwise
from mmccd_cli.translation.unet import UNet

GOLDEN = Path(__file__).parent / "golden" / "unet.json"

SMALL = UNetConfig(base_channels=4, channel_multipliers=(1, 2), norm_groups=2)
SMALL_DENOISER = replace(SMALL, in_channels=2, time_conditioned=True)
CONFIGS = {
    "plain": SMALL,
    "timed": replace(SMALL_DENOISER, pixel_unshuffle=2),
    "published": replace(
        SMALL_DENOISER,
        residual_blocks=2,
        attention_levels=(1,),
        middle_attention=True,
        attention_heads=2,
        resample="residual",
    ),
}


def settled(config: UNetConfig) -> UNet:
    """A network whose weights follow from a formula, none of them zero."""
    network = UNet(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            count = torch.arange(parameter.numel(), dtype=torch.float64)
            wave = (1 + 0.37 * count).sin() * (0.9 / max(1, parameter[0].numel()) ** 0.5)
            parameter.copy_(wave.reshape(parameter.shape))
    return network


def inputs(config: UNetConfig, n: int = 3, size: int = 16) -> tuple[Tensor, Tensor | None]:
    count = torch.arange(n * config.in_channels * size * size, dtype=torch.float64)
    x = (0.71 * count).sin().float().reshape(n, config.in_channels, size, size)
    return x, torch.tensor([0, 500, 999])[:n] if config.time_conditioned else None


def describe(config: UNetConfig) -> dict[str, Any]:
    network = settled(config)
    with torch.no_grad():
        output = network(*inputs(config))
    return {
        "config": to_dict(config),
        "state_dict": {
            name: " x ".join(map(str, value.shape)) for name, value in network.state_dict().items()
        },
        "output": [round(float(value), 5) for value in output.flatten()[::97]],
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_names_shapes_and_results_are_those_of_the_golden_file(name: str) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))["networks"][name]
    described = describe(from_dict(UNetConfig, golden["config"]))
    assert described["state_dict"] == golden["state_dict"]
    assert described["output"] == pytest.approx(golden["output"], abs=2e-4)
    assert max(map(abs, golden["output"])) > 0.01, "a golden output of zeros pins nothing"


def cost(config: UNetConfig) -> tuple[int, float]:
    """Parameters, and GFLOP of a pass at 128 x 128 (a multiplication and an addition are two)."""
    with torch.device("meta"):
        network = UNet(config)
        x = torch.zeros(1, config.in_channels, 128, 128)
        timesteps = torch.zeros(1) if config.time_conditioned else None
    with FlopCounterMode(display=False) as counter:
        network(x, timesteps)
    count = sum(parameter.numel() for parameter in network.parameters())
    return count, counter.get_total_flops() / 1e9


def test_the_published_denoiser() -> None:
    parameters, gflop = cost(RECIPES["paper"].denoiser)
    assert parameters == 6_600_257
    assert gflop == pytest.approx(10.9, abs=0.05)


@pytest.mark.parametrize("network", ["unet", "denoiser"])
def test_the_compact_networks_are_ten_times_cheaper(network: str) -> None:
    parameters, gflop = cost(getattr(RECIPES["compact"], network))
    assert parameters < 2_000_000, "seven of them in half precision are less than 30 MB"
    assert gflop == pytest.approx(1.09, abs=0.05)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_equals_its_elements_alone(name: str) -> None:
    network = settled(CONFIGS[name])
    x, timesteps = inputs(CONFIGS[name])
    with torch.no_grad():
        together = network(x, timesteps)
        alone = [
            network(x[i : i + 1], None if timesteps is None else timesteps[i : i + 1])
            for i in range(len(x))
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_the_time_step_is_required_exactly_when_configured() -> None:
    x, timesteps = inputs(SMALL_DENOISER)
    with pytest.raises(ValueError, match="exactly when"):
        UNet(SMALL_DENOISER)(x)
    with pytest.raises(ValueError, match="exactly when"):
        UNet(SMALL)(x[:, :1], timesteps)


@pytest.mark.parametrize("name", ["timed", "published"])
def test_one_time_step_may_be_that_of_all_slices(name: str) -> None:
    network = settled(CONFIGS[name])
    x, _ = inputs(CONFIGS[name], n=3)
    with torch.no_grad():
        together, alone = (network(x, torch.full((n,), 700)) for n in (1, 3))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_pointwise_convolution_is_that_of_torch(layout: torch.memory_format) -> None:
    ours, x = Pointwise(6, 5), torch.randn(2, 6, 7, 9).to(memory_format=layout)
    expected = nn.Conv2d.forward(ours, x)
    with torch.inference_mode():
        found = ours(x)
    torch.testing.assert_close(found, expected.detach())
    assert found.is_contiguous(memory_format=layout)
    assert ours(x).requires_grad


@pytest.mark.parametrize("name", ["timed", "published"])
def test_the_time_step_matters_to_each_sample_on_its_own(name: str) -> None:
    network = settled(CONFIGS[name])
    x, _ = inputs(CONFIGS[name], n=2)
    with torch.no_grad():
        before = network(x, torch.tensor([10, 10]))
        after = network(x, torch.tensor([10, 900]))
    torch.testing.assert_close(before[0], after[0])
    assert (before[1] - after[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("config", "height", "width"),
    [(SMALL, 15, 16), (SMALL, 16, 17), (replace(SMALL, pixel_unshuffle=2), 16, 18)],
)
def test_sizes_that_are_no_multiple_are_refused(
    config: UNetConfig, height: int, width: int
) -> None:
    with pytest.raises(ValueError, match=f"multiples of {config.stride}"):
        UNet(config)(torch.zeros(1, 1, height, width))


def test_an_untrained_network_says_zero_also_for_the_smallest_oblong_slice() -> None:
    """Its head starts at zero, so that training starts from the mean and not from noise."""
    config = replace(SMALL, pixel_unshuffle=2, out_channels=3)
    output = UNet(config)(torch.randn(2, 1, 4, 12))
    assert output.shape == (2, 3, 4, 12)
    assert not output.any()


def test_every_parameter_learns() -> None:
    """A parameter without a gradient would be dead weight, and break distributed training."""
    for config in CONFIGS.values():
        network = settled(config)
        network(*inputs(config)).square().sum().backward()
        idle = [n for n, p in network.named_parameters() if p.grad is None]
        assert not idle


if __name__ == "__main__":
    made = "python tests/translation/test_unet.py: weights and input by the formulas there"
    networks = {name: describe(config) for name, config in CONFIGS.items()}
    GOLDEN.write_text(json.dumps({"made": made, "networks": networks}, indent=1) + "\n")
