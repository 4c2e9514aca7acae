"""Planning BIDS derivatives: how files are named, and the data set around them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmccd_cli import __version__
from mmccd_cli.cohort.jobs import Job
from mmccd_cli.cohort.summary import Summary
from mmccd_cli.errors import (
    ComputeError,
    DataError,
    MmccdError,
    UsageError,
    WeightsError,
    unwritable,
)
from mmccd_cli.files import check_json, only_writer, read_json, write_atomically
from mmccd_cli.inputs.bids import DESCRIPTION, bids_root
from mmccd_cli.inputs.subjects import Subject
from mmccd_cli.outputs.bids import DESCRIPTIONS, maps_in, outputs_beside, outputs_of_bids
from mmccd_cli.outputs.record import Outcome, describe_failure, encode_json, read_record
from mmccd_cli.outputs.schema import FailedRecord

BIDS_VERSION = "1.10.0"

_IGNORE = ".bidsignore"
_MAP_OF_BIDS = re.compile(r"(sub-.+)_space-[^_]+_desc-anomaly_probseg\.nii\.gz")
_LOG, _FAILED = "log", "failed-"
_NOT_BIDS = ("**/figures", "summary*.tsv", "*.html", "group", _LOG)
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


class GroupSummary(NamedTuple):
    """What the table of a derivative data set tells.

    Attributes:
        table: The file.
        results: How many results are in it.
        failures: The sessions that failed, and have not been done since.
    """

    table: Path
    results: int
    failures: list[Outcome]


def summarise_derivatives(out: Path, source: Path | None = None) -> GroupSummary:
    """Write the table of all results of a derivative data set, and the page over their reports.

    Both tell of all results, whichever run made them, and of all sessions that failed; the page is
    written where there is a report.

    The results are read again once the table is written, until they are those in the table, so
    that of two tasks of a cluster that do this at once neither loses the other's last result.

    Args:
        out: Root of the derivative data set.
        source: Root of the data set that was read: whom it does not hold any more has not failed.

    Raises:
        DataError: There is no such folder, or no result and no failure in it.
        UsageError: Table or page cannot be written, or are somebody else's.
    """
    if not out.is_dir():
        raise DataError(f"There is no folder {out}.", next_step="Check the name.")
    written: tuple[list[Outcome], list[dict[str, Any]]] | None = None
    while (found := (_results(out), _failed_records(out))) != written:
        results, failed = written = found
        failures = [_failure_of(record) for record in failed if _is_in(source, record["subject"])]
        everything = [*results, *failures]
        if not everything:
            raise DataError(
                f"{out} holds no result of mmccd.",
                next_step="Run the level participant first.",
            )
        summary = Summary(out, everyone=sorted(outcome.name for outcome in everything))
        summary.add(*everything)
    _write_index(out, failures)
    return GroupSummary(summary.path, len(results), failures)


def note_failure(root: Path, outcome: Outcome) -> None:
    """Keep the record of a session that failed, and forget it once the session is done.

    Each has a file of its own, because several tasks of a cluster cannot write one. Nothing is
    kept where the data set has not been begun.

    Raises:
        UsageError: The record cannot be written.
        StorageError: The disk is full.
    """
    path = _file_of_failure(root, outcome.name)
    try:
        if outcome.status != "failed":
            path.unlink(missing_ok=True)
        elif root.is_dir():
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, encode_json(describe_failure(outcome)))
            tell_validators(root, _LOG)
    except OSError as error:
        raise unwritable(f"The record {path} could not be written.", error) from error


def earlier_failures(root: Path, now: Iterable[Outcome] = ()) -> list[Outcome]:
    """Return the sessions that failed in earlier runs, or in other shares, and not `now`."""
    known = {outcome.name for outcome in now}
    return [_failure_of(it) for it in _failed_records(root) if it["subject"] not in known]


def tell_validators(out: Path, folder: str) -> None:
    """Tell those who check a data set of BIDS that a folder in it is none of theirs."""
    ignore = out / _IGNORE
    if ignore.is_file() and folder not in (lines := ignore.read_text().splitlines()):
        write_atomically(ignore, "\n".join([*lines, folder, ""]).encode())


def _file_of_failure(root: Path, name: str) -> Path:
    # By a name that says nothing to readers of BIDS; the hash tells apart what looks the same.
    shown = re.sub(r"[^A-Za-z0-9]+", "-", name)[:60]
    return (
        root / _LOG / f"{_FAILED}{shown}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}.json"
    )


def _failed_records(root: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted((root / _LOG).glob(f"{_FAILED}*.json")):
        try:
            record = check_json(dict[str, Any], read_json(path))
            check_json(FailedRecord, record)
        except (OSError, ValueError):
            continue  # done in the meantime, or somebody else's
        found.append(record)
    return found


def _failure_of(record: Mapping[str, Any]) -> Outcome:
    """Turn the record of a failure into what it was made from."""
    said = record["error"]
    kinds = (UsageError, DataError, WeightsError, ComputeError)
    kind = next((kind for kind in kinds if kind.exit_code == said["exit_code"]), MmccdError)
    error = kind(said["message"], cause=said["cause"], next_step=said["next_step"])
    return Outcome(record["subject"], "failed", error=error)


def _is_in(source: Path | None, name: str) -> bool:
    """Tell whether a session's participant is in a data set, as far as that can be known."""
    if source is None or not name.startswith("sub-") or not any(source.glob("sub-*")):
        return True
    return (source / name.partition("_")[0]).is_dir()


def _index_of(out: Path, report: Path | None) -> Path | None:
    """Return the page that tells of a report; None where there is none, or its name is another."""
    if report is None:
        return None
    from mmccd_cli.outputs.report.cohort import COHORT_PAGE, REPORT_SUFFIX

    return out / COHORT_PAGE if report.name.endswith(REPORT_SUFFIX) else None


def _write_index(out: Path, failures: Sequence[Outcome]) -> None:
    from mmccd_cli.outputs.report.cohort import check_cohort_page, reports_in, write_cohort_page

    if reports_in(out):
        check_cohort_page(out)
        write_cohort_page(out, failures)


def _results(out: Path) -> list[Outcome]:
    records = (read_record(outputs_beside(path)["sidecar"]) for path in maps_in(out))
    return [row_of_result(record) for record in records if record]


def row_of_result(record: dict[str, Any]) -> Outcome:
    """Return a result as the table has it: named after its map, which tells runs apart."""
    return Outcome(name_of_result(record["outputs"]["map"]), "done", record)


def name_of_result(map_name: str) -> str:
    """Return what tells a result from all others of its folder: how the name of its map begins."""
    if match := _MAP_OF_BIDS.fullmatch(map_name):
        return match[1]
    return re.sub(r"\.nii(\.gz)?$", "", map_name, flags=re.IGNORECASE)


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
