"""Ready arms by name: what the field means by it, with the learning rates that are tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optscope.errors import UserError, nearest
from optscope.optim import (
    LAMB,
    LARS,
    MARS,
    SAM,
    SGD,
    SOAP,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    AdEMAMix,
    ByKind,
    Foreign,
    Graft,
    Lion,
    Muon,
    NAdam,
    NormalizedSGD,
    PolarSGD,
    Prodigy,
    RMSProp,
    Rule,
    ScheduleFree,
    Shampoo,
    SignSGD,
)
from optscope.protocol.comparison import Arm
from optscope.protocol.resolve import named_at
from optscope.protocol.search import Grid, Halton
from optscope.protocol.space import Log, Space, Span, Uniform, half_decades

TRIALS = 6
"""Learning rates tried for every arm; half as many, where a step takes two gradients."""

_LARGE = (0.01, 3.0)
_MIDDLE = (0.001, 0.3)
_SMALL = (1e-4, 3e-2)
_TINY = (1e-5, 3e-3)

_READY: dict[str, tuple[str, Rule, tuple[float, float]]] = {
    "sgd": ("SGD", SGD(lr=0.1), _LARGE),
    "momentum": ("SGD + momentum", SGD(lr=0.01, momentum=0.9), _MIDDLE),
    "nesterov": ("Nesterov", SGD(lr=0.01, momentum=0.9, nesterov=True), _MIDDLE),
    "adam": ("Adam", Adam(lr=1e-3), _SMALL),
    "adamw": ("AdamW", AdamW(lr=1e-3), _SMALL),
    "rmsprop": ("RMSProp", RMSProp(lr=1e-3), _SMALL),
    "signsgd": ("SignSGD", SignSGD(lr=1e-4), _TINY),
    "normalized": ("Normalised SGD", NormalizedSGD(lr=0.01), _MIDDLE),
    "polar": ("Polar SGD", PolarSGD(lr=0.1), _LARGE),
    "graft": ("Adam length × SGD direction", Graft(Adam(lr=1e-3), SGD(lr=1.0)), _SMALL),
    # github.com/KellerJordan/Muon: 0.02, beside AdamW at 3e-4 and betas 0.9, 0.95; their ratio is kept.
    "muon": ("Muon", ByKind(matrices=Muon(lr=0.02), rest=AdamW(lr=3e-4, beta2=0.95)), _MIDDLE),
    # 3e-3: github.com/nikhilvyas/SOAP, which leaves sides over 10,000 as they are; a basis of 784 pixels alone
    # would make a step three times as slow
    "soap": ("SOAP", SOAP(lr=3e-3, largest=512), _SMALL),
    # With Adam's length, roots now and then: Anil et al. 2020, arXiv 2002.09018; Shi et al. 2023, arXiv 2309.06497
    "shampoo": ("Shampoo", Graft(Adam(lr=1e-3), Shampoo(lr=1.0, every=10)), _SMALL),
    "lion": ("Lion", Lion(lr=1e-4), _TINY),  # a third to a tenth of AdamW's: Chen et al. 2023, section 5
    # As large as AdamW's or up to ten times: github.com/facebookresearch/schedule_free
    "schedule-free": ("Schedule-free AdamW", ScheduleFree(AdamW(lr=3e-3, beta1=0.0)), _SMALL),
    "ademamix": ("AdEMAMix", AdEMAMix(lr=1e-3), _SMALL),  # AdamW's: Pagliardini et al. 2024, section 4
    "adagrad": ("Adagrad", Adagrad(lr=0.01), _MIDDLE),  # 0.01: the default of torch
    "nadam": ("NAdam", NAdam(lr=2e-3), _SMALL),  # 2e-3: the default of torch
    "adafactor": ("Adafactor", Adafactor(lr=0.01), _MIDDLE),  # 0.01: Shazeer and Stern 2018, algorithm 6
    # rho 0.05: Foret et al. 2021, and the middle of the rates of its SGD
    "sam": ("SAM", SAM(SGD(lr=0.03, momentum=0.9)), (0.01, 0.1)),
    "lars": ("LARS", LARS(lr=1.0), (0.1, 30.0)),  # 3 to 30: You et al. 2017, table 3
    # 3e-3 beside betas 0.95, 0.99: the default of the authors' code
    "mars": ("MARS-AdamW", MARS(AdamW(lr=3e-3, beta1=0.95, beta2=0.99)), _SMALL),
    "prodigy": ("Prodigy", Prodigy(lr=1.0), (0.03, 10.0)),  # 1, which is meant not to be tuned
    "lamb": ("LAMB", LAMB(lr=3e-3), (3e-4, 0.1)),  # 1.8e-3 to 1e-2: You et al. 2019, arXiv 1904.00962, table 8
}
NAMES = tuple(_READY)
DEFAULT = ("sgd", "adam", "rmsprop", "graft")


def arm_named(name: str, lr: Sequence[float] | None = None, space: Mapping[str, Any] | None = None,
              trials: int | None = None) -> Arm:
    """Return a ready arm, or one around "module:Class" or "file.py:Class", any `torch.optim.Optimizer`.

    `lr` are the learning rates to try; by default half-decades around what is usual for the rule, or around
    the optimiser's own default (one without a default needs `lr`). `space` names other hyperparameters to search
    beside: a list of values, or a range, {"log": [low, high]} or {"uniform": [low, high]}. With `trials` so many
    points are drawn (half as many, where a step takes two gradients), of the range that the rates lie in;
    without, every combination is tried.

    Raises:
        UserError: naming the nearest arm there is, or what is wrong with the class.
    """
    label, rule, rates = _found(name, lr)
    rates = tuple(lr or rates)
    spans: dict[str, Any] = {path: span_said(f"{name}.{path}", said) for path, said in (space or {}).items()}
    if trials is None and not spans:
        return Arm(label, rule, Grid(rates))
    if not any(path.rpartition(".")[2] == "lr" for path in spans):
        drawn = trials is not None and len(rates) > 1
        spans = {"lr": Log(min(rates), max(rates)) if drawn else rates} | spans
    if trials is None:
        return Arm(label, rule, Grid(Space(**spans)))
    return Arm(label, rule, Halton(max(1, trials // rule.evaluations), Space(**spans)))


def label_of(name: str) -> str:
    """Return what the arm of a name is called in reports; a name that is none is its own label.

    >>> label_of("sgd"), label_of("torch.optim:NAdam")
    ('SGD', 'NAdam')
    """
    return _READY[name][0] if name in _READY else name.rpartition(":")[2]


def span_said(name: str, said: Any) -> Span | Sequence[Any]:
    """Return what is said of a hyperparameter in a settings file: values, or a range.

    >>> span_said("sgd.momentum", {"uniform": [0.5, 0.9]})
    Uniform(low=0.5, high=0.9)

    Raises:
        UserError: when it is neither.
    """
    if isinstance(said, list) and said:
        return said
    kinds: dict[str, type[Log] | type[Uniform]] = {"log": Log, "uniform": Uniform}
    if isinstance(said, dict) and len(said) == 1:
        (kind, ends), = said.items()
        if kind in kinds and isinstance(ends, list) and len(ends) == 2 and all(
                type(end) in (int, float) for end in ends):
            return kinds[kind](*ends)
    raise UserError(f"{name}: a list of values, {{log = [low, high]}} or {{uniform = [low, high]}} was expected; "
                    f"got {said!r}")


def _found(name: str, lr: Sequence[float] | None) -> tuple[str, Rule, tuple[float, ...]]:
    """Return what an arm is called, its rule, and the learning rates that are usual for it."""
    if ":" in name:
        found = named_at(name)
        if not callable(found):
            raise UserError(f"{name} must be a torch.optim.Optimizer class; got {type(found).__name__}")
        foreign = Foreign(found, lr=lr[0]) if lr else Foreign(found)
        rates = tuple(float(f"{foreign.lr * factor:.3g}")  # type: ignore[operator]
                      for factor in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0))
        return name.rpartition(":")[2], foreign, rates
    if name not in _READY:
        raise UserError(f'no optimiser "{name}"; {nearest(name, NAMES)} '
                        '(or "module:Class" or "my_opt.py:Class" for any torch.optim.Optimizer)')
    label, rule, ends = _READY[name]
    return label, rule, half_decades(*ends)
