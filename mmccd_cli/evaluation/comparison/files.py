"""Trained comparison models on disk: `rival.json`, the weights, and the template they know."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mmccd_cli.config import PreprocessingConfig, from_dict, to_dict
from mmccd_cli.errors import MmccdError, WeightsError
from mmccd_cli.evaluation.comparison.networks import ComparisonConfig, build_network
from mmccd_cli.template import Template
from mmccd_cli.training.slices import read_template, write_template

FORMAT = 1
INDEX = "rival.json"
"""What makes a folder a model; the name is that of the first ones, so that they stay readable."""
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
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
    save_file(weights, folder / WEIGHTS)
    write_template(folder, dict(model.template.images), model.template.mask)
    document = {
        "format": FORMAT,
        "rival": to_dict(model.config),
        "preprocessing": to_dict(model.preprocessing),
        "affine": model.template.affine.ravel().tolist(),
        "training": model.training,
        "constants": model.constants,
    }
    (folder / INDEX).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


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
        images, mask = read_template(folder)
        constants = {
            str(residual): {str(rule): float(value) for rule, value in rules.items()}
            for residual, rules in document["constants"].items()
        }
        affine = np.array(document["affine"], dtype=np.float64).reshape(4, 4)
        with torch.random.fork_rng(devices=[]):
            network = build_network(config)
        network.load_state_dict(load_file(folder / WEIGHTS))
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
            f"{folder} is not a usable comparison model",
            cause=" ".join(str(error).split())[:300],
            next_step="train it: mmccd train-comparison --prepared DIR --out DIR",
        ) from error
    template = Template(images, mask, affine)
    training = dict(document["training"])
    return ComparisonModel(config, network.eval(), template, preprocessing, training, constants)


def find_comparison_models(folder: Path) -> list[Path]:
    """List the comparison models in a folder: itself, or those directly inside it.

    Raises:
        WeightsError: There are none.
    """
    found = [folder] if (folder / INDEX).is_file() else []
    found += sorted(path.parent for path in folder.glob(f"*/{INDEX}"))
    if not found:
        raise WeightsError(
            f"there is no comparison model in {folder}",
            next_step="train some: mmccd train-comparison --prepared DIR --out DIR",
        )
    return found
