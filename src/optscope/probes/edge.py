"""Sharpness as the rule in use meets it, against that rule's own stability threshold: the edge of stability."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from optscope.devices import to_floats
from optscope.errors import UserError
from optscope.evidence.records import Metric
from optscope.optim.by_kind import ByKind
from optscope.optim.combinator import bare
from optscope.optim.norm import Steepest
from optscope.optim.rule import Rule
from optscope.probes.curvature import CurvatureProbe, PreconditionedSharpness, TopEigenvalues
from optscope.probes.live import adaptive, live_mean
from optscope.probes.own_norm import reach
from optscope.probes.probe import Reading, Subject, Value
from optscope.probes.rule_in_use import holds_some, rule_in_use, steps_made
from optscope.tasks.snapshot import Snapshot
from optscope.theory import stability

STARTS = 4
"""Random starts of the search in a rule's norm at a first reading; later ones know the last's answer and draw 1."""


@dataclass(frozen=True, repr=False)
class EdgeOfStability(CurvatureProbe):
    """Measure the sharpness of the training loss, and how near it is to what the rule in use can bear.

    "sharpness" is the largest eigenvalue of the Hessian H, for every rule. "sharpness met" is that of the matrix
    whose size decides whether the rule is stable: H for SGD and its momenta, P⁻¹ᐟ² H P⁻¹ᐟ² for Adam, AdamW,
    RMSProp, Shampoo, SOAP, LARS, LAMB, and ByKind and Graft of such rules, with their live preconditioner P
    (`PreconditionedSharpness`). No more than "sharpness met limit" is likely (for 99 starts in 100).

    Rules with steps of a length of their own (`Steepest.ball`: SignSGD and Lion l∞, NormalizedSGD l2 of each block,
    Muon the spectral norm of each matrix; ByKind what its first part has, in the layers of that part) meet the
    generalised sharpness S = max over ‖d‖ <= 1 of dᵀHd in their norm (arXiv 2603.05002). "sharpness met" is then a
    lower bound, by `own_norm.reach` from the gradient, H's top eigenvector, random vectors and the last reading's
    answer (docs/probes.md says how tight it is); the limit is that of the sharpness times the largest ‖d‖₂² in the
    ball. Their threshold is that of `stability.normalized`, 2 ‖g‖_*/lr without momentum and decay, with g the
    gradient over the probe's examples and m the live optimiser's.

    Above the "stability threshold" the rule is unstable on the quadratic model of the loss
    (`rule_in_use.threshold`); "sharpness / threshold" can be compared between rules, and 1 is the edge of
    stability (Cohen et al. 2021, arXiv 2103.00065; 2022, arXiv 2207.14484). For rules without a known threshold,
    which the reading's silence names, and adaptive ones before their first step, there is the sharpness alone.

    A bias in front of a batch normalisation has a slope of about 0 in training, so Adam's D is about eps there; in
    eval mode, with running statistics, the loss does bend in it. "sharpness met" is then right as it is defined,
    can be more than a thousand times the threshold, and says nothing of stability: give such layers bias=False.

    The default accuracy is one to follow a training by: each eigenvalue is within 5 % of one, and for 99 starts in
    100 none is three times as large (`TopEigenvalues` says what that proves). An adaptive rule's threshold needs
    its state, so it is taken during training: `Watch(EdgeOfStability())`.
    """

    rel: float = 0.05
    margin: float = 2.0
    examples: int | None = field(default=128, kw_only=True)

    def __post_init__(self) -> None:
        TopEigenvalues(rel=self.rel, margin=self.margin)  # raises what there is to raise

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The sharpness, that which the rule meets, its threshold and their ratio."""
        return (Metric("sharpness", "", "neither", "largest eigenvalue of the Hessian of the training loss"),
                Metric("sharpness met", "", "neither", "in the rule's own norm or preconditioner"),
                Metric("sharpness met limit", "", "neither", "no more than this is met, for 99 starts in 100"),
                Metric("stability threshold", "", "neither", "sharpness met above which the rule is unstable"),
                Metric("sharpness / threshold", "", "neither", "1 is the edge of stability"))

    def measure(self, subject: Subject) -> Reading:
        """Measure the Hessian's top, and for adaptive rules that of the preconditioned one."""
        plain = TopEigenvalues(rel=self.rel, margin=self.margin, gauss_newton=self.gauss_newton)
        first = plain.measure(subject)
        values, memory = first.values, first.memory
        rule = rule_in_use(subject.snapshot)
        found, name, limit = values, "sharpness", "stability threshold"
        if adaptive(rule) is not None and holds_some(subject.snapshot):
            bent = PreconditionedSharpness(rel=self.rel, margin=self.margin, gauss_newton=self.gauss_newton)
            reading = bent.measure(subject)
            found, memory = reading.values, {**memory, **reading.memory}
            name, limit = "preconditioned sharpness", "preconditioned threshold"
        elif limit not in values and rule is not None:
            reading = self._own_norm(subject, rule, first)
            found, memory = reading.values, {**memory, **reading.memory}
        met = {"sharpness met": found[name], "sharpness met limit": found[f"{name} limit"],
               "stability threshold": found[limit], "sharpness / threshold": found[f"{name} / threshold"],
               } if limit in found else {}
        return Reading({"sharpness": values["sharpness"], **met}, memory=memory,
                       silence="" if met else _refusal(rule, subject.snapshot))

    def _own_norm(self, subject: Subject, rule: Rule, plain: Reading) -> Reading:
        """Return the sharpness in the rule's norm, as `TopEigenvalues` would, or nothing where it has no norm."""
        steepest = _steepest(rule, steps_made(subject.snapshot))
        if steepest is None:
            return Reading({})
        inner, lr, used, kept, shrunk = steepest
        matrix = self.matrix(subject)
        gradient, top = matrix.gradient(), plain.memory["sharpness"]
        mean = live_mean(subject.snapshot, matrix.layout, gradient) if used else gradient
        ball = inner.ball(matrix.layout)
        if ball is None or mean is None:
            return Reading({})
        last = subject.memory.get("own norm")
        known = [last.to(gradient)] if last is not None and last.shape == gradient.shape else []
        drawn = torch.randn(1 if known else STARTS, matrix.size, generator=subject.generator, device="cpu")
        starts = [gradient, top, *known, *drawn.to(gradient)]
        found = reach(matrix, ball, starts, rel=self.rel)
        dual = to_floats(ball.dual(torch.lerp(gradient, mean, used), matrix.layout))[0]
        edge = stability.normalized(lr, dual, used, kept, shrunk)
        most = max(float(plain.values["sharpness limit"]), 0.0) * ball.square(matrix.layout)  # type: ignore[arg-type]
        values: dict[str, Value] = {"sharpness": found.value, "sharpness limit": max(most, found.value)}
        if edge > 0:
            values |= {"stability threshold": edge, "sharpness / threshold": found.value / edge}
        return Reading(values, memory={"own norm": found.vector})


def _steepest(rule: Rule, step: int) -> tuple[Steepest, float, float, float, float] | None:
    """Return the rule inside schedules and rounding with its rate, both weights of its mixture and its decay."""
    try:
        inner, factor, decay = bare(rule, step)
        if not isinstance(inner, Steepest) or decay or factor == 0:  # with L2 regularisation, H and g are others
            return None
        mixture = inner.mixture()
        lr, used, kept, shrunk = map(float, (inner.lr, mixture.used, mixture.kept,  # type: ignore[arg-type]
                                             mixture.decay))
        stability.mixed(factor * lr, used, kept, shrunk)  # raises what there is to raise, before anything is taken
    except (UserError, TypeError):  # one rule a member
        return None
    return inner, factor * lr, used, kept, shrunk


def _refusal(rule: Rule | None, snapshot: Snapshot) -> str:
    """Return why there is no threshold; nothing where there will be one after a step."""
    live = snapshot.optimizer
    if live is not None and not holds_some(snapshot):
        return (f"no stability threshold is known of a model of which {type(live).__name__} holds no parameter: "
                "measure the one that it steps, and not a copy or an average of it")
    if live is not None and all(group.get("lr") == 0 for group in live.param_groups):  # as many schedules end
        return "there is no stability threshold at a learning rate of 0, which makes no step"
    if rule is None:
        return (f"no stability threshold is known for {type(live).__name__} as it is set" if live else
                "there is no stability threshold, as no rule is known by which the model is trained")
    try:
        inner, _, decay = bare(rule)
    except UserError as error:
        return str(error)
    kind = type(inner).__name__
    known = adaptive(inner) or isinstance(inner.parts[0][1] if isinstance(inner, ByKind) else inner, Steepest)
    if decay or not known:
        return f"no stability threshold is known for {kind}{' with L2 regularisation' if decay else ''}"
    return "" if live else (f"the stability threshold of {kind} is that of its live optimiser: take it during "
                            "training, Watch(EdgeOfStability())")
