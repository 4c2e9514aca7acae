"""From options to loaded weights on a device, for every command that needs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmccd_cli.cli.options import parse_count
from mmccd_cli.config import METHODS, PRESETS
from mmccd_cli.errors import UsageError

if TYPE_CHECKING:
    from mmccd_cli.api import Segmenter


@dataclass
class Loading:
    """Which weights, where, and how slices are imagined; loaded when first needed.

    Args:
        weights: What resolves to a bundle; None for the embedded one.
        offline: Whether the network must not be used.
        device: "auto" or a device's name.
        batch_size: "auto" or a number.
        threads: "auto" or a number.
        preset: A preset's name, or None for the bundle's own sampling.
        method: A method's name, or None for the preset's.
        cache_dir: Folder of downloaded weights, or None for the default.
        precision: "auto", "fp32", "bf16" or "fp16".
        sampling: Further fields of `SamplingConfig`; None leaves one as it is.

    Raises:
        UsageError: A value is none of those.
    """

    weights: str | None
    offline: bool
    device: str
    batch_size: str
    threads: str
    preset: str | None = None
    method: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    cache_dir: Path | None = None
    precision: str = "auto"

    def __post_init__(self) -> None:
        _check_known("--preset", self.preset, tuple(PRESETS))
        _check_known("--method", self.method, METHODS)
        self._batch_size = parse_count(self.batch_size, "--batch-size")
        self._threads = parse_count(self.threads, "--threads")

    def load(self) -> Segmenter:
        """Resolve and load the weights, and choose the device.

        Raises:
            WeightsError: There are no such weights, or they are damaged.
            ComputeError: The device cannot be used.
            UsageError: The sampling settings do not fit together.
        """
        import torch

        from mmccd_cli.api import Segmenter
        from mmccd_cli.translation.devices import available_threads

        torch.set_num_threads(self._threads or available_threads())
        return Segmenter.from_pretrained(
            self.weights,
            device=self.device,
            preset=self.preset,
            method=self.method,
            batch_size=self._batch_size,
            precision=self.precision,
            offline=self.offline,
            cache_dir=self.cache_dir,
            **self.sampling,
        )


def _check_known(option: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise UsageError(
            f"{option} {value} is not known.", next_step=f"Use {option} {' or '.join(known)}."
        )
