"""The settings of an earlier run, to be used again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from mmccd_cli.config import DIFFUSION_ONLY, SamplingConfig, from_dict, without_retired
from mmccd_cli.outputs.record import read_sidecar


@dataclass(frozen=True)
class EarlierRun:
    """How a result was made: options, as `mmccd segment` calls them in Python, and weights."""

    options: dict[str, str]
    weights_sha256: str


def read_earlier_run(record_file: Path) -> EarlierRun:
    """Read the settings of an earlier run from its record.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no record, or one with settings that this version does not know; the
            text is a clause that says which.
    """
    record = read_sidecar(record_file).record
    requested, bundle = record["settings"]["requested"], record["bundle"]
    sampling = asdict(from_dict(SamplingConfig, without_retired(requested.get("sampling", {}))))
    unused = DIFFUSION_ONLY if sampling["method"] == "cyclic-unet" else set()
    chosen = {
        **{name: value for name, value in sampling.items() if name not in unused},
        "precision": "auto",
        **{name: value for name, value in requested.items() if name != "sampling"},
        "weights": bundle.get("hub") or bundle["name"],
    }
    return EarlierRun({name: str(value) for name, value in chosen.items()}, bundle["sha256"])
