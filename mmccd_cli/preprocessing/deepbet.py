"""The two networks of deepbet: a raw head in, the brain out.

The architecture is a LinkNet with residual blocks (Chaurasia and Culurciello 2017), written here
from the shapes of the published weights, which are in `assets/` in half precision.

Source: L. Fisch et al., "deepbet: Fast brain extraction of T1-weighted MRI using convolutional
    neural networks", Computers in Biology and Medicine 2024; weights of the package deepbet
    1.0.2, MIT licence (`assets/deepbet.LICENSE.txt`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cc3d
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage

from mmccd_cli.anomaly.components import fill_holes
from mmccd_cli.inputs.volume import sparse_zeros

WEIGHTS = Path(__file__).with_name("assets") / "deepbet.safetensors"
_COARSE = (128, 128, 128)
_FINE = (256, 256, 256)
_LEAST_OF_A_PLANE = 0.02  # of a plane's voxels that are brain, for the plane to belong to its box
_BOX_SCALE = 1.2  # the box is widened by a tenth on each side

Weights = dict[str, torch.Tensor]
Box = tuple[slice, slice, slice]


def find_brain(head: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Find the brain: roughly in the whole image, then exactly in a box around it.

    Each network looks at the head and at its mirror image, so that both have the same brain.

    Args:
        head: (I, J, K) intensities, axes towards right, anterior and superior.

    Returns:
        (I, J, K) bool: one connected piece without holes.

    Raises:
        ValueError: There is no brain.
    """
    weights = _load()
    small, low, high = _seen_whole(head)
    coarse = _on_both_sides(weights["coarse"], small)
    box = _box_around(_largest_piece(coarse.numpy()), head.shape)
    box_seen = _normalised(_intensities(head[box], _FINE), low, high)
    fine = _on_both_sides(weights["fine"], box_seen)
    brain = sparse_zeros(head.shape, bool)
    shape = brain[box].shape
    # Voxels that will be repeated hang together as they do now; there may be eight times as many.
    fewest = tuple(map(min, fine.shape, shape))
    inside = fill_holes(_largest_piece(_sampled(fine.numpy(), fewest)))
    brain[box] = _sampled(inside, shape)
    return brain


def find_surroundings(
    head: NDArray[np.float32], spacing_mm: Sequence[float], *, margin_mm: float
) -> NDArray[np.bool_]:
    """Find the brain roughly, in a seventh of the time, and what lies so near to it.

    Args:
        head: See `find_brain`.
        spacing_mm: Voxel size.
        margin_mm: What lies nearer to the brain belongs to it.

    Returns:
        (I, J, K) bool.

    Raises:
        ValueError: There is no brain.
    """
    small, _, _ = _seen_whole(head)
    brain = _largest_piece((_brain(_load()["coarse"], small) > 0).numpy())
    sampling = [
        mm * size / coarse for mm, size, coarse in zip(spacing_mm, head.shape, _COARSE, strict=True)
    ]
    near = ndimage.distance_transform_edt(~brain, sampling=sampling) <= margin_mm
    return _sampled(near, head.shape)


def _seen_whole(head: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The image as the coarse network sees it, and the range of its intensities."""
    small = _intensities(head, _COARSE)
    low, high = small.quantile(0.005), small.quantile(0.995)
    if not high > low:
        raise ValueError("the image is constant")
    return _normalised(small, low, high), low, high


@torch.inference_mode()
def _on_both_sides(weights: Weights, image: torch.Tensor) -> torch.Tensor:
    """What a network says of an image and of its mirror image: (I, J, K) bool."""
    both = _brain(weights, image)
    return both.add_(_brain(weights, image.flip(0)).flip(0)) > 0


def _load() -> dict[str, Weights]:
    from safetensors.torch import load_file

    networks: dict[str, Weights] = {"coarse": {}, "fine": {}}
    for name, tensor in load_file(WEIGHTS).items():
        network, _, layer = name.partition(".")
        networks[network][layer] = tensor.float()
    return networks


def _sampled(image: NDArray, shape: tuple[int, ...]) -> NDArray:
    """Take the nearest voxels, as torch's "nearest-exact" does, and copy no others."""
    indices = []
    for old, new in zip(image.shape, shape, strict=True):
        step = np.float32(old) / np.float32(new)
        places = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * step
        indices.append(np.minimum(places.astype(np.intp), old - 1))
    return image[np.ix_(*indices)]


def _intensities(image: NDArray[np.float32], shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(_sampled(image, shape)).nan_to_num_()


def _normalised(image: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    image.sub_(low).div_(high - low).clamp_(0, 1)
    mean, deviation = image.mean(), image.std()
    return image.sub_(mean).mul_(0.226).div_(deviation).add_(0.449)


def _largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if not mask.any():
        raise ValueError("no voxel looks like brain")
    return cc3d.largest_k(mask, k=1, connectivity=26) > 0


def _box_around(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> Box:
    """Return a box around a coarse mask, in voxels of an image of that shape."""
    sides = []
    for axis, size in enumerate(shape):
        others = tuple({0, 1, 2} - {axis})
        planes = np.flatnonzero(mask.mean(axis=others) > _LEAST_OF_A_PLANE)
        if planes.size == 0:
            raise ValueError("too few voxels look like brain")
        scale = size / mask.shape[axis]
        first, end = int(planes[0]), int(planes[-1]) + 1
        center = round(scale * (first + end) / 2)
        width = round(_BOX_SCALE * scale * (end - first))
        sides.append(slice(max(0, int(center - width / 2)), min(size, int(center + width / 2))))
    return sides[0], sides[1], sides[2]


@torch.inference_mode()
def _brain(weights: Weights, image: torch.Tensor) -> torch.Tensor:
    """Apply a network: (I, J, K) intensities -> (I, J, K), above 0 in the brain; sides of 2^5.

    All that can be is written in place: to get and return memory took longer than to compute.
    """
    skips = [F.max_pool3d(_convolved(weights, image[None, None], "init", stride=2), 3, 2, 1)]
    for level in range(4):
        skips.append(_down(weights, skips[-1], f"down{level}", stride=min(level + 1, 2)))
    x = skips.pop()
    for level in range(4):
        x = _up(weights, x, f"up{level}", stride=2 if level < 3 else 1)
        x.add_(skips.pop() if level < 3 else skips[0])
    x = _widened(weights, x, "tp_conv1", stride=2)
    x = _convolved(weights, x, "conv")
    # What matters of both classes is which one is likelier.
    (kernel, bias) = (weights[f"tp_conv2.{part}"] for part in ("weight", "bias"))
    likelier = F.conv_transpose3d(x, kernel[:, 1:] - kernel[:, :1], bias[1:] - bias[:1], stride=2)
    return likelier[0, 0]


def _convolved(
    weights: Weights, x: torch.Tensor, name: str, *, stride: int = 1, act: bool = True
) -> torch.Tensor:
    """Convolution, instance normalisation and, where wanted, ReLU."""
    kernel = weights[f"{name}.weight"]
    bias = weights.get(f"{name}.bias")
    x = F.instance_norm(F.conv3d(x, kernel, bias, stride, padding=kernel.shape[-1] // 2))
    return x.relu_() if act else x


def _widened(weights: Weights, x: torch.Tensor, name: str, *, stride: int) -> torch.Tensor:
    kernel, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    x = F.conv_transpose3d(x, kernel, bias, stride, padding=1, output_padding=stride - 1)
    return F.instance_norm(x).relu_()


def _down(weights: Weights, x: torch.Tensor, name: str, *, stride: int) -> torch.Tensor:
    """Two residual blocks, the first of which halves the sides where the stride is 2."""
    for block in (f"{name}.block1", f"{name}.block2"):
        shortcut = x
        if f"{block}.downsample.weight" in weights:
            shortcut = _convolved(weights, x, f"{block}.downsample", stride=stride, act=False)
        x = _convolved(weights, x, f"{block}.conv1", stride=stride)
        x = _convolved(weights, x, f"{block}.conv2", act=False).add_(shortcut).relu_()
        stride = 1
    return x


def _up(weights: Weights, x: torch.Tensor, name: str, *, stride: int) -> torch.Tensor:
    x = _convolved(weights, x, f"{name}.conv1")
    x = _widened(weights, x, f"{name}.tp_conv", stride=stride)
    return _convolved(weights, x, f"{name}.conv2")
