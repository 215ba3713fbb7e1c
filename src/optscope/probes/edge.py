"""Sharpness as the rule in use meets it, against that rule's own stability threshold: the edge of stability."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from optscope.devices import to_floats
from optscope.errors import UserError
from optscope.evidence.records import Metric
from optscope.optim.combinator import bare
from optscope.optim.norm import Steepest
from optscope.optim.rule import Rule
from optscope.probes.curvature import CurvatureProbe, PreconditionedSharpness, TopEigenvalues
from optscope.probes.own_norm import reach
from optscope.probes.probe import Reading, Subject, Value
from optscope.probes.rule_in_use import adaptive, rule_in_use
from optscope.theory import stability

STARTS = 4
"""Random starts of the search in a rule's norm at a first reading; later ones know the last's answer and draw 1."""


@dataclass(frozen=True, repr=False)
class EdgeOfStability(CurvatureProbe):
    """Measure the sharpness of the training loss, and how near it is to what the rule in use can bear.

    "sharpness" is the largest eigenvalue of the Hessian H, for every rule. "sharpness met" is that of the matrix
    whose size decides whether the rule is stable: H for SGD and its momenta, D⁻¹ᐟ² H D⁻¹ᐟ² for Adam, AdamW and
    RMSProp with their live preconditioner D. No more than "sharpness met limit" is likely (for 99 starts in 100).

    Rules with steps of a length of their own (`Steepest.ball`: SignSGD l∞, NormalizedSGD l2 of each block, Muon
    the spectral norm of each matrix; ByKind what its first part has, in the layers of that part) meet the
    generalised sharpness S = max over ‖d‖ <= 1 of dᵀHd in their norm (arXiv 2603.05002). "sharpness met" is then a
    lower bound, by `own_norm.reach` from the gradient, H's top eigenvector, random vectors and the last reading's
    answer (docs/probes.md says how tight it is); the limit is that of the sharpness times the largest ‖d‖₂² in the
    ball. Their threshold is 2 ‖g‖_*/lr (`stability.normalized`), with g the gradient over the probe's examples. It
    is that of the step without momentum and decay, where they have any.

    Above the "stability threshold" the rule is unstable on the quadratic model of the loss
    (`rule_in_use.threshold`); "sharpness / threshold" can be compared between rules, and 1 is the edge of
    stability (Cohen et al. 2021, arXiv 2103.00065; 2022, arXiv 2207.14484). For rules without a known threshold,
    and adaptive ones before their first step, there is the sharpness alone.

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
        if subject.snapshot.optimizer is not None and adaptive(rule) is not None:
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
        return Reading({"sharpness": values["sharpness"], **met}, memory=memory)

    def _own_norm(self, subject: Subject, rule: Rule, plain: Reading) -> Reading:
        """Return the sharpness in the rule's norm, as `TopEigenvalues` would, or nothing where it has no norm."""
        try:
            inner, factor, decay = bare(rule, subject.snapshot.step or 0)
            lr = factor * float(inner.lr)  # type: ignore[arg-type]
        except (UserError, TypeError):  # one rule a member
            return Reading({})
        matrix = self.matrix(subject)
        if not isinstance(inner, Steepest) or decay or lr == 0:  # with L2 regularisation, H and g are others
            return Reading({})
        ball = inner.ball(matrix.layout)
        if ball is None:
            return Reading({})
        gradient, top = matrix.gradient(), plain.memory["sharpness"]
        last = subject.memory.get("own norm")
        known = [last.to(gradient)] if last is not None and last.shape == gradient.shape else []
        drawn = torch.randn(1 if known else STARTS, matrix.size, generator=subject.generator)
        starts = [gradient, top, *known, *drawn.to(gradient)]
        found = reach(matrix, ball, starts, rel=self.rel)
        edge = stability.normalized(lr, to_floats(ball.dual(gradient, matrix.layout))[0])
        most = max(float(plain.values["sharpness limit"]), 0.0) * ball.square(matrix.layout)  # type: ignore[arg-type]
        values: dict[str, Value] = {"sharpness": found.value, "sharpness limit": max(most, found.value)}
        if edge > 0:
            values |= {"stability threshold": edge, "sharpness / threshold": found.value / edge}
        return Reading(values, memory={"own norm": found.vector})
