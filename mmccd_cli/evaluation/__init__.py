"""Masks against references, and methods against each other.

In the order in which data passes through:

1. `cases`: a subject in memory, what a method says about it, and the row of its scores.
2. `baselines`: scores without networks, which a learned method has to beat.
3. `comparison/`: published models to compare with, trained on the slices of the same subjects.
4. `passes`: how many slices went through networks.
5. `methods`: bundles, baselines and comparison models -> predictions.
6. `thresholds`, `folds`: constants, chosen on subjects that are not scored with them.
7. `published_protocol`: the way in which the literature scores, by an oracle.
8. `free_response`: lesions found against false positives, by confidence;
   `free_response_picture`: their curves as a picture.
9. `plan`: who is scored by what, and the whole run.
10. `tables`: rows -> CSV, summary and text.

`benchmark` measures seconds, memory and Dice of the presets; `painted`, with the `second_painter`,
which lesions are found, by size, contrast and set of scans.

Example:
    >>> subjects = EvaluationSubjects(data_dir=folder)
    >>> compared = ComparedMethods(load=lambda method, weights: Pipeline(bundle), methods=["mmccd"])
    >>> result = run_evaluation(plan_evaluation(subjects, compared), out=Path("rows.csv"))
"""

from __future__ import annotations

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "cases": ["Case", "CaseRow", "Method", "Prediction", "evaluate_cases", "load_case"],
        "baselines": ["BASELINES", "plain_score"],
        "methods": ["BundleMethod", "ComparisonScorer", "IntensityScorer", "RuleMethod"],
        "folds": ["read_folds"],
        "free_response": ["FreeResponse"],
        "plan": [
            "ComparedMethods",
            "EvaluationPlan",
            "EvaluationSubjects",
            "plan_evaluation",
            "plan_folds",
            "run_evaluation",
        ],
        "tables": ["text_tables", "write_rows", "write_summary"],
        "painted": ["PaintedPlan", "measure_painted", "painted_table"],
        "benchmark": ["BenchmarkSetup"],
    },
)
