"""The U-Net that translates slices and predicts x_0, and its building blocks."""

from mmccd_cli.networks.unet import UNet

__all__ = ["UNet"]
