"""`mmccd doctor`: what works here, as text to paste into a question.

Each check looks at one thing and never raises. It names no person and no folder of theirs: the
home folder is written as ~.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import typer

from mmccd_cli import __version__
from mmccd_cli.cli import options
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import JsonConsole
from mmccd_cli.errors import ComputeError, WeightsError

Status = Literal["ok", "note", "fail"]

EXTRAS = {
    "dicom-seg": ("DICOM SEG output", ("highdicom",)),
    "dicom-codecs": ("compressed DICOM input", ("python-gdcm",)),
    "dask": ("cohorts on a Dask cluster", ("distributed",)),
}
"""Optional parts: what each is for, and its packages."""

PACKAGES = ("numpy", "scipy", "nibabel", "SimpleITK", "connected-components-3d")
"""What must be there beside torch."""

LEAST_FREE_MB = 500
SAFE_MEMORY = 2 << 30
NETWORK_SECONDS = 5
_SIGNS = {"ok": "ok  ", "note": "note", "fail": "FAIL"}
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found, in one line for people, and what the program ends with for it.

    The status is "note" where something optional is missing, "fail" where mmccd cannot work.
    """

    check: str
    status: Status
    text: str
    next_step: str | None = None
    exit_code: int = 0


def _ok(check: str, text: str) -> Finding:
    return Finding(check=check, status="ok", text=text)


def _note(check: str, text: str, next_step: str | None = None) -> Finding:
    return Finding(check=check, status="note", text=text, next_step=next_step)


def _fail(check: str, text: str, next_step: str | None = None, *, exit_code: int) -> Finding:
    return Finding(check=check, status="fail", text=text, next_step=next_step, exit_code=exit_code)


@command
def doctor(
    *,
    offline: options.Offline = False,
    cache_dir: options.CacheDir = None,
    console: JsonConsole,
) -> None:
    """Check this installation, as text to paste into a question.

    Looks at packages, processor, memory, devices, weights, cache and network.

    Ends with 0 where mmccd can segment here, also where something optional is missing; with 4
    where weights are damaged or missing, 5 where torch or a device does not compute, 1 where a
    package is missing or a check itself breaks. The text names no person and no folder of theirs.

    Examples:
      mmccd doctor
      mmccd doctor --offline --json
    """
    findings: list[Finding] = []
    for finding in _examine(offline, cache_dir):
        findings.append(finding)
        if not console.as_json:
            console.result(_line(finding))
    code = next((finding.exit_code for finding in findings if finding.status == "fail"), 0)
    described = [asdict(finding) for finding in findings]
    console.answer({"exit_code": code, "findings": described})
    raise typer.Exit(code)


def _line(finding: Finding) -> str:
    line = f"{_SIGNS[finding.status]}  {finding.check:<9}  {finding.text}"
    return f"{line}\n{'':17}{finding.next_step}" if finding.next_step else line


def _examine(offline: bool, cache_dir: Path | None) -> Iterator[Finding]:
    """Check everything, one finding after the other."""
    yield _program()
    checks = {
        "packages": _packages,
        "torch": _torch,
        "processor": _processor,
        "memory": _memory,
        "weights": _weights,
        "cache": lambda: _cache(cache_dir),
        "network": lambda: _network(offline),
        "extras": _extras,
    }
    for check, look in checks.items():
        try:
            yield from look()
        except Exception as error:  # a check that breaks is a finding, too
            said = " ".join(str(error).split()) or "no reason given"
            yield _fail(check, f"{type(error).__name__}: {said}", exit_code=1)


def _program() -> Finding:
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    where = "in a virtual environment" if sys.prefix != sys.base_prefix else "system-wide"
    text = f"mmccd {__version__}, Python {platform.python_version()} {where}, {system}"
    return _ok("program", text)


def _packages() -> Iterator[Finding]:
    there, missing = _versions(PACKAGES)
    if missing:
        step = f"pip install {' '.join(missing)}"
        yield _fail("packages", f"missing: {', '.join(missing)}", step, exit_code=1)
    yield _ok("packages", ", ".join(there))


def _processor() -> Iterator[Finding]:
    from mmccd_cli.host import available_threads

    limits = [
        f"{name}={os.environ[name]}"
        for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK")
        if os.environ.get(name)
    ]
    said = f" ({', '.join(limits)})" if limits else ""
    used = f"uses {available_threads()} of {os.cpu_count()} processor cores"
    yield _ok("processor", used + said)


def _memory() -> Iterator[Finding]:
    from mmccd_cli.host import cgroup_memory_limit

    if not hasattr(os, "sysconf"):
        yield _note("memory", "cannot be asked on this system")
        return
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = cgroup_memory_limit()
    text = f"{total / 2**30:.1f} GiB"
    if limit is not None and limit < total:
        text += f", of which this process may use {limit / 2**30:.1f} GiB"
    enough = min(total, limit or total) >= SAFE_MEMORY
    yield _ok("memory", text) if enough else _note("memory", text, "2 GiB are safe")


def _torch() -> Iterator[Finding]:
    began = time.perf_counter()
    try:
        import torch
    except ImportError as error:
        yield _fail("torch", f"cannot be imported: {error}", "pip install torch", exit_code=5)
        return
    seconds = time.perf_counter() - began
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    text = f"torch {torch.__version__}, built with {built}, imported in {seconds:.1f} s"
    yield _ok("torch", text)
    if not torch.version.cuda and (_NVIDIA_DRIVER.exists() or shutil.which("nvidia-smi")):
        yield _note(
            "cuda",
            "this computer has an NVIDIA driver, but this torch cannot use it",
            "Install a CUDA build: https://pytorch.org/get-started/locally",
        )
    names = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    for name in ["cpu", *names]:
        yield _device(name)


def _device(name: str) -> Finding:
    """Compare a convolution on a device with its sum in double precision."""
    import torch

    from mmccd_cli.translation.devices import choose_device, describe_device

    try:
        device = choose_device(name)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, 8, 32, 32, generator=generator)
        kernel = torch.randn(8, 8, 3, 3, generator=generator)
        exact = torch.nn.functional.conv2d(x.double(), kernel.double(), padding=1)
        found = torch.nn.functional.conv2d(x.to(device), kernel.to(device), padding=1)
        error = float((found.double().cpu() - exact).abs().max() / exact.abs().max())
        text = f"{describe_device(device)}: convolution right to {error:.0e}"
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            text += f", {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    except (ComputeError, RuntimeError) as failure:
        reason = getattr(failure, "cause", None) or str(failure).splitlines()[0]
        return _fail("device", f"{name} does not compute: {reason}", "--device cpu", exit_code=5)
    if error > 1e-2:  # TF32 keeps three digits
        return _fail("device", text, "--device cpu", exit_code=5)
    return _ok("device", text)


def _weights() -> Iterator[Finding]:
    from mmccd_cli.weights.registry import embedded_bundles
    from mmccd_cli.weights.resolve import find_source, resolve

    for name in embedded_bundles():
        try:
            bundle = resolve(name, offline=True)
        except WeightsError as error:
            step = "Install mmccd again."
            yield _fail("weights", f"{name}: {error.message}", step, exit_code=error.exit_code)
            continue
        version, size = bundle.index.text("version"), bundle.index.total_bytes / 1e6
        text = f"{name} {version}, {size:.1f} MB, sha256 {bundle.index.sha256}"
        yield _ok("weights", text)
    try:
        default = find_source(None)
    except WeightsError as error:
        step = "Unset MMCCD_WEIGHTS, or set it to a bundle; see: mmccd weights list"
        yield _fail("weights", error.message, step, exit_code=error.exit_code)
        return
    yield _ok("weights", f"used by default: {default.spec} ({default.origin})")


def _cache(cache_dir: Path | None) -> Iterator[Finding]:
    from mmccd_cli.weights import hub

    folder = hub.cache_folder(cache_dir)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free_mb = shutil.disk_usage(existing).free // 10**6
    number = len(hub.list_cached(folder))
    text = f"{_anonymous(folder)}: {number} repositories, {free_mb} MB free"
    if not os.access(existing, os.W_OK):
        yield _note("cache", f"{text}, cannot be written", "Set MMCCD_CACHE_DIR.")
    elif free_mb < LEAST_FREE_MB:
        yield _note("cache", text, "Set MMCCD_CACHE_DIR to a folder with more space.")
    else:
        yield _ok("cache", text)


def _network(offline: bool) -> Iterator[Finding]:
    from mmccd_cli.weights import hub

    if offline or hub.is_offline():
        yield _ok("network", "not asked (offline)")
        return
    from huggingface_hub import constants

    address, began = str(constants.ENDPOINT), time.perf_counter()
    problem: list[str] = []
    # In a thread, because no timeout holds for the look-up of the address.
    asking = threading.Thread(target=lambda: problem.append(_ask(address)), daemon=True)
    asking.start()
    asking.join(NETWORK_SECONDS + 1)
    said = problem[0] if problem else f"no answer within {NETWORK_SECONDS} s"
    if said:
        step = "Embedded and downloaded weights work without a network."
        yield _note("network", f"{address} cannot be reached: {said}", step)
        return
    seconds = time.perf_counter() - began
    yield _ok("network", f"{address} answers in {seconds:.1f} s")


def _ask(address: str) -> str:
    """Return why an address does not answer; nothing where it does, with whatever it says."""
    import urllib.error
    import urllib.request

    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=NETWORK_SECONDS):
            return ""
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__


def _extras() -> Iterator[Finding]:
    for extra, (purpose, packages) in EXTRAS.items():
        there, missing = _versions(packages)
        if missing:
            step = f'pip install "mmccd[{extra}]"'
            yield _note("extras", f"{extra} ({purpose}) is not installed", step)
        else:
            yield _ok("extras", f"{extra} ({purpose}): {', '.join(there)}")


def _versions(packages: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return "name version" of those that are there, and the names of the others."""
    from mmccd_cli.outputs.record import package_versions

    found = package_versions(packages)
    there = [f"{name} {version}" for name, version in found.items()]
    return there, [name for name in packages if name not in found]


def _anonymous(path: Path) -> str:
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except (ValueError, RuntimeError):  # elsewhere, or no home folder
        return str(path)
