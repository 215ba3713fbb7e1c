"""Claims about modern optimisers as tests on records; every margin, rate and place is fixed before any run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optscope.evidence.claims import Claim, Verdict
from optscope.evidence.records import Record, Records
from optscope.evidence.stats import mean_interval
from optscope.evidence.verdicts import all_of, equivalent, greater, shown_by, within
from optscope.protocol.grafts import graft_name

Array = NDArray[np.float64]

EQUAL = 1.5
"""Clean accuracies within this many points are equal."""
AS_ROBUST = 3.0
"""Accuracies under attack within this many points are equal, and not lower if lower by less."""
ATTACK = "accuracy under l2 attack"
RADII = {"fashion-mnist": 0.5, "cifar10": 0.2}
"""Where accuracy under attack is judged: for Fashion-MNIST as in the study of the robustness gap."""
EDGE = {"l2": (0.15, 0.3, 0.45), "l-infinity": (3e-4, 1e-3, 3e-3), "spectral": (0.01, 0.03, 0.1)}
"""Norms of steepest descent and the rates of each."""
AT_EDGE = (0.8, 2.0)
"""Sharpness over threshold that counts as at the edge, mean over the last fifth of the readings."""
EPOCHS = (5, 40)
"""Short and long trainings on rare classes."""
KEPT = 0.5
"""A graft that keeps this share of a gain earns it."""
SOONER = 0.9
"""A share of the steps that is fewer steps."""
LENGTH_OF_ADAMW, LENGTH_OF_SOAP = graft_name("AdamW", "SOAP"), graft_name("SOAP", "AdamW")
OTHERS = ("Adam", "AdamW", "Muon", "SOAP", "Lion", "Schedule-free")


@dataclass(frozen=True)
class Equal:
    """Two arms' values of a metric differ by no more than a margin."""

    experiment: str
    first: str
    second: str
    margin: float

    def __call__(self, records: Records) -> Verdict:
        """Judge the paired difference by equivalence."""
        pairs = records.where(experiment=self.experiment).pairs(self.first, self.second, "accuracy")
        return equivalent(*pairs, self.margin, what=f"clean accuracy, {self.first} − {self.second}", unit="points")


@dataclass(frozen=True)
class Above:
    """An arm's values of a metric are above another's, or (a margin below 0) not below them by more than it."""

    experiment: str
    first: str
    second: str
    metric: str
    at: float | None = None
    margin: float = 0.0
    unit: str = "points"

    def __call__(self, records: Records) -> Verdict:
        """Judge the paired difference."""
        pairs = records.where(experiment=self.experiment).pairs(self.first, self.second, self.metric, self.at)
        place = "" if self.at is None else f" ({self.at:g})"
        return greater(*pairs, self.margin, what=f"{self.metric}{place}, {self.first} − {self.second}",
                       unit=self.unit)


@dataclass(frozen=True)
class HurtLess:
    """Noise in the bands above the lowest costs an arm's model less than another's."""

    experiment: str
    first: str
    second: str

    def __call__(self, records: Records) -> Verdict:
        """Judge the paired difference of the drops summed over bands 1 to 9."""
        mine = records.where(experiment=self.experiment)
        pairs = [mine.pairs(self.second, self.first, "drop under band noise", band) for band in range(1, 10)]
        return greater(np.sum([p[0] for p in pairs], axis=0), np.sum([p[1] for p in pairs], axis=0), unit="points",
                       what=f"drop summed over bands 1-9, {self.second} − {self.first}")


@dataclass(frozen=True)
class AtTheEdge:
    """Sharpness in the rule's own norm ends at what the rule can bear."""

    norm: str
    rate: float

    def __call__(self, records: Records) -> Verdict:
        """Judge the interval over seeds of the ratio, each seed's a mean over the last fifth of its readings."""
        low, high = AT_EDGE
        return within(mean_interval(ratios(records, self.norm, self.rate)), low, high,
                      what=f"{self.norm} at {self.rate:g}: sharpness over threshold")


def followed(records: Records, norm: str, rate: float) -> list[Record]:
    """Return the readings of sharpness over threshold along the trainings of one norm at one rate."""
    rows = records.where(experiment="edge", metric="sharpness / threshold", phase="final", norm=norm, rate=rate)
    return [row for row in rows if row.step is not None]


def ratios(records: Records, norm: str, rate: float) -> Array:
    """Return sharpness over threshold at the end of training, one mean a seed."""
    rows = followed(records, norm, rate)
    found = []
    for seed in sorted({row.seed for row in rows}):
        mine = sorted((row for row in rows if row.seed == seed), key=lambda row: row.step or 0)
        found.append(np.mean([row.value for row in mine[-max(1, len(mine) // 5):]]))
    return np.array(found, dtype=np.float64)


def _losses(records: Records, arm: str) -> Array:
    return records.where(experiment="shakespeare").values(arm, "loss")


@dataclass(frozen=True)
class Keeps:
    """A graft keeps at least a share of what SOAP gains over AdamW in loss, or less than that (`enough=False`)."""

    graft: str
    enough: bool = True

    def __call__(self, records: Records) -> Verdict:
        """Judge over seeds what the graft gains, less that share of SOAP's gain."""
        adamw, soap, graft = (_losses(records, arm) for arm in ("AdamW", "SOAP", self.graft))
        if not len(adamw) == len(soap) == len(graft):
            adamw = soap = graft = np.array([])
        kept, half = adamw - graft, KEPT * (adamw - soap)
        both = f"{self.graft}'s", f"{KEPT:g} of SOAP's"
        first, second = both if self.enough else both[::-1]
        return greater(*((kept, half) if self.enough else (half, kept)), unit="nats",
                       what=f"gain in loss over AdamW, {first} − {second}")


def averaged_equal(records: Records) -> Verdict:
    """Judge whether schedule-free and averaged AdamW are equal, clean and under attack."""
    free, mean = (_both(records, metric) for metric in ("accuracy", ATTACK))
    clean = equivalent(*free, EQUAL, what="clean accuracy, Schedule-free − averaged AdamW", unit="points")
    robust = equivalent(*mean, AS_ROBUST, what=f"{ATTACK} ({RADII['fashion-mnist']:g}), Schedule-free − averaged "
                        "AdamW", unit="points")
    return shown_by(all_of([clean, robust]), robust)


def _both(records: Records, metric: str) -> tuple[Array, Array]:
    """Return values of the schedule-free and the averaged arm, of two experiments, paired by seed."""
    at = RADII["fashion-mnist"] if metric == ATTACK else None
    free = records.where(experiment="fashion-mnist").by_seed("Schedule-free", metric, at)
    mean = records.where(experiment="averaged").by_seed("AdamW", metric, at)
    seeds = sorted({*free, *mean})
    return (np.array([free.get(s, np.nan) for s in seeds]), np.array([mean.get(s, np.nan) for s in seeds]))


def rare(epochs: int) -> str:
    """Return the name of the experiment on rare classes."""
    return f"rare classes, {epochs} epochs"


def gap_closes(records: Records) -> Verdict:
    """Judge whether what AdamW leads SGD by on rare classes is more after the short training than the long."""
    gaps = [np.subtract(*records.where(experiment=rare(epochs)).pairs("AdamW", "SGD", "accuracy"))
            for epochs in EPOCHS]
    if len({len(gap) for gap in gaps}) > 1:
        gaps = [np.array([]), np.array([])]
    return greater(gaps[0], gaps[1], what=f"lead of AdamW over SGD on rare classes, {EPOCHS[0]} − {EPOCHS[1]} "
                   "epochs", unit="points")


@dataclass(frozen=True)
class Sooner:
    """An arm reaches AdamW's last validation loss in a smaller share of the steps."""

    arm: str

    def __call__(self, records: Records) -> Verdict:
        """Judge the interval over seeds of that share."""
        return within(mean_interval(shares_of_steps(records, self.arm)), high=SOONER,
                      what=f"{self.arm}: share of the steps to AdamW's last loss")


def shares_of_steps(records: Records, arm: str) -> Array:
    """Return after which share of the steps a run's validation loss is first at AdamW's last, one a seed.

    A run is looked at at some moments, and the first that reaches it counts. One that never does has the share that
    the moment after the last would have.
    """
    rows = records.where(experiment="shakespeare", metric="loss", phase="final")
    paths: dict[str, dict[int, dict[int, float]]] = {"AdamW": {}, arm: {}}
    for name, path in paths.items():
        for row in rows.where(arm=name):
            if row.step is not None:
                path.setdefault(row.seed, {})[row.step] = row.value
    found = []
    for seed in sorted(paths["AdamW"].keys() & paths[arm].keys()):
        mine, reference = paths[arm][seed], paths["AdamW"][seed]
        total = max(reference)
        never = total * (1 + 1 / len(reference))
        found.append(min((step for step, loss in mine.items() if loss <= reference[total]), default=never) / total)
    return np.array(found, dtype=np.float64)


def _claims() -> list[Claim]:
    found: list[Claim] = []
    for data, radius in RADII.items():
        found += [Claim(f"C1 {data} {arm}", f"On {data}, {arm}'s models are as accurate as SGD's, within {EQUAL:g} "
                        "points", "the premise of all others", Equal(data, arm, "SGD", EQUAL),
                        "a difference outside the margin") for arm in OTHERS]
        found.append(Claim(
            f"C2 {data} SGD", f"On {data}, Muon's models are no less accurate than SGD's under l2 attack of "
            f"{radius:g}, within {AS_ROBUST:g} points", "2605.26929, for ordinary training",
            Above(data, "Muon", "SGD", ATTACK, radius, -AS_ROBUST), "an accuracy lower by more than that"))
        found.append(Claim(
            f"C2 {data} AdamW", f"On {data}, Muon's models are more accurate than AdamW's under l2 attack of "
            f"{radius:g}", "2605.26929, for ordinary training", Above(data, "Muon", "AdamW", ATTACK, radius),
            "an interval below 0"))
        found += [Claim(f"C3 {data} {arm}", f"On {data}, SGD's models are more accurate than {arm}'s under l2 "
                        f"attack of {radius:g}", "2308.06703, extended", Above(data, "SGD", arm, ATTACK, radius),
                        "an interval below 0") for arm in OTHERS if arm != "Muon"]
        found.append(Claim(f"C4 {data}", f"On {data}, noise outside the lowest band costs Muon's models less than "
                           "AdamW's", "ours, after 2308.06703", HurtLess(data, "Muon", "AdamW"),
                           "an interval below 0"))
    found += [Claim(f"C5 {data} {arm}", f"On {data}, the stable rank of Muon's weights is above that of {arm}'s",
                    "2603.00742, 2602.16340", Above(data, "Muon", arm, "stable rank", unit="%"),
                    "an interval below 0") for data in (*RADII, "shakespeare") for arm in ("SGD", "AdamW")]
    found += [Claim(f"C6 {arm}", f"Where a simple cue tells the class in training and misleads in the test, Muon's "
                    f"models are more often right than {arm}'s", "2603.00742, in our words",
                    Above("cued", "Muon", arm, "accuracy"), "an interval below 0") for arm in ("SGD", "AdamW")]
    low, high = AT_EDGE
    found += [Claim(f"C7 {norm} {rate:g}", f"Steepest descent in the {norm} norm at rate {rate:g} ends with a "
                    f"sharpness of {low:g} to {high:g} times its threshold", "2603.05002",
                    AtTheEdge(norm, rate), "an interval outside") for norm, rates in EDGE.items() for rate in rates]
    found += [
        Claim("C8 gain", "On shakespeare, SOAP ends with a lower loss than AdamW", "2510.25000",
              Above("shakespeare", "AdamW", "SOAP", "loss", unit="nats"), "an interval below 0"),
        Claim("C8 direction", "SOAP's direction at AdamW's length keeps half of the gain",
              "2510.25000, in our words", Keeps(LENGTH_OF_ADAMW), "a gain of less than half"),
        Claim("C8 length", "SOAP's length on AdamW's direction keeps less than half of the gain", "the other graft",
              Keeps(LENGTH_OF_SOAP, enough=False), "a gain of more than half"),
        Claim("C9", f"On fashion-mnist, schedule-free AdamW's model equals that of AdamW's averaged weights: "
              f"accuracy within {EQUAL:g} points, under l2 attack within {AS_ROBUST:g}", "2405.15682, in our words",
              averaged_equal, "a difference outside a margin"),
        Claim("C10 gap", f"AdamW leads SGD on rare classes by more after {EPOCHS[0]} epochs than after {EPOCHS[1]}",
              "2402.19449", gap_closes, "an interval below 0")]
    pairs = (("AdamW", "SGD", "2402.19449"), ("Muon", "SGD", "2606.04662"), ("Muon", "AdamW", "2606.04662"))
    found += [Claim(f"C10 {a} {b}", f"After {EPOCHS[0]} epochs {a} is more often right than {b} on the three "
                    "rarest classes", source, Above(rare(EPOCHS[0]), a, b, "accuracy"), "an interval below 0")
              for a, b, source in pairs]
    found += [Claim(f"C11 {arm}", f"On shakespeare, {arm} reaches AdamW's last validation loss in at most "
                    f"{100 * SOONER:g} % of the steps", "what these methods are known for", Sooner(arm),
                    "an interval above that") for arm in ("Muon", "SOAP", "Lion", "Schedule-free")]
    return found


CLAIMS = tuple(_claims())
