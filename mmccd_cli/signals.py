"""From a subject in template space to its signals: cycle residuals and normalised images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmccd_cli.anomaly.atlas import deviation
from mmccd_cli.config import SamplingConfig, ScoreConfig
from mmccd_cli.errors import DeviceMemoryError
from mmccd_cli.progress import Progress, silent
from mmccd_cli.translation.devices import (
    PRECISIONS,
    choose_batch_size,
    choose_precision,
    describe_device,
)
from mmccd_cli.translation.engine import (
    Execution,
    Residual,
    Work,
    band_work,
    masked_residual,
    plain_residual,
    release_memory,
    run_within_memory,
)
from mmccd_cli.translation.slices import SliceStack, from_slices, to_slices
from mmccd_cli.translation.translators import Cycle
from mmccd_cli.weights.bundle import Bundle


class SignalModel:
    """The networks of a bundle on a device; each cycle is loaded when first needed.

    Args:
        bundle: The weights.
        sampling: How slices are imagined.
        device: Where.
        batch_size: Slices a pass; None chooses by free memory.
        precision: "auto", "fp32", "bf16" or "fp16"; see `choose_precision`.
        may_use_cpu: Whether the CPU takes over where the device's memory does not suffice for a
            single slice, because nobody asked for the device by name.

    Attributes:
        notes: What the user should know of how the device was used.
    """

    def __init__(
        self,
        bundle: Bundle,
        sampling: SamplingConfig,
        device: torch.device,
        *,
        batch_size: int | None = None,
        precision: str = "auto",
        may_use_cpu: bool = False,
    ) -> None:
        self.bundle, self.sampling = bundle, sampling
        self.device, self.batch_size = device, batch_size
        self.precision = choose_precision(precision, device)
        self.may_use_cpu = may_use_cpu
        self.notes: list[str] = []
        self._cycles: dict[str, Cycle] = {}

    def signals(
        self,
        images: Mapping[str, NDArray[np.float32]],
        brain: NDArray[np.bool_],
        config: ScoreConfig,
        *,
        advance: Progress = silent,
    ) -> dict[str, NDArray[np.float32]]:
        """Compute what a score combines.

        Args:
            images: Modality -> (I, J, K) normalised, on the template grid.
            brain: (I, J, K) bool.
            config: Says which signals are wanted.
            advance: Called with the pairs of slice and band done, and their number in all.

        Returns:
            "intensity:M" for every modality of the score, "atlas:M" where it is compared with the
            atlas and "cycle:S" for every source: (I, J, K) float32 in robust standard
            deviations, 0 outside the brain.
        """
        while True:
            try:
                values = self._signals(images, brain, config, advance=advance)
            except DeviceMemoryError:
                if not self.may_use_cpu or self.device.type == "cpu":
                    raise
                self._go_to_cpu()
                continue
            if self.precision == "fp32" or _all_finite(values):
                return values
            self.notes.append(f"{self.precision} overflowed; everything was computed in fp32")
            self.precision = "fp32"

    def _go_to_cpu(self) -> None:
        self.notes.append(
            f"Warning: the memory of {describe_device(self.device)} does not suffice for a single "
            "slice; the CPU was used, which takes longer."
        )
        self._cycles.clear()
        release_memory(self.device)
        self.device, self.precision = torch.device("cpu"), "fp32"

    def _signals(
        self,
        images: Mapping[str, NDArray[np.float32]],
        brain: NDArray[np.bool_],
        config: ScoreConfig,
        *,
        advance: Progress,
    ) -> dict[str, NDArray[np.float32]]:
        """One attempt at `signals`."""
        scale = np.float32(self.bundle.config.preprocessing.intensity.scale)
        values = {
            f"intensity:{modality}": np.where(brain, images[modality] / scale, np.float32(0))
            for modality in config.modalities
        }
        for modality in config.compared:
            sign = next((c.sign for c in self.bundle.config.cycles if c.source == modality), 0)
            beyond = deviation(images[modality], self.bundle.template.normal[modality], sign)
            values[f"atlas:{modality}"] = np.where(brain, beyond / scale, np.float32(0))
        runs = {
            source: self._run(source, images[source], brain, residual=config.residual)
            for source in config.sources
        }
        total, done = sum(run.count for run in runs.values()), 0

        def count(pairs: int) -> None:
            nonlocal done
            done += pairs
            advance(done, total)

        for source, run in runs.items():
            values[f"cycle:{source}"] = run.residual(count)
        return values

    @property
    def _stride(self) -> int:
        """Multiple that slices must have for every network of the bundle."""
        return int(np.lcm(self.bundle.config.unet.stride, self.bundle.config.denoiser.stride))

    def _run(
        self,
        source: str,
        image: NDArray[np.float32],
        brain: NDArray[np.bool_],
        *,
        residual: Residual,
    ) -> _CycleRun:
        bundle = self.bundle.config
        if source not in self._cycles:
            self._cycles[source] = self.bundle.cycle(source, self.sampling, self.device)
        intensity = bundle.preprocessing.intensity
        stack = to_slices(image, brain, multiple=self._stride, fill=intensity.background)
        batch = self.batch_size or choose_batch_size(
            self.device, int(np.prod(stack.data.shape[-2:])), bundle.denoiser.base_channels
        )
        sign = next(c for c in bundle.cycles if c.source == source).sign
        return _CycleRun(
            networks=self._cycles[source],
            stack=stack,
            sampling=self.sampling,
            # A sign that is not known cannot be kept.
            kind="absolute" if residual == "signed" and sign == 0 else residual,
            sign=sign,
            scale=intensity.scale,
            execution=Execution(self.device, batch, PRECISIONS[self.precision]),
        )


def _all_finite(values: Mapping[str, NDArray[np.float32]]) -> bool:
    return all(bool(np.isfinite(signal).all()) for signal in values.values())


@dataclass(frozen=True, eq=False, kw_only=True)
class _CycleRun:
    """One source's cycle over one subject.

    Attributes:
        networks: The cycle, on the device.
        stack: The subject's slices.
        sampling: How they are imagined.
        kind: How errors count.
        sign: 1 where anomalies are brighter than imagined, -1 darker, 0 either way.
        scale: One robust standard deviation in the slices' unit.
        execution: Device, batch size and precision.
    """

    networks: Cycle
    stack: SliceStack
    sampling: SamplingConfig
    kind: Residual
    sign: int
    scale: float
    execution: Execution

    @property
    def count(self) -> int:
        """Pairs of slice and band, or slices where no band is hidden."""
        return len(self.stack) if self.sampling.method == "cyclic-unet" else len(self._work.pairs)

    @property
    def _work(self) -> Work:
        return band_work(torch.from_numpy(self.stack.brain), self.sampling)

    def residual(self, advance: Callable[[int], None]) -> NDArray[np.float32]:
        """(I, J, K) in robust standard deviations, positive where anomalous."""
        compute = self._plain if self.sampling.method == "cyclic-unet" else self._masked
        errors = run_within_memory(compute, replace(self.execution, advance=advance)).numpy()
        values = errors / np.float32(self.scale**2 if self.kind == "squared" else self.scale)
        if self.kind == "signed":
            values = values * np.float32(self.sign)
        return from_slices(np.where(self.stack.brain, values, np.float32(0)), self.stack)

    def _plain(self, execution: Execution) -> Tensor:
        x = torch.from_numpy(self.stack.data)
        return plain_residual(x, self.networks, residual=self.kind, execution=execution)

    def _masked(self, execution: Execution) -> Tensor:
        total, count = masked_residual(
            torch.from_numpy(self.stack.data),
            torch.from_numpy(self.stack.levels),
            self._work,
            self.networks,
            seed=self.sampling.seed,
            residual=self.kind,
            execution=execution,
        )
        return total / count.clamp_min(1)
