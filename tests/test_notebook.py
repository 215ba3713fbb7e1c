"""Notebooks: a bar where ipywidgets is there, and a task that is written in a cell, in a real kernel."""

from __future__ import annotations

import sys
from contextlib import closing
from types import SimpleNamespace

import pytest

from optscope import notebook
from optscope.engine.executor import Outcome
from optscope.engine.rows import Use
from optscope.protocol.events import Ended, Named, Said

CELL = """
import torch, optscope
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))

    def forward(self, x):
        return self.layers(x)

WIDTH = 8
x = torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > x[:, 1]).long()
task = optscope.Task.from_tensors(Network, (x[:160], y[:160]), (x[160:], y[160:]), name="mine")
result = optscope.compare(task, ["sgd", "adam"], seeds=2, epochs=2, widen=0, twin_seeds=0, probes=["Accuracy"])
result
"""


@pytest.fixture
def widgets(monkeypatch):
    """What stands for ipywidgets and IPython: the widgets that were made, and what was displayed."""
    made, shown = {}, []

    def maker(name):
        return lambda *children: made.setdefault(name, SimpleNamespace(children=children))

    monkeypatch.setitem(sys.modules, "ipywidgets", SimpleNamespace(
        **{name: maker(name) for name in ("IntProgress", "HTML", "VBox")}))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=shown.append))
    return made, shown


def ended(seed, status="ok"):
    return Ended(Use("c", "SGD", "tune", seed, "SGD(lr=0.1)", f"run {seed}", ()), Outcome(f"run {seed}", status))


def test_a_bar_counts_runs_and_escapes_what_it_shows(widgets, capsys):
    made, shown = widgets
    with closing(notebook.Bar()) as bar:
        bar.hear(Said("a <b> sentence"))
        bar.hear(Named("<tuning>", 2, 0))
        assert shown == [made["VBox"]]
        assert (made["IntProgress"].max, made["IntProgress"].value) == (2, 0)
        bar.hear(ended(1))
        bar.hear(ended(2))
    assert (made["IntProgress"].value, made["IntProgress"].bar_style) == (2, "success")
    assert made["HTML"].value.startswith("&lt;tuning&gt;: 2/2 runs, ")
    assert "a <b> sentence\n" in capsys.readouterr().out


def test_a_bar_that_is_stopped_says_so(widgets):
    with closing(notebook.Bar()) as bar:
        bar.hear(Named("tuning", 2, 0))
    assert widgets[0]["IntProgress"].bar_style == "warning"


def test_without_ipywidgets_it_is_a_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert type(notebook.listener()) is notebook.Line
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert type(notebook.listener()) is notebook.Bar


def test_a_task_that_is_written_in_a_cell_is_compared_in_processes(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in (
        CELL, "result.verdicts", "result.figure('scorecard')", "import sys; print(*sorted(sys.modules))")])
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    first, verdicts, figure, modules = (cell.outputs for cell in book.cells)
    shown = [each["data"] for each in first if "data" in each]
    assert "<h3>Which optimiser for mine?</h3>" in shown[-1]["text/html"]
    assert "report: runs/compare-mine/report.html" in shown[-1]["text/plain"]
    bar = "ipywidgets" in modules[0]["text"].split()
    assert ("application/vnd.jupyter.widget-view+json" in shown[0]) == bar
    assert bar or any("runs/min" in each.get("text", "") for each in first)
    assert verdicts[0]["data"]["text/plain"].startswith("F1    not shown  Adam against SGD: accuracy ")
    assert "Figure" in figure[-1]["data"]["text/plain"]
    assert (tmp_path / "runs" / "compare-mine" / "report.html").is_file()
