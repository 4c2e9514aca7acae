"""The scripts that draw the speed plots run, and say what they should."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from bundles import write_tiny_bundle

from mmccd_cli.config import UNetConfig
from mmccd_cli.inputs.phantom import Phantom

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_linearity_varies_one_thing_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    tiny = UNetConfig(base_channels=2, channel_multipliers=(1,), norm_groups=1, pixel_unshuffle=4)
    command = [str(tmp_path / "lines"), "--device", "cpu", "--slices", "1", "2", "3", "4"]
    example("speed_linearity").main(command, tiny)
    rows = rows_of(tmp_path / "lines.csv")
    assert len(rows) == 12
    for row in rows:
        passes = int(row["slices"]) * int(row["bands"]) * (int(row["steps"]) + 1)
        assert int(row["passes"]) == passes
    assert (tmp_path / "lines.png").stat().st_size > 5000
    assert capsys.readouterr().out.count("R squared") == 3


def test_a_line_is_found() -> None:
    module = example("speed_linearity")
    points = [module.Point("steps", 1, 1, n, n, 0.5 + 2.0 * n) for n in (1, 2, 4)]
    assert module.line_of(points) == pytest.approx((2.0, 0.5, 1.0))


def test_the_front_holds_what_nothing_beats() -> None:
    means = {"a": (10.0, 0.7), "b": (20.0, 0.6), "c": (20.0, 0.8), "d": (40.0, 0.8)}
    assert example("speed_front").front(means) == ["a", "c"]


def test_the_front_of_a_subject(
    tiny_phantom: Phantom,
    write_subject: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    module = example("speed_front")
    monkeypatch.setattr(module, "POINTS", ((16, 16, 1), (32, 32, 2)))
    write_subject(tmp_path / "data", tiny_phantom, lesion=True)
    bundle = write_tiny_bundle(tmp_path / "tiny")
    command = [str(tmp_path / "data"), str(tmp_path / "front"), "--weights", str(bundle)]
    module.main([*command, "--device", "cpu"])
    rows = rows_of(tmp_path / "front.csv")
    assert [(row["method"], row["band_width"], row["steps"]) for row in rows] == [
        ("cyclic-unet", "0", "0"),
        ("mmccd", "16", "1"),
        ("mmccd", "32", "2"),
    ]
    passes = [int(row["passes"]) for row in rows]
    assert passes[0] < min(passes[1:])
    assert all(0 < float(row["dice"]) <= 1 for row in rows)
    assert (tmp_path / "front.png").stat().st_size > 5000
    assert "on the front: fast" in capsys.readouterr().out


def test_the_front_scores_each_subject_by_the_weights_of_its_fold(
    tiny_phantom: Phantom, write_subject: Callable[..., Path], tmp_path: Path
) -> None:
    module = example("speed_front")
    for name in "abc":
        write_subject(tmp_path / "data", tiny_phantom, "brats", id=name, lesion=True)
    folds = tmp_path / "folds.json"
    folds.write_text('{"one": ["c"], "two": ["a", "b"]}')
    options = argparse.Namespace(data=tmp_path / "data", folds=folds)
    found = [(weights, [s.id for s in own]) for weights, own in module.whom(options)]
    assert found == [(str(tmp_path / "one"), ["c"]), (str(tmp_path / "two"), ["a", "b"])]
