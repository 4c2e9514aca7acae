"""Reports: HTML pages that open from the disk, hold all that they show and ask no network.

What a page says is in `templates/`, which one can open and read; Python hands over the data. In
the order in which data passes through:

1. `data`: scans, map, mask and template on one grid, in one order of axes.
2. `checks`: signs that a result may have failed, and the suspicion that they give together.
3. `panels`: the still pictures.
4. `viewer`: what the interactive viewer shows.
5. `facts`: inputs, settings and histograms; `thresholds`: the masks that others would give.
6. `page`: the report of one subject, `templates/report.html`.
7. `cohort`: the page over all reports of a folder, `templates/cohort.html`.
8. `group`: the page over a group in the space of the template, `templates/group.html`.
9. `render`: templates to pages, escaped throughout, with a policy that names each script's hash.

`assets/` holds the pages' style and scripts, and the library that draws the viewer.
"""

from __future__ import annotations

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "checks": ["Check", "check_subject", "suspicion", "verdict"],
        "cohort": ["report_path", "write_cohort_page"],
        "group": ["group_page"],
        "data": ["ReportData", "report_data"],
        "page": ["subject_report"],
        "panels": ["Panels"],
    },
)
