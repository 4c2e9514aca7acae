"""The model card of a bundle, written from what the bundle says about itself."""

from __future__ import annotations

from typing import Any

from mmccd_cli.weights.bundle import BundleConfig
from mmccd_cli.weights.index import FRONT_MATTER


def model_card(config: BundleConfig) -> str:
    """Write a model card with the front matter that the Hugging Face Hub reads.

    Args:
        config: The bundle's configuration, calibrated or not.
    """
    cycles = ", ".join(f"{c.source} -> {c.target} -> {c.source}" for c in config.cycles)
    parts = [
        f"# {config.name} (version {config.version})\n",
        f"Modality cycles {cycles} for unsupervised anomaly segmentation in brain MRI, "
        "for use with `mmccd segment`.\n",
        f"**Licence:** {config.licence}. **Intended use:** {config.intended_use}\n",
        _training(config.training),
        _networks(config),
        _calibration(config),
        "## Limits\n\nTrained on adult brains only. What is common in the training subjects is "
        "not found; what is rare but harmless may be. A bright rim of cortex, motion and a cut "
        "field of view cause false positives.\n",
    ]
    return FRONT_MATTER + "\n".join(parts)


def _training(training: dict[str, Any]) -> str:
    if not training:
        return "## Training\n\nNot recorded.\n"
    settings = training.get("settings", {})
    keys = (
        "iterations",
        "batch_size",
        "learning_rate",
        "ema_decay",
        "healthy_by",
        "lesion_dilation_mm",
        "seed",
    )
    rows = "\n".join(f"| {key} | {settings[key]} |" for key in keys if key in settings)
    subjects = ", ".join(s["id"] for s in training.get("subjects", []))
    return (
        f"## Training\n\n{training.get('data', '')}\n\nRecipe `{training.get('recipe')}`, "
        f"{len(training.get('subjects', []))} subjects, {training.get('slices')} slices, of which "
        f"{training.get('healthy_slices')} hold no lesion. In training, labels only hide the "
        f"grown lesion from input and loss.\n\n| setting | value |\n|---|---|\n{rows}\n\n"
        f"Subjects: {subjects}\n\n{training.get('notes', '')}\n"
    )


def _networks(config: BundleConfig) -> str:
    unet = config.unet
    return (
        "## Networks\n\n"
        f"2-D U-Nets, {unet.base_channels} channels x {unet.channel_multipliers}, pixel unshuffle "
        f"{unet.pixel_unshuffle}; masked conditional diffusion with "
        f"{config.diffusion.num_train_timesteps} training steps that predicts x_0; slices of a "
        f"{config.template.shape} grid. An atlas holds mean and standard deviation of the training "
        "subjects' healthy tissue at each voxel of that grid.\n"
    )


def _calibration(config: BundleConfig) -> str:
    about = config.calibration
    if not about:
        return "## Calibration\n\nNot calibrated.\n"
    lines = [
        "## Calibration\n",
        f"On the split `{about['split']}` ({len(about['subjects'])} subjects), by "
        f'{about["criterion"]}. "Left out": the threshold\'s constant chosen on the other '
        "subjects each time. Networks `new`: networks and atlas were trained again without a "
        "share of the subjects, and scored these; `known`: they have seen the subjects' healthy "
        "tissue, so expect less on new ones.\n",
        "| method | modalities | weights | threshold rule | networks | Dice | left out |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = {(r["method"], tuple(r["modalities"])): r for r in about["rows"]}
    for method, scores in config.scores.items():
        for score in scores:
            row = rows.get((method, score.modalities))
            if row is None:
                continue
            known = "known" if row["networks_know_the_subjects"] else "new"
            lines.append(
                f"| {method} | {'+'.join(score.modalities)} | {_sum(score.weights)} | "
                f"{score.rule_in_words} | {known} | {row['dice']:.3f} | "
                f"{row['left_out_dice']:.3f} |"
            )
    lines.append("\n<details><summary>All trials</summary>\n")
    lines += [
        "| method | weights | other side | seeds | rule | Dice | left out |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += dict.fromkeys(
        f"| {row['method']} | {_sum(trial['weights'])} | {-trial['asymmetry']:g} | "
        f"{trial['seed']:g} | {trial['rule']} | {trial['dice']:.3f} | "
        f"{trial['left_out_dice']:.3f} |"
        for row in about["rows"]
        for trial in row["trials"]
        if "left_out_dice" in trial
    )
    lines.append("\n</details>\n")
    return "\n".join(lines)


def _sum(weights: dict[str, float]) -> str:
    return " + ".join(f"{weight:g} {name}" for name, weight in weights.items())
