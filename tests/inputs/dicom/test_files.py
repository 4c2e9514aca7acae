"""Finding DICOM files in folders and archives, whatever surrounds them."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from mmccd_cli.errors import DataError
from mmccd_cli.inputs.dicom import files
from mmccd_cli.inputs.dicom.files import (
    find_dicom_files,
    has_dicom_files,
    open_files,
    sha256_of_files,
)

DICOM = bytes(128) + b"DICM" + bytes(8)
BARE = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100"  # without the preamble


def found(source: Path) -> tuple[list[str], list[str]]:
    unread: list[str] = []
    listed = find_dicom_files(source, unread)
    return [Path(file.member or file.path).name for file in listed], unread


def put(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def zipped(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


CONTENTS = {
    "a/deep/IM1": DICOM,
    "a/IM2.dcm": DICOM,
    "b/bare": BARE,
    "DICOMDIR": DICOM,
    "b/._IM2.dcm": DICOM,
    "__MACOSX/IM2": DICOM,
    "notes.txt": b"\x08 is no DICOM, and this is longer than any header" * 5,
    "empty": b"",
    "t1.nii.gz": DICOM,
}
EXPECTED = {"IM1", "IM2.dcm", "bare"}


def test_files_are_told_by_their_content_in_folders_and_archives(tmp_path):
    folder = put(tmp_path / "case", CONTENTS)
    assert set(found(folder)[0]) == EXPECTED
    assert set(found(zipped(tmp_path / "case.zip", CONTENTS))[0]) == EXPECTED
    assert has_dicom_files(folder)
    assert not has_dicom_files(put(tmp_path / "none", {"a": b"text"}))


def test_links_that_lead_back_end(tmp_path):
    folder = put(tmp_path / "case", {"a/IM1": DICOM})
    (folder / "a" / "up").symlink_to(folder)
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    elsewhere = put(tmp_path / "elsewhere", {"IM2": DICOM})
    (folder / "linked").symlink_to(elsewhere)
    assert set(found(folder)[0]) == {"IM1", "IM2"}


def test_names_that_are_no_text_are_read(tmp_path):
    folder = tmp_path / os.fsdecode(b"M\xfcller")
    try:
        put(folder, {os.fsdecode(b"IM\xff1"): DICOM})
    except OSError:
        pytest.skip("this file system only takes names in UTF-8")
    assert len(found(folder)[0]) == 1


def test_an_archive_cannot_write_or_read_outside_itself(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    names = {"../evil": DICOM, "/etc/evil": DICOM, "a/../../evil": DICOM, "..\\evil": DICOM}
    archive = zipped(inside / "case.zip", {**names, "good": DICOM})
    before = sorted(tmp_path.rglob("*"))
    names_found, unread = found(archive)
    assert names_found == ["good"]
    assert unread == 4 * ["its name points out of the archive"]
    assert sorted(tmp_path.rglob("*")) == before


def test_an_archive_that_would_fill_memory_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    bomb = zipped(tmp_path / "bomb.zip", {f"IM{n}": DICOM + bytes(300_000) for n in range(10)})
    assert bomb.stat().st_size < 10_000
    monkeypatch.setattr(files, "MAX_ARCHIVE_BYTES", 2**20)
    monkeypatch.setattr(
        zipfile.ZipFile, "open", lambda *args, **kwargs: pytest.fail("it was unpacked")
    )
    with pytest.raises(DataError, match="too much for one subject"):
        found(bomb)


def test_a_member_gives_no_more_than_the_archive_announces(tmp_path):
    # A table of contents that lies: 3 MB are announced as 200 bytes.
    path = zipped(tmp_path / "liar.zip", {"IM1": DICOM + bytes(3_000_000)})
    size = (len(DICOM) + 3_000_000).to_bytes(4, "little")
    assert path.read_bytes().count(size) == 2
    path.write_bytes(path.read_bytes().replace(size, (200).to_bytes(4, "little")))
    names, unread = found(path)
    assert (names, unread) == ([], ["damaged in the archive"])


def test_what_no_image_needs_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 2**20)
    contents = {"large": DICOM + bytes(2**20), "IM1": DICOM + bytes(2**20 - len(DICOM))}
    sources = [put(tmp_path / "case", contents), zipped(tmp_path / "case.zip", contents)]
    for source in sources:
        assert found(source) == (["IM1"], ["too large for an image of a head"])
        ((_, stream),) = open_files(find_dicom_files(source, []), most_bytes=500)
        assert len(stream.read()) == 500
    with zipfile.ZipFile(tmp_path / "other.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("IM1", DICOM)  # its decoder gives all at once, however much that is
    assert found(tmp_path / "other.zip")[1] == [
        "compressed in another way than DICOM allows in archives"
    ]


def test_a_damaged_member_is_told(tmp_path):
    path = zipped(tmp_path / "case.zip", {"IM1": DICOM + os.urandom(300_000)})
    content = bytearray(path.read_bytes())
    content[250_000] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"A DICOM file in .*case.zip is damaged"):
        list(open_files(find_dicom_files(path, [])))


def test_broken_and_encrypted_archives_are_told(tmp_path):
    whole = zipped(tmp_path / "case.zip", CONTENTS).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="breaks off"):
        found(tmp_path / "cut.zip")
    encrypted = bytearray(zipped(tmp_path / "x.zip", {"IM1": DICOM}).read_bytes())
    place = encrypted.index(b"PK\x01\x02") + 8
    encrypted[place] |= 1
    (tmp_path / "x.zip").write_bytes(bytes(encrypted))
    with pytest.raises(DataError, match="encrypted"):
        found(tmp_path / "x.zip")


def test_too_many_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILES", 3)
    with pytest.raises(DataError, match="more than 3 files"):
        found(put(tmp_path / "case", {f"IM{n}": DICOM for n in range(4)}))


def test_a_file_that_has_gone_is_told(tmp_path):
    folder = put(tmp_path / "case", {"IM1": DICOM})
    listed = find_dicom_files(folder, [])
    (folder / "IM1").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        list(open_files(listed))


def test_the_hash_is_of_the_contents_alone(tmp_path):
    def of(source: Path) -> str:
        return sha256_of_files(find_dicom_files(source, []))

    first = put(tmp_path / "first", {"1": DICOM + b"a", "2": DICOM + b"b"})
    renamed = put(tmp_path / "renamed", {"x/2": DICOM + b"a", "y/1": DICOM + b"b"})
    archive = zipped(tmp_path / "x.zip", {"1": DICOM + b"a", "2": DICOM + b"b"})
    other = put(tmp_path / "other", {"1": DICOM + b"a", "2": DICOM + b"c"})
    assert of(first) == of(renamed) == of(archive) != of(other)
