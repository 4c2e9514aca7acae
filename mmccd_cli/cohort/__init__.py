"""Many subjects: what is planned, done and told of them; one that fails stops none of the others.

In the order in which a cohort passes through:

1. `shards`: which share of many subjects a task of a cluster does.
2. `jobs`: one subject, where its results go, and what was asked for.
3. `derivatives`: the same for results that become a BIDS derivative data set.
4. `plan`: from what a user points at to a `Cohort`: its jobs, and what is written about all.
5. `resume`: what an earlier run left of a job, and whether it can stay.
6. `prefetch`: the next jobs are prepared in threads while one is on the device; `workers`: how
   many at a time.
7. `steps`: one job, step by step: read and prepare, infer, write; or only a new mask.
8. `runner`: the same with an outcome in every case; `dask_workers`: on the workers of a cluster.
9. `run`: all of a cohort, one outcome after the other; or what would be done.
10. `summary`: the table of all outcomes, and of all shares; `derivative_outcomes`: what became
    of a BIDS derivative data set, whichever runs made it.

With results that are there: `results` reads them, `threshold` makes new masks from their maps,
`compare` tells two of one subject apart, `group` adds them up in the space of the template, and
`like` reads the settings of an earlier run. `demo` segments a synthetic subject.
"""

from __future__ import annotations

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "compare": ["Comparison", "find_position"],
        "group": ["find_members", "write_group"],
        "jobs": ["Job", "RunSettings", "find_all_subjects", "plan_job"],
        "plan": ["Cohort", "RunPolicy", "SubjectSelection", "plan_bids_cohort"],
        "results": ["Result", "files_of_result", "read_result"],
        "run": ["preview_cohort", "segment_cohort"],
        "runner": ["Observer"],
        "shards": ["Shard", "choose_shard"],
        "steps": ["JobSteps", "PreparedJob"],
        "summary": ["Summary"],
        "threshold": ["MaskJob", "make_mask", "plan_masks"],
    },
)
