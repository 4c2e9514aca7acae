"""Scans of one subject -> normalised images on the template's grid, and back.

In the order in which data passes through:

1. `spatial`: resampling, and `registration`: how scans lie to each other. Only these two use
   SimpleITK.
2. `brain`: where the brain is; tells stripped scans from raw heads.
3. `skull_strippers`: the table of what finds the brain in a raw head; `deepbet`: its networks.
4. `template_alignment`: where the brain lies in the template.
5. `bias_field`: what makes a part of a scan brighter than another, where an atlas is at hand; as a
   gain before `intensity`, and as an offset after all of these.
6. `intensity`: intensities that mean the same in every scan.
7. `sampling`: scans on the template's grid.
8. `contrast`: whether a scan looks like what its name says; `agreement`: whether two of them show
   one head in one place; `damaged_slices`: which were lost, or are far brighter than those beside;
   `checks`: what follows from these.
9. `subject`: all of these, one after the other; `reference_grid`: the way back.

`least_squares` solves what `template_alignment` and `bias_field` ask.
"""

from __future__ import annotations

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "brain": ["BrainMask", "find_brain", "is_skull_stripped"],
        "intensity": ["normalise"],
        "skull_strippers": ["STRIPPERS", "SkullStripper"],
        "registration": ["refine", "register"],
        "spatial": ["resample", "same_grid"],
        "subject": ["PreparedSubject", "prepare_subject"],
        "reference_grid": ["to_reference_grid"],
    },
)
