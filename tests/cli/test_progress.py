"""What a user sees while something runs: a bar on a terminal, a line at times elsewhere."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console as RichConsole
from rich.progress import Progress as RichProgress
from typer.testing import CliRunner

from mmccd_cli.cli.app import app
from mmccd_cli.cli.console import Console, ProgressDisplay
from mmccd_cli.cli.train import training_reporter
from mmccd_cli.progress import Stopwatch
from mmccd_cli.training.trainer import TrainingProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only a test changes."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_comes_with_each_step_and_at_times(clock: list[float]) -> None:
    lines: list[str] = []
    progress = ProgressDisplay(say=lines.append)
    progress.begin("evaluating")
    progress.advance(1, 8)  # too soon
    clock[0] += 60
    progress.advance(2, 8)
    progress.advance(3, 8)  # too soon
    clock[0] += 3600
    progress.advance(4, 8)
    clock[0] += 60
    progress.advance(5, 8)  # lines become rarer as the hours pass
    progress.advance(8, 8, told=True)
    assert lines == [
        "evaluating",
        "evaluating: 2 of 8, 60 s so far, about 3 min left",
        "evaluating: 4 of 8, 61 min so far, about 61 min left",
        "evaluating: 8 of 8, 62 min so far",
    ]


def test_the_pace_is_that_of_the_steps_that_took_time(clock: list[float]) -> None:
    progress = ProgressDisplay()
    progress.expect(10)
    for number in range(4):
        progress.begin(f"case {number}", told=False)
        clock[0] += 30 * (number > 1)
        said = progress.end(spared=number < 2)
    assert said == "4 of 10, 60 s so far, about 3 min left"
    assert ProgressDisplay().end() == ""  # no steps were expected


def test_the_pace_of_passes_is_measured_from_the_first(clock: list[float]) -> None:
    lines: list[str] = []
    progress = ProgressDisplay(say=lines.append)
    progress.begin("case", told=False)
    clock[0] += 600  # to read and to register is no pass
    progress.passes(10, 110)
    clock[0] += 60
    progress.passes(60, 110)
    progress.passes(0, 110)  # on another device, from the beginning
    clock[0] += 60
    progress.passes(55, 110)
    assert lines == [
        "case: 10 of 110",
        "case: 60 of 110, 60 s so far, about 60 s left",
        "case: 55 of 110, 60 s so far, about 60 s left",
    ]


def test_passes_of_the_first_subject_do_not_foretell_all(clock: list[float]) -> None:
    rich = RichProgress(console=RichConsole(file=io.StringIO(), force_terminal=True))
    progress = ProgressDisplay(rich)
    (task,) = rich.tasks
    progress.expect(10)
    progress.begin("a")
    clock[0] += 30
    progress.passes(1, 100)
    assert task.fields["left"] == ""
    progress.end()
    progress.begin("b")
    progress.passes(50, 100)
    assert task.fields["left"] == "3 min left"


def test_a_training_says_which_network_it_is_at(clock: list[float]) -> None:
    lines: list[str] = []
    report = training_reporter(ProgressDisplay(say=lines.append), ["a", "b"])
    for iteration in (900, 1000):  # the rest of a training that was resumed
        state = {"iteration": iteration, "iterations": 1000, "loss": 0.25, "validation": None}
        report(TrainingProgress(network="b", **state, seconds_left=120.0))
        clock[0] += 40
    assert lines == [
        "b (network 2 of 2)",
        "b (network 2 of 2): loss 0.2500: 1000 of 1000, 40 s so far",
    ]


def test_the_bar_names_stage_number_and_time_left(clock: list[float]) -> None:
    rich = RichProgress(console=RichConsole(file=io.StringIO(), force_terminal=True))
    progress = ProgressDisplay(rich)
    (task,) = rich.tasks
    progress.expect(40)
    for name in ("a", "b", "c"):
        progress.begin(name)
        progress.stage("template_registration")
        clock[0] += 10
        shown = (task.description, task.fields["count"], task.completed)
        assert progress.end() == ""  # the bar says it
    assert shown == ("c: template registration", "3 of 40", 2)
    assert task.fields["left"] == "6 min left"
    progress.begin("d")
    progress.advance(1, 2)
    assert (task.completed, task.total) == (3.5, 40)


def test_a_stage_of_any_stopwatch_reaches_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(ProgressDisplay, "stage", lambda self, name: shown.append(name))
    with Console().progress(), Stopwatch().stage("brain_mask"):
        pass
    with Stopwatch().stage("later"):
        pass
    assert shown == ["brain_mask"]


def test_on_a_terminal_a_bar_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with Console().progress() as progress:
        progress.expect(3)
        progress.begin("case")
        progress.stage("brain_mask")
    assert "case: brain mask" in screen.getvalue()
    assert "1 of 3" in screen.getvalue()


def test_the_only_subject_that_fails_has_a_record(bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    words = [str(broken), "--out", str(tmp_path / "map.nii.gz"), "--weights", str(bundle), "--json"]
    for content in (None, b"no image"):  # no scan at all, then one that cannot be read
        if content:
            (broken / "flair.nii.gz").write_bytes(content)
        done = CliRunner().invoke(app, ["segment", *words])
        (record,) = map(json.loads, done.stdout.splitlines())
        assert done.exit_code == record["error"]["exit_code"] == 3
        assert (record["subject"], record["status"]) == ("broken", "failed")
        assert record["error"]["message"]
        assert str(tmp_path) not in done.stdout
