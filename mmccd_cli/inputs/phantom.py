"""A synthetic head with a lesion, computed from formulas: no image of any person is in it.

Anatomy is a function of the position in the world, so the same head can be put on any grid
without interpolation. Distances are in mm and positive inside a structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mmccd_cli.config import MODALITIES
from mmccd_cli.inputs.volume import Volume

Array = NDArray[np.floating[Any]]
_Points = tuple[Array, Array, Array]  # x, y, z apart: sums over a short axis are slow

GRID_CENTER_MM = (-119.5, 119.5, 77.0)
"""Centre of the 240 x 240 x 155 grid of BraTS, in RAS mm."""
_BRAIN_CENTER_MM = (-118.0, 104.0, 72.0)  # where an adult brain lies on that grid

# Relative to the median of the brain. Measured over BraTS-like and healthy scans, rounded.
_SIGNAL = {
    "FLAIR": {"csf": 0.35, "gm": 1.10, "wm": 0.97, "edema": 1.55, "core": 1.05},
    "T2w": {"csf": 1.95, "gm": 1.18, "wm": 0.86, "edema": 1.50, "core": 1.85},
    "T1w": {"csf": 0.42, "gm": 0.90, "wm": 1.14, "edema": 0.86, "core": 0.62},
}
_SIGNAL_OF_HEAD = {
    "FLAIR": {"fat": 1.3, "marrow": 0.5, "bone": 0.12, "muscle": 0.55, "eye": 0.35},
    "T2w": {"fat": 1.2, "marrow": 0.5, "bone": 0.12, "muscle": 0.45, "eye": 2.1},
    "T1w": {"fat": 1.8, "marrow": 0.7, "bone": 0.15, "muscle": 0.70, "eye": 0.35},
}
_LAYERS = ("csf", "marrow", "bone", "eye", "muscle", "fat")
_SCANNER_SCALE = {"FLAIR": 310.0, "T2w": 420.0, "T1w": 530.0}
_LESION_RADIUS_MM = 18.0
_LESION_SITES_MM = ((29, 24, 22), (31, -32, 24), (34, 2, 30), (33, -44, 8))


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic subject.

    Args:
        volumes: Modality to image, all on one grid.
        lesion: (I, J, K) bool, the lesion; all False without one.
        brain: (I, J, K) bool, brain with ventricles and sulci.
    """

    volumes: dict[str, Volume]
    lesion: NDArray[np.bool_]
    brain: NDArray[np.bool_]

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) map from voxel indices to RAS+ mm of all images."""
        return next(iter(self.volumes.values())).affine


def make_phantom(
    seed: int = 0,
    *,
    shape: tuple[int, int, int] = (240, 240, 155),
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    orientation: str = "LPS",
    rotation_deg: tuple[float, float, float] = (0.0, 0.0, 0.0),
    center_mm: Sequence[float] = GRID_CENTER_MM,
    pose: ArrayLike | None = None,
    lesion: bool = True,
    skull: bool = False,
    noise: float = 0.04,
    bias: float = 0.06,
    modalities: Sequence[str] = MODALITIES,
) -> Phantom:
    """Make a synthetic T1w, T2w and FLAIR of one head; equal arguments give equal images.

    Args:
        seed: Decides on folding, lesion site, coil shading and noise.
        shape: Number of voxels along each axis; the default grid is that of BraTS.
        spacing_mm: Size of a voxel along each axis.
        orientation: World direction of each axis, for example "LPS" or "PIR".
        rotation_deg: Turn of the grid about the x, y and z axis; the head stays where it is.
        center_mm: Centre of the grid in RAS mm.
        pose: (4, 4) rigid or affine motion of the head in RAS mm, with the grid left alone.
        lesion: Whether there is one.
        skull: Whether there is a head around the brain; otherwise the background is exactly 0.
        noise: Standard deviation of the Rician noise, as a part of the brain's median.
        bias: Standard deviation of the logarithm of the coil shading.
        modalities: Which images to make.

    Returns:
        The images with the masks of lesion and brain.
    """
    affine = make_affine(
        shape, spacing_mm, orientation, rotation_deg=rotation_deg, center_mm=center_mm
    )
    head_from_world = np.linalg.inv(np.eye(4) if pose is None else np.asarray(pose, float))
    place = _place_in_head(shape, affine, head_from_world)
    inside, position = _near_brain(place)
    anatomy = _Anatomy(np.random.default_rng([seed, 0]), float(min(spacing_mm)))
    tissues = anatomy.tissues(position)
    if lesion:
        tissues |= anatomy.lesion(position, tissues)
    brain = _on_grid(tissues["hull"] > 0, inside, shape)
    layers = _head_layers(place) if skull else np.zeros(1, np.uint8)
    volumes = {}
    for modality in modalities:
        rng = np.random.default_rng([seed, 1 + MODALITIES.index(modality)])
        signal = _signal(modality, tissues)
        signal *= np.exp(np.float32(bias) * _smooth_polynomial(position, rng))
        image = _on_grid(np.where(tissues["hull"] > 0, signal, 0), inside, shape)
        if skull:
            image = np.where(brain, image, _head_signal(modality, layers))
        image = ndimage.gaussian_filter(image, 0.45)
        image = _with_rician_noise(image, noise, rng, everywhere=skull)
        if not skull:
            image = np.where(brain, np.maximum(image, np.float32(0.01)), np.float32(0))
        volumes[modality] = Volume(np.float32(_SCANNER_SCALE[modality]) * image, affine)
    in_lesion = tissues["edema"] + tissues["core"] > 0.5
    return Phantom(volumes, _on_grid(in_lesion, inside, shape) & brain, brain)


def make_affine(
    shape: tuple[int, int, int],
    spacing_mm: Sequence[float],
    orientation: str,
    *,
    rotation_deg: Sequence[float] = (0.0, 0.0, 0.0),
    center_mm: Sequence[float] = GRID_CENTER_MM,
) -> NDArray[np.float64]:
    """Return the (4, 4) affine of a grid around a centre, with axes along `orientation`."""
    axes = inv_ornt_aff(axcodes2ornt(orientation), (1, 1, 1))[:3, :3].T
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", rotation_deg, degrees=True).as_matrix()
    affine[:3, :3] = turn @ axes @ np.diag(spacing_mm)
    middle = (np.array(shape) - 1) / 2
    affine[:3, 3] = np.asarray(center_mm) - affine[:3, :3] @ middle
    return affine


class _Anatomy:
    """The formulas of one head; the random fields are what differs between seeds."""

    def __init__(self, rng: np.random.Generator, spacing_mm: float) -> None:
        self.edge_mm = max(1.2, spacing_mm)  # width of the partial-volume blur of a boundary
        self.folds = _RandomField(rng, 4.0)
        self.folia = _RandomField(rng, 2.0)
        self.texture = _RandomField(rng, 4.5)
        self.blob = _RandomField(rng, 7.0)
        side = rng.choice((-1, 1))
        site = np.array(_LESION_SITES_MM[rng.integers(len(_LESION_SITES_MM))], float)
        self.site: list[float] = (site * (side, 1, 1) + rng.uniform(-3, 3, 3)).tolist()

    def soft(self, distance: Array) -> Array:
        """Return 1 inside, 0 outside, and a ramp over the boundary."""
        return np.clip(distance / self.edge_mm + np.float32(0.5), 0, 1)

    def tissues(self, p: _Points) -> dict[str, Array]:
        """Return what is at the points of a healthy head.

        Returns:
            Parts of csf, gm, wm, edema and core, the distance `hull`, and the texture.
        """
        hull, cerebrum, cerebellum, stem, radius = _hull(p)
        csf_distance = self._to_cortical_csf(p, cerebrum, radius)
        ventricles = self.soft(_ventricles(p))
        csf = np.maximum(self.soft(-csf_distance), ventricles)
        deep = 0.8 * self.soft(_deep_grey(p))
        wm = np.minimum(self.soft(csf_distance - np.float32(2.6)), 1 - deep)
        wm, csf = self._with_hindbrain(p, (cerebrum, cerebellum, stem), (wm, csf))
        wm *= 1 - csf
        return {
            "csf": csf,
            "wm": wm,
            "gm": 1 - csf - wm,
            "edema": np.zeros_like(csf),
            "core": np.zeros_like(csf),
            "hull": hull,
            "texture": self.texture(p),
        }

    def lesion(self, p: _Points, tissues: dict[str, Array]) -> dict[str, Array]:
        """Return the parts of edema and core; edema spreads along white matter."""
        radius_mm = _LESION_RADIUS_MM
        radii = (0.9 * radius_mm, 1.1 * radius_mm, radius_mm)
        distance = _ellipsoid(p, self.site, radii)
        distance += np.float32(0.2 * radius_mm) * self.blob(p)
        distance -= 2.5 * tissues["gm"] + 0.1 * radius_mm
        tissue = 1 - tissues["csf"]
        core = self.soft(distance - np.float32(0.62 * radius_mm)) * tissue
        return {"edema": self.soft(distance / 1.5) * tissue - core, "core": core}

    def _to_cortical_csf(self, p: _Points, cerebrum: Array, radius: Array) -> Array:
        """Distance to the nearest sulcus, fissure or outer surface; negative in the fluid."""
        # Sulci are the zero level of a random field that hardly varies along the radius.
        stretch = np.maximum(radius, 0.3) ** np.float32(-0.8)
        along_surface = (p[0] * stretch, p[1] * stretch, p[2] * stretch)
        sulci = np.abs(self.folds(along_surface)) * np.float32(3.3) - 1.1
        sulci += 0.05 * np.maximum(cerebrum, 0)
        sulci += 0.6 * np.maximum(cerebrum - 17 - 4 * self.blob(p), 0)
        x, y, z = _mirrored(p)
        callosum = _ellipsoid(p, (0, -8, 4), (80, 52, 25))
        midline = np.maximum(x - np.float32(0.9), callosum)
        sylvian = np.maximum(np.abs(z + 6 - 0.25 * y) - 1.0, np.maximum(41 - x, abs(y - 2) - 32))
        return np.minimum(np.minimum(cerebrum - 0.7, sulci), np.minimum(midline, sylvian))

    def _with_hindbrain(
        self, p: _Points, distances: tuple[Array, Array, Array], parts: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        """Put cerebellum and brainstem into the parts of wm and csf, where the cerebrum is not."""
        cerebrum, cerebellum, stem = distances
        wm, csf = parts
        gap = np.float32(1.2) - np.abs(cerebrum - cerebellum)
        in_cerebellum = self.soft(cerebellum - cerebrum)
        in_stem = self.soft(np.minimum(stem, 2 - cerebrum))
        folia = self.folia((p[0] * np.float32(0.5), p[1], p[2] * np.float32(1.6)))
        leaf_wm = np.clip(0.25 + 0.12 * (cerebellum - 8) / 4 + 0.3 * folia, 0, 1)
        leaf_csf = np.clip(0.12 - 0.5 * folia - cerebellum / 40, 0, 0.6)
        leaf_csf = np.maximum(leaf_csf, 0.8 * self.soft(gap - 0.5))
        wm = wm + in_cerebellum * (leaf_wm - wm)
        csf = csf + in_cerebellum * (leaf_csf - csf)
        fourth_ventricle = self.soft(_ellipsoid(p, (0, -40, -38), (6, 4, 9)))
        wm = wm + in_stem * (0.85 - wm)
        csf = csf * (1 - in_stem)
        return wm, np.maximum(csf, fourth_ventricle)


class _RandomField:
    """A smooth random function of the position, with mean 0 and variance 1.

    Args:
        rng: Source of the noise.
        scale_mm: Standard deviation of the Gaussian that smooths it; its zero level has sheets
            about 4.4 times as far apart.
    """

    def __init__(self, rng: np.random.Generator, scale_mm: float) -> None:
        self.step_mm = np.float32(min(2.0, scale_mm / 1.6))
        # It repeats after 96 steps: 192 mm, or less for fine fields, where nobody sees it.
        noise = rng.standard_normal((96, 96, 96), dtype=np.float32)
        values = ndimage.gaussian_filter(noise, scale_mm / self.step_mm, mode="wrap")
        self.values = (values - values.mean()) / values.std()

    def __call__(self, p: _Points) -> Array:
        index = np.stack(p) / self.step_mm + np.float32(self.values.shape[0] / 2)
        field: Array = ndimage.map_coordinates(self.values, index, order=1, mode="grid-wrap")
        return field


def _place_in_head(
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    head_from_world: NDArray[np.float64],
) -> _Points:
    """Return x, y and z of all voxels, relative to the centre of the brain, in mm."""
    to_head = head_from_world @ affine
    to_head[:3, 3] -= _BRAIN_CENTER_MM
    i, j, k = (np.arange(n) for n in shape)
    x, y, z = (
        (row[0] * i).astype(np.float32)[:, None, None]
        + (row[1] * j).astype(np.float32)[:, None]
        + (row[2] * k + row[3]).astype(np.float32)
        for row in to_head[:3]
    )
    return x, y, z


def _near_brain(place: _Points) -> tuple[NDArray[np.intp], _Points]:
    """Return flat indices of the voxels in and near the brain, and their places."""
    x, y, z = place
    inside = np.flatnonzero((x / 76) ** 2 + (y / 92) ** 2 + (z / 80) ** 2 < 1.1)
    return inside, (x.ravel()[inside], y.ravel()[inside], z.ravel()[inside])


def _on_grid(values: NDArray, inside: NDArray[np.intp], shape: tuple[int, int, int]) -> NDArray:
    grid = np.zeros(int(np.prod(shape)), dtype=values.dtype)
    grid[inside] = values
    return grid.reshape(shape)


def _ellipsoid(p: _Points, center: Sequence[float], radii: Sequence[float]) -> Array:
    """Approximate distance to the surface of an ellipsoid."""
    offset = [axis - np.float32(c) for axis, c in zip(p, center, strict=True)]
    radius = _length(*(axis / np.float32(r) for axis, r in zip(offset, radii, strict=True)))
    return _distance(radius, _length(*offset))


def _length(x: Array, y: Array, z: Array) -> Array:
    length: Array = np.sqrt(x * x + y * y + z * z)
    return length


def _distance(radius: Array, length: Array) -> Array:
    """Distance to a surface, from the radius relative to it and the length from its centre."""
    return (1 - radius) * length / np.maximum(radius, np.float32(1e-3))


def _hull(p: _Points) -> tuple[Array, Array, Array, Array, Array]:
    """Distances to brain, cerebrum, cerebellum and brainstem, and the cerebrum's radius."""
    cerebrum, radius = _cerebrum(p)
    cerebellum = _ellipsoid(p, (0, -54, -43), (52, 33, 26))
    stem = _ellipsoid(p, (0, -24, -46), (13, 14, 28))
    return np.maximum(np.maximum(cerebrum, cerebellum), stem), cerebrum, cerebellum, stem, radius


def _mirrored(p: _Points) -> _Points:
    """Put the left half on the right."""
    return np.abs(p[0]), p[1], p[2]


def _cerebrum(p: _Points) -> tuple[Array, Array]:
    """Distance to the cerebrum's hull, and the radius relative to it (1 on the surface)."""
    x, y, z = p
    front = np.maximum(y, 0)
    width = 69 - np.float32(0.10) * front
    floor = 48 - np.float32(0.22) * front - np.float32(0.1) * np.maximum(-y, 0)
    height = np.where(z > 0, np.float32(66), floor)
    radius = _length(x / width, y / np.float32(84), z / height)
    return _distance(radius, _length(x, y, z)), radius


def _ventricles(p: _Points) -> Array:
    mirrored = _mirrored(p)
    # The body rises towards its middle and leaves the midline towards the back.
    x, y, z = mirrored
    bent = (x - 0.0045 * np.maximum(-y, 0) ** 2, y, z + 0.007 * (y + 2) ** 2)
    body = _ellipsoid(bent, (10, -4, 20), (5.5, 37, 6.5))
    trigone = _ellipsoid(mirrored, (25, -40, 6), (6, 12, 9))
    third = _ellipsoid(p, (0, -12, 2), (2.2, 13, 9))
    return np.maximum(np.maximum(body, trigone), third)


def _deep_grey(p: _Points) -> Array:
    mirrored = _mirrored(p)
    thalamus = _ellipsoid(mirrored, (11, -17, 7), (8, 13, 8))
    putamen = _ellipsoid(mirrored, (27, 4, 3), (5, 15, 10))
    caudate = _ellipsoid(mirrored, (14, 14, 11), (5, 11, 8))
    return np.maximum(np.maximum(thalamus, putamen), caudate)


def _signal(modality: str, tissues: dict[str, Array]) -> Array:
    """Noise-free signal of brain and lesion, relative to the brain's median."""
    value, edema, core = _SIGNAL[modality], tissues["edema"], tissues["core"]
    signal = sum((tissues[name] * value[name] for name in ("csf", "gm", "wm")), np.float32(0))
    signal = signal * (1 - edema - core) + edema * value["edema"] + core * value["core"]
    signal *= 1 + np.float32(0.05) * tissues["texture"]
    return signal


def _head_layers(p: _Points) -> NDArray[np.uint8]:
    """Number the layers around the brain: 0 air, else 1 + index in `_LAYERS`."""
    hull = _hull(p)[0]
    depth = np.maximum(15 + hull, _ellipsoid(p, (0, 52, -52), (56, 42, 58)))
    depth = np.maximum(depth, _ellipsoid(p, (0, -22, -100), (54, 58, 90)))
    layers = np.zeros(hull.shape, np.uint8)
    layers[depth > 0] = 1 + _LAYERS.index("fat")
    layers[depth > 5] = 1 + _LAYERS.index("muscle")
    layers[_ellipsoid(p, (0, 62, -48), (13, 24, 20)) > 0] = 0
    layers[_ellipsoid(_mirrored(p), (32, 72, -30), (12, 12, 12)) > 0] = 1 + _LAYERS.index("eye")
    layers[hull > -9] = 1 + _LAYERS.index("bone")
    layers[(hull < -4.5) & (hull > -7)] = 1 + _LAYERS.index("marrow")
    layers[hull > -2.5] = 1 + _LAYERS.index("csf")
    return layers


def _head_signal(modality: str, layers: NDArray[np.uint8]) -> Array:
    values = _SIGNAL_OF_HEAD[modality] | {"csf": 0.9 * _SIGNAL[modality]["csf"]}
    table = np.array([0.0, *(values[name] for name in _LAYERS)], np.float32)
    return table[layers]


def _smooth_polynomial(p: _Points, rng: np.random.Generator) -> Array:
    """A random polynomial of degree 2 with variance near 1 over the head."""
    x, y, z = (axis / np.float32(80) for axis in p)
    weights = 0.6 * rng.standard_normal(9)
    polynomial = np.zeros_like(x)
    for weight, term in zip(
        weights,
        (x, y, z, x * x - 0.3, y * y - 0.3, z * z - 0.3, x * y, y * z, z * x),
        strict=True,
    ):
        polynomial += np.float32(weight) * term
    return np.clip(polynomial, -3, 3)


def _with_rician_noise(
    image: Array, sigma: float, rng: np.random.Generator, *, everywhere: bool
) -> Array:
    where = slice(None) if everywhere else image > 0
    values = image[where]
    real = values + np.float32(sigma) * rng.standard_normal(values.shape, dtype=np.float32)
    imaginary = np.float32(sigma) * rng.standard_normal(values.shape, dtype=np.float32)
    noisy = image.copy()
    noisy[where] = np.hypot(real, imaginary)
    return noisy
