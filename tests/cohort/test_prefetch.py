"""A subject that is prepared ahead, in a thread."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from mmccd_cli.cohort.prefetch import in_background, prefetch


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_jobs_come_in_order_and_no_more_than_workers_run_ahead(workers: int) -> None:
    begun: list[int] = []
    done: list[object] = []
    for number, (job, wait) in enumerate(prefetch(range(6), begun.append, workers)):
        assert job == number
        if job == 2:
            continue  # one that nobody waits for holds up no other
        done.append(wait())
        assert len(begun) <= number + 1 + workers
    assert done == [None] * 5
    assert sorted(begun) == ([0, 1, 3, 4, 5] if workers == 0 else list(range(6)))


def test_it_computes_at_once_and_waits_with_the_result() -> None:
    going, may_end = threading.Event(), threading.Event()

    def compute() -> int:
        going.set()
        assert may_end.wait(10)
        return 7

    ahead = in_background(compute)
    assert going.wait(10)
    assert not ahead.done()
    may_end.set()
    assert ahead.result() == 7
    ahead = in_background(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        ahead.result()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.usefixtures("interruptible")
def test_it_still_runs_when_waiting_for_it_is_interrupted() -> None:
    may_end = threading.Event()
    ahead = in_background(lambda: may_end.wait(10))
    # To the process, as Ctrl-C does: raise_signal would meet the timer's thread and wake nobody.
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        ahead.result()
    assert not ahead.done()
    may_end.set()
    assert ahead.result()
