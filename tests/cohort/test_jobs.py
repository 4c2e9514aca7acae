"""Which subjects a run has, and what it refuses before it computes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mmccd_cli.cohort.jobs import Job, RunSettings, find_all_subjects, plan_job
from mmccd_cli.cohort.plan import Cohort, RunPolicy, SubjectSelection
from mmccd_cli.cohort.shards import Shard, choose_shard
from mmccd_cli.cohort.summary import COLUMNS, Summary, update_summaries
from mmccd_cli.errors import DataError, UsageError
from mmccd_cli.files import remove_leftovers
from mmccd_cli.inputs.subjects import Subject
from mmccd_cli.outputs.record import Outcome


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Seven folders with an empty file called FLAIR each, and one without."""
    made = []
    for number in range(8):
        folder = tmp_path / "data" / f"s{number}"
        folder.mkdir(parents=True)
        if number != 3:
            (folder / "flair.nii.gz").touch()
        made.append(folder)
    return made


# Shares.


@pytest.mark.parametrize("count", [1, 2, 3, 8, 11])
def test_every_folder_is_in_one_share_whatever_the_order(folders: list[Path], count: int) -> None:
    shards = [Shard(index, count) for index in range(1, count + 1)]
    lists = [folders, folders[::-1], sorted(folders, key=hash)]
    picked = [shard.pick(lists[n % 3]) for n, shard in enumerate(shards)]
    assert sorted(path for share in picked for path in share) == folders
    assert max(map(len, picked)) - min(map(len, picked)) <= 1


def test_a_share_reports_only_its_own_failures(folders: list[Path]) -> None:
    found = [find_all_subjects(folders, Shard(index, 2)) for index in (1, 2)]
    assert [[s.id for s in share.subjects] for share in found] == [
        ["s0", "s2", "s4", "s6"],
        ["s1", "s5", "s7"],
    ]
    assert [[Path(o.name).name for o in share.failures] for share in found] == [[], ["s3"]]
    everyone = ["s3", "s0", "s1", "s2", "s4", "s5", "s6", "s7"]
    assert [share.everyone for share in found] == [everyone, everyone]


def test_two_subjects_of_one_name_are_refused_across_shares(
    folders: list[Path], tmp_path: Path
) -> None:
    other = tmp_path / "other" / "S1"
    other.mkdir(parents=True)
    (other / "flair.nii.gz").touch()
    for index in (1, 2):
        with pytest.raises(UsageError, match="both the subject") as caught:
            find_all_subjects([folders[1], other], Shard(index, 2))
        assert f"segment {tmp_path}/data/*/ --out-dir OUT/data" in str(caught.value.next_step)


FOLDERS = [Path("a"), Path("b")]
SLURM = {f"SLURM_ARRAY_TASK_{name}": "" for name in ("ID", "COUNT", "MIN", "STEP")}


def _slurm(task: int, count: int, first: int, step: int | str = "") -> dict[str, str]:
    return dict(zip(SLURM, map(str, (task, count, first, step)), strict=True))


@pytest.mark.parametrize(
    ("text", "variables", "expected"),
    [
        ("2/5", {}, (2, 5)),
        ("auto", {}, None),
        ("off", _slurm(0, 4, 0), None),
        ("2/5", _slurm(0, 4, 0), (2, 5)),
        ("auto", _slurm(0, 4, 0), (1, 4)),
        ("auto", _slurm(4, 4, 1, 1), (4, 4)),
        ("auto", _slurm(20, 3, 10, 10), (2, 3)),
        ("auto", _slurm(7, 1, 7), None),  # --array=7 does again what one task failed to do
        ("auto", SLURM, None),
    ],
)
def test_shares_are_read_from_words_and_from_slurm(
    text: str, variables: dict[str, str], expected: tuple[int, int] | None
) -> None:
    shard = choose_shard(text, FOLDERS, variables)
    assert (shard and (shard.index, shard.count)) == expected


def test_one_folder_is_divided_on_demand_only_and_files_never() -> None:
    assert choose_shard("auto", FOLDERS[:1], _slurm(0, 4, 0)) is None
    assert choose_shard("2/4", FOLDERS[:1]) == Shard(2, 4)
    with pytest.raises(UsageError, match="divides folders"):
        choose_shard("1/2", [])


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("0/5", {}),
        ("6/5", {}),
        ("1/0", {}),
        ("1", {}),
        ("-1/5", {}),
        ("auto", _slurm(7, 3, 1)),  # --array=1,3,7
        ("auto", _slurm(15, 3, 10, 10)),
    ],
)
def test_no_share(text: str, variables: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        choose_shard(text, FOLDERS, variables)


# Targets.


def test_a_job_names_everything_it_writes(tmp_path: Path) -> None:
    subject = Subject(id="a", paths={"FLAIR": tmp_path / "flair.nii.gz"})
    job = plan_job(subject, tmp_path / "out", extras={"picture": "look.png"})
    assert {kind: path.name for kind, path in job.targets.items()} == {
        "map": "a.nii.gz",
        "mask": "a_mask.nii.gz",
        "sidecar": "a.json",
        "table": "a_lesions.tsv",
        "picture": "a_look.png",
    }
    Cohort(jobs=[job]).check(RunSettings(), RunPolicy())
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    other = replace(job, targets={**job.targets, "picture": tmp_path / "file" / "look.png"})
    with pytest.raises(UsageError, match="is a file"):
        Cohort(jobs=[other]).check(RunSettings(), RunPolicy())
    with pytest.raises(UsageError, match="Two results would be written"):
        Cohort(jobs=[job, job]).check(RunSettings(), RunPolicy(resume=True))


def test_settings_are_described_as_they_are_compared() -> None:
    from mmccd_cli.config import SamplingConfig

    described = RunSettings(threshold=0.7).describe(SamplingConfig())
    assert described["threshold"] == 0.7
    assert described["min_lesion_mm3"] == "auto"
    assert "fill_holes" not in described
    assert json.loads(json.dumps(described)) == described


# The table.


def test_a_folder_without_a_subject_is_called_by_its_name_and_place(
    tmp_path: Path,
) -> None:
    folders = [tmp_path / "a" / "anat", tmp_path / "b" / "Anat", tmp_path / "c"]
    failures = find_all_subjects(folders).failures
    assert [failure.name for failure in failures] == ["anat (1)", "Anat (2)", "c"]


def _done(name: str, ml: float = 1.5) -> Outcome:
    record = {
        "lesion_volume_ml": ml,
        "lesions": [{"volume_ml": ml, "peak": 0.9}],
        "threshold": 0.5,
        "inputs": {"FLAIR": {}, "brain_mask": {}},
        "reference": "FLAIR",
        "warnings": ["one", "two\tthree"],
        "outputs": {"map": f"{name}.nii.gz", "mask": f"{name}_mask.nii.gz"},
        "brain_volume_ml": 1400.5,
        "seconds": {"read": 0.25, "inference": 2.0},
    }
    return Outcome(name, "done", record)


def _rows(path: Path) -> list[dict[str, str]]:
    head, *lines = path.read_text().splitlines()
    assert head.split("\t") == list(COLUMNS)
    return [dict(zip(COLUMNS, line.split("\t"), strict=True)) for line in lines]


def test_a_table_of_0_3_0_gains_the_new_columns(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").touch()
    cells = {"subject": "a", "status": "done", "map": "a.nii.gz", "mask": "a_mask.nii.gz"}
    first = COLUMNS[: COLUMNS.index("mask") + 1]
    table = ["\t".join(first), "\t".join(cells.get(name, "1") for name in first)]
    (tmp_path / "summary.tsv").write_text("\n".join(table) + "\n")
    summary = Summary(tmp_path)
    summary.add(_done("b"))
    old, new = _rows(summary.path)
    assert (old["subject"], old["lesions"], old["seconds"]) == ("a", "1", "n/a")
    assert (new["subject"], new["seconds"]) == ("b", "2.2")


def test_the_table_has_a_row_for_every_subject(tmp_path: Path) -> None:
    summary = Summary(tmp_path / "out")
    summary.check()
    summary.add(_done("a"))
    summary.add(Outcome("data/b\udcff", "failed", error=DataError("b is\nbroken")))
    summary.add(Outcome("c", "failed", error=ZeroDivisionError("x")))
    first, second, third = _rows(summary.path)
    assert (first["lesion_volume_ml"], first["lesions"], first["modalities"]) == (
        "1.5",
        "1",
        "FLAIR",
    )
    assert first["warnings"] == "one; two three"
    assert (first["brain_volume_ml"], first["suspicion"], first["seconds"]) == (
        "1400.5",
        "n/a",
        "2.2",
    )
    assert (second["status"], second["exit_code"], second["error"]) == (
        "failed",
        "3",
        "b is broken",
    )
    assert second["map"] == "n/a"
    assert third["exit_code"] == "1"


def test_the_table_keeps_earlier_results_that_are_still_there(tmp_path: Path) -> None:
    earlier = Summary(tmp_path)
    for name in "abc":
        earlier.add(_done(name))
    earlier.add(Outcome("d", "failed", error=DataError("broken")))
    for name in "ac":
        (tmp_path / f"{name}.nii.gz").touch()
    now = Summary(tmp_path)
    now.add(_done("c", ml=9.0))
    assert [(row["subject"], row["lesion_volume_ml"]) for row in _rows(now.path)] == [
        ("a", "1.5"),
        ("c", "9.0"),
    ]


def test_a_table_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "summary.tsv").write_text("my\ttable\n1\t2\n")
    with pytest.raises(UsageError, match="no table of mmccd"):
        Summary(tmp_path).check()
    update_summaries(tmp_path, _done("a"))
    assert (tmp_path / "summary.tsv").read_text() == "my\ttable\n1\t2\n"


def test_a_run_that_begins_beside_another_does_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take the temporary file of the other's table for one that was left."""
    summary = Summary(tmp_path)
    once = iter([summary.path])
    monkeypatch.setattr("mmccd_cli.files.os.fsync", lambda _: remove_leftovers(*once))
    summary.add(_done("a"))
    assert not list(once)
    assert [row["subject"] for row in _rows(summary.path)] == ["a"]


def test_a_new_mask_changes_the_rows_that_are_there(tmp_path: Path) -> None:
    for name, shard in (("a", Shard(1, 2)), ("b", Shard(2, 2))):
        (tmp_path / f"{name}.nii.gz").touch()
        Summary(tmp_path, shard).add(_done(name))
    (tmp_path / "summary_shard-9-of-3.tsv").write_text("mine")  # no share, and none of ours
    update_summaries(tmp_path, _done("b", ml=0.25))
    assert (tmp_path / "summary_shard-9-of-3.tsv").read_text() == "mine"
    volumes = {
        path.name: [row["lesion_volume_ml"] for row in _rows(path)]
        for path in tmp_path.glob("*-of-2.tsv")
    }
    assert volumes == {
        "summary_shard-1-of-2.tsv": ["1.5"],
        "summary_shard-2-of-2.tsv": ["0.25"],
    }


def test_a_kind_of_output_that_is_not_known_is_refused_at_once(tmp_path: Path) -> None:
    subject = Subject(id="a", paths={"FLAIR": tmp_path / "a.nii"})
    with pytest.raises(UsageError, match="no kind of output 'pictures'") as caught:
        Job(subject=subject, targets={"map": tmp_path / "m.nii", "pictures": tmp_path / "p.png"})
    assert "picture, report" in (caught.value.next_step or "")
    with pytest.raises(UsageError, match="no kind of output 'pictures'"):
        SubjectSelection(folders=[tmp_path], out_dir=tmp_path, extras={"pictures": Path("p.png")})
