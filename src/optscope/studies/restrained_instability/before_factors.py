"""How rows of this study's report of 0.1, written before factors, are read: from what arms were called."""

from __future__ import annotations

import re
from collections.abc import Mapping

from optscope.evidence.records import Factor

_PRECISION, _PLACE = re.compile(r"(.+), (float32|float64)"), re.compile(r"(.+), (below|between|above)")
_NETWORK = re.compile(r"(.+), (\d+) convolutions")
_EDGE = re.compile(r"(\d+) hidden, decay ([\d.]+)")
_TWIN = re.compile(r"k = (\d+)(, first step only)?")


def before_factors(experiment: str, arm: str, metric: str) -> tuple[str, str, Mapping[str, Factor]]:
    """Return arm and metric as they are called now, and the factors that the arm's old name said.

    >>> before_factors("one layer", "white noise, between", "late distance")
    ('white noise', 'late distance', {'place': 'between'})
    >>> before_factors("spread", "k = 3, first step only", "accuracy")
    ('k = 3 in the first step', 'accuracy', {'k': 3, 'steps': 'first'})
    """
    if found := _PRECISION.fullmatch(arm):
        return found[1], metric, {"precision": found[2]}
    if found := _PLACE.fullmatch(arm):
        return found[1], metric, {"place": found[2]}
    if found := _NETWORK.fullmatch(arm):
        return (f"{found[1]} with {found[2]} convolutions", metric,
                {"activation": found[1], "convolutions": int(found[2])})
    if found := _EDGE.fullmatch(arm):
        return (f"{found[1]} hidden with decay {found[2]}", metric,
                {"hidden": int(found[1]), "decay": float(found[2])})
    if found := _TWIN.fullmatch(arm):
        return (f"k = {found[1]}{' in the first step' if found[2] else ''}", metric,
                {"k": int(found[1]), "steps": "first" if found[2] else "all"})
    return arm, metric, {}
