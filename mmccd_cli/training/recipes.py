"""The named training recipes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mmccd_cli.config import (
    CycleConfig,
    Degree,
    DiffusionConfig,
    FociConfig,
    IntensityConfig,
    PreprocessingConfig,
    RestorationConfig,
    SamplingConfig,
    TrainingConfig,
    UNetConfig,
)

CYCLES = (
    CycleConfig("FLAIR", "T2w", sign=1),
    CycleConfig("T2w", "FLAIR", sign=1),
    CycleConfig("T1w", "FLAIR", sign=-1),
)
"""One cycle for each modality, so that any one of them is enough.

The targets are the better ones of the paper's comparison; tumours and lesions are bright on FLAIR
and T2w and dark on T1w.
"""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a training needs besides data.

    Attributes:
        name: Name of the recipe.
        unet: Architecture of the plain networks.
        denoiser: Architecture of the masked conditional diffusion networks.
        training: How they are trained.
        spacing_mm: Voxel size of the training grid.
        preprocessing: How scans become slices.
        sampling: Default sampling of the bundle.
        diffusion: The noise schedule.
        cycles: Which cycles are trained.
        restoration: The restoration network; None trains none.
        restoration_training: How it is trained.
        foci: The network of small foci; None trains none.
        foci_training: How it is trained.
        bias_field_degree: See `BundleConfig`.
    """

    name: str
    unet: UNetConfig
    denoiser: UNetConfig
    training: TrainingConfig
    spacing_mm: float
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    cycles: tuple[CycleConfig, ...] = CYCLES
    restoration: RestorationConfig | None = None
    restoration_training: TrainingConfig = field(default_factory=TrainingConfig)
    foci: FociConfig | None = None
    foci_training: TrainingConfig = field(default_factory=TrainingConfig)
    bias_field_degree: Degree | None = None


def _compact() -> Recipe:
    """1.1 GFLOP a pass at 128 x 128: a pixel-unshuffle stem and four levels."""
    shape = {"base_channels": 24, "channel_multipliers": (1, 2, 3, 4), "pixel_unshuffle": 2}
    return Recipe(
        name="compact",
        unet=UNetConfig(**shape),  # type: ignore[arg-type]  # values of several types
        denoiser=UNetConfig(in_channels=2, time_conditioned=True, **shape),  # type: ignore[arg-type]
        training=TrainingConfig(
            iterations=2000,
            batch_size=16,
            learning_rate=2e-3,
            widest_band=48,
            blob_radius_px=24.0,
            last_timestep_fraction=0.5,
        ),
        spacing_mm=2.0,
        # Plain translation scores as high as masked diffusion on the training subjects left out,
        # at an eighth of the passes; `--preset balanced` and `--method mmccd` take the latter.
        # Bands of 48 pixels hide more of a lesion than those of 16, and fewer are needed.
        sampling=SamplingConfig(
            method="cyclic-unet", band_width=48, band_stride=24, num_inference_steps=1
        ),
        restoration=RestorationConfig(
            unet=UNetConfig(
                in_channels=6,
                out_channels=3,
                base_channels=32,
                channel_multipliers=(1, 2, 3, 4),
                pixel_unshuffle=2,
            ),
        ),
        restoration_training=TrainingConfig(
            iterations=1500, batch_size=16, learning_rate=1.5e-3, ema_decay=0.995
        ),
        foci=FociConfig(
            unet=UNetConfig(in_channels=15, base_channels=16, channel_multipliers=(1, 2, 3))
        ),
        foci_training=TrainingConfig(
            iterations=3000, batch_size=8, learning_rate=2e-3, ema_decay=0.995
        ),
        bias_field_degree=2,
    )


def _paper() -> Recipe:
    """The published configuration: 6,600,257 parameters and 10.9 GFLOP a pass at 128 x 128."""
    network = UNetConfig(
        base_channels=32,
        channel_multipliers=(1, 1, 2, 3, 4),
        residual_blocks=2,
        attention_levels=(2, 3, 4),
        middle_attention=True,
        attention_heads=1,
        resample="residual",
        dropout=0.1,
        norm_groups=32,
    )
    denoiser = replace(network, in_channels=2, time_conditioned=True)
    return Recipe(
        name="paper",
        unet=network,
        denoiser=denoiser,
        training=TrainingConfig(
            iterations=100_000,
            batch_size=32,
            learning_rate=1e-4,
            warmup_iterations=0,
            schedule="constant",
            gradient_clip=0.0,
            ema_decay=0.9999,
            loss_region="image",
            healthy_by="slice",
            augment=False,
        ),
        spacing_mm=1.875,
        preprocessing=PreprocessingConfig(
            IntensityConfig(method="percentile", scale=1.0, clip=None, background=-3.0)
        ),
        sampling=SamplingConfig(band_width=16, band_stride=2, num_inference_steps=100),
    )


RECIPES = {recipe.name: recipe for recipe in (_compact(), _paper())}
