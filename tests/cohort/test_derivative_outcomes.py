"""Results and failures of a derivative data set, from run to run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmccd_cli.cohort.derivative_outcomes import (
    earlier_failures,
    note_failure,
    row_of_result,
    summarise_derivatives,
)
from mmccd_cli.errors import DataError
from mmccd_cli.outputs.record import Outcome


def _failed(name: str) -> Outcome:
    return Outcome(name, "failed", error=DataError("It is empty.", next_step="Look at it."))


@pytest.mark.parametrize(
    ("map_name", "name"),
    [
        ("sub-01_ses-1_run-2_space-orig_desc-anomaly_probseg.nii.gz", "sub-01_ses-1_run-2"),
        ("p_space-A.nii.gz", "p_space-A"),
        ("p_space-B.nii", "p_space-B"),
    ],
)
def test_only_names_of_bids_end_where_they_say_the_space(map_name: str, name: str) -> None:
    record = {"outputs": {"map": map_name}}
    assert row_of_result(record).name == name


def test_a_failure_is_known_to_later_runs_until_the_session_is_done(tmp_path: Path) -> None:
    for name in ("sub-1_ses-a", "sub-1/ses-a", "sub-2"):  # the first two look the same in a name
        note_failure(tmp_path, _failed(name))
    (tmp_path / "log" / "failed-other.json").write_text("{}")
    found = earlier_failures(tmp_path, [_failed("sub-2")])
    assert {outcome.name for outcome in found} == {"sub-1_ses-a", "sub-1/ses-a"}
    assert str(found[0].error) == str(_failed("x").error)
    note_failure(tmp_path, Outcome("sub-1/ses-a", "done", {}))
    assert {outcome.name for outcome in earlier_failures(tmp_path)} == {"sub-1_ses-a", "sub-2"}


def test_nothing_is_kept_of_a_data_set_that_has_not_been_begun(tmp_path: Path) -> None:
    note_failure(tmp_path / "out", _failed("sub-1"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="no folder"):
        summarise_derivatives(tmp_path / "out")


def test_whom_the_source_does_not_hold_any_more_has_not_failed(tmp_path: Path) -> None:
    source, out = tmp_path / "raw", tmp_path / "out"
    (source / "sub-2").mkdir(parents=True)
    out.mkdir()
    for name in ("sub-1", "sub-2"):
        note_failure(out, _failed(name))
    assert [failure.name for failure in summarise_derivatives(out, source).failures] == ["sub-2"]
