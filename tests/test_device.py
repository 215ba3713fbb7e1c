"""Rules on an accelerator that a machine without one can pretend: the CPU's numbers, and no wait inside a step."""

import pytest
import torch
from torch import nn

from optscope.optim import Foreign
from optscope.vector import Layout
from pretend import NAME, pretending, reads
from test_rules import gradient, rules, tensors

STEPS = 4


def trained(rule, device, steps=STEPS):
    """Return the weights after some steps, and how often a value was read on the way."""
    start = tensors()
    layout = Layout.of(start)
    params = [nn.Parameter(t.clone().to(device)) for t in start]
    optimizer, weights, before = rule.optimizer(params), layout.flatten(start), 0
    for t in range(steps):
        for p, g in zip(params, layout.views(gradient(weights, t)), strict=True):
            p.grad = g.clone().to(device)
        before = sum(reads.values())
        optimizer.step()
        waits = sum(reads.values()) - before
        weights = layout.flatten([p.detach().cpu() for p in params])
    return weights, waits


@rules
def test_a_rule_steps_on_a_device_as_on_the_cpu_and_waits_for_nothing(rule):
    there, _ = trained(rule, "cpu")
    with pretending():
        here, waits = trained(rule, NAME)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-12)
    if not any(isinstance(each, Foreign) for each in rule.walk()):  # others wait as they please
        assert waits == 0


def test_the_pretend_device_refuses_to_mix_as_a_gpu_does():
    with pretending():
        model = nn.Linear(3, 2).to(NAME)
        model(torch.rand(4, 3, device=NAME)).sum().backward()
        with pytest.raises(RuntimeError, match="one device"):
            model(torch.rand(4, 3))
        assert not reads
        float(model.bias.detach().sum())
        assert sum(reads.values()) == 1
