"""NIfTI files in and out, with the geometry of the input kept to the bit."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmccd_cli.errors import Caution, DataError, GeometryError, UsageError, unreadable
from mmccd_cli.files import check_regular_file, sha256_of_stream, write_atomically
from mmccd_cli.inputs.names import how_to_convert
from mmccd_cli.inputs.volume import Volume, is_too_large, problem_of_affine
from mmccd_cli.template import spacing_of, transform_points

Intent = Literal["none", "label", "estimate"]

# Measured on a 240x240x155 map: only runs of equal bytes take 0.08 s, zlib's own search for what
# was there before 0.19 s, for a file that is 5 % smaller. Level 1 of the latter takes 0.14 s.
_GZIP_LEVEL, _GZIP_STRATEGY = 6, zlib.Z_RLE
_GZIP_WINDOW = 31  # the greatest, in the format of gzip
_GZIP_MAGIC = b"\x1f\x8b"
_HEADER_OF_SIZE = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_MAX_HEADER_BYTES = 2**28  # with its extensions
_PLANES = 16  # of voxels that are held at a time: of four bytes each, they fill a line of the cache
_TAIL_BYTES = 2**20  # that are looked at after the last voxel
_MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI codes: metre, millimetre, micrometre
# fmt: off
_GEOMETRY = (
    "sform_code", "srow_x", "srow_y", "srow_z", "qform_code", "quatern_b", "quatern_c",
    "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units",
)
# fmt: on


@dataclass(frozen=True, eq=False)
class NiftiGrid:
    """All that a NIfTI header says about where its voxels lie, exactly as the file says it.

    Args:
        header: Shape, sform, qform, spacing and unit in the file's version of NIfTI; every other
            field is blank, so that nothing else of an input reaches an output.
        affine: (4, 4) float64 map from voxel indices to RAS+ mm that readers use.
    """

    header: nib.Nifti1Header
    affine: NDArray[np.float64]

    @classmethod
    def of_header(cls, header: nib.Nifti1Header, affine: NDArray[np.float64]) -> NiftiGrid:
        """Take the geometry, and what it means in mm, out of a header of three dimensions."""
        blank = type(header)()
        blank.set_data_shape(header.get_data_shape())
        blank["pixdim"][:4] = header["pixdim"][:4]  # the sign of the third axis, then the spacing
        for field in _GEOMETRY:
            blank[field] = header[field]
        return cls(blank, affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each axis."""
        i, j, k = (int(n) for n in self.header.get_data_shape())
        return (i, j, k)


def make_grid(shape: tuple[int, ...], affine: ArrayLike, *, code: int = 1) -> NiftiGrid:
    """Describe a new grid as a NIfTI-1 header would, with sform and qform in agreement.

    Args:
        shape: Number of voxels along each of the three axes.
        affine: (4, 4) map from voxel indices to RAS+ mm.
        code: What the coordinates are aligned to: 1 scanner, 2 other scan, 4 MNI; 0 writes none.

    Returns:
        The grid; its affine is what a reader of the file gets, rounded to the header's precision.
        The qform of an affine with shear has code 0, because a qform cannot say shear.
    """
    affine = np.asarray(affine, dtype=np.float64)
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_sform(affine, code)
    header.set_qform(affine, code, strip_shears=True)
    if not np.allclose(header.get_qform(), affine, atol=1e-3):
        header["qform_code"] = 0
    header.set_xyzt_units("mm", "unknown")
    return NiftiGrid(header, np.asarray(header.get_best_affine(), dtype=np.float64))


def read_nifti(
    path: Path,
    *,
    allow_constant: bool = False,
    notes: list[str] | None = None,
    digests: list[str] | None = None,
) -> tuple[Volume, NiftiGrid]:
    """Read one three-dimensional image, compressed or not, of any number type and byte order.

    Voxels that are not finite become 0. What matters is the content: a compressed file may be
    named .nii and the other way round. No more is decompressed than the header announces.

    Args:
        path: A NIfTI-1 or NIfTI-2 file in one piece.
        allow_constant: Accept an image in which all voxels are equal, such as a mask.
        notes: Sentences on what was found and mended are appended here.
        digests: The SHA-256 of the bytes that were read is appended here.

    Returns:
        The volume in the file's own index order, and the grid to write outputs on.

    Raises:
        DataError: Missing, damaged, not NIfTI, too large, several volumes, or nothing in it.
        GeometryError: No usable affine or spacing.
    """
    path = Path(path)
    notes = notes if notes is not None else []
    with _open(path, digests) as stream:
        header, grid = _read_header(path, stream, notes)
        stored = _stored_values(path, stream, header)
        if stream.read(_TAIL_BYTES):  # at its end, a compressed file is checked
            notes.append(f"{path.name}: bytes after the last voxel are ignored.")
    data = finite_values(path, stored, allow_constant=allow_constant, notes=notes)
    return Volume(data, grid.affine), grid


def read_grid(path: Path, *, notes: list[str] | None = None) -> NiftiGrid:
    """Read where the voxels of an image lie, and none of them; see `read_nifti`.

    Raises:
        DataError: Missing, not NIfTI, too large or several volumes.
        GeometryError: No usable affine or spacing.
    """
    with _open(path, None) as stream:
        return _read_header(path, stream, notes if notes is not None else [])[1]


def finite_values(
    source: Path | str,
    data: NDArray[np.float32],
    *,
    allow_constant: bool = False,
    notes: list[str],
) -> NDArray[np.float32]:
    """Set what is no number to 0, and refuse data in which nothing can be seen.

    Args:
        source: The file, or how to call what the data come from.
        data: (I, J, K) values.
        allow_constant: Accept data in which all values are equal, such as a mask.
        notes: Sentences on what was mended are appended here: of a background of NaN an ordinary
            one, of other voxels a `Caution`.

    Raises:
        DataError: No number at all, or a constant.
    """
    low, high = data.min(), data.max()  # neither is a number where any voxel is none
    if np.isfinite(low) and np.isfinite(high):
        if low == high and not allow_constant:
            raise _constant(source, low)
        return data
    finite = np.isfinite(data)
    n_finite = int(np.count_nonzero(finite))
    if n_finite == 0:
        raise DataError(
            f"{source} holds no number: as float32, all voxels are NaN or infinite.",
            cause="A processing step before this one has failed.",
            next_step="Go back to the scan as it was before that step.",
        )
    name = source.name if isinstance(source, Path) else source
    lost = data.size - n_finite
    around = _nan_around(data)
    if around:
        notes.append(f"{name}: the background, {around} voxels, was NaN; now 0.")
    if inside := lost - around:
        notes.append(Caution(f"{name}: {inside} voxels were NaN or infinite as float32; now 0."))
    numbers = data[finite]
    if not allow_constant and numbers.min() == numbers.max():
        raise _constant(source, numbers[0], lost=lost)
    return np.where(finite, data, np.float32(0))


def _nan_around(data: NDArray[np.float32]) -> int:
    """Count the voxels of a background that is NaN, as FSL and SPM write it: it has all corners."""
    nan = np.isnan(data)
    corners = np.ix_(*[(0, -1)] * 3)
    if not nan[corners].all():
        return 0
    import cc3d

    parts = cc3d.connected_components(nan, connectivity=26)
    return int(np.bincount(parts.ravel(order="K"))[np.unique(parts[corners])].sum())


def _constant(source: Path | str, value: np.floating, *, lost: int = 0) -> DataError:
    return DataError(
        f"{source} is constant: as float32, every finite voxel is {value:g}.",
        cause=f"All others, {lost} voxels, are NaN or infinite as float32; its values may be too "
        "large."
        if lost
        else "The image is empty or was masked with the wrong mask.",
        next_step="Look at it in a viewer and give the scan itself.",
    )


def encode_nifti(
    data: ArrayLike,
    grid: NiftiGrid,
    *,
    compress: bool = True,
    intent: Intent = "none",
    description: str = "",
    display_range: tuple[float, float] | None = None,
) -> bytes:
    """Return the bytes of a NIfTI file with these values on exactly this grid.

    Args:
        data: (I, J, K) values; bool becomes uint8 and float64 float32, other types stay.
        grid: The grid of the input that the values belong to.
        compress: Whether to gzip; equal input gives equal bytes.
        intent: "label" for masks, "estimate" for maps.
        description: At most 79 ASCII characters for the header; no names or dates of a person.
        display_range: Least and greatest value that viewers should show.

    Raises:
        ValueError: The shape of the data is not that of the grid.
    """
    array = np.asarray(data)
    if array.shape != grid.shape:
        raise ValueError(f"data has the shape {array.shape}, its grid {grid.shape}")
    if array.dtype == bool:
        array = array.astype(np.uint8)
    elif array.dtype == np.float64:
        array = array.astype(np.float32)
    header = grid.header.copy()
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1.0, 0.0)
    header["vox_offset"] = header.single_vox_offset
    header["descrip"] = description.encode("ascii", "replace")[:79]
    if intent != "none":
        header.set_intent(intent)
    if display_range is not None:
        header["cal_min"], header["cal_max"] = display_range
    parts = chain([header.as_byteswapped("<").binaryblock + bytes(4)], _bytes_of_planes(array))
    if not compress:
        return b"".join(parts)
    compressor = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_WINDOW, strategy=_GZIP_STRATEGY)
    file = io.BytesIO()  # of which bytes are made without a copy
    for part in parts:
        file.write(compressor.compress(part))
    file.write(compressor.flush())
    return file.getvalue()


def _bytes_of_planes(array: NDArray) -> Iterator[bytes]:
    """The values as a file holds them, the first index first, a few planes at a time."""
    stored = array.dtype.newbyteorder("<")
    for first in range(0, array.shape[2], _PLANES):
        yield array[:, :, first : first + _PLANES].astype(stored, copy=False).tobytes(order="F")


def write_nifti(
    path: Path,
    data: ArrayLike,
    grid: NiftiGrid,
    *,
    intent: Intent = "none",
    description: str = "",
) -> None:
    """Write values on exactly this grid, whole or not at all; see `encode_nifti`.

    The ending of the name, .nii or .nii.gz, decides on compression.

    Raises:
        UsageError: The name ends in neither .nii nor .nii.gz.
        OSError: The folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    compress = is_compressed_name(path)
    content = encode_nifti(data, grid, compress=compress, intent=intent, description=description)
    write_atomically(path, content)


def is_compressed_name(path: Path) -> bool:
    """Tell .nii.gz (True) from .nii (False).

    Raises:
        UsageError: The name has neither ending.
    """
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")) and name not in (".nii", ".nii.gz"):
        return name.endswith(".gz")
    raise UsageError(
        f"{path} is not named as a NIfTI file.",
        cause="It is a folder." if path.is_dir() else "Its name ends in neither .nii.gz nor .nii.",
        next_step="Give a name such as map.nii.gz.",
    )


@contextlib.contextmanager
def _open(path: Path, digests: list[str] | None) -> Iterator[BinaryIO]:
    """Open a file, let its content be read as it was before compression, and hash it."""
    if path.is_dir():
        raise DataError(f"{path} is a folder, not an image.", next_step="Give a .nii.gz file.")
    check_regular_file(path)
    try:
        with path.open("rb") as stored:
            compressed = stored.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            stored.seek(0)
            yield gzip.GzipFile(fileobj=stored) if compressed else stored  # type: ignore[misc]
            if digests is not None:
                stored.seek(0)
                digests.append(sha256_of_stream(stored))
    except FileNotFoundError as error:
        raise DataError(
            f"There is no file {path}.", next_step="Check the name and the folder."
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is damaged: its compressed content breaks off or is corrupt.",
            cause="The copy or download was probably interrupted.",
            next_step=f"Copy the file again and check it with: gzip -t '{path}'",
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _read_header(
    path: Path, stream: BinaryIO, notes: list[str]
) -> tuple[nib.Nifti1Header, NiftiGrid]:
    """Read the header of an image of three dimensions, and what it says of its grid."""
    header = _parse_header(path, stream.read(max(_HEADER_OF_SIZE)))
    _keep_three_dimensions(path, header)
    return header, NiftiGrid.of_header(header, _affine_in_mm(path, header, notes))


def _parse_header(path: Path, raw: bytes) -> nib.Nifti1Header:
    advice = how_to_convert(path)
    for byte_order in ("<", ">"):
        size = int(np.frombuffer(raw[:4].ljust(4, b"\0"), dtype=f"{byte_order}i4")[0])
        if size not in _HEADER_OF_SIZE or len(raw) < size:
            continue
        # check=False: nibabel would mend a zero spacing without a word.
        header = _HEADER_OF_SIZE[size](raw[:size], endianness=byte_order, check=False)
        if bytes(header["magic"]).startswith((b"n+1", b"n+2")):
            return header
        raise DataError(
            f"{path} is not a NIfTI image in one file.",
            cause="Its header says Analyze, or a NIfTI pair of .hdr and .img.",
            next_step=advice
            or "Convert it to one .nii.gz file, for example with: fslchfiletype NIFTI_GZ",
        )
    raise DataError(
        f"{path} is not a NIfTI image.",
        cause=f"{_guess_content(raw)}, {'as' if advice else 'whatever'} its name says.",
        next_step=advice or "Give a .nii or .nii.gz file; dcm2niix converts DICOM.",
    )


def _guess_content(raw: bytes) -> str:
    if not raw:
        return "The file is empty"
    if raw[128:132] == b"DICM":
        return "The content is DICOM"
    if b"\0" not in raw[:512]:
        return "The content is text"
    return "The content has no NIfTI header"


def _keep_three_dimensions(path: Path, header: nib.Nifti1Header) -> None:
    """Drop axes of length one after the third from a header; refuse what is not one volume."""
    dimensions = [int(n) for n in header["dim"]]
    count = dimensions[0]
    sizes = dimensions[1 : count + 1] if 1 <= count <= 7 else []
    if not sizes or min(sizes) < 1:
        raise DataError(
            f"{path} is damaged: its header gives the dimensions {dimensions}.",
            next_step="Make the file again from its source.",
        )
    further = math.prod(sizes[3:])
    if further > 1:
        raise DataError(
            f"{path} holds {further} volumes (shape {tuple(sizes)}); one is needed.",
            cause="It is a series (functional, diffusion or multi-echo), or a stack of modalities.",
            next_step=f"Take one volume: fslroi '{path}' one.nii.gz 0 1",
        )
    if len(sizes) < 3 or min(sizes[:3]) < 2:
        raise DataError(
            f"{path} is a single slice (shape {tuple(sizes)}); a volume is needed.",
            next_step="Give the whole scan.",
        )
    if is_too_large(sizes[:3]):
        raise DataError(
            f"{path} announces {' x '.join(map(str, sizes[:3]))} voxels, more than a head has.",
            cause="Its header is damaged, or it is no scan of a head.",
            next_step="Make the file again from its source, or resample it to larger voxels.",
        )
    header.set_data_shape(sizes[:3])


def _affine_in_mm(path: Path, header: nib.Nifti1Header, notes: list[str]) -> NDArray[np.float64]:
    spacing = header["pixdim"][1:4].astype(np.float64)
    if not np.all(np.isfinite(spacing)) or np.any(spacing == 0):
        raise GeometryError(
            f"{path} has the voxel spacing {tuple(float(s) for s in spacing)} mm in its header.",
            cause="The field pixdim holds a zero or no number; a converter left it out.",
            next_step="Convert the scan again from DICOM, or set pixdim with nifti_tool.",
        )
    try:
        affine = _stated_affine(header)
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        raise GeometryError(
            f"{path} has a position that cannot be decoded: {error}.",
            cause="The quaternion of its qform is damaged.",
            next_step="Convert the scan again from DICOM.",
        ) from error
    if problem := problem_of_affine(affine):
        raise GeometryError(
            f"The affine of {path} is unusable: {problem}.",
            cause="The sform or qform of its header is damaged or was never set.",
            next_step="Convert the scan again from DICOM, or mend the header with nifti_tool.",
        )
    if not (header["sform_code"] > 0 or header["qform_code"] > 0):
        notes.append(
            Caution(
                f"{path.name}: the header states no orientation (sform and qform code 0); "
                "axes are taken as left, anterior, superior. Left and right may be exchanged."
            )
        )
    notes += _contradiction(path, header)
    factor = _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    extent_mm = factor * float(np.max(np.array(spacing_of(affine)) * header.get_data_shape()))
    if factor != 1.0 and not 20 <= extent_mm <= 2000:
        text = f"{path.name}: the header's unit of length is implausible; taken as mm."
        notes.append(Caution(text))
    elif factor != 1.0:
        affine[:3] *= factor
    return affine


def _contradiction(path: Path, header: nib.Nifti1Header) -> list[str]:
    """Say where sform and qform cannot both be right.

    They may speak of two spaces, which their codes tell, but no space exchanges left and right.
    """
    if not (header["sform_code"] > 0 and header["qform_code"] > 0):
        return []
    alone = header.copy()
    alone["sform_code"] = 0
    sform = _stated_affine(header)
    try:
        qform = _stated_affine(alone)
    except (ValueError, nib.spatialimages.HeaderDataError):
        return []  # what is not used may be damaged
    if problem_of_affine(qform):
        return []
    start = f"{path.name}: sform and qform of its header"
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        return [Caution(f"{start} say the opposite of left and right; the sform is taken.")]
    last = np.array(header.get_data_shape()) - 1
    corners = last * np.array(list(itertools.product((0, 1), repeat=3)))
    apart = transform_points(sform, corners) - transform_points(qform, corners)
    most = float(np.linalg.norm(apart, axis=1).max())
    if header["sform_code"] != header["qform_code"] or most <= max(spacing_of(sform)):
        return []
    return [Caution(f"{start} are up to {most:.0f} units of length apart; the sform is taken.")]


def _stated_affine(header: nib.Nifti1Header) -> NDArray[np.float64]:
    # The order of preference of the NIfTI standard and of nibabel: sform, qform, spacing alone.
    if header["sform_code"] > 0:
        return np.asarray(header.get_sform(), dtype=np.float64)
    mended = header.copy()
    mended["pixdim"][1:4] = np.abs(mended["pixdim"][1:4])
    if mended["pixdim"][0] not in (-1, 1):
        mended["pixdim"][0] = 1  # the standard: anything but -1 counts as 1
    if header["qform_code"] > 0:
        return np.asarray(mended.get_qform(), dtype=np.float64)
    return np.asarray(mended.get_base_affine(), dtype=np.float64)


def _stored_values(path: Path, stream: BinaryIO, header: nib.Nifti1Header) -> NDArray[np.float32]:
    """Return what the file stores, in its index order and with slope and intercept applied."""
    try:
        dtype = np.dtype(header.get_data_dtype())
    except (KeyError, nib.spatialimages.HeaderDataError):
        dtype = np.dtype("V1")
    if dtype.kind not in "iuf" or dtype.itemsize > 16:
        raise DataError(
            f"{path} does not hold one real number per voxel (data type code "
            f"{int(header['datatype'])}).",
            cause="It holds colours, complex numbers or an unknown type.",
            next_step="Give the magnitude image as integers or floats.",
        )
    data = np.empty(header.get_data_shape(), np.float32)
    offset = _offset(path, header)
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    # The standard: a slope of 0 means no scaling.
    scaled = np.isfinite(slope) and slope != 0 and np.isfinite(inter) and (slope, inter) != (1, 0)
    bytes_per_slice = data[:, :, 0].size * dtype.itemsize
    stream.seek(offset)
    for first in range(0, data.shape[2], _PLANES):
        block = data[:, :, first : first + _PLANES]
        raw = stream.read(block.size * dtype.itemsize)
        if len(raw) < block.size * dtype.itemsize:
            there = first * bytes_per_slice + len(raw)
            raise DataError(
                f"{path} is truncated: its header announces {data.size * dtype.itemsize} bytes of "
                f"voxels and {there} are there.",
                cause="The copy or download was probably interrupted, or the header is damaged.",
                next_step="Copy the file again.",
            )
        values = np.frombuffer(raw, dtype=dtype).reshape(block.shape, order="F")
        with np.errstate(over="ignore", invalid="ignore"):
            # In float64, because an offset can be large.
            block[...] = values * slope + inter if scaled else values
    return data


def _offset(path: Path, header: nib.Nifti1Header) -> int:
    """Return at which byte the voxels start."""
    stated, least = float(header["vox_offset"]), int(header.single_vox_offset)
    if not least <= stated <= _MAX_HEADER_BYTES or stated % 1:
        raise DataError(
            f"{path} is damaged: its header puts the first voxel at byte {stated:g}.",
            cause=f"The field vox_offset must be a whole number from {least} on; the program that "
            "wrote the file left it out, or the header is corrupt.",
            next_step="Make the file again from its source, or set vox_offset with nifti_tool.",
        )
    return int(stated)
