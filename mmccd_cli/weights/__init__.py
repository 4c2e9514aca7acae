"""A name -> a verified bundle: networks, template, calibration and provenance in one folder.

In the order in which data passes through them:

1. `registry`: which names are known, where they lie, and the hash that each must have.
2. `resolve`: a path, a name or a Hub id -> a folder in which every file was checked.
3. `hub`: the Hugging Face Hub and its cache, where nothing local has the name; uploads.
4. `index`: `bundle.json`, the list of a bundle's files with their hashes.
5. `bundle`: the folder -> configuration, template and networks; writing one.
6. `rehearsal`: whether its networks can do what it promises.
7. `card`: what a bundle says about itself, for people.
"""

from __future__ import annotations

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "bundle": ["Bundle", "BundleConfig", "load_bundle", "save_bundle", "verify_bundle"],
        "card": ["model_card"],
        "hub": ["HubId"],
        "index": ["BundleIndex", "check_folder", "read_index"],
        "resolve": ["LocalBundle", "WeightsSource", "list_bundles", "resolve_weights"],
    },
)
