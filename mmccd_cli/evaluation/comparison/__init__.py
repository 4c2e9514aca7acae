"""Published methods to compare with, trained on the same slices: AE, VAE, DAE and diffusion.

In the order in which data passes through:

1. `networks`: their networks, how they reconstruct slices, and the residual of a volume.
2. `training`: what they learn, and the thresholds chosen afterwards.
3. `files`: a trained model as a folder, and back.
"""
