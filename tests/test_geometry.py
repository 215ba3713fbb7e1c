"""Geometry against weights made by hand, numpy's singular values, training itself and exact linear boundaries."""

import math
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from optscope.engine.plan import Plan
from optscope.engine.train import train
from optscope.errors import UserError
from optscope.optim import SGD, Adam, Decayed, Foreign, NormalizedSGD, SignSGD
from optscope.probes.geometry import FirstStep, Geometry, Margin, effective_density, near_zero
from optscope.tasks.fresh import fresh_model
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task
from tiny import TASK


def snapshot(model, x=None, y=None, rule=None, **settings):
    x = torch.rand(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) if x is None else x
    y = torch.arange(len(x)) % 3 if y is None else y
    task = Task.from_tensors(lambda: model, (x, y), (x, y), validation=(x, y), **settings)
    return Snapshot(model, task, rule=rule)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# Weights

def test_weights_made_by_hand():
    model = nn.Linear(2, 3).double()
    model.weight.data = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.004, 0.0]], dtype=torch.float64)
    model.bias.data.zero_()
    reading = Geometry()(snapshot(model))
    total, squares = 7.004, 25 + 0.004**2
    sigma = np.array([math.sqrt(9 + 0.004**2), 4])
    p = sigma / sigma.sum()
    effective = math.exp(-(p * np.log(p)).sum())
    assert reading.values == pytest.approx({
        "weight norm": math.sqrt(squares), "effective density": 100 * total**2 / (9 * squares),
        "near-zero weights": 100 * 7 / 9, "stable rank": 50 * squares / 16, "effective rank": 50 * effective})
    assert list(reading.arrays["layers"]) == ["weight", "bias"]
    assert reading.arrays["layer weight norms"] == pytest.approx([math.sqrt(squares), 0])
    assert reading.arrays["layer effective densities"] == pytest.approx([100 * total**2 / (6 * squares), 0])
    assert reading.arrays["layer near-zero weights"] == pytest.approx([100 * 4 / 6, 100])
    assert reading.arrays["stable ranks"] == pytest.approx([squares / 16])
    assert reading.arrays["effective ranks"] == pytest.approx([effective])


def test_ranks_by_singular_values():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 2), nn.BatchNorm2d(5), nn.Linear(7, 4), nn.Linear(2, 6, bias=False))
    model[2].weight.data.zero_()
    model[3].weight.data[:, 1] = 2 * model[3].weight.data[:, 0]  # rank one
    reading = Geometry()(snapshot(model))
    assert list(reading.arrays["matrices"]) == ["0.weight", "2.weight", "3.weight"]
    stable, effective = [], []
    for name in ("0.weight", "3.weight"):
        w = model.get_parameter(name).detach().double().numpy()
        sigma = np.linalg.svd(w.reshape(len(w), -1), compute_uv=False)
        p = sigma[sigma > 1e-12] / sigma.sum()
        stable.append((sigma**2).sum() / sigma[0] ** 2)
        effective.append(math.exp(-(p * np.log(p)).sum()))
    assert stable[1] == pytest.approx(1)
    assert reading.arrays["stable ranks"] == pytest.approx([stable[0], 0, stable[1]], rel=1e-9)
    # A singular value that is zero is found as 1e-8 of the largest, which adds 2e-7 to the entropy.
    assert reading.arrays["effective ranks"] == pytest.approx([effective[0], 0, effective[1]], rel=1e-6)
    assert reading.values["stable rank"] == pytest.approx(100 * (stable[0] / 5 + stable[1] / 2) / 3, rel=1e-9)


def test_density_does_not_depend_on_scale_and_counts_equal_weights():
    w = torch.zeros(50)
    w[:7] = -0.3
    assert effective_density(w) == pytest.approx(7 / 50)
    v = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert effective_density(1e-3 * v) == pytest.approx(effective_density(v))
    assert effective_density(torch.zeros(4)) == 0
    assert near_zero(torch.zeros(4)).all()


def test_a_model_without_matrices_has_no_ranks_and_one_without_weights_no_geometry():
    assert "stable rank" not in Geometry()(snapshot(nn.BatchNorm1d(2))).values
    with pytest.raises(UserError, match="this Flatten has none"):
        Geometry()(snapshot(nn.Flatten()))


# Distance from initialisation

@dataclass(frozen=True)
class Drawn:
    """A linear model whose weights another library's global generator draws, by name."""

    source: str

    def __call__(self):
        model = nn.Linear(2, 3)
        draw = np.random.rand if self.source == "numpy" else lambda *_: np.array([[random.random()] * 2] * 3)
        model.weight.data = torch.tensor(draw(3, 2), dtype=torch.float32)
        return model


@pytest.mark.parametrize("source", ["numpy", "python"])
def test_a_model_drawn_by_another_generator_starts_where_its_training_did(source):
    seen = []
    train(replace(TASK, model=Drawn(source)), SGD(lr=0.1), Plan(1, 32), 1, at=(0,),
          watch=lambda s: seen.append(Geometry()(s)))
    assert seen[0].values["distance from initialisation"] == 0


@pytest.mark.parametrize("seed", [0, 7])
def test_distance_is_from_the_weights_that_training_starts_with(seed):
    seen = []
    trained = train(TASK, Adam(lr=0.01), Plan(epochs=1, batch=16), seed, at=(0,),
                    watch=lambda s: seen.append(flat(s.model).clone()))
    state = torch.get_rng_state()
    assert torch.equal(flat(fresh_model(TASK, seed)), seen[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(flat(fresh_model(TASK, seed + 1)), seen[0])
    reading = Geometry()(trained.snapshot)
    moved = flat(trained.snapshot.model) - seen[0]
    assert reading.values["distance from initialisation"] == pytest.approx(float(moved.norm()), rel=1e-6)
    parts = reading.arrays["layer distances from initialisation"]
    assert np.linalg.norm(parts) == pytest.approx(float(moved.norm()), rel=1e-6)
    assert parts[0] == pytest.approx(float(moved[:16].norm()), rel=1e-6)


def test_distance_needs_training_and_the_model_of_the_task():
    assert "distance from initialisation" not in Geometry()(Snapshot(TASK.model(), TASK)).values
    with pytest.raises(UserError, match="this one has other parameters"):
        Geometry()(Snapshot(nn.Linear(2, 3), TASK, step=10))


# First step

def gradient(model, x, y):
    loss = functional.cross_entropy(model(x), y)
    return [g.numpy() for g in torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("rule", [
    SGD(lr=0.3, momentum=0.9), SignSGD(lr=0.01), NormalizedSGD(lr=0.1), NormalizedSGD(lr=0.1, per="model"),
    Decayed(SGD(lr=0.3), 0.5), Adam(lr=0.01, eps=1e-15)], ids=repr)
def test_first_step(rule):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    seen = snapshot(model, rule=rule)
    train_set = seen.task.data().train
    grads = gradient(model, train_set.inputs, train_set.targets)
    whole = np.linalg.norm(np.concatenate([g.ravel() for g in grads]))
    weights = [p.detach().numpy() for p in model.parameters()]
    steps = {
        "SGD": lambda g, w: -0.3 * g,
        "SignSGD": lambda g, w: -0.01 * np.sign(g),
        "Adam": lambda g, w: -0.01 * np.sign(g),
        "NormalizedSGD": lambda g, w: -0.1 * g / (whole if rule.per == "model" else np.linalg.norm(g)),
        "Decayed": lambda g, w: -0.3 * (g + 0.5 * w)}[type(rule).__name__]
    expected = [steps(g, w) for g, w in zip(grads, weights, strict=True)]
    reading = FirstStep()(seen)
    assert list(reading.arrays["layers"]) == [name for name, _ in model.named_parameters()]
    assert reading.arrays["layer step lengths"] == pytest.approx([np.linalg.norm(s) for s in expected], rel=1e-6)
    cosines = [-(s * g).sum() / np.linalg.norm(s) / np.linalg.norm(g) for s, g in zip(expected, grads, strict=True)]
    assert reading.arrays["layer step cosines"] == pytest.approx(cosines, rel=1e-6)
    s, g = (np.concatenate([a.ravel() for a in arrays]) for arrays in (expected, grads))
    assert reading.values == pytest.approx({"step length": np.linalg.norm(s),
                                            "step cosine": -s @ g / np.linalg.norm(s) / whole}, rel=1e-6)


def test_first_step_has_the_present_learning_rate_and_needs_a_rule():
    model, rule = nn.Linear(2, 3).double(), SGD(lr=0.3)
    assert FirstStep()(snapshot(model)).values == {}
    before = FirstStep()(snapshot(model, rule=rule)).values["step length"]
    optimizer = rule.optimizer(model.parameters())
    optimizer.param_groups[0]["lr"] = 0.03
    live = snapshot(model, rule=rule)
    now = FirstStep()(Snapshot(model, live.task, rule=rule, optimizer=optimizer)).values["step length"]
    assert now == pytest.approx(before / 10)


class Moded(torch.optim.Optimizer):
    """Gradient descent that steps in train mode only, at weights twice as far as those of eval mode."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, "on": False})

    def train(self): self._switch(True, 2.0)

    def eval(self): self._switch(False, 0.5)

    def _switch(self, on, factor):
        for group in self.param_groups:
            if group["on"] != on:
                group["on"] = on
                for p in group["params"]:
                    p.data.mul_(factor)

    def step(self, closure=None):
        for group in self.param_groups:
            assert group["on"], "not in train mode"
            for p in group["params"]:
                p.data.sub_(p.grad, alpha=2 * group["lr"])


class Narrow(torch.optim.SGD):
    def step(self, closure=None):
        if self.param_groups[0]["params"][0].dtype is torch.float64:
            raise RuntimeError("float32 only")
        return super().step(closure)


def test_the_first_step_of_a_foreign_optimiser_is_between_its_eval_modes_or_silent():
    model = nn.Linear(2, 3).double()
    moded, plain = (FirstStep()(snapshot(model, rule=rule)).values for rule in (Foreign(Moded), SGD(lr=0.1)))
    assert moded == pytest.approx(plain)
    with pytest.raises(UserError, match=r"makes no step on copies of the weights .* RuntimeError: float32 only"):
        FirstStep()(snapshot(model, rule=Foreign(Narrow, lr=0.1)))


def test_a_layer_without_gradient_has_no_cosine():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    model[0].bias.data.fill_(-100)
    reading = FirstStep()(snapshot(model, rule=SGD(lr=0.1)))
    assert np.isnan(reading.arrays["layer step cosines"][:3]).all()
    assert reading.arrays["layer step cosines"][3] == pytest.approx(1)


# Margin

def test_margins_of_a_linear_model_are_distances_to_its_boundaries():
    torch.manual_seed(0)
    model = nn.Linear(2, 3).double()
    seen = snapshot(model)
    reading = Margin()(seen)
    test = seen.task.data().test
    w, b = (p.detach().numpy() for p in (model.weight, model.bias))
    margins, distances = [], []
    for x, y in zip(test.inputs.numpy(), test.targets.numpy(), strict=True):
        z = w @ x + b
        rival = max((j for j in range(3) if j != y), key=lambda j: z[j])
        normal = w[y] - w[rival]
        margins.append(z[y] - z[rival])
        distances.append(margins[-1] / np.linalg.norm(normal))
        touching = x - distances[-1] * normal / np.linalg.norm(normal)
        assert (w @ touching + b)[y] == pytest.approx((w @ touching + b)[rival])
    assert min(margins) < 0 < max(margins)
    assert reading.arrays["margins"] == pytest.approx(margins)
    assert reading.arrays["boundary distances"] == pytest.approx(distances)
    assert reading.values == pytest.approx({
        "margin": np.mean(margins), "margin, lowest tenth": sorted(margins)[1],
        "boundary distance": sorted(distances)[5], "boundary distance, lowest tenth": sorted(distances)[1]})


def test_margins_beyond_one_batch_by_central_differences():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Dropout(), nn.Linear(5, 3)).double().train()
    x = torch.rand(300, 2, dtype=torch.float64)
    seen = snapshot(model, x)
    reading = Margin()(seen)
    model.eval()

    def margin(x, y):
        z = model(x[None])[0].detach()
        return float(z[y] - torch.cat([z[:y], z[y + 1:]]).max())

    for i in (0, 1, 2, 150, 299):
        y, h = i % 3, 1e-6
        slope = [(margin(x[i] + h * e, y) - margin(x[i] - h * e, y)) / (2 * h) for e in torch.eye(2)]
        assert reading.arrays["margins"][i] == pytest.approx(margin(x[i], y))
        assert reading.arrays["boundary distances"][i] == pytest.approx(
            margin(x[i], y) / np.linalg.norm(slope), rel=1e-5)


def test_where_the_input_does_not_matter_the_boundary_is_infinitely_far():
    model = nn.Linear(2, 3).double()
    model.weight.data.zero_()
    model.bias.data = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    reading = Margin()(snapshot(model))
    assert reading.arrays["boundary distances"][:3].tolist() == [0, 0, -math.inf]
    assert reading.values["margin"] == pytest.approx(-1 / 3)
    assert reading.values["boundary distance"] == 0


def test_margins_are_for_classification():
    x, y = torch.rand(6, 2), torch.rand(6, 1)
    with pytest.raises(UserError, match="classification"):
        Margin()(snapshot(nn.Linear(2, 1), x, y, loss=functional.mse_loss, kind="regression"))
