"""Gradient noise against per-sample gradients and dense Hessians in float64, enumeration and closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import stdtrit
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn import functional

from optscope.errors import UserError
from optscope.optim import SGD, Adam, Scheduled, StepDecay
from optscope.probes.gradient_noise import DescentSplit, GradientNoise, effective_rate, shuffled_parts
from optscope.probes.jackknife import curvatures, pseudo_values, ratio_interval, signal_and_noise
from optscope.probes.probe import Subject, trained_names
from optscope.probes.still import frozen
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task


def example(n, model=None, rule=None, seed=0, loss=functional.cross_entropy):
    """Return a snapshot of a small float64 classifier over n examples."""
    torch.manual_seed(seed)
    x, y = torch.rand(n, 4, dtype=torch.float64), torch.randint(3, (n,))
    model = model or nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
    task = Task.from_tensors(lambda: model, (x, y), (x, y), validation=(x, y), loss=loss)
    return Snapshot(model.double(), task, seed, rule=rule)


def some_ignored(seed):
    """Return a snapshot of labels in several places, of which the last examples miss most."""
    torch.manual_seed(0)
    x, y = torch.rand(60, 4, 5), torch.randint(3, (60, 5))
    y[50:, 1:] = -100
    task = Task.from_tensors(lambda: nn.Conv1d(4, 3, 1), (x, y), (x, y), validation=(x, y), kind="regression",
                             loss=functional.cross_entropy)
    return Snapshot(task.model(), task, seed)


def parts_of(probe, snapshot):
    """Return the parts that the probe sees, by the seed it is documented to use."""
    train = snapshot.task.data().train.first(probe.examples)
    generator = torch.Generator().manual_seed(snapshot.seed)
    with frozen(snapshot.model) as model:
        return shuffled_parts(Subject(model, train, generator, snapshot, trained_names(snapshot)), probe.parts)


def flat_loss(snapshot):
    """Return loss(w, x, y) of one example as a function of the flat weights, and those weights."""
    model = snapshot.model.eval()
    named = {name: p.detach() for name, p in model.named_parameters()}

    def loss(w, x, y):
        pieces = w.split([p.numel() for p in named.values()])
        weights = {name: piece.view(p.shape) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        return snapshot.task.loss(functional_call(model, weights, (x[None],)), y[None])

    return loss, torch.cat([p.flatten() for p in named.values()])


def per_sample(snapshot, x, y):
    """Return every example's own gradient `(n, P)`."""
    loss, w = flat_loss(snapshot)
    return vmap(grad(loss), (None, 0, 0))(w, x, y).numpy()


def per_sample_hessians(snapshot, x, y):
    loss, w = flat_loss(snapshot)
    return vmap(jacrev(grad(loss)), (None, 0, 0))(w, x, y).numpy()


def partitions(n, parts):
    """Yield every way to cut n examples into equal parts."""
    def cut(rest):
        if not rest:
            yield []
            return
        for others in itertools.combinations(rest[1:], n // parts - 1):
            part = (rest[0], *others)
            for tail in cut([i for i in rest if i not in part]):
                yield [part, *tail]

    return cut(list(range(n)))


def test_signal_and_noise_are_unbiased_over_all_partitions():
    data = example(8).task.data().train
    g = per_sample(example(8), data.inputs, data.targets)
    means = np.array([[g[list(part)].mean(0) for part in cut] for cut in partitions(8, 4)])
    assert len(means) == 105
    found = np.mean([signal_and_noise(m @ m.T) for m in means], axis=0) * [1, 2]
    noise = ((g - g.mean(0)) ** 2).sum() / 7
    assert found == pytest.approx([(g.mean(0) ** 2).sum() - noise / 8, noise], rel=1e-12)


def test_curvatures_are_unbiased_over_all_partitions():
    snapshot = example(8)
    data = snapshot.task.data().train
    g, H = (f(snapshot, data.inputs, data.targets) for f in (per_sample, per_sample_hessians))
    found = []
    for cut in partitions(8, 4):
        means, bends = (np.array([a[list(part)].mean(0) for part in cut]) for a in (g, H))
        T = np.einsum("ip,mpq,jq->mij", means, bends, means)
        for m in range(4):
            T[m, m, :] = T[m, :, m] = 0
        found.append(curvatures(T) * [1, 2])
    T = np.einsum("ip,mpq,jq->mij", g, H, g)
    curved = np.mean([T[m, i, j] for m, i, j in itertools.permutations(range(8), 3)])
    spread = np.mean([T[m, i, i] for m, i in itertools.permutations(range(8), 2)]) - curved
    assert np.mean(found, axis=0) == pytest.approx([curved, spread], rel=1e-12)


class Own(nn.Linear):
    """A layer that may do what no rule knows."""

    def forward(self, x):
        """Do what its parent does."""
        return super().forward(x)


@pytest.mark.parametrize("model", [
    nn.Sequential(nn.Linear(4, 3), nn.Tanh(), Own(3, 3)),
    nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 2, padding=1), nn.BatchNorm2d(2), nn.Dropout(),
                  nn.Flatten(), Own(18, 3)).to(memory_format=torch.channels_last).train(),
], ids=["mlp", "convolution with batch normalisation and dropout"])
def test_noise_of_the_parts_a_probe_sees(model):
    snapshot, probe = example(40, model, seed=3), GradientNoise(parts=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    reading = probe(snapshot)
    assert "over 5 parts of the examples, as no rule is known for the Own" in reading.silence
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    g = np.array([per_sample(snapshot, part.inputs, part.targets).mean(0) for part in parts_of(probe, snapshot)])
    noise = 8 * ((g - g.mean(0)) ** 2).sum() / 4
    square = (g.mean(0) ** 2).sum() - noise / 40
    assert reading.values == pytest.approx({"gradient square": square, "gradient noise": noise,
                                            "noise scale": noise / square if square > 0 else math.inf}, rel=1e-9)
    without = [np.delete(g, i, axis=0) for i in range(5)]
    noises = np.array([8 * ((h - h.mean(0)) ** 2).sum() / 3 for h in without])
    error = math.sqrt(4 / 5 * ((noises - noises.mean()) ** 2).sum())
    factor = math.exp(stdtrit(4, 0.975) * error / noise)
    assert reading.arrays["gradient noise interval"] == pytest.approx([noise / factor, noise * factor], rel=1e-9)


def test_split_of_the_parts_a_probe_sees():
    rule, probe = SGD(lr=0.1, momentum=0.5), DescentSplit(batch=16, parts=4)
    snapshot = example(20, rule=rule, seed=1)
    reading = probe(snapshot)
    cut = parts_of(probe, snapshot)
    g = np.array([per_sample(snapshot, b.inputs, b.targets).mean(0) for b in cut])
    H = np.array([per_sample_hessians(snapshot, b.inputs, b.targets).mean(0) for b in cut])
    triples, pairs = (list(itertools.permutations(range(4), r)) for r in (3, 2))
    square = np.mean([g[i] @ g[j] for i, j in pairs])
    curved = np.mean([g[i] @ H[m] @ g[j] for m, i, j in triples])
    spread = 5 * (np.mean([g[i] @ H[m] @ g[i] for m, i in pairs]) - curved)
    terms = {"descent": -0.2 * square, "curvature-induced": 0.02 * curved, "noise-induced": 0.02 / 16 * spread}
    assert reading.values == pytest.approx({"gradient curvature": curved, "noise curvature": spread, **terms,
                                            "expected loss change": sum(terms.values())}, rel=1e-9)
    for name, value in reading.values.items():
        low, high = reading.arrays[f"{name} interval"]
        assert low < value < high
    bare = probe(Snapshot(snapshot.model, snapshot.task, snapshot.seed, rule=Adam(lr=0.1))).values
    assert set(bare) == {"gradient curvature", "noise curvature"}
    assert bare == {name: reading.values[name] for name in bare}


def test_the_split_is_exact_on_a_quadratic():
    """Enumerate all batches of two from six examples of linear regression, drawn with replacement."""
    rng, eta = np.random.default_rng(0), 0.05
    x, y, w = rng.normal(size=(6, 3)), rng.normal(size=6), rng.normal(size=3)
    def loss(v):
        return ((x @ v - y) ** 2).mean()
    g = 2 * (x @ w - y)[:, None] * x
    change = np.mean([loss(w - eta * (g[i] + g[j]) / 2) for i in range(6) for j in range(6)]) - loss(w)
    G, H, S = g.mean(0), 2 * x.T @ x / 6, np.cov(g.T, bias=True)
    assert change == pytest.approx(-eta * G @ G + eta**2 / 2 * G @ H @ G + eta**2 / 4 * np.trace(H @ S), rel=1e-12)


def test_unbiased_with_honest_intervals_on_fresh_data():
    """Linear regression on Gaussian inputs, where everything is known; the squared mean gradient is biased there.

    With d = w - w*: G = 2d, H = 2I, and E|g|² = 4 ((P + 2) |d|² + P s²) for targets with noise s.
    """
    P, n, runs, s = 3, 32, 120, 0.5
    generator, d = torch.Generator().manual_seed(0), torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    square = 4 * float(d @ d)
    noise = 4 * ((P + 2) * float(d @ d) + P * s**2) - square
    truth = {"gradient square": square, "gradient noise": noise, "gradient curvature": 2 * square,
             "noise curvature": 2 * noise, "noise scale": noise / square,
             "expected loss change": -0.1 * square + 0.01 * square + 0.01 * noise / 8}
    model = nn.Linear(P, 1, bias=False).double()
    model.weight.data[0] = d
    found, covered, naive = {name: [] for name in truth}, dict.fromkeys(truth, 0), []
    for _ in range(runs):
        x = torch.randn(n, P, generator=generator, dtype=torch.float64)
        y = s * torch.randn(n, 1, generator=generator, dtype=torch.float64)
        task = Task.from_tensors(lambda: model, (x, y), (x, y), validation=(x, y), loss=functional.mse_loss,
                                 kind="regression", bounds=None)
        snapshot = Snapshot(model, task, rule=SGD(lr=0.1))
        naive.append(float((2 * (model(x) - y) * x).mean(0).square().sum().detach()))
        for reading in (GradientNoise()(snapshot), DescentSplit(batch=8, parts=4)(snapshot)):
            for name in truth.keys() & reading.values.keys():
                low, high = reading.arrays[f"{name} interval"]
                found[name].append(reading.values[name])
                covered[name] += low <= truth[name] <= high
    for name in truth.keys() - {"noise scale"}:
        error = np.std(found[name], ddof=1) / math.sqrt(runs)
        assert abs(np.mean(found[name]) - truth[name]) < 3.5 * error, name
        assert error < 0.12 * abs(truth[name]), name
    assert np.mean(naive) - square > 3.5 * np.std(naive, ddof=1) / math.sqrt(runs)
    assert {name: hits / runs for name, hits in covered.items() if not 0.85 <= hits / runs <= 0.995} == {}


def test_pseudo_values_of_a_mean_are_the_parts_and_of_the_noise_average_to_it():
    values = np.array([1.0, 4.0, 9.0, 16.0])
    assert pseudo_values(lambda v: np.array([v.mean()]), values)[:, 0] == pytest.approx(values)
    g = np.random.default_rng(0).normal(size=(6, 5))
    assert pseudo_values(signal_and_noise, g @ g.T).mean(0) == pytest.approx(signal_and_noise(g @ g.T))


@pytest.mark.parametrize("shift", [5.0, 0.0])
def test_bounds_of_a_ratio_are_where_the_t_test_turns(shift):
    rng = np.random.default_rng(1)
    top, bottom = 6 + rng.normal(size=8), shift + rng.normal(size=8)
    found = ratio_interval(top, bottom)

    def t(ratio):
        gaps = top - ratio * bottom
        return abs(gaps.mean()) / (gaps.std(ddof=1) / math.sqrt(8)) / stdtrit(7, 0.975)

    assert t(found.low) == pytest.approx(1)
    assert t(found.low * 1.001) < 1 < t(found.low / 1.001)
    if shift:
        assert t(found.high) == pytest.approx(1)
        assert found.low < found.estimate < found.high
    else:
        assert found.high == math.inf
        assert t(1e9) < 1


def test_a_gradient_lost_in_noise_has_no_finite_scale():
    found = ratio_interval(np.array([1.0, 1.1, 0.9]), np.array([-0.1, 0.2, -0.3]))
    assert found.estimate == found.high == math.inf
    assert 0 < found.low < math.inf


def test_gradients_without_noise_have_no_noise():
    x, y = torch.ones(12, 4, dtype=torch.float64), torch.zeros(12, dtype=torch.long)
    model = nn.Linear(4, 3).double()
    reading = GradientNoise(parts=3)(Snapshot(model, Task.from_tensors(lambda: model, (x, y), (x, y))))
    for value in (reading.values["gradient noise"], *reading.arrays["gradient noise interval"]):
        assert value == pytest.approx(0, abs=1e-12)
    assert reading.values["gradient square"] > 0.1


def test_effective_rate():
    assert effective_rate(SGD(lr=0.2, momentum=0.75)) == pytest.approx(0.8)
    scheduled = Scheduled(SGD(lr=0.2), StepDecay(at=(0.5,)), 10)
    assert [effective_rate(scheduled, step) for step in (4, 5, 100)] == pytest.approx([0.2, 0.02, 0.02])
    assert effective_rate(None) is effective_rate(Adam(lr=0.1)) is effective_rate(SGD(lr=(0.1, 0.2))) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_16_bits_are_measured(dtype):
    for seed in range(5):
        torch.manual_seed(seed)
        x, y = torch.rand(160, 4, dtype=dtype), torch.randint(3, (160,))
        model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
        task = Task.from_tensors(lambda model=model: model, (x, y), (x, y), validation=(x, y))
        found = GradientNoise()(Snapshot(model.to(dtype), task, seed)).values
        wide = Task.from_tensors(lambda model=model: model, *[(x.double(), y)] * 2, validation=(x.double(), y))
        exact = GradientNoise()(Snapshot(model.double(), wide, seed)).values
        assert found["gradient noise"] == pytest.approx(exact["gradient noise"], rel=0.05)
        assert found["gradient square"] == pytest.approx(exact["gradient square"], rel=0.1)


def test_what_a_user_can_mend():
    with pytest.raises(UserError, match="parts must be a whole number >= 3; got 2"):
        GradientNoise(parts=2)
    with pytest.raises(UserError, match="batch must be a whole number >= 1; got 0"):
        DescentSplit(batch=0)
    with pytest.raises(UserError, match="8 parts of the examples; got 5 examples"):
        DescentSplit(examples=5)(example(20))
    with pytest.raises(UserError, match="three examples or more; got 2: raise examples"):
        GradientNoise(examples=2)(example(20))
    with pytest.raises(UserError, match="the loss must be a mean over the examples"):
        GradientNoise()(example(20, loss=nn.CrossEntropyLoss(reduction="sum")))
    weights = torch.tensor([1.0, 5.0, 0.1]).double()
    with pytest.raises(UserError, match="the noise of a gradient needs a loss that is a mean over examples"):
        GradientNoise(4)(example(20, loss=nn.CrossEntropyLoss(weight=weights)))
    silent = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    nn.init.zeros_(silent[1].weight)
    nn.init.zeros_(silent[1].bias)  # it says the same of all, so that weighted losses are the same everywhere
    with pytest.raises(UserError, match="the noise of a gradient needs a loss that is a mean over examples"):
        GradientNoise(4)(example(20, model=silent, loss=nn.CrossEntropyLoss(weight=weights)))
    for seed in range(6):  # which parts they fall into
        with pytest.raises(UserError, match="the noise of a gradient needs a loss that is a mean over examples"):
            GradientNoise()(some_ignored(seed))
    with pytest.raises(UserError, match="has none"):
        GradientNoise()(example(20, model=nn.Flatten()))
