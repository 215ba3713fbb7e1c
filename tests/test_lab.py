"""The two doors from end to end: a user's own task, the report it leaves, and the study that ships."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import math
import re
import sys
from importlib import import_module

import pytest
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from optscope import lab
from optscope.analyses.families import answered
from optscope.engine.execute import Inline
from optscope.engine.executor import Outcome
from optscope.engine.plan import Plan
from optscope.engine.rows import Use
from optscope.engine.run import Run
from optscope.engine.store import Store
from optscope.errors import UserError
from optscope.evidence.claims import Verdict
from optscope.evidence.records import Records
from optscope.optim import SGD, Adam
from optscope.probes.accuracy import Accuracy
from optscope.progress import Display
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.events import Ended, Named, Quiet
from optscope.protocol.search import Grid
from optscope.protocol.session import run_experiments
from optscope.protocol.settings import Settings
from optscope.protocol.study import Gap, check_scale
from optscope.report.document import Document
from optscope.report.forest import glance
from optscope.report.markdown import markdown
from optscope.report.page import render
from optscope.studies import STUDIES
from optscope.studies.robustness_gap import STUDY
from optscope.tasks.task import Task
from tiny import TASK, Blobs, Net, call

ARMS = (Arm("SGD", SGD(lr=0.1), Grid((0.1, 0.3))), Arm("Adam", Adam(lr=0.01), Grid((0.01, 0.03))))
SETTINGS = Settings(seeds=2, twin_seeds=1, epochs=12, batch=16, examples=24)


def test_a_comparison_leaves_a_report_and_the_same_verdicts_anywhere(tmp_path):
    results = [lab.compare(TASK, tmp_path / name, arms=ARMS, settings=SETTINGS, executor=Inline(), command="c")
               for name in "ab"]
    a, b = (tmp_path / name for name in "ab")
    assert results[0].report == a / "report.html"
    page = results[0].report.read_text()
    assert "Which optimiser for blobs?" in page
    assert "with fewer than 6 seeds, here 2, no difference can be shown, whatever the runs give" in page
    assert "What would refute it: a difference that is shown" in page
    assert "Accuracy, clean and perturbed; higher is better" in page
    assert "12 epochs of 6 steps on 16 examples each make 72 steps; 96 examples for training, 96 examples" in page
    assert results[0].failures == ()
    assert results[0].summary == results[1].summary
    choice, difference = results[0].summary.splitlines()
    assert choice.startswith("No choice yet: 2 seeds can show no difference, whatever the runs give; it takes 6")
    assert difference.startswith("SGD against Adam: SGD's accuracy ")
    assert re.search(r"<h2 class=\"finding\">0 of \d+ differences to SGD are shown</h2>", page)
    assert (a / "verdicts.json").read_bytes() == (b / "verdicts.json").read_bytes()
    verdicts = json.loads((a / "verdicts.json").read_text())
    assert [v["claim"] for v in verdicts] == [claim.id for claim, _ in results[0].verdicts]
    assert {v["outcome"] for v in verdicts} <= {"holds", "fails", "undecided"}
    assert verdicts[0]["text"] == ("Adam against SGD: accuracy (equal within 1.5 points or 20 % of the baseline's "
                                   "error, whichever is less)")
    assert not any(re.search(r"(higher|lower) accuracy than", v["text"]) for v in verdicts)
    numbers = [[(r.arm, r.seed, r.phase, r.metric, r.at, r.step, repr(r.value)) for r in result.records
                if "seconds" not in r.metric] for result in results]
    assert numbers[0] == numbers[1]
    assert all((a / name).is_file() for name in ("report.md", "summary.csv", "run.json", "index.sqlite"))


def test_a_comparison_in_which_every_rate_diverges_is_a_report_that_says_so(tmp_path):
    arms = (ARMS[0], Arm("wild", SGD(lr=1.0), Grid((1e30, 1e31))))
    task = Task.from_tensors(Net(), Blobs()().train, Blobs()().test, name="wild", bounds=None)
    result = lab.compare(task, tmp_path / "out", arms=arms, settings=SETTINGS, executor=Inline())
    text = (tmp_path / "out" / "report.md").read_text()
    assert "every learning rate tried for wild diverged or failed; the smallest (1e+28) stands for it" in text
    assert "2 of 2 runs of wild diverged or failed" in text
    assert result.summary.splitlines()[0] == (
        "No choice yet: 2 seeds can show no difference, whatever the runs give; it takes 6, and more to show small "
        "ones. Leave wild: it diverged or failed on 2 of 2 seeds.")
    assert result.summary.splitlines()[1].startswith("SGD against wild: wild diverged or failed on 2 of 2 seeds")
    assert {v.outcome for _, v in result.verdicts} <= {"undecided"}
    assert result.failures == ()


def test_an_arm_with_a_bad_task_is_refused_before_anything_is_made(tmp_path):
    bad = Task("bad", nn.Flatten, Blobs())
    with pytest.raises(UserError, match="bad: the model has no parameters"):
        lab.compare(TASK, tmp_path / "out", arms=(ARMS[0], Arm("bad", SGD(lr=0.1), Grid((0.1, 0.2)), task=bad)))
    assert not (tmp_path / "out").exists()


# A user's own data

def test_tensors_a_data_set_and_a_loader_are_the_same_task(tmp_path):
    x, y = Blobs()().train.inputs, Blobs()().train.targets
    sources = [(x, y), TensorDataset(x, y), DataLoader(TensorDataset(x, y), batch_size=10)]
    runs = []
    for i, source in enumerate(sources):
        task = Task.from_tensors(lambda: nn.Linear(2, 3), source, source)
        assert len(task.data().validation) == 19
        given = Comparison("own", task, (Arm("SGD", SGD(lr=0.1)),), Plan(2, 16), (Accuracy(),), (1,))
        found = run_experiments([given], Store(tmp_path / str(i)), Inline(), Quiet())
        assert found.failures == ()
        runs.append([(r.run, r.metric, r.step, r.value) for r in found.records if "seconds" not in r.metric])
    assert runs[0] == runs[1] == runs[2]
    assert all(math.isfinite(value) for _, _, _, value in runs[0])


MY_TASK = """
import torch
from torch import nn
from torch.nn import functional
from optscope.tasks.task import Task

class Small(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.hidden, self.out = nn.Linear(1, width), nn.Linear(width, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(x)))

def counted(function):
    def wrapped(*values):
        wrapped.count += 1
        return function(*values)
    wrapped.count = 0
    return wrapped

@counted
def loss(outputs, targets):
    return functional.mse_loss(outputs, targets)

x = torch.linspace(-2, 2, 80)[:, None]
task = Task.from_tensors(lambda: Small(4), (x, x ** 2), (x, x ** 2), name="parabola", loss=loss,
                         kind="regression", bounds=None)

def make():
    return task
"""


def test_the_command_compares_on_a_users_file_in_workers_and_continues(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_task.py").write_text(MY_TASK)
    (tmp_path / "settings.toml").write_text(
        "seeds = 5\nepochs = 60\nbatch = 77\nwiden = 0\n"
        "[optimisers.sgd]\nlr = [0.1, 0.3]\n[optimisers.adam]\nlr = [0.01, 0.03]\n")
    line = "compare my_task.py:task --config settings.toml --seeds 2 --batch 128 --slots 1 --out out"
    assert call(monkeypatch, line) == 0
    first = capsys.readouterr()
    assert first.out.splitlines()[-1] == "report: out/report.html"
    assert first.out.startswith("No choice yet: 2 seeds")
    assert first.out.splitlines()[1].startswith("SGD against Adam: ")
    assert "tuning: 4 runs to do" in first.err
    assert "training and measuring: 4 of 16 runs are there already" in first.err
    page = (tmp_path / "out" / "report.md").read_text()
    assert "optscope compare my_task.py:task --config settings.toml --seeds 2" in page
    assert "batch=128" in page
    assert "batch=77" not in page
    assert "desk scale" not in page
    assert "accuracy, calibration, margins, noise and attacks are not measured: they need" in page
    assert "which model has the lower loss, and which is smoother?" in page
    results = {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/runs/*/*")}
    assert len(list(tmp_path.glob("out/runs/*/result.json"))) == 4 + 4 + 8  # tuning, final, twins

    assert call(monkeypatch, line.replace(":task", ":make")) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert again.err == ""
    assert results == {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/runs/*/*")}
    page = (tmp_path / "out" / "report.html").read_bytes()
    assert b"my_task.py:make" in page
    with monkeypatch.context() as patched:  # the page that stands there says it all, and is not drawn again
        patched.setattr("optscope.report.page.write", None)
        assert call(monkeypatch, line.replace(":task", ":make")) == 0
    assert capsys.readouterr() == again
    assert (tmp_path / "out" / "report.html").read_bytes() == page

    assert call(monkeypatch, "report out") == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-4:] == [*first.out.splitlines()[:2], "every number: out/summary.csv", "report: out/report.html"]
    assert told[0].startswith("F1    ")
    assert call(monkeypatch, "report out --json") == 0
    held = json.loads(capsys.readouterr().out)
    assert held["answer"] + held["details"] == first.out.splitlines()[:2]
    assert held["title"] == "Which optimiser for parabola?"
    with (tmp_path / "out" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["metric"] for row in rows} >= {"loss", "learning rate", "training loss"}
    assert "accuracy" not in {row["metric"] for row in rows}
    assert all(math.isfinite(float(row["value"])) for row in rows if row["metric"] == "loss")
    sys.modules.pop("my_task")


# Progress

USE = Use("demo", "SGD", "final", 3, "SGD(lr=0.1)", "0123456789abcdef")


def told_on(console):
    display, long = Display(console), "KeyError: " + 30 * "word " + "[b]end[/b]"
    display.hear(Named("tuning", 4, 1))
    for status in ("ok", "diverged", "failed"):
        display.hear(Ended(USE, Outcome("0", status, reason=long if status == "failed" else "")))
    display.hear(Named("training", 4, 4))  # nothing to do: nothing to say
    display.close()
    return console.file.getvalue(), f"failed: {long}"


def test_progress_is_plain_lines_in_a_file():
    text, failed = told_on(Console(file=io.StringIO(), width=80))
    lines = text.splitlines()
    assert lines[:3] == ["tuning: 1 of 4 runs are there already", "tuning: 3 runs to do", failed]
    assert re.fullmatch(r"tuning: 4/4 runs, \d+ runs/min, 0\.0 min left, 2 diverged or failed", lines[3])
    assert len(lines) == 4


def test_progress_is_a_bar_on_a_terminal_and_the_cursor_comes_back(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    text, failed = told_on(Console(file=io.StringIO(), width=80, force_terminal=True))
    assert "4/4" in text
    assert failed in re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


# The study that ships

def test_the_study_is_listed_and_shown(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")
    assert call(monkeypatch, "list") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in STUDIES)
    assert call(monkeypatch, "show robustness_gap") == 0
    shown = capsys.readouterr().out
    assert STUDY.paper.arxiv in shown
    assert all(f"{claim.id} {claim.text}" in " ".join(shown.split()) for claim in STUDY.claims)
    assert all(f"--scale {scale}" in shown for scale in STUDY.costs)


@pytest.mark.parametrize("scale", list(STUDY.costs))
def test_every_scale_can_be_made(scale):
    experiments = STUDY.experiments(check_scale(scale, STUDY))
    assert len({e.name for e in experiments}) == len(experiments)
    for comparison in (e for e in experiments if isinstance(e, Comparison)):
        first = comparison.jobs(Records())
        assert first
        assert all(isinstance(job.work, Run) for job in first)
        assert len({(j.use.arm, j.use.rule, j.use.seed) for j in first}) == len(first)


@pytest.mark.parametrize("name", STUDIES)
def test_looks_are_of_comparisons_of_the_study_on_seeds_that_no_other_run_has(name):
    study = import_module(f"optscope.studies.{name}").STUDY
    for scale, looks in study.looks.items():
        comparisons = {e.name: e for e in study.experiments(scale) if isinstance(e, Comparison)}
        for each in looks:
            if isinstance(each.on, str):
                seeds = {seed for added in each.seeds for seed in added}
                assert not seeds & {*comparisons[each.on].seeds, *comparisons[each.on].tuning_seeds}
                assert {*each.arms} <= {arm.name for arm in comparisons[each.on].arms}


def test_studies_say_how_far_they_are_from_their_paper(monkeypatch, capsys):
    gaps = {name: import_module(f"optscope.studies.{name}").STUDY.gaps for name in STUDIES}
    assert all(len(found) >= 3 for found in gaps.values())
    assert all(len({gap.differs for gap in found}) == len(found) for found in gaps.values())
    monkeypatch.setenv("COLUMNS", "300")
    assert call(monkeypatch, "show robustness_gap") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(gap.paper in shown and gap.costs in shown for gap in STUDY.gaps)


def test_a_gap_that_says_nothing_is_refused():
    with pytest.raises(UserError, match="Gap: costs must say something"):
        Gap("data", "all", "some", " ")


def test_the_gap_to_the_paper_opens_a_report():
    section = answered(STUDY, STUDY.judge(Records(), "smoke"), "smoke")
    document = Document("t", "q", section.sentences[-1], verdicts=section.verdicts, scale="smoke",
                        summaries=section.summaries, families=dict(section.families))
    for said, end in ((markdown(document), "## Claims"), (render(document), 'id="claims"')):
        top = html.unescape(said[:said.index(end)])
        assert "How far this is from the paper" in top
        assert all(text in top for gap in STUDY.gaps for text in (gap.paper, gap.ours, gap.costs))


@pytest.mark.parametrize("name", STUDIES)
def test_claims_have_names_of_their_own_a_family_and_say_what_would_refute_them(name):
    study = import_module(f"optscope.studies.{name}").STUDY
    assert len({claim.id for claim in study.claims}) == len(study.claims)
    assert all(claim.text and claim.source and claim.falsified for claim in study.claims)
    with pytest.raises(UserError, match="families must say what"):
        dataclasses.replace(study, families={})
    assert 3 <= len(study.answers) <= 5
    with pytest.raises(UserError, match=r"answers must be of .*; got Z9"):
        dataclasses.replace(study, answers=("Z9",))


def test_the_answer_says_of_every_family_what_holds():
    outcomes = {"C1 cifar10 Adam": "holds", "C1 cifar10 RMSProp": "fails", "C5": "undecided"}
    found = [(c, Verdict(outcomes[c.id], "It was.")) for c in STUDY.claims if c.id in outcomes]
    section = answered(STUDY, found, "desk")
    assert section.sentences == [f"In part. {STUDY.families['C1']} (1 of 2 claims hold).",
                                 "Of 3 claims 1 hold, 1 fail (C1 cifar10 RMSProp) and 1 are undecided at desk "
                                 "scale."]
    later = [(dataclasses.replace(c, scale="long"), Verdict("undecided", "It was not.")) for c, _ in found[:2]]
    assert answered(STUDY, later, "desk").sentences == [
        f"Not measured here. {STUDY.families['C1']} (2 claims).",
        "Of 2 claims 0 hold, 0 fail and 2 are undecided at desk scale, 2 of which it does not measure."]
    seen = [(c, dataclasses.replace(v, effect=1.0)) for c, v in later]
    lost = [(dataclasses.replace(c, scale="desk"), v) for c, v in later]  # where every run diverged
    for each in (seen, lost):
        assert answered(STUDY, each, "desk").sentences[0] == (
            f"Undecided. {STUDY.families['C1']} (0 of 2 claims hold, 2 undecided).")
    document = Document("t", "q", "v", verdicts=section.verdicts, families=dict(section.families))
    assert glance(document)[0].rows == [(f"C1. {STUDY.families['C1']}", "1", "1: cifar10 RMSProp", ""),
                                         (f"C5. {STUDY.families['C5']}", "", "", "1")]


@pytest.mark.parametrize("scale", list(STUDY.costs))
def test_without_records_every_claim_is_undecided_and_nothing_is_drawn(scale):
    verdicts = STUDY.judge(Records(), scale)
    assert len(verdicts) == len(STUDY.claims)
    assert {claim.id: v.outcome for claim, v in verdicts if v.outcome != "undecided"} == {}
    assert all(verdict.note for _, verdict in verdicts)
    assert STUDY.pictures(Records(), {}) == []


def test_what_was_written_for_former_names_goes_on_and_is_told(tmp_path):
    sys.modules.pop("optscope.study", None)
    with pytest.warns(DeprecationWarning, match=r"optscope.study is called optscope.protocol now: 0.1 is the last"):
        from optscope.study.settings import Settings as Former
    assert Former is Settings
    with pytest.warns(DeprecationWarning, match="engine= is called executor= now: 0.1 is the last") as heard, \
            pytest.raises(UserError):
        lab.compare(TASK, tmp_path, arms=(Arm("a", SGD(lr=0.1)),) * 2, engine=Inline())
    assert {each.filename for each in heard} == {__file__}
    with pytest.raises(UserError, match="former name of executor=; got both, write the latter alone"):
        lab.compare(TASK, ["sgd"], tmp_path, engine=Inline(), executor=Inline())
