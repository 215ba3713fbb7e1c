"""Fused kernels of torch for Adam and for SGD with momentum, without the checks of its optimisers around them.

Those cost more than the arithmetic of a small tensor, and a rule that steps a model in portions pays for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def adam_(params: Sequence[Tensor], grads: Sequence[Tensor], means: Sequence[Tensor], squares: Sequence[Tensor],
          steps: Sequence[Tensor], *, lr: float, beta1: float, beta2: float, eps: float, decay: float) -> None:
    """Make a step of torch.optim.AdamW in place, with its bits; `steps` count those made, one a parameter."""
    for some, g, m, v, counts in _alike(params, grads, means, squares, steps):
        torch._foreach_add_(counts, 1)
        torch._fused_adamw_(some, g, m, v, [], counts, lr=lr, beta1=beta1, beta2=beta2, weight_decay=decay, eps=eps,
                            amsgrad=False, maximize=False)


def sgd_(params: Sequence[Tensor], grads: Sequence[Tensor], buffers: Sequence[Tensor], *, lr: float,
         momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False) -> None:
    """Make a step of torch.optim.SGD in place, with its bits but for its first, which does not dampen.

    Without momentum there are no `buffers`.
    """
    for some, g, *v in _alike(params, grads, *([buffers] if buffers else [])):
        torch._fused_sgd_(some, g, v[0] if v else [], weight_decay=0.0, momentum=momentum, lr=lr,
                          dampening=dampening, nesterov=nesterov, maximize=False, is_first_step=False)


def _alike(*lists: Sequence[Tensor]) -> Iterator[list[list[Tensor]]]:
    """Yield matching parts of lists, of tensors with one dtype on one device each, as the kernels take them."""
    kinds = [(t.dtype, t.device) for t in lists[0]]
    for kind in dict.fromkeys(kinds):
        yield [[t for t, own in zip(each, kinds, strict=True) if own == kind] for each in lists]
