"""Damaged and hostile DICOM: a volume or one of our errors, within bounded memory."""

from __future__ import annotations

import io
import os
import resource
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_phantoms import PARAMETERS, compress_jpeg, write_enhanced, write_series
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from mmccd_cli.errors import DataError, MmccdError
from mmccd_cli.inputs.dicom import headers
from mmccd_cli.inputs.dicom.files import DicomFile
from mmccd_cli.inputs.dicom.headers import NotUsable, read_frames
from mmccd_cli.inputs.dicom.pixels import read_stack
from mmccd_cli.inputs.dicom.studies import read_single_series, read_study
from mmccd_cli.inputs.phantom import make_affine
from mmccd_cli.inputs.volume import Volume

_SHAPE = (9, 7, 5)
_DEFLATED = pydicom.uid.DeflatedExplicitVRLittleEndian
_VALUES = {
    "Rows": (0, 1, 8, 65535),
    "Columns": (0, 1, 65535),
    "NumberOfFrames": ("0", "-1", "2", "2147483647", "1e9"),
    "SamplesPerPixel": (0, 3),
    "BitsAllocated": (0, 1, 8, 32, 64, 65535),
    "BitsStored": (0, 1, 12, 65535),
    "HighBit": (0, 65535),
    "PixelRepresentation": (1, 7),
    "PhotometricInterpretation": ("MONOCHROME1", "RGB", "PALETTE COLOR", "x" * 300),
    "PixelPaddingValue": (0, 65535),
    "PixelSpacing": ("0\\0", "-1\\1", "1e-300\\1", "nan\\nan", "99999\\1e5", "1", "x\\y"),
    "ImagePositionPatient": ("nan\\0\\0", "1e5\\0\\0", "1e400\\0\\0", "0\\0", "0\\0\\0"),
    "ImageOrientationPatient": ("0\\0\\0\\0\\0\\0", "1\\0\\0\\1\\0\\0", "nan\\0\\0\\0\\1\\0", "1"),
    "RescaleSlope": ("inf", "1e308", "-1", "0", "x"),
    "RescaleIntercept": ("nan", "-1e308"),
    "SeriesNumber": ("nan", "-5", "99999999999999"),
    "EchoNumbers": ("nan", "1\\2", "x"),
    "EchoTime": ("-1", "1e400", "x"),
    "ImageType": ("", "\\\\\\\\", "DERIVED"),
    "SeriesInstanceUID": ("", "1.2.3", "\0"),
    "SeriesDescription": ("\x1b[2J", "é" * 5000),
}


def scan() -> Volume:
    data = np.arange(np.prod(_SHAPE), dtype=np.float32).reshape(_SHAPE)
    return Volume(data, make_affine(_SHAPE, (20, 18, 15), "LPS", rotation_deg=(5, 0, 9)))


def write(folder: Path, kind: str) -> Path:
    """Write a series of some slices, or one file of all, in one of several encodings."""
    if kind == "enhanced":
        echoes = {15.0: scan(), 98.0: scan()}
        write_enhanced(echoes, folder / "IM1", tags={"EchoPulseSequence": "SPIN"})
        return folder
    for path in write_series(scan(), folder, tags=PARAMETERS["FLAIR"], dtype="uint16"):
        image = pydicom.dcmread(path)
        if kind == "deflated":
            image.file_meta.TransferSyntaxUID = _DEFLATED
        elif kind.startswith("JPEG"):
            compress_jpeg(path, kind)
            continue
        elif kind != "classic":
            image.compress(getattr(pydicom.uid, kind), generate_instance_uid=False)
        image.save_as(path)
    return folder


def harm_bytes(rng: np.random.Generator, content: bytes) -> bytes:
    """Overwrite, cut out, repeat or cut off some bytes."""
    start, length = int(rng.integers(128, len(content))), int(rng.integers(1, 9))
    what = rng.integers(4)
    if what == 0:
        return content[:start]
    if what == 1:
        return content[:start] + content[start + length :]
    if what == 2:
        return content[:start] + content[start - length :]
    extreme = rng.choice(np.frombuffer(b"\0\xff\x7f\x80\x01\\ 9", np.uint8), length)
    return content[:start] + extreme.tobytes() + content[start + length :]


def harm_header(rng: np.random.Generator, content: bytes) -> bytes:
    """Give an element another value, or none."""
    image = pydicom.dcmread(io.BytesIO(content))
    keyword = str(rng.choice(list(_VALUES)))
    places: list[Dataset] = [data for data in _all_datasets(image) if keyword in data] or [image]
    place = places[rng.integers(len(places))]
    if keyword in place and rng.random() < 0.2:
        delattr(place, keyword)
    else:
        value = _VALUES[keyword][rng.integers(len(_VALUES[keyword]))]
        vr = pydicom.datadict.dictionary_VR(pydicom.datadict.tag_for_keyword(keyword))
        vr = "US" if vr == "US or SS" else vr
        raw = value.to_bytes(2, "little") if isinstance(value, int) else value.encode()
        tag = pydicom.tag.Tag(keyword)
        place[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(raw), raw, 0, False, True)
    changed = io.BytesIO()
    image.save_as(changed)
    return changed.getvalue()


def _all_datasets(image: Dataset) -> list[Dataset]:
    nested = [item for element in image if element.VR == "SQ" for item in element.value]
    return [image, *(data for item in nested for data in _all_datasets(item))]


def harm_series(rng: np.random.Generator, paths: list[Path]) -> None:
    """Lose a slice, or have one in the place of another, or twice, or of another series."""
    path, other = (paths[index] for index in rng.integers(len(paths), size=2))
    what = rng.integers(4)
    if what == 0:
        other.unlink()
    elif what == 1:
        other.write_bytes(path.read_bytes())
    elif what == 2:
        image = pydicom.dcmread(path)
        image.SeriesInstanceUID, image.SeriesNumber = image.SeriesInstanceUID[:-2] + "77", 77
        image.save_as(path)
    else:
        uid = str(pydicom.dcmread(path).SOPInstanceUID).encode()
        path.with_name("again").write_bytes(path.read_bytes().replace(uid, uid[:-2] + b"00"))


def check_many(folder: Path, kind: str, count: int) -> None:
    """Read a series harmed in `count` ways; anything but a volume or our error fails."""
    rng = np.random.default_rng(7)
    whole = {path.name: path.read_bytes() for path in sorted(write(folder, kind).iterdir())}
    (stack,) = read_study(folder).stacks.values()
    np.testing.assert_array_equal(read_stack(stack)[0].data, scan().data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    errors: list[MmccdError] = []
    with np.errstate(all="ignore"):
        for _ in range(count):
            for path in folder.iterdir():
                path.unlink()
            for name, content in whole.items():
                (folder / name).write_bytes(content)
            if kind != "enhanced" and rng.random() < 0.1:
                harm_series(rng, [folder / name for name in whole])
            victims = rng.choice(sorted(whole), rng.choice([1, len(whole)]), replace=False)
            harm: Callable[..., bytes] = harm_header if rng.random() < 0.5 else harm_bytes
            state = rng.bit_generator.state
            for name in victims:
                rng.bit_generator.state = state  # the same to each
                (folder / name).write_bytes(harm(rng, whole[name]))
            try:
                for stack in read_study(folder).stacks.values():
                    assert np.isfinite(read_stack(stack)[0].data).all()
                read_stack(read_single_series(folder))
            except MmccdError as error:
                errors.append(error)
    said = "".join(f"{error.message}{error.cause}" for error in errors)
    assert {error.exit_code for error in errors} == {3}
    assert "IM" not in said.replace(str(folder), "")
    assert len(errors) > count / 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB


KINDS = [
    "classic",
    "RLELossless",
    "deflated",
    "JPEGLosslessProcess14_1",
    "JPEGLSLossless",
    "JPEG2000Lossless",
    "enhanced",
]


@pytest.mark.parametrize("kind", KINDS)
def test_harmed_series_are_read_or_refused(tmp_path, kind):
    check_many(tmp_path / "case", kind, 30)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_series_harmed_in_many_ways_are_read_or_refused(tmp_path, kind):
    check_many(tmp_path / "case", kind, int(os.environ.get("MMCCD_FUZZ", "300")))


def test_a_deflated_file_that_would_fill_memory_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "MAX_FILE_BYTES", 2**22)
    folder = write(tmp_path / "case", "deflated")
    content = (folder / "IM0001").read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    plain = zlib.decompress(content[start:], -zlib.MAX_WBITS)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = content[:start] + packer.compress(plain)
    bomb += packer.compress(bytes(2**23)) + packer.flush()
    with pytest.raises(NotUsable, match="too large"):
        read_frames(DicomFile(Path("x")), io.BytesIO(bomb))


def test_millions_of_empty_items_are_not_read(tmp_path):
    folder = write(tmp_path / "case", "enhanced")
    content = (folder / "IM1").read_bytes()
    image = pydicom.dcmread(io.BytesIO(content))
    empty = b"\xfe\xff\x00\xe0\0\0\0\0" * 2_000_000
    image[0x0008, 0x1140] = pydicom.dataelem.RawDataElement(
        pydicom.tag.Tag(0x0008, 0x1140), "SQ", len(empty), empty, 0, False, True
    )
    image.save_as(folder / "IM1")
    started = time.process_time()
    with pytest.raises(DataError, match="no DICOM image of MR") as caught:
        read_study(folder)
    assert "more items than an image of a head has" in str(caught.value.cause)
    assert time.process_time() - started < 2


def test_headers_that_announce_too_much_are_left_out(tmp_path):
    folder = write(tmp_path / "case", "classic")
    with zipfile.ZipFile(tmp_path / "case.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            image = pydicom.dcmread(path)
            image.Rows = image.Columns = 60000
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image.save_as(path)
            archive.write(path, path.name)
    for source in (folder, tmp_path / "case.zip"):
        with pytest.raises(DataError, match="no DICOM image of MR") as caught:
            read_study(source)
        assert caught.value.cause == "What was found: 5 files: too large for an image of a head."
