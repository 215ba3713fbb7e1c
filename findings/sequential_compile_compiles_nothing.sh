#!/usr/bin/env bash
# nn.Sequential(...).compile() compiles nothing and does not say so: no graph is made, and steps take what they took.
#
# Expected: Module.compile() compiles a module's forward in place, "exactly as torch.compile(module.forward)" by its
# documentation; a Sequential of linear layers, the commonest model in examples, is one graph, as it is when it stands
# in a class of one's own, or when torch.compile is given a function that calls it.
# Happens:  the backend is called for a class of one's own and for a function around the Sequential, and never for the
# Sequential's own compile(): the frame of its call is torch's own code, where the compiler does not begin.
# Why it matters: who benchmarks compile() on a Sequential measures plain PyTorch twice, and reports that compilation
# does not help. Only fullgraph=True raises ("found no compiled frames").
# Source: torch 2.13.0, torch/nn/modules/module.py (compile), torch/_dynamo/trace_rules.py (files that are left alone).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install -q --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
env/bin/python -W ignore - <<'PY'
import torch
from torch import nn

print("torch", torch.__version__)
made = []


def backend(graph, inputs):
    made.append(graph)
    return graph.forward


def layers():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = layers()

    def forward(self, x):
        return self.layers(x)


def graphs(model, call):
    torch._dynamo.reset()
    made.clear()
    call(torch.rand(4, 8)).sum().backward()
    return len(made)


found = {}
for name, model in (("nn.Sequential", layers()), ("a class of one's own", Own())):
    model.compile(backend=backend)
    found[name] = graphs(model, model)
inner = layers()
found["a function around nn.Sequential"] = graphs(inner, torch.compile(lambda x: inner(x), backend=backend))
for name, count in found.items():
    print(f"graphs compiled of {name}: {count}")
assert found == {"nn.Sequential": 0, "a class of one's own": 1, "a function around nn.Sequential": 1}, "changed"
PY
