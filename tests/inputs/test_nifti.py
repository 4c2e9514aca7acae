"""NIfTI in and out: exact geometry, any number type, and one clear error for each bad file."""

from __future__ import annotations

import contextlib
import gzip
import os
import shlex
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from grids import AFFINES, RAMP, SHAPE, SHEARED, SINGULAR
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.cmdline import convert

from mmccd_cli.errors import Caution, DataError, GeometryError, UsageError
from mmccd_cli.inputs import nifti
from mmccd_cli.inputs.nifti import encode_nifti, make_grid, read_nifti, write_nifti
from mmccd_cli.inputs.phantom import make_affine
from mmccd_cli.inputs.volume import Volume

# fmt: off
GEOMETRY_FIELDS = (
    "sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c",
    "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units",
)
# fmt: on


def saved(path: Path, data=RAMP, affine=AFFINES["RAS"], **header) -> Path:
    image = nib.Nifti1Image(np.asarray(data), affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


@pytest.mark.parametrize("affine", [*AFFINES.values(), SHEARED], ids=[*AFFINES, "sheared"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_written_file_comes_back_the_same_also_for_nibabel(tmp_path, affine, suffix):
    path = tmp_path / f"a{suffix}"
    write_nifti(path, RAMP, make_grid(SHAPE, affine))
    volume, grid = read_nifti(path)
    image = nib.load(path)
    np.testing.assert_array_equal(volume.data, RAMP)
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), RAMP)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(volume.affine, image.affine)
    np.testing.assert_array_equal(volume.affine, grid.affine)


@pytest.mark.parametrize("codes", [(1, 1), (0, 1), (4, 0), (2, 1), (0, 0)])
@pytest.mark.parametrize("unit", ["mm", "unknown"])
def test_an_output_repeats_every_field_of_geometry(tmp_path, codes, unit):
    image = nib.Nifti1Image(RAMP, AFFINES["oblique"])
    image.set_sform(AFFINES["oblique"], codes[0])
    image.set_qform(AFFINES["oblique"], codes[1])
    image.header.set_xyzt_units(unit, "sec")
    image.header["pixdim"][0] = 1
    nib.save(image, tmp_path / "in.nii.gz")
    _, grid = read_nifti(tmp_path / "in.nii.gz")
    write_nifti(tmp_path / "out.nii.gz", np.zeros(SHAPE, np.uint8), grid, intent="label")
    before, after = (nib.load(tmp_path / name) for name in ("in.nii.gz", "out.nii.gz"))
    np.testing.assert_array_equal(before.affine, after.affine)
    for field in GEOMETRY_FIELDS:
        np.testing.assert_array_equal(before.header[field], after.header[field], err_msg=field)
    np.testing.assert_array_equal(before.header["pixdim"][:4], after.header["pixdim"][:4])
    assert after.header.get_intent()[0] == "label"
    assert after.get_data_dtype() == np.uint8


def test_nothing_but_geometry_passes_from_an_input_to_an_output(tmp_path):
    texts = {"descrip": b"Doe^Jane 1961", "aux_file": b"ID-4711", "intent_name": b"Hospital"}
    numbers = {"dim_info": 57, "slice_duration": 0.7, "toffset": 12.5, "cal_max": 815}
    _, grid = read_nifti(saved(tmp_path / "in.nii", **texts, db_name=b"Doe^Jane", **numbers))
    written, blank = (
        nib.Nifti1Image.from_bytes(encode_nifti(RAMP, grid, compress=False)).header
        for grid in (grid, make_grid(SHAPE, np.eye(4)))
    )
    for field in set(written) - {*GEOMETRY_FIELDS, "pixdim"}:
        np.testing.assert_array_equal(written[field], blank[field], err_msg=field)
    for value in (*texts.values(), b"Doe"):
        assert value not in grid.header.binaryblock + written.binaryblock


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 8)] * 3),
    flip=st.sampled_from([1.0, -1.0]),
)
def test_any_rotation_and_spacing_survives_the_file(angles, spacing, flip):
    affine = make_affine(SHAPE, spacing, "RAS", rotation_deg=angles) @ np.diag([flip, 1, 1, 1])
    grid = make_grid(SHAPE, affine)
    image = nib.Nifti1Image.from_bytes(encode_nifti(RAMP, grid, compress=False))
    np.testing.assert_allclose(image.affine, affine, atol=2e-3)
    np.testing.assert_array_equal(image.affine, grid.affine)
    volume = Volume(RAMP, affine)
    np.testing.assert_allclose(volume.spacing_mm, spacing, rtol=1e-6)
    assert volume.voxel_volume_mm3 == pytest.approx(np.prod(spacing))


@pytest.mark.parametrize(
    "dtype", ["u1", "i1", "<i2", ">i2", "<u2", ">i4", "<i8", "<f4", ">f4", ">f8"]
)
def test_every_number_type_and_byte_order_is_read(tmp_path, dtype):
    header = nib.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    data = (RAMP % 100).astype(dtype)
    image = nib.Nifti1Image(data, AFFINES["LPS"], header, dtype=data.dtype)
    image.to_filename(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii.gz")[0].data, RAMP % 100)


def test_slope_and_intercept_are_applied(tmp_path):
    image = nib.Nifti1Image(RAMP.astype(np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, -1000)
    nib.save(image, tmp_path / "a.nii")
    stored = nib.load(tmp_path / "a.nii")
    assert np.isfinite(stored.dataobj.slope)
    np.testing.assert_allclose(
        read_nifti(tmp_path / "a.nii")[0].data, stored.get_fdata(), atol=1e-3
    )


def test_nifti_2_stays_nifti_2(tmp_path):
    nib.save(nib.Nifti2Image(RAMP, AFFINES["oblique"]), tmp_path / "a.nii.gz")
    volume, grid = read_nifti(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.affine, AFFINES["oblique"])
    write_nifti(tmp_path / "b.nii.gz", RAMP, grid)
    again = nib.load(tmp_path / "b.nii.gz")
    assert isinstance(again, nib.Nifti2Image)
    np.testing.assert_array_equal(again.affine, AFFINES["oblique"])
    np.testing.assert_array_equal(again.get_fdata(), RAMP)


def test_one_volume_in_four_dimensions_is_read(tmp_path):
    saved(tmp_path / "a.nii.gz", RAMP[..., None])
    assert read_nifti(tmp_path / "a.nii.gz")[0].shape == SHAPE


def test_content_counts_not_the_suffix(tmp_path):
    saved(tmp_path / "a.nii")
    (tmp_path / "a.nii").rename(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(read_nifti(tmp_path / "b.nii.gz")[0].data, RAMP)


def test_voxels_without_a_number_become_zero_and_are_noted(tmp_path):
    data = RAMP + 1
    data[0, 0, :3] = np.nan, np.inf, -np.inf
    notes: list[str] = []
    volume, _ = read_nifti(saved(tmp_path / "a.nii", data), notes=notes)
    np.testing.assert_array_equal(volume.data[0, 0], [0, 0, 0, 4])
    assert "3 voxels" in notes[0]


def test_a_background_of_nan_is_no_caution_and_what_lies_inside_is(tmp_path):
    data = np.full((9, 9, 9), np.nan, np.float32)
    data[2:7, 2:7, 2:7] = np.arange(125).reshape(5, 5, 5)
    notes: list[str] = []
    volume, _ = read_nifti(saved(tmp_path / "a.nii", data), notes=notes)
    assert volume.data[0, 0, 0] == 0
    assert notes == [f"a.nii: the background, {9**3 - 5**3} voxels, was NaN; now 0."]
    assert not isinstance(notes[0], Caution)
    for value in (np.nan, np.inf):
        data[4, 4, 4] = value
        notes = []
        read_nifti(saved(tmp_path / "a.nii", data), notes=notes)
        warned = [note for note in notes if isinstance(note, Caution)]
        assert warned == ["a.nii: 1 voxels were NaN or infinite as float32; now 0."]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_elsewhere_than_in_all_corners_is_a_caution(tmp_path, value):
    data = RAMP + 1
    data[:2] = value  # where a scan that was moved does not reach, or half of it is lost
    notes: list[str] = []
    read_nifti(saved(tmp_path / "a.nii", data), notes=notes)
    assert [isinstance(note, Caution) for note in notes] == [True]


def test_a_file_without_orientation_is_read_with_a_note(tmp_path):
    path = saved(tmp_path / "a.nii", affine=None, pixdim=[1, 2, 3, 4, 0, 0, 0, 0])
    notes: list[str] = []
    volume, _ = read_nifti(path, notes=notes)
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)
    assert volume.spacing_mm == (2, 3, 4)
    assert "no orientation" in notes[0]


MOVED = np.eye(4)
MOVED[1, 3] = 30


@pytest.mark.parametrize(
    ("change", "codes", "said"),
    [
        (np.eye(4), (1, 1), ""),
        (np.diag([-1, 1, 1, 1]), (1, 4), "opposite of left and right"),
        (MOVED, (1, 1), "up to 30 units"),
        (MOVED, (1, 4), ""),
        (np.diag([0, 1, 1, 1]), (1, 1), ""),
    ],
)
def test_a_header_that_contradicts_itself_has_a_warning(tmp_path, change, codes, said):
    image = nib.Nifti1Image(RAMP, AFFINES["RAS"])
    image.set_sform(AFFINES["RAS"], codes[1])
    image.set_qform(change @ AFFINES["RAS"] if change[0, 0] else AFFINES["RAS"], codes[0])
    if not change[0, 0]:
        image.header["quatern_b"] = 3  # damaged, but not used
    nib.save(image, tmp_path / "a.nii")
    notes: list[str] = []
    volume, _ = read_nifti(tmp_path / "a.nii", notes=notes)
    np.testing.assert_allclose(volume.affine, AFFINES["RAS"])
    assert [type(note) for note in notes] == [Caution] * bool(said)
    assert said in "".join(notes)


def test_metres_become_millimetres_and_the_output_keeps_its_unit(tmp_path):
    affine = AFFINES["oblique"].copy()
    affine[:3] *= 0.01  # 10 mm voxels
    image = nib.Nifti1Image(RAMP, affine)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    volume, grid = read_nifti(tmp_path / "a.nii")
    np.testing.assert_allclose(volume.affine[:3], 1000 * nib.load(tmp_path / "a.nii").affine[:3])
    write_nifti(tmp_path / "b.nii", RAMP, grid)
    np.testing.assert_array_equal(
        nib.load(tmp_path / "b.nii").affine, nib.load(tmp_path / "a.nii").affine
    )


def with_content(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def truncated(path: Path) -> Path:
    rng = np.random.default_rng(0)
    saved(path, rng.standard_normal((20, 20, 20)))
    content = path.read_bytes()
    return with_content(path, content[: len(content) // 2])


def bad_checksum(path: Path) -> Path:
    content = bytearray(saved(path).read_bytes())
    content[-8] ^= 1
    return with_content(path, content)


def bad_quaternion(path: Path) -> Path:
    image = nib.Nifti1Image(RAMP, np.eye(4))
    image.set_sform(None, 0)
    image.set_qform(np.eye(4), 1)
    image.header["quatern_b"] = 3
    return with_content(path, image.header.binaryblock + bytes(4) + RAMP.tobytes())


def with_affine(path: Path, affine: np.ndarray, pixdim=(1, 1, 1)) -> Path:
    header = nib.Nifti1Header()
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.float32)
    header["magic"], header["vox_offset"] = b"n+1", 352
    header["srow_x"], header["srow_y"], header["srow_z"] = affine[:3]
    header["sform_code"] = 1
    header["pixdim"][1:4] = pixdim
    return with_content(path, header.binaryblock + bytes(4) + RAMP.tobytes(order="F"))


def with_header(path: Path, version: type = nib.Nifti1Image, **fields) -> Path:
    image = version(RAMP, np.eye(4))
    image.header["vox_offset"] = image.header.single_vox_offset
    for name, value in fields.items():
        image.header[name] = value
    return with_content(path, image.header.binaryblock + bytes(4) + RAMP.tobytes(order="F"))


def v2(path: Path, **fields) -> Path:
    return with_header(path, nib.Nifti2Image, **fields)


BAD_FILES = {
    "missing": (lambda p: p, "no file"),
    "folder": (lambda p: p.mkdir() or p, "folder"),
    "empty": (lambda p: with_content(p, b""), "not a NIfTI"),
    "text": (lambda p: with_content(p, b"this is no image\n" * 40), "not a NIfTI"),
    "gzipped text": (lambda p: with_content(p, gzip.compress(b"text " * 100)), "not a NIfTI"),
    "truncated": (truncated, "damaged"),
    "bad checksum": (bad_checksum, "damaged"),
    "several volumes": (lambda p: saved(p, np.stack([RAMP, RAMP], axis=-1)), "2 volumes"),
    "slice": (lambda p: saved(p, RAMP[:, :, :1]), "single slice"),
    "two axes": (lambda p: saved(p, RAMP[:, :, 0]), "single slice"),
    "only NaN": (lambda p: saved(p, RAMP * np.nan), "no number"),
    "constant": (lambda p: saved(p, RAMP * 0 + 3), "constant"),
    "constant beside NaN": (lambda p: saved(p, np.where(RAMP > 2, 5, np.nan)), "constant"),
    "constant, far beyond float32": (lambda p: saved(p, np.full(SHAPE, 1e300)), "as float32"),
    "tiny values": (lambda p: saved(p, RAMP.astype(float) * 1e-300), "as float32"),
    "unknown type": (lambda p: with_header(p, datatype=999), "data type code 999"),
    "offset NaN": (lambda p: with_header(p, vox_offset=np.nan), "first voxel at byte nan"),
    "offset infinite": (lambda p: with_header(p, vox_offset=np.inf), "first voxel at byte inf"),
    "offset in header": (lambda p: with_header(p, vox_offset=348), "first voxel at byte 348"),
    "offset left out": (lambda p: with_header(p, vox_offset=0), "first voxel at byte 0"),
    "offset negative": (lambda p: v2(p, vox_offset=-9), "first voxel at byte -9"),
    "offset absurd": (lambda p: v2(p, vox_offset=2**62), "first voxel at byte 4.6"),
    "negative": (lambda p: with_header(p, dim=[3, 5, -6, 4, 1, 1, 1, 1]), "dimensions"),
    "overflow": (lambda p: v2(p, dim=[3, *[2**21] * 3, 1, 1, 1, 1]), "more than a head has"),
    "volumes overflow": (lambda p: v2(p, dim=[5, 5, 6, 4, 2**32, 2**32, 1, 1]), "volumes"),
    "long axis": (lambda p: v2(p, dim=[3, 2**16, 2, 2, 1, 1, 1, 1]), "more than a head has"),
    "pipe": (lambda p: os.mkfifo(p) or p, "only regular files"),
    "complex": (lambda p: saved(p, RAMP.astype(np.complex64)), "real number"),
}
BAD_GEOMETRY = {
    "zero spacing": (lambda p: with_affine(p, np.eye(4), pixdim=(1, 0, 1)), "spacing"),
    "spacing NaN": (lambda p: with_affine(p, np.eye(4), pixdim=(1, np.nan, 1)), "spacing"),
    "zero column": (lambda p: with_affine(p, np.diag([1.0, 0, 1, 1])), "affine"),
    "singular": (lambda p: with_affine(p, SINGULAR), "affine"),
    "affine NaN": (lambda p: with_affine(p, np.eye(4) * np.nan), "affine"),
    "quaternion": (bad_quaternion, "position"),
    "spacing beyond numbers": (lambda p: v2(p, sform_code=1, srow_x=[1e300, 0, 0, 0]), "affine"),
}


@pytest.mark.parametrize("case", [*BAD_FILES, *BAD_GEOMETRY])
def test_a_bad_file_gives_one_error_that_names_it(tmp_path, case):
    make, words = {**BAD_FILES, **BAD_GEOMETRY}[case]
    path = make(tmp_path / "scan.nii.gz")
    with pytest.raises(DataError, match=words) as caught:
        read_nifti(path)
    assert type(caught.value) is (GeometryError if case in BAD_GEOMETRY else DataError)
    assert str(path) in caught.value.message
    assert caught.value.next_step
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("suffix", ["mgz", "mgh", "img", "hdr"])
@pytest.mark.parametrize("kind", [nib.AnalyzeImage, nib.Nifti1Pair])
def test_the_way_on_from_another_format_can_be_followed(tmp_path, suffix, kind):
    path = tmp_path / f"my scan.{suffix}"
    image = (nib.MGHImage if suffix[0] == "m" else kind)(RAMP.astype(np.float32), AFFINES["RAS"])
    nib.save(image, path)
    with pytest.raises(DataError, match="is not a NIfTI image") as caught:
        read_nifti(path)
    program, *files = shlex.split(caught.value.next_step.split(": ")[1])
    assert program == "nib-convert"
    convert.main(files)
    np.testing.assert_array_equal(read_nifti(Path(files[1]))[0].data, RAMP)


def test_values_too_large_are_the_cause_of_a_constant(tmp_path):
    path = saved(tmp_path / "a.nii", np.where(RAMP, 1e300, 0))
    with pytest.raises(DataError, match="constant") as caught:
        read_nifti(path)
    assert "values may be too large" in caught.value.cause


def test_a_device_is_not_read():
    with pytest.raises(DataError, match="only regular files"):
        read_nifti(Path("/dev/zero"))


def test_no_more_is_decompressed_than_the_header_announces(tmp_path):
    content = with_header(tmp_path / "a.nii").read_bytes()
    bomb = with_content(tmp_path / "b.nii.gz", gzip.compress(content + bytes(2**26)))
    notes: list[str] = []
    tracemalloc.start()
    volume, _ = read_nifti(bomb, notes=notes)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(volume.data, RAMP)
    assert notes == ["b.nii.gz: bytes after the last voxel are ignored."]
    assert peak < 2**23


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_large_image_is_read_in_blocks_and_is_the_same(tmp_path, monkeypatch, suffix):
    data = np.random.default_rng(0).integers(-3000, 3000, (5, 6, 7)).astype(np.int16)
    path = saved(tmp_path / f"a{suffix}", data, scl_slope=0.3, scl_inter=7)
    whole = read_nifti(path)[0].data
    monkeypatch.setattr(nifti, "_PLANES", 2)
    np.testing.assert_array_equal(read_nifti(path)[0].data, whole)


def test_any_damage_to_a_header_gives_an_image_or_our_error(tmp_path):
    rng = np.random.default_rng(5)
    extremes = np.frombuffer(b"\0\xff\x7f\x80\x01", np.uint8)
    for version in (nib.Nifti1Image, nib.Nifti2Image):
        whole = np.frombuffer(with_header(tmp_path / "a.nii", version).read_bytes(), np.uint8)
        for _ in range(100):
            damaged = whole.copy()
            for place in rng.integers(4, version.header_class.sizeof_hdr - 4, rng.integers(1, 5)):
                damaged[place : place + rng.integers(1, 5)] = rng.choice(extremes)
            with contextlib.suppress(DataError):
                read_nifti(with_content(tmp_path / "b.nii", damaged.tobytes()))


def test_truncated_without_compression(tmp_path):
    path = saved(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="truncated"):
        read_nifti(path)


def test_a_constant_mask_may_be_read(tmp_path):
    volume, _ = read_nifti(saved(tmp_path / "a.nii", RAMP * 0), allow_constant=True)
    assert not volume.data.any()


def test_equal_input_gives_equal_bytes():
    grid = make_grid(SHAPE, AFFINES["LPS"])
    assert encode_nifti(RAMP, grid) == encode_nifti(RAMP.copy(order="F"), grid)


def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    grid = make_grid(SHAPE, np.eye(4))
    write_nifti(path, RAMP, grid)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_nifti(path, RAMP + 1, grid)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path):
    write_nifti(tmp_path / "a.nii", RAMP, make_grid(SHAPE, np.eye(4)))
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a.nii").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(UsageError, match="not named as a NIfTI"):
        write_nifti(tmp_path / "a.mgz", RAMP, make_grid(SHAPE, np.eye(4)))


def test_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="shape"):
        encode_nifti(RAMP[1:], make_grid(SHAPE, np.eye(4)))


@pytest.mark.realdata
def test_real_files_come_back_unchanged(real_data, tmp_path):
    paths = [
        *sorted((real_data / "raw").glob("*/flair.nii.gz")),
        *sorted((real_data / "ms").glob("*07/flair.nii.gz")),
        *sorted((real_data / "healthy").glob("*/t1.nii.gz")),
        *sorted((real_data / "glioma_flair").glob("*4/*_flair.nii.gz")),
    ]
    assert {path.relative_to(real_data).parts[0] for path in paths} == {
        "raw",
        "ms",
        "healthy",
        "glioma_flair",
    }
    assert len(paths) >= 7
    for path in paths:
        volume, grid = read_nifti(path)
        write_nifti(tmp_path / "out.nii", volume.data, grid)
        before, after = nib.load(path), nib.load(tmp_path / "out.nii")
        np.testing.assert_array_equal(before.affine, after.affine)
        np.testing.assert_array_equal(before.get_fdata(dtype=np.float32), after.get_fdata())
        for code in ("sform_code", "qform_code", "xyzt_units"):
            assert before.header[code] == after.header[code]
