"""What of an error may be written into files that are shared."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mmccd_cli.errors import (
    ComputeError,
    DataError,
    StorageError,
    UsageError,
    as_mmccd_error,
    check_address_space,
    unwritable,
    without_folders,
)


@pytest.mark.parametrize(
    ("text", "known", "told"),
    [
        ("a/b of 3 1/2 mm in g/ml", [], "a/b of 3 1/2 mm in g/ml"),
        ("see /a/b/c.nii and 'C:\\x\\y.nii'", [], "see c.nii and 'y.nii'"),
        ("see ../../b/../c.nii", [], "see b/../c.nii"),
        ("Jane Doe/s 1/f.nii is odd", ["Jane Doe/s 1"], "f.nii is odd"),
        ("Jane Doe/s 1 is empty.", ["Jane Doe/s 1"], "s 1 is empty."),
        ("Jane Doe/s 1/ is empty.", ["Jane Doe/s 1/"], "s 1 is empty."),
        ("ls -l '../Jane Doe/s 1/f.nii'", ["../Jane Doe/s 1/f.nii"], "ls -l 'f.nii'"),
        ("Jane Doe cannot be written", ["x/Jane Doe/s1.nii"], "Jane Doe cannot be written"),
        ("x/Jane Doe cannot be made", ["x/Jane Doe/s1.nii"], "Jane Doe cannot be made"),
        ("out/a.nii exists, without/out it", ["out/a.nii"], "a.nii exists, without/out it"),
        ("FLAIR/T2w and data/", ["data"], "FLAIR/T2w and data"),
    ],
)
def test_messages_lose_folders_and_nothing_else(text: str, known: list[str], told: str) -> None:
    assert without_folders(text, known) == told


def test_absolute_forms_of_what_was_typed_lose_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "Jane Doe" / "scans"
    home.mkdir(parents=True)
    (tmp_path / "link").symlink_to(home)
    monkeypatch.chdir(home)
    error = DataError(
        f"{home}/s 1/f.nii is odd.", cause=f"So is {home}.", next_step=f"rm '{tmp_path}/link/x y'"
    )
    for known in ("s 1", str(tmp_path / "link" / "s 1")):
        told = error.without_folders([known, str(tmp_path / "link")])
        assert (type(told), told.message) == (DataError, "f.nii is odd.")
        assert (told.cause, told.next_step) == ("So is scans.", "rm 'x y'")
        assert error.message.startswith(str(home)), "what people read on the terminal is whole"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), ComputeError),
        (ImportError("libtorch.so: failed to map segment from shared object"), ComputeError),
        (OSError(12, "Cannot allocate memory"), ComputeError),
        (RuntimeError("mmap: Cannot allocate memory"), ComputeError),
        (OSError(28, "No space left on device"), StorageError),
        (OSError(122, "Disk quota exceeded", "a.nii"), StorageError),
    ],
)
def test_what_the_computer_lacks_is_no_bug(error: Exception, kind: type) -> None:
    known = as_mmccd_error(error)
    assert type(known) is kind
    assert known.exit_code == 5
    assert known.next_step


def test_a_shell_without_letters_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnicodeEncodeError) as caught:
        "sübjekt".encode("ascii")
    error = caught.value
    assert "bug" in str(as_mmccd_error(error).cause), "names of files are written as utf-8 here"
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    known = as_mmccd_error(error)
    assert (type(known), known.exit_code) == (UsageError, 2)
    assert "LC_ALL" in str(known.next_step)


def test_a_full_disk_is_another_error_than_a_missing_permission() -> None:
    full = unwritable("It could not be written.", OSError(28, "No space left on device"))
    assert (type(full), full.exit_code) == (StorageError, 5)
    locked = unwritable("It could not be written.", OSError(13, "Permission denied"))
    assert (type(locked), locked.exit_code) == (UsageError, 2)


def test_too_low_a_limit_of_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    for limit in (resource.RLIM_INFINITY, 2_000_000 * 1024):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        check_address_space()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1_000_000 * 1024,) * 2)
    with pytest.raises(ComputeError, match=r"may use 1\.0 GB of memory") as caught:
        check_address_space()
    assert "ulimit -v" in str(caught.value.next_step)
