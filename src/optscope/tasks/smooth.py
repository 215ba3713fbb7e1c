"""Tasks on which instabilities can be followed: Swish instead of ReLU, any depth, squared error, full batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from optscope.devices import forked
from optscope.errors import UserError
from optscope.tasks.models import Residual
from optscope.tasks.task import Data, Split


class Swish(nn.Module):
    """Apply x · sigmoid(beta · x), a smooth ReLU: the larger `beta`, the sharper the bend at 0.

    >>> Swish(beta=5.0)(torch.tensor([0.0, 2.0]))
    tensor([0.0000, 1.9999])
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        """Return x · sigmoid(beta · x)."""
        return x * torch.sigmoid(self.beta * x)

    def extra_repr(self) -> str:
        """Return the setting."""
        return f"beta={self.beta:g}"


@dataclass(frozen=True)
class Smooth:
    """A network with every ReLU replaced by Swish; weights are drawn as before.

    >>> from optscope.tasks.models import MLP
    >>> Smooth(MLP((2, 3, 1)))()[2]
    Swish(beta=1)

    Raises:
        UserError: unless beta is finite and > 0.
    """

    model: Callable[[], nn.Module]
    beta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise UserError(f"Smooth: beta must be a finite number > 0; got {self.beta!r}")

    def __call__(self) -> nn.Module:
        """Return a new network."""
        model = self.model()
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.ReLU):
                    setattr(parent, name, Swish(self.beta))
        return model


@dataclass(frozen=True)
class SameStart:
    """A network that always starts from the weights of one seed, whatever the seed of its training."""

    model: Callable[[], nn.Module]
    seed: int = 0

    def __call__(self) -> nn.Module:
        """Return the network with its weights."""
        with forked():
            torch.manual_seed(self.seed)
            return self.model()


@dataclass(frozen=True)
class Column:
    """A residual network of one width: a convolution and `blocks` residual blocks, 1 + 2 · blocks convolutions.

    Images are halved by averaging first, batch normalisation and ReLU follow each convolution as in `ResNet`.
    Inputs are `(n, channels, height, width)`.

    Raises:
        UserError: unless blocks is a whole number >= 0.
    """

    blocks: int = 1
    width: int = 8
    channels: int = 1
    classes: int = 10

    def __post_init__(self) -> None:
        if not (isinstance(self.blocks, int) and self.blocks >= 0):
            raise UserError(f"Column: blocks must be a whole number, 0 or more; got {self.blocks!r}")

    def __call__(self) -> nn.Sequential:
        """Return a new network."""
        conv = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        layers: list[nn.Module] = [nn.AvgPool2d(2), conv(self.channels, self.width), nn.BatchNorm2d(self.width),
                                   nn.ReLU()]
        for _ in range(self.blocks):
            branch = nn.Sequential(conv(self.width, self.width), nn.BatchNorm2d(self.width), nn.ReLU(),
                                   conv(self.width, self.width), nn.BatchNorm2d(self.width))
            layers += [Residual(branch, nn.Identity()), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.width, self.classes))


@dataclass(frozen=True)
class Conv3:
    """Three strided convolutions (8, 16 and 16 wide), each with batch normalisation and ReLU, and a linear head."""

    channels: int = 1
    classes: int = 10

    def __call__(self) -> nn.Sequential:
        """Return a new network."""
        layers: list[nn.Module] = []
        inside = self.channels
        for outside in (8, 16, 16):
            layers += [nn.Conv2d(inside, outside, 3, 2, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
            inside = outside
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, self.classes))


@dataclass(frozen=True)
class Centred:
    """The first `examples` training images of a data set, and all its images less `shift`."""

    data: Callable[[], Data]
    examples: int
    shift: float

    def __call__(self) -> Data:
        """Return the data."""
        whole = self.data()
        parts = (whole.train.first(self.examples), whole.validation, whole.test)
        return Data(*(Split(part.inputs - self.shift, part.targets) for part in parts))


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return ½ · mean over examples of ‖output − one-hot target‖², for outputs `(n, classes)`.

    >>> float(squared_error(torch.zeros(4, 10), torch.tensor([0, 1, 2, 3])))
    0.5
    """
    wanted = functional.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
    return 0.5 * (outputs - wanted).square().sum(1).mean()
