"""Grids that many tests share: axes in every order, thick slices, oblique, sheared, and none."""

from __future__ import annotations

import numpy as np

from mmccd_cli.inputs.phantom import make_affine

SHAPE = (5, 6, 4)
RAMP = np.arange(120, dtype=np.float32).reshape(SHAPE)
"""Every voxel has a value of its own."""

AFFINES = {
    **{axes: make_affine(SHAPE, (1, 1, 1), axes) for axes in ("RAS", "LAS", "LPS", "PIR")},
    "anisotropic": make_affine(SHAPE, (0.9, 0.9, 5.5), "LPS"),
    "oblique": make_affine(SHAPE, (1.2, 0.8, 3), "LPS", rotation_deg=(10, -17, 25)),
}
SHEARED = AFFINES["oblique"] @ np.array(
    [[1, 0.2, 0, 0], [0, 1, 0.1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
)
SINGULAR = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
"""Its first two axes point the same way."""


def block(shape: tuple[int, ...], *ranges: tuple[int, int]) -> np.ndarray:
    """A bool volume that is True in one box."""
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask
