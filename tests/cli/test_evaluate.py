"""`mmccd evaluate` and `mmccd train-comparison` as users meet them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from bundles import write_tiny_bundle
from typer.testing import CliRunner, Result

from mmccd_cli.cli.app import app
from mmccd_cli.config import ConfidenceConfig
from mmccd_cli.inputs.phantom import Phantom, make_phantom
from mmccd_cli.weights.bundle import load_bundle, rewrite_bundle

Write = Callable[..., Path]
SPLIT = {"train": ["a", "b"], "val": ["c"]}


@cache
def head(seed: int, lesion: bool = True) -> Phantom:
    return make_phantom(seed, shape=(50, 56, 46), spacing_mm=(4, 4, 4), lesion=lesion)


@pytest.fixture
def data(tmp_path: Path, write_subject: Write) -> Path:
    """Three labelled subjects, a split file, and a healthy subject elsewhere."""
    for seed, name in enumerate("abc"):
        write_subject(tmp_path / "data", head(seed), id=name, lesion=True)
    write_subject(tmp_path / "calm", head(7, False), id="well")
    (tmp_path / "split.json").write_text(json.dumps(SPLIT))
    return tmp_path / "data"


def evaluate(*words: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, words), "--device", "cpu"])


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_all_rows_in_csv_summary_and_table(data: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    split = tmp_path / "split.json"
    words = [data, "--split", split, "--healthy", tmp_path / "calm", "--weights", bundle]
    only = ["--method", "cyclic-unet", "--modalities", "all", "--constants-from", "train"]
    result = evaluate(*words, *only, "--out", out)
    assert result.exit_code == 0, result.stderr
    rows = read(out)
    labelled = {row["method"]: row for row in rows if row["subject"] == "c"}
    assert set(labelled) == {
        "cyclic-unet (all)",
        *(
            f"{b} ({rule})"
            for b in ("flair-z", "t2w-z", "t1w-z", "flair-t2w-z")
            for rule in ("fixed", "adaptive")
        ),
        "flair-z (edge)",
    }
    assert {row["subject"] for row in rows} == {"c", "well"}
    assert all(row["protocol"] == "deployed" for row in rows)
    assert int(labelled["cyclic-unet (all)"]["passes"]) > 2
    assert labelled["flair-z (fixed)"]["passes"] == "0"
    assert float(labelled["flair-z (fixed)"]["dice"]) > 0.5
    calm = [row for row in rows if row["subject"] == "well"]
    assert all(row["healthy"] == "1" and row["dice"] == "nan" for row in calm)
    summary = json.loads((tmp_path / "rows.summary.json").read_text())
    assert summary["constants_subjects"] == ["a", "b"]
    assert "2 subjects of the split train" in summary["constants_source"]
    assert "Both masks empty" in summary["conventions"]
    one = next(t for t in summary["table"] if t["method"] == "flair-z (fixed)")
    assert one["rules"] == [f"fixed {summary['constants']['flair-z']['fixed']:g}"]
    assert set(one["scores"]["dice"]) == {"mean", "sd", "low", "high", "n", "undefined"}
    assert "95 % interval" in result.stdout
    assert "the best row that learns nothing" in result.stdout
    assert "cyclic-unet (all)" in summary["dice_above_best_unlearned"]["deployed"]
    assert "healthy subjects" in result.stdout
    assert "holes filled" in result.stderr
    again = evaluate(
        *words, "--method", "none", "--constants-from", tmp_path / "rows.summary.json", "-v"
    )
    assert again.exit_code == 0, again.stderr
    assert "read from rows.summary.json" in again.stderr
    assert re.search(r"flair-z \(fixed\) +hd95_mm", again.stdout)


def test_json_is_the_summary_and_all_else_goes_to_stderr(
    data: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.csv"
    words = [data, "--weights", bundle, "--method", "mmccd", "--modalities", "all", "--out", out]
    result = evaluate(*words, "--json")
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    summary = json.loads((tmp_path / "rows.summary.json").read_text())
    assert json.loads(line) == summary
    assert {row["method"] for row in summary["table"]} > {"flair-z (fixed)"}
    assert "Constants of thresholds" in result.stderr


@pytest.mark.parametrize("name", ["seg", "flair", "split.json", "folds.json", "old.summary.json"])
def test_what_is_read_is_never_overwritten(data: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "folds.json").write_text(json.dumps({"one": ["a", "b"], "two": ["c"]}))
    (tmp_path / "old.summary.json").write_text("{}")
    scans = {path.name.split("_")[-1].split(".")[0]: path for path in (data / "a").iterdir()}
    out = scans.get(name, tmp_path / name.replace(".summary.json", ".csv"))
    kept = {path: path.read_bytes() for path in [*data.rglob("*.gz"), *tmp_path.glob("*.json")]}
    words = ["--folds", tmp_path / name] if name == "folds.json" else []
    words = words or ["--split", tmp_path / "split.json"]
    words += ["--constants-from", tmp_path / name] if "summary" in name else []
    result = evaluate(data, *words, "--method", "none", "--out", out, "--force")
    assert result.exit_code == 2
    assert "an input is never overwritten" in " ".join(result.stderr.split())
    assert kept == {path: path.read_bytes() for path in kept}


def test_folds_score_every_subject_by_a_bundle_that_has_not_seen_it(
    data: Path, tmp_path: Path
) -> None:
    trained_on = {"one": ["c"], "two": ["a", "b"]}
    for name, ids in trained_on.items():
        write_tiny_bundle(tmp_path / name, name=name)
        loaded = load_bundle(tmp_path / name)
        training = {"subjects": [{"id": i, "files": {}} for i in ids]}
        rewrite_bundle(loaded, replace(loaded.config, training=training), "# card\n")
    folds = tmp_path / "folds.json"
    folds.write_text(json.dumps({"one": ["a", "b"], "two": ["c"]}))
    out = tmp_path / "folds.csv"
    only = ["--method", "cyclic-unet", "--modalities", "FLAIR"]
    result = evaluate(data, "--folds", folds, *only, "--out", out)
    assert result.exit_code == 0, result.stderr
    ours = {row["subject"]: row for row in read(out) if row["method"] == "cyclic-unet (FLAIR)"}
    assert {i: row["weights"].split()[0] for i, row in ours.items()} == {
        "a": "one",
        "b": "one",
        "c": "two",
    }
    assert all(row["seen"] == "0" for row in read(out))
    summary = json.loads((tmp_path / "folds.summary.json").read_text())
    assert set(summary["constants"]) == {"one", "two"}
    folds.write_text(json.dumps({"one": ["a", "c"], "two": ["b"]}))
    leaking = evaluate(data, "--folds", folds, *only)
    assert leaking.exit_code == 3
    assert "trained or calibrated on c" in leaking.stderr


def test_comparison_models_are_trained_and_compared(data: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    split = tmp_path / "split.json"
    prepared, trained = tmp_path / "prepared", tmp_path / "comparison"
    words = ["prepare", "--data-dir", data, "--out", prepared, "--split", split]
    assert runner.invoke(app, [str(w) for w in words]).exit_code == 0
    train = ["train-comparison", "--prepared", prepared, "--out", trained, "--iterations", 2]
    train += ["--kind", "ae", "--kind", "vae", "--device", "cpu"]
    result = runner.invoke(app, [str(w) for w in train])
    assert result.exit_code == 0, result.stderr
    assert not list(trained.glob("*/*.pt")), "what is written needs no checkpoint"
    train[0] = "train-rivals"  # its first name
    assert runner.invoke(app, [str(w) for w in train]).exit_code == 2  # they are there already
    for index in trained.glob("*/rival.json"):  # the phantoms lie in one space: nothing to register
        document = json.loads(index.read_text())
        assert set(document["constants"]) == {"signed", "absolute"}
        document["preprocessing"]["template_registration"] = "none"
        index.write_text(json.dumps(document))
    only = ["--method", "none", "--no-thresholds", "--comparison", trained, "--split", split]
    residuals = ["--comparison-residual", "signed", "--rival-residual", "absolute"]
    out = tmp_path / "comparison.csv"
    result = evaluate(data, *only, *residuals, "--out", out)
    assert result.exit_code == 0, result.stderr
    rows = {row["method"]: row for row in read(out)}
    assert len(rows) == 8
    ae, vae = rows["ae-FLAIR (fixed)"], rows["vae-FLAIR (fixed)"]
    assert int(vae["passes"]) == int(ae["passes"]) > 10  # slices with brain
    assert rows["ae-FLAIR, absolute (fixed)"]["auroc"] != ae["auroc"]
    assert ae["seen"] == "0"
    alone = ["--rival", trained / "ae-FLAIR", "--split", split, "--on", "train"]
    known = evaluate(data, *only[:3], *alone)
    assert known.exit_code == 0, known.stderr
    assert "ae-FLAIR was trained or calibrated on 2 of these subjects" in known.stderr


def test_subjects_without_a_segmentation_are_left_out_and_named(data: Path) -> None:
    next((data / "a").glob("*seg*")).unlink()
    result = evaluate(data, "--method", "none")
    assert result.exit_code == 0, result.stderr
    assert "1 without a segmentation are left out (a)" in result.stderr


def test_who_lacks_a_scan_is_left_out_and_named(data: Path, bundle: Path, tmp_path: Path) -> None:
    next((data / "b").glob("*_t2.*")).unlink()
    out = tmp_path / "rows.csv"
    only = ["--method", "cyclic-unet", "--weights", bundle, "--no-thresholds"]
    asked = evaluate(data, *only, "--modalities", "T2w", "--out", out)
    assert asked.exit_code == 6, asked.stderr
    assert "cyclic-unet (T2w): b left out, without a scan that it needs" in asked.stderr
    assert [row["subject"] for row in read(out)] == ["a", "c"]
    summary = json.loads((tmp_path / "rows.summary.json").read_text())
    assert summary["lacking_scans"] == {"cyclic-unet (T2w)": ["b"]}
    not_asked = evaluate(data, "--method", "none")
    assert not_asked.exit_code == 0, not_asked.stderr
    assert "  note: t2w-z: b left out" in not_asked.stderr
    for file in data.glob("[ac]/*_t2.*"):
        file.unlink()
    nobody = evaluate(data, *only, "--modalities", "T2w")
    assert nobody.exit_code == 3
    assert "None of the subjects has the scans" in nobody.stderr


@pytest.mark.parametrize("constants", [[], ["--split", "{split}", "--constants-from", "train"]])
def test_a_damaged_scan_stops_no_other_subject(
    data: Path, tmp_path: Path, constants: list[str]
) -> None:
    next((data / "b").glob("*_flair.*")).write_bytes(b"nothing of use")
    out, split = tmp_path / "rows.csv", tmp_path / "split.json"
    (data / "notes").mkdir()
    words = [word.format(split=split) for word in constants]
    result = evaluate(data, "--method", "none", "--out", out, *words)
    assert result.exit_code == 6, result.stderr
    assert "error: b: " in result.stderr
    assert "notes is left out: " in result.stderr
    assert {row["subject"] for row in read(out)} == ({"c"} if constants else {"a", "c"})
    summary = json.loads((tmp_path / "rows.summary.json").read_text())
    assert list(summary["failed"]) == ["b"]
    assert str(data) not in summary["failed"]["b"]
    assert summary["constants_subjects"] == (["a"] if constants else [])


def test_where_nobody_can_be_scored_the_first_error_is_told(data: Path, tmp_path: Path) -> None:
    for file in data.glob("*/*_flair.*"):
        file.write_bytes(b"nothing of use")
    result = evaluate(data, "--method", "none", "--out", tmp_path / "rows.csv")
    assert result.exit_code == 3, result.stderr
    assert "None of the 3 subjects can be scored. a: " in result.stderr
    words = ["--split", tmp_path / "split.json", "--constants-from", "train"]
    chosen = evaluate(data, "--method", "none", *words)
    assert chosen.exit_code == 3, chosen.stderr
    assert "None of the 2 subjects can be scored. a: " in chosen.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--protocol", "mine"], 2, "'deployed', 'published', 'both'"),
        (["--rival-residual", "squared"], 2, "Use signed or absolute"),
        (["--modalities", "PET"], 2, "PET"),
        (["--on", "test", "--split", "{split}"], 2, "--on test"),
        (["--on", "val"], 2, "Add --split"),
        (["--rival-residual", "signed"], 2, "Add --comparison"),
        (["--folds", "{split}", "--on", "val"], 2, "Leave out --split, --on"),
        (["--constants-from", "train"], 2, "needs --split"),
        (["--constants-from", "val", "--split", "{split}"], 2, "themselves"),
        (["--constants-from", "{split}"], 3, "not a summary with constants"),
        (["--folds", "{split}", "--split", "{split}"], 2, "Leave out"),
        (["--folds", "{missing}"], 3, "cannot be read"),
        (["--rival", "{missing}"], 4, "no comparison model"),
        (["--protocol", "published"], 3, "--protocol deployed"),
        (["--out", "{split}"], 2, "--force"),
        (["--split", "{odd}"], 3, "nobody"),
    ],
)
def test_misuse_is_explained(
    data: Path, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    (tmp_path / "odd.json").write_text(json.dumps({"val": ["nobody"]}))
    places = {
        "split": str(tmp_path / "split.json"),
        "missing": str(tmp_path / "missing"),
        "odd": str(tmp_path / "odd.json"),
    }
    result = evaluate(data, "--method", "none", *(word.format(**places) for word in words))
    assert result.exit_code == code, result.stderr
    assert said in " ".join(result.stderr.split())


def test_lesions_found_by_confidence_are_told_and_written(
    data: Path, bundle: Path, tmp_path: Path
) -> None:
    """Of a bundle that knows how sure it is; one that does not has no curve."""
    only = [data, "--method", "cyclic-unet", "--modalities", "all", "--no-thresholds"]
    plain = evaluate(*only, "--weights", bundle)
    assert plain.exit_code == 0, plain.stderr
    assert "lesions found" not in plain.stdout
    sure = ConfidenceConfig(weights=(1.0, 0.0, 1.0), bias=-2.0)
    config = load_bundle(bundle).config
    scores = {
        method: tuple(replace(score, confidence=sure) for score in own)
        for method, own in config.scores.items()
    }
    known = tmp_path / "known"
    rewrite_bundle(load_bundle(bundle), replace(config, scores=scores), "# Known\n", out=known)
    out = tmp_path / "rows.csv"
    result = evaluate(*only, "--weights", known, "--out", out, "--healthy", tmp_path / "calm")
    assert result.exit_code == 0, result.stderr
    assert "lesions found" in result.stdout
    told = json.loads((tmp_path / "rows.summary.json").read_text())["free_response"]
    assert [(curve["healthy"], curve["scans"]) for curve in told] == [(False, 3), (True, 1)]
    with (tmp_path / "rows.froc.tsv").open(newline="") as file:
        points = [row for row in csv.DictReader(file, delimiter="\t") if row["healthy"] == "0"]
    assert {row["modalities"] for row in points} == {"FLAIR+T2w+T1w"}
    found = [float(row["sensitivity"]) for row in points]
    assert found == sorted(found)
    assert found[-1] > found[0] == 0
    again = evaluate(*only, "--weights", known, "--out", tmp_path / "rows.csv")
    assert again.exit_code == 2
