"""Whether a bundle can do what it promises: its networks translate a slice of its template."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mmccd_cli.config import MODALITIES
from mmccd_cli.errors import WeightsError
from mmccd_cli.translation.foci import foci_input, with_neighbours
from mmccd_cli.translation.restoration import restoration_input
from mmccd_cli.translation.slices import to_slices
from mmccd_cli.translation.translators import Cycle
from mmccd_cli.weights.bundle import FOCI, RESTORATION, Bundle

LARGEST = 1e6
"""Values of an imagined slice, and of a signal, lie far below: they are standard deviations."""
_STEPS = 2
"""Steps of the diffusion that are tried; more show no more."""


def rehearse(bundle: Bundle) -> None:
    """Let every network that a score of the bundle needs work on one slice of the template.

    Raises:
        WeightsError: A network is missing or damaged, or gives values that are no image.
    """
    config = bundle.config
    steps = min(_STEPS, config.sampling.num_inference_steps)
    for method, scores in config.scores.items():
        sampling = replace(config.sampling, method=method, num_inference_steps=steps)  # type: ignore[arg-type]  # a key of scores is one of METHODS
        for source in dict.fromkeys(source for score in scores for source in score.sources):
            cycle = bundle.cycle(source, sampling, torch.device("cpu"))
            with torch.inference_mode():
                imagined = _translate(cycle, _middle_slice(bundle, source))
            if not float(imagined.abs().max()) < LARGEST:
                raise overflown(bundle, source)
    everything = [score for scores in config.scores.values() for score in scores]
    scans = torch.cat([_middle_slice(bundle, modality) for modality in MODALITIES], dim=1)
    all_shown = torch.ones(1, len(MODALITIES))
    inputs = {}
    if any(score.restored for score in everything):
        inputs[RESTORATION] = restoration_input(scans, all_shown)
    if any(score.has_foci for score in everything):
        inputs[FOCI] = foci_input(with_neighbours(scans), scans.flip(2), all_shown)
    for name, given in inputs.items():
        network = bundle.network(name, torch.device("cpu"))
        with torch.inference_mode():
            found = network(given)
        if not float(found.abs().max()) < LARGEST:
            raise overflown(bundle, ", ".join(MODALITIES))


def overflown(bundle: Bundle, source: str) -> WeightsError:
    """Return the error for networks whose weights are numbers, but whose values are none."""
    return WeightsError(
        f"The networks of the bundle {bundle.config.name} give values for {source} that no image "
        "has.",
        cause="Their weights are damaged, or were trained until they overflowed.",
        next_step="Use other --weights, or train these again.",
    )


def _middle_slice(bundle: Bundle, source: str) -> Tensor:
    """The template's slice with most brain; (1, 1, H, W)."""
    config, template = bundle.config, bundle.template
    stack = to_slices(
        template.images.get(source, template.mask.astype(np.float32)),
        template.mask,
        multiple=max(unet.stride for unet in config.architectures),
        fill=config.preprocessing.intensity.background,
    )
    largest = int(stack.brain.sum(axis=(1, 2, 3)).argmax())
    return torch.from_numpy(stack.data[largest : largest + 1])


def _translate(cycle: Cycle, x: Tensor) -> Tensor:
    """There and back; of a masked translator, one half is hidden."""
    if cycle.forward is not None:
        return cycle.backward(cycle.forward(x))
    assert cycle.imagine is not None  # a cycle has one of the two
    seen = torch.zeros_like(x, dtype=torch.bool)
    seen[..., : x.shape[-1] // 2] = True
    noise = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(0))
    return cycle.backward(cycle.imagine(x, seen, noise[0], noise[1]))
