"""The networks against the literature's parameter counts and against plain functional twins."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from optscope.errors import UserError
from optscope.tasks.models import C2, MLP, PreActResNet18, Residual, ResNet, StridedCNN

Factory = Callable[[], nn.Module]

# He et al. 2015 give 0.27 M and 0.85 M; 269,722 is ResNet-20 with parameter-free shortcuts, to which the two
# projections with their batch normalisation add 16*32 + 32*64 + 2*(32 + 64) = 2,752.
PARAMETERS = [
    (MLP(), 784 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10),
    (MLP((3, 1)), 4),
    (C2(), (16 * 16 + 16) + (32 * 16 * 16 + 32) + (21632 * 100 + 100) + (100 * 10 + 10)),
    (StridedCNN(), (8 * 9 + 8) + (16 * 8 * 9 + 16) + (16 * 7 * 7 * 10 + 10)),
    (ResNet(20), 269_722 + 2_752),
    (ResNet(56), 853_018 + 2_752),
    (PreActResNet18(norm=True), 11_171_146),
    (PreActResNet18(), 11_171_146 - 2 * (5 * 64 + 4 * 128 + 4 * 256 + 3 * 512)),
]
SMALL = [
    (MLP((12, 7, 5, 3)), (3, 2, 2)),
    (C2(channels=2, size=9, classes=4), (2, 9, 9)),
    (StridedCNN(widths=(4, 6, 5), channels=2, size=9, classes=4), (2, 9, 9)),
    (ResNet(8, channels=1, width=4), (1, 12, 9)),
    (ResNet(14, width=2, classes=3, norm=False), (3, 8, 8)),
    (PreActResNet18(channels=1, norm=True), (1, 16, 16)),
    (PreActResNet18(classes=7), (3, 16, 16)),
]
ALLOWED = (nn.Sequential, Residual, nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.AdaptiveAvgPool2d,
           nn.Flatten, nn.Identity)


def ids(rows: list[tuple[Factory, object]]) -> list[str]:
    return [repr(row[0]) for row in rows]


@pytest.mark.parametrize(("factory", "count"), PARAMETERS, ids=ids(PARAMETERS))
def test_parameter_counts(factory: Factory, count: int) -> None:
    assert sum(p.numel() for p in factory().parameters()) == count


@pytest.mark.parametrize("depth", [8, 20, 56])
def test_depth_counts_the_weighted_layers_of_the_longest_path(depth: int) -> None:
    layers = [m for m in ResNet(depth)().modules()
              if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))]
    assert len(layers) == depth


def twin(factory: object, weights: Iterator[Tensor], x: Tensor) -> Tensor:
    """Compute the network from the paper's description, taking the weights in order."""
    def norm(y: Tensor) -> Tensor:
        return (functional.batch_norm(y, None, None, next(weights), next(weights), training=True)
                if factory.norm else y)

    def conv(y: Tensor, stride: int = 1, bias: bool = False) -> Tensor:
        w = next(weights)
        return functional.conv2d(y, w, next(weights) if bias else None, stride=stride,
                                 padding=1 if w.shape[-1] > 1 else 0)

    def linear(y: Tensor) -> Tensor:
        return functional.linear(y, next(weights), next(weights))

    if isinstance(factory, MLP):
        y = x.flatten(1)
        for _ in factory.sizes[2:]:
            y = linear(y).relu()
        return linear(y)
    if isinstance(factory, C2):
        return linear(linear(conv(conv(x, bias=True).relu(), bias=True).relu().flatten(1)))
    if isinstance(factory, StridedCNN):
        y = x
        for _ in factory.widths:
            y = conv(y, stride=2, bias=True).relu()
        return linear(y.flatten(1))
    if isinstance(factory, ResNet):
        y = norm(conv(x)).relu()
        for stage in range(3):
            for block in range((factory.depth - 2) // 6):
                first = stage > 0 and block == 0
                z = norm(conv(norm(conv(y, stride=1 + first)).relu()))
                y = (z + (norm(conv(y, stride=2)) if first else y)).relu()
    else:
        y = conv(x)
        for stage in range(4):
            for block in range(2):
                first = stage > 0 and block == 0
                active = norm(y).relu()
                z = conv(norm(conv(active, stride=1 + first)).relu())
                y = z + (conv(active, stride=2) if first else y)
    return linear(y.mean((2, 3)))


@pytest.mark.parametrize(("factory", "shape"), SMALL, ids=ids(SMALL))
def test_computes_what_the_paper_says(factory: Factory, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = factory().double()
    for p in model.parameters():
        nn.init.normal_(p, 0.0, 0.2)  # no two layers alike, and biases and norms that matter
    weights = iter(list(model.parameters()))
    x = torch.rand(4, *shape, dtype=torch.float64)
    torch.testing.assert_close(model(x), twin(factory, weights, x), rtol=1e-9, atol=1e-9)
    assert next(weights, None) is None


@pytest.mark.parametrize(("factory", "shape"), SMALL, ids=ids(SMALL))
def test_can_be_walked(factory: Factory, shape: tuple[int, ...]) -> None:
    for module in factory().modules():
        assert isinstance(module, ALLOWED)
        assert not getattr(module, "inplace", False)


@pytest.mark.parametrize(("factory", "shape"), SMALL, ids=ids(SMALL))
def test_repr_is_identity(factory: Factory, shape: tuple[int, ...]) -> None:
    assert eval(repr(factory)) == factory
    assert hash(pickle.loads(pickle.dumps(factory))) == hash(factory)


def test_the_seed_alone_draws_the_weights() -> None:
    def weights() -> Tensor:
        torch.manual_seed(3)
        return torch.cat([p.flatten() for p in ResNet(8, width=4)().parameters()])

    assert torch.equal(weights(), weights())


@pytest.mark.parametrize(("make", "words"), [
    (lambda: MLP((10,)), "at least two positive whole numbers"),
    (lambda: MLP([10, 2]), r"tuple .* got \[10, 2\]"),
    (lambda: MLP((10, 0)), "positive"),
    (lambda: C2(size=2), "at least 3"),
    (lambda: StridedCNN(widths=(8, 0)), "widths must be a tuple of positive whole numbers"),
    (lambda: StridedCNN(widths=()), "widths must be a tuple of positive whole numbers"),
    (lambda: StridedCNN(size=0), "size must be a positive whole number; got 0"),
    (lambda: ResNet(18), "6n \\+ 2, such as 8, 20 or 56; got 18"),
    (lambda: ResNet(2), "6n \\+ 2"),
    (lambda: ResNet(8, width=0), "width must be a positive whole number; got 0"),
    (lambda: PreActResNet18(classes=2.5), "classes must be a positive whole number; got 2.5"),
])
def test_refuses_impossible_sizes(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()
