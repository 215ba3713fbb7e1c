"""The first steps: a template that runs as it is, a quick look that the whole comparison goes on from, choices."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace

import pytest
from torch import nn

from optscope import lab
from optscope.analyses.caveats import apart
from optscope.cli.first import KINDS
from optscope.engine.execute import Inline, Local
from optscope.engine.plan import Plan
from optscope.engine.rehearsal import rehearse
from optscope.errors import UserError
from optscope.evidence.records import Record, Records
from optscope.optim import SGD, Adam
from optscope.probes.accuracy import Accuracy
from optscope.probes.edge import EdgeOfStability
from optscope.probes.robust import RobustAccuracy
from optscope.protocol.arms import NAMES, arm_named
from optscope.protocol.compare import comparison_of, thinned
from optscope.protocol.comparison import Arm, Comparison, check_budgets
from optscope.protocol.estimate import estimated
from optscope.protocol.events import Ended, Quiet, Said
from optscope.protocol.resolve import task_at
from optscope.protocol.search import Grid, Halton, Thinned
from optscope.protocol.settings import Settings, read_settings
from optscope.protocol.space import Log
from optscope.tasks.check import check_task
from tiny import TASK, call

ARMS = (Arm("SGD", SGD(lr=0.1), Grid((0.03, 0.1, 0.3, 1.0))),
        Arm("Adam", Adam(lr=0.01), Grid((0.001, 0.003, 0.01, 0.03))))


# Templates

@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, and a path of modules that is put back."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_is_a_task_as_it_is(here, monkeypatch, capsys, kind):
    assert call(monkeypatch, f"new my_{kind}.py --kind {kind}") == 0
    assert capsys.readouterr().out == (
        f"wrote my_{kind}.py; it runs as it is: optscope compare my_{kind}.py:task --quick\n")
    task = task_at(f"my_{kind}.py:task")
    check_task(task)
    assert task.data().train.size > 500
    assert f"optscope compare my_{kind}.py:task --quick" in (here / f"my_{kind}.py").read_text()


def test_the_command_compares_on_a_fresh_template(here, monkeypatch, capsys):
    assert call(monkeypatch, "new my_task.py") == 0
    assert call(monkeypatch, "compare my_task.py:task --quick --epochs 1 -o sgd -o adam --slots 1 "
                             "--probes Accuracy") == 0
    said = capsys.readouterr()
    assert "this is a quick look: 2 seeds and 3 candidates an optimiser" in said.err
    assert "No choice yet: 2 seeds can show no difference" in said.out
    assert (here / "runs" / "compare-my_task-task" / "report.html").is_file()


@pytest.mark.parametrize(("kind", "change", "files"), [
    ("table", {'TABLE = ""': 'TABLE = "mine.csv"', 'TARGET = "label"': 'TARGET = "paid"'},
     {"mine.csv": "\ufeffage,city,paid\n" + "".join(f"{i % 7 or ''},{'ab'[i % 2]},{'yes' if i % 3 else 'no'}\n"
                                               for i in range(90))}),
    ("text", {'TEXTS = ""': 'TEXTS = "mine.csv"'},
     {"mine.csv": "text,label\n" + "".join(f'"so, {["bad", "good"][i % 2]} {i}",{i % 2}\n' for i in range(90))})])
def test_a_template_reads_a_users_file(here, kind, change, files):
    text = (lab_templates() / f"{kind}.py").read_text()
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    (here / "mine_task.py").write_text(text)
    for name, content in files.items():
        (here / name).write_text(content, encoding="utf-8")
    task = task_at("mine_task.py:task")
    check_task(task)
    data = task.data()
    assert len(data.test) == 18
    assert set(data.train.targets.tolist()) == {0, 1}


def test_the_template_of_images_reads_a_folder(here):
    from PIL import Image

    for i in range(40):
        folder = here / "photos" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 30), (6 * i, 0, 255)).save(folder / f"{i}.png")
    text = (lab_templates() / "images.py").read_text()
    (here / "mine_images.py").write_text(text.replace('FOLDER = ""', 'FOLDER = "photos"').replace(
        "COLOURS = 1", "COLOURS = 3"))
    task = task_at("mine_images.py:task")
    check_task(task)
    assert task.data().train.inputs.shape[1:] == (3, 16, 16)
    assert task.data().train.inputs[:, 2].min() == 1


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_the_template_of_checkpoints_starts_from_the_weights(here, name):
    import torch
    from safetensors.torch import save_file

    text = (lab_templates() / "checkpoint.py").read_text()
    (here / "mine_weights.py").write_text(text.replace('WEIGHTS = ""', f'WEIGHTS = "{name}"'))
    program = {}
    exec(compile(text, "checkpoint.py", "exec"), program)
    weights = program["Network"]().state_dict()
    torch.save(weights, "w.pt")
    save_file(weights, "w.safetensors")
    model = task_at("mine_weights.py:task").model()
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


def lab_templates():
    from importlib import resources

    return resources.files("optscope") / "templates"


@pytest.mark.parametrize(("words", "sentence"), [
    ("there.py", "there.py is there already, and stays as it is: give another name"),
    ("mine.py --kind tabel", 'no kind "tabel"; did you mean "table"?'),
    ("mine.csv", "a Python file is expected, such as my_task.py; got mine.csv"),
    (".", "a Python file is expected, such as my_task.py; got ."),
    ("random.py", "random.py would have the name of a module that is there already: call it my_random.py"),
    ("none/mine.py", "none/mine.py cannot be written (No such file or directory): give a folder that is there")])
def test_what_new_cannot_write_is_one_sentence(here, monkeypatch, capsys, words, sentence):
    (here / "there.py").write_text("mine")
    assert call(monkeypatch, f"new {words}") == 2
    assert capsys.readouterr().err == f"optscope: {sentence}\n"
    assert (here / "there.py").read_text() == "mine"
    assert [path.name for path in here.iterdir()] == ["there.py"]


# A quick look

class Heard(Quiet):
    """A listener that keeps how many runs were done, and what was said."""

    def __init__(self):
        self.ended, self.said = [], []

    def hear(self, event):
        if isinstance(event, Ended):
            self.ended.append((event.use.phase, event.use.arm, event.use.rule, event.use.seed))
        if isinstance(event, Said):
            self.said.append(event.sentence)


def test_the_whole_comparison_goes_on_from_a_quick_look_and_from_nothing_it_ends_alike(tmp_path):
    def compared(folder, **more):
        heard = Heard()
        result = lab.compare(TASK, list(ARMS), tmp_path / folder, epochs=2, batch=32, probes=["Accuracy"],
                             executor=Inline(), listener=heard, **more)
        return heard, result

    quick, found = compared("a", quick=True)
    assert len(quick.ended) == 2 * 2 + 2 * 2
    assert {seed for phase, _, _, seed in quick.ended if phase == "final"} == {1, 2}
    assert any(s.startswith("blobs: this is a quick look: 2 seeds and 2 candidates an optimiser. Fewer than 6 "
                            "seeds can show no difference") for s in quick.said)
    assert "this is a quick look" in found.report.read_text()
    assert "An answer: the same without quick goes on from these runs" in found.report.read_text()
    whole, after = compared("a", seeds=3)
    alone, fresh = compared("b", seeds=3)
    assert not set(quick.ended) & set(whole.ended)
    assert set(whole.ended) == set(alone.ended) - set(quick.ended)
    assert len(whole.ended) < len(alone.ended)
    assert (tmp_path / "a" / "verdicts.json").read_bytes() == (tmp_path / "b" / "verdicts.json").read_bytes()
    assert after.summary == fresh.summary


def test_a_quick_look_takes_what_is_said_beside_it():
    assert Settings(quick=True).extent == Settings(quick=True, seeds=2, widen=0, twin_seeds=0)
    assert Settings(quick=True, seeds=3, widen=1).extent == Settings(quick=True, seeds=3, widen=1, twin_seeds=0)
    assert Settings(seeds=3).extent == Settings(seeds=3)


def test_a_short_search_is_a_part_of_the_whole_one_at_one_cost_for_all():
    arms = [arm_named(name) for name in NAMES]
    short = thinned(arms)
    check_budgets(short)
    for arm, less in zip(arms, short, strict=True):
        whole, part = arm.candidates(), less.candidates()
        assert set(map(repr, part)) < set(map(repr, whole))
        assert math.ceil(len(whole) / 2) <= len(part) <= math.ceil(len(whole) / 2) + 1
    stands = Arm("stands", SGD(lr=0.1))
    assert thinned([stands]) == (stands,)
    drawn = Halton(5, Log(0.01, 1.0))
    assert Thinned(drawn, 9).candidates(SGD(lr=1.0)) == drawn.candidates(SGD(lr=1.0))


# What is said beforehand

def test_an_estimate_is_the_sum_of_its_steps_and_probes():
    given = Comparison("c", TASK, (ARMS[0], replace(ARMS[1], search=Grid((0.1, 0.2, 0.3, 0.4)))), Plan(2, 32),
                       (Accuracy(),), seeds=(1, 2, 3), tuning_seeds=(8, 9), moments=5, watched=(EdgeOfStability(),),
                       described=(RobustAccuracy("l2", eps=(0.1,), examples=50),), twin_seeds=(1,))
    steps, accuracy, edge, attack = 2 * 3, 8, 30, 400 * 50 / 1000
    least = 0.001
    tune = [steps * step + accuracy * least for step in (0.001, 0.002)]
    twin = [steps * step + (accuracy + attack) * least for step in (0.001, 0.002)]
    final = [each + 5 * (accuracy + edge) * least for each in twin]
    found = estimated(given, {"SGD": 0.001, "Adam": 0.002}, Local(slots=3))
    assert found.work == pytest.approx(4 * 2 * sum(tune) + 3 * sum(final) + 2 * sum(twin))
    assert found.first == pytest.approx(tune[0])
    assert str(found) == "3 processes, about 4 s; first result in 3 s"
    assert str(estimated(given, {"SGD": 60.0, "Adam": 60.0}, Inline())).endswith(" h of one process")
    large = estimated(given, {"SGD": 1.0, "Adam": 1.0}, Local())
    assert large.first == pytest.approx(steps + accuracy * 128 / 32)


def test_a_rehearsal_times_the_steps_of_every_arm():
    class Slow(nn.Linear):
        def forward(self, x):
            time.sleep(0.02)
            return super().forward(x)

    slow = replace(TASK, model=lambda: Slow(2, 3))
    found = rehearse(slow, {"SGD": SGD(lr=0.1), "Adam": Adam(lr=0.1)}, Plan(1, 32))
    assert found.seconds.keys() == {"SGD", "Adam"}
    assert min(found.seconds.values()) > 0.02


# Choices

@pytest.mark.parametrize(("few", "more", "tuning"), [
    (8, 1000, 2), (1000, 1001, 1), (1, 10_000, 1000), (1001, 2000, 1000), (1999, 2002, 999)])
def test_seeds_that_choose_rates_never_compare_arms_and_more_seeds_keep_all_that_was_there(few, more, tuning):
    one, other = (comparison_of(TASK, Settings(seeds=n, tuning_seeds=tuning)) for n in (few, more))
    assert not set(other.seeds) & set(other.tuning_seeds)
    assert len(other.seeds) == len(set(other.seeds)) == more
    assert one.seeds == other.seeds[:few]
    assert one.tuning_seeds == other.tuning_seeds == tuple(range(1001, 1001 + tuning))
    assert one.seeds[:1000] == tuple(range(1, min(few, 1000) + 1))


def test_the_baseline_is_chosen_by_its_name_or_its_label():
    for name in ("rmsprop", "RMSProp"):
        assert [arm.name for arm in comparison_of(TASK, Settings(baseline=name)).arms][:2] == ["RMSProp", "SGD"]
    with pytest.raises(UserError, match='the baseline "RMSprop" is none of the optimisers; did you mean "RMSProp"'):
        comparison_of(TASK, Settings(baseline="RMSprop"))


def test_probes_are_chosen_of_the_usual_ones_and_given():
    usual = comparison_of(TASK, Settings())
    few = comparison_of(TASK, Settings(probes=["Accuracy", "EdgeOfStability"]))
    assert few.probes == usual.probes[:1]
    assert (few.watched, few.described, few.at_end) == (usual.watched, (), ())
    mine = Accuracy(split="train")
    assert comparison_of(TASK, Settings(probes=[mine])).probes == (mine,)
    more = comparison_of(TASK, Settings(probes=["Accuracy", "HessianTrace", "PreconditionedSharpness"]))
    assert [type(probe).__name__ for probe in more.probes] == ["Accuracy", "HessianTrace"]
    assert [type(probe).__name__ for probe in more.watched] == ["PreconditionedSharpness"]
    with pytest.raises(UserError, match="Modes has settings without a default: give it from Python"):
        comparison_of(TASK, Settings(probes=["Modes"]))
    with pytest.raises(UserError, match="SensitivityMap does not fit blobs: "):
        comparison_of(TASK, Settings(probes=["SensitivityMap"]))
    with pytest.raises(UserError, match='no probe "Acuracy"; did you mean "Accuracy"'):
        comparison_of(TASK, Settings(probes=["Acuracy"]))
    with pytest.raises(UserError, match=r"no difference can be tested by .* got Geometry: add Accuracy"):
        comparison_of(TASK, Settings(probes=["Geometry"]))


def test_differences_are_tested_in_the_metrics_that_are_chosen(tmp_path):
    result = lab.compare(TASK, list(ARMS), tmp_path / "out", seeds=2, twin_seeds=0, widen=0, epochs=1, batch=32,
                         probes=["Accuracy"], metrics=["accuracy"], baseline="Adam", executor=Inline(),
                         listener=Quiet())
    ((claim, _),) = result.verdicts
    assert claim.text.startswith("SGD against Adam: accuracy ")
    assert not any("not measured" in warning for warning in result.document.warnings)  # it was not asked for
    with pytest.raises(UserError, match='no difference can be tested in "acuracy"; did you mean "accuracy"'):
        comparison_of(TASK, Settings(metrics=["acuracy"]))


def test_choices_are_the_same_from_a_file_the_command_and_python(tmp_path, monkeypatch):
    (tmp_path / "s.toml").write_text('quick = true\nbaseline = "adam"\nprobes = ["Accuracy"]\nmetrics = ["loss"]\n'
                                     'margin = "10%"\n')
    from_file = read_settings(tmp_path / "s.toml")
    heard = []
    monkeypatch.setattr(lab, "compare", lambda task, place, *, settings, **more: heard.append(settings) or 1 / 0)
    assert call(monkeypatch, "compare three-frequency --quick --baseline adam --probes Accuracy --metrics loss "
                             "--margin 10%") == 1
    assert heard == [from_file]
    assert from_file == Settings(quick=True, baseline="adam", probes=["Accuracy"], metrics=["loss"], margin="10%")


def test_every_setting_is_in_the_table_of_the_document():
    from pathlib import Path

    page = (Path(__file__).parents[1] / "docs" / "your-model.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert [name for name in Settings.model_fields if not any(f"`{name}`" in row for row in rows)] == []


# What must be told

def test_a_run_whose_loss_is_finite_and_absurd_is_told_of():
    given = comparison_of(TASK, Settings(seeds=3))
    def rows(sgd):
        return Records([*(Record("blobs", "SGD", seed, "loss", value) for seed, value in enumerate(sgd)),
                        *(Record("blobs", "Adam", seed, "loss", 0.3 + seed) for seed in range(3))])
    assert apart(given, rows((0.2, 5e3, math.nan))) == []
    assert apart(given, rows((0.2, 2e32, 3e9))) == [
        "blobs: 2 runs of SGD came apart, though the numbers are finite: the loss is up to 2e+32, and means over "
        "its runs say nothing."]
    assert apart(given, Records()) == []
    (told,) = apart(given, rows((2e32, 2e32, 2e32)))
    assert told.startswith("blobs: 3 runs of SGD came apart")


def test_a_usual_loss_beside_one_that_ends_at_nothing_has_not_come_apart():
    given = comparison_of(TASK, Settings(seeds=3))
    ends = {"SGD": 1e-13, "Adam": 1e-3, "RMSProp": 1e-12}
    found = Records(Record("blobs", arm, seed, "loss", value, step=step) for arm, end in ends.items()
                    for seed in range(3) for step, value in ((10, 0.5), (None, end)))
    assert apart(given, found) == []
