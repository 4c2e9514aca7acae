"""DICOM SEG files, read back by highdicom and compared with the NIfTI files of the same result."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest
from dicom_phantoms import PARAMETERS, make_dicom, write_enhanced, write_series

from mmccd_cli.errors import UsageError
from mmccd_cli.inputs.dicom.pixels import read_stack
from mmccd_cli.inputs.dicom.studies import read_study
from mmccd_cli.inputs.phantom import make_phantom
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.outputs.dicom_seg import Provenance, check_available, encode_segmentation
from mmccd_cli.template import transform_points

highdicom = pytest.importorskip("highdicom")

MADE_BY = Provenance(name="glioma", version="1", sha256="ab" * 32, parameters={"threshold": "0.5"})
_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def phantom(**settings):
    made = make_phantom(
        3, shape=(28, 32, 24), spacing_mm=(8.0, 7.0, 7.5), modalities=["FLAIR"], **settings
    )
    return np.rint(made.volumes["FLAIR"].data), made.affine


def points_in_world(affine: np.ndarray, mask: np.ndarray) -> set[tuple[float, ...]]:
    points = transform_points(affine, np.argwhere(mask))
    return {tuple(point) for point in np.round(points, 1) + 0.0}


def world_of_segmentation(content: bytes) -> set[tuple[float, ...]]:
    """Where the marked pixels of a binary segmentation lie in RAS mm, frame by frame."""
    image = highdicom.seg.segread(io.BytesIO(content))
    shared = image.SharedFunctionalGroupsSequence[0]
    points: set[tuple[float, ...]] = set()
    for pixels, groups in zip(
        np.atleast_3d(image.pixel_array.T).T, image.PerFrameFunctionalGroupsSequence, strict=True
    ):
        to_lps = highdicom.spatial.ImageToReferenceTransformer(
            groups.PlanePositionSequence[0].ImagePositionPatient,
            shared.PlaneOrientationSequence[0].ImageOrientationPatient,
            shared.PixelMeasuresSequence[0].PixelSpacing,
        )
        rows, columns = np.nonzero(pixels)
        if len(rows):
            # Image coordinates have the centre of the first pixel at (0.5, 0.5).
            lps = to_lps(np.column_stack([columns + 0.5, rows + 0.5]))
            points |= {tuple(point) for point in np.round(lps @ _RAS[:3, :3], 1) + 0.0}
    return points


CASES = {
    "axial": {"orientation": "LPS"},
    "sagittal": {"orientation": "PIR"},
    "oblique": {"orientation": "LPS", "rotation_deg": (17.0, -8.0, 31.0)},
}


@pytest.mark.parametrize("case", [*CASES, "tilted"])
def test_a_mask_lies_on_the_voxels_of_the_nifti_mask(tmp_path, case):
    data, affine = phantom(**CASES.get(case, {}))
    if case == "tilted":
        affine = affine.copy()
        affine[:3, 2] += 0.3 * affine[:3, 1]
    make_dicom({"FLAIR": Volume(data, affine)}, tmp_path, shuffled=6)
    stack = read_study(tmp_path).stacks["FLAIR"]
    volume, grid = read_stack(stack)
    mask = volume.data > np.quantile(volume.data[volume.data > 0], 0.97)
    content = encode_segmentation(stack, mask, MADE_BY, kind="mask")
    assert 50 < np.count_nonzero(mask) == len(world_of_segmentation(content))
    assert world_of_segmentation(content) == points_in_world(grid.affine, mask)


def test_a_mask_says_what_it_is_and_names_its_source_images(tmp_path):
    data, affine = phantom()
    paths = write_series(Volume(data, affine), tmp_path, tags=PARAMETERS["FLAIR"], number=5)
    stack = read_study(tmp_path).stacks["FLAIR"]
    mask = np.zeros(stack.shape, bool)
    mask[10:14, 11:15, 7:9] = True
    image = highdicom.seg.segread(
        io.BytesIO(encode_segmentation(stack, mask, MADE_BY, kind="mask"))
    )
    source = pydicom.dcmread(paths[0])
    assert image.SegmentationType == "BINARY"
    assert image.NumberOfFrames == 2  # empty slices are left out
    (segment,) = image.SegmentSequence
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Lesion"
    assert "glioma" in segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName
    assert image.StudyInstanceUID == source.StudyInstanceUID
    assert image.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert image.SeriesInstanceUID != source.SeriesInstanceUID
    assert image.PatientID == source.PatientID  # the standard wants the patient of the source
    (series,) = image.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    referenced = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert referenced == {pydicom.dcmread(path).SOPInstanceUID for path in paths}


def test_a_map_is_fractional(tmp_path):
    data, affine = phantom()
    make_dicom({"FLAIR": Volume(data, affine)}, tmp_path)
    stack = read_study(tmp_path).stacks["FLAIR"]
    values = np.clip(read_stack(stack)[0].data / 600, 0, 1)
    image = highdicom.seg.segread(
        io.BytesIO(encode_segmentation(stack, values, MADE_BY, kind="map"))
    )
    assert (image.SegmentationType, image.SegmentationFractionalType) == (
        "FRACTIONAL",
        "PROBABILITY",
    )
    place_of_frame = [
        groups.PlanePositionSequence[0].ImagePositionPatient[2]
        for groups in image.PerFrameFunctionalGroupsSequence
    ]
    upwards = image.pixel_array[np.argsort(place_of_frame)]
    used = np.flatnonzero(values.any(axis=(0, 1)))
    np.testing.assert_allclose(
        upwards.transpose(2, 1, 0) / 255, values[:, :, used], atol=0.51 / 255
    )


def test_an_empty_mask_can_be_written(tmp_path):
    data, affine = phantom()
    make_dicom({"FLAIR": Volume(data, affine)}, tmp_path)
    stack = read_study(tmp_path).stacks["FLAIR"]
    content = encode_segmentation(stack, np.zeros(stack.shape, bool), MADE_BY, kind="mask")
    assert not world_of_segmentation(content)


def test_a_mask_on_one_echo_of_an_enhanced_image(tmp_path):
    data, affine = phantom()
    volumes = {15.0: Volume(data, affine), 98.0: Volume(data, affine)}
    write_enhanced(volumes, tmp_path / "IM1", tags={"EchoPulseSequence": "SPIN"})
    stack = read_study(tmp_path).stacks["T2w"]
    mask = np.zeros(stack.shape, bool)
    mask[10:14, 11:15, 7:9] = True
    content = encode_segmentation(stack, mask, MADE_BY, kind="mask")
    assert world_of_segmentation(content) == points_in_world(stack.affine, mask)


def test_a_source_without_a_patient_is_enough(tmp_path):
    data, affine = phantom()
    for path in write_series(Volume(data, affine), tmp_path, tags=PARAMETERS["FLAIR"]):
        image = pydicom.dcmread(path)
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyDate", "StudyTime"):
            delattr(image, keyword)
        image.save_as(path)
    stack = read_study(tmp_path).stacks["FLAIR"]
    content = encode_segmentation(stack, np.ones(stack.shape, bool), MADE_BY, kind="mask")
    assert pydicom.dcmread(io.BytesIO(content)).PatientID == ""


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(UsageError, match="highdicom") as caught:
        check_available()
    assert "mmccd[dicom-seg]" in caught.value.next_step
