"""Masked conditional diffusion: schedule, masks, loss and sampler, all pure functions."""

from mmccd_cli.diffusion.masking import (
    band_masks,
    hide,
    random_band_masks,
    random_blob_masks,
)
from mmccd_cli.diffusion.sampler import Denoiser, sample_ddim
from mmccd_cli.diffusion.schedule import Schedule

__all__ = [
    "Denoiser",
    "Schedule",
    "band_masks",
    "hide",
    "random_band_masks",
    "random_blob_masks",
    "sample_ddim",
]
