"""A data set of scans -> slices -> networks -> a bundle -> its calibration.

In the order in which data passes through:

1. `recipes`: all that a training needs besides data, by name.
2. `dataset`: scans -> slices on one grid, as `mmccd prepare` does, and `mean_template`: a template
   of their own; the only users of images.
3. `slices`: how these are stored, one file a subject.
4. `normal_ranges`: the atlas of their healthy tissue, and subjects less their bias fields.
5. `samples`: slices in memory, and one drawn at random.
6. `runtime`: device, precision, and the processes that share a batch.
7. `trainer`: the one training loop, for any network and any loss; checkpoints and the log.
8. `painting`: lesions painted into healthy tissue; `scanners`: scans as if from another scanner.
9. `networks`: what each network of a recipe learns, and its loss; `restoration`: that of the
   restoration network; `foci`: that of the network of small foci, for which `foci_subjects` says
   where lesions may lie and `foci_painting` paints them.
10. `calibration_data`: prepared subjects with all their signals, by networks that do not know them.
11. `fusion`: how much each signal counts, and small foci; `confidence`: how sure a candidate is;
   `reliability`: whether the map keeps its promise.
12. `trials`: rules of the threshold that are tried; `calibration`: a bundle on prepared subjects ->
   the numbers of its scores, by all these.
13. `run`: the whole: networks, those of folds, the bundle, its calibration.

Example:
    >>> training = Training(
    ...     shards=prepared, work=folder, recipe=RECIPES["compact"],
    ...     runtime=make_runtime("auto"), text=BundleText(name="mine"),
    ... )
    >>> bundle = training.write(out, training.train())
    >>> training.calibrate(bundle, out)
"""

from __future__ import annotations

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "calibration": ["Calibration", "calibrate"],
        "calibration_data": ["CalibrationSubject", "Fold", "load_subjects"],
        "dataset": ["PrepareSettings", "PreparedDataset", "prepare_dataset", "read_split"],
        "networks": ["NetworkSpec", "network_specs", "train_network"],
        "recipes": ["RECIPES", "Recipe"],
        "run": ["BundleText", "Training"],
        "runtime": ["Runtime", "make_runtime"],
        "samples": ["SliceDataset", "draw_sample", "load_dataset"],
        "slices": ["read_index", "read_shard", "read_template", "read_volumes"],
        "trainer": ["LossOfBatch", "TrainingProgress", "fit"],
    },
)
