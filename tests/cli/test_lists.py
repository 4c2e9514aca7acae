"""Lists of folders: nothing that never ends or never begins is waited for."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mmccd_cli.cli import lists
from mmccd_cli.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "PATIENCE_S", 0.2)
    monkeypatch.setattr(lists, "MOST_BYTES", 1 << 16)


def test_a_pipe_that_somebody_writes_is_read_whole(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    names = [f"sub-{number:04d}" for number in range(5000)]
    text = "\n".join(names)
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(text,), daemon=True)
    writer.start()
    assert lists.read_list(tmp_path / "pipe", null=False) == [Path(name) for name in names]
    writer.join()


def test_the_mark_that_windows_puts_before_a_text_is_no_name(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfsub-1\r\nsub-2\r\n")
    assert lists.read_list(tmp_path / "list.txt", null=False) == [Path("sub-1"), Path("sub-2")]
    (tmp_path / "list.txt").write_text("sub-ä\r\nsub-2\r\n", encoding="utf-16", newline="")
    assert lists.read_list(tmp_path / "list.txt", null=False) == [Path("sub-ä"), Path("sub-2")]


def test_a_pipe_that_nobody_writes_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="Nothing was written into the pipe"):
        lists.read_list(tmp_path / "pipe", null=False)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no /dev/zero here")
def test_a_device_without_an_end_is_refused() -> None:
    with pytest.raises(UsageError, match="MiB"):
        lists.read_list(Path("/dev/zero"), null=True)


def test_a_list_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="itself a folder"):
        lists.read_list(tmp_path, null=False)
    with pytest.raises(DataError, match="There is no list") as caught:
        lists.read_list(tmp_path / "gone", null=False)
    assert "name" in str(caught.value.next_step)
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UsageError, match="closed"):
        lists.read_list(None, null=False)
