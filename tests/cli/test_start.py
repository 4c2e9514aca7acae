"""What a command imports first."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from mmccd_cli.cli.start import begin_imports
begin_imports()
import nibabel
assert "pydicom" not in sys.modules
import pydicom
assert pydicom.Dataset is not None
import torch
assert torch.ones(2).sum() == 2
"""


def test_nibabel_comes_alone_and_dicom_can_be_read_later() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_garbage_is_looked_for_again_once_torch_is_there() -> None:
    script = """
import gc, time
before = gc.get_threshold()
from mmccd_cli.cli.start import begin_imports
begin_imports()
assert gc.get_threshold() != before
import torch
for _ in range(1000):
    if gc.get_threshold() == before:
        break
    time.sleep(0.01)
assert gc.get_threshold() == before
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
