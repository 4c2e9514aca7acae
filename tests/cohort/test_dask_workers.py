"""A cohort on the workers of a Dask cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mmccd_cli import Segmenter
from mmccd_cli.cli.app import app
from mmccd_cli.cohort.jobs import RunSettings
from mmccd_cli.cohort.plan import RunPolicy, SubjectSelection
from mmccd_cli.cohort.run import segment_cohort
from mmccd_cli.errors import ComputeError, DataError, UsageError, WeightsError
from mmccd_cli.inputs.phantom import make_phantom
from mmccd_cli.outputs.record import Outcome

distributed = pytest.importorskip("distributed")
cloudpickle = pytest.importorskip("cloudpickle")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests

PASSING = ("seconds", "peak_memory_mib", "device", "threads")
"""What of a record differs from run to run; the threads of workers are their own."""


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, write_subject: Callable[..., Path]
) -> list[Path]:
    """Six subjects on a 6 mm grid, the third of which cannot be read, and an empty folder."""
    data = tmp_path_factory.mktemp("data")
    for seed, name in enumerate("abcdef"):
        phantom = make_phantom(seed, shape=(34, 38, 30), spacing_mm=(6, 6, 6))
        write_subject(data, phantom, "brats", id=f"case-{name}")
    spoilt = next(data.glob("case-c/*flair.nii.gz"))
    spoilt.write_bytes(spoilt.read_bytes()[:3000])
    (data / "empty").mkdir()
    return sorted(data.iterdir())


@pytest.fixture(scope="module")
def load(bundle: Path) -> Callable[[], Segmenter]:
    return partial(Segmenter.from_pretrained, bundle, device="cpu", preset="fast")


@pytest.fixture(scope="module")
def alone(
    load: Callable[[], Segmenter], folders: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What one process leaves."""
    out = tmp_path_factory.mktemp("alone")
    list(load().segment_cohort(folders, out))
    return out


@pytest.fixture(scope="module")
def scheduler() -> Iterator[Any]:
    """Two workers, each a process with one thread, which are started again when they end."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        yield cluster


def _run(
    folders: list[Path], out: Path, load: Callable[[], Any], address: str, **policy: Any
) -> Iterator[Outcome]:
    return segment_cohort(
        SubjectSelection(folders=folders, out_dir=out).plan(),
        load,
        settings=RunSettings(),
        policy=RunPolicy(scheduler=address, **policy),
    )


def _content(out: Path) -> dict[str, Any]:
    """All that is written, but for what differs from run to run."""
    content: dict[str, Any] = {path.name: path.read_bytes() for path in out.iterdir()}
    for name in [name for name in content if name.endswith(".json")]:
        record = json.loads(content[name])
        content[name] = {key: value for key, value in record.items() if key not in PASSING}
    return content


def test_workers_leave_what_one_process_leaves(
    scheduler: Any, folders: list[Path], load: Any, alone: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Also from relative paths, which mean something else where the workers are."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders[0].parent, tmp_path / "data")
    relative = [Path("data") / folder.name for folder in folders]
    outcomes = {o.name: o for o in _run(relative, Path("out"), load, scheduler.scheduler_address)}
    assert {o.status for o in outcomes.values()} == {"done", "failed"}
    assert isinstance(outcomes["case-c"].error, DataError)
    assert isinstance(outcomes["empty"].error, DataError)
    ours, theirs = _content(tmp_path / "out"), _content(alone)
    assert ours.pop("summary.tsv").count(b"\n") == theirs.pop("summary.tsv").count(b"\n") == 8
    assert ours == theirs
    again = _run(relative, Path("out"), load, scheduler.scheduler_address, resume=True)
    assert sorted(o.status for o in again) == ["failed"] * 2 + ["skipped"] * 5


def test_a_worker_that_is_lost_costs_no_result(
    scheduler: Any, folders: list[Path], load: Any, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with distributed.Client(scheduler, set_as_default=False) as client:
        pids = list(client.run(os.getpid).values())
    outcomes = _run(folders, out, load, scheduler.scheduler_address)
    statuses = [next(outcomes).status, next(outcomes).status]  # the empty one, and the first
    os.kill(pids[0], signal.SIGKILL)
    statuses += [outcome.status for outcome in outcomes]
    assert sorted(statuses) == ["done"] * 5 + ["failed"] * 2
    ours, theirs = _content(out), _content(alone)
    del ours["summary.tsv"], theirs["summary.tsv"]
    assert ours == theirs


def _load_nothing() -> None:
    raise WeightsError("There are no such weights.")


class _Deadly:
    """Weights that end the process that loads them."""

    def __call__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_concerns_every_subject_ends_the_run(
    scheduler: Any, folders: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match="no such weights"):
        list(_run(folders, tmp_path, _load_nothing, scheduler.scheduler_address))


@pytest.mark.slow
def test_a_subject_that_ends_every_worker_fails_alone(
    scheduler: Any, folders: list[Path], tmp_path: Path
) -> None:
    (outcome,) = _run(folders[:1], tmp_path, _Deadly(), scheduler.scheduler_address)
    assert isinstance(outcome.error, ComputeError)
    assert "more memory" in (outcome.error.next_step or "")


def _load_and_tell(told: Path, load: Callable[[], Segmenter]) -> Segmenter:
    with told.open("a") as stream:
        stream.write(f"{os.getpid()}\n")
    return load()


def test_each_worker_loads_the_weights_once(
    scheduler: Any, folders: list[Path], load: Any, tmp_path: Path
) -> None:
    telling = partial(_load_and_tell, tmp_path / "told", load)
    list(_run(folders, tmp_path / "out", telling, scheduler.scheduler_address))
    pids = (tmp_path / "told").read_text().split()
    assert 1 <= len(pids) == len(set(pids)) <= 2


def test_only_a_few_jobs_are_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are."""
    from mmccd_cli.cohort import dask_workers

    running, most, lock = 0, 0, threading.Lock()

    def count(job: int, task: bytes, *, version: str) -> int:
        time.sleep(0.01)
        return job

    monkeypatch.setattr(dask_workers, "_segment_here", count)
    monkeypatch.setattr(dask_workers, "_outcome", lambda job, future: future.result())
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        submit = client.submit

        def counted(*words: Any, **named: Any) -> Any:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            return submit(*words, **named)

        client.submit = counted
        seen = []
        for job, outcome in dask_workers._gathered(client, list(range(40)), b""):  # type: ignore[arg-type]
            running -= 1
            assert job == outcome
            seen.append(job)
    assert sorted(seen) == list(range(40))
    assert most == dask_workers.AHEAD * 2


def test_a_scheduler_that_does_not_answer_is_told_in_a_sentence(
    folders: list[Path], tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmccd_cli.cohort.dask_workers._SECONDS_TO_CONNECT", 1)
    with pytest.raises(UsageError, match=r"answers at tcp://127\.0\.0\.1:9\."):
        list(_run(folders, tmp_path, load, "tcp://127.0.0.1:9"))


def test_auto_starts_workers_of_its_own(
    folders: list[Path], bundle: Path, alone: Path, tmp_path: Path
) -> None:
    words = ["segment", *map(str, folders[:3]), "--out-dir", str(tmp_path / "out"), "--json"]
    words += ["--scheduler", "auto", "--workers", "1", "--weights", str(bundle)]
    done = CliRunner().invoke(app, [*words, "--preset", "fast"])
    assert done.exit_code == 6, done.output
    records = [json.loads(line) for line in done.stdout.splitlines()]  # in the order of their end
    status = {record["subject"]: record["status"] for record in records}
    names = [folder.name for folder in folders[:3]]
    assert [status[name] for name in names] == ["done", "done", "failed"]
    assert "1 Dask worker" in done.stderr
    assert (tmp_path / "out" / "case-a.nii.gz").read_bytes() == (
        alone / "case-a.nii.gz"
    ).read_bytes()
