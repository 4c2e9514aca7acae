"""A result that the tests of its report share."""

from __future__ import annotations

import pytest
from report_cases import Case, make_case

from mmccd_cli.inputs.phantom import Phantom
from mmccd_cli.pipeline import Pipeline


@pytest.fixture(scope="session")
def case(segmenter: Pipeline, tiny_phantom: Phantom) -> Case:
    return make_case(segmenter, tiny_phantom)


@pytest.fixture(scope="session")
def report(case: Case) -> str:
    return case.report()
