"""A study's report written anew from its numbers: today's verdicts and figures, what was told, nothing trained."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from optscope.again import rewritten
from optscope.cli import main
from optscope.engine.execute import Inline
from optscope.errors import UserError
from optscope.evidence.picture import KEPT
from optscope.lab import run_study
from optscope.studies import study_of

RESULTS = Path(__file__).parents[1] / "results"
STUDY = "restrained_instability"


def ran(name, experiments, folder):
    """Run some experiments of a study at smoke scale; its other claims are undecided."""
    study = study_of(name)
    few = replace(study, experiments=lambda scale: [e for e in study.experiments(scale) if e.name in experiments])
    return run_study(few, "smoke", folder, executor=Inline(), command=f"optscope run {name} --scale smoke")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What a run left: numbers, and a figure of arrays (heat) beside one of numbers alone (window)."""
    folder = tmp_path_factory.mktemp("made") / "out"
    return folder, ran(STUDY, ("heat", "window"), folder)


@pytest.fixture
def published(made, tmp_path):
    """A report as a reader downloads it: without runs."""
    folder = tmp_path / "published"
    shutil.copytree(made[0], folder, ignore=lambda place, names: {"runs"} & {*names})
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def broken(folder, name, change):
    """Write a JSON file of the folder with something in it changed."""
    path = folder / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def told(folder):
    return json.loads((folder / "report.json").read_text())


def test_with_its_runs_a_report_is_the_same_but_for_who_drew_it(made, tmp_path):
    folder, result = tmp_path / "again", made[1]
    shutil.copytree(made[0], folder)
    again = rewritten(folder)
    before, after = contents(made[0]), contents(folder)
    assert before.keys() == after.keys()
    assert {path.name for path in before if before[path] != after[path]} == {
        "report.html", "report.md", "report.json"}
    first, second = told(made[0]), told(folder)
    assert "judged and drawn anew by" in second["environment"]
    for each in (first, second):
        del each["seal"], each["environment"]
    assert first == second
    assert again.summary == result.summary
    assert [t.title for t in again.document.tables] == [t.title for t in result.document.tables]
    assert "seen twice: growth a step just beyond it" in {check.text for check in again.document.checklist}
    once = contents(folder)
    rewritten(folder)
    assert contents(folder) == once


def test_comparisons_keep_their_tables_and_what_was_told_of_their_tuning(tmp_path):
    result = ran("weight_normalization", ("network",), tmp_path)
    first = told(tmp_path)
    again = rewritten(tmp_path)
    assert [t.rows for t in again.document.tables] == [t.rows for t in result.document.tables] != []
    for name in ("verdicts", "protocol", "reservations", "summary", "figures"):
        assert told(tmp_path)[name] == first[name]
    assert first["protocol"]


def test_without_its_runs_it_is_judged_and_drawn_from_the_numbers_and_keeps_what_cannot_be(
        made, published, capsys, monkeypatch):
    first = contents(published)
    broken(published, "verdicts.json", lambda rows: [each | {"outcome": "fails"} for each in rows])
    heat = published / "figures" / "heat.svg"
    heat.write_text(heat.read_text().replace("</svg>", "<script>alert(1)</script></svg>"))
    (published / "figures" / "window.svg").unlink()
    monkeypatch.setattr("sys.argv", ["optscope", "report", str(published), "--anew"])
    main()
    assert f"report: {published / 'report.html'}" in capsys.readouterr().out.splitlines()
    for name in ("verdicts.json", "summary.csv", "run.json"):
        assert (published / name).read_bytes() == first[Path(name)]
    assert (published / "figures" / "window.svg").is_file()  # of numbers alone
    assert sorted(f["name"] for f in told(published)["figures"]) == ["heat", "window"]
    assert [f["name"] for f in told(published)["figures"]] == [f["name"] for f in told(made[0])["figures"]]
    assert not (published / "runs").exists()
    page = (published / "report.html").read_text()
    assert "alert(1)" not in page  # inside an image, where no script runs
    assert page.count("data:image/svg+xml") == page.count(f"<small>{KEPT}") == 1
    assert (published / "report.md").read_text().count(KEPT) == 1
    again = rewritten(published)
    with pytest.raises(UserError, match=r"only its drawing: take figures.heat\.svg"):
        again.figure("heat")
    assert again.figure("window").axes


def test_later_claims_are_judged_where_the_numbers_hold_them_and_else_named_and_left_out(made, published):
    later = {row["claim"] for row in told(published)["verdicts"] if row["claim"].startswith(("K4", "K9"))}
    open_ = {name for name in later if name.startswith("K9")}  # of trainings, which were not run
    assert open_
    assert open_ != later
    broken(published, "report.json", lambda found: found | {
        "verdicts": [row for row in found["verdicts"] if row["claim"] not in later]})
    again = rewritten(published)
    kept = [row for row in told(made[0])["verdicts"] if row["claim"] not in open_]
    assert told(published)["verdicts"] == kept
    *_, first, second = told(published)["answer"]
    assert first.startswith(f"Of {len(kept)} claims ")
    assert second.startswith("Not judged, as these numbers are older than the claims: ")
    assert all(name in second for name in open_)
    assert "K9" not in again.document.families
    once = contents(published)
    rewritten(published)
    assert contents(published) == once


@pytest.mark.parametrize(("name", "change", "said"), [
    ("run.json", lambda d: d | {"command": "optscope compare digits"}, "only the report of a study"),
    ("run.json", lambda d: d | {"command": "optscope run restrained_instabilty"}, "restrained_instability"),
    ("run.json", lambda d: d | {"command": "optscope run robustness_gap --scale desk"}, "expected the records of"),
    ("run.json", lambda d: [], "not what optscope writes"),
    ("report.json", lambda d: d | {"schema": 99}, "form 99"),
    ("report.json", lambda d: d | {"figures": [{"name": "heat"}]}, "not what optscope writes"),
    ("report.json", lambda d: d | {"reservations": 1}, "not what optscope writes"),
    ("report.json", lambda d: d | {"scale": "huge"}, 'no scale "huge"'),
])
def test_other_folders_are_refused_in_a_sentence_and_left_as_they_are(published, name, change, said):
    broken(published, name, change)
    before = contents(published)
    with pytest.raises(UserError, match=said):
        rewritten(published)
    assert contents(published) == before


@pytest.mark.parametrize("name", ["run.json", "summary.csv", "report.json"])
def test_a_folder_without_the_files_is_refused(published, name):
    (published / name).unlink()
    with pytest.raises(UserError, match=name):
        rewritten(published)


@pytest.mark.parametrize("study", sorted(path.name for path in RESULTS.iterdir()))
def test_committed_numbers_give_the_verdicts_of_today_and_no_claim_that_they_never_measured(study, tmp_path):
    folder = tmp_path / study
    shutil.copytree(RESULTS / study, folder)
    before = json.loads((folder / "verdicts.json").read_text())
    if not (folder / "report.json").is_file():  # written before there was one
        (folder / "report.json").write_text(json.dumps({
            "schema": 1, "scale": before[0]["scale"], "verdicts": before, "figures": [], "protocol": [],
            "reservations": [], "summary": []}))
    again = rewritten(folder)
    today = dict(study_of(study).judge(again.records, before[0]["scale"]))
    now = {claim.id: verdict.outcome for claim, verdict in again.verdicts}
    assert now == {claim.id: verdict.outcome for claim, verdict in today.items() if claim.id in now}
    assert now.keys() >= {row["claim"] for row in before}
    left = {claim.id: verdict for claim, verdict in today.items() if claim.id not in now}
    assert {verdict.outcome for verdict in left.values()} <= {"undecided"}
    assert all(name in again.summary for name in left)
