"""From a subject in template space to its signals: cycle residuals and normalised images."""

from __future__ import annotations

from collections.abc import Mapping

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
    band_work,
    masked_residual,
    plain_residual,
    release_memory,
    run_within_memory,
)
from mmccd_cli.translation.slices import from_slices, to_slices
from mmccd_cli.translation.translators import Cycle
from mmccd_cli.weights.bundle import Bundle
from mmccd_cli.weights.rehearsal import LARGEST, overflown


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

        Raises:
            WeightsError: The networks overflow.
        """
        while True:
            try:
                values = self._signals(images, brain, config, advance=advance)
            except DeviceMemoryError:
                if not self.may_use_cpu or self.device.type == "cpu":
                    raise
                self._go_to_cpu()
                continue
            beyond = [name for name, v in values.items() if not np.abs(v).max() < LARGEST]
            if not beyond:
                return values
            if self.precision == "fp32":
                raise overflown(self.bundle, beyond[0].partition(":")[2])
            self.notes.append(f"{self.precision} overflowed; everything was computed in fp32")
            self.precision = "fp32"

    def _go_to_cpu(self) -> None:
        self.notes.append(
            f"The memory of {describe_device(self.device)} does not suffice for a single "
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
        for number, source in enumerate(config.sources):
            values[f"cycle:{source}"] = self._cycle_signal(
                source,
                images[source],
                brain,
                residual=config.residual,
                advance=_part_of(advance, number, len(config.sources)),
            )
        return values

    def _cycle_signal(
        self,
        source: str,
        image: NDArray[np.float32],
        brain: NDArray[np.bool_],
        *,
        residual: Residual,
        advance: Progress,
    ) -> NDArray[np.float32]:
        """(I, J, K) in robust standard deviations, positive where anomalous."""
        bundle, method = self.bundle.config, self.sampling.method
        if source not in self._cycles:
            self._cycles[source] = self.bundle.cycle(source, self.sampling, self.device)
        cycle, intensity = self._cycles[source], bundle.preprocessing.intensity
        sign = next(c.sign for c in bundle.cycles if c.source == source)
        # A sign that is not known cannot be kept.
        kind: Residual = "absolute" if residual == "signed" and sign == 0 else residual
        stride = int(np.lcm(bundle.unet.stride, bundle.denoiser.stride))
        stack = to_slices(image, brain, multiple=stride, fill=intensity.background)
        x, levels = torch.from_numpy(stack.data), torch.from_numpy(stack.levels)
        work = band_work(torch.from_numpy(stack.brain), self.sampling)
        done, total = 0, len(stack) if method == "cyclic-unet" else len(work.pairs)

        def count(passed: int) -> None:
            nonlocal done
            done += passed
            advance(done, total)

        def compute(execution: Execution) -> Tensor:
            if method == "cyclic-unet":
                return plain_residual(x, cycle, residual=kind, execution=execution)
            seed = self.sampling.seed
            errors, hidden = masked_residual(
                x, levels, work, cycle=cycle, seed=seed, residual=kind, execution=execution
            )
            return errors / hidden.clamp_min(1)

        batch = self.batch_size or choose_batch_size(
            self.device, x.shape[-2] * x.shape[-1], bundle.denoiser.base_channels
        )
        execution = Execution(
            self.device, batch_size=batch, autocast=PRECISIONS[self.precision], advance=count
        )
        errors = run_within_memory(compute, execution).numpy()
        values = errors / np.float32(intensity.scale ** (2 if kind == "squared" else 1))
        if kind == "signed":
            values = values * np.float32(sign)
        return from_slices(np.where(stack.brain, values, np.float32(0)), stack)


def _part_of(advance: Progress, number: int, parts: int) -> Progress:
    """Progress of one of several parts of the same size, as progress of the whole."""
    return lambda done, total: advance(number * total + done, parts * total)
