"""How rows of this study's report of 0.1, written before factors, are read: from what arms were called."""

from __future__ import annotations

import re
from collections.abc import Mapping

from optscope.evidence.records import Factor

_METRICS = {"lipschitz lower": "Lipschitz lower bound", "lipschitz upper": "Lipschitz upper bound"}
_FILTERED = re.compile(r"(low energy|high frequencies) removed, keep (\d+) %")
_SAMPLED, _POPULATION = re.compile(r"(.+), (\d+) a batch"), re.compile(r"(.+), population")
_PROBLEM = re.compile(r"s=\(([\d.]+), ([\d.]+)\), w\*=\(([\d.]+), ([\d.]+)\)")


def before_factors(experiment: str, arm: str, metric: str) -> tuple[str, str, Mapping[str, Factor]]:
    """Return arm and metric as they are called now, and the factors that the arm's old name said.

    >>> before_factors("filtered", "low energy removed, keep 30 %", "accuracy")
    ('low energy removed (30 % kept)', 'accuracy', {'removed': 'low energy', 'keep': 30})
    >>> before_factors("linear", "GD, 5000 a batch", "standard risk")
    ('GD', 'standard risk', {'gradient': 'sampled', 'batch': 5000})
    """
    arm, metric = arm.replace(" length, ", " length × "), _METRICS.get(metric, metric)
    if found := _FILTERED.fullmatch(arm):
        return (f"{found[1]} removed ({found[2]} % kept)", metric, {"removed": found[1], "keep": int(found[2])})
    if found := _SAMPLED.fullmatch(arm):
        return found[1], metric, {"gradient": "sampled", "batch": int(found[2])}
    if found := _POPULATION.fullmatch(arm):
        return found[1], metric, {"gradient": "population"}
    if found := _PROBLEM.fullmatch(arm):
        return "signGD", metric, {"gradient": "population",
                                  **dict(zip(("s0", "s1", "w0", "w1"), map(float, found.groups()), strict=True))}
    return arm, metric, {}
