"""Attacks against closed forms, exhaustive search and two other libraries; the checks against masked gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from optscope.errors import UserError
from optscope.probes.apgd import APGD, TargetedAPGD, checkpoints
from optscope.probes.attack import BIM, FGSM, PGD, Attack
from optscope.probes.attack_checks import CHECKS
from optscope.probes.attack_losses import DLR, CrossEntropy, MarginLoss, TargetedDLR
from optscope.probes.black_box import RandomSearch
from optscope.probes.dense import by_graph, dense
from optscope.probes.ensemble import Ensemble
from optscope.probes.perturbation import L2, Linf, ball_of, per_example
from optscope.probes.robust import RobustAccuracy
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task

SHORT = Ensemble((APGD(steps=20), TargetedAPGD(steps=10), RandomSearch(queries=30)))
GRADIENT = [FGSM(), BIM(5), PGD(10), PGD(5, restarts=2), APGD(steps=20), APGD(DLR(), steps=20),
            TargetedAPGD(steps=10), SHORT]
ATTACKS = [*GRADIENT, RandomSearch(queries=30)]
NORMS = ["l2", "linf"]
RADIUS = {"l2": 0.25, "linf": 0.06}  # leaves about half of the trained net's accuracy


def task(model: nn.Module, x: Tensor, y: Tensor, bounds: tuple[float, float] | None = (0.0, 1.0)) -> Task:
    return Task.from_tensors(lambda: model, (x, y), (x, y), validation=(x, y), bounds=bounds)


def robust(model: nn.Module, x: Tensor, y: Tensor, bounds=(0.0, 1.0), checked=0, seed=0, **settings):
    probe = RobustAccuracy(checked=checked, **settings)
    return probe(Snapshot(model, task(model, x, y, bounds), seed=seed))


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small net that has learned five clusters in thirty dimensions, and 200 points it has not seen.

    It is the same on every machine: in float32, or at 0.5 in place of 0.2, the last bits of a processor's products
    grow to another net, and an attack finds others on its verge.
    """
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(800) % 5
    centres = 0.5 + 0.12 * torch.randn(5, 30, generator=generator)
    x = (centres[y] + 0.2 * torch.randn(800, 30, generator=generator)).clamp(0, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)).double()
    weights = list(model.parameters())
    for _ in range(300):
        slopes = torch.autograd.grad(functional.cross_entropy(model(x[:600].double()), y[:600]), weights)
        with torch.no_grad():
            for w, slope in zip(weights, slopes, strict=True):
                w -= 0.2 * slope
    return model.float(), x[600:], y[600:]


def linear(classes: int = 2, dimension: int = 5, seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(dimension, classes)
    with torch.no_grad():
        model.weight.copy_(torch.randn(classes, dimension, generator=generator))
        model.bias.copy_(torch.randn(classes, generator=generator) / 4)
    x = torch.randn(200, dimension, generator=generator)
    return model, x, model(x).argmax(1)


def least_radius(model: nn.Linear, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """The distance to the nearest of the planes z_i = z_y, in closed form: (z_y - z_i) / |w_y - w_i|_dual."""
    with torch.no_grad():
        z = model(x)
        order = {"l2": 2, "linf": 1}[norm]
        gaps = z.gather(1, y[:, None]) - z
        slopes = (model.weight[y][:, None] - model.weight[None]).norm(p=order, dim=2)
        return (gaps / slopes).nan_to_num(math.inf).masked_fill(slopes == 0, math.inf).amin(1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("attack", "classes"), [
    *((attack, 2) for attack in GRADIENT), (SHORT, 3), (TargetedAPGD(steps=10), 3), (TargetedAPGD(steps=10), 6),
], ids=repr)
def test_linear_models_match_the_closed_form(attack: Attack, norm: str, classes: int) -> None:
    model, x, y = linear(classes)
    distance = least_radius(model, x, y, norm)
    radii = torch.tensor([0.2, 0.5, 1.0])
    away = ((distance[:, None] / radii - 1).abs() > 0.02).all(1)
    reading = robust(model, x, y, None, norm=norm, eps=tuple(radii.tolist()), attack=attack)
    correct = torch.as_tensor(reading.arrays[f"correct under {norm} attack"])
    assert away.sum() > 150
    assert torch.equal(correct[:, away], (distance[None] > radii[:, None])[:, away])


@pytest.mark.parametrize("norm", NORMS)
def test_a_curved_problem_matches_exhaustive_search(norm: str) -> None:
    class Rings(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            value = torch.sin(5 * x[:, 0] + 0.7) * torch.cos(4 * x[:, 1]) + 0.3 * x[:, 0]
            return torch.stack([value, -value], 1)

    model, eps = Rings(), 0.15
    x = torch.rand(100, 2, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    ticks = torch.linspace(-1, 1, 61)
    grid = eps * torch.cartesian_prod(ticks, ticks)
    grid = grid[grid.norm(dim=1) <= eps] if norm == "l2" else grid
    points = x[:, None] + grid
    allowed = ((points >= 0) & (points <= 1)).all(2)
    wrong = (model(points.flatten(0, 1)).argmax(1).view(len(x), -1) != y[:, None]) & allowed
    truth = ~wrong.any(1)
    reading = robust(model, x, y, norm=norm, eps=eps, attack=APGD(steps=30, restarts=12))
    correct = torch.as_tensor(reading.arrays[f"correct under {norm} attack"][0])
    assert 20 < int(truth.sum()) < 80
    assert not (correct & ~truth).any()  # the attack finds all that the grid finds
    assert int((~correct & truth).sum()) <= 1  # and hardly more: only slivers between the grid's points


@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_results_lie_in_ball_and_bounds(trained, attack: Attack, norm: str, bounds) -> None:
    model, x, y = trained
    eps = torch.linspace(0.01, 0.5, len(x))
    before = x.clone()
    found = attack.run(model, x, y, eps, norm, bounds, torch.Generator().manual_seed(0))
    assert (ball_of(norm).size(found - x) <= eps + 1e-6).all()
    assert bounds is None or (bounds[0] <= found.min() and found.max() <= bounds[1])
    assert torch.equal(x, before)
    wrong = model(x).argmax(1) != y
    assert torch.equal(found[wrong], x[wrong])
    assert (model(found).argmax(1) != y).float().mean() > wrong.float().mean() + 0.1


class Viewing(nn.Module):
    """A network that calls `view`, which images in channels-last format do not bear."""

    def __init__(self, convolution: nn.Conv2d, last: nn.Linear) -> None:
        super().__init__()
        self.convolution, self.last = convolution, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.convolution(x).relu().view(len(x), -1))


@pytest.mark.parametrize("norm", NORMS)
def test_images_in_batches_and_either_memory_format(norm: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        viewing = Viewing(nn.Conv2d(2, 4, 3), nn.Linear(4 * 36, 3))
    model = nn.Sequential(viewing.convolution, nn.ReLU(), nn.Flatten(), viewing.last)
    x = torch.rand(300, 2, 8, 8, generator=torch.Generator().manual_seed(0))  # three batches of at most 128
    y = model(x).argmax(1)
    for attack in (PGD(5), SHORT):
        found = attack.run(model, x, y, 0.1, norm)
        assert found.is_contiguous()
        assert (ball_of(norm).size(found - x) <= 0.1 + 1e-6).all()
        assert torch.equal(found, attack.run(model, x, y, 0.1, norm))
        other = attack.run(viewing, x, y, 0.1, norm)
        fooled, also = ((m(f).argmax(1) != y).float().mean() for m, f in ((model, found), (viewing, other)))
        assert abs(fooled - also) <= 0.01


@pytest.mark.parametrize("norm", NORMS)
def test_the_balls(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    centre, eps = torch.rand(4000, 3, generator=generator), torch.full((4000, 1), 0.4)
    ball = ball_of(norm)(centre, eps)
    inside = ball.sample(generator)
    assert torch.allclose(ball.project(inside), inside, atol=1e-7)
    # uniform in the ball: the share within radius t is t^d
    sizes = ball.size(inside - centre) / 0.4
    for t in (0.5, 0.8):
        assert abs((sizes < t).double().mean() - t**3) < 0.03
    # steepest ascent: no other unit vector gains more, and the gain is the dual norm
    gradient = torch.randn(100, 3, generator=generator) * 1e-30
    u = ball.steepest(gradient)
    assert torch.allclose(ball.size(u), torch.ones(100), atol=1e-5)
    dual = {"l2": 2, "linf": 1}[norm]
    gain = (gradient.double() * u).sum(1)
    assert torch.allclose(gain, gradient.double().norm(p=dual, dim=1), rtol=1e-5, atol=0)
    assert not ball.steepest(torch.zeros(2, 3)).any()


class Behind(nn.Module):
    """A model that is asked as any other is, whatever it is made of."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


STACKS = {
    "MLP": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(),
                                 nn.Linear(7, 4)),
    "nested, idle, in place": lambda: nn.Sequential(nn.Flatten(), nn.Sequential(
        nn.Dropout(0.5), nn.Linear(12, 9), nn.ReLU(inplace=True)), nn.Identity(), nn.Linear(9, 4, bias=False)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Linear(8, 4)),
    "a layer twice": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 12), *[nn.Linear(12, 12), nn.ReLU()] * 2,
                                           nn.Linear(12, 4)),
}


def made(make, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval().requires_grad_(False)


@pytest.mark.parametrize("kind", STACKS)
def test_a_stack_has_the_bits_of_autograd(kind: str) -> None:
    model = made(STACKS[kind])
    x = torch.randn(50, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    y, before = torch.arange(50) % 4, x.clone()
    stack = dense(model, x[:8])
    assert stack is not None
    for loss in (CrossEntropy(), MarginLoss(), DLR()):
        theirs = by_graph(model, x, lambda z, loss=loss: loss(z, y))
        ours = stack.graded(x, lambda z, loss=loss: loss(z, y))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(x, before)
    broken = torch.full_like(x, math.inf)
    assert torch.isfinite(stack.graded(broken, lambda z: CrossEntropy()(z, y))[2]).all()


@pytest.mark.parametrize("norm", NORMS)
def test_attacks_of_a_stack_find_what_they_find_by_autograd(trained, norm: str) -> None:
    model, x, y = trained
    for attack in (PGD(10), BIM(5), APGD(steps=20)):
        ours, theirs = (attack.run(each, x, y, RADIUS[norm], norm) for each in (model, Behind(model)))
        assert torch.equal(ours, theirs)
        alone = robust(model, x, y, norm=norm, eps=RADIUS[norm], attack=attack)
        name = f"correct under {norm} attack"
        assert np.array_equal(alone.arrays[name], robust(Behind(model), x, y, norm=norm, eps=RADIUS[norm],
                                                         attack=attack).arrays[name])
        found = attack.run(model, x, y, RADIUS[norm], norm, generator=torch.Generator().manual_seed(0))
        assert np.array_equal(alone.arrays[name][0], (model(found).argmax(1) == y).numpy())


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked() -> nn.Module:
    model = STACKS["MLP"]()
    model[1].register_forward_hook(lambda module, inputs, output: output + 1)
    return model


@pytest.mark.parametrize("make", [
    hooked, lambda: nn.Sequential(nn.Flatten(), Doubled(12, 4)), lambda: nn.Sequential(nn.Linear(2, 4)),
    lambda: nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(12, 4)),
    lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Tanh()),
    lambda: nn.Sequential(nn.Flatten(2), nn.Linear(4, 4)), lambda: nn.Sequential(), lambda: Behind(STACKS["MLP"]()),
])
def test_what_is_no_stack_is_not_taken_for_one(make) -> None:
    assert dense(made(make), torch.rand(3, 3, 2, 2)) is None


def test_losses_against_their_formulas() -> None:
    z = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    y = torch.arange(50) % 6
    goals = (y + 1) % 6
    losses = MarginLoss()(z, y), DLR()(z, y), TargetedDLR()(z, y, goals)
    margin, ratio, targeted = (loss.detach() for loss in losses)
    for i in range(50):
        row, label, goal = z[i].tolist(), int(y[i]), int(goals[i])
        top = sorted(row, reverse=True)
        rest = max(v for k, v in enumerate(row) if k != label)
        assert margin[i] == pytest.approx(rest - row[label])
        assert ratio[i] == pytest.approx((rest - row[label]) / (top[0] - top[2]))
        expected = (row[goal] - row[label]) / (top[0] - (top[2] + top[3]) / 2)
        assert targeted[i] == pytest.approx(expected)
    # the log-odds are a monotone function of cross-entropy, and their gradients are parallel
    odds, entropy = CrossEntropy()(z, y), functional.cross_entropy(z, y, reduction="none")
    assert torch.allclose(functional.softplus(odds), entropy)
    ours, = torch.autograd.grad(odds.sum(), z, retain_graph=True)
    theirs, = torch.autograd.grad(entropy.sum(), z)
    assert torch.allclose(functional.cosine_similarity(ours, theirs), torch.ones(50, dtype=torch.float64))


def test_losses_with_few_classes_and_tied_logits() -> None:
    z, y = torch.tensor([[2.0, 1.0]]), torch.tensor([0])
    assert DLR()(z, y).item() == TargetedDLR()(z, y, 1 - y).item() == -1.0
    assert TargetedDLR()(torch.tensor([[2.0, 1.0, 0.0]]), y, 1 - y).item() == -1.0
    tied = torch.zeros(1, 5, requires_grad=True)
    for value in (DLR()(tied, y), TargetedDLR()(tied, y, y + 1)):
        gradient, = torch.autograd.grad(value.sum(), tied)
        assert value.item() == 0.0
        assert torch.isfinite(gradient).all()


def test_checkpoints_are_those_of_the_paper() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(50) == [11, 21, 29, 35, 40, 44, 47, 50]


@pytest.mark.parametrize("norm", NORMS)
def test_accuracy_falls_with_the_radius_and_matches_single_radii(trained, norm: str) -> None:
    radii = tuple(k * RADIUS[norm] / 4 for k in range(1, 9))
    settings = {"norm": norm, "attack": PGD(20)}
    reading = robust(*trained, eps=radii[::-1], **settings)
    correct = reading.arrays[f"correct under {norm} attack"]
    curve = list(reading.values[f"accuracy under {norm} attack"].values())
    assert curve == sorted(curve, reverse=True)
    assert len(set(curve)) > 4
    assert (correct[:-1] >= correct[1:]).all()
    for k, eps in enumerate(radii):
        alone = robust(*trained, eps=eps, **settings).arrays[f"correct under {norm} attack"][0]
        # The starts are random, so each search finds a few that the other misses; together they miss no more.
        assert (~alone & correct[k]).mean() <= 0.02
        assert correct[k].mean() <= alone.mean() + 0.01 + 1e-9
    fooled_by = reading.arrays[f"fooled by {norm} radius"]
    model, x, y = trained
    assert np.array_equal(fooled_by == 0, (model(x).argmax(1) != y).numpy())
    assert np.array_equal(fooled_by[None] > np.array(radii)[:, None], correct)
    low, high = reading.arrays[f"interval under {norm} attack"].T
    assert ((low < curve) & (curve < high)).all()


def test_eight_radii_cost_less_than_three_times_one() -> None:
    model, x, y = linear(3, 20)

    class Count(TorchFunctionMode):
        images = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is nn.functional.linear:  # a backward pass costs two forward ones
                self.images += len(args[0]) * (3 if torch.is_grad_enabled() else 1)
            return func(*args, **(kwargs or {}))

    costs = []
    for radii in ((0.2,), tuple(0.05 * k for k in range(1, 9))):
        with Count() as count:
            robust(model, x, y, None, norm="l2", eps=radii)
        costs.append(count.images)
    assert 0 < costs[1] < 3 * costs[0]


def test_model_is_left_as_it_was(trained) -> None:
    model = nn.Sequential(nn.Dropout(0.5), trained[0])
    model.train()
    model[1][2].eval()
    model[1][0].weight.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    weights = [p.clone() for p in model.parameters()]
    try:
        found = PGD(3).run(model, *trained[1:], 0.1, "linf")
        assert not found.requires_grad
        assert [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
        assert all(p.grad is None for p in model.parameters())
        assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
        # dropout was off: the same seed gives the same result
        assert torch.equal(found, PGD(3).run(model, *trained[1:], 0.1, "linf"))
    finally:
        model[1][0].weight.requires_grad_(True)


class Quantised(nn.Module):
    """A model whose gradient is zero: it rounds its input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x * 16).round() / 16)


class Saturated(Quantised):
    """A model that returns probabilities so sure that float32 rounds them to 0 and 1."""

    def forward(self, x: Tensor) -> Tensor:
        return (1000 * self.model(x)).softmax(1)


@pytest.mark.parametrize("masked", [Quantised, Saturated])
@pytest.mark.parametrize("norm", NORMS)
def test_checks_catch_masked_gradients(trained, masked: type[Quantised], norm: str) -> None:
    model, x, y = trained
    probe = RobustAccuracy(norm=norm, eps=(RADIUS[norm] / 2, RADIUS[norm]), checked=50)
    open_, shut = (probe(Snapshot(m, task(m, x, y))) for m in (model, masked(model)))
    assert [open_.values[f"{norm} attack: {name}"] for name in CHECKS] == [1.0] * 4
    assert probe.complaints(open_) == ()
    assert shut.values[f"{norm} attack: loss rises with steps"] == 0.0
    assert shut.values[f"{norm} attack: random search finds no more"] == 0.0
    assert any("gradient is zero" in sentence for sentence in probe.complaints(shut))
    assert set(shut.values) == {m.name for m in probe.metrics}


def test_checks_catch_an_attack_that_is_too_short(trained) -> None:
    probe = RobustAccuracy(norm="l2", eps=0.25, attack=FGSM(), checked=200)
    model, x, y = trained
    curved = nn.Sequential(Waves(), model)
    reading = probe(Snapshot(curved, task(curved, x, y)))
    assert reading.values["l2 attack: longer attack finds no more"] == 0.0
    assert "more steps" in probe.complaints(reading)[0]


class Waves(nn.Module):
    """A bumpy change of coordinates: one gradient step goes astray, many do not."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.05 * torch.sin(40 * x)


def test_scaled_logits_do_not_hide_the_gradient(trained) -> None:
    model, x, y = trained

    class Sure(Quantised):
        def forward(self, x: Tensor) -> Tensor:
            return 1e4 * self.model(x)

    plain, sure = (robust(m, x, y, eps=0.06, attack=PGD(20)) for m in (model, Sure(model)))
    a, b = (r.values["accuracy under linf attack"][0.06] for r in (plain, sure))
    assert abs(a - b) <= 1.0


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_matches_foolbox(trained, norm: str) -> None:
    foolbox = pytest.importorskip("foolbox")
    model, x, y = trained
    attacks = {"l2": foolbox.attacks.L2ProjectedGradientDescentAttack,
               "linf": foolbox.attacks.LinfProjectedGradientDescentAttack}
    theirs = attacks[norm](steps=20, rel_stepsize=2.5 / 20)
    radii = [RADIUS[norm] / 2, RADIUS[norm]]
    torch.manual_seed(0)
    _, _, fooled = theirs(foolbox.PyTorchModel(model.eval(), (0.0, 1.0), device="cpu"), x, y, epsilons=radii)
    ours = robust(model, x, y, norm=norm, eps=tuple(radii), attack=PGD(20)).arrays[f"correct under {norm} attack"]
    assert ((~fooled).numpy() != ours).mean() <= 0.01


@pytest.mark.parametrize("norm", NORMS)
def test_ensemble_matches_autoattack(trained, norm: str) -> None:
    pyautoattack = pytest.importorskip("pyautoattack")
    model, x, y = trained
    x, y = x[:100], y[:100]
    flat = nn.Sequential(nn.Flatten(), model)
    theirs = pyautoattack.AutoAttack(flat, norm={"l2": "L2", "linf": "Linf"}[norm], eps=RADIUS[norm], seed=0,
                                     version="custom", attacks=["apgd-ce", "apgd-t"])
    theirs.apgd_targeted.n_target_classes = 4
    found, _ = theirs.run_standard_evaluation(x.view(-1, 1, 1, 30), y)
    expected = (flat(found).argmax(1) == y).numpy()
    reading = robust(model, x, y, norm=norm, eps=RADIUS[norm], attack=Ensemble())
    ours = reading.arrays[f"correct under {norm} attack"][0]
    assert not (ours & ~expected).any()  # whatever AutoAttack fools, ours does
    assert (ours != expected).sum() <= 1


def test_results_do_not_depend_on_radii_being_listed_in_order(trained) -> None:
    ascending, descending = (robust(*trained, eps=radii).values for radii in ((0.03, 0.06), (0.06, 0.03)))
    assert ascending == descending


def test_identity_of_attacks_is_their_repr() -> None:
    for attack in ATTACKS:
        assert eval(repr(attack)) == attack
        assert replace(attack) == attack
    probe = RobustAccuracy(norm="l2", eps=(0.1, 0.2), attack=APGD(DLR(), steps=20))
    assert eval(repr(probe)) == probe
    assert repr(PGD()) == "PGD()"


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda: RobustAccuracy(norm="l1"), "must be l2 or linf; got 'l1'"),
    (lambda: RobustAccuracy(eps=0.0), "eps must be a radius above 0"),
    (lambda: RobustAccuracy(eps=(0.1, 0.1)), "tuple of different ones"),
    (lambda: RobustAccuracy(attack="pgd"), "attack must be an attack such as"),
    (lambda: PGD(steps=0), "PGD: steps must be a whole number of at least 1; got 0"),
    (lambda: APGD(restarts=1.5), "APGD: restarts must be a whole number"),
    (lambda: Ensemble(()), "Ensemble: attacks must be a tuple of attacks"),
])
def test_settings_that_make_no_sense(make, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        make()


def test_models_and_labels_that_do_not_fit() -> None:
    x, y = torch.rand(8, 3), torch.arange(8) % 4
    with pytest.raises(UserError, match=r"labels must be class numbers from 0 to 2, .* they reach from 0 to 3"):
        PGD().run(nn.Linear(3, 3), x, y, 0.1)
    with pytest.raises(UserError, match=r"one logit a class, .* returns shape"):
        PGD().run(nn.Linear(3, 1), x, y, 0.1)
    with pytest.raises(UserError, match="labels of shape"):
        PGD().run(nn.Linear(3, 4), x, y.float(), 0.1)
    with pytest.raises(UserError, match="radius of an attack must be"):
        PGD().run(nn.Linear(3, 4), x, y, -0.1)
    with pytest.raises(UserError, match="labels must be from 0 to 2"):
        robust(nn.Linear(3, 3), x, y)
    with pytest.raises(UserError, match="must lie in the task's bounds"):
        robust(nn.Linear(3, 4), 2 * x, y)


def test_a_model_wrong_on_everything_has_no_accuracy_and_no_complaints() -> None:
    model, x, y = linear(2)
    probe = RobustAccuracy(eps=(0.1, 0.2))
    reading = probe(Snapshot(model, task(model, x, 1 - y, None)))
    assert set(reading.values["accuracy under linf attack"].values()) == {0.0}
    assert probe.complaints(reading) == ()


def test_per_example_and_take() -> None:
    ball = Linf(torch.zeros(3, 2, 2), torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1))
    part = ball.take(torch.tensor([False, True, True]))
    assert part.eps.flatten().tolist() == [2.0, 3.0]
    assert part.project(torch.full((2, 2, 2), 9.0)).amax((1, 2)).tolist() == [2.0, 3.0]
    assert per_example(torch.ones(3), torch.zeros(3, 4, 5)).shape == (3, 1, 1)
    assert L2(torch.zeros(1, 2), torch.ones(1, 1), (-0.1, 1)).project(torch.tensor([[-3.0, 4.0]]))[0, 0] == -0.1
