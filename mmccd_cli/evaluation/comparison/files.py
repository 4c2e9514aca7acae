"""Trained comparison models on disk: `rival.json`, the weights, and the template they know."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from mmccd_cli.config import PreprocessingConfig, from_dict, to_dict
from mmccd_cli.errors import MmccdError, WeightsError
from mmccd_cli.evaluation.comparison.networks import ComparisonConfig, build_network
from mmccd_cli.files import check_json, write_atomically
from mmccd_cli.template import Template
from mmccd_cli.training.slices import read_template, write_template

FORMAT = 1
INDEX = "rival.json"
"""What makes a folder a model; the name is that of the first ones, so that they stay readable."""
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True, kw_only=True)
class ComparisonModel:
    """A trained comparison model.

    Attributes:
        config: How it reconstructs.
        network: Its network, in evaluation mode on the CPU.
        template: The grid that its slices lie on, and the image that subjects are registered to.
        preprocessing: How scans become its slices.
        training: Settings and subjects of its training.
        constants: Residual -> threshold rule -> constant, chosen on the subjects of its training.
    """

    config: ComparisonConfig
    network: nn.Module = field(repr=False)
    template: Template
    preprocessing: PreprocessingConfig
    training: dict[str, Any]
    constants: dict[str, dict[str, float]]

    @property
    def subjects(self) -> frozenset[str]:
        """Ids of the subjects that it was trained on."""
        return frozenset(self.training.get("subjects", ()))


def save_comparison_model(folder: Path, model: ComparisonModel) -> None:
    """Write a model's folder; its index, which makes it one, comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    weights = {name: value.cpu().contiguous() for name, value in model.network.state_dict().items()}
    write_atomically(folder / WEIGHTS, save(weights))
    write_template(folder, model.template)
    document = {
        "format": FORMAT,
        "rival": to_dict(model.config),
        "preprocessing": to_dict(model.preprocessing),
        "affine": model.template.affine.ravel().tolist(),
        "training": model.training,
        "constants": model.constants,
    }
    write_atomically(folder / INDEX, (json.dumps(document, indent=1) + "\n").encode())


def load_comparison_model(folder: Path) -> ComparisonModel:
    """Read a model's folder.

    Raises:
        WeightsError: Not such a folder, or one of its files is damaged.
    """
    try:
        document = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if document.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        config = from_dict(ComparisonConfig, document["rival"], where="rival")
        preprocessing = from_dict(PreprocessingConfig, document["preprocessing"])
        template = read_template(folder, document["affine"])
        constants = check_json(dict[str, dict[str, float]], document["constants"], "constants")
        with torch.random.fork_rng(devices=[]):
            network = build_network(config)
        network.load_state_dict(load_file(folder / WEIGHTS))
        training = dict(document["training"])
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
        SafetensorError,
        MmccdError,
    ) as error:
        raise WeightsError(
            f"{folder} is not a usable comparison model.",
            cause=" ".join(str(error).split())[:300],
            next_step="Train it: mmccd train-comparison --prepared DIR --out DIR",
        ) from error
    return ComparisonModel(
        config=config,
        network=network.eval(),
        template=template,
        preprocessing=preprocessing,
        training=training,
        constants=constants,
    )


def find_comparison_models(folder: Path) -> list[Path]:
    """List the comparison models in a folder: itself, or those directly inside it.

    Raises:
        WeightsError: There are none.
    """
    found = [folder] if (folder / INDEX).is_file() else []
    found += sorted(path.parent for path in folder.glob(f"*/{INDEX}"))
    if not found:
        raise WeightsError(
            f"There is no comparison model in {folder}.",
            next_step="Train some: mmccd train-comparison --prepared DIR --out DIR",
        )
    return found
