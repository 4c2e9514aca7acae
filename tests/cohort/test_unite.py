"""The table of all shares of a cohort, written by the one that is through last."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmccd_cli.cohort import summary as module
from mmccd_cli.cohort.shards import Shard
from mmccd_cli.cohort.summary import Summary
from mmccd_cli.errors import DataError
from mmccd_cli.outputs.record import Outcome

EVERYONE = ["broken", "a", "b", "c"]


def _failed(name: str) -> Outcome:
    return Outcome(name, "failed", error=DataError(f"{name} is broken"))


def _done(folder: Path, name: str) -> Outcome:
    (folder / name).touch()
    record = {"lesion_volume_ml": 0.0, "lesions": [], "threshold": 0.5, "inputs": {}}
    record |= {"reference": "FLAIR", "warnings": [], "seconds": {}}
    return Outcome(name, "done", record | {"outputs": {"map": name, "mask": "m"}})


def _subjects(path: Path) -> list[str]:
    return [line.split("\t")[0] for line in path.read_text().splitlines()[1:]]


def _unite(folder: Path) -> Path | None:
    return Summary(folder, Shard(1, 2), EVERYONE).unite()


def test_the_share_that_is_through_last_writes_the_table_of_all(tmp_path: Path) -> None:
    first, second = (Summary(tmp_path, Shard(index, 2)) for index in (1, 2))
    first.add(_failed("c"), _failed("broken"))
    second.add(_failed("b"))
    assert _unite(tmp_path) is None
    assert not (tmp_path / "summary.tsv").exists()
    second.add(_failed("a"))
    assert _unite(tmp_path) == tmp_path / "summary.tsv"
    assert _subjects(tmp_path / "summary.tsv") == EVERYONE


def test_the_table_keeps_results_of_other_runs(tmp_path: Path) -> None:
    Summary(tmp_path).add(_done(tmp_path, "earlier"))
    for index, names in ((1, EVERYONE[:2]), (2, EVERYONE[2:])):
        Summary(tmp_path, Shard(index, 2)).add(*map(_failed, names))
    _unite(tmp_path)
    assert _subjects(tmp_path / "summary.tsv") == ["earlier", *EVERYONE]


def test_a_row_that_changes_while_the_table_is_written_is_in_it_even_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, names in ((1, EVERYONE[:2]), (2, EVERYONE[2:])):
        Summary(tmp_path, Shard(index, 2)).add(*map(_failed, names))
    late = iter([Outcome("c", "failed", error=DataError("another reason"))])
    write = module.write_atomically

    def slow(path: Path, content: bytes) -> None:
        for outcome in late:
            Summary(tmp_path, Shard(2, 2)).add(outcome, _failed("b"))
        write(path, content)

    monkeypatch.setattr(module, "only_writer", lambda folder: contextlib.nullcontext())
    monkeypatch.setattr(module, "write_atomically", slow)
    _unite(tmp_path)
    assert "another reason" in (tmp_path / "summary.tsv").read_text()


def test_of_shares_that_end_together_one_writes_the_table(tmp_path: Path) -> None:
    names, together = [f"s{number}" for number in range(8)], threading.Barrier(8)
    written: list[Path | None] = []

    def end(index: int) -> None:
        together.wait()
        share = Summary(tmp_path, Shard(index, 8), names)
        share.add(_failed(names[index - 1]))
        written.append(share.unite())

    threads = [threading.Thread(target=end, args=(index,)) for index in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any(written)
    assert _subjects(tmp_path / "summary.tsv") == names


def test_runs_of_different_subjects_into_one_folder_keep_each_other_s_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Summary._earlier

    def slow(table: Summary) -> dict[str, dict[str, str]]:
        rows = look(table)
        time.sleep(0.01)  # in which another run would write, were it not kept waiting
        return rows

    monkeypatch.setattr(Summary, "_earlier", slow)

    def run(names: str) -> None:
        table = Summary(tmp_path)
        for name in names:
            table.add(_done(tmp_path, name))

    with ThreadPoolExecutor() as threads:
        list(threads.map(run, ("abc", "def", "ghi")))
    assert sorted(_subjects(tmp_path / "summary.tsv")) == list("abcdefghi")


def test_rows_have_the_order_of_the_subjects_whichever_is_done_first(tmp_path: Path) -> None:
    table = Summary(tmp_path, everyone=EVERYONE)
    for name in ("b", "broken", "c", "a"):
        table.add(_failed(name))
    assert _subjects(table.path) == EVERYONE
    assert table.unite() is None
