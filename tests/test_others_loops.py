"""Snapshots out of somebody else's loop: whatever is set around the model, and whatever its optimiser steps."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from optscope.errors import UserError
from optscope.optim import SGD, ByKind, Decayed, Linear, Rounded, Scheduled
from optscope.probes.accuracy import Accuracy
from optscope.probes.batch_sharpness import BatchSharpness
from optscope.probes.curvature import PreconditionedSharpness, TopEigenvalues
from optscope.probes.edge import EdgeOfStability
from optscope.probes.geometry import FirstStep
from optscope.probes.gradient_noise import DescentSplit, GradientNoise
from optscope.probes.probe import Probe
from optscope.probes.rule_in_use import steps_made
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task

X, Y = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def task_of(make: Callable[[], nn.Module], x: Tensor = X, loss: nn.Module | None = None) -> Task:
    return Task.from_tensors(make, (x, Y), (x, Y), validation=(x, Y), bounds=None, loss=loss)


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor = X, loss=functional.cross_entropy,
            steps: int = 1) -> torch.optim.Optimizer:
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x), Y).backward()
        optimizer.step()
    return optimizer


# What is set around the model

class Own(nn.Module):
    """A module with a forward pass of its own: of torch's, none is compiled in place."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def in_place() -> nn.Module:
    model = Own()
    model.compile(backend="aot_eager")
    return model


@pytest.mark.filterwarnings("ignore")  # torch's own, when it loads its compiler
@pytest.mark.parametrize("make", [in_place, lambda: torch.compile(Own(), backend="aot_eager")],
                         ids=["model.compile()", "torch.compile(model)"])
def test_a_compiled_model_bends_as_it_was_written_and_stays_compiled(make) -> None:
    model = make()
    expected = model(X).detach()
    found = TopEigenvalues()(Snapshot(model, task_of(network))).values
    assert found == TopEigenvalues()(Snapshot(Own(), task_of(network))).values
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch.testing.assert_close(model(X).detach(), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before > 0


def test_autocast_around_a_look_does_not_round_what_is_measured() -> None:
    snapshot = Snapshot(network(), task_of(network))
    with torch.autocast("cpu", torch.bfloat16):
        found = Accuracy()(snapshot).values
        assert torch.is_autocast_enabled("cpu")
    assert found == Accuracy()(snapshot).values


@pytest.mark.parametrize("probe", [TopEigenvalues(), GradientNoise(), Accuracy()], ids=repr)
def test_parametrisations_that_are_cached_are_made_anew_of_what_is_looked_at(probe: Probe) -> None:
    model = network()
    parametrizations.spectral_norm(model[0])
    snapshot = Snapshot(model.eval(), task_of(network))
    expected = probe(snapshot).values
    with parametrize.cached():
        stale = model[0].weight
        with torch.no_grad():
            model[0].parametrizations.weight.original.mul_(1 + torch.rand(5, 4))
        changed = probe(snapshot).values
        assert model[0].weight is stale
    assert changed == probe(snapshot).values != expected


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_does_not_know_is_said(seed: int) -> None:
    with pytest.raises(UserError, match=f"seed must be a whole number from 0 to .*; got {seed}"):
        Accuracy()(Snapshot(network(), task_of(network), seed))


def test_a_model_of_inference_mode_is_said() -> None:
    with torch.inference_mode():
        model = network()
    with pytest.raises(UserError, match=r"'0.weight' was made in torch.inference_mode, .*: make or load"):
        Accuracy()(Snapshot(model, task_of(network)))
    with torch.inference_mode():
        assert TopEigenvalues()(Snapshot(network_outside, task_of(network))).values["sharpness"] > 0


network_outside = network()


# What the optimiser steps

class Scaled(nn.Module):
    """The cross-entropy of logits on scales that are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0, 0.5, 1.0]))

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(outputs * self.scale.to(outputs), labels)


def bent(model: nn.Module, loss: Scaled, weights: list[Tensor]) -> float:
    """The largest eigenvalue of the dense Hessian of a loss by some weights of model and loss, in float64."""
    named = {id(p): (part, name) for part in (model, loss) for name, p in part.named_parameters()}

    def value(flat: Tensor) -> Tensor:
        parts = dict(zip([named[id(w)] for w in weights], flat.split([w.numel() for w in weights]), strict=True))
        given = {part: {name: parts[part, name].view_as(p) if (part, name) in parts else p.detach().double()
                        for name, p in part.named_parameters()} for part in (model, loss)}
        outputs = torch.func.functional_call(model, given[model], (X.double(),))
        return torch.func.functional_call(loss, given[loss], (outputs, Y))

    H = torch.autograd.functional.hessian(value, torch.cat([w.detach().double().flatten() for w in weights]))
    return float(torch.linalg.eigvalsh(H)[-1])


@pytest.mark.parametrize("beside", [True, False])
def test_a_loss_that_the_optimiser_steps_is_a_part_of_what_bends(beside: bool) -> None:
    model, loss = network(), Scaled()
    weights = [*model.parameters(), *(loss.parameters() if beside else ())]
    optimizer = stepped(model, torch.optim.SGD(weights, lr=0.3), loss=loss, steps=3)
    task = task_of(network, loss=loss)
    found = TopEigenvalues(rel=1e-5)(Snapshot(model, task, optimizer=optimizer)).values
    assert found["sharpness"] == pytest.approx(bent(model, loss, weights), rel=1e-4)
    assert Accuracy()(Snapshot(model, task, optimizer=optimizer)).values["loss"] == pytest.approx(
        float(loss(model(X), Y).detach()))
    assert all(p.requires_grad for p in loss.parameters())
    assert loss.training
    assert list(model._forward_pre_hooks) == []


def test_two_groups_of_model_and_loss_have_the_threshold_of_both() -> None:
    model, loss = network(), Scaled()
    optimizer = stepped(model, torch.optim.Adam([{"params": model.parameters()}, {"params": loss.parameters(),
                                                                                 "lr": 0.1}], lr=0.01), loss=loss)
    reading = EdgeOfStability()(Snapshot(model, task_of(network, loss=loss), optimizer=optimizer))
    assert reading.values["stability threshold"] == pytest.approx(3800)
    assert not reading.silence


RULES = {"schedule": lambda rule: Scheduled(rule, Linear(), steps=10),
         "decayed": lambda rule: Decayed(Scheduled(rule, Linear(), steps=10), decay=0.0),
         "rounded": lambda rule: Rounded(Scheduled(rule, Linear(), steps=10), k=3),
         "by kind": lambda rule: ByKind(rest=Scheduled(rule, Linear(), steps=10))}


@pytest.mark.parametrize("wrap", RULES.values(), ids=RULES)
def test_a_schedule_is_where_its_live_optimiser_is(wrap) -> None:
    model = network()
    optimizer = stepped(model, wrap(SGD(lr=0.1)).optimizer_of(model), steps=5)
    for step in (None, 0, 9):
        snapshot = Snapshot(model, task_of(network), step=step, optimizer=optimizer)
        assert steps_made(snapshot) == 5
        assert EdgeOfStability()(snapshot).values["stability threshold"] == pytest.approx(2 / (0.1 * 0.5))
    assert steps_made(Snapshot(model, task_of(network), step=7, rule=wrap(SGD(lr=0.1)))) == 7
    assert steps_made(Snapshot(model, task_of(network), step=7,
                               optimizer=stepped(model, torch.optim.Adam(model.parameters())))) == 7


def test_the_preconditioner_of_another_model_is_refused() -> None:
    model = network()
    optimizer = stepped(model, torch.optim.Adam(model.parameters(), lr=0.01))
    probe, copied = PreconditionedSharpness(), copy.deepcopy(model)
    assert probe(Snapshot(model, task_of(network), optimizer=optimizer)).values
    with pytest.raises(UserError, match="Adam holds no parameter of this one: measure the other"):
        probe(Snapshot(copied, task_of(network), optimizer=optimizer))
    assert EdgeOfStability()(Snapshot(copied, task_of(network), optimizer=optimizer)).values


# Embeddings with sparse gradients

TOKENS = torch.randint(0, 9, (40, 3), generator=torch.Generator().manual_seed(0))


class Words(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.table, self.head = nn.Embedding(9, 4, sparse=sparse), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).mean(1).tanh())


@pytest.mark.parametrize("probe", [TopEigenvalues(), GradientNoise(), DescentSplit(), BatchSharpness(batch=8),
                                   FirstStep(), EdgeOfStability(gauss_newton=True)], ids=repr)
def test_an_embedding_with_sparse_gradients_reads_as_one_without(probe: Probe) -> None:
    values = []
    for sparse in (True, False):
        model = Words(sparse)
        optimizer = stepped(model, torch.optim.SGD(model.parameters(), lr=0.1), TOKENS)
        reading = probe(Snapshot(model, task_of(lambda: Words(False), TOKENS), optimizer=optimizer))
        values.append(dict(reading.values))
        assert not reading.silence
        assert model.table.sparse is sparse
        assert model.table.weight.grad.is_sparse is sparse
    assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-6)


def test_a_bag_of_words_has_gradients_and_says_that_it_has_no_curvature() -> None:
    def bag() -> nn.Module:
        return nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 3))

    snapshot = Snapshot(bag(), task_of(bag, TOKENS))
    assert "no rule is known for the EmbeddingBag" in GradientNoise()(snapshot).silence
    with pytest.raises(UserError, match="second derivatives, which torch lacks"):
        TopEigenvalues()(snapshot)
