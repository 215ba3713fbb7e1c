"""How rows of this study's report of 0.1, written before factors, are read: from what arms were called."""

from __future__ import annotations

from collections.abc import Mapping

from optscope.evidence.records import Factor
from optscope.studies.gan_grafting.claims import HALVES, played


def before_factors(experiment: str, arm: str, metric: str) -> tuple[str, str, Mapping[str, Factor]]:
    """Return arm and metric as they are called now, and the factors in the arm's name.

    >>> before_factors("ring", "Adam length, SGD direction, grid", "useful cells")
    ('Adam length × SGD direction (grid)', 'useful cells', {'length': 'Adam', 'direction': 'SGD', 'per': 'layer'})
    >>> before_factors("theory", "SGDA, d = 300", "fitted")[0]
    'SGDA at d = 300'
    """
    kind, _, variant = arm.partition(", ")
    if experiment == "theory" and arm:
        return f"{kind} at {variant}", metric, played(kind, variant)
    for old, new in ((" length, ", " length × "), (", whole model", " (whole model)"), ("e, by", "e by"),
                     (", grid", " (grid)")):
        arm = arm.replace(old, new)
    return arm, metric, HALVES.get(arm.removesuffix(" (grid)"), {})
