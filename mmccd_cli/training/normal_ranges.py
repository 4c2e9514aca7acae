"""What training subjects' healthy tissue looks like, and their scans less what is smoothly off it.

Networks learn from scans as they will meet them: less their bias fields, which are what differs
smoothly from the atlas of these same subjects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmccd_cli.anomaly.atlas import NormalRangeFit
from mmccd_cli.anomaly.components import BoolArray, erode
from mmccd_cli.preprocessing.bias_field import remove_bias_field
from mmccd_cli.template import NormalRange, Quantisation
from mmccd_cli.training.recipes import Recipe
from mmccd_cli.training.slices import (
    Change,
    SubjectVolumes,
    read_index,
    read_template,
    read_volumes,
)


@dataclass(frozen=True, kw_only=True)
class BiasFields:
    """How the bias fields of training subjects are found.

    Attributes:
        degree: Degree of the polynomial, see `BundleConfig.bias_field_degree`.
        unit: One robust standard deviation, in the unit of the images.
        lesion_dilation_mm: How far lesions are grown, in space, before they are left out.
        spacing_mm: Voxel size.
    """

    degree: int
    unit: float
    lesion_dilation_mm: float
    spacing_mm: tuple[float, float, float]

    @classmethod
    def of(cls, recipe: Recipe, shards: Path) -> BiasFields | None:
        """Those of a recipe, on the grid of prepared data; None where it has none."""
        if recipe.bias_field_degree is None:
            return None
        i, j, k = read_index(shards)["spacing_mm"]
        return cls(
            degree=recipe.bias_field_degree,
            unit=recipe.preprocessing.intensity.scale,
            lesion_dilation_mm=recipe.training.lesion_dilation_mm,
            spacing_mm=(float(i), float(j), float(k)),
        )

    def remove(
        self,
        volumes: SubjectVolumes,
        normal: Mapping[str, NormalRange],
        known: BoolArray | None = None,
    ) -> SubjectVolumes:
        """Take the fields off a subject's scans, inside its brain.

        Args:
            volumes: The subject.
            normal: Modality -> what healthy tissue looks like.
            known: (I, J, K) bool, where that is known; None for everywhere.
        """
        seen = healthy_tissue(volumes, self.lesion_dilation_mm, self.spacing_mm)
        if known is not None:
            seen &= known
        images = {
            modality: np.where(volumes.brain, self._flat(image, seen, normal[modality]), image)
            for modality, image in volumes.images.items()
        }
        return replace(volumes, images=images)

    def _flat(
        self, image: NDArray[np.float32], seen: BoolArray, normal: NormalRange
    ) -> NDArray[np.float32]:
        return remove_bias_field(
            image,
            seen,
            normal,
            degree=self.degree,
            sign=0,  # lesions are left out already
            unit=self.unit,
            spacing_mm=self.spacing_mm,
        )


def healthy_tissue(
    volumes: SubjectVolumes, distance_mm: float, spacing_mm: tuple[float, float, float]
) -> BoolArray:
    """(I, J, K) bool, brain at least so far away from any lesion.

    The distance is Euclidean and reaches across slices, for atlas, bias fields and small foci; that
    of the slices from which the other networks learn is taken within the slice, see `load_dataset`.
    """
    return volumes.brain & erode(~volumes.lesion, distance_mm, spacing_mm)


def fit_normal_ranges(
    shards: Path, subjects: Sequence[str], recipe: Recipe
) -> dict[str, NormalRange]:
    """Learn from subjects' healthy tissue what each modality looks like at each place.

    Where bias fields are to be taken off, it is learnt twice: from scans as they are, and from
    what is left of them.

    Args:
        shards: What `prepare` wrote.
        subjects: Whom to learn from.
        recipe: How far lesions are grown before they are left out, and what a bias field is.
    """
    before = _mean_and_spread(shards, subjects, recipe, change=None)
    fields = BiasFields.of(recipe, shards)
    if fields is None:
        return before
    return _mean_and_spread(shards, subjects, recipe, change=lambda v: fields.remove(v, before))


def without_bias_fields(
    shards: Path, recipe: Recipe, find_normal: Callable[[], Mapping[str, NormalRange]]
) -> Change | None:
    """What takes the bias fields off subjects from which networks are to learn.

    Args:
        shards: What `prepare` wrote.
        recipe: What a bias field is.
        find_normal: Gives what `fit_normal_ranges` finds in these subjects; called if needed.

    Returns:
        A change, or None where the recipe leaves scans as they are.
    """
    fields = BiasFields.of(recipe, shards)
    if fields is None:
        return None
    normal, known = find_normal(), read_template(shards, read_index(shards)["affine"]).mask
    return lambda volumes: fields.remove(volumes, normal, known)


def _mean_and_spread(
    shards: Path, subjects: Sequence[str], recipe: Recipe, *, change: Change | None
) -> dict[str, NormalRange]:
    """One pass over all subjects, changed or as they are."""
    index = read_index(shards)
    quantisation, spacing = Quantisation(**index["quantisation"]), index["spacing_mm"]
    fits = {m: NormalRangeFit(tuple(index["shape"]), spacing) for m in index["modalities"]}
    for subject in subjects:
        volumes = read_volumes(shards, subject, quantisation, change=change)
        healthy = healthy_tissue(volumes, recipe.training.lesion_dilation_mm, spacing)
        for modality, fit in fits.items():
            fit.add(volumes.images[modality], healthy)
    return {modality: fit.result() for modality, fit in fits.items()}
