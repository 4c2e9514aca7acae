"""One count of all network passes, of our networks and of the comparison models alike."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from mmccd_cli.config import UNetConfig
from mmccd_cli.evaluation.comparison.networks import AutoEncoder
from mmccd_cli.translation.unet import UNet

Kind = tuple[UNetConfig | None, int, int]
"""The architecture, None for an autoencoder, and the height and width of the slices."""


@dataclass
class PassCount:
    """The network passes that were made.

    Attributes:
        slices: Kind of pass -> slices that passed.
        batches: The same -> calls.
    """

    slices: Counter[Kind] = field(default_factory=Counter)
    batches: Counter[Kind] = field(default_factory=Counter)

    @property
    def passes(self) -> int:
        """Slices that went through networks, each time counted."""
        return sum(self.slices.values())


@contextmanager
def counting_passes() -> Iterator[PassCount]:
    """Count every pass through a network of this project while the block runs, in any thread."""
    count, counting = PassCount(), threading.Lock()

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        if isinstance(module, (UNet, AutoEncoder)):
            slices, _, height, width = inputs[0].shape
            kind = (module.config if isinstance(module, UNet) else None, height, width)
            with counting:
                count.slices[kind] += slices
                count.batches[kind] += 1

    handle = register_module_forward_hook(add)
    try:
        yield count
    finally:
        handle.remove()
