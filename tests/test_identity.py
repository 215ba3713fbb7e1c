"""Identity: whatever changes bits changes the name of a run, in every process alike, and nothing else does."""

from __future__ import annotations

import importlib
import json
import math
import os
import pickle
import subprocess
import sys
import textwrap
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import optscope.lab as lab
from changes import OLD_AS_NEW, PLAIN, TASK_FILE
from optscope.engine import naming, origin
from optscope.engine.execute import Inline, Local
from optscope.engine.identity import describe
from optscope.engine.numerics import TorchSettings, numerics
from optscope.engine.once import looked_at_once
from optscope.engine.origin import versions
from optscope.engine.plan import Plan
from optscope.engine.run import Run
from optscope.engine.state_file import from_bytes, to_bytes
from optscope.engine.store import RunFolder
from optscope.errors import UserError
from optscope.evidence.records import Record, Records, measured
from optscope.optim import SGD, Adam, Constant, Graft, Momentum, StepDecay
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.search import Grid
from optscope.tasks import task as tasks
from optscope.tasks.content import content, mark
from optscope.tasks.images import FashionMNIST
from optscope.tasks.models import MLP
from optscope.tasks.task import Task
from tiny import TASK, ended

PLAN = Plan(1, 16)

@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder whose modules can be imported, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    forget(known)


def forget(known):
    here = ("torch", "optscope", "numpy", sys.prefix, sys.base_prefix)  # a library imported twice is two
    for name in set(sys.modules) - known:
        if not name.startswith(here) and not str(getattr(sys.modules[name], "__file__", name)).startswith(here):
            del sys.modules[name]
    importlib.invalidate_caches()


def name_of(place, files, **source):
    """Write `mine.py` and others, import them afresh, and return the run's id."""
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(textwrap.dedent(text))
    (place / "mine.py").write_text(TASK_FILE.format(**PLAIN | source))
    known = set(sys.modules)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    library = functional.l1_loss, nn.Threshold.forward
    try:
        return Run(importlib.import_module("mine").task(), SGD(lr=0.1), PLAN, 1).id
    finally:
        sys.dont_write_bytecode = before
        functional.l1_loss, nn.Threshold.forward = library
        forget(known)


@pytest.mark.parametrize("row", OLD_AS_NEW)
def test_old_numbers_never_pass_as_new(row, place):
    files, values, source = OLD_AS_NEW[row]
    a, again, b = (name_of(place, {n: text.replace("{0}", value) for n, text in files.items()}, **source)
                   for value in (values[0], *values))
    assert a == again
    assert a != b


def test_code_that_names_code_is_read_however_deep(place):
    def chain(last):
        steps = [f"def step_{i}(x):\n    return step_{i + 1}(x)\n" for i in range(2_000)]
        return "\n".join([*steps, f"def step_2000(x):\n    return {last} * x\n"])
    a, again, b = (name_of(place, {"deep.py": chain(last)}, model="import deep\n    deep.step_0\n"
                           "    return nn.Linear(4, 2)") for last in (2, 2, 3))
    assert a == again
    assert a != b


def test_a_package_that_is_installed_editable_is_its_authors_code_whatever_version_it_says(place):
    # Such a package lies in its own folder; what site-packages has of it is a name, a version, and where it is.
    installed = {"own-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: own\nVersion: 1.0\n",
                 "own-1.0.dist-info/top_level.txt": "own\n",
                 "own-1.0.dist-info/direct_url.json": '{"url": "file:///own", "dir_info": {"editable": true}}'}
    a, again, b = (name_of(place, installed | {"own/__init__.py": f"SCALE = {scale}\n"},
                           loss="import own\n    return own.SCALE * F.cross_entropy(outputs, targets)")
                   for scale in (2, 2, 3))
    assert a == again
    assert a != b


@pytest.fixture
def packages():
    """Forget what is installed, which is asked once a process: a function that does it again."""
    def forgotten():
        for each in (origin._distributions, origin._is_library, origin.versions):
            each.cache_clear()
    yield forgotten
    forgotten()


def installed(version="1.0", **source):
    """What stands beside a package `own` that was unpacked of a wheel."""
    return {"own-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: own\nVersion: {version}\n",
            "own-1.0.dist-info/RECORD": "own/__init__.py,,\nown-1.0.dist-info/RECORD,,\n",
            "own-1.0.dist-info/direct_url.json": json.dumps({"url": "file:///own", "dir_info": source})}


OWN_LOSS = "import own\n    return own.SCALE * F.cross_entropy(outputs, targets)"


def test_a_package_that_was_unpacked_of_a_wheel_is_a_library_with_its_version_in_whatever_folder(place, packages):
    def named(scale, version):  # as `pip install --target` lays them
        packages()
        return name_of(place, installed(version) | {"own/__init__.py": f"SCALE = {scale}\n"}, loss=OWN_LOSS)
    assert named(2, "1.0") == named(3, "1.0")  # its code is not read
    assert named(2, "1.0") != named(2, "1.1")


def test_a_package_that_is_linked_is_a_library_unless_it_says_that_it_is_editable(place, packages, monkeypatch):
    # uv can link packages to its cache, and flit one to its source tree.
    (place / "lib" / "site-packages").mkdir(parents=True)
    (place / "lib" / "site-packages" / "own").symlink_to(place / "cache" / "own")
    monkeypatch.syspath_prepend(str(place / "lib" / "site-packages"))

    def named(scale, **source):
        packages()
        beside = {f"lib/site-packages/{name}": text for name, text in installed(**source).items()}
        return name_of(place, beside | {"cache/own/__init__.py": f"SCALE = {scale}\n"}, loss=OWN_LOSS)
    assert named(2) == named(3)
    assert named(2, editable=True) != named(3, editable=True)


def test_code_of_more_than_256_names_may_import_within(place):
    # Its instructions take a prefix for the larger numbers.
    names = "\n".join(f"    x.name_{i} = {i}" for i in range(300))
    many = f"def of(x):\n{names}\n    import long\n    return long.SCALE\n"
    a, again, b = (name_of(place, {"long.py": f"SCALE = {scale}\n", "many.py": many},
                           loss="import many, types\n    return many.of(types.SimpleNamespace()) * "
                           "F.cross_entropy(outputs, targets)") for scale in (2, 2, 3))
    assert a == again
    assert a != b


SAME = {
    "a comment": ({}, {"model": "# said\n    return nn.Linear(4, 2)"}),
    "a docstring": ({}, {"loss": '"""Say."""\n    return F.cross_entropy(outputs, targets)'}),
    "a function that nothing uses": ({}, {"above": "def unused(): return 3"}),
    "a global that nothing uses": ({}, {"above": "import time; START = time.time()"}),
    "a helper that nothing uses": ({"helper.py": "A = 1"}, {"above": "import helper"}),
    "a file beside it": ({"notes.txt": "1"}, {}),
    "another layout": ({}, {"model": "return (\n        nn.Linear(4,\n                  2))"}),
}


@pytest.mark.parametrize("row", SAME)
def test_what_changes_no_bits_changes_no_name(row, place):
    files, source = SAME[row]
    assert name_of(place, {}) == name_of(place, files, **source)


def test_another_place_on_disk_changes_no_name(place):
    source = {"above": "from pathlib import Path\nHERE = Path(__file__).parent\nHOME = str(Path.cwd())",
              "data": "assert (HERE / 'mine.py').exists() and HOME"}
    names = set()
    for folder in ("a/same", "b/same"):
        (place / folder).mkdir(parents=True)
        sys.path.insert(0, str(place / folder))
        os.chdir(place / folder)
        names.add(name_of(place / folder, {}, **source))
        sys.path.remove(str(place / folder))
    assert len(names) == 1


CACHES = {
    "a dictionary": ("KEPT = {}", "KEPT[len(KEPT)] = 1"), "a list": ("KEPT = []", "KEPT.append(1)"),
    "a count": ("KEPT = 0", "global KEPT; KEPT += 1"),
    "a count in a dictionary": ("KEPT = {'n': 0}", "KEPT['n'] += 1"),
    "an attribute": ("class K: n = 0", "K.n += 1"),
}


@pytest.mark.parametrize("row", CACHES)
def test_what_the_functions_write_down_themselves_is_no_setting(row, place):
    above, line = CACHES[row]
    (place / "mine.py").write_text(TASK_FILE.format(**PLAIN | {
        "above": above, "model": f"{line}; return nn.Linear(4, 2)", "data": line}))
    task = importlib.import_module("mine").task()
    assert Run(task, SGD(lr=0.1), PLAN, 1).id == Run(task, SGD(lr=0.1), PLAN, 1).id
    Run(task, SGD(lr=0.1), PLAN, 1).perform(RunFolder(place / "run"))
    assert Run(task, SGD(lr=0.1), PLAN, 1).id == Run(task, SGD(lr=0.1), PLAN, 1).id


def processes(place, script, *, seeds=("1", "2"), **environment):
    """Return what a script prints in fresh processes, one a hash seed."""
    known = os.environ | {"PYTHONPATH": f"{Path(__file__).parents[1] / 'src'}:{Path(__file__).parent}"}
    started = [subprocess.Popen([sys.executable, "-W", "error", "-c", script], cwd=place, text=True,
                                env=known | {"PYTHONHASHSEED": seed} | environment, stdout=subprocess.PIPE)
               for seed in seeds]
    return [process.communicate()[0] for process in started]


NAMES = """
import sys
sys.path.insert(0, ".")
import mine, helper
from tiny import TASK
from optscope.probes.accuracy import Accuracy
from optscope.engine.plan import Plan
from optscope.engine.run import Run
from optscope.optim import Adam, Foreign, Graft, SGD, StepDecay
for task, rule in ((mine.task(), Graft(Adam(lr=.1), SGD(lr=1.0))), (TASK, Foreign("torch.optim:NAdam", lr=.1))):
    run = Run(task, rule, Plan(2, 8, StepDecay(at=(.5,))), 1, (Accuracy(),))
    print(run.id, run.readings)
"""


def test_names_are_equal_in_every_process(place):
    (place / "helper.py").write_text(
        "WORDS = {'a', 'b', 'c', 'd'}\nclass Many:\n    def f(self, x): return x in {'p', 'q', 'r', 'long word'}\n"
        "def one(x, words=frozenset(WORDS)): return Many().f(x) or x in words or x in WORDS\n")
    (place / "mine.py").write_text(TASK_FILE.format(**PLAIN | {
        "above": "import helper", "loss": "helper.one('a'); return F.cross_entropy(outputs, targets)"}))
    first, second = processes(place, NAMES)
    assert first == second
    assert first.count("\n") == 2


COMPILED = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from torch import nn
from optscope.engine.identity import describe, digest
sys.path.insert(0, ".")
from compiled import MODELS
for make in MODELS[::ORDER]:
    torch.manual_seed(0)
    made = make()
    made(torch.ones(2, 6))
    torch.manual_seed(0)
    print(digest(describe(make())))
"""


def test_models_that_torch_compiles_have_one_name_in_every_process_and_their_attributes_count(place):
    (place / "compiled.py").write_text(textwrap.dedent("""
        import torch
        from torch import nn

        @torch.compile(backend="eager")
        def relu(x):
            return x.relu()

        class Inside(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.me = nn.Linear(6, 3), id(self)
                self.layer.compile(backend="eager")

            def forward(self, x):
                return relu(self.layer(x))

        class Shifted(nn.Linear):
            def __init__(self, shift):
                super().__init__(6, 3)
                self.scale, self.shift = shift, shift * torch.ones(3)

            def forward(self, x):
                return self.scale * torch.nn.functional.linear(x, self.weight, self.bias) + self.shift

        def traced(shift):
            return torch.jit.trace(Shifted(shift), torch.ones(2, 6))

        MODELS = [Inside, lambda: torch.compile(nn.Linear(6, 3), backend="eager"),
                  lambda: torch.jit.script(nn.Sequential(nn.Linear(6, 3), nn.ReLU())),
                  lambda: torch.jit.script(Shifted(1.0)), lambda: torch.jit.script(Shifted(2.0)),
                  lambda: torch.jit.trace(nn.Linear(6, 3), torch.ones(2, 6)),
                  lambda: traced(1.0), lambda: traced(2.0), lambda: torch.jit.freeze(traced(1.0).eval())]
    """))
    first, again = processes(place, COMPILED.replace("ORDER", "1"))
    [backwards] = processes(place, COMPILED.replace("ORDER", "-1"), seeds=("1",))
    assert first == again
    assert first.split() == backwards.split()[::-1]
    assert len(set(first.split())) == 9


def test_environment_variables_read_at_import_or_in_the_model_count(place, monkeypatch):
    source = {"above": "import os\nA = float(os.environ['A'])",
              "loss": "return A * F.cross_entropy(outputs, targets)",
              "model": "return nn.Linear(4, int(os.environ['WIDTH']))"}
    found = set()
    for a, width in (("1", "2"), ("2", "2"), ("1", "3"), ("1", "2")):
        monkeypatch.setenv("A", a)
        monkeypatch.setenv("WIDTH", width)
        found.add(name_of(place, {}, **source))
    assert len(found) == 3


def test_a_change_while_a_comparison_runs_stops_it(place):
    (place / "helper.py").write_text("def factor():\n    return 1.0\n")
    (place / "d.txt").write_text("1")
    (place / "mine.py").write_text(TASK_FILE.format(**PLAIN | {
        "above": "from helper import factor", "data": "x = x + float(Path('d.txt').read_text())",
        "loss": "return factor() * F.cross_entropy(outputs, targets)"}))
    task = importlib.import_module("mine").task()
    run, fresh, later = (Run(task, SGD(lr=0.1), PLAN, seed) for seed in (1, 2, 3))
    names = run.id, run.users, fresh.id, fresh.users
    assert all(names)
    (outcome,) = ended(Local(1), [run], place / "runs")
    assert outcome.status == "ok"
    (place / "helper.py").write_text("def factor():\n    return 2.0\n")
    with pytest.raises(UserError, match="mine: helper:factor changed after this command began, or differs"):
        list(Local(1).run([fresh], place / "runs"))
    (place / "helper.py").write_text("def factor():\n    return 1.0\n")
    assert later.id
    assert later.users
    (place / "d.txt").write_text("2")
    with pytest.raises(UserError, match="mine: its data changed after this command began"):
        list(Inline().run([later], place / "runs"))


def test_data_drawn_by_a_global_generator_are_the_same_everywhere(place):
    (place / "mine.py").write_text(TASK_FILE.format(**PLAIN | {"data": "x = torch.rand(40, 4)"}))
    run = Run(importlib.import_module("mine").task(), SGD(lr=0.1), PLAN, 1)
    torch.manual_seed(5)
    a = RunFolder(place / "a")
    run.perform(a)
    list(Local(1).run([run], place / "b"))
    b = RunFolder(place / "b" / run.id)
    assert all(torch.equal(v, b.weights()[n]) for n, v in a.weights().items())


SETTINGS = {
    "dtype": (torch.set_default_dtype, torch.float64), "deterministic": (torch.set_deterministic_debug_mode, 1),
    "matmul": (torch.set_float32_matmul_precision, "medium"), "flush": (torch.set_flush_denormal, True),
    "anomaly": (torch.autograd.set_detect_anomaly, True), "device": (torch.set_default_device, "meta"),
    "autocast": (lambda on: torch.set_autocast_enabled("cpu", on), True),
    "gradients": (torch.set_grad_enabled, False),
}


@pytest.fixture
def usual():
    """Leave torch's settings as they were."""
    before, threads = TorchSettings(), torch.get_num_threads()
    yield
    with before.hold():
        pass
    TorchSettings.__setstate__(before, vars(before))
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", SETTINGS)
def test_torch_settings_are_part_of_the_name_and_hold_while_it_is_performed(name, usual):
    before = numerics()
    change, value = SETTINGS[name]
    run = Run(TASK, SGD(lr=0.1), PLAN, 1)
    assert run.settings.numerics() == before
    change(value)
    assert set(numerics().items()) - set(before.items()) == {(name, numerics()[name])}
    held = TorchSettings()
    assert Run(TASK, SGD(lr=0.1), PLAN, 1).settings == held != run.settings
    TorchSettings.__setstate__(run.settings, vars(run.settings))
    assert numerics() == before
    with held.hold():
        assert numerics()[name] != before.get(name)
        assert torch.get_num_threads() == 1
    assert numerics() == before


def settings_there() -> tuple[list[Record], dict[str, object]]:
    """Return what a new tensor is, and how many threads there are."""
    return [measured("", 0, str(torch.ones(1).dtype), float(torch.get_num_threads()))], {}


def test_a_worker_has_the_settings_of_the_file_even_before_it_imports_what_the_file_imports(place, usual):
    (place / "helper.py").write_text("import torch\nW = torch.ones(2)\n")
    (place / "mine.py").write_text(TASK_FILE.format(**PLAIN | {
        "above": "torch.set_default_dtype(torch.float64); torch.set_num_threads(2)\nimport helper",
        "loss": "return F.cross_entropy(outputs, targets, weight=helper.W)"}))
    run = Run(importlib.import_module("mine").task(), SGD(lr=0.1), PLAN, 1)
    here, there = RunFolder(place / "here"), place / "there"
    run.perform(here)
    (outcome,) = ended(Local(1), [run], there)
    assert outcome.status == "ok"
    found = RunFolder(there / run.id)
    assert all(torch.equal(v, found.weights()[n]) for n, v in here.weights().items())
    assert found.weights()["weight"].dtype == torch.float64
    assert found.result()["numerics"]["dtype"] == "torch.float64"


# Our own code

def test_adding_a_rule_or_a_helper_renames_no_run_and_changing_one_does(monkeypatch):
    from optscope.optim import momentum, rule, schedules, sgd

    def names():
        rules = SGD(lr=0.1), Momentum(lr=0.1), Graft(Adam(lr=0.1), SGD(lr=1.0))
        return [Run(TASK, each, PLAN, 1).id for each in rules]

    first = names()
    for module in (momentum, rule, sgd, schedules):
        monkeypatch.setattr(module, "helper", lambda: 1, raising=False)
        monkeypatch.setattr(module, "Another", type("Another", (SGD,), {}), raising=False)
    assert names() == first
    step = Momentum.add_step_
    monkeypatch.setattr(Momentum, "add_step_", lambda *a, **k: step(*a, **k))
    second = names()
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, True]
    monkeypatch.setattr(SGD, "update", lambda *a, **k: None)
    assert [a == b for a, b in zip(second, names(), strict=True)] == [False, True, False]


PUBLIC = Task("images", MLP((784, 10)), FashionMNIST(100, 100, 100))


def test_public_data_are_known_by_their_settings(monkeypatch):
    monkeypatch.setattr(naming, "load", lambda task: pytest.fail("data were read to name a run"))
    run = Run(PUBLIC, SGD(lr=0.1), PLAN, 1)
    assert "its data" not in run.users
    assert run.id != Run(replace(PUBLIC, data=FashionMNIST(100, 100, 99)), SGD(lr=0.1), PLAN, 1).id


def test_a_worker_looks_once_at_equal_parts_and_each_time_at_what_the_users_task_makes(monkeypatch):
    sent = [cloudpickle.dumps(Run(task, SGD(lr=0.1), PLAN, seed)) for task in (PUBLIC, TASK) for seed in (1, 2)]
    looked, written = [], naming._written
    monkeypatch.setattr(naming, "_own", {})
    monkeypatch.setattr(naming, "_written", lambda part, *made: looked.append(type(part)) or written(part, *made))
    found = []
    for run in sent:
        pickle.loads(run).verify()
        found.append(looked.copy())
        looked.clear()
    assert found == [[Plan, SGD, MLP, FashionMNIST], [], [Task], [Task]]


def test_code_that_was_found_the_same_is_not_read_again_and_what_it_makes_is(place, monkeypatch):
    # A registry of a large package leads to all of its code: to read it takes seconds, and was done for every run.
    (place / "mine.py").write_text(TASK_FILE.format(**PLAIN | {
        "above": "FACTOR = 1", "loss": "return FACTOR * F.cross_entropy(outputs, targets)",
        "data": "x = x + float(Path('d.txt').read_text())"}))
    (place / "d.txt").write_text("1")
    task = importlib.import_module("mine").task()
    sent = [pickle.dumps(Run(task, SGD(lr=0.1), PLAN, seed)) for seed in (1, 2, 3)]
    monkeypatch.setattr(naming, "_agreed", set())  # as in a worker, which named nothing
    read, settled = [], naming.Account.settled
    monkeypatch.setattr(naming.Account, "settled", lambda account: read.append(account) or settled(account))
    costs = []
    for run in sent[:2]:
        pickle.loads(run).verify()
        costs.append(len(read))
        read.clear()
    assert costs[0] > 0 == costs[1]
    (place / "d.txt").write_text("2")
    with pytest.raises(UserError, match="mine: its data changed after this command began"):
        pickle.loads(sent[2]).verify()
    monkeypatch.setattr(naming, "_agreed", set())
    (place / "d.txt").write_text("1")
    sys.modules["mine"].FACTOR = 2
    with pytest.raises(UserError, match=r"mine: mine\.FACTOR changed after this command began"):
        pickle.loads(sent[2]).verify()


def test_the_schedule_counts_and_no_other(monkeypatch):
    run = Run(TASK, SGD(lr=0.1), PLAN, 1)
    monkeypatch.setattr(StepDecay, "__call__", lambda self, t: 1.0)
    assert Run(TASK, SGD(lr=0.1), PLAN, 1).id == run.id
    monkeypatch.setattr(Constant, "__call__", lambda self, t: 1.0 + 0 * t)
    assert Run(TASK, SGD(lr=0.1), PLAN, 1).id != run.id


def test_the_words_of_an_error_do_not_count():
    def make(text):
        names = {"__name__": "optscope.typed", "UserError": UserError}
        exec(text, names)
        return describe(names["f"])
    text = "def f(x):\n    if x:\n        raise UserError(f'no {x!r}' if x else 'none')\n    return x + 1\n"
    assert make(text) == make(text.replace("no {x!r}", "a longer sentence, {x} and {x!r}"))
    assert make(text) != make(text.replace("x + 1", "x + 2"))
    assert make(text) != make(text.replace("if x:", "if not x:"))


# Content

KINDS = {
    "float32": torch.tensor([1.0, 2.0]), "bfloat16": torch.tensor([1.0, 2.0]).bfloat16(),
    "half": torch.tensor([1.0, 2.0]).half(), "complex": torch.tensor([1.0 + 0j, 2.0]), "int": torch.tensor([1, 2]),
    "bool": torch.tensor([True, False]), "float8": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
    "sparse": torch.tensor([1.0, 2.0]).to_sparse(), "empty": torch.ones(0), "scalar": torch.tensor(1.0),
    "column": torch.tensor([[1.0], [2.0]]), "numpy": np.array([1.0, 2.0]), "numpy scalar": np.float32(1.0),
    "text": np.array(["a", "b"]), "objects": np.array([1, "b"], dtype=object),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_number_has_content(kind):
    value = KINDS[kind]
    if kind != "numpy scalar":
        assert describe(value.copy() if isinstance(value, np.ndarray) else value.clone()) == describe(value)
    if value.ndim and len(value) and kind != "sparse":
        other = torch.cat([value[:1], value[:1]]) if isinstance(value, torch.Tensor) else value[[0, 0]]
        assert describe(other) != describe(value)
    assert sum(describe(other) == describe(value) for other in KINDS.values()) == 1


def test_a_mapping_that_grows_while_it_is_looked_at_is_described():
    table = {}

    class Lazy:
        def __reduce__(self):
            table["met"] = 1  # as a module that loads its parts when they are asked for
            return (Lazy, ())
    table["lazy"] = Lazy()
    assert describe(table)
    assert table["met"] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_stride_of_one_element_is_no_content(dtype):
    """A tensor of one element is contiguous with any stride; torch 2.13 makes no bytes of those but 1."""
    wide = torch.arange(55, dtype=dtype).reshape(5, 11)
    one = wide[2:3, 3]
    assert one.stride() == (11,)
    assert content(one) == content(torch.tensor([25.0], dtype=dtype)) != content(wide[3:4, 3])
    assert content(wide[:, 3]) == content(torch.tensor(wide[:, 3].tolist(), dtype=dtype))
    assert mark(one) == mark(torch.tensor([25.0], dtype=dtype)) != mark(wide[3:4, 3])
    assert torch.equal(from_bytes(to_bytes({"a": one}, "x"), "x")["a"], one)


@pytest.mark.filterwarnings("ignore")
def test_quantised_compressed_and_conjugated_tensors_have_content():
    x = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
    def quantised(scale):
        return torch.quantize_per_tensor(x, scale, 0, torch.qint8)
    assert content(quantised(0.1)) == content(quantised(0.1)) != content(quantised(0.2))
    csr = x.to_sparse_csr()
    assert content(csr) == content(x.to_sparse_csr()) != content((2 * x).to_sparse_csr())
    z = torch.tensor([1 + 2j])
    assert content(z.conj()) == content(torch.tensor([1 - 2j])) != content(z)


def test_data_in_memory_are_hashed_once_and_a_change_of_them_is_seen(monkeypatch):
    x, y = torch.rand(60, 4), torch.arange(60) % 2
    hashed = []
    known = tasks.digest_of
    monkeypatch.setattr(tasks, "digest_of", lambda tree: hashed.append(1) or known(tree))
    task = Task.from_tensors(lambda: nn.Linear(4, 2), (x, y), (x, y))
    arms = tuple(Arm(name, rule, Grid((0.1, 0.2, 0.3))) for name, rule in (("a", SGD(lr=0.1)), ("b", Adam(lr=0.1))))
    comparison = Comparison("c", task, arms, PLAN, (), (1, 2), (3, 4, 5))
    assert Run(task, SGD(lr=0.1), PLAN, 1).id
    jobs = comparison.jobs(Records())
    assert len(jobs) == 18
    with looked_at_once():
        comparison.jobs(Records())
        comparison.jobs(Records())
    assert len(hashed) == 3  # the parts
    task.data().test.inputs.numpy()[0] = 7  # not seen by torch's count of versions
    assert {job.work.id for job in comparison.jobs(Records())}.isdisjoint(job.work.id for job in jobs)


KEPT = """
import functools, itertools, os, threading, weakref
from helper import tracker
LOCK, ENV, COUNT = threading.Lock(), os.environ, itertools.count()
REFS = weakref.WeakValueDictionary()

@functools.singledispatch
def width(x): raise TypeError

@width.register
def _(x: int): return x

class Slots:
    __slots__ = ("width", "unset")
    def __init__(self, width): self.width = width

SLOTS = Slots(2)

def factory():
    made = []
    class Net(nn.Linear):
        count = 0
        class Config: inputs = 4
        def __init__(self):
            super().__init__(self.Config.inputs, SLOTS.width)
            type(self).count += 1
            made.append(self)
        @functools.cached_property
        def scale(self): return 1.0
        def forward(self, x):
            tracker.hit(len(x))
            return super().forward(x) * self.scale
    return Net

Net = factory()
"""
HIT = "class Tracker:\n    def __init__(self): self.n = 0\n    def hit(self, k): self.n += k\ntracker = Tracker()\n"


def test_workers_know_tasks_that_count_keep_and_lock_for_the_same(place):
    (place / "helper.py").write_text(HIT)
    model = "width(2)\n    next(COUNT)\n    with LOCK: net = Net()\n    REFS[ENV['PATH']] = net\n    return net"
    (place / "mine.py").write_text(TASK_FILE.format(**PLAIN | {"above": KEPT, "model": model}))
    module = importlib.import_module("mine")
    cloudpickle.register_pickle_by_value(module)
    with looked_at_once():
        task = module.task()
        lab._check(task)
        runs = [Run(task, SGD(lr=0.1), PLAN, seed) for seed in (1, 2)]
        outcomes = ended(Local(1), runs, place / "runs")
    cloudpickle.unregister_pickle_by_value(module)
    assert [outcome.status for outcome in outcomes] == ["ok", "ok"], outcomes


def test_of_the_environment_the_variables_that_are_named_count(place, monkeypatch):
    source = {"above": "from os import environ\nENV = environ",
              "loss": "return float(ENV.get('A', 1)) * float(environ['B']) * F.cross_entropy(outputs, targets)"}
    found = []
    for a, b, other in (("1", "1", "1"), ("1", "1", "2"), ("2", "1", "1"), ("1", "2", "1")):
        for name, value in zip(("A", "B", "TERMINAL"), (a, b, other), strict=True):
            monkeypatch.setenv(name, value)
        found.append(name_of(place, {}, **source))
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_a_loss_that_notes_something_on_itself_still_counts_its_settings(place):
    names = {name_of(place, {}, above=f"SMOOTH = {smooth}",
                     loss="loss.last = 1; return F.cross_entropy(outputs, targets, label_smoothing=SMOOTH)")
             for smooth in (0.1, 0.2)}
    assert len(names) == 2


@pytest.mark.parametrize("own", ["", "step"])
def test_an_optimiser_that_is_made_changes_no_name_of_its_class(own):
    """Torch then wraps the step that a class has or inherits, and sets it in the class itself."""
    class Base(torch.optim.Optimizer):
        def step(self, closure=None):
            return 1

    def step(self, closure=None):
        return 2

    Inheriting = type("Inheriting", (Base,), {own: step} if own else {})
    before = describe(Inheriting)
    Inheriting([torch.zeros(1, requires_grad=True)], {})
    assert "step" in vars(Inheriting)
    assert describe(Inheriting) == before
    Base([torch.zeros(1, requires_grad=True)], {})
    assert describe(Inheriting) == before
    assert describe(type("Inheriting", (Base,), {"step": lambda self, closure=None: 3})) != before


def test_a_compiled_function_may_say_its_module_by_the_module_itself(monkeypatch):
    before = describe(math.gcd)
    monkeypatch.setattr(math.gcd, "__module__", math)  # as those of psutil do
    assert describe(math.gcd) == before


def test_a_library_has_the_versions_that_pythons_own_list_of_packages_says():
    for top, names in metadata.packages_distributions().items():
        if top not in {"torch", *sys.stdlib_module_names}:
            assert [said.split()[:2] for said in versions(top)] == [
                [name, metadata.version(name)] for name in sorted(set(names))], top
    assert versions("no_such_library") == ()


def test_a_module_that_imports_its_own_package_is_written_once(place):
    (place / "circle").mkdir()
    (place / "circle" / "__init__.py").write_text("")
    (place / "circle" / "part.py").write_text("import circle\n\ndef f(x):\n    return x\n")
    (place / "asks.py").write_text("import circle.part\n\ndef model(x):\n    return circle.part.f(x)\n")
    assert "circle.part:f" in str(describe(importlib.import_module("asks").model))
