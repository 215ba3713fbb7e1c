"""How the doors are called and what they say of themselves: from Python, and as a command."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import optscope
from optscope import lab
from optscope.engine.execute import Inline
from optscope.errors import UserError
from optscope.evidence.claims import Claim, Verdict
from optscope.evidence.records import Records
from optscope.lab import Result
from optscope.optim import SGD
from optscope.protocol.asked import Asked, asked
from optscope.protocol.comparison import Arm
from optscope.protocol.events import Quiet
from optscope.protocol.settings import Settings
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


def test_a_result_of_many_arms_is_no_longer():
    claim = Claim("F1", "a", "b", lambda records: Verdict("holds", ""), "c")
    result = Result(Records(), [(claim, Verdict("holds", "")), (claim, Verdict("fails", ""))],
                    "\n".join(f"line {i}" for i in range(40)), Path("report.html"), ("one failed",))
    lines = repr(result).splitlines()
    assert len(lines) == 10
    assert lines[-3:] == ["...", "2 claims: 1 holds, 1 fails; 0 records; 1 failures", "report: report.html"]


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
