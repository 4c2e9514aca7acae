"""The array of `examples/slurm_array.sh` on a real Slurm: two nodes on this computer.

It needs Slurm and MUNGE (`apt-get install slurm-wlm munge`), whose services need not run.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mmccd_cli.cli.app import app
from mmccd_cli.inputs.nifti import read_nifti
from mmccd_cli.inputs.phantom import Phantom

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(shutil.which(program, path=SBIN) for program in NEEDED),
        reason="Slurm and MUNGE are not installed",
    ),
]
CONFIGURATION = """
ClusterName=mmccd
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdTimeout=5
AccountingStorageType=accounting_storage/none
MpiDefault=none
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=2000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=2000
PartitionName=all Nodes=n1,n2 Default=YES State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """A controller and two nodes, each with one processor."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PATH": SBIN, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def call(self, *words: object) -> str:
        """Run a program of Slurm and return what it prints."""
        return subprocess.run(
            [str(word) for word in words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.strip()

    def crash(self, node: str) -> None:
        """Kill everything that runs on a node, as a power failure would."""
        work = _processes_with(f"SLURMD_NODENAME={node}")
        assert work
        parents = {_parent(pid) for pid in work} - {0, 1}  # slurmstepd, which would tell of it
        daemon = int((self.folder / f"slurmd-{node}.pid").read_text())
        for pid in [daemon, *parents, *work]:
            with _gone():
                os.kill(pid, signal.SIGKILL)


class _gone:
    """A process that is gone needs no signal."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, *_: object) -> bool:
        return kind is ProcessLookupError


def _processes_with(variable: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if variable.encode() in environment:
            found.append(int(folder.name))
    return found


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait(until: Callable[[], object], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Slurm with daemons of its own, which end with the test."""
    import getpass

    folder = tmp_path / "slurm"
    (folder / "state").mkdir(parents=True)
    for node in ("n1", "n2"):
        (folder / f"spool-{node}").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            ports=_free_ports(3),
            user=getpass.getuser(),
            folder=folder,
        )
    )
    cluster = Cluster(folder)
    munge = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log"}
    munge |= {"seed-file": "seed"}
    try:
        cluster.call("munged", "--force", *(f"--{k}={folder}/munge.{v}" for k, v in munge.items()))
        cluster.call("slurmctld")
        for node in ("n1", "n2"):
            cluster.call("slurmd", "-N", node)
        _wait(lambda: cluster.call("sinfo", "-h", "-o", "%D%t") == "2idle", 30, "two nodes")
        yield cluster
    finally:
        subprocess.run(["scancel", "-u", getpass.getuser()], env=cluster.environment, check=False)
        for path in folder.glob("*.pid"):
            with _gone():
                os.kill(int(path.read_text()), signal.SIGTERM)


def _table(out: Path) -> list[list[str]]:
    """The table without what was skipped when a task ran again, and without seconds."""
    rows = [line.split("\t") for line in (out / "summary.tsv").read_text().splitlines()]
    assert rows[0][1] == "status"
    assert rows[0][-1] == "seconds"
    return [[row[0], *row[2:-1]] for row in rows]


def test_a_node_that_is_lost_costs_no_result(
    cluster: Cluster,
    tmp_path: Path,
    bundle: Path,
    write_subject: Callable[..., Path],
    tiny_phantom: Phantom,
) -> None:
    """Its task is queued again and goes on; the task that is through last writes the table."""
    folders = [
        write_subject(tmp_path / "data", tiny_phantom, "plain", id=f"s{number}")
        for number in range(8)
    ]
    (tmp_path / "data" / "broken").mkdir()
    listed = tmp_path / "subjects.txt"
    listed.write_text("\n".join(map(str, [*folders, tmp_path / "data" / "broken"])))
    out, script = tmp_path / "out", ROOT / "examples" / "slurm_array.sh"
    variables = f"MMCCD={sys.executable} -m mmccd_cli,MMCCD_WEIGHTS={bundle},PYTHONPATH={ROOT}"
    words = ["--parsable", "--array=1-2", "--cpus-per-task=1", "--mem=1G", f"--chdir={tmp_path}"]
    job = cluster.call("sbatch", *words, f"--export=ALL,{variables}", script, listed, out)

    share = [out / f"s{number}.json" for number in (1, 3, 5, 7)]  # after "broken"
    _wait(share[0].exists, 120, "the first result")
    cluster.crash(cluster.call("squeue", "-h", "-j", f"{job}_1", "-o", "%N"))
    assert not all(path.exists() for path in share)

    def requeued() -> bool:
        return "PENDING" in cluster.call("squeue", "-h", "-j", f"{job}_1", "-o", "%T")

    _wait(requeued, 60, "the lost task in the queue")
    assert not (out / "summary.tsv").exists()
    cluster.call("scontrol", "update", f"jobid={job}_1", "starttime=now")  # else in two minutes
    _wait(lambda: not cluster.call("squeue", "-h"), 180, "the end of the array")

    log = (tmp_path / f"mmccd-{job}_1.log").read_text()
    assert "is up to date" in log
    assert f"All shares are through: {out / 'summary.tsv'}" in log

    alone = tmp_path / "alone"
    environment = {"MMCCD_WEIGHTS": str(bundle)}
    command = ["segment", "--from", str(listed), "--out-dir", str(alone), "--threads", "1"]
    assert CliRunner().invoke(app, command, env=environment).exit_code == 6  # the broken one
    assert _table(out) == _table(alone)
    for folder in folders:
        for suffix in (".nii.gz", "_mask.nii.gz"):
            ours, theirs = (
                read_nifti(d / f"{folder.name}{suffix}", allow_constant=True)[0].data
                for d in (out, alone)
            )
            assert np.array_equal(ours, theirs)
        assert (out / f"{folder.name}.json").is_file()
