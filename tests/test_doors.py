"""How the doors are called and what they say of themselves: from Python, and as a command."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import optscope
from optscope import lab
from optscope.engine.execute import Inline
from optscope.errors import UserError
from optscope.evidence.claims import Claim, Verdict
from optscope.evidence.picture import Panel, Picture, Series
from optscope.evidence.records import Record, Records
from optscope.optim import SGD
from optscope.protocol.asked import Asked, asked
from optscope.protocol.comparison import Arm
from optscope.protocol.events import Quiet
from optscope.protocol.settings import Settings
from optscope.report.document import Document
from optscope.report.tables import Table
from optscope.result import Result
from optscope.tasks.task import Task
from tiny import TASK, call

MINE = Arm("mine", SGD(lr=0.1))


def names(wish: Asked) -> list[str]:
    return [arm.name for arm in wish.arms]


def test_a_list_is_the_optimisers_and_a_path_the_folder_in_any_order():
    two = ["sgd", MINE]
    for given, words in (((two, "out"), {}), (("out", two), {}), ((two,), {"out": "out"}),
                         ((Path("out"),), {"arms": two})):
        wish = asked(given, words.get("arms", ()), words.get("out"), None, {"seeds": 3})
        assert names(wish) == ["SGD", "mine"]
        assert wish.out == Path("out")
        assert wish.settings == Settings(seeds=3)
    assert asked((), (), None, None, {}) == Asked((), None, Settings())


def test_what_is_said_by_name_goes_before_the_settings_which_say_how_an_optimiser_is_searched():
    settings = Settings(seeds=5, epochs=4, optimisers={"adam": {"lr": [0.1, 0.2]}})
    wish = asked([["adam", "sgd"]], (), None, settings, {"seeds": 3})
    assert (wish.settings.seeds, wish.settings.epochs) == (3, 4)
    assert [rule.lr for rule in wish.arms[0].candidates()] == [0.1, 0.2]
    assert len(wish.arms[1].candidates()) == 6


@pytest.mark.parametrize(("given", "arms", "said", "sentence"), [
    ((["sgd"], ["adam"]), (), {}, r"a list of optimisers and a folder are expected .* got \['adam'\]"),
    (("a", "b"), (), {}, "one folder is expected; got 'a' and 'b'"),
    ((3,), (), {}, "got 3"),
    ((), ["sgdd"], {}, 'no optimiser "sgdd"; did you mean "sgd"'),
    ((), [SGD(lr=0.1)], {}, r'an optimiser is a name such as "sgd", or an Arm; got SGD\(lr=0.1\)'),
    ((), ["sgd"], {"seed": 3}, 'seed is not a setting; did you mean "seeds"'),
    ((), ["sgd"], {"seeds": 0}, "seeds: input should be greater than or equal to 1; got 0")])
def test_what_a_door_cannot_take_is_one_sentence(given, arms, said, sentence):
    with pytest.raises(UserError, match=sentence):
        asked(given, arms, None, None, said)


def test_the_shortest_call_compares_tells_of_it_and_shows_itself_in_ten_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = TASK.data()
    task = Task.from_tensors(TASK.model, data.train, data.test)
    result = optscope.compare(task, ["sgd", "adam"], seeds=1, epochs=1, twin_seeds=0, widen=0, examples=8,
                              executor=Inline())
    assert result.report == Path("runs/compare-task/report.html")
    assert "training and measuring: 14/14 runs" in capsys.readouterr().err
    assert "<h1>Which optimiser?</h1>" in result.report.read_text()
    lines = repr(result).splitlines()
    assert len(lines) <= 10
    assert lines[0] == result.summary.splitlines()[0]
    assert lines[-1] == "report: runs/compare-task/report.html"


def result_of(lines=2, **given):
    claim = Claim("F1", "a", "b", lambda records: Verdict("holds", ""), "c")
    document = Document("t", "q", "choice", verdicts=[(claim, Verdict("holds", "")), (claim, Verdict("fails", ""))],
                        details=[f"line {i}" for i in range(lines - 1)], **given)
    return Result(Records([Record("demo", "SGD", 1, "loss", 0.5, factors={"keep": 3})]), document,
                  Path("report.html"), ("one failed",))


def test_a_result_of_many_arms_is_no_longer():
    lines = repr(result_of(lines=40)).splitlines()
    assert len(lines) == 10
    assert lines[-3:] == ["...", "2 claims: 1 holds, 1 fails; 1 records; 1 failures", "report: report.html"]


def test_a_result_says_worse_where_the_row_is_that_it_is_worse():
    claim = Claim("F1", "Adam against SGD: accuracy (equal within 1.5 points)", "b", lambda records: None, "c")
    document = Document("t", "q", "choice", verdicts=[(claim, Verdict("undecided", "")),
                                                      (claim, Verdict("holds", "", said="worse"))])
    result = Result(Records(), document, Path("report.html"))
    assert repr(result.verdicts).splitlines() == [
        "F1    undecided  Adam against SGD: accuracy (equal within 1.5 points)",
        "F1    worse      Adam against SGD: accuracy (equal within 1.5 points)"]
    assert "2 claims: 1 worse, 1 undecided; 0 records" in repr(result)


def test_a_result_shows_itself_in_a_notebook():
    shown = result_of(summaries=[Table("", ("", "SGD"), [("loss", "0.5")])])._repr_html_()
    assert "<strong>choice</strong>" in shown
    assert "<th>SGD</th>" in shown
    assert "<code>report.html</code>" in shown


def test_a_result_gives_its_numbers_to_whatever_makes_tables(monkeypatch):
    result = result_of()
    for there, expected in ((("polars",), "polars"), (("pandas", "polars"), "pandas"), ((), "")):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, there=there: name if name in there else None)
        for name in there:
            monkeypatch.setitem(sys.modules, name, SimpleNamespace(
                DataFrame=lambda columns, name=name: (name, columns)))
        if expected:
            assert result.table() == (expected, result.records.columns())
            assert result.table()[1]["keep"] == [3]
        else:
            with pytest.raises(UserError, match="a table needs pandas or polars, and neither is there"):
                result.table()


def test_a_result_gives_its_figures_to_matplotlib(tmp_path):
    line = Series("SGD", [0, 1], [0.9, 0.4])
    result = result_of(openers=[Picture("Over time", "It falls", [Panel("step", "loss", [line])])])
    figure = result.figure("over-time")
    (axes,) = figure.axes
    assert axes.get_lines()[0].get_ydata().tolist() == [0.9, 0.4]
    assert figure.get_suptitle() == "It falls"
    with pytest.raises(UserError, match='no figure "scorecard"; there are: over-time'):
        result.figure()
    figure.savefig(tmp_path / "a.png")
    with pytest.raises(UserError, match='no figure "over-tine"; did you mean "over-time"'):
        result.figure("over-tine")


def test_in_a_notebook_progress_is_a_line_and_elsewhere_a_bar(monkeypatch):
    assert type(lab.display()).__name__ == "Display"
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert type(lab.display()).__name__ == "Line"


def test_rounding_is_called_alike(tmp_path):
    result = lab.rounding(TASK, ["sgd", "adam"], tmp_path / "out", seeds=1, epochs=1, executor=Inline(),
                          listener=Quiet())
    assert result.report == tmp_path / "out" / "report.html"
    assert {row.arm for row in result.records} >= {"SGD", "Adam"}


def test_the_public_names_are_listed_without_torch():
    code = ("import sys, optscope; names = dir(optscope); "
            "print(*names); sys.exit('torch' in sys.modules or 'compare' not in names)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.split() == sorted([*optscope.__all__, "__version__"])


def test_the_command_says_its_version(monkeypatch, capsys):
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"optscope {metadata.version('optscope')}\n"
