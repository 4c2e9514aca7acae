"""Seconds of stages add up, and what fails does not count."""

from __future__ import annotations

import time

import pytest

from mmccd_cli.progress import Stopwatch


def test_stages_add_up_in_their_order() -> None:
    watch = Stopwatch({"read": 1.0})
    for name in ("score", "write", "score"):
        with watch.stage(name):
            time.sleep(0.01)
    assert list(watch.seconds) == ["read", "score", "write"]
    assert watch.seconds["read"] == 1.0
    assert watch.seconds["score"] >= 0.02


def test_a_stage_that_fails_does_not_count() -> None:
    watch = Stopwatch()
    with pytest.raises(RuntimeError), watch.stage("score"):
        raise RuntimeError
    assert not watch.seconds
