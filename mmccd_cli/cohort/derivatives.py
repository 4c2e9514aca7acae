"""Planning BIDS derivatives: how files are named, and the data set around them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmccd_cli import __version__
from mmccd_cli.cohort.jobs import Job
from mmccd_cli.errors import UsageError
from mmccd_cli.files import check_json, only_writer, read_json, write_atomically
from mmccd_cli.inputs.bids import DESCRIPTION, bids_root
from mmccd_cli.inputs.subjects import Subject
from mmccd_cli.outputs.bids import DESCRIPTIONS, outputs_of_bids
from mmccd_cli.outputs.record import encode_json

BIDS_VERSION = "1.10.0"
LOG = "log"
"""Folder of the records of what failed."""

_IGNORE = ".bidsignore"
_NOT_BIDS = ("**/figures", "summary*.tsv", "*.html", "group", LOG)
_README = """# Anomalies in brain MRI

Made by [mmccd](https://pypi.org/project/mmccd/) from the data set that `dataset_description.json`
names under `DatasetLinks`. Research use only, not a medical device.

Everything lies on the grid of the session's reference scan (FLAIR, else T2w, else T1w):

- `*_desc-anomaly_probseg.nii.gz`: the anomaly map, a probability, calibrated on the subjects that
  the weights' model card names. Its JSON holds the whole record under `mmccd`: inputs with
  SHA-256, weights, settings.
- `*_label-L_desc-mmccd_mask.nii.gz`: the mask of what is anomalous.
- `*_desc-lesions_dseg.nii.gz` and `.tsv`: its components, numbered, and their table.
- `log/failed-*.json`, if there are any: why a session failed. They go when it is done.

`Authors`, if given, are those of the data set that this one was made from.
"""


@dataclass(frozen=True)
class Source:
    """A data set that results are made from, and what it is called in BIDS URIs."""

    root: Path
    name: str

    def uri(self, path: Path) -> str:
        """Return the BIDS URI of a file in it."""
        inside = Path(os.path.abspath(path)).relative_to(os.path.abspath(self.root))
        return f"bids:{self.name}:{inside.as_posix()}"


def derivatives_planner(
    subjects: Sequence[Subject],
    out: Path,
    *,
    run: int | None = None,
    extras: Mapping[str, str] | None = None,
    brain_mask: Path | None = None,
) -> Callable[[Subject], Job]:
    """Return what names the outputs of a subject in a derivative data set; see `plan_jobs`.

    Args:
        subjects: All subjects; their ids need not follow BIDS.
        out: Root of the derivative data set.
        run: The run that was asked for; it becomes a part of the names.
        extras: Kind -> name of what is written beside BIDS' own files, such as
            {"picture": "look.png"}; these go to a folder `figures`.
        brain_mask: A brain mask that was given.

    Raises:
        UsageError: The folder is a source, or the root of a data set that mmccd did not make.
    """
    sources = find_sources(subjects, out)
    _check_root(out, sources.values())

    def plan(subject: Subject) -> Job:
        entities = _entities(subject.id)
        folder = out.joinpath(*entities, "anat")
        stem = "_".join([*entities, *([f"run-{run}"] if run is not None else []), "space-orig"])
        figures = {
            kind: folder.with_name("figures") / f"{'_'.join(entities)}_{name}"
            for kind, name in (extras or {}).items()
        }
        sources_of_map = [sources[subject.id].uri(path) for path in subject.paths.values()]
        return Job(
            subject=subject,
            targets={**outputs_of_bids(folder, stem), **figures},
            brain_mask=brain_mask,
            makes_folder=True,
            reports_index=_index_of(out, figures.get("report")),
            sidecar_fields={
                "Description": DESCRIPTIONS["anomaly"],
                "Sources": sources_of_map,
                # Modalities come in the order in which they are chosen as reference.
                "SpatialReference": sources_of_map[0],
                "Manual": False,
            },
        )

    return plan


def tell_validators(out: Path, folder: str) -> None:
    """Tell those who check a data set of BIDS that a folder in it is none of theirs."""
    ignore = out / _IGNORE
    if ignore.is_file() and folder not in (lines := ignore.read_text().splitlines()):
        write_atomically(ignore, "\n".join([*lines, folder, ""]).encode())


def _index_of(out: Path, report: Path | None) -> Path | None:
    """Return the page that tells of a report; None where there is none, or its name is another."""
    if report is None:
        return None
    from mmccd_cli.outputs.report.cohort import COHORT_PAGE, REPORT_SUFFIX

    return out / COHORT_PAGE if report.name.endswith(REPORT_SUFFIX) else None


def find_sources(subjects: Iterable[Subject], out: Path) -> dict[str, Source]:
    """Tell which data set each subject belongs to, and name the data sets.

    A subject of BIDS belongs to the data set around it, any other to the folder above its own.
    Names that an earlier run gave are kept.

    Returns:
        Subject's id -> its data set.
    """
    known = _read_description(out).get("DatasetLinks")
    links: dict[str, Any] = dict(known) if isinstance(known, dict) else {}
    sources: dict[str, Source] = {}
    for subject in subjects:
        root, base = _root_of(subject)
        location = _location(root, out)
        other = f"{base}{hashlib.sha256(location.encode()).hexdigest()[:6]}"
        name = base if links.get(base, location) == location else other
        links[name] = location
        sources[subject.id] = Source(root, name)
    return sources


def write_root(out: Path, subjects: Iterable[Subject]) -> None:
    """Write what describes the data set as a whole; what a user changed there stays as it is."""
    found = find_sources(subjects, out)
    sources = list({source.name: source for source in found.values()}.values())
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        _write_root(out, sources)


def _write_root(out: Path, sources: Sequence[Source]) -> None:
    old = _read_description(out)
    links = {source.name: _location(source.root, out) for source in sources}
    links = {**(old.get("DatasetLinks") or {}), **links}
    made_by = {"Name": "mmccd", "Version": __version__}
    authors = _authors(sources)
    new = {
        "Name": "Anomalies in brain MRI by mmccd",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        **({"Authors": authors} if authors else {}),
        **old,
        "GeneratedBy": [made_by, *(e for e in old.get("GeneratedBy", []) if e != made_by)],
        "SourceDatasets": [{"URL": location} for location in links.values()],
        "DatasetLinks": links,
    }
    if new != old:
        write_atomically(out / DESCRIPTION, encode_json(new))
    for name, content in _files_of_root().items():
        if not (out / name).exists():
            write_atomically(out / name, content)


def _check_root(out: Path, sources: Iterable[Source]) -> None:
    """Refuse to write derivatives where they do not belong, before anything is computed."""
    for source in sources:
        if os.path.realpath(out) == os.path.realpath(source.root):
            raise UsageError(
                f"{out} is the data set that is read; derivatives go elsewhere.",
                next_step=f"Give {out / 'derivatives' / 'mmccd'}",
            )
    description = _read_description(out)
    if (out / DESCRIPTION).exists() and not _is_ours(description):
        raise UsageError(
            f"{out} holds another data set: {description.get('Name', 'without a name')}.",
            cause=f"Its {DESCRIPTION} was not written by mmccd, or is damaged.",
            next_step="Give a folder of its own, such as BIDS_DIR/derivatives/mmccd.",
        )


def _is_ours(description: Mapping[str, Any]) -> bool:
    """Tell whether mmccd wrote a description, and what it goes on with has the form of BIDS."""
    try:
        makers = check_json(list[dict[str, Any]], description.get("GeneratedBy") or [])
        check_json(dict[str, str], description.get("DatasetLinks") or {})
    except ValueError:
        return False
    return any(entry.get("Name") == "mmccd" for entry in makers)


def _files_of_root() -> dict[str, bytes]:
    rows = ["desc_id\tdescription", *(f"desc-{d}\t{text}" for d, text in DESCRIPTIONS.items())]
    return {
        "README.md": _README.encode(),
        "descriptions.tsv": ("\n".join(rows) + "\n").encode(),
        "descriptions.json": encode_json({"Description": "What the labels of desc- stand for."}),
        _IGNORE: ("\n".join(_NOT_BIDS) + "\n").encode(),
    }


def _entities(subject_id: str) -> list[str]:
    """Return "sub-..." and, where there is one, "ses-..." of a subject's id."""
    if match := re.fullmatch(r"(sub-[A-Za-z0-9+]+)(?:_(ses-[A-Za-z0-9+]+))?", subject_id):
        return [part for part in match.groups() if part]
    label = re.sub(r"[^A-Za-z0-9]", "", subject_id)
    if not label:
        raise UsageError(
            f"The subject {subject_id} cannot be named in BIDS.",
            cause="Its name holds neither a letter nor a digit of ASCII.",
            next_step="Rename its folder.",
        )
    return [f"sub-{label}"]


def _root_of(subject: Subject) -> tuple[Path, str]:
    """Return the data set of a subject, and what it is called if nothing speaks against it."""
    folders = [os.path.abspath(path.parent) for path in subject.paths.values()]
    common = Path(os.path.commonpath(folders))
    if subject.layout == "bids" and (root := bids_root(common)):
        return root, "raw"
    root = common.parent
    return root, re.sub(r"[^A-Za-z0-9]", "", root.name) or "source"


def _location(root: Path, out: Path) -> str:
    """Return where a source is, seen from the derivatives, so that both can be moved together."""
    return Path(os.path.relpath(os.path.realpath(root), os.path.realpath(out))).as_posix()


def _authors(sources: Iterable[Source]) -> list[str]:
    """Return the authors of the sources, who are also those of what is made from them."""
    found: dict[str, None] = {}
    for source in sources:
        authors = _read_description(source.root).get("Authors")
        if isinstance(authors, list):
            found |= dict.fromkeys(author for author in authors if isinstance(author, str))
    return list(found)


def _read_description(root: Path) -> dict[str, Any]:
    """Read a data set's description; empty where there is none."""
    try:
        content = read_json(root / DESCRIPTION)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
