"""`mmccd prepare` and `mmccd train`."""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import Console, ProgressDisplay, switch
from mmccd_cli.errors import UsageError, check_address_space
from mmccd_cli.files import refuse_to_overwrite

if TYPE_CHECKING:
    from mmccd_cli.config import TrainingConfig
    from mmccd_cli.training.dataset import SliceSource
    from mmccd_cli.training.recipes import Recipe
    from mmccd_cli.training.trainer import TrainingProgress


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which data set, and how it becomes slices."""

    data: Annotated[
        Literal["brats2021", "brats", "folder"],
        typer.Option(
            metavar="brats2021|brats|folder",
            help="What the data set is: BraTS of any year, or a folder of healthy subjects.",
        ),
    ] = "brats2021"
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder with one folder for each subject.", show_default=False),
    ] = None
    preset: Annotated[
        Literal["compact", "paper"],
        typer.Option(metavar="compact|paper", help="Which recipe to train."),
    ] = "compact"
    split: Annotated[
        Path | None,
        typer.Option(
            help='JSON file: {"train": \\[ids], "val": \\[ids]}. By default drawn from the ids.',
            show_default=False,
        ),
    ] = None
    template: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS",
            help="Register every subject to this bundle's template. "
            "By default to their own symmetric mean: they must share a space, as in BraTS.",
            show_default=False,
        ),
    ] = None
    strict: Annotated[
        bool, switch("--strict", help="Stop at the first subject that cannot be used.")
    ] = False

    def recipe(self) -> Recipe:
        """Return the recipe that was asked for."""
        from mmccd_cli.training.recipes import RECIPES

        return RECIPES[self.preset]

    def prepare(self, out: Path, console: Console, progress: ProgressDisplay) -> None:
        """Write the slices, and say who was left out.

        Raises:
            UsageError: The folder of the data is missing.
            DataError: There is no usable subject.
        """
        from mmccd_cli.training.dataset import prepare_dataset

        source = self._source()
        progress.begin("preparing slices")
        result = prepare_dataset(
            source.data_dir,
            out,
            source.settings,
            split=source.split,
            template=source.template,
            report=lambda _, done, total: progress.advance(done, total),
        )
        for name, reason in result.skipped:
            console.note(f"{name} was left out: {reason}")
        console.info(f"Prepared {len(result.subjects)} subjects in {out}.")

    def check(self, slices: Path) -> None:
        """Refuse slices that an earlier run made from something else.

        Raises:
            UsageError: It did.
            DataError: The slices' index, or the data set, cannot be read.
        """
        from mmccd_cli.training.dataset import check_source

        check_source(slices, self._source())

    def _source(self) -> SliceSource:
        """Return what slices are made from.

        Raises:
            UsageError: The folder of the data is missing.
        """
        from mmccd_cli.training.dataset import PrepareSettings, SliceSource, read_split
        from mmccd_cli.weights.bundle import load_bundle
        from mmccd_cli.weights.resolve import resolve_weights

        if self.data_dir is None:
            raise UsageError("--data-dir is missing.", next_step="Give the folder of the subjects.")
        template = None
        if self.template is not None:
            template = load_bundle(resolve_weights(self.template)).template
        return SliceSource(
            data_dir=self.data_dir,
            settings=PrepareSettings(
                recipe=self.recipe(),
                require_segmentation=self.data != "folder",
                strict=self.strict,
            ),
            split=read_split(self.split) if self.split else None,
            template=template,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What of a recipe may be changed, and where it is computed."""

    iterations: Annotated[
        int | None, typer.Option(help="Steps of each network.", show_default=False)
    ] = None
    batch_size: Annotated[
        int | None, typer.Option(help="Slices a step, over all processes.", show_default=False)
    ] = None
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate.", show_default=False)
    ] = None
    seed: Annotated[int | None, typer.Option(help="Seed.", show_default=False)] = None

    def change(self, config: TrainingConfig) -> TrainingConfig:
        """Return settings with those changed that were given.

        Raises:
            UsageError: A value is out of range.
        """
        from dataclasses import asdict

        from mmccd_cli.config import with_changes

        return with_changes(config, asdict(self))

    def change_all(self, recipe: Recipe) -> Recipe:
        """Return a recipe with the settings of each kind of network changed; see `change`."""
        from dataclasses import replace

        return replace(
            recipe,
            training=self.change(recipe.training),
            restoration_training=self.change(recipe.restoration_training),
            foci_training=self.change(recipe.foci_training),
        )


@dataclass(frozen=True, kw_only=True)
class BundleOptions:
    """What the new bundle says about itself."""

    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "1"
    licence: Annotated[str, typer.Option(help="Licence of the weights.")] = "research use only"
    about_data: Annotated[
        str, typer.Option(help="A sentence on the data, for the model card.", show_default=False)
    ] = ""


@command
def prepare(
    *,
    source: DataOptions,
    out: Annotated[Path, typer.Option(help="Folder for the slices.")] = Path("prepared"),
    force: options.Force = False,
    console: Console,
) -> None:
    """Turn a data set into slices for `mmccd train`.

    Training from them needs no image library.

    Examples:
      mmccd prepare --data brats2021 --data-dir DIR --out prepared
    """
    from mmccd_cli.training.slices import INDEX

    refuse_to_overwrite([out / INDEX], force=force, make_folders=True)
    with console.progress() as progress:
        source.prepare(out, console, progress)


@command
def train(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.", show_default=False)],
    source: DataOptions,
    prepared: Annotated[
        Path | None,
        typer.Option(help="Slices from `prepare`, instead of --data-dir.", show_default=False),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Checkpoints and logs; by default OUT.work.", show_default=False),
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(
            help="Train only this network (repeatable), to spread them over machines.",
            show_default=False,
        ),
    ] = None,
    changes: TrainingOptions,
    device: options.Device = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        typer.Option(metavar="auto|fp32|bf16", help="Arithmetic."),
    ] = "auto",
    threads: options.Threads = None,
    calibrate_on: Annotated[
        str,
        typer.Option(
            help="Split to calibrate on, where there are no folds; `none` leaves the scores "
            "uncalibrated."
        ),
    ] = "train",
    folds: Annotated[
        int,
        typer.Option(
            help="Train this many more sets of networks, each without a share of the subjects, and "
            "calibrate on the subjects that they have not seen; 0 for none.",
            min=0,
        ),
    ] = 0,
    about: BundleOptions,
    force: options.Force = False,
    console: Console,
) -> None:
    """Train the networks of a bundle of weights, and calibrate it.

    Goes on where an earlier run stopped. Runs in several processes under `torchrun`.

    Examples:
      mmccd train --data brats2021 --data-dir DIR --out weights/NAME --folds 3
      mmccd train --prepared prepared --out weights/NAME
    """
    if (source.data_dir is None) == (prepared is None):
        raise UsageError(
            "Give either --data-dir or --prepared.",
            next_step="mmccd train --data brats2021 --data-dir DIR --out weights/NAME",
        )
    out = _with_name(out)
    work = work or out.with_name(out.name + ".work")
    recipe = changes.change_all(source.recipe())
    check_address_space()
    _check_networks(network or (), recipe)
    _check_folds(folds, calibrate_on)
    _refuse_to_overwrite(out, work, recipe, force=force)
    with console.progress() as progress:
        from mmccd_cli.training.calibration import subjects_to_calibrate
        from mmccd_cli.training.networks import network_specs
        from mmccd_cli.training.run import FOLD_BUNDLE, BundleText, Training
        from mmccd_cli.training.runtime import make_runtime

        options.use_threads(threads)
        shards, runtime = prepared or work / "slices", make_runtime(device, precision)
        if prepared is None and runtime.rank == 0:
            if (shards / "dataset.json").exists():
                source.check(shards)
            else:
                source.prepare(shards, console, progress)
        runtime.barrier()
        if calibrate_on != "none" and not network:
            subjects_to_calibrate(shards, calibrate_on)
        training = Training(
            shards=shards,
            work=work,
            recipe=recipe,
            runtime=runtime,
            text=BundleText(
                name=out.name, version=about.version, licence=about.licence, data=about.about_data
            ),
            folds=folds,
            only=network,
            report=training_reporter(progress, [spec.name for spec in network_specs(recipe)]),
        )
        networks = training.train()
        runtime.leave()
        if runtime.rank:
            return
        if network:
            console.info(f"Trained {', '.join(networks)}; checkpoints are in {work}.")
            return
        if calibrate_on == "none":
            training.write(out, networks)
            console.info(f"Wrote {out}, which is not calibrated: no subject is segmented with it.")
            return
        progress.begin("calibrating")
        bundle = training.write(work / FOLD_BUNDLE, networks)
        training.calibrate(bundle, out, split=calibrate_on, report=console.info)
        console.info(f"Wrote {out}. Use it: mmccd segment SUBJECT --weights {out} --out map.nii.gz")


def _with_name(out: Path) -> Path:
    """The folder of a bundle, which gives it its name, by a path that ends in one."""
    named = out.resolve() if out.name in ("", "..") else out
    if not named.name:
        raise UsageError(
            f"A bundle has the name of its folder, and {out} has none.",
            next_step="Give another --out, such as weights/NAME.",
        )
    return named


def _check_networks(wanted: Sequence[str], recipe: Recipe) -> None:
    from mmccd_cli.training.networks import network_specs

    known = [spec.name for spec in network_specs(recipe)]
    if unknown := [name for name in wanted if name not in known]:
        raise UsageError(
            f"The recipe {recipe.name} has no network {unknown[0]}.",
            next_step=f"Give one of: {', '.join(known)}.",
        )


def _check_folds(folds: int, calibrate_on: str) -> None:
    if folds == 1:
        raise UsageError(
            "One fold leaves no subject to train on.", next_step="Give --folds 2 or more, or 0."
        )
    if folds and calibrate_on not in ("train", "none"):
        raise UsageError(
            f"With --folds, the training subjects are calibrated on, and not {calibrate_on!r}.",
            next_step="Leave out --calibrate-on, or --folds.",
        )


def _refuse_to_overwrite(out: Path, work: Path, recipe: Recipe, *, force: bool) -> None:
    """Refuse a bundle where its files lie, unless a run that was killed while writing left them."""
    from mmccd_cli.training.networks import network_specs
    from mmccd_cli.training.run import FOLD_BUNDLE
    from mmccd_cli.weights.bundle import TEMPLATE
    from mmccd_cli.weights.index import CARD, FRONT_MATTER, INDEX

    def is_left(name: str) -> bool:
        path, draft = out / name, work / FOLD_BUNDLE / name
        if not path.is_file() or name == INDEX:  # which is written last
            return False
        if name == CARD:
            return path.read_bytes().startswith(FRONT_MATTER.encode())
        return draft.is_file() and filecmp.cmp(path, draft, shallow=False)

    networks = [f"{spec.name}.safetensors" for spec in network_specs(recipe)]
    names = [name for name in (INDEX, CARD, TEMPLATE, *networks) if not is_left(name)]
    refuse_to_overwrite([out / name for name in names], force=force, make_folders=True)


def training_reporter(
    progress: ProgressDisplay, networks: Sequence[str] = ()
) -> Callable[[TrainingProgress], None]:
    """Return what shows how a training goes, and which of all networks it is at."""

    def report(state: TrainingProgress) -> None:
        name = state.network
        if name in networks:
            name += f" (network {networks.index(name) + 1} of {len(networks)})"
        progress.begin(name)
        progress.stage(f"loss {state.loss:.4f}")
        ended = state.iteration == state.iterations
        left = state.seconds_left
        progress.advance(state.iteration, state.iterations, left=left, told=ended)

    return report
