"""The table of a cohort: one row a subject, also of those that failed, in a file for R or Excel."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmccd_cli.cohort.shards import Shard
from mmccd_cli.errors import UsageError, unwritable
from mmccd_cli.files import only_writer, open_regular, write_atomically
from mmccd_cli.inputs.scans import BRAIN_MASK
from mmccd_cli.outputs.record import Outcome

COLUMNS = (
    "subject",
    "status",
    "lesion_volume_ml",
    "lesions",
    "largest_lesion_ml",
    "peak",
    "threshold",
    "modalities",
    "reference",
    "warnings",
    "exit_code",
    "error",
    "map",
    "mask",
    "brain_volume_ml",
    "suspicion",
    "seconds",
)
_FIRST_COLUMNS = COLUMNS[:14]
"""Those that 0.3.0 wrote, in tables that are still there."""
EMPTY = "n/a"
_NAME = re.compile(r"summary(?:_shard-([0-9]+)-of-([0-9]+))?\.tsv")
_UNWRITABLE = re.compile("[\t\r\n\ud800-\udfff]+")


class Summary:
    """`summary.tsv` of an output folder, written anew with every outcome.

    It holds the subjects of this call, and from the file that was there before those whose map
    still lies in the folder. It is written whole each time, so a reader, or a run that takes over
    after this one was killed, finds a whole table.

    Args:
        out_dir: The folder of the results.
        shard: The share of the cohort; each share has a table of its own, because several tasks
            cannot write one file.
        everyone: The names of the subjects of all shares, in the order of their rows.
    """

    def __init__(
        self, out_dir: Path, shard: Shard | None = None, everyone: Sequence[str] = ()
    ) -> None:
        self.path = out_dir / (f"summary_shard-{shard}.tsv" if shard else "summary.tsv")
        self.shard = shard
        self._places = {_cell(name): place for place, name in enumerate(everyone)}
        self._rows: dict[str, dict[str, str]] = {}

    def check(self) -> None:
        """Refuse to replace a file that is no such table.

        Raises:
            UsageError: There is one.
        """
        self._earlier()

    def add(self, *outcomes: Outcome) -> None:
        """Write the rows of subjects.

        Raises:
            UsageError: The table cannot be written.
            StorageError: The disk is full.
        """
        self._rows |= {_cell(outcome.name): _row(outcome) for outcome in outcomes}
        # In the order of the subjects, whichever is done first.
        ordered = sorted(self._rows, key=lambda name: self._places.get(name, len(self._places)))
        with self._writing():
            kept = [
                row
                for name, row in self._earlier().items()
                if name not in self._rows and (self.path.parent / row["map"]).is_file()
            ]
            write_atomically(self.path, _table([*kept, *(self._rows[name] for name in ordered)]))

    def replace(self, outcome: Outcome) -> None:
        """Write the row of a subject anew where the table has one, and leave all others.

        Raises:
            UsageError: The table cannot be written, or is somebody else's.
        """
        with self._writing():
            rows = self._earlier()
            if _cell(outcome.name) in rows:
                rows[_cell(outcome.name)] = _row(outcome)
                write_atomically(self.path, _table(rows.values()))

    def unite(self) -> Path | None:
        """Write `summary.tsv` if the tables of all shares tell of everyone by now.

        Every share calls this when it is through, so the last one finds all that the others wrote.
        The tables are read again after each writing, until they say what was written: of two shares
        that end at the same time, neither can leave a table behind that lacks the other's last row.

        Returns:
            The table; None where there are no shares, or one is not through.

        Raises:
            UsageError: The table cannot be written, or is somebody else's.
        """
        if self.shard is None:
            return None
        folder, count = self.path.parent, self.shard.count
        shares = [Summary(folder, Shard(index, count)) for index in range(1, count + 1)]
        whole, written = Summary(folder), None
        while True:
            rows = {name: row for share in shares for name, row in share._earlier().items()}
            if not rows.keys() >= self._places.keys():
                return None
            if (found := {name: rows[name] for name in self._places}) == written:
                return whole.path
            whole._rows = written = found
            whole.add()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Let no other run write between the look at the table and the writing of it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with only_writer(self.path.parent):
                yield
        except OSError as error:
            raise unwritable(f"The table {self.path} could not be written.", error) from error

    def _earlier(self) -> dict[str, dict[str, str]]:
        try:
            with open_regular(self.path) as stream:
                lines = stream.read().decode("utf-8", "replace").split("\n")
        except OSError:
            return {}
        head = tuple(lines[0].split("\t"))
        if head not in (COLUMNS, _FIRST_COLUMNS):
            raise UsageError(
                f"{self.path} exists already and is no table of mmccd's results.",
                next_step="Move it away, or give another --out-dir.",
            )
        cells = [line.split("\t") for line in lines[1:]]
        missing = dict.fromkeys(COLUMNS, EMPTY)
        rows = [
            missing | dict(zip(head, row, strict=True)) for row in cells if len(row) == len(head)
        ]
        return {row["subject"]: row for row in rows}


def update_summaries(folder: Path, outcome: Outcome) -> None:
    """Write a subject's row anew in every table of a folder that has one."""
    for path in sorted(folder.glob("summary*.tsv")):
        if match := _NAME.fullmatch(path.name):
            with contextlib.suppress(UsageError):  # somebody else's table is none of ours
                shard = Shard(int(match[1]), int(match[2])) if match[1] else None
                Summary(folder, shard).replace(outcome)


def _table(rows: Iterable[Mapping[str, str]]) -> bytes:
    lines = ["\t".join(COLUMNS), *("\t".join(row[name] for name in COLUMNS) for row in rows)]
    return ("\n".join(lines) + "\n").encode()


def _row(outcome: Outcome) -> dict[str, str]:
    record, error = outcome.record, outcome.told
    values: dict[str, Any] = {"subject": outcome.name, "status": outcome.status}
    if error is not None:
        values |= {"exit_code": error.exit_code, "error": error.message}
    elif record:
        lesions = record["lesions"]
        values |= {
            "lesion_volume_ml": round(record["lesion_volume_ml"], 3),
            "lesions": len(lesions),
            "largest_lesion_ml": round(lesions[0]["volume_ml"], 3) if lesions else None,
            "peak": round(max(lesion["peak"] for lesion in lesions), 4) if lesions else None,
            "threshold": record["threshold"],
            "modalities": "+".join(name for name in record["inputs"] if name != BRAIN_MASK),
            "reference": record["reference"],
            "warnings": "; ".join(record["warnings"]),
            "exit_code": 0,
            "map": record["outputs"]["map"],
            "mask": record["outputs"]["mask"],
            "brain_volume_ml": record.get("brain_volume_ml"),
            "suspicion": record.get("suspicion"),
            "seconds": round(sum(record["seconds"].values()), 1),
        }
    return {name: _cell(values.get(name)) for name in COLUMNS}


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return _UNWRITABLE.sub(" ", text).strip() or EMPTY
