"""Signals of one scan -> score -> anomaly map -> mask and lesions; numpy only, on any grid.

In the order in which data passes through:

1. `atlas`: what healthy tissue looks like at each voxel of the template, a signal.
2. `symmetry`: what one side of the brain says about the other.
3. `score`: signals -> a smoothed score per voxel, and a score -> the anomaly map.
4. `candidates`: the thresholds that are tried on one scan, the mask at each, and the one taken.
5. `contour`: the map's contour, pulled to where the scan itself changes.
6. `confidence`: how sure it is that a candidate is a lesion.
7. `mask`: a map -> its mask, lesions and what was left out, which needs no network.
8. `components`: what all of these ask of a mask: rim, connected components, holes.
9. `metrics`: how well a mask or a map agrees with a reference.
"""
