"""How rows of this study's report of 0.1, written before factors, are read: from what arms were called."""

from __future__ import annotations

import re
from collections.abc import Mapping

from optscope.evidence.records import Factor

_GRID = re.compile(r"(?P<data>.+), batch (?P<batch>\d+)(?:, (?P<view>tuned|watched|other momenta))?")
_SVAG = re.compile(r"(?P<data>.+), SVAG level (?P<level>\d+)")
_SUBSET = re.compile(r"(?P<setting>.+), subset (?P<subset>\d+)")
_METHOD = re.compile(r"(?:SGD|momentum (?P<momentum>[\d.]+))(?:(?:,| at) η (?P<rate>[\d.]+))?")
_SVAG_AT = {"digits": (100, 4.0), "fashion-mnist": (128, 0.8), "cifar10": (128, 0.4)}
"""Batch and rate of the SVAG runs at desk scale, which their names do not say."""


def before_factors(experiment: str, arm: str, metric: str) -> tuple[str, str, Mapping[str, Factor]]:
    """Return arm and metric as they are called now, and the factors in their names.

    >>> before_factors("digits, batch 16", "SGD, η 0.25", "accuracy")[0]
    'SGD at η 0.25'
    """
    return arm.replace(", η", " at η"), metric, _factors(experiment, arm) if arm else {}


def _factors(experiment: str, arm: str) -> Mapping[str, Factor]:
    if found := _SUBSET.fullmatch(experiment):
        return {"setting": found["setting"], "subset": int(found["subset"])}
    if experiment == "two wells":
        return {"alpha": float(arm.removeprefix("alpha "))}
    if arm.startswith("β "):
        return {"momentum": float(arm.removeprefix("β "))}
    method = _METHOD.fullmatch(arm)
    momentum = {"momentum": float(method["momentum"] or 0.0)} if method else {}
    if found := _SVAG.fullmatch(experiment):
        batch, at = _SVAG_AT[found["data"]]
        return {"data": found["data"], "batch": batch, "view": "svag", **momentum, "rate": at,
                "level": int(found["level"])}
    if found := _GRID.fullmatch(experiment):
        rate = {"rate": float(method["rate"])} if method and method["rate"] else {}
        return {"data": found["data"], "batch": int(found["batch"]), "view": found["view"] or "grid", **momentum,
                **rate}
    return {}
