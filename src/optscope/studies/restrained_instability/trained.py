"""The trained half of the study: rounding twins of real networks, their accuracy, their sharpness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from optscope.engine.plan import Plan
from optscope.engine.saving import Saving
from optscope.engine.weight_paths import log_spaced, weight_paths
from optscope.evidence.growth import growth_rate
from optscope.evidence.records import Factor, Record, measured
from optscope.optim import Rounded, Rule
from optscope.probes.accuracy import Accuracy
from optscope.probes.batch_sharpness import BatchSharpness
from optscope.probes.curvature import PreconditionedSharpness, TopEigenvalues
from optscope.probes.probe import Memory, Probe, Reading, Value
from optscope.tasks.snapshot import Snapshot
from optscope.tasks.task import Task

Found = tuple[list[Record], Mapping[str, NDArray[Any]]]

RISE = (1e-6, 1e-3)
"""Between these distances the growth rate of float32 twins is fitted."""
EVERY = 20
"""Steps between readings of the sharpness."""
_TOP = TopEigenvalues(rel=0.05, margin=2.0, examples=None, split="train")
MET: Mapping[str, tuple[Probe, ...]] = {
    "sharpness": (_TOP,),
    "preconditioned sharpness": (PreconditionedSharpness(rel=0.05, margin=2.0, examples=None, split="train"),),
    "batch sharpness": (BatchSharpness(examples=320), _TOP),
}
"""What a rule meets: gradient descent in full batches, Adam in full batches, and gradient descent in small ones."""


def part_ways(arm: str, task: Task, rule: Rule, plan: Plan, seed: int, control: bool,
              saving: Saving | None = None) -> Found:
    """Train twins k = 1 and 3 (and the control 2), and follow the distance of their weights.

    Rows: the distance after a hundred steps and at the end, the growth rate; coordinates are learning rates.
    """
    rules = [Rounded(rule, k) for k in (1, 3, *((2,) if control else ()))]
    total = plan.total(task.data().train.size)
    found = weight_paths(task, rules, plan, seed, at={*log_spaced(total), *_shared(total)}, saving=saving)
    lr = float(rule.lr)  # type: ignore[arg-type]
    distance = found.distance[0]
    rows = [measured(arm, seed, "final distance", float(distance[-1]), at=lr),
            measured(arm, seed, "final relative distance", float(found.relative[0, -1]), at=lr),
            measured(arm, seed, "first distance", float(distance[0]), at=lr),
            measured(arm, seed, "growth rate", growth_rate(found.steps, distance, *RISE).estimate, at=lr)]
    rows += [measured(arm, seed, f"distance after {step} steps", float(distance[found.steps == step][0]), at=lr)
             for step in _shared(total)]
    if control:
        rows.append(measured(arm, seed, "largest distance of the control", float(found.distance[1].max()), at=lr))
    name = f"{arm}/{lr:g}/{seed}"
    return rows, {f"{name}/steps": found.steps, f"{name}/distance": distance}


def _shared(total: int) -> list[int]:
    """Return the steps at which learning rates of different runs are compared at equal lr · steps."""
    return [step for step in (30, 100, 300) if step <= total]


def accuracies(task: Task, rule: Rule, plan: Plan, seed: int, ks: Sequence[int], first_only: Sequence[int],
               last: int, saving: Saving | None = None) -> Found:
    """Train one network with every `k`, and take the mean test accuracy of the last epochs of each.

    Arms are "k = 3", or "k = 3 in the first step", and have k and the steps that are rounded as factors.
    """
    rules = {f"k = {k}": Rounded(rule, k) for k in ks}
    rules |= {f"k = {k} in the first step": Rounded(rule, k, steps=1) for k in first_only}
    factors: list[dict[str, Factor]] = [{"k": k, "steps": "all"} for k in ks]
    factors += [{"k": k, "steps": "first"} for k in first_only]
    examples = task.data().train.size
    total, epoch = plan.total(examples), plan.per_epoch(examples)

    def look(i: int, snapshot: Snapshot, memory: Memory) -> Reading:
        return Accuracy()(snapshot)

    found = weight_paths(task, list(rules.values()), plan, seed,
                         at=range(total - (last - 1) * epoch, total + 1, epoch), watch=look, saving=saving)
    seen = [[float(r.values["accuracy"]) for r in each.values()] for each in found.seen]  # type: ignore[arg-type]
    rows = [measured(arm, seed, "accuracy", float(np.mean(values)) if values else float("nan"), None, None, **of)
            for arm, of, values in zip(rules, factors, seen, strict=True)]
    rows += [measured(arm, seed, "distance", float(apart), None, None, **of)
             for arm, of, apart in zip(list(rules)[1:], factors[1:], found.distance[:, -1], strict=True)]
    return rows, {}


def edge_of_stability(arm: str, task: Task, rule: Rule, plan: Plan, seed: int, threshold: float,
                      met: str = "sharpness", saving: Saving | None = None) -> Found:
    """Follow the sharpness that a rule meets, one of `MET`, against `threshold`, and the distance of a twin.

    Coordinates are learning rates. A run crosses at the first reading whose sharpness is at least the threshold.
    It amplifies if its distance ever is a hundred times the median of the readings before it crosses (of the
    first half, if it never does). Steps that are never reached are reported as one reading beyond the last. Late
    numbers are medians over the last quarter of the readings.
    """
    def look(i: int, snapshot: Snapshot, memory: Memory) -> Reading | None:
        return _joined([probe(snapshot, memory) for probe in MET[met]]) if i == 0 else None

    total = plan.total(task.data().train.size)
    found = weight_paths(task, [Rounded(rule, k) for k in (1, 3)], plan, seed, at=range(EVERY, total + 1, EVERY),
                         watch=look, saving=saving)
    lr = float(rule.lr)  # type: ignore[arg-type]
    name = f"{arm}/{lr:g}/{seed}"
    if found.trained[0].diverged_at is not None:
        return [measured(arm, seed, "final loss", float("nan"), at=lr)], {}
    readings = list(found.seen[0].values())
    sharpness = np.array([float(reading.values.get(met, np.nan)) for reading in readings])  # type: ignore[arg-type]
    ratio, distance = sharpness / threshold, found.distance[0]
    late = max(1, len(ratio) // 4)
    crossing = _first(ratio >= 1)
    before = float(np.median(distance[:max(1, crossing) if crossing < len(ratio) else len(ratio) // 2]))
    amplified = _first(distance >= 100 * before)
    rows = [measured(arm, seed, metric, value, at=lr) for metric, value in (
        ("final loss", float(found.trained[0].losses[-1])),
        ("largest sharpness / threshold", float(np.nanmax(ratio))),
        ("late sharpness / threshold", float(np.nanmedian(ratio[-late:]))),
        ("crossing step", float(EVERY * (crossing + 1))), ("amplifying step", float(EVERY * (amplified + 1))),
        ("crossed", float(crossing < len(ratio))), ("amplified", float(amplified < len(ratio))),
        ("distance before", before), ("largest distance", float(distance.max())),
        ("final distance", float(distance[-1])))]
    if len(MET[met]) > 1:
        whole = np.array([float(reading.values["sharpness"]) for reading in readings])  # type: ignore[arg-type]
        rows.append(measured(arm, seed, "late sharpness of all / threshold",
                             float(np.median(whole[-late:])) / threshold, at=lr))
    return rows, {f"{name}/steps": found.steps, f"{name}/distance": distance,
                  f"{name}/sharpness": sharpness, f"{name}/threshold": np.array(threshold)}


def _joined(readings: Sequence[Reading]) -> Reading:
    """Return readings of several probes as one."""
    values: dict[str, Value] = {}
    memory: dict[str, Tensor] = {}
    for reading in readings:
        values |= reading.values
        memory |= reading.memory
    return Reading(values, memory=memory)


def _first(flags: NDArray[np.bool_]) -> int:
    """Return the index of the first True, or the length if there is none."""
    return int(np.argmax(flags)) if flags.any() else len(flags)
