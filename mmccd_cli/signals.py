"""From a subject in template space to its signals: residuals, deviations, normalised images."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmccd_cli.anomaly.atlas import deviation, rarer_in_grey
from mmccd_cli.anomaly.symmetry import middle_of_template, other_side
from mmccd_cli.config import MODALITIES, SamplingConfig, ScoreConfig
from mmccd_cli.errors import DeviceMemoryError
from mmccd_cli.preprocessing.bias_field import remove_bias_field
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
    Turn,
    band_work,
    explaining_device,
    from_both_sides,
    masked_residual,
    plain_residual,
    release_memory,
    run_within_memory,
)
from mmccd_cli.translation.foci import foci_log_odds
from mmccd_cli.translation.restoration import restoration_residual
from mmccd_cli.translation.slices import SliceStack, from_slices, to_slices
from mmccd_cli.translation.translators import Cycle
from mmccd_cli.translation.unet import UNet
from mmccd_cli.weights.bundle import Bundle
from mmccd_cli.weights.rehearsal import LARGEST, overflown


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the networks compute, and in what arithmetic.

    Attributes:
        device: The device.
        precision: "fp32", "bf16" or "fp16".
        notes: What the user should know of how it came to this.
    """

    device: torch.device
    precision: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class ComputedSignals:
    """The signals of one subject, and how they were computed.

    Attributes:
        values: As `SignalModel.signals` returns them.
        place: Where, and in what arithmetic, this subject was computed.
    """

    values: dict[str, NDArray[np.float32]]
    place: Place


class SignalModel:
    """The networks of a bundle on a device; each is loaded when first needed, in any thread.

    A subject whose signals overflow is computed again in fp32, and no other subject with it. A
    device whose memory does not suffice is left for good.

    Args:
        bundle: The weights.
        sampling: How slices are imagined.
        device: Where.
        batch_size: Slices a pass; None chooses by free memory.
        precision: "auto", "fp32", "bf16" or "fp16"; see `choose_precision`.
        may_use_cpu: Whether the CPU takes over where the device's memory does not suffice for a
            single slice, because nobody asked for the device by name.

    Attributes:
        place: Where the next subject begins.
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
        self.place = Place(device=device, precision=choose_precision(precision, device))
        self.batch_size, self.may_use_cpu = batch_size, may_use_cpu
        self._cycles: dict[tuple[str, torch.device], Cycle] = {}
        self._networks: dict[tuple[str, torch.device], UNet] = {}
        self._loading = threading.Lock()

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
            atlas, "restoration:M" where it is restored and "cycle:S" for every source: (I, J, K)
            float32 in robust standard deviations, 0 outside the brain; and, where the score counts
            small foci, `ScoreConfig.foci_signal`: their log odds where above 0.

        Raises:
            WeightsError: The networks overflow.
        """
        return self.compute(images, brain, config, advance=advance).values

    def compute(
        self,
        images: Mapping[str, NDArray[np.float32]],
        brain: NDArray[np.bool_],
        config: ScoreConfig,
        *,
        advance: Progress = silent,
    ) -> ComputedSignals:
        """Compute the `signals` of a subject, and tell how; in any thread.

        Args:
            images: See `signals`, like all others.
            brain: See `signals`.
            config: See `signals`.
            advance: See `signals`.

        Raises:
            WeightsError: The networks overflow.
        """
        place = self.place
        while True:
            try:
                values = self._signals(images, brain, config, place=place, advance=advance)
            except DeviceMemoryError:
                if not self.may_use_cpu or place.device.type == "cpu":
                    raise
                place = self._leave(place.device)
                continue
            beyond = [name for name, v in values.items() if not np.abs(v).max() < LARGEST]
            if not beyond:
                return ComputedSignals(values=values, place=place)
            if place.precision == "fp32":
                raise overflown(self.bundle, beyond[0].partition(":")[2])
            note = f"{place.precision} overflowed; everything was computed in fp32"
            place = replace(place, precision="fp32", notes=(*place.notes, note))

    def load(self, config: ScoreConfig) -> None:
        """Read the networks that a score needs, unless they are there.

        Raises:
            WeightsError: There is no such network, or its file is damaged.
            ComputeError: The device stopped computing.
        """
        # What is to be done where memory does not suffice is decided when they are needed.
        device = self.place.device
        with suppress(DeviceMemoryError):
            for source in config.sources:
                self._cycle(source, device)
            if config.restored:
                self._network("restoration", device)
            if config.has_foci:
                self._network("foci", device)

    def _cycle(self, source: str, device: torch.device) -> Cycle:
        with self._loading, explaining_device(device, "a network"):
            if (source, device) not in self._cycles:
                self._cycles[source, device] = self.bundle.cycle(source, self.sampling, device)
            return self._cycles[source, device]

    def _leave(self, device: torch.device) -> Place:
        """Go on with the CPU, this subject and all that follow, where a device is too small."""
        with self._loading:
            if self.place.device == device:  # else a subject beside this one has left it
                note = (
                    f"The memory of {describe_device(device)} does not suffice for a single "
                    "slice; the CPU was used, which takes longer."
                )
                cpu = torch.device("cpu")
                self.place = Place(device=cpu, precision="fp32", notes=(note,))
            self._cycles = {key: c for key, c in self._cycles.items() if key[1] != device}
            self._networks = {key: n for key, n in self._networks.items() if key[1] != device}
            release_memory(device)
            return self.place

    def _signals(
        self,
        images: Mapping[str, NDArray[np.float32]],
        brain: NDArray[np.bool_],
        config: ScoreConfig,
        *,
        place: Place,
        advance: Progress,
    ) -> dict[str, NDArray[np.float32]]:
        """One attempt at `signals`, in one place."""
        scale = np.float32(self.bundle.config.preprocessing.intensity.scale)
        images = {m: self._without_bias_field(m, images[m], brain) for m in config.modalities}
        standardised = {
            m: np.where(brain, images[m] / scale, np.float32(0)) for m in config.modalities
        }
        values = {f"intensity:{modality}": image for modality, image in standardised.items()}
        for modality in config.compared:
            beyond = deviation(
                images[modality], self.bundle.template.normal[modality], self._sign(modality)
            )
            values[f"atlas:{modality}"] = np.where(brain, beyond / scale, np.float32(0))
        cycles = len(config.sources)
        parts = cycles + bool(config.restored) + config.has_foci
        if config.restored:
            done = _part_of(advance, 0, parts)
            values |= self._restoration_signals(
                standardised, brain, config, place=place, advance=done
            )
        if config.has_foci:
            done = _part_of(advance, parts - cycles - 1, parts)
            values[config.foci_signal] = self._foci_signal(
                standardised, brain, place=place, advance=done
            )
        for number, source in enumerate(config.sources, start=parts - cycles):
            done = _part_of(advance, number, parts)
            values[f"cycle:{source}"] = self._cycle_signal(
                source, images[source], brain, config=config, place=place, advance=done
            )
        return values

    def _without_bias_field(
        self, modality: str, image: NDArray[np.float32], brain: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """A normalised scan as bright as the atlas everywhere, where the bundle asks for that."""
        config, template = self.bundle.config, self.bundle.template
        normal, intensity = template.normal.get(modality), config.preprocessing.intensity
        if config.bias_field_degree is None or normal is None:
            return image
        imaged = brain & (image != np.float32(intensity.background))
        flat = remove_bias_field(
            image,
            imaged & template.mask,
            normal,
            degree=config.bias_field_degree,
            sign=self._sign(modality),
            unit=intensity.scale,
            spacing_mm=template.spacing_mm,
        )
        return np.where(imaged, flat, image)

    def _sign(self, modality: str) -> int:
        """1 where anomalies are bright in a modality, -1 where dark, 0 where they may be either."""
        cycles = self.bundle.config.cycles
        return next((cycle.sign for cycle in cycles if cycle.source == modality), 0)

    def _restoration_signals(
        self,
        inside: Mapping[str, NDArray[np.float32]],
        brain: NDArray[np.bool_],
        config: ScoreConfig,
        *,
        place: Place,
        advance: Progress,
    ) -> dict[str, NDArray[np.float32]]:
        """Signals of one pass over standardised scans, signed so that anomalies are positive."""
        network = self._network("restoration", place.device)
        stack, scans = _together(inside, brain, multiple=network.config.stride)
        shown, mirrored = _shown(inside), "restoration" in config.mirrored

        def compute(execution: Execution) -> Tensor:
            return from_both_sides(
                lambda turn: restoration_residual(network, turn(scans), shown, execution=execution),
                mirrored=mirrored,
            )

        steps, channels = len(stack) * (1 + mirrored), network.config.base_channels
        execution = self._execution(
            steps, scans.shape[-2:], channels=channels, place=place, advance=advance
        )
        residual = run_within_memory(compute, execution).numpy()
        values = {}
        for modality in config.restored:
            signed, sign = residual[:, [MODALITIES.index(modality)]], self._sign(modality)
            signed = np.abs(signed) if sign == 0 else np.float32(sign) * signed
            found = np.where(stack.brain, signed, np.float32(0))
            values[f"restoration:{modality}"] = from_slices(found, stack)
        return values

    def _foci_signal(
        self,
        inside: Mapping[str, NDArray[np.float32]],
        brain: NDArray[np.bool_],
        *,
        place: Place,
        advance: Progress,
    ) -> NDArray[np.float32]:
        """(I, J, K) log odds of small foci on standardised scans, 0 where they are below."""
        network = self._network("foci", place.device)
        others = {
            modality: other_side(
                image, brain, centre=self._middle, spacing_mm=self.bundle.template.spacing_mm
            )
            for modality, image in inside.items()
        }
        stack, scans = _together(inside, brain, multiple=network.config.stride)
        _, mirrored = _together(others, brain, multiple=network.config.stride)
        shown = _shown(inside)

        def compute(execution: Execution) -> Tensor:
            return foci_log_odds(
                network, scans, mirrored=mirrored, shown=shown, execution=execution
            )

        channels = network.config.base_channels
        execution = self._execution(
            len(stack), scans.shape[-2:], channels=channels, place=place, advance=advance
        )
        found = run_within_memory(compute, execution).numpy()
        volume = from_slices(np.where(stack.brain, found, np.float32(0)), stack)
        return np.maximum(volume - self._rarer_in_grey, np.float32(0))

    @cached_property
    def _rarer_in_grey(self) -> NDArray[np.float32] | np.float32:
        """(I, J, K) log odds by which small foci are rarer where the atlas has grey matter."""
        normal = self.bundle.template.normal.get("T1w")
        if normal is None:
            return np.float32(0)
        return rarer_in_grey(normal.mean / self.bundle.config.preprocessing.intensity.scale)

    @cached_property
    def _middle(self) -> float:
        """The plane between the sides of the template, and so of a subject that lies on it."""
        return middle_of_template(self.bundle.template)

    def _network(self, name: str, device: torch.device) -> UNet:
        """A network that sees all scans at once, loaded when first needed."""
        with self._loading, explaining_device(device, "a network"):
            if (name, device) not in self._networks:
                self._networks[name, device] = self.bundle.network(name, device)
            return self._networks[name, device]

    def _execution(
        self, steps: int, size: Sequence[int], *, channels: int, place: Place, advance: Progress
    ) -> Execution:
        """Where networks run on slices of this size, and how their progress becomes a share."""
        done = 0

        def count(passed: int) -> None:
            nonlocal done
            done += passed
            advance(done, steps)

        threads = torch.get_num_threads() if place.device.type == "cpu" else 1
        pixels = size[0] * size[1] * threads
        return Execution(
            place.device,
            batch_size=self.batch_size or choose_batch_size(place.device, pixels, channels),
            autocast=PRECISIONS[place.precision],
            advance=count,
            threads=threads,
        )

    def _cycle_signal(
        self,
        source: str,
        image: NDArray[np.float32],
        brain: NDArray[np.bool_],
        *,
        config: ScoreConfig,
        place: Place,
        advance: Progress,
    ) -> NDArray[np.float32]:
        """(I, J, K) in robust standard deviations, positive where anomalous."""
        bundle, method = self.bundle.config, self.sampling.method
        cycle, intensity = self._cycle(source, place.device), bundle.preprocessing.intensity
        sign, mirrored = self._sign(source), "cycle" in config.mirrored
        # A sign that is not known cannot be kept.
        kind: Residual = config.residual
        if kind == "signed" and sign == 0:
            kind = "absolute"
        stride = int(np.lcm(bundle.unet.stride, bundle.denoiser.stride))
        stack = to_slices(image, brain, multiple=stride, fill=intensity.background)
        x, levels = torch.from_numpy(stack.data), torch.from_numpy(stack.levels)
        inside = torch.from_numpy(stack.brain)
        plain = method == "cyclic-unet"
        steps = len(stack) if plain else len(band_work(inside, self.sampling).pairs)

        def compute(turn: Turn, execution: Execution) -> Tensor:
            if plain:
                return plain_residual(turn(x), cycle, residual=kind, execution=execution)
            work, seed = band_work(turn(inside), self.sampling), self.sampling.seed
            errors, hidden = masked_residual(
                turn(x), levels, work, cycle=cycle, seed=seed, residual=kind, execution=execution
            )
            return errors / hidden.clamp_min(1)

        def of_both(execution: Execution) -> Tensor:
            return from_both_sides(partial(compute, execution=execution), mirrored=mirrored)

        steps *= 1 + mirrored
        networks = (bundle.unet,) if plain else (bundle.unet, bundle.denoiser)
        channels = max(network.base_channels for network in networks)
        execution = self._execution(
            steps, x.shape[-2:], channels=channels, place=place, advance=advance
        )
        errors = run_within_memory(of_both, execution).numpy()
        values = errors / np.float32(intensity.scale ** (2 if kind == "squared" else 1))
        if kind == "signed":
            values = values * np.float32(sign)
        return from_slices(np.where(stack.brain, values, np.float32(0)), stack)


def _part_of(advance: Progress, number: int, parts: int) -> Progress:
    """Progress of one of several parts of the same size, as progress of the whole."""
    return lambda done, total: advance(number * total + done, parts * total)


def _together(
    images: Mapping[str, NDArray[np.float32]], brain: NDArray[np.bool_], *, multiple: int
) -> tuple[SliceStack, Tensor]:
    """One scan's stack of slices, and (N, M, H, W): those of all, 0 where there is none."""
    nothing = np.zeros(brain.shape, np.float32)
    stacks = [to_slices(images.get(m, nothing), brain, multiple=multiple) for m in MODALITIES]
    return stacks[0], torch.from_numpy(np.concatenate([stack.data for stack in stacks], axis=1))


def _shown(images: Mapping[str, NDArray[np.float32]]) -> Tensor:
    """(M,), 1 for each scan that is there."""
    return torch.tensor([float(modality in images) for modality in MODALITIES])
