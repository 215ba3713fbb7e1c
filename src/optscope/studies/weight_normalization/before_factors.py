"""How rows of this study's report of 0.1, written before factors, are read: from what arms were called."""

from __future__ import annotations

from collections.abc import Mapping

from optscope.evidence.records import Factor

_SAID = {"L": "depth", "s": "sparsity", "M": "measurements", "κ": "ratio"}
_PROBLEMS = ("dense", "tiny start")


def before_factors(experiment: str, arm: str, metric: str) -> tuple[str, str, Mapping[str, Factor]]:
    """Return arm and metric as they are called now, and the factors that the arm's old name said.

    >>> before_factors("cells", "L=2, s=5, M=40, polar", "error")
    ('polar', 'error', {'depth': 2, 'sparsity': 5, 'measurements': 40})
    >>> before_factors("controls", "L=3, tiny start, κ=1", "error")
    ('κ=1', 'error', {'depth': 3, 'problem': 'tiny start'})
    """
    if (old := "rate over prediction, ") in metric:
        metric = f"rate of {metric.removeprefix(old)} flow over prediction"
    if not arm.startswith("L="):
        return arm, metric, {}
    factors: dict[str, Factor] = {}
    name = "linear programme"  # which solved the problems of a cell, and was not named
    for part in arm.split(", "):
        letter, equals, value = part.partition("=")
        if part in _PROBLEMS:
            factors["problem"] = part
        elif equals and letter != "κ":
            factors[_SAID[letter]] = int(value)
        else:
            name = part
            if equals and experiment != "controls":
                factors["ratio"] = float(value)
    return name, metric, factors
