"""`mmccd weights`: what can be used, from where, and whether it is what it should be."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import JsonConsole, switch
from mmccd_cli.cli.help import Program
from mmccd_cli.errors import UsageError

if TYPE_CHECKING:
    from mmccd_cli.weights.index import BundleIndex
    from mmccd_cli.weights.resolve import LocalBundle, WeightsSource

app = Program(
    name="weights",
    help="List, download, check, remove and publish weights.\n\n"
    "Examples:\n  mmccd weights list\n  mmccd weights verify",
    no_args_is_help=True,
)


@dataclass(frozen=True, kw_only=True)
class BundleOptions:
    """Which bundle is meant, and where downloads lie."""

    weights: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|DIR|ORG/REPO[@REVISION]",
            help="A name from `mmccd weights list`, a folder, or a place on the Hub. By default "
            "MMCCD_WEIGHTS, then the bundle that mmccd comes with.",
            show_default=False,
        ),
    ] = None
    cache_dir: options.CacheDir = None

    def resolve(self, **how: Any) -> LocalBundle:
        """Find the bundle; see `mmccd_cli.weights.resolve.resolve`."""
        from mmccd_cli.weights.resolve import resolve

        return resolve(self.weights, cache_dir=self.cache_dir, **how)


@app.command("list")
@command
def list_weights(*, cache_dir: options.CacheDir = None, console: JsonConsole) -> None:
    """List the weights on this computer, and those known by name.

    Never uses the network.

    Examples:
      mmccd weights list
      mmccd weights list --json
    """
    from mmccd_cli.weights.resolve import list_bundles

    rows = [_row(source, index) for source, index in list_bundles(cache_dir)]
    console.answer(rows, *(_in_words(row) for row in rows))
    if not rows and not console.as_json:
        console.info("No weights came with this installation, and none are in the cache.")


@app.command()
@command
def info(*, offline: options.Offline = False, wanted: BundleOptions, console: JsonConsole) -> None:
    """Show what a bundle is: its licence, training, accuracy, files.

    Examples:
      mmccd weights info
      mmccd weights info ORG/REPO@REVISION --json
    """
    about = _about(wanted.resolve(offline=offline))
    shown = {**about, "cycles_for": ", ".join(about["modalities"])}
    keys = ("name", "version", "licence", "intended_use", "folder", "origin", "commit")
    lines = [
        f"{key.replace('_', ' ')}: {shown[key]}"
        for key in (*keys, "cycles_for", "accuracy")
        if shown[key] or key == "cycles_for"
    ]
    files = [f"{f['sha256']}  {f['size']:>12,}  {name}" for name, f in about["files"].items()]
    console.answer(about, *lines, *files)


@app.command()
@command
def path(*, offline: options.Offline = False, wanted: BundleOptions, console: JsonConsole) -> None:
    """Print the folder of a bundle, downloaded if need be.

    Examples:
      mmccd weights path
    """
    folder = str(wanted.resolve(offline=offline).folder)
    console.answer({"folder": folder}, folder)


@app.command()
@command
def download(*, wanted: BundleOptions, console: JsonConsole) -> None:
    """Bring a bundle into the cache, or up to date.

    For nodes without internet, do it where there is one. A branch is looked up again.

    Examples:
      mmccd weights download ORG/REPO@REVISION
    """

    def announce(index: BundleIndex) -> None:
        console.info(
            f"{index.text('name')} {index.text('version')}: {_megabytes(index.total_bytes)}, "
            f"licence: {index.licence}"
        )

    bundle = wanted.resolve(refresh=True, announce=announce)
    console.answer(_about(bundle), str(bundle.folder))
    if bundle.hub_id:
        console.info(f"use it with: --weights {bundle.hub_id} --offline")


@app.command()
@command
def verify(*, wanted: BundleOptions, console: JsonConsole) -> None:
    """Compare a bundle with its hashes, and let its networks translate a slice.

    Never uses the network.

    Examples:
      mmccd weights verify
      mmccd weights verify weights/NAME
    """
    bundle = wanted.resolve(offline=True)
    _verify(bundle)
    console.answer({**_about(bundle), "verified": True})
    console.info(
        f"{bundle.folder}: {len(bundle.index.files) + 1} files as they should be, "
        f"bundle.json {bundle.index.sha256}"
    )


@app.command()
@command
def remove(
    *,
    weights: Annotated[str, typer.Argument(metavar="NAME|ORG/REPO[@REVISION]")],
    cache_dir: options.CacheDir = None,
    console: JsonConsole,
) -> None:
    """Remove a downloaded bundle from the cache.

    Your own folders are never touched.

    Examples:
      mmccd weights remove ORG/REPO@REVISION
    """
    from mmccd_cli.weights.resolve import remove as remove_weights

    folder, freed = remove_weights(weights, cache_dir=cache_dir)
    console.info(f"Removed {folder}; {_megabytes(freed)} are free again.")
    console.answer({"folder": str(folder), "freed_bytes": freed})


@app.command()
@command
def push(
    *,
    folder: Annotated[str, typer.Argument(metavar="DIR|NAME", help="The bundle to publish.")],
    repo: Annotated[str, typer.Argument(metavar="ORG/REPO", help="Where to on the Hub.")],
    public: Annotated[bool, switch("--public", help="Let everybody see a new repository.")] = False,
    console: JsonConsole,
) -> None:
    """Publish a bundle on the Hugging Face Hub.

    Its model card goes along, and a new repository is private. Uses the token of `hf auth login`
    or HF_TOKEN, which must be allowed to write.

    Examples:
      mmccd weights push weights/NAME ORG/REPO
    """
    from mmccd_cli.weights import hub
    from mmccd_cli.weights.registry import RegistryEntry
    from mmccd_cli.weights.resolve import resolve

    bundle = resolve(folder, offline=True)
    _verify(bundle)
    if hub.is_offline():
        raise UsageError("HF_HUB_OFFLINE forbids to publish.", next_step="Unset it.")
    pushed = hub.push(bundle.folder, repo, private=not public)
    url = pushed.hub_id.page
    entry = RegistryEntry(repo=repo, revision=pushed.hub_id.revision, sha256=pushed.sha256)
    about = {"weights": str(pushed.hub_id), "url": url, "private": pushed.private}
    command_line = f"mmccd segment SUBJECT --out map.nii.gz --weights {pushed.hub_id}"
    console.answer({**about, "registry_entry": asdict(entry)}, command_line)
    seen = "private: only its owners see it" if pushed.private else "public"
    console.info(f"{url} ({seen})")


def _verify(found: LocalBundle) -> None:
    from mmccd_cli.weights.bundle import load_bundle, verify_bundle
    from mmccd_cli.weights.rehearsal import rehearse

    bundle = load_bundle(found.folder)
    verify_bundle(bundle)
    rehearse(bundle)


def _row(source: WeightsSource, index: BundleIndex | None) -> dict[str, Any]:
    where = "embedded" if source.origin == "embedded" else "cached" if index else "on the Hub"
    return {
        "weights": source.spec,
        "where": where,
        "name": index.text("name") if index else None,
        "folder": str(index.folder) if index else None,
        "hub": str(source.hub_id) if source.hub_id else None,
        "bytes": index.total_bytes if index else 0,
        "modalities": index.modalities if index else [],
        "licence": index.licence if index else "unknown",
        "accuracy": index.accuracy if index else "",
    }


def _in_words(row: dict[str, Any]) -> str:
    """Describe weights of the list for people."""
    size = f", {_megabytes(row['bytes'])}" if row["bytes"] else ""
    facts = {
        "scans": ", ".join(row["modalities"]),
        "licence": row["licence"],
        "accuracy": row["accuracy"],
    }
    lines = [f"  {name + ':':<10}{text}" for name, text in facts.items() if text]
    return "\n".join([f"{row['weights']} ({row['where']}{size})", *lines])


def _about(bundle: LocalBundle) -> dict[str, Any]:
    index, asked, found = bundle.index, bundle.source.hub_id, bundle.hub_id
    return {
        "name": index.text("name"),
        "version": index.text("version"),
        "licence": index.text("licence"),
        "intended_use": index.text("intended_use"),
        "folder": str(bundle.folder),
        "origin": bundle.origin,
        "repo": found.repo if found else None,
        "revision": asked.revision if asked else None,
        "commit": found.revision if found else None,
        "sha256": index.sha256,
        "bytes": index.total_bytes,
        "modalities": index.modalities,
        "accuracy": index.accuracy,
        "files": {name: asdict(entry) for name, entry in index.all_files.items()},
        "bundle": index.bundle,
    }


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
