"""Slices of one modality -> imagined slices of another; torch and numpy only, no geometry.

In the order in which data passes through:

1. `slices`: a volume -> the stack of its axial slices, cropped to the brain, and the way back.
2. `masking`: which part of a slice is hidden.
3. `blocks`, `unet`: the network.
4. `schedule`, `sampler`: the numbers of the diffusion, and the walk from noise to an image.
5. `translators`: what maps slices to slices: a U-Net, or masked diffusion; a cycle of them.
6. `engine`: slices x masks through a cycle in batches, and the residual.
7. `restoration`: all scans of a slice through the restoration network, and the residual.
8. `foci`: all scans of a slice, its neighbours and the other side through the network of small
   foci.

`devices` says where this computes and how many slices fit.
"""

from __future__ import annotations

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "devices": ["choose_batch_size", "choose_device", "choose_precision"],
        "engine": ["Execution", "band_work", "masked_residual", "plain_residual"],
        "masking": ["band_masks", "hide"],
        "sampler": ["sample_ddim"],
        "schedule": ["Schedule"],
        "slices": ["SliceStack", "from_slices", "to_slices"],
        "translators": ["Cycle", "MaskedTranslator", "Translator"],
        "unet": ["UNet"],
    },
)
