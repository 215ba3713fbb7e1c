"""Files of users, whatever their names, encodings, imports and neighbours are."""

from __future__ import annotations

import sys

import cloudpickle
import pytest

from optscope.engine.execute import Local
from optscope.engine.plan import Plan
from optscope.engine.run import Run
from optscope.errors import UserError
from optscope.optim import SGD
from optscope.protocol import resolve
from optscope.protocol.arms import arm_named
from optscope.protocol.resolve import task_at
from tiny import ended

BODY = """
import torch
from torch import nn
from optscope import Task
x, y = torch.linspace(0, 1, 160).reshape(40, 4), torch.arange(40) % 2
def model():
    return nn.Linear(4, WIDTH)
def task():
    return Task.from_tensors(model, (x, y), (x, y), name=NAME)
"""
PLAN = Plan(1, 16)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of the user's, of which nothing stays loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(resolve, "_left", [])
    known = set(sys.modules), cloudpickle.list_registry_pickle_by_value()
    yield tmp_path
    for name in set(sys.modules) - known[0]:
        if name in cloudpickle.list_registry_pickle_by_value() - known[1]:
            cloudpickle.unregister_pickle_by_value(sys.modules[name])
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize(("content", "name"), [
    (("\ufeffWIDTH, NAME = 2, 'é'" + BODY).encode(), "é"),
    (("# -*- coding: latin-1 -*-\nWIDTH, NAME = 2, 'é'" + BODY).encode("latin-1"), "é"),
])
def test_any_encoding_that_python_reads(place, content, name):
    (place / "a_task.py").write_bytes(content)
    task = task_at("a_task.py:task")
    assert task.name == name
    assert len(Run(task, SGD(lr=0.1), PLAN, 1).id) == 16


def test_a_name_with_dots_is_looked_into_and_a_file_is_read_as_it_was_saved_last(place, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # two versions of one size, saved in one second
    ids = []
    for width in (2, 3):
        (place / "a.torch.task.py").write_text(f"WIDTH, NAME = {width}, 'a'" + BODY)
        ids.append(Run(task_at("a.torch.task.py:task"), SGD(lr=0.1), PLAN, 1).id)
    assert len(set(ids)) == 2


def test_relative_imports_look_beside_the_file_and_above_it(place):
    inner = place / "top" / "inner"
    inner.mkdir(parents=True)
    (inner / "helper.py").write_text("NAME = 'relative'")
    (place / "top" / "upper.py").write_text("WIDTH = 2")
    (inner / "a_task.py").write_text("from .helper import NAME\nfrom ..upper import WIDTH" + BODY)
    run = Run(task_at("top/inner/a_task.py:task"), SGD(lr=0.1), PLAN, 1)
    assert run.task.name == "relative"
    (outcome,) = ended(Local(1), [run], place / "runs")
    assert (outcome.status, outcome.reason) == ("ok", "")
    (place / "json").mkdir()
    (place / "json" / "b_task.py").write_text("from . import x" + BODY)
    with pytest.raises(UserError, match=r'its folder must have a name that can be imported .* got "json"'):
        task_at("json/b_task.py:task")


def test_a_file_beside_the_task_with_a_librarys_name_disturbs_nobody(place):
    for name in ("cuda", "statistics", "tabnanny", "antigravity"):
        (place / f"{name}.py").write_text("raise RuntimeError('the library was meant')")
    (place / "a_task.py").write_text("WIDTH, NAME = 2, 'mine'" + BODY)
    run = Run(task_at("a_task.py:task"), SGD(lr=0.1), PLAN, 1)
    (outcome,) = ended(Local(1), [run], place / "runs")
    assert (outcome.status, outcome.reason) == ("ok", "")
    import tabnanny
    assert tabnanny.__doc__
    (place / "this.py").write_text("WIDTH = 2")
    (place / "b_task.py").write_text("from this import WIDTH\nNAME = 'b'" + BODY)
    with pytest.raises(UserError, match=r"this.py has the name of a library, .* call it my_this.py"):
        task_at("b_task.py:task")


def test_a_file_that_changes_folder_moves_nothing_else(place):
    (place / "deeper").mkdir()
    (place / "a_task.py").write_text("import os\nos.chdir('deeper')\nWIDTH, NAME = 2, 'a'" + BODY)
    (place / "an_opt.py").write_text("import torch\nclass Mine(torch.optim.SGD): pass")
    assert task_at("a_task.py:task").name == "a"
    assert arm_named("an_opt.py:Mine", [0.1]).name == "Mine"


@pytest.mark.parametrize(("name", "said", "called"), [
    ("'task'", "wine.py:task", "wine"), ("'task'", "wine.py:red", "red"), ("'rosé'", "wine.py:task", "rosé")])
def test_a_task_without_a_name_has_that_of_its_file(place, name, said, called):
    (place / "wine.py").write_text(f"WIDTH, NAME = 2, {name}" + BODY + "red = task")
    assert task_at(said).name == called


@pytest.mark.parametrize("name", ["builtins:print", "builtins:len", "builtins:dict", "gc:collect"])
def test_what_makes_no_optimiser_is_said(name):
    with pytest.raises(UserError, match=r"must make a torch.optim.Optimizer|refused the options"):
        arm_named(name)
