"""Volumes with their place in the world, and NIfTI files in and out.

Convention: an affine maps voxel indices to RAS+ millimetres. The data stay in the index order of
their file; nothing is flipped or permuted on the way in, so nothing needs to be undone.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmccd_cli.errors import DataError, GeometryError, UsageError, unreadable
from mmccd_cli.files import write_atomically
from mmccd_cli.template import spacing_of

Intent = Literal["none", "label", "estimate"]

# Measured on a 240x240x155 map: level 1 is as slow and 3 % larger, level 9 slower and no smaller.
_GZIP_LEVEL = 6
_GZIP_MAGIC = b"\x1f\x8b"
_NIFTI_HEADERS = {348: (nib.Nifti1Header, 1), 540: (nib.Nifti2Header, 2)}
_MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI codes: metre, millimetre, micrometre
_MIN_ASPECT = 1e-4  # least |det| of the affine's unit columns: below, the voxels are flat


@dataclass(frozen=True, eq=False)
class Volume:
    """An image on a regular grid.

    Args:
        data: (I, J, K) values, kept as float32.
        affine: (4, 4) float64 map from voxel indices to RAS+ mm; shear is allowed.

    Raises:
        GeometryError: The data are not three-dimensional, or the affine is no invertible map.
    """

    data: NDArray[np.float32]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        data = np.ascontiguousarray(self.data, dtype=np.float32)
        affine = np.array(self.affine, dtype=np.float64)
        if data.ndim != 3 or 0 in data.shape:
            raise GeometryError(f"A volume needs three axes; this one has the shape {data.shape}.")
        if problem := _problem_of_affine(affine):
            raise GeometryError(f"The affine of the volume is unusable: {problem}.")
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each axis."""
        i, j, k = self.data.shape
        return (i, j, k)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along each axis, in mm."""
        return spacing_of(self.affine)

    @property
    def orientation(self) -> str:
        """Nearest world direction of each axis, for example "RAS" or "PIR"."""
        return "".join(nib.orientations.aff2axcodes(self.affine))

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel in cubic millimetres, exact under shear."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))


@dataclass(frozen=True, eq=False)
class NiftiGrid:
    """All that a NIfTI header says about where its voxels lie, exactly as the file says it.

    Args:
        shape: Number of voxels along each axis.
        affine: (4, 4) float64 map from voxel indices to RAS+ mm that readers use.
        sform_code: What the sform aligns to, 0 for none.
        srow: (3, 4) rows of the sform, in the file's unit.
        qform_code: What the qform aligns to, 0 for none.
        quaternion: b, c, d of the qform's rotation.
        qoffset: Origin of the qform, in the file's unit.
        pixdim: The sign of the third axis (-1, 1; 0 counts as 1), then the spacing of each axis.
        xyzt_units: The header's byte of units.
        version: NIfTI version, 1 or 2.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    sform_code: int
    srow: NDArray[np.float64]
    qform_code: int
    quaternion: tuple[float, float, float]
    qoffset: tuple[float, float, float]
    pixdim: tuple[float, float, float, float]
    xyzt_units: int
    version: int = 1

    @cached_property
    def header(self) -> nib.Nifti1Header:
        """A NIfTI header with this grid and no other information."""
        header = nib.Nifti2Header() if self.version == 2 else nib.Nifti1Header()
        header.set_data_shape(self.shape)
        header["pixdim"][:4] = self.pixdim
        header["sform_code"], header["qform_code"] = self.sform_code, self.qform_code
        header["srow_x"], header["srow_y"], header["srow_z"] = self.srow
        for name, value in zip("bcd", self.quaternion, strict=True):
            header[f"quatern_{name}"] = value
        for name, value in zip("xyz", self.qoffset, strict=True):
            header[f"qoffset_{name}"] = value
        header["xyzt_units"] = self.xyzt_units
        return header


def make_grid(
    shape: tuple[int, int, int], affine: ArrayLike, *, code: int = 1, version: int = 1
) -> NiftiGrid:
    """Describe a new grid as a NIfTI header would, with sform and qform in agreement.

    Args:
        shape: Number of voxels along each axis.
        affine: (4, 4) map from voxel indices to RAS+ mm.
        code: What the coordinates are aligned to: 1 scanner, 2 other scan, 4 MNI; 0 writes none.
        version: NIfTI version, 1 or 2.

    Returns:
        The grid; its affine is what a reader of the file gets, rounded to the header's precision.
        The qform of an affine with shear has code 0, because a qform cannot say shear.
    """
    affine = np.asarray(affine, dtype=np.float64)
    header = nib.Nifti2Header() if version == 2 else nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_sform(affine, code)
    header.set_qform(affine, code, strip_shears=True)
    if not np.allclose(header.get_qform(), affine, atol=1e-3):
        header["qform_code"] = 0
    header.set_xyzt_units("mm", "unknown")
    return _grid_of_header(header, shape, version, header.get_best_affine())


def read_nifti(
    path: Path, *, allow_constant: bool = False, notes: list[str] | None = None
) -> tuple[Volume, NiftiGrid]:
    """Read one three-dimensional image, compressed or not, of any number type and byte order.

    Voxels that are not finite become 0. What matters is the content: a compressed file may be
    named .nii and the other way round.

    Args:
        path: A NIfTI-1 or NIfTI-2 file in one piece.
        allow_constant: Accept an image in which all voxels are equal, such as a mask.
        notes: Sentences on what was found and mended are appended here.

    Returns:
        The volume in the file's own index order, and the grid to write outputs on.

    Raises:
        DataError: Missing, damaged, not NIfTI, several volumes, or nothing in it.
        GeometryError: No usable affine or spacing.
    """
    path = Path(path)
    notes = notes if notes is not None else []
    raw = _read_bytes(path)
    header, version = _parse_header(path, raw)
    shape = _spatial_shape(path, header)
    affine = _affine_in_mm(path, header, shape, notes)
    stored = _stored_values(path, raw, header, shape)
    data = finite_values(path, stored, allow_constant=allow_constant, notes=notes)
    return Volume(data, affine), _grid_of_header(header, shape, version, affine)


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
        data: Values of any shape.
        allow_constant: Accept data in which all values are equal, such as a mask.
        notes: A sentence on what was mended is appended here.

    Raises:
        DataError: No number at all, or a constant.
    """
    finite = np.isfinite(data)
    n_finite = int(np.count_nonzero(finite))
    if n_finite == 0:
        raise DataError(
            f"{source} holds no number: all voxels are NaN or infinite.",
            cause="A processing step before this one has failed.",
            next_step="Go back to the scan as it was before that step.",
        )
    if n_finite < data.size:
        name = source.name if isinstance(source, Path) else source
        notes.append(f"{name}: {data.size - n_finite} voxels were NaN or infinite; now 0.")
        data = np.where(finite, data, np.float32(0))
    if not allow_constant and data.min() == data.max():
        raise DataError(
            f"{source} is constant: every voxel is {float(data.flat[0]):g}.",
            cause="The image is empty or was masked with the wrong mask.",
            next_step="Look at it in a viewer and give the scan itself.",
        )
    return data


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
    if array.shape != tuple(grid.shape):
        raise ValueError(f"data has the shape {array.shape}, its grid {tuple(grid.shape)}")
    if array.dtype == bool:
        array = array.astype(np.uint8)
    elif array.dtype == np.float64:
        array = array.astype(np.float32)
    header = grid.header.copy()
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1.0, 0.0)
    header["magic"] = b"n+1" if grid.version == 1 else header["magic"]
    header["vox_offset"] = 352 if grid.version == 1 else 544
    header["descrip"] = description.encode("ascii", "replace")[:79]
    if intent != "none":
        header.set_intent(intent)
    if display_range is not None:
        header["cal_min"], header["cal_max"] = display_range
    little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
    content = header.as_byteswapped("<").binaryblock + bytes(4) + little_endian.tobytes(order="F")
    return gzip.compress(content, compresslevel=_GZIP_LEVEL, mtime=0) if compress else content


def write_nifti(
    path: Path,
    data: ArrayLike,
    grid: NiftiGrid,
    *,
    intent: Intent = "none",
    description: str = "",
    display_range: tuple[float, float] | None = None,
) -> None:
    """Write values on exactly this grid, whole or not at all.

    Args:
        path: Ends in .nii or .nii.gz, which decides on compression; an existing file is replaced.
        data: See `encode_nifti`.
        grid: See `encode_nifti`.
        intent: See `encode_nifti`.
        description: See `encode_nifti`.
        display_range: See `encode_nifti`.

    Raises:
        UsageError: The name ends in neither .nii nor .nii.gz.
        OSError: The folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    content = encode_nifti(
        data,
        grid,
        compress=is_compressed_name(path),
        intent=intent,
        description=description,
        display_range=display_range,
    )
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
        f"The output {path} is not named as a NIfTI file.",
        cause="Its name ends in neither .nii.gz nor .nii.",
        next_step="Give a name such as map.nii.gz.",
    )


def reorient(volume: Volume, codes: str) -> Volume:
    """Permute and flip the axes so that they point as `codes` says; no value is interpolated.

    Args:
        volume: Any volume.
        codes: Three of R/L, A/P, S/I in any order, for example "RAS".

    Returns:
        The same voxels at the same places in the world, in another index order.
    """
    change = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(volume.affine), nib.orientations.axcodes2ornt(codes)
    )
    data = nib.orientations.apply_orientation(volume.data, change)
    new_to_old = nib.orientations.inv_ornt_aff(change, volume.shape)
    return Volume(data, volume.affine @ new_to_old)


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise DataError(f"{path} is a folder, not an image.", next_step="Give a .nii.gz file.")
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"There is no file {path}.", next_step="Check the name and the folder."
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if not raw.startswith(_GZIP_MAGIC):
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is damaged: its compressed content breaks off or is corrupt.",
            cause="The copy or download was probably interrupted.",
            next_step=f"Copy the file again and check it with: gzip -t '{path}'",
        ) from error


def _parse_header(path: Path, raw: bytes) -> tuple[nib.Nifti1Header, int]:
    for byte_order in ("<", ">"):
        size = int(np.frombuffer(raw[:4].ljust(4, b"\0"), dtype=f"{byte_order}i4")[0])
        if size not in _NIFTI_HEADERS:
            continue
        header_class, version = _NIFTI_HEADERS[size]
        if len(raw) < size:
            break
        # check=False: nibabel would mend a zero spacing without a word.
        header = header_class(raw[:size], endianness=byte_order, check=False)
        if bytes(header["magic"]).startswith((b"n+1", b"n+2")):
            return header, version
        raise DataError(
            f"{path} is not a NIfTI image in one file.",
            cause="Its header says Analyze, or a NIfTI pair of .hdr and .img.",
            next_step="Convert it to one .nii.gz file, for example with: fslchfiletype NIFTI_GZ",
        )
    raise DataError(
        f"{path} is not a NIfTI image.",
        cause=f"{_guess_content(raw)}, whatever its name says.",
        next_step="Give a .nii or .nii.gz file; dcm2niix converts DICOM.",
    )


def _guess_content(raw: bytes) -> str:
    if not raw:
        return "The file is empty"
    if raw[128:132] == b"DICM":
        return "The content is DICOM"
    if b"\0" not in raw[:512]:
        return "The content is text"
    return "The content has no NIfTI header"


def _spatial_shape(path: Path, header: nib.Nifti1Header) -> tuple[int, int, int]:
    dimensions = [int(n) for n in header["dim"]]
    count = dimensions[0]
    sizes = dimensions[1 : count + 1] if 1 <= count <= 7 else []
    if not sizes or min(sizes) < 1:
        raise DataError(
            f"{path} is damaged: its header gives the dimensions {dimensions}.",
            next_step="Make the file again from its source.",
        )
    further = int(np.prod(sizes[3:], dtype=np.int64))
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
    return (sizes[0], sizes[1], sizes[2])


def _affine_in_mm(
    path: Path, header: nib.Nifti1Header, shape: tuple[int, int, int], notes: list[str]
) -> NDArray[np.float64]:
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
    if problem := _problem_of_affine(affine):
        raise GeometryError(
            f"The affine of {path} is unusable: {problem}.",
            cause="The sform or qform of its header is damaged or was never set.",
            next_step="Convert the scan again from DICOM, or mend the header with nifti_tool.",
        )
    if not (header["sform_code"] > 0 or header["qform_code"] > 0):
        notes.append(
            f"{path.name}: the header states no orientation (sform and qform code 0); "
            "axes are taken as left, anterior, superior. Left and right may be exchanged."
        )
    return _in_millimetres(path, header, affine, shape, notes)


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


def _in_millimetres(
    path: Path,
    header: nib.Nifti1Header,
    affine: NDArray[np.float64],
    shape: tuple[int, int, int],
    notes: list[str],
) -> NDArray[np.float64]:
    """Convert an affine in metres or micrometres, unless that makes no head of plausible size."""
    factor = _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    if factor == 1.0:
        return affine
    extent_mm = factor * float(np.max(np.array(spacing_of(affine)) * shape))
    if not 20 <= extent_mm <= 2000:
        notes.append(f"{path.name}: the header's unit of length is implausible; taken as mm.")
        return affine
    scaled = affine.copy()
    scaled[:3] *= factor
    return scaled


def _problem_of_affine(affine: NDArray[np.float64]) -> str | None:
    if affine.shape != (4, 4):
        return f"its shape is {affine.shape} instead of (4, 4)"
    if not np.all(np.isfinite(affine)):
        return "it holds values that are not finite"
    if not np.array_equal(affine[3], [0, 0, 0, 1]):
        return f"its last row is {affine[3].tolist()} instead of 0, 0, 0, 1"
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if np.any(spacing < 1e-9):
        return "the spacing of an axis is zero"
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < _MIN_ASPECT:
        return "two of its axes point the same way"
    return None


def _stored_values(
    path: Path, raw: bytes, header: nib.Nifti1Header, shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    try:
        dtype = np.dtype(header.get_data_dtype())
    except nib.spatialimages.HeaderDataError:
        dtype = np.dtype("V1")
    if dtype.kind not in "iuf" or dtype.itemsize > 16:
        raise DataError(
            f"{path} does not hold one real number per voxel (data type code "
            f"{int(header['datatype'])}).",
            cause="It holds colours, complex numbers or an unknown type.",
            next_step="Give the magnitude image as integers or floats.",
        )
    count = int(np.prod(shape, dtype=np.int64))
    offset = max(int(header["vox_offset"]), int(header["sizeof_hdr"]))
    if len(raw) < offset + count * dtype.itemsize:
        raise DataError(
            f"{path} is truncated: {offset + count * dtype.itemsize} bytes are announced and "
            f"{len(raw)} are there.",
            cause="The copy or download was probably interrupted.",
            next_step="Copy the file again.",
        )
    values = np.frombuffer(raw, dtype=dtype, count=count, offset=offset).reshape(shape, order="F")
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    with np.errstate(over="ignore", invalid="ignore"):
        # The standard: a slope of 0 means no scaling. In float64, because an offset can be large.
        if np.isfinite(slope) and slope != 0 and np.isfinite(inter) and (slope, inter) != (1, 0):
            return np.ascontiguousarray(values * slope + inter, dtype=np.float32)
        return np.ascontiguousarray(values, dtype=np.float32)


def _grid_of_header(
    header: nib.Nifti1Header,
    shape: tuple[int, int, int],
    version: int,
    affine: NDArray[np.float64],
) -> NiftiGrid:
    def numbers(*names: str) -> list[float]:
        return [float(header[name]) for name in names]

    b, c, d = numbers("quatern_b", "quatern_c", "quatern_d")
    x, y, z = numbers("qoffset_x", "qoffset_y", "qoffset_z")
    qfac, i, j, k = (float(value) for value in header["pixdim"][:4])
    return NiftiGrid(
        shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        affine=np.array(affine, dtype=np.float64),
        sform_code=int(header["sform_code"]),
        srow=np.array([header[f"srow_{axis}"] for axis in "xyz"], dtype=np.float64),
        qform_code=int(header["qform_code"]),
        quaternion=(b, c, d),
        qoffset=(x, y, z),
        pixdim=(qfac, i, j, k),
        xyzt_units=int(header["xyzt_units"]),
        version=version,
    )
