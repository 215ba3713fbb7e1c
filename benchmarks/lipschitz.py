"""B7: two bounds of a ResNet-8's Lipschitz constant, and what the usual product of kernel norms makes of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.timing import Contender, interleave, rows
from benchmarks.training import trained
from optscope.probes.lipschitz import Lipschitz
from optscope.probes.lipschitz_product import pieces, runs
from optscope.probes.operator_norm import operator_norm
from optscope.tasks.images import FashionMNIST
from optscope.tasks.models import ResNet
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task

TASK = Task("fashion-mnist", ResNet(depth=8, channels=1), FashionMNIST())
TOLERANCE = 1e-4
LOWER, UPPER = "Lipschitz lower bound", "Lipschitz upper bound"


def dense_norm(layers: nn.Module, shape: tuple[int, ...]) -> float:
    """Return the norm of an affine map by the singular values of its matrix, column by column."""
    exact, size = copy.deepcopy(layers).double().eval(), math.prod(shape)
    with torch.no_grad():
        origin = exact(torch.zeros(1, *shape, dtype=torch.float64))
        columns = exact(torch.eye(size, dtype=torch.float64).view(size, *shape)) - origin
    return float(torch.linalg.matrix_norm(columns.flatten(1), ord=2))


def check_norms(model: nn.Module) -> float:
    """Return the largest relative error of a norm, on inputs small enough for a dense matrix; raise above 1e-4."""
    worst = 0.0
    chain, _ = pieces(model, torch.zeros(1, 1, 12, 12))
    for run in runs(chain):
        layers = nn.Sequential(*run.layers)
        found = operator_norm(layers, run.shape, torch.Generator().manual_seed(0), TOLERANCE)
        truth = dense_norm(layers, run.shape)
        if not found.lower * (1 - 1e-9) <= truth <= found.upper * (1 + 1e-9):
            raise AssertionError(f"{run.name}: {truth} is not between {found}")
        worst = max(worst, found.upper / truth - 1, 1 - found.lower / truth)
    if worst > TOLERANCE * (1 + 1e-6):
        raise AssertionError(f"a norm is {worst:.1e} from the dense one")
    return worst


def check_pair() -> str:
    """Check lower <= true <= upper on networks whose constant is known: compositions of convolutions alone."""
    said = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.Flatten(),
                              nn.Linear(64, 3))
        x, y = torch.rand(32, 1, 8, 8), torch.arange(32) % 3
        task = Task.from_tensors(lambda model=model: model, (x, y), (x, y))
        found = Lipschitz()(Snapshot(model, task)).values
        truth = math.log10(dense_norm(model, (1, 8, 8)))
        low, high = found[LOWER], found[UPPER]
        if not low <= truth + 1e-9 <= high + 2e-9:
            raise AssertionError(f"{low} <= {truth} <= {high} is wrong")
        said.append(f"{10**low:.4g} <= {10**truth:.4g} <= {10**high:.4g}")
    return "; ".join(said)


def kernels(model: nn.Module) -> list[Tensor]:
    """Return the weights of convolutions and linear layers as matrices."""
    return [m.weight.detach().flatten(1) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def reshaped(model: nn.Module) -> list[float]:
    """Return the norm of each reshaped kernel, as the paper's code does."""
    return [float(torch.linalg.matrix_norm(w, ord=2)) for w in kernels(model)]


def by_spectral_norm(model: nn.Module) -> list[float]:
    """Return what torch's spectral_norm divides each layer by, after 50 steps of its power iteration."""
    found = []
    for module in copy.deepcopy(model).modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            before = module.weight.detach().flatten(1)
            spectral_norm(module, n_power_iterations=50)
            module.eval()
            found.append(float(before.norm() / module.weight.detach().flatten(1).norm()))
    return found


def exact_norms(model: nn.Module) -> dict[nn.Conv2d, tuple[float, float]]:
    """Return for each 3x3 convolution its norm on its true input, and that of the reshaped kernel."""
    shapes: dict[nn.Conv2d, tuple[int, ...]] = {}
    hooks = [m.register_forward_pre_hook(lambda m, x: shapes.update({m: tuple(x[0].shape[1:])}))
             for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    with torch.no_grad():
        model(torch.zeros(1, 1, 28, 28))
    for hook in hooks:
        hook.remove()
    generator = torch.Generator().manual_seed(0)
    return {layer: (operator_norm(layer, shape, generator, TOLERANCE).upper,
                    float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2)))
            for layer, shape in shapes.items()}


def b7() -> dict[str, Any]:
    """Bound a ResNet-8's Lipschitz constant on 28x28 images; check norms and bounds where they are known."""
    model = trained(TASK, steps=100, batch=64)
    worst, known = check_norms(model), check_pair()
    probe = Lipschitz()
    found = probe(Snapshot(model, TASK)).values
    low, high = found[LOWER], found[UPPER]
    if not low <= high:
        raise AssertionError(f"the lower bound {low} lies above the upper one {high}")
    crude = found["paper's spectral product"]
    short = [exact / crude for exact, crude in exact_norms(model).values()]
    agreed = max(abs(a / b - 1) for a, b in zip(by_spectral_norm(model), reshaped(model), strict=True))
    works: dict[str, tuple[str, str, Callable[[], object]]] = {
        f"optscope {probe!r}": (version("optscope"), f"1e{low:.2f} <= L <= 1e{high:.2f}",
                                lambda: probe(Snapshot(model, TASK))),
        "reshaped product, batch norms folded": ("", f"1e{crude:.2f}, no bound", lambda: reshaped(model)),
        "torch spectral_norm": (torch.__version__, f"the reshaped norms, to {agreed:.0e}",
                                lambda: by_spectral_norm(model))}
    contenders = [Contender(who, *rest) for who, rest in works.items()]
    times = interleave(contenders, rounds=3, warm_up=0)
    return {"bar": "B7", "work": "Lipschitz constant of a ResNet-8 on 28x28 images, from input to logits",
            "rows": rows(contenders, times),
            "ratio": {"largest error of a norm against dense SVD, of 1e-4": worst / TOLERANCE,
                      "reshaped norm too small by, 3x3 layers, least": min(short),
                      "reshaped norm too small by, 3x3 layers, most": max(short)},
            "limit": {"largest error of a norm against dense SVD, of 1e-4": 1.0001},
            "known": known}
