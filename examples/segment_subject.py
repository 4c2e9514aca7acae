"""Segment one subject from Python: `python segment_subject.py SUBJECT map.nii.gz`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmccd_cli.bundle import load_bundle
from mmccd_cli.outputs import output_paths, write_result
from mmccd_cli.pipeline import Segmenter
from mmccd_cli.subjects import find_subject
from mmccd_cli.volume import read_nifti
from mmccd_cli.weights import resolve_weights


def main() -> None:
    """Read, segment, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", type=Path, help="folder with FLAIR, T2w and T1w")
    parser.add_argument("out", type=Path, help="anomaly map, .nii.gz")
    parser.add_argument("--weights", help="name, folder or place on the Hub")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()

    subject = find_subject(options.subject)
    scans = {name: read_nifti(path) for name, path in subject.paths.items()}

    bundle = load_bundle(resolve_weights(options.weights))
    segmenter = Segmenter(bundle, device=options.device)
    result = segmenter.segment({name: volume for name, (volume, _) in scans.items()})

    for lesion in result.lesions:
        print(f"{lesion.volume_ml:8.2f} ml at {lesion.centroid_ras_mm}")
    _, grid = scans[result.reference]
    write_result(
        output_paths(options.out),
        result.anomaly_map,
        result.mask,
        grid,
        {"lesions": result.lesions, "settings": result.settings, "warnings": result.notes},
        inputs=subject.paths.values(),
    )


if __name__ == "__main__":
    main()
