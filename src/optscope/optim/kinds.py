"""Kinds of parameters: what each tensor of a model is, read from the module that owns it."""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from optscope.vector import Layer, Layout

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_NORM = re.compile(r"Norm(\d+d)?$")
_EMBEDDING = re.compile(r"(embed|embeds|embedding|embeddings|token|tokens)$")


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """Return what every parameter of a model is, by name; a tied one stands once, as its first owner knows it.

    * "norm": what a normalisation owns: a module of torch's, or one whose class ends in Norm, Norm2d, ...;
    * "bias": a vector whose name ends in bias; "other": all other vectors and scalars, and what has an axis of
      length 1, or more than two axes in a module that is no convolution;
    * "embedding": what `nn.Embedding` or a class with Embedding in its name owns, and what is called so
      (`pos_embed`, `cls_token`);
    * "head": the last of the other modules with a matrix or kernel, in the model's order: the classifier;
    * "convolution": kernels of convolutions; "matrix": what is left, such as weights of a hidden `nn.Linear`.

    Between these kinds users of Muon split: hidden matrices and kernels apart from embeddings, head and vectors
    (Jordan et al. 2024, kellerjordan.github.io/posts/muon).
    """
    owned = {name: (module, p) for path, module in model.named_modules()
             for local, p in module.named_parameters(recurse=False)
             for name in [f"{path}.{local}" if path else local]}
    found: dict[str, Layer] = {}
    last: nn.Module | None = None
    for name, _ in model.named_parameters():
        module, p = owned[name]
        found[name] = Layer(name, p.shape, _kind(name, module, p), type(module).__name__)
        if found[name].kind in ("matrix", "convolution"):
            last = module
    for name, layer in found.items():
        if layer.kind in ("matrix", "convolution") and owned[name][0] is last:
            found[name] = layer._replace(kind="head")
    return found


def layout_of(model: nn.Module) -> Layout:
    """Return the layout of a model's trained parameters, in its order, with their kinds and owners."""
    layers = layers_of(model)
    return Layout.of_layers(layers[name] for name, p in model.named_parameters() if p.requires_grad)


def _kind(name: str, module: nn.Module, p: Tensor) -> str:
    owner, local = type(module).__name__, name.rpartition(".")[2]
    if isinstance(module, NORMS) or _NORM.search(owner):
        return "norm"
    if p.ndim < 2:
        return "bias" if local.endswith("bias") else "other"
    if isinstance(module, EMBEDDINGS) or "Embedding" in owner or _EMBEDDING.search(local):
        return "embedding"
    if isinstance(module, _ConvNd) or ("Conv" in owner and p.ndim > 2):
        return "convolution"
    if p.ndim > 2 or (1 in p.shape and not isinstance(module, nn.Linear)):
        return "other"
    return "matrix"
