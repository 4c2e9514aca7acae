"""Fixtures that many tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mmccd_cli.inputs.nifti import make_grid, write_nifti
from mmccd_cli.inputs.phantom import Phantom, make_phantom

if TYPE_CHECKING:
    from mmccd_cli import Segmenter

_ROOT = Path(__file__).resolve().parent.parent
_NAMES_OF_LAYOUT = {
    "brats": {"FLAIR": "{id}_flair", "T2w": "{id}_t2", "T1w": "{id}_t1", "lesion": "{id}_seg"},
    "brats2023": {"FLAIR": "{id}-t2f", "T2w": "{id}-t2w", "T1w": "{id}-t1n", "lesion": "{id}-seg"},
    "bids": {
        "FLAIR": "anat/{id}_FLAIR",
        "T2w": "anat/{id}_T2w",
        "T1w": "anat/{id}_T1w",
        "lesion": "anat/{id}_label-lesion_mask",
    },
    "plain": {"FLAIR": "flair", "T2w": "t2", "T1w": "t1", "lesion": "lesion"},
}


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans; the test is skipped where it is absent."""
    folder = Path(os.environ.get("MMCCD_TEST_DATA", _ROOT.parent / "shared" / "data"))
    if not (folder / "glioma").is_dir():
        pytest.skip(f"no real scans in {folder}; set MMCCD_TEST_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny bundle that knows FLAIR and T2w; do not change its files."""
    from bundles import write_tiny_bundle

    return write_tiny_bundle(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="session")
def segmenter(bundle: Path) -> Segmenter:
    """The tiny bundle on the CPU, at its fastest."""
    from mmccd_cli import Segmenter

    return Segmenter.from_pretrained(bundle, device="cpu", preset="fast")


@pytest.fixture(scope="session")
def tiny_phantom() -> Phantom:
    """A skull-stripped subject with a lesion on a 4 mm grid; do not write into its arrays."""
    return make_phantom(0, shape=(50, 56, 46), spacing_mm=(4, 4, 4))


@pytest.fixture(scope="session")
def write_subject() -> Callable[..., Path]:
    """A function that writes a phantom as NIfTI files and returns the subject's folder.

    `lesion` is the label of its lesion in the segmentation; 0 for no segmentation.
    """

    def write(
        parent: Path,
        phantom: Phantom,
        layout: str = "brats",
        *,
        id: str | None = None,
        lesion: int = 0,
    ) -> Path:
        id = id or {"bids": "sub-01", "plain": "case"}.get(layout, "BraTS-000")
        folder = parent / id
        grid = make_grid(phantom.brain.shape, phantom.affine)
        arrays = {name: volume.data for name, volume in phantom.volumes.items()}
        if lesion:
            arrays["lesion"] = phantom.lesion * np.uint8(lesion)
        for name, data in arrays.items():
            path = folder / (_NAMES_OF_LAYOUT[layout][name].format(id=id) + ".nii.gz")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_nifti(path, data, grid)
        return folder

    return write


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C works here and in child processes, also where the tests run as a background job.

    A shell starts those with SIGINT ignored, and children inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
