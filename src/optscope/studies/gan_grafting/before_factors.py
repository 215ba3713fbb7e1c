"""How rows of this study's report of 0.1, written before factors, are read: from what arms were called."""

from __future__ import annotations

from collections.abc import Mapping

from optscope.evidence.records import Factor
from optscope.studies.gan_grafting.claims import HALVES, played


def before_factors(experiment: str, arm: str, metric: str) -> tuple[str, str, Mapping[str, Factor]]:
    """Return arm and metric as they are called now, and the factors in the arm's name.

    >>> before_factors("ring", "Adam length, SGD direction, grid", "useful cells")
    ('Adam length × SGD direction, grid', 'useful cells', {'length': 'Adam', 'direction': 'SGD', 'per': 'layer'})
    """
    arm = arm.replace(" length, ", " length × ").replace(", whole model", " (whole model)").replace("e, by", "e by")
    kind, _, variant = arm.partition(", ")
    if experiment == "theory" and arm:
        return arm, metric, played(kind, variant)
    return arm, metric, HALVES.get(arm.removesuffix(", grid"), {})
