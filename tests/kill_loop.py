"""Runs a command of mmccd again and again and kills it, in a process of its own.

`python kill_loop.py PLAN`, where PLAN is JSON: `words` of the command, in which OUT stands for a
folder of results; `work`, a folder; `kills`, how often; `seed`; and `train`, whether the recipe is
the tiny one. Half of the kills come at a random moment, half at a random operation that makes
results durable or visible, where a half-done result would show. After each, all that lies in OUT
must be whole. Each run is a fork of a process that has imported everything, but computed nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mmccd_cli.cli.app import app
from mmccd_cli.outputs.record import read_sidecar
from mmccd_cli.training import recipes, runtime
from mmccd_cli.weights.index import INDEX, check_folder

OPERATIONS = ("fsync", "replace")


class Run(NamedTuple):
    """How a run ended: its exit code, or minus the signal; its seconds and operations."""

    code: int
    seconds: float
    operations: int


def run(
    plan: dict[str, Any], out: Path, *, after_s: float | None = None, at: int | None = None
) -> Run:
    """Run the command in a child, and kill it after some seconds or at an operation."""
    counter, began = Path(plan["work"], "operations"), time.monotonic()
    child = os.fork()
    if child == 0:
        _be_the_command(plan, out, counter=counter, at=at)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    operations = int(counter.read_text()) if code == 0 else 0
    return Run(code, time.monotonic() - began, operations)


def _be_the_command(plan: dict[str, Any], out: Path, *, counter: Path, at: int | None) -> None:
    log = os.open(Path(plan["work"], "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    done = 0

    def counted(operation: Any) -> Any:
        def call(*given: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*given, **options)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    code = 1
    try:
        app([word.replace("OUT", str(out)) for word in plan["words"]])
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        counter.write_text(str(done))
        os._exit(code)


def check_whole(out: Path) -> None:
    """Fail where anything visible is half."""
    for path in out.rglob("*.json"):
        if path.name == INDEX:
            check_folder(path.parent)
        elif {"mmccd", "record_version"} & json.loads(path.read_text()).keys():
            record = read_sidecar(path).record
            for kind, expected in record["output_sha256"].items():
                content = path.with_name(record["outputs"][kind]).read_bytes()
                assert expected == hashlib.sha256(content).hexdigest(), (path, kind)
    for path in out.rglob("summary.tsv"):
        lines = path.read_text().splitlines()
        assert len({line.count("\t") for line in lines}) == 1, path
    for path in out.rglob("*.html"):
        assert path.read_text().rstrip().endswith("</html>"), path
    for path in out.rglob("*.checkpoint.pt"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None, path


def main() -> None:
    """Kill, check, and go on, until it was killed as often as was asked for."""
    plan = json.loads(sys.argv[1])
    if plan["train"]:
        from training_data import tiny_recipe

        small = tiny_recipe(cycles=recipes.CYCLES[:1])
        longer = replace(small, training=replace(small.training, iterations=8))
        recipes.RECIPES["compact"] = longer
        make = runtime.make_runtime
        runtime.make_runtime = lambda *how: replace(make(*how), checkpoint_every=2)
    work, rng = Path(plan["work"]), random.Random(plan["seed"])
    clean = run(plan, work / "reference")
    assert clean.code == 0, (work / "log").read_text()
    out, kills, finished = work / "out", 0, 0
    while kills < plan["kills"]:
        if rng.random() < 0.5:
            ended = run(plan, out, after_s=rng.uniform(0, clean.seconds))
        else:
            ended = run(plan, out, at=rng.randint(1, clean.operations))
        check_whole(out)
        if ended.code == -signal.SIGKILL:
            kills += 1
        else:
            assert ended.code == 0, (work / "log").read_text()
        # A bundle appears last: killed after that, nothing is left to go on with.
        if ended.code == 0 or (plan["train"] and any(out.glob(f"*/{INDEX}"))):
            finished += 1
            shutil.rmtree(out)
    last = run(plan, out)
    assert last.code == 0, (work / "log").read_text()
    check_whole(out)
    print(json.dumps({"kills": kills, "finished": finished, "operations": clean.operations}))


if __name__ == "__main__":
    main()
