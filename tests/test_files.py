"""Files appear whole or not at all, never over an input, and JSON is read with suspicion."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmccd_cli.errors import DataError, MmccdError, StorageError, UsageError, WeightsError
from mmccd_cli.files import (
    atomic_path,
    check_json,
    read_json,
    read_json_as,
    refuse_to_overwrite,
    remove_leftovers,
    write_atomically,
)


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_an_input_is_never_overwritten_not_even_with_force(tmp_path: Path, link: Any) -> None:
    source = out = tmp_path / "flair.nii.gz"
    source.write_bytes(b"scan")
    if link is not None:
        out = tmp_path / "map.nii.gz"
        link(source, out)
    with pytest.raises(UsageError, match="never overwritten"):
        refuse_to_overwrite([tmp_path / "new", out], [source], force=True)


def test_what_exists_needs_force(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path in paths[1:]:
        path.touch()
    with pytest.raises(UsageError, match="b and 1 more exist already") as caught:
        refuse_to_overwrite(paths, force=False)
    assert "--force" in str(caught.value.next_step)
    refuse_to_overwrite(paths, force=True)
    refuse_to_overwrite(paths[:1], force=False)


def test_a_folder_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        refuse_to_overwrite([tmp_path], force=True)


def test_a_missing_folder_is_refused_unless_it_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    missing = tmp_path / "no" / "such" / "map.nii.gz"
    with pytest.raises(UsageError, match="does not exist") as caught:
        refuse_to_overwrite([missing], force=False)
    assert "mkdir" in str(caught.value.next_step)
    refuse_to_overwrite([missing], force=False, make_folders=True)
    assert not (tmp_path / "no").exists()
    with pytest.raises(UsageError, match="is a file"):
        refuse_to_overwrite([tmp_path / "file" / "a"], force=True, make_folders=True)


@pytest.mark.parametrize("make_folders", [False, True])
@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EACCES, UsageError), (errno.ENOSPC, StorageError)]
)
def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_folders: bool,
    number: int,
    kind: type[MmccdError],
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refused)
    folder = tmp_path / "new" if make_folders else tmp_path
    with pytest.raises(kind, match=f"{folder} cannot be written"):
        refuse_to_overwrite([folder / "a"], force=False, make_folders=make_folders)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no folder that nobody can write")
def test_a_folder_that_only_permissions_let_be_written_is_refused() -> None:
    for target, make in ((Path("/proc/map"), False), (Path("/proc/new/map"), True)):
        with pytest.raises(UsageError, match="cannot be written"):
            refuse_to_overwrite([target], force=False, make_folders=make)


def test_a_process_that_ends_leaves_no_trace_of_trying_a_folder(tmp_path: Path) -> None:
    code = """
import sys, threading, time
from pathlib import Path
from mmccd_cli import files
make, made = Path.mkdir, threading.Event()
def make_slowly(path):
    make(path)
    made.set()
    time.sleep(0.3)
Path.mkdir = make_slowly
target = Path(sys.argv[1]) / "map.nii.gz"
trying = threading.Thread(target=files.refuse_to_overwrite, args=([target],), kwargs={"force": 1})
trying.start()
made.wait()
files.end_process(7)
"""
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=240)
    assert ended.returncode == 7
    assert not list(tmp_path.iterdir())


def test_a_writer_that_wants_a_path_writes_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "weights.pt"
    with atomic_path(target) as path:
        path.write_bytes(b"first")
        assert not target.exists()
        remove_leftovers(target)  # as a run does that begins now in the same folder

    def fails_half_way() -> None:
        with atomic_path(target) as path:
            path.write_bytes(b"half of the sec")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails_half_way()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("weights.pt", b"first")]
    write_atomically(tmp_path / "plain", b"")
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["map_of_a.nii.gz", "ü" * 127, os.fsdecode(b"\xff" * 255)])
def test_only_what_a_killed_writer_left_is_removed(tmp_path: Path, name: str) -> None:
    target, other = tmp_path / name, tmp_path / f".{name[:9]}.0123abcd.tmp"

    def killed() -> None:
        with atomic_path(target) as path:
            path.write_bytes(b"half")
            path.rename(path.with_name(path.name[:-12] + "89abcdef.tmp"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        killed()
    other.touch()
    write_atomically(target, b"whole")
    assert len(list(tmp_path.iterdir())) == 3
    remove_leftovers(target, tmp_path / "nowhere" / "file")
    assert set(tmp_path.iterdir()) == {target, other}


def test_what_another_run_is_writing_is_no_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, seen, flush = tmp_path / "map.nii", list[Path](), os.fsync

    def beside(descriptor: int) -> None:
        remove_leftovers(target)  # as a run does that begins now in the same folder
        seen.extend(tmp_path.glob(".map.nii.*.tmp"))
        flush(descriptor)

    monkeypatch.setattr("mmccd_cli.files.os.fsync", beside)
    write_atomically(target, b"whole")
    assert len(seen) >= 1
    assert list(tmp_path.iterdir()) == [target]
    seen[0].write_bytes(b"half")
    remove_leftovers(target)
    assert list(tmp_path.iterdir()) == [target]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        read_json(tmp_path / "pipe")
    with pytest.raises(DataError, match="cannot be read"):
        read_json_as(tmp_path / "pipe", list[int], what="a list")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe\xfd", "is not JSON"),
        (b"[NaN]", "NaN is not a finite number"),
        (b"[-Infinity]", "not a finite number"),
        (b"[1e999]", "1e999 is not a finite number"),
        (b"[1" + 400 * b"0" + b"]", "0 is not a finite number"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1, 2, 3, 4, 5, 6, 7, 8, 9]", "larger than 20 bytes"),
    ],
)
def test_json_is_bounded_and_strict(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_json(path, most_bytes=20 if reason.startswith("larger") else 1 << 20)
    with pytest.raises(DataError, match=r"file\.json is not a list of lists\."):
        read_json_as(path, list[list[int]], what="a list of lists")


def test_json_that_holds_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text('{"train": ["a", 3]}')
    with pytest.raises(WeightsError, match=r"split\.json is not a split file\.") as caught:
        read_json_as(path, dict[str, list[str]], what="a split file", error=WeightsError)
    assert caught.value.cause == "What is wrong: train[1] must be a valid string, got 3."
    with pytest.raises(DataError, match="cannot be read") as unread:
        read_json_as(tmp_path / "none", list[int], what="a list", next_step="Make it.")
    assert (unread.value.cause, unread.value.next_step) == (
        "The system says: No such file or directory.",
        "Make it.",
    )


def test_checked_json_has_the_types_that_were_asked_for() -> None:
    assert check_json(dict[str, tuple[int, ...]], {"a": [1, 2]}) == {"a": (1, 2)}
    for wrong in (True, 1.0, "1", None):
        with pytest.raises(ValueError, match=r"it\[0\] must be a valid integer, got"):
            check_json(list[int], [wrong], "it")
