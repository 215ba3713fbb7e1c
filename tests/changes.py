"""Ways in which a user's task can change, each with the files that change and what `mine.py` says of them."""

from __future__ import annotations

TASK_FILE = """
from pathlib import Path
import torch
from torch import nn
from torch.nn import functional as F
from optscope import Task

{above}

def model():
    {model}

def loss(outputs, targets):
    {loss}

X, y = torch.linspace(0, 1, 160).reshape(40, 4), torch.arange(40) % 2

def data():
    x = X
    {data}
    return Task.from_tensors(model, (x, y), (x, y)).data()

def task():
    return Task("mine", model, data, loss)
"""
PLAIN = {
    "above": "",
    "model": "return nn.Linear(4, 2)",
    "loss": "return F.cross_entropy(outputs, targets)",
    "data": "pass",
}


HELPER = (
    "from torch import nn\nWIDTH = {0}\ndef net():\n    return nn.Linear(4, WIDTH)\ndef loss(o, t):\n    return t\n"
)
SMOOTH = "return F.cross_entropy(outputs, targets, label_smoothing=SMOOTH)"
OLD_AS_NEW = {
    "a helper's function": (
        {"helper.py": "def factor(): return {0}"},
        ("1.0", "2.0"),
        {"above": "from helper import factor", "loss": "return factor() * F.cross_entropy(outputs, targets)"},
    ),
    "a helper's helper": (
        {"helper.py": "import deeper\ndef factor(): return deeper.F['a'][0]", "deeper.py": "F = dict(a=[{0}])"},
        ("1.0", "2.0"),
        {"above": "from helper import factor", "loss": "return factor() * F.cross_entropy(outputs, targets)"},
    ),
    "a width in a JSON file": (
        {"c.json": "{0}"},
        ("2", "3"),
        {
            "above": "import json; WIDTH = json.loads(Path('c.json').read_text())",
            "model": "return nn.Linear(4, WIDTH)",
        },
    ),
    "smoothing in a JSON file": (
        {"c.json": "{0}"},
        ("0.1", "0.2"),
        {"above": "import json; SMOOTH = json.loads(Path('c.json').read_text())", "loss": SMOOTH},
    ),
    "a JSON file read in the model": (
        {"c.json": "{0}"},
        ("2", "3"),
        {"model": "import json; return nn.Linear(4, json.loads(Path('c.json').read_text()))"},
    ),
    "settings in an object": (
        {"c.json": "{0}"},
        ("0.1", "0.2"),
        {
            "above": "import json, types; C = types.SimpleNamespace(a=[json.loads(Path('c.json').read_text())])",
            "loss": "return F.cross_entropy(outputs, targets, label_smoothing=C.a[0])",
        },
    ),
    "a model by importlib": (
        {
            "nets/__init__.py": "",
            "nets/a.py": "from torch import nn\nclass Net(nn.Linear):\n"
            "    def forward(self, x): return {0} * super().forward(x)",
        },
        ("1", "2"),
        {"model": "import importlib; return importlib.import_module('nets' + '.a').Net(4, 2)"},
    ),
    "a model by importlib, by its shape": (
        {"nets.py": HELPER},
        ("2", "3"),
        {"model": "import importlib; return importlib.import_module('nets').net()"},
    ),
    "a loss by importlib": (
        {"losses.py": "def f(o, t): return {0} * o.mean()"},
        ("1", "2"),
        {"loss": "import importlib; return importlib.import_module('losses').f(outputs, targets)"},
    ),
    "a CSV": ({"d.csv": "{0}"}, ("1.0", "2.0"), {"data": "x = x + float(Path('d.csv').read_text())"}),
    "a CSV read by a helper": (
        {
            "d.csv": "{0}",
            "helper.py": "from pathlib import Path\ndef read(): return float(Path('d.csv').read_text())",
        },
        ("1.0", "2.0"),
        {"above": "import helper", "data": "x = x + helper.read()"},
    ),
    "a closure": (
        {"helper.py": "def make(a):\n    return lambda v: a * v\nf = make({0})"},
        ("1", "2"),
        {"above": "import helper", "loss": "return helper.f(F.cross_entropy(outputs, targets))"},
    ),
    "a partial": (
        {"helper.py": "import functools\ndef g(a, v): return a * v\nf = functools.partial(g, {0})"},
        ("1", "2"),
        {"above": "import helper", "loss": "return helper.f(F.cross_entropy(outputs, targets))"},
    ),
    "lambdas in a dictionary": (
        {"helper.py": "LOSSES = dict(a=lambda v: {0} * v)"},
        ("1", "2"),
        {"above": "from helper import LOSSES", "loss": "return LOSSES['a'](F.cross_entropy(outputs, targets))"},
    ),
    "a class attribute": (
        {"helper.py": "class C:\n    a = {0}"},
        ("1", "2"),
        {"above": "from helper import C", "loss": "return C.a * F.cross_entropy(outputs, targets)"},
    ),
    "a base class elsewhere": (
        {"base.py": "from torch import nn\nclass B(nn.Linear):\n    def twice(self, x): return {0} * x"},
        ("1", "2"),
        {
            "above": "import base\nclass N(base.B):\n"
            "    def forward(self, x): return self.twice(super().forward(x))",
            "model": "return N(4, 2)",
        },
    ),
    "a private attribute of a module": (
        {"c.json": "{0}"},
        ("1", "2"),
        {
            "above": "import json\nclass N(nn.Linear):\n"
            "    def forward(self, x): return self._a * super().forward(x)",
            "model": "n = N(4, 2); n._a = json.loads(Path('c.json').read_text()); return n",
        },
    ),
    "a library's function exchanged": (
        {
            "helper.py": "import torch.nn.functional as F\nkept = F.l1_loss\n"
            "def loss(o, t): return {0} * kept(o[:, 0], t.float())\nF.l1_loss = loss"
        },
        ("1", "2"),
        {"above": "import helper", "loss": "return F.l1_loss(outputs, targets)"},
    ),
    "a library's method exchanged": (
        {"helper.py": "from torch import nn\ndef forward(self, x): return {0} * x\nnn.Threshold.forward = forward"},
        ("1", "2"),
        {"above": "import helper", "model": "return nn.Sequential(nn.Linear(4, 2), nn.Threshold(1, 1))"},
    ),
    "a hook on the model": (
        {"helper.py": "def double(module, inputs, output): return {0} * output"},
        ("1", "2"),
        {
            "above": "import helper",
            "model": "n = nn.Linear(4, 2); n.register_forward_hook(helper.double); return n",
        },
    ),
    "weights in a file": (
        {"w.txt": "{0}"},
        ("1", "2"),
        {"model": "n = nn.Linear(4, 2); nn.init.constant_(n.bias, float(Path('w.txt').read_text())); return n"},
    ),
    "a buffer that is not saved": (
        {"w.txt": "{0}"},
        ("1", "2"),
        {
            "model": "n = nn.Linear(4, 2); n.register_buffer('a', torch.tensor(float(Path('w.txt').read_text())), "
            "persistent=False); return n"
        },
    ),
    "weights frozen": (
        {"w.txt": "{0}"},
        ("0", "1"),
        {"model": "n = nn.Linear(4, 2); n.bias.requires_grad_(bool(int(Path('w.txt').read_text()))); return n"},
    ),
    "weights tied": (
        {"w.txt": "{0}"},
        ("0", "1"),
        {
            "model": "n = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))\n"
            "    n[1].weight.data = n[0].weight.data.clone()\n"
            "    if int(Path('w.txt').read_text()): n[1].weight = n[0].weight\n    return n"
        },
    ),
    "a module imported in a function": (
        {"helper.py": "A = {0}"},
        ("1", "2"),
        {"loss": "import helper\n    return helper.A * F.cross_entropy(outputs, targets)"},
    ),
    "a name imported in a function": (
        {"pack/__init__.py": "", "pack/helper.py": "A = {0}"},
        ("1", "2"),
        {"loss": "from pack.helper import A\n    return A * F.cross_entropy(outputs, targets)"},
    ),
    "a namespace package": (
        {"space/part/helper.py": "A = {0}"},
        ("1", "2"),
        {"above": "import space.part.helper as h", "loss": "return h.A * F.cross_entropy(outputs, targets)"},
    ),
    "a package that sums up": (
        {"pack/__init__.py": "from .inner import *", "pack/inner.py": "def f(v): return {0} * v"},
        ("1", "2"),
        {"above": "from pack import f", "loss": "return f(F.cross_entropy(outputs, targets))"},
    ),
    "a global of a helper changed at import": (
        {"helper.py": "A = 1", "other.py": "import helper\nhelper.A = {0}"},
        ("1", "2"),
        {"above": "import helper, other", "loss": "return helper.A * F.cross_entropy(outputs, targets)"},
    ),
    "a registry filled by decorators": (
        {
            "helper.py": "ALL = dict()\ndef add(f):\n    ALL[f.__name__] = f\n    return f\n"
            "@add\ndef f(v): return {0} * v"
        },
        ("1", "2"),
        {"above": "import helper", "loss": "return helper.ALL['f'](F.cross_entropy(outputs, targets))"},
    ),
    "a name asked for by getattr": (
        {"helper.py": "def f(v): return {0} * v"},
        ("1", "2"),
        {
            "above": "import helper\nWHICH = 'f'",
            "loss": "return getattr(helper, WHICH)(F.cross_entropy(outputs, targets))",
        },
    ),
    "a default": (
        {"helper.py": "def f(v, a={0}): return a * v\ndef g(v, *, a={0}): return a * v"},
        ("1", "2"),
        {"above": "import helper", "loss": "return helper.g(F.cross_entropy(outputs, targets))"},
    ),
    "a property": (
        {"helper.py": "class C:\n    @property\n    def a(self): return {0}\nc = C()"},
        ("1", "2"),
        {"above": "import helper", "loss": "return helper.c.a * F.cross_entropy(outputs, targets)"},
    ),
    "a cached function": (
        {"helper.py": "import functools\n@functools.lru_cache\ndef a(): return {0}"},
        ("1", "2"),
        {"above": "import helper", "loss": "return helper.a() * F.cross_entropy(outputs, targets)"},
    ),
    "a decorator": (
        {
            "helper.py": "import functools\ndef d(f):\n    @functools.wraps(f)\n"
            "    def g(*a): return {0} * f(*a)\n    return g"
        },
        ("1", "2"),
        {
            "above": "import helper\n@helper.d\ndef f(v): return v",
            "loss": "return f(F.cross_entropy(outputs, targets))",
        },
    ),
    "a tensor": (
        {"w.txt": "{0}"},
        ("1", "2"),
        {
            "above": "W = torch.tensor([float(Path('w.txt').read_text()), 1])",
            "loss": "return F.cross_entropy(outputs, targets, weight=W)",
        },
    ),
    "an enumeration": (
        {"helper.py": "import enum\nclass E(enum.Enum):\n    A = {0}"},
        ("1", "2"),
        {"above": "from helper import E", "loss": "return E.A.value * F.cross_entropy(outputs, targets)"},
    ),
    "a source in another encoding": (
        {"helper.py": "# -*- coding: ascii -*-\ndef f(v): return {0} * v"},
        ("1", "2"),
        {"above": "import helper", "loss": "return helper.f(F.cross_entropy(outputs, targets))"},
    ),
    "a slotted object": (
        {"helper.py": "class C:\n    __slots__ = ('a',)\nc = C()\nc.a = {0}"},
        ("1", "2"),
        {"above": "import helper", "loss": "return helper.c.a * F.cross_entropy(outputs, targets)"},
    ),
    "a dispatch by type": (
        {
            "helper.py": "import functools, torch\n@functools.singledispatch\ndef f(v): return v\n"
            "@f.register\ndef _(v: torch.Tensor): return {0} * v"
        },
        ("1", "2"),
        {"above": "import helper", "loss": "return helper.f(F.cross_entropy(outputs, targets))"},
    ),
}
