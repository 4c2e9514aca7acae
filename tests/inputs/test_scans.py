"""What is read of a subject, and how it is named in the record."""

from __future__ import annotations

import hashlib

from mmccd_cli.inputs.scans import describe_inputs
from mmccd_cli.inputs.subjects import subject_from_files


def test_inputs_are_described_without_their_folder(tmp_path):
    path = tmp_path / "flair.nii.gz"
    path.write_bytes(b"scan")
    assert describe_inputs(subject_from_files({"FLAIR": path})) == {
        "FLAIR": {"file": "flair.nii.gz", "sha256": hashlib.sha256(b"scan").hexdigest()}
    }
