"""What trial steps find of optimisers before anything is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from optscope.errors import UserError
from optscope.optim import SGD, Adam, AdamW, Decayed, Foreign, Graft, Rounded
from optscope.optim.trial import check_on, notes


class Hidden(torch.optim.Optimizer):
    """Momentum that is kept outside the state dict."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.kept = {}

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for i, p in enumerate(group["params"]):
                self.kept[i] = 0.9 * self.kept.get(i, 0) + p.grad
                p.add_(self.kept[i], alpha=-group["lr"])


class Counting(torch.optim.SGD):
    """Steps by a tenth from the tenth step on, by a count that no state dict holds."""

    count = 0

    def step(self, closure=None):
        self.count += 1
        for group in self.param_groups:
            group["lr"] *= 0.1 if self.count == 10 else 1.0
        super().step(closure)


class Noisy(torch.optim.SGD):
    """Adds noise to every gradient."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.add_(torch.randn_like(p))
        super().step(closure)


class Modes(torch.optim.SGD):
    """Has modes."""

    def train(self):
        pass

    def eval(self):
        pass


class Single(torch.optim.SGD):
    """Cannot step float64 weights."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad @ torch.eye(p.shape[-1]), alpha=-group["lr"])


class Named(torch.optim.Optimizer):
    """Keeps a number for all parameters under a name."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.state["all"] = torch.zeros(1)

    @torch.no_grad()
    def step(self, closure=None):
        self.state["all"] = self.state["all"] + 1
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=-group["lr"] / float(self.state["all"]))


class FirstOnly(torch.optim.SGD):
    """Reads its rate once."""

    def step(self, closure=None):
        if not hasattr(self, "rate"):
            self.rate = self.param_groups[0]["lr"]
        for group in self.param_groups:
            group["lr"] = self.rate
        super().step(closure)


class Rateless(torch.optim.SGD):
    """Never reads its rate."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = 0.01
        super().step(closure)


def two_groups(params, lr=0.01):
    """Sort parameters, the last ones first."""
    params = list(params)
    groups = [params[1:], params[:1]] if len(params) > 1 else [params]
    return torch.optim.Adam([{"params": group} for group in groups], lr=lr)


def no_decay_on_biases(params, lr=0.01):
    """Sort parameters by their axes."""
    params = list(params)
    return torch.optim.AdamW([{"params": [p for p in params if p.dim() > 1]},
                              {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0}], lr=lr)


X, Y = torch.rand(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def loss(model):
    return cross_entropy(model(X), Y)


@pytest.mark.parametrize("rule", [
    Rounded(Foreign(two_groups), 3), Graft(Foreign(no_decay_on_biases), SGD(lr=1.0)), Rounded(Foreign(Named), 3),
    Decayed(Foreign("torch.optim:Rprop"), 0.1), Rounded(Foreign("torch.optim:ASGD"), 3), Rounded(Adam(lr=0.1), 3),
    Foreign(Hidden), Foreign(Modes), Foreign(Noisy)], ids=repr)
def test_rules_whose_pure_step_is_their_own_pass(rule):
    check_on(rule, network(), loss)


@pytest.mark.parametrize(("make", "words"), [
    (Hidden, "keeps something elsewhere"), (Counting, "keeps something elsewhere"), (Noisy, "draws random numbers"),
    (Modes, "has train and eval modes"), (Single, "of float64 weights.*RuntimeError")])
def test_optimisers_that_would_be_others_in_a_combinator_are_refused_there(make, words):
    for rule in (Rounded(Foreign(make, lr=0.1), 3), Graft(SGD(lr=0.1), Decayed(Foreign(make, lr=0.1), 0.1))):
        with pytest.raises(UserError, match=rf"cannot be used inside {type(rule).__name__}.*{words}"):
            check_on(rule, network(), loss)


def test_a_trial_draws_nothing():
    model, before = network(), torch.get_rng_state()
    notes(Foreign(Noisy, lr=0.1))
    with pytest.raises(UserError):
        check_on(Rounded(Foreign(Noisy, lr=0.1), 3), model, loss)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("rule", "said"), [
    (Foreign("torch.optim:Rprop"), ["reads its learning rate at its first step only"]),
    (Foreign(FirstOnly, lr=0.1), ["reads its learning rate at its first step only"]),
    (Graft(Foreign(Rateless, lr=0.1), SGD(lr=1.0)), ["same steps at a tenth of its learning rate"]),
    (Foreign("torch.optim:AdamW"), ["decays weights by 0.01, its default"]),
    (Foreign("torch.optim:AdamW", weight_decay=0.01), []), (Foreign("torch.optim:ASGD"), []),
    (Decayed(AdamW(lr=0.1), 0.1), ["decays weights by 0.01, its default"]), (AdamW(lr=0.1, decay=0.1), []),
    (Foreign(Modes, lr=0.1), ["measured at the weights of its eval mode"])], ids=repr)
def test_what_a_reader_would_not_guess_is_noted(rule, said):
    found = notes(rule)
    assert len(found) == len(said)
    assert all(words in sentence for words, sentence in zip(said, found, strict=True))
