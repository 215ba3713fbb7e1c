"""Operator norms against unrolled matrices, products against hand-made ones, bounds against the truth."""

import itertools
import math
import threading

import numpy as np
import pytest
import torch
from torch import nn

from optscope.errors import UserError
from optscope.probes import operator_norm as module_under_test
from optscope.probes.layers import SLOPES
from optscope.probes.layers import constant as constant_of
from optscope.probes.lipschitz import Lipschitz, steepest_slope
from optscope.probes.lipschitz_product import kernel_norm, pieces, product, runs
from optscope.probes.operator_norm import largest_eigenvalue, operator_norm
from optscope.probes.probe import Snapshot
from optscope.tasks.models import MLP, Residual, ResNet
from optscope.tasks.task import Task


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ready(model):
    return model.eval().requires_grad_(False)


def unrolled(conv, height, width):
    """Write a convolution out as a matrix, entry by entry, from its definition."""
    weight = conv.weight.detach().double().numpy()
    out, per_group, kh, kw = weight.shape
    (sh, sw), (ph, pw), (dh, dw) = conv.stride, conv.padding, conv.dilation
    rows = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    columns = (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    A = np.zeros((out, rows, columns, conv.in_channels, height, width))
    for o, r, c, i, a, b in itertools.product(*map(range, (out, rows, columns, per_group, kh, kw))):
        y, x = r * sh - ph + a * dh, c * sw - pw + b * dw
        if 0 <= y < height and 0 <= x < width:
            A[o, r, c, o // (out // conv.groups) * per_group + i, y, x] += weight[o, i, a, b]
    return A.reshape(out * rows * columns, -1)


CONVOLUTIONS = [
    {"padding": 1},
    {"padding": 0},
    {"padding": 2, "stride": 2},
    {"padding": (0, 2), "stride": (2, 1)},
    {"padding": 2, "dilation": 2},
    {"padding": 1, "groups": 2},
    {"padding": 1, "stride": 3, "groups": 2, "dilation": (1, 2)},
]


@pytest.mark.parametrize("dense", [0, 10**6], ids=["lanczos", "dense"])
@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_convolution_norm_is_that_of_the_unrolled_matrix(settings, dense, monkeypatch):
    monkeypatch.setattr(module_under_test, "DENSE", dense)
    torch.manual_seed(1)
    conv = nn.Conv2d(2, 4, (3, 2), **settings)
    truth = np.linalg.norm(unrolled(conv, 8, 7), 2)
    norm = operator_norm(conv, (2, 8, 7), generator())
    assert norm.lower <= truth * (1 + 1e-10)
    assert truth <= norm.upper * (1 + 1e-10)
    assert norm.upper / norm.lower <= 1 + 1.0001e-4


@pytest.mark.parametrize("n", [5, 24])
def test_all_ones_kernel_has_its_closed_form_and_tends_to_9(n, monkeypatch):
    monkeypatch.setattr(module_under_test, "DENSE", 0)
    conv = nn.Conv2d(1, 1, 3, padding=1)
    nn.init.ones_(conv.weight)
    truth = (1 + 2 * math.cos(math.pi / (n + 1))) ** 2  # two tridiagonal Toeplitz matrices
    norm = operator_norm(conv, (1, n, n), generator())
    assert norm.lower == pytest.approx(truth, rel=1e-6)
    assert truth <= norm.upper < 9 + 1e-3
    run = next(runs(pieces(conv, torch.zeros(1, 1, n, n))[0]))
    assert kernel_norm(run, taps=False) == pytest.approx(3)
    assert kernel_norm(run, taps=True) == pytest.approx(9)


def test_batch_norm_and_bias_are_folded():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
    norm.running_var.copy_(torch.tensor([0.1, 1.0, 4.0]))
    norm.running_mean.fill_(7.0)
    nn.init.normal_(norm.weight)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double().numpy()
    truth = np.linalg.norm(np.repeat(scale, 36)[:, None] * unrolled(conv, 6, 6), 2)
    found = operator_norm(nn.Sequential(conv, norm), (2, 6, 6), generator())
    assert found.lower == pytest.approx(truth, rel=1e-6)
    with torch.no_grad():
        rows = torch.tensor(scale).unsqueeze(1) * conv.weight.double().flatten(1)
    run = next(runs(pieces(ready(nn.Sequential(conv, norm)), torch.zeros(1, 2, 6, 6))[0]))
    assert kernel_norm(run, taps=False) == pytest.approx(float(torch.linalg.matrix_norm(rows, 2)))
    alone = next(runs(pieces(ready(norm), torch.zeros(1, 3, 6, 6))[0]))
    assert kernel_norm(alone, taps=True) == pytest.approx(np.abs(scale).max())


@pytest.mark.parametrize("spectrum", [
    np.linspace(0, 1, 400),  # no gap
    np.r_[np.linspace(0, 1, 399), 1.001],  # a top value that residuals miss for long
    np.r_[np.zeros(300), np.full(100, 2.0)],  # repeated
    1 / np.arange(1, 401) ** 2,
], ids=["uniform", "outlier", "repeated", "decaying"])
def test_the_certificate_is_never_below_the_largest_eigenvalue(spectrum):
    diagonal = torch.tensor(spectrum)
    for seed in range(10):
        start = torch.randn(len(diagonal), generator=generator(seed), dtype=torch.float64)
        value, bound = largest_eigenvalue(lambda v: diagonal * v, start, tolerance=2e-4)
        assert value <= spectrum.max() * (1 + 1e-12)
        assert spectrum.max() <= bound <= value * (1 + 2.001e-4)


def test_zero_maps_have_norm_zero(monkeypatch):
    monkeypatch.setattr(module_under_test, "DENSE", 0)
    conv = nn.Conv2d(1, 2, 3)
    nn.init.zeros_(conv.weight)
    assert operator_norm(conv, (1, 5, 5), generator()) == module_under_test.NormBounds(0, 0)


def bounds_of(model, x, climb=40, bounds=(0.0, 1.0)):
    task = Task.from_tensors(lambda: model, (x, torch.zeros(len(x)).long()), (x, torch.zeros(len(x)).long()),
                             bounds=bounds)
    reading = Lipschitz(climb=climb, examples=None)(Snapshot(model, task))
    return {name: 10**value for name, value in reading.values.items()}, reading.arrays


@pytest.mark.parametrize("seed", range(4))
def test_the_truth_of_a_small_relu_network_lies_between(seed):
    """With more inputs than hidden units every activation pattern is met, so the truth can be listed."""
    torch.manual_seed(seed)
    first, second = nn.Linear(5, 4), nn.Linear(4, 3)
    W1, W2 = first.weight.detach().double(), second.weight.detach().double()
    truth = max(float(torch.linalg.matrix_norm(W2 @ torch.diag(torch.tensor(on)).double() @ W1, 2))
                for on in itertools.product([0, 1], repeat=4))
    found, _ = bounds_of(nn.Sequential(first, nn.ReLU(), second), 3 * torch.randn(60, 5), bounds=None)
    assert found["Lipschitz lower bound"] <= truth * (1 + 1e-9)
    assert found["Lipschitz lower bound"] >= truth * 0.99
    assert truth <= found["Lipschitz upper bound"]


def small_network():
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2),
        Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)),
                 nn.Conv2d(4, 4, 1)),
        nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3))
    model.train()
    for _ in range(20):
        model(torch.rand(16, 2, 7, 7))
    return model


def test_lower_is_at_least_every_dense_jacobian_and_at_most_upper():
    model, x = small_network(), torch.rand(12, 2, 7, 7)
    dense = ready(small_network())
    steepest = max(float(torch.linalg.matrix_norm(
        torch.func.jacrev(dense)(one.unsqueeze(0)).reshape(3, -1).double(), 2)) for one in x)
    still, _ = bounds_of(model, x, climb=0)
    assert still["Lipschitz lower bound"] == pytest.approx(steepest, rel=5e-3)
    assert still["Lipschitz lower bound"] <= steepest * (1 + 1e-5)
    climbed, _ = bounds_of(model, x)
    assert climbed["Lipschitz lower bound"] > still["Lipschitz lower bound"] * 1.01
    assert climbed["Lipschitz lower bound"] <= climbed["Lipschitz upper bound"] <= climbed["sqrt(kh kw) bound"]


def test_products_are_those_made_by_hand():
    model = ready(small_network())
    stem, bn, block, linear = model[0], model[1], model[4], model[8]
    scale = (bn.weight / (bn.running_var + bn.eps).sqrt()).double()

    def matrix(conv, n):
        return unrolled(conv, n, n)

    def reshaped(layer):
        return layer.weight.double().flatten(1)

    def spectral(matrix):
        return float(np.linalg.norm(np.asarray(matrix), 2))

    overlap = 2.0  # a 3x3 window moved by 2 covers a pixel in at most 2 x 2 windows
    pool = 1 / 2  # the mean of four numbers
    a, b, c = block.branch[0], block.branch[2], block.shortcut
    upper = (spectral(np.repeat(scale.numpy(), 49)[:, None] * matrix(stem, 7)) * overlap
             * (spectral(matrix(a, 3)) * spectral(matrix(b, 3)) + spectral(matrix(c, 3)))
             * pool * spectral(linear.weight))
    paper = (spectral(scale.unsqueeze(1) * reshaped(stem))
             * (spectral(reshaped(a)) * spectral(reshaped(b)) + spectral(reshaped(c)))
             * spectral(linear.weight))
    crude = (spectral(scale.unsqueeze(1) * reshaped(stem)) * 3 * overlap
             * (spectral(reshaped(a)) * spectral(reshaped(b)) * 9 + spectral(reshaped(c)))
             * spectral(linear.weight))
    found, arrays = bounds_of(model, torch.rand(3, 2, 7, 7), climb=0)
    assert found["Lipschitz upper bound"] == pytest.approx(upper, rel=1e-6)
    assert found["paper's spectral product"] == pytest.approx(paper, rel=1e-6)
    assert found["sqrt(kh kw) bound"] == pytest.approx(crude, rel=1e-6)
    assert arrays["operator norms"] == pytest.approx(np.array(
        [spectral(np.repeat(scale.numpy(), 49)[:, None] * matrix(stem, 7)), spectral(matrix(a, 3)),
         spectral(matrix(b, 3)), spectral(matrix(c, 3)), pool * spectral(linear.weight)]), rel=1e-6)
    assert arrays["kernel norms"] == pytest.approx(np.array(
        [spectral(m) for m in (scale.unsqueeze(1) * reshaped(stem), reshaped(a), reshaped(b), reshaped(c),
                               linear.weight)]), rel=1e-6)


def test_linear_layers_without_an_activation_between_them_are_one_map():
    torch.manual_seed(0)
    first, second = nn.Linear(20, 30), nn.Linear(30, 10)
    both = second.weight.detach().double() @ first.weight.detach().double()
    truth = float(torch.linalg.matrix_norm(both, 2))
    found, _ = bounds_of(nn.Sequential(nn.Flatten(), first, nn.Dropout(), second), torch.rand(8, 4, 5))
    assert found["Lipschitz upper bound"] == pytest.approx(truth, rel=1e-6)
    assert found["Lipschitz lower bound"] == pytest.approx(truth, rel=1e-6)
    assert found["Lipschitz lower bound"] <= truth * (1 + 1e-9)
    separate = math.prod(float(torch.linalg.matrix_norm(m.weight.detach(), 2)) for m in (first, second))
    assert found["paper's spectral product"] == pytest.approx(separate, rel=1e-5)


def test_a_derivative_at_a_kink_is_not_taken_for_a_slope():
    """x - relu(x) + relu(-x) is 0 everywhere, though autograd has slope 1 at 0."""
    inner, outer = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        inner.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        outer.weight.copy_(torch.tensor([[-1.0, 1.0]]))
    model = ready(Residual(nn.Sequential(inner, nn.ReLU(), outer), nn.Identity()))
    x = torch.zeros(1, 1)
    assert torch.func.jacrev(model)(x).item() == 1
    assert steepest_slope(model, x, None, generator(), climb=0) == 0


def test_a_constant_network_has_constant_zero():
    model = MLP((4, 3, 2))()
    for p in model.parameters():
        nn.init.zeros_(p)
    found, _ = bounds_of(model, torch.rand(5, 4))
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize(("pool", "constant"), [
    (nn.MaxPool2d(2), 1), (nn.MaxPool2d(3, 2, 1), 2), (nn.MaxPool2d(3, 1), 3), (nn.MaxPool1d(3, 1), 3**0.5),
    (nn.MaxPool2d((3, 2), (1, 2)), 3**0.5), (nn.MaxPool2d(2, 2, dilation=2), 2),
    (nn.MaxPool2d(2, 2, dilation=3), 1),
], ids=str)
def test_max_pool_constant_is_reached_by_a_spike(pool, constant):
    shape = (1, 1, 11) if isinstance(pool, nn.MaxPool1d) else (1, 1, 11, 11)
    (piece,), _ = pieces(pool, torch.zeros(shape))
    assert piece.constant == pytest.approx(constant)
    spikes = torch.eye(math.prod(shape)).view(-1, *shape[1:])
    assert float(pool(spikes).flatten(1).norm(dim=1).max()) == pytest.approx(constant)


def tuned(layer, weight):
    layer.weight.data.fill_(weight)
    return layer


ELEMENTWISE = [
    *(kind() for kind in SLOPES), nn.GELU("tanh"), nn.Hardtanh(-2, 0.5), nn.ELU(), nn.ELU(2.5), nn.ELU(-3.0),
    nn.CELU(0.3), nn.LeakyReLU(0.2), nn.LeakyReLU(-1.5), tuned(nn.PReLU(), -2.0), nn.PReLU(), nn.RReLU(1.0, 3.0),
    nn.Softplus(), nn.Softplus(-3.0), nn.Threshold(0.5, 0.5)]
SOFTMAXES = [nn.Softmax(1), nn.Softmin(-3), nn.LogSoftmax(1), nn.Softmax2d()]


@pytest.mark.parametrize("layer", ELEMENTWISE, ids=str)
def test_no_activation_is_steeper_than_its_constant_which_is_reached(layer):
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64).view(1, -1)
    slopes = (layer.eval().double().requires_grad_(False)(x).diff() / x.diff()).abs()
    assert constant_of(layer, x, "here") * 0.998 <= slopes.max() <= constant_of(layer, x, "here") * (1 + 1e-8)


@pytest.mark.parametrize("layer", SOFTMAXES, ids=str)
def test_the_constant_of_a_softmax_is_the_largest_singular_value_of_its_jacobians(layer):
    sure = torch.tensor([[40.0, 0, 0, 0], [40, 40, 0, 0], [-40, -40, 0, 0]], dtype=torch.float64)
    points = torch.cat([sure, 3 * torch.randn(300, 4, generator=generator(), dtype=torch.float64)])
    found = [torch.func.jacrev(layer)(x.view(1, 4, 1, 1)).reshape(4, 4) for x in points]
    steepest = float(torch.linalg.matrix_norm(torch.stack(found), 2).max())
    assert constant_of(layer, points[:1].view(1, 4, 1, 1), "here") == pytest.approx(steepest)


def test_every_activation_of_torch_has_a_constant_or_none_exists():
    without = {"GLU", "Hardshrink", "MultiheadAttention"}  # a product of inputs, a jump, products again
    named = {type(layer).__name__ for layer in (*ELEMENTWISE, *SOFTMAXES)}
    assert set(torch.nn.modules.activation.__all__) - without == named


@pytest.mark.parametrize("layer", [nn.Hardshrink(), nn.GLU(), nn.Softplus(threshold=1), nn.Threshold(0.0, 5.0),
                                   nn.CELU(-1.0), nn.Softmax(0), nn.LayerNorm(4), nn.GroupNorm(2, 4),
                                   nn.InstanceNorm1d(4)], ids=str)
def test_what_jumps_or_multiplies_its_inputs_has_no_constant(layer):
    with pytest.raises(UserError, match=f"no Lipschitz constant is known for the module {type(layer).__name__}"):
        pieces(ready(layer), torch.rand(1, 4, 4) if isinstance(layer, nn.InstanceNorm1d) else torch.rand(1, 4))


def test_a_module_used_twice_counts_twice():
    relu, linear = nn.ReLU(), nn.Linear(4, 4)
    with torch.no_grad():
        linear.weight.copy_(2 * torch.eye(4))
    found, _ = bounds_of(nn.Sequential(linear, relu, linear, relu), torch.rand(3, 4))
    assert found["Lipschitz upper bound"] == pytest.approx(4)
    assert found["Lipschitz lower bound"] == pytest.approx(4, rel=1e-6)


class Mystery(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(("model", "message"), [
    (nn.Sequential(nn.Linear(4, 4), Mystery()), r"Mystery at '1'"),
    (Residual(Mystery(), nn.Identity()), r"Mystery at '.*branch'"),
    (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), "padding_mode='circular'"),
    (nn.BatchNorm2d(1, track_running_stats=False), "track_running_stats=True"),
    (nn.AvgPool2d(3, padding=1), "average pooling"),
    (nn.AdaptiveAvgPool2d(3), "average pooling"),
], ids=["unknown", "inner", "padding", "statistics", "padded pool", "uneven pool"])
def test_what_cannot_be_bounded_is_named_and_keeps_its_lower_bound(model, message):
    x = torch.rand((3, 4) if isinstance(model, (nn.Sequential, Residual)) else (3, 1, 5, 5))
    found, arrays = bounds_of(model, x)
    with pytest.raises(UserError, match=message):
        pieces(ready(model), x[:1])
    steepest = steepest_slope(ready(model), x, (0.0, 1.0), generator())
    assert found == {"Lipschitz lower bound": pytest.approx(steepest)}
    assert not arrays


class Rectified(nn.Linear):
    def forward(self, x):
        return nn.functional.relu(super().forward(x))


class Steep(nn.ReLU):
    def forward(self, x):
        return 3 * super().forward(x)


class Twice(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + super().forward(-x)


class Restless(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train()


def patched(module):
    forward = module.forward
    module.forward = lambda x: 5 * forward(x)
    return module


def hooked(module, before=False):
    if before:
        module.register_forward_pre_hook(lambda module, x: 5 * x[0])
    else:
        module.register_forward_hook(lambda module, x, y: 5 * y)
    return module


@pytest.mark.parametrize(("layer", "words"), [
    (lambda: Rectified(4, 4), "Rectified at '1'"), (Steep, "Steep at '1'"),
    (lambda: Twice(nn.Linear(4, 4), nn.ReLU()), "Twice at '1'"),
    (lambda: patched(nn.Linear(4, 4)), "Linear at '1': it has a method 'forward' of its own"),
    (lambda: patched(nn.ReLU()), "ReLU at '1': it has a method"),
    (lambda: hooked(nn.Linear(4, 4)), "Linear at '1': it has hooks"),
    (lambda: hooked(nn.Sequential(nn.ReLU()), before=True), "Sequential at '1': it has hooks"),
    (lambda: Restless(4), "batch norms that use their running statistics; '1' does not"),
    (lambda: Residual(nn.Sequential(nn.Identity(), nn.ELU(3.0, inplace=True)), nn.Identity()),
     "residual block at '1': its branch writes into the input"),
], ids=lambda part: part if isinstance(part, str) else "")
def test_a_layer_is_known_by_what_it_computes(layer, words):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), layer())
    x = torch.rand(16, 4)
    labels = torch.zeros(16).long()
    reading = Lipschitz(climb=5)(Snapshot(model, Task.from_tensors(lambda: model, (x, labels), (x, labels))))
    assert set(reading.values) == {"Lipschitz lower bound"}
    assert words in reading.silence
    assert not reading.arrays


def test_a_slope_above_the_product_takes_the_product_back(monkeypatch):
    monkeypatch.setattr("optscope.probes.lipschitz.product", lambda *_, **__: 1e-3)
    found, arrays = bounds_of(nn.Linear(4, 3), torch.rand(6, 4))
    assert set(found) == {"Lipschitz lower bound"}
    assert not arrays


@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm, lambda layer: halved(layer)],
                         ids=["weight_norm", "spectral_norm", "prune"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_hooks_of_torchs_that_only_make_weights_leave_a_layer_what_it_is(wrap):
    torch.manual_seed(0)
    layer = wrap(nn.Linear(4, 3)).eval()
    plain, x = nn.Linear(4, 3), torch.rand(6, 4)
    found, _ = bounds_of(layer, x)
    layer(x)  # makes the weights that follow; a look has left the old ones
    plain.weight.data, plain.bias.data = layer.weight.detach().clone(), layer.bias.detach().clone()
    assert found == pytest.approx(bounds_of(plain, x)[0], rel=1e-6)


def halved(layer):
    return nn.utils.prune.l1_unstructured(layer, "weight", amount=0.5)


class Named(nn.Linear):
    """A layer that only begins otherwise."""

    def __init__(self):
        super().__init__(4, 4)


@pytest.mark.parametrize("layer", [Named(), nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
                                   nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))], ids=str)
def test_other_weights_are_the_same_layer(layer):
    layer.eval()
    truth = float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2))
    found, _ = bounds_of(nn.Sequential(layer, nn.ReLU()), torch.rand(6, 4))
    assert found["Lipschitz upper bound"] == pytest.approx(truth, rel=1e-6)
    assert found["paper's spectral product"] == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("first", [nn.Conv1d(5, 5, 1), nn.Linear(5, 5)], ids=str)
def test_a_batch_norm_over_time_scales_what_lies_on_its_axis(first):
    """Inputs are (5, 5): the axis of the channels, and that of the features, are equally long."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(5)
    norm.running_var.copy_(torch.tensor([0.01, 1.0, 4.0, 9.0, 16.0]))
    model = ready(nn.Sequential(first, norm))
    dense = torch.func.jacrev(ready(nn.Sequential(first, norm)).double())(torch.zeros(1, 5, 5).double())
    truth = float(torch.linalg.matrix_norm(dense.reshape(25, 25), 2))
    found, _ = bounds_of(model.float(), torch.rand(6, 5, 5))
    assert found["Lipschitz lower bound"] <= truth * (1 + 1e-6)
    assert found["Lipschitz upper bound"] == pytest.approx(truth, rel=1e-5)
    assert found["sqrt(kh kw) bound"] >= truth * (1 - 1e-6)


def test_a_model_that_cannot_be_copied_keeps_its_precision():
    model = nn.Linear(4, 3)
    model.lock = threading.Lock()
    before = model.weight.detach().clone()
    found, _ = bounds_of(model, torch.rand(6, 4))
    assert found["Lipschitz lower bound"] == pytest.approx(float(torch.linalg.matrix_norm(before, 2)), rel=1e-5)
    steepest_slope(ready(model), torch.rand(6, 4), None, generator(), climb=1)
    assert model.weight.dtype == torch.float32
    assert torch.equal(model.weight, before)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x):
        x = nn.functional.leaky_relu(self.first(x), 0.2)
        return self.last(nn.functional.relu(self.second(x)))


@pytest.mark.parametrize("activation", [
    nn.LeakyReLU(0.1), nn.PReLU(), nn.Hardtanh(-0.3, 0.3), nn.MaxPool2d(2), None], ids=str)
def test_the_lower_bound_is_never_below_plain_sampling(activation):
    for seed in range(2):
        torch.manual_seed(seed)
        if isinstance(activation, nn.MaxPool2d):
            model, shape = nn.Sequential(nn.Conv2d(1, 4, 3), activation, nn.Conv2d(4, 4, 2), nn.Flatten(),
                                         nn.Linear(16, 3)), (1, 8, 8)
        else:
            shape = (6,)
            model = Functional() if activation is None else nn.Sequential(
                nn.Linear(6, 12), activation, nn.Linear(12, 12), activation, nn.Linear(12, 3))
        inputs, points = torch.rand(64, *shape), torch.rand(2000, *shape, requires_grad=True)
        outputs = ready(model)(points)
        rows = [torch.autograd.grad(outputs[:, i].sum(), points, retain_graph=True)[0].flatten(1) for i in range(3)]
        plain = float(torch.linalg.matrix_norm(torch.stack(rows, 1), 2).max())
        assert steepest_slope(model, inputs, (0.0, 1.0), generator()) >= plain * (1 - 1e-6)


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x):
        return 2 * self.inner(x)


def test_a_forward_of_its_own_has_the_lower_bound():
    torch.manual_seed(0)
    model = Doubled()
    found, _ = bounds_of(model, torch.rand(6, 4))
    truth = 2 * float(torch.linalg.matrix_norm(model.inner.weight.detach().double(), 2))
    assert found == {"Lipschitz lower bound": pytest.approx(truth, rel=1e-6)}


def test_whole_numbers_have_no_slope():
    with pytest.raises(UserError, match=r"must be floating point to have a slope; got torch\.int64"):
        bounds_of(nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2)), torch.tensor([[0, 1], [2, 3]]),
                  bounds=None)


@pytest.mark.parametrize("settings", [{"climb": -1}, {"tolerance": 0.0}], ids=str)
def test_settings_are_checked(settings):
    with pytest.raises(UserError, match="climb must be"):
        Lipschitz(**settings)


def test_a_residual_network_with_batch_norm_is_walked_and_left_alone():
    torch.manual_seed(0)
    model = ResNet(8, channels=1, width=4)()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found, arrays = bounds_of(model, torch.rand(4, 1, 8, 8), climb=3)
    assert found["Lipschitz lower bound"] <= found["Lipschitz upper bound"] <= found["sqrt(kh kw) bound"]
    assert len(arrays["operator norms"]) == 10  # stem, three branches of two, two projections, head
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    chain, out = pieces(model.eval(), torch.rand(1, 1, 8, 8))
    assert out.shape == (1, 10)
    assert product(chain, lambda run: 1.0) == 8  # each of three blocks doubles
