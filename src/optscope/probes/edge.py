"""Sharpness as the rule in use meets it, against that rule's own stability threshold: the edge of stability."""

from __future__ import annotations

from dataclasses import dataclass, field

from optscope.evidence.records import Metric
from optscope.probes.curvature import CurvatureProbe, PreconditionedSharpness, TopEigenvalues
from optscope.probes.probe import Reading, Subject
from optscope.probes.rule_in_use import adaptive, rule_in_use


@dataclass(frozen=True, repr=False)
class EdgeOfStability(CurvatureProbe):
    """Measure the sharpness of the training loss, and how near it is to what the rule in use can bear.

    "sharpness" is the largest eigenvalue of the Hessian H, for every rule. "sharpness met" is that of the matrix
    whose size decides whether the rule is stable: H for SGD and its momenta, D⁻¹ᐟ² H D⁻¹ᐟ² for Adam, AdamW and
    RMSProp with their live preconditioner D. Above the "stability threshold" the rule is unstable on the quadratic
    model of the loss (`rule_in_use.threshold`); "sharpness / threshold" can be compared between rules, and 1 is
    the edge of stability (Cohen et al. 2021, arXiv 2103.00065; 2022, arXiv 2207.14484). For rules without a known
    threshold, and adaptive ones before their first step, there is the sharpness alone.

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
                Metric("sharpness met", "", "neither", "as the rule meets it: preconditioned, if it is adaptive"),
                Metric("stability threshold", "", "neither", "sharpness met above which the rule is unstable"),
                Metric("sharpness / threshold", "", "neither", "1 is the edge of stability"))

    def measure(self, subject: Subject) -> Reading:
        """Measure the Hessian's top, and for adaptive rules that of the preconditioned one."""
        snapshot = subject.snapshot
        plain = TopEigenvalues(rel=self.rel, margin=self.margin, gauss_newton=self.gauss_newton)
        reading = plain.measure(subject)
        values, memory = reading.values, reading.memory
        found, name, limit = values, "sharpness", "stability threshold"
        if snapshot.optimizer is not None and adaptive(rule_in_use(snapshot)) is not None:
            bent = PreconditionedSharpness(rel=self.rel, margin=self.margin, gauss_newton=self.gauss_newton)
            reading = bent.measure(subject)
            found, memory = reading.values, {**memory, **reading.memory}
            name, limit = "preconditioned sharpness", "preconditioned threshold"
        met = {"sharpness met": found[name], "stability threshold": found[limit],
               "sharpness / threshold": found[f"{name} / threshold"]} if limit in found else {}
        return Reading({"sharpness": values["sharpness"], **met}, memory=memory)
