"""Bundles: networks, template, calibration and provenance in one folder of safetensors and JSON.

| file                        | holds                                                          |
|-----------------------------|----------------------------------------------------------------|
| `bundle.json`               | `BundleConfig`, and size and SHA-256 of every other file       |
| `SOURCE-TARGET.KIND.safetensors` | one translator's weights (float16 or float32)             |
| `restoration.safetensors`   | the restoration network's weights                              |
| `foci.safetensors`          | the weights of the network of small foci                       |
| `template.safetensors`      | brain mask; mean image, and `normal.mean.M` and                |
|                             | `normal.spread.M`, a modality; all (I, J, K) uint8             |
| `README.md`                 | the model card                                                 |

Nothing in a bundle is ever executed, and nothing that is not listed is read. torch is imported only
where networks are: a scan can be prepared for them meanwhile.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from mmccd_cli.config import (
    CHECKED,
    METHODS,
    CycleConfig,
    Degree,
    DiffusionConfig,
    FociConfig,
    Number,
    PreprocessingConfig,
    RestorationConfig,
    SamplingConfig,
    ScoreConfig,
    UNetConfig,
    from_dict,
    to_dict,
)
from mmccd_cli.errors import DataError, UsageError, WeightsError
from mmccd_cli.files import remove_leftovers, write_all_atomically
from mmccd_cli.template import NormalRange, Quantisation, Template, transform_points
from mmccd_cli.weights.index import (
    CARD,
    FORMAT,
    INDEX,
    BundleIndex,
    FileEntry,
    check_file,
    not_a_bundle,
    read_checked,
    read_index,
)

if TYPE_CHECKING:
    import torch

    from mmccd_cli.translation.translators import Cycle
    from mmccd_cli.translation.unet import UNet

N = TypeVar("N", bound="torch.nn.Module")

TEMPLATE = "template.safetensors"
MEAN, SPREAD = "normal.mean", "normal.spread"
SPREADS = Quantisation(minimum=0.0, step=4.0 / 255)


_MIN_BRAIN_LITRES, _MAX_BRAIN_LITRES = 0.01, 10.0
_MAX_FROM_ORIGIN_MM = 1000.0
"""The origin of every common space lies in or near the head."""

RESTORATION, FOCI = "restoration", "foci"
"""Names of the networks that see all scans at once."""
NETWORK_FILES = (
    ".unet.safetensors",
    ".diffusion.safetensors",
    f"{RESTORATION}.safetensors",
    f"{FOCI}.safetensors",
)
"""How the names of networks' files end."""

Length = Annotated[int, Field(ge=1, le=1024)]


@checked_dataclass(frozen=True, config=CHECKED)
class TemplateConfig:
    """Where the template lies and how its images are stored.

    Attributes:
        affine: 16 numbers, row by row: voxel index to RAS+ mm; axis aligned, RAS+.
        shape: Voxels along each axis.
        space: Name of the space.
    """

    affine: Annotated[tuple[Number, ...], Field(min_length=16, max_length=16)]
    shape: tuple[Length, Length, Length]
    space: str = "unknown"


@checked_dataclass(frozen=True, kw_only=True, config=CHECKED)
class BundleConfig:
    """All of a bundle but its arrays.

    Attributes:
        name: Name of the bundle.
        version: Version of these weights.
        cycles: One cycle for each source modality.
        unet: Architecture of the plain networks.
        denoiser: Architecture of the masked conditional diffusion networks.
        diffusion: Their noise schedule.
        restoration: The restoration network; None where the bundle has none.
        foci: The network of small foci; None where the bundle has none.
        bias_field_degree: Degree of the polynomial that is taken off each scan where it differs
            smoothly from the atlas; None leaves scans as they are.
        preprocessing: How scans become slices.
        sampling: Default sampling.
        scores: Calibrated score of each set of modalities and method, the preferred first.
        template: Geometry of the training space.
        training: Recipe and provenance of the training, for people.
        calibration: How and on whom the scores were calibrated, for people.
        licence: Licence of the weights.
        intended_use: What the weights are for.
    """

    name: str
    version: str
    cycles: tuple[CycleConfig, ...]
    unet: UNetConfig
    denoiser: UNetConfig
    diffusion: DiffusionConfig
    preprocessing: PreprocessingConfig
    sampling: SamplingConfig
    scores: dict[str, tuple[ScoreConfig, ...]]
    template: TemplateConfig
    restoration: RestorationConfig | None = None
    foci: FociConfig | None = None
    bias_field_degree: Degree | None = None
    training: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    licence: str = "unknown"
    intended_use: str = "Research use only."

    @property
    def architectures(self) -> tuple[UNetConfig, ...]:
        """Architectures of all its networks."""
        others = [part.unet for part in (self.restoration, self.foci) if part is not None]
        return (self.unet, self.denoiser, *others)

    def __post_init__(self) -> None:
        sources = [cycle.source for cycle in self.cycles]
        if not sources or len(set(sources)) != len(sources):
            raise ValueError("a bundle needs cycles, one for each source modality")
        if self.sampling.num_inference_steps > self.diffusion.num_train_timesteps:
            raise ValueError("sampling takes more steps than the schedule of its diffusion has")
        if self.sampling.method not in self.scores:
            raise ValueError(f"scores lacks {self.sampling.method!r}, the method of sampling")
        for method, scores in self.scores.items():
            if method not in METHODS or not scores:
                raise ValueError(f"scores holds an unknown or empty method {method!r}")
            for score in scores:
                missing = sorted(set(score.sources) - set(sources))
                if missing:
                    raise ValueError(f"a score needs the cycle of {missing}, which is not there")
                if score.restored and self.restoration is None:
                    raise ValueError("a score needs a restoration network, which is not there")
                if score.has_foci and self.foci is None:
                    raise ValueError("a score needs a network of small foci, which is not there")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A loaded and checked bundle.

    Attributes:
        config: Its configuration.
        template: Its template.
        sha256: Hash of `bundle.json`, which holds the hashes of all other files.
        folder: Where it was loaded from.
        files: Name -> hash and bytes of every other file.
    """

    config: BundleConfig
    template: Template
    sha256: str
    folder: Path
    files: dict[str, FileEntry] = field(repr=False, default_factory=dict)

    @property
    def template_sha256(self) -> str | None:
        """Hash of the template: where it is the same, results lie in one space."""
        return self.files[TEMPLATE].sha256 if TEMPLATE in self.files else None

    @property
    def sources(self) -> tuple[str, ...]:
        """Modalities that the bundle has a cycle for."""
        return tuple(cycle.source for cycle in self.config.cycles)

    def choose_score(self, method: str, modalities: tuple[str, ...]) -> ScoreConfig:
        """The first calibrated score of a method that fits the modalities at hand.

        Raises:
            DataError: There is none for them.
            WeightsError: There is none for the method.
        """
        scores = self.config.scores.get(method)
        if not scores:
            raise WeightsError(
                f"The bundle {self.config.name} is not calibrated for the method {method}.",
                next_step=f"Use --method {' or '.join(self.config.scores)}, or other --weights.",
            )
        for candidate in scores:
            if set(candidate.modalities) <= set(modalities):
                return candidate
        known = " or ".join("+".join(c.modalities) for c in scores)
        raise DataError(
            f"The modalities {', '.join(modalities) or '(none)'} do not suffice.",
            cause=f"The bundle {self.config.name} is calibrated for {known}.",
            next_step="Add one of these modalities, or choose other --weights.",
        )

    def check_steps(self, sampling: SamplingConfig) -> None:
        """Refuse more steps than the schedule of the diffusion has.

        Raises:
            UsageError: There are more.
        """
        limit = self.config.diffusion.num_train_timesteps
        if sampling.method == "mmccd" and sampling.num_inference_steps > limit:
            raise UsageError(
                f"{sampling.num_inference_steps} steps are more than the {limit} of the "
                f"schedule of the bundle {self.config.name}.",
                next_step=f"Use 1 to {limit} steps.",
            )

    def cycle(self, source: str, sampling: SamplingConfig, device: torch.device) -> Cycle:
        """Load the networks of one source's cycle that a method needs.

        Raises:
            WeightsError: The bundle has no such cycle or network, or a file is damaged.
            UsageError: More steps than its schedule has.
        """
        from mmccd_cli.translation.schedule import Schedule
        from mmccd_cli.translation.translators import Cycle, MaskedTranslator, network_name

        self.check_steps(sampling)
        config = next((c for c in self.config.cycles if c.source == source), None)
        if config is None:
            raise WeightsError(
                f"The bundle {self.config.name} has no cycle for {source}.",
                cause=f"It has cycles for {', '.join(self.sources)}.",
            )
        backward = self.network(network_name("unet", config.target, source), device)
        if sampling.method == "cyclic-unet":
            forward = self.network(network_name("unet", source, config.target), device)
            return Cycle(backward, forward=forward)
        denoiser = self.network(network_name("diffusion", source, config.target), device)
        schedule = Schedule.from_config(self.config.diffusion)
        translator = MaskedTranslator(denoiser, schedule, sampling.num_inference_steps)
        return Cycle(backward, imagine=translator)

    def check_networks(self) -> None:
        """Try that the networks could be built; nothing of them is read.

        Raises:
            WeightsError: One of the architectures is none.
        """
        for unet in self.config.architectures:
            try:
                _shapes(unet)
            except (ValueError, TypeError, RuntimeError, ArithmeticError, AssertionError) as error:
                reason = f"an architecture cannot be built: {error}"
                raise not_a_bundle(self.folder, reason) from error

    def network(self, name: str, device: torch.device) -> UNet:
        """Load one network.

        Args:
            name: `RESTORATION`, `FOCI` or what `network_name` returns.
            device: Where it goes.

        Raises:
            WeightsError: The bundle has none of this name, or its file is damaged.
        """
        import torch

        file = f"{name}.safetensors"
        if file not in self.files:
            raise WeightsError(f"The bundle {self.config.name} has no network {name}.")
        network = self.read_network(file)
        network.eval().to(device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs
        return network

    def read_network(self, file: str) -> UNet:
        """Read one network's file.

        Raises:
            WeightsError: It is not the file that the bundle lists, or not such a network.
        """
        raw = read_checked(self.folder, file, self.files[file])
        return _load_strictly(self._architecture(file), raw, self.folder / file)

    def _architecture(self, file: str) -> UNetConfig:
        of_all = {RESTORATION: self.config.restoration, FOCI: self.config.foci}
        found = of_all.get(file.removesuffix(".safetensors"))
        if found is not None:
            return found.unet
        return self.config.denoiser if file.split(".")[-2] == "diffusion" else self.config.unet


def load_bundle(folder: Path, *, uncalibrated: bool = False, unchecked: bool = False) -> Bundle:
    """Read a bundle's configuration and template; networks are read when a cycle is asked for.

    Args:
        folder: The bundle's folder.
        uncalibrated: Whether its scores may still be those that a training begins with, whose map
            means nothing.
        unchecked: Whether `Bundle.check_networks` is left to the caller, for it imports torch.

    Raises:
        WeightsError: Not a bundle, not calibrated, or any of its parts is damaged, unknown or
            contradictory.
    """
    index = read_index(folder)
    try:
        config = from_dict(BundleConfig, index.bundle, where="bundle")
        _check_architectures(config)
    except (ValueError, TypeError, KeyError, RecursionError, ArithmeticError) as error:
        raise not_a_bundle(folder, str(error)) from error
    if not (config.calibration or uncalibrated):
        raise WeightsError(
            f"The bundle {folder} is not calibrated, so its maps and masks would mean nothing.",
            cause="Its training ended before the calibration, or was told --calibrate-on none.",
            next_step="Run the same `mmccd train` again, with --force and without --calibrate-on "
            "none: it goes on from its checkpoints.",
        )
    template = _load_template(index, config.template)
    wanted = {m for scores in config.scores.values() for s in scores for m in s.compared}
    if missing := sorted(wanted - set(template.normal)):
        raise not_a_bundle(folder, f"its template lacks the normal range of {missing[0]}")
    bundle = Bundle(
        config=config, template=template, sha256=index.sha256, folder=folder, files=index.files
    )
    if not unchecked:
        bundle.check_networks()
    return bundle


def verify_bundle(bundle: Bundle) -> None:
    """Read every file of a bundle and compare size, hash and network shapes.

    Raises:
        WeightsError: The first file that does not fit.
    """
    for name, entry in bundle.files.items():
        if name.endswith(NETWORK_FILES):
            bundle.read_network(name)
        else:
            check_file(bundle.folder, name, entry)


def save_bundle(
    folder: Path,
    config: BundleConfig,
    *,
    template: Template,
    networks: dict[str, dict[str, torch.Tensor]],
    card: str,
) -> None:
    """Write a bundle, all of it or nothing; the networks' weights are stored as float16."""
    from safetensors.torch import save

    contents: dict[str, bytes] = {
        f"{name}.safetensors": save(
            {key: value.half().contiguous() for key, value in weights.items()}
        )
        for name, weights in networks.items()
    }
    contents[TEMPLATE] = save_arrays(_template_arrays(template))
    contents[CARD] = card.encode()
    write_index(folder, config, contents)


def write_index(folder: Path, config: BundleConfig, contents: dict[str, bytes]) -> None:
    """Write files of a bundle together with an index that lists them and only them."""
    files = {
        name: {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
        for name, raw in sorted(contents.items())
    }
    document = {"format": FORMAT, "bundle": to_dict(config), "files": files}
    index = (json.dumps(document, indent=1) + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    paths = {folder / name: raw for name, raw in contents.items()} | {folder / INDEX: index}
    remove_leftovers(*paths)
    write_all_atomically(paths)


def rewrite_bundle(
    bundle: Bundle, config: BundleConfig, card: str, *, out: Path | None = None
) -> None:
    """Replace configuration and card of a bundle, or of a copy of it in another folder."""
    kept = [name for name in bundle.files if name != CARD]
    contents = {name: read_checked(bundle.folder, name, bundle.files[name]) for name in kept}
    write_index(out or bundle.folder, config, {**contents, CARD: card.encode()})


def _check_architectures(config: BundleConfig) -> None:
    """Refuse architectures that cannot be theirs or would exhaust the memory."""
    for unet, channels, timed in ((config.unet, 1, False), (config.denoiser, 2, True)):
        if (unet.in_channels, unet.out_channels, unet.time_conditioned) != (channels, 1, timed):
            raise ValueError(f"a network of {channels} input channels has the wrong shape")
    for unet in config.architectures:
        widest = unet.base_channels * max(unet.channel_multipliers)
        if widest > 4096 or unet.residual_blocks > 16 or len(unet.channel_multipliers) > 8:
            raise ValueError("an architecture is too large")


def _shapes(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every weight of an architecture, without allocating any."""
    return {name: tuple(value.shape) for name, value in _blueprint(config).state_dict().items()}


@lru_cache(maxsize=8)
def _blueprint(config: UNetConfig) -> UNet:
    """A network without the memory of its weights; nobody may change it."""
    import torch

    from mmccd_cli.translation.unet import UNet

    with torch.device("meta"):
        return UNet(config)


def _load_strictly(config: UNetConfig, raw: bytes, path: Path) -> UNet:
    """Build a network, but only from weights of exactly its names and shapes, all finite.

    So a small file that claims a large architecture costs no memory.
    """
    import torch
    from safetensors.torch import load

    from mmccd_cli.translation.unet import UNet

    try:
        tensors = load(raw)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise WeightsError(
            f"{path} is not a safetensors file.", cause=f"The reader says: {error}."
        ) from error
    expected = _shapes(config)
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != found:
        different = sorted(n for n in expected | found if expected.get(n) != found.get(n))
        raise WeightsError(
            f"{path} does not fit the architecture of its bundle.",
            cause=f"Missing, unknown or of another shape: {', '.join(different[:4])}.",
        )
    if any(value.dtype not in (torch.float16, torch.float32) for value in tensors.values()):
        raise WeightsError(f"{path} holds weights that are neither float16 nor float32.")
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise WeightsError(f"{path} holds weights that are not finite numbers.")
    # Random weights take longer to draw than these to read; a file lacks the steps' frequencies.
    network = UNet(config) if config.time_conditioned else _twin(_blueprint(config))
    weights = {name: value.to(torch.float32, copy=True) for name, value in tensors.items()}
    network.load_state_dict(weights, assign=True)
    return network


def _twin(network: N) -> N:
    """A network of the same weights, whose places for them are its own; its buffers are not.

    A hundred times faster than `copy.deepcopy`, which took as long as reading the weights.
    """
    twin = copy.copy(network)
    twin._parameters = dict(network._parameters)
    twin._modules = {
        name: None if part is None else _twin(part) for name, part in network._modules.items()
    }
    return twin


def _template_arrays(template: Template) -> dict[str, NDArray[np.uint8]]:
    quantisation = Quantisation()
    arrays = {name: quantisation.encode(image) for name, image in template.images.items()}
    for modality, normal in template.normal.items():
        arrays[f"{MEAN}.{modality}"] = quantisation.encode(normal.mean)
        arrays[f"{SPREAD}.{modality}"] = SPREADS.encode(normal.spread)
    arrays["mask"] = template.mask.astype(np.uint8)
    return arrays


def _load_template(index: BundleIndex, config: TemplateConfig) -> Template:
    folder = index.folder
    if TEMPLATE not in index.files:
        raise not_a_bundle(folder, "it has no template")
    raw = read_checked(folder, TEMPLATE, index.files[TEMPLATE])
    try:
        arrays = load_arrays(raw)
        mask = arrays.pop("mask").astype(bool)
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise not_a_bundle(folder, f"its template cannot be read: {error}") from error
    affine = np.array(config.affine, dtype=np.float64).reshape(4, 4)
    spacing = np.diag(affine)[:3]
    scaled = np.diag([*spacing, 1.0])
    scaled[:3, 3] = affine[:3, 3]
    usual = bool(((spacing > 0.05) & (spacing < 25)).all())
    straight = usual and np.allclose(affine, scaled)
    fits = all(a.shape == config.shape and a.dtype == np.uint8 for a in arrays.values())
    if not straight or mask.shape != config.shape or not fits or not arrays or not mask.any():
        raise not_a_bundle(folder, "its template's arrays do not fit its geometry")
    litres = float(mask.sum() * spacing.prod()) / 1e6
    if not _MIN_BRAIN_LITRES <= litres <= _MAX_BRAIN_LITRES:
        raise not_a_bundle(folder, f"the brain of its template has {litres:.3g} litres")
    away = float(np.linalg.norm(transform_points(affine, np.argwhere(mask).mean(axis=0))))
    if away > _MAX_FROM_ORIGIN_MM:
        raise not_a_bundle(
            folder, f"the brain of its template lies {away:.3g} mm from the origin of its space"
        )
    # A file gives its arrays in any order, another each time; what takes the first must not differ.
    images = {name: Quantisation().decode(arrays[name]) for name in sorted(arrays)}
    normal = {}
    for name in [name for name in images if name.startswith(f"{MEAN}.")]:
        modality = name.removeprefix(f"{MEAN}.")
        if images.pop(f"{SPREAD}.{modality}", None) is None:
            raise not_a_bundle(folder, f"its template lacks '{SPREAD}.{modality}'")
        spread = SPREADS.decode(arrays[f"{SPREAD}.{modality}"])
        normal[modality] = NormalRange(images.pop(name), spread)
    return Template(images, mask, affine, normal=normal)
