"""Ready arms by name: each rule with the learning rates that are tried for it."""

from __future__ import annotations

from collections.abc import Sequence

from optscope.errors import UserError, nearest
from optscope.optim import SGD, Adam, AdamW, Foreign, Graft, NormalizedSGD, PolarSGD, RMSProp, Rule, SignSGD
from optscope.protocol.comparison import Arm
from optscope.protocol.resolve import named_at
from optscope.protocol.search import Grid

TRIALS = 6
"""Learning rates tried for every arm."""

_LARGE = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_MIDDLE = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
_SMALL = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
_TINY = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)

_READY: dict[str, tuple[str, Rule, tuple[float, ...]]] = {
    "sgd": ("SGD", SGD(lr=0.1), _LARGE),
    "momentum": ("SGD + momentum", SGD(lr=0.01, momentum=0.9), _MIDDLE),
    "nesterov": ("Nesterov", SGD(lr=0.01, momentum=0.9, nesterov=True), _MIDDLE),
    "adam": ("Adam", Adam(lr=1e-3), _SMALL),
    "adamw": ("AdamW", AdamW(lr=1e-3), _SMALL),
    "rmsprop": ("RMSProp", RMSProp(lr=1e-3), _SMALL),
    "signsgd": ("SignSGD", SignSGD(lr=1e-4), _TINY),
    "normalized": ("Normalised SGD", NormalizedSGD(lr=0.01), _MIDDLE),
    "polar": ("Polar SGD", PolarSGD(lr=0.1), _LARGE),
    "graft": ("Adam length, SGD direction", Graft(Adam(lr=1e-3), SGD(lr=1.0)), _SMALL),
}
NAMES = tuple(_READY)
DEFAULT = ("sgd", "adam", "rmsprop", "graft")


def arm_named(name: str, lr: Sequence[float] | None = None) -> Arm:
    """Return a ready arm, or one around "module:Class" or "file.py:Class", any `torch.optim.Optimizer`.

    `lr` are the learning rates to try; by default half-decades around what is usual for the rule, or around
    the optimiser's own default (one without a default needs `lr`).

    Raises:
        UserError: naming the nearest arm there is, or what is wrong with the class.
    """
    if ":" in name:
        found = named_at(name)
        if not callable(found):
            raise UserError(f"{name} must be a torch.optim.Optimizer class; got {type(found).__name__}")
        foreign = Foreign(found, lr=lr[0]) if lr else Foreign(found)
        rates = [float(f"{foreign.lr * factor:.3g}") for factor in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)]  # type: ignore[operator]
        return Arm(name.rpartition(":")[2], foreign, Grid(tuple(lr or rates)))
    if name not in _READY:
        raise UserError(f'no optimiser "{name}"; {nearest(name, NAMES)} '
                        '(or "module:Class" or "my_opt.py:Class" for any torch.optim.Optimizer)')
    label, rule, grid = _READY[name]
    return Arm(label, rule, Grid(tuple(lr or grid)))
