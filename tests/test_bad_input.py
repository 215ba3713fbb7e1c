"""What a user can get wrong, through the command: one sentence, exit code 2, and nothing trained."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from optscope import lab
from optscope.cli.app import app
from optscope.engine.store import Store
from optscope.errors import UserError
from tiny import call

TASK_FILE = """
import torch
from torch import nn
from torch.nn import functional
from optscope.tasks.task import Data, Split, Task

X, Y = torch.rand(40, 4), torch.arange(40) % 2

def linear():
    return nn.Linear(4, 2)

def task(model=linear, x=X, y=Y, **settings):
    return Task.from_tensors(model, (x, y), (x, y), **settings)

class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

class Sampling(Module):
    def forward(self, x):
        return self.linear(functional.dropout(x))

class Complaining(Module):
    def forward(self, x):
        raise ValueError("first line\\nsecond line")

def lost():
    raise FileNotFoundError(2, "No such file or directory", "images.npy")

"""
COMPARE = "compare my_task.py:T --out out"


@dataclass
class Bad:
    """A command line, the files it finds, and words of the sentence it must give."""

    name: str
    argv: str
    words: tuple[str, ...]
    files: dict[str, str | bytes] = field(default_factory=dict)


def command(name, argv, *words, **files):
    return Bad(name, argv, words, {key.replace("__", "."): value for key, value in files.items()})


def made(name, source, *words):
    """A task file whose last lines are `source`."""
    return Bad(name, COMPARE, words, {"my_task.py": TASK_FILE + source})


def configured(name, toml, *words, options=""):
    """A good task under bad settings."""
    return Bad(name, f"{COMPARE} --config settings.toml {options}", words,
               {"my_task.py": TASK_FILE + "T = task()", "settings.toml": toml})


def good(name, options, *words, **files):
    """A good task with bad options."""
    found = command(name, f"{COMPARE} {options}", *words, **files)
    return Bad(name, found.argv, words, {"my_task.py": TASK_FILE + "T = task()", **found.files})


COMMANDS = [
    command("command", "comparre digits", "No such command 'comparre'"),
    command("no task", "compare", "Missing argument"),
    command("study", "run robustness_gapp", 'no study "robustness_gapp"; did you mean "robustness_gap"?'),
    command("renamed", "floor digits --out x", "called rounding now: write optscope rounding"),
    command("study shown", "show gan", 'no study "gan"; there are: gan_grafting'),
    command("scale", "run robustness_gap --scale dsk", 'no scale "dsk" in robustness_gap; did you mean "desk"?'),
    command("scale of another", "run robustness_gap --scale long", 'no scale "long"', "smoke, desk, paper"),
    command("task", "compare fashon-mnist", 'no task "fashon-mnist"; did you mean "fashion-mnist"?', "my_task.py"),
    command("data set", "data mnist", 'no data set "mnist"', "there are: cifar10, fashion-mnist"),
    command("report of nothing", "report nowhere", "nowhere is not a folder that optscope made"),
    command("report of a file", "report a.txt", "a.txt is not a folder that optscope made", a__txt="x"),
    command("full data", "compare fashion-mnist-full", "train-images-idx3-ubyte.gz",
            '"optscope data fashion-mnist"', "OPTSCOPE_DATA"),
    command("colour data", "compare cifar10", "cifar-10-python.tar.gz", '"optscope data cifar10"'),
    command("a study's data", "run robustness_gap --scale desk --out out", '"optscope data fashion-mnist"'),
    good("option", "--sceds 3", "No such option: --sceds"),
    good("seeds no number", "--seeds many", "'--seeds'", "valid integer"),
    good("no seeds", "--seeds 0", "seeds: input should be greater than or equal to 1; got 0"),
    good("epochs", "--epochs -1", "epochs: input should be greater than or equal to 1; got -1"),
    good("slots", "--slots -1", "'--slots'", "0"),
    good("optimiser", "-o adm -o sgd", 'no optimiser "adm"; did you mean "adam"?', "module:Class"),
    good("optimiser twice", "-o sgd -o adam -o sgd", "each optimiser stands once; got sgd more than once"),
    good("one optimiser", "-o sgd", "two optimisers or more; got SGD alone"),
    good("one label twice", "-o sgd -o torch.optim:SGD", "arms need different names", "SGD more than once"),
    good("class", "-o sgd -o torch.optim:Adamm", 'torch.optim has no "Adamm"; did you mean'),
    good("module of a class", "-o sgd -o nowhere:Lion", 'no module "nowhere" could be imported'),
    good("no class", "-o sgd -o my_task.py:X", "my_task.py:X must be a torch.optim.Optimizer class; got Tensor"),
    good("another class", "-o sgd -o my_task.py:Module", "Module refused the options"),
]
CONFIGS = [
    configured("lr < 0", "[optimisers.sgd]\nlr = [-0.1, 0.1]", "settings.toml: optimisers.sgd.lr.0",
               "greater than 0; got -0.1"),
    configured("lr = 0", "[optimisers.sgd]\nlr = [0.1, 0]", "optimisers.sgd.lr.1", "greater than 0; got 0"),
    configured("lr nan", "[optimisers.sgd]\nlr = [nan]", "optimisers.sgd.lr.0", "finite number; got nan"),
    configured("lr inf", "[optimisers.sgd]\nlr = [inf]", "optimisers.sgd.lr.0", "finite number; got inf"),
    configured("lr bool", "[optimisers.sgd]\nlr = [true]", "optimisers.sgd.lr.0", "valid number; got True"),
    configured("lr text", '[optimisers.sgd]\nlr = ["0.1"]', "optimisers.sgd.lr.0", "valid number; got '0.1'"),
    configured("lr no list", "[optimisers.sgd]\nlr = 0.1", "optimisers.sgd.lr", "valid list; got 0.1"),
    configured("no lr", "[optimisers.sgd]\nlr = []", "optimisers.sgd.lr", "at least 1 item"),
    configured("lr twice", "[optimisers.sgd]\nlr = [0.1, 0.1]\n[optimisers.adam]\nlr = [0.1, 0.2]",
               "different learning rates", "(0.1, 0.1)"),
    configured("budgets", "[optimisers.sgd]\nlr = [0.1, 0.2]\n[optimisers.adam]", "same number of trials",
               "'SGD': 2, 'Adam': 6"),
    configured("optimiser in a file", "[optimisers.sgd]\n[optimisers.adm]", 'no optimiser "adm"', '"adam"?'),
    configured("optimiser twice in a file", "[optimisers.sgd]\n[optimisers.sgd]",
               "settings.toml is not a TOML file", "twice"),
    configured("unknown key", "epoch = 3", "settings.toml: epoch is not a setting", 'did you mean "epochs"?'),
    configured("unknown inner key", "[optimisers.sgd]\nlrs = [0.1]", "optimisers.sgd.lrs is not a setting",
               '"lr"?'),
    configured("text for a number", 'seeds = "8"', "seeds: input should be a valid integer; got '8'"),
    configured("bool for a number", "seeds = true", "seeds: input should be a valid integer; got True"),
    configured("half an epoch", "epochs = 2.5", "epochs: input should be a valid integer; got 2.5"),
    configured("list for a table", "optimisers = ['sgd', 'adam']",
               "optimisers: input should be a valid dictionary"),
    configured("no optimisers", "[optimisers]", "optimisers", "at least 1 item"),
    configured("an option over a file", "epochs = 2", "epochs", "got 0", options="--epochs 0"),
    configured("no TOML", "epochs: 3", "settings.toml is not a TOML file", "line 1"),
    configured("bytes", b"\xff\xfe\x00", "settings.toml is not a TOML file"),
    good("no config", "--config nowhere.toml", "no settings file nowhere.toml"),
    good("a folder for config", "--config .", ". is not a TOML file"),
]
TASKS = [
    made("a loss for each example", "T = task(loss=lambda a, b: functional.cross_entropy(a, b, reduction='none'))",
         "T: the loss must be one number", "(32,)", "mean over the batch"),
    made("a detached loss", "T = task(loss=lambda a, b: functional.cross_entropy(a.detach(), b))",
         "does not depend on the model's parameters"),
    made("a loss that raises", "T = task(loss=lambda a, b: a.nothing)",
         "T: the loss refused the model's outputs", "AttributeError"),
    made("an infinite loss", "T = task(loss=lambda a, b: a.detach().sum() / 0)",
         "loss of a fresh model is", "finite"),
    made("two passes differ", "T = task(Sampling)", "two passes of the same inputs differ", "self.training"),
    made("labels too large", "T = task(y=Y + 1)", "labels must lie in 0 … 1", "reach from 1 to 2: subtract 1"),
    made("labels negative", "T = task(y=Y - 1)", "labels must lie in 0 … 1", "reach from -1 to 0"),
    made("labels not whole", "T = task(y=Y.float())", "whole-number labels", 'kind="regression"'),
    made("no parameters", "T = task(nn.Flatten)", "the model has no parameters to train", "nn.Parameter"),
    made("no module", "T = task(lambda: functional.relu)", "must return a torch.nn.Module"),
    made("one model for all", "one = nn.Linear(4, 2)\nT = task(lambda: one)", "must return a new model each time"),
    made("data that change", "T = Task('mine', linear, lambda: task(x=torch.rand(40, 4)).data())",
         "mine: data() must return the same tensors each time"),
    made("wrong shape", "T = task(lambda: nn.Linear(5, 2))", "the model refused a batch of inputs of shape (8, 4)"),
    made("a model that raises", "T = task(Complaining)", "the model refused a batch", "first line"),
    made("outside the bounds", "T = task(x=X * 255)", "inputs must lie in the bounds (0.0, 1.0)", "to 2",
         "normalisation inside the model"),
    made("not finite", "T = task(x=X / 0)", "hold nan or inf"),
    made("whole-number inputs", "T = task(x=(X * 255).byte())", "inputs must be floating point", ".float() / 255"),
    made("no examples", "T = task(x=X[:0], y=Y[:0])", "at least one example"),
    made("too few targets", "T = task(y=Y[:-1])", "as many targets as inputs", "40 inputs and 39 targets"),
    made("data that are lost", "T = Task('mine', linear, lost)", "mine: its data stopped with FileNotFoundError",
         "images.npy"),
    made("data of another kind", "T = Task('mine', linear, lambda: (X, Y))",
         "mine: data() must return Data(train, validation, test)", "got tuple"),
]
FILES = [
    command("no file", "compare nowhere.py:T", "no file nowhere.py"),
    command("no name", "compare my_task.py", 'which task of my_task.py? write "my_task.py:NAME"'),
    command("no module of that name", "compare nowhere.tasks:T", 'no module "nowhere.tasks"', '"my_task.py:NAME"'),
    command("no name of a module", "compare my-task:T", '"my-task" is no name of a module'),
    command("nothing before the colon", "compare :T", '"" is no name of a module'),
    made("no such name in a file", "Task1 = task()", 'my_task.py has no "T"'),
    made("something else", "T = 3", "my_task.py:T must be an optscope Task", "got int", "Task.from_tensors"),
    made("a model for a task", "T = Module", "must be an optscope Task", "got Module"),
    made("a function of something", "def T(a): pass", "my_task.py:T stopped with TypeError", "'a'"),
    made("a function of nothing", "def T(): pass", "must be an optscope Task", "got NoneType"),
    made("raises on import", "1 / 0", "my_task.py stopped with ZeroDivisionError: division by zero"),
    made("leaves on import", "raise SystemExit(3)", "my_task.py stopped with SystemExit: 3"),
    made("a wrong word", "T = = 3", "my_task.py stopped with SyntaxError"),
    command("a name in use", "compare json.py:T", "json.py has the name of a module that is in use", "my_json.py",
            json__py="T = 3"),
]
FOLDERS = [
    good("below a file", "--out a.txt/out", "the output folder a.txt/out cannot be written", "give --out",
         a__txt="x"),
    good("a file", "--out a.txt", "the output folder a.txt is a file", a__txt="x"),
    good("no disk", "--out /proc/optscope", "the output folder /proc/optscope cannot be written"),
    good("somebody's folder", "--out thesis", "thesis holds files that are not optscope's",
         **{"thesis/thesis__tex": "x"}),
    good("a newer folder", "--out new", "newer optscope", **{"new/optscope__json": '{"schema": 99}'}),
]
TABLE = [*COMMANDS, *CONFIGS, *TASKS, *FILES, *FOLDERS]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to stand in, no data sets, and an interpreter that forgets what is imported."""
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPTSCOPE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_task", None)


def write(place, files):
    for name, content in files.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def check(row, code, stderr, place):
    *before, sentence = stderr.splitlines()
    assert code == 2, stderr
    assert sentence.startswith("optscope: ")
    assert before == [] or (len(before) == 1 and row.argv.startswith("run ") and "scale:" in before[0])
    for word in row.words:
        assert word in sentence
    assert "Traceback" not in stderr
    assert not list(place.rglob("runs/*"))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_what_a_user_can_mend_is_one_sentence(row, place, monkeypatch, capsys):
    write(place, row.files)
    code = call(monkeypatch, row.argv)
    out, err = capsys.readouterr()
    check(row, code, err, place)
    assert out == ""


def test_every_row_has_a_name_of_its_own():
    assert len({row.name for row in TABLE}) == len(TABLE)


def process(argv, place):
    code = "import sys; from optscope.cli import main; main()"
    return subprocess.run([sys.executable, "-W", "error", "-c", code, *argv.split()], cwd=place, text=True,
                          capture_output=True, timeout=300, check=False,
                          env=os.environ | {"OPTSCOPE_DATA": str(place / "data"), "COLUMNS": "80"})


@pytest.mark.parametrize("row", [COMMANDS[2], TASKS[0]], ids=lambda row: row.name)
def test_so_it_is_in_a_process_of_its_own(row, place):
    write(place, row.files)
    done = process(row.argv, place)
    check(row, done.returncode, done.stderr, place)
    assert done.stdout == ""


def test_a_folder_in_use_is_left_alone(place, monkeypatch, capsys):
    write(place, {"my_task.py": TASK_FILE + "T = task()"})
    with Store(place / "out").locked():
        assert call(monkeypatch, COMPARE) == 2
    assert f"out is in use by process {os.getpid()} on {platform.node()}: wait for it" in capsys.readouterr().err
    assert not list(place.rglob("result.json"))


# Help, and what is not a user's to mend

@pytest.mark.parametrize("name", ["", *(c.name or c.callback.__name__ for c in app.registered_commands)])
def test_help(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    assert call(monkeypatch, f"{name} --help") == 0
    out, err = capsys.readouterr()
    assert f"Usage: optscope {name}".strip() in " ".join(out.split())
    assert err == ""


def test_it_is_a_module_too(place):
    done = subprocess.run([sys.executable, "-W", "error", "-m", "optscope", "show", "--help"], cwd=place, text=True,
                          capture_output=True, check=True)
    assert "Usage: python -m optscope show" in done.stdout
    assert done.stderr == ""


def test_without_arguments_it_helps(monkeypatch, capsys):
    code = call(monkeypatch, "")
    out, err = capsys.readouterr()
    assert code in (0, 2)
    assert "Usage: optscope" in out
    assert err == ""


def test_help_is_quick_because_nothing_heavy_is_imported(place):
    code = ("import sys; from optscope.cli import main; main(); "
            "print('heavy:', {'torch', 'numpy', 'scipy', 'matplotlib', 'pydantic'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: set()"


def test_debug_shows_where(place, monkeypatch):
    done = process("show gan --debug", place)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert 'UserError: no study "gan"' in done.stderr
    with pytest.raises(UserError, match="gan"):
        call(monkeypatch, "--debug show gan")


@pytest.mark.parametrize(("error", "code", "words"), [
    (OSError(28, "No space left on device", "/disk/x"), 74,
     "/disk/x: No space left on device; what was measured is kept"),
    (RuntimeError("odd"), 1, "RuntimeError: odd (--debug shows where)"),
    (KeyboardInterrupt(), 130, "stopped; finished runs are kept: the same command continues"),
])
def test_other_ends_have_their_own_codes(error, code, words, place, monkeypatch, capsys):
    def door(*args, **settings):
        raise error

    monkeypatch.setattr(lab, "compare", door)
    write(place, {"my_task.py": TASK_FILE + "T = task()"})
    assert call(monkeypatch, COMPARE) == code
    err = capsys.readouterr().err
    assert err.startswith(f"optscope: {words}")
    assert len(err.splitlines()) == 1


def test_names_and_paths_with_brackets_are_printed_whole(place, monkeypatch, capsys):
    folder = f"{'long-' * 20}[b]out[/b]"
    Store(place / folder)
    assert call(monkeypatch, f"report {folder}") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["no report yet: the command that made the folder continues"]
    write(place / folder, {"summary.csv": "", "report.html": "", "run.json": '{"answer": "It [b]is[/b]."}'})
    assert call(monkeypatch, f"report {folder}") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["It [b]is[/b].", f"every number: {folder}/summary.csv",
                                f"report: {folder}/report.html"]
    assert err == ""
