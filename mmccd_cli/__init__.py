"""Unsupervised anomaly segmentation in multi-modal brain MRI (MMCCD)."""

__version__ = "0.1.0"
