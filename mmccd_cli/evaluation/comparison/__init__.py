"""Published methods to compare with, trained on the same subjects: AE, VAE, DAE and diffusion.

In the order in which data passes through:

1. `networks`: their networks, how they reconstruct slices, and the residual of a volume.
2. `training`: what they learn, and the thresholds chosen afterwards.
3. `files`: a trained model as a folder, and back.
"""

from __future__ import annotations

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "files": [
            "ComparisonModel",
            "find_comparison_models",
            "load_comparison_model",
            "save_comparison_model",
        ],
        "networks": ["ComparisonConfig", "reconstruct", "residual_of_volume"],
        "training": ["make_comparison_model", "train_comparison_model"],
    },
)
