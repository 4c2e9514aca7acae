"""Single slices that were lost, or far too bright or dark, are counted; anatomy is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmccd_cli.inputs.phantom import Phantom, make_phantom
from mmccd_cli.inputs.scans import read_image
from mmccd_cli.inputs.subjects import find_subjects
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.preprocessing.brain import find_brain
from mmccd_cli.preprocessing.damaged_slices import lost_slices, uneven_slices


@pytest.fixture(scope="module")
def head() -> Phantom:
    return make_phantom(0, shape=(60, 66, 52), spacing_mm=(3, 3, 3), modalities=["FLAIR"])


def _times(scan: Volume, factor: float, axis: int, index: int) -> Volume:
    data = scan.data.copy()
    np.moveaxis(data, axis, 0)[index] *= factor
    return Volume(data, scan.affine)


@pytest.mark.parametrize("axis", range(3))
def test_lost_slices_are_counted(head: Phantom, axis: int) -> None:
    brain = head.brain.copy()
    assert lost_slices(brain) == 0
    np.moveaxis(brain, axis, 0)[[24, 25]] = False
    assert lost_slices(brain) == 2
    assert lost_slices(np.zeros_like(brain)) == 0


@pytest.mark.parametrize("factor", [0.4, 2.0])
@pytest.mark.parametrize("axis", range(3))
def test_a_slice_of_another_brightness_is_counted(head: Phantom, axis: int, factor: float) -> None:
    scan = head.volumes["FLAIR"]
    assert uneven_slices(scan, head.brain) == 0
    assert uneven_slices(_times(scan, factor, axis, 26), head.brain) == 1
    assert uneven_slices(_times(scan, 1.1, axis, 26), head.brain) == 0
    standardised = Volume(_times(scan, factor, axis, 26).data - 300, scan.affine)
    assert uneven_slices(standardised, head.brain) == 0


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize("folder", ["glioma", "ms", "healthy", "metastasis"])
def test_real_heads_have_none(real_data: Path, folder: str) -> None:
    for subject in find_subjects(real_data / folder):
        for name in subject.paths:
            scan, _ = read_image(subject, name)
            brain = find_brain({name: scan}).mask
            assert uneven_slices(scan, brain) == 0
            assert uneven_slices(_times(scan, 2.0, 2, scan.shape[2] // 2), brain) == 1
