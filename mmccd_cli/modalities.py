"""The MRI contrasts that mmccd knows, by their BIDS suffixes."""

from __future__ import annotations

MODALITIES = ("FLAIR", "T2w", "T1w")
"""All modalities, in the order in which one is preferred as the reference image."""
