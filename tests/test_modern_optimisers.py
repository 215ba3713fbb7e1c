"""The study of modern optimisers: each claim, on records made so that it is known to hold, and to fail."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import import_module

import pytest

from optscope.evidence.records import Record, Records
from optscope.protocol.comparison import Comparison

claims = import_module("optscope.studies.modern_optimisers.claims")
STUDY = import_module("optscope.studies.modern_optimisers").STUDY
SEEDS = range(1, 9)
TEXT = ("SGD", "Adam", "AdamW", "Muon", "SOAP", "Lion", "Schedule-free", claims.LENGTH_OF_ADAMW,
        claims.LENGTH_OF_SOAP)
ACCURACY = dict.fromkeys(TEXT[:7], 85.0)
ATTACKED = {"SGD": 60.0, "Muon": 59.0} | dict.fromkeys(("Adam", "AdamW", "SOAP", "Lion", "Schedule-free"), 40.0)
LOSS = dict(zip(TEXT, (2.2, 2.0, 2.0, 1.8, 1.8, 2.0, 2.0, 1.85, 1.97), strict=True))
SHARE = dict.fromkeys(TEXT, 1.0) | dict.fromkeys(("Muon", "SOAP", "Lion", "Schedule-free"), 0.5)
MOMENTS = 10


def rows(experiment, metric, means, at=None, step=None, wiggle=0.1, factors=None):
    """Return a row a seed and arm, about the arm's mean, arms moving together but for a little."""
    return [Record(experiment, arm, seed, metric, mean + wiggle * (math.sin(seed) + 0.2 * math.cos(seed * k)), at,
                   step, factors=factors or {}) for k, (arm, mean) in enumerate(means.items()) for seed in SEEDS]


def losses(arm, reaches):
    """Return validation losses that fall below AdamW's last, 2.0, at a share of the steps."""
    return [Record("shakespeare", arm, seed, "loss", 2.0 if k >= reaches * MOMENTS else 3.0, None, 60 * k)
            for seed in SEEDS for k in range(1, MOMENTS + 1)]


def holding():
    """Return records by family on which every claim holds."""
    found = {family: [] for family in STUDY.families}
    for data, radius in claims.RADII.items():
        found["C1"] += rows(data, "accuracy", ACCURACY)
        found["C2"] += rows(data, claims.ATTACK, ATTACKED, radius)
        for band in range(10):
            found["C4"] += rows(data, "drop under band noise", {"Muon": 1.0, "AdamW": 3.0}, float(band))
    for data in (*claims.RADII, "shakespeare"):
        found["C5"] += rows(data, "stable rank", {"SGD": 10.0, "AdamW": 12.0, "Muon": 30.0})
    found["C6"] += rows("cued", "accuracy", {"SGD": 20.0, "AdamW": 20.0, "Muon": 40.0})
    for norm, rates in claims.EDGE.items():
        for rate in rates:
            for step, ratio in ((10, 0.1), (20, 0.5), (30, 0.9), (40, 1.0), (50, 1.1)):
                found["C7"] += rows("edge", "sharpness / threshold", {f"{norm} at {rate:g}": ratio}, step=step,
                                    wiggle=0.01, factors={"norm": norm, "rate": rate})
    found["C8"] += rows("shakespeare", "loss", LOSS, wiggle=0.01)
    found["C9"] += rows("averaged", "accuracy", {"AdamW": 85.0}) + rows(
        "averaged", claims.ATTACK, {"AdamW": 40.0}, claims.RADII["fashion-mnist"])
    for epochs, lead in zip(claims.EPOCHS, (20.0, 2.0), strict=True):
        found["C10"] += rows(claims.rare(epochs), "accuracy", {"SGD": 50.0, "AdamW": 50 + lead, "Muon": 55 + lead})
    for arm, share in SHARE.items():
        found["C11"] += losses(arm, share)
    return found


def judged(found):
    records = Records(row for part in found.values() for row in part)
    return {claim.id: verdict for claim, verdict in STUDY.judge(records, "desk")}


def test_every_claim_holds_where_it_is_made_to():
    found = judged(holding())
    assert {name: verdict.note for name, verdict in found.items() if verdict.outcome != "holds"} == {}
    assert {verdict.n for verdict in found.values()} == {len(SEEDS)}


def test_every_claim_fails_on_the_opposite():
    """A claim that one thing is above another fails where both are swapped, one of equality where they differ."""
    turned = {"SGD": "Muon", "Muon": "SGD"}
    wrong = holding()
    wrong["C1"] = [r for data in claims.RADII
                   for r in rows(data, "accuracy", {"SGD": 85.0} | dict.fromkeys(claims.OTHERS, 80.0))]
    wrong["C2"] = [r for data, radius in claims.RADII.items() for r in rows(
        data, claims.ATTACK, dict.fromkeys(TEXT[:7], 60.0) | {"SGD": 40.0, "Muon": 30.0}, radius)]
    wrong["C4"] = [r for data in claims.RADII for band in range(10)
                   for r in rows(data, "drop under band noise", {"Muon": 3.0, "AdamW": 1.0}, float(band))]
    for family in ("C5", "C6"):
        wrong[family] = [Record(r.experiment, turned.get(r.arm, r.arm), r.seed, r.metric,
                                r.value + 60 * (r.arm == "AdamW"), r.at, r.step) for r in wrong[family]]
    wrong["C7"] = [replace(r, value=5 * r.value) for r in wrong["C7"]]
    wrong["C8"] = rows("shakespeare", "loss", LOSS | {"SOAP": 2.4, claims.LENGTH_OF_ADAMW: 2.6,
                                                      claims.LENGTH_OF_SOAP: 1.9}, wiggle=0.01)
    wrong["C10"] = [r for epochs, lead in zip(claims.EPOCHS, (2.0, 20.0), strict=True) for r in rows(
        claims.rare(epochs), "accuracy", {"SGD": 60.0 + lead, "AdamW": 55.0 + 2 * lead, "Muon": 30.0})]
    wrong["C11"] = [r for arm in SHARE for r in losses(arm, 1.0)]
    found = judged(wrong)
    assert {name: verdict.note for name, verdict in found.items() if verdict.outcome != "fails"} == {}


def test_what_never_comes_there_counts_as_the_moment_after_the_last():
    records = Records([*losses("AdamW", 1.0), *losses("Lion", 0.3), *losses("Muon", 2.0)])
    assert claims.shares_of_steps(records, "Lion").tolist() == [0.3] * len(SEEDS)
    assert claims.shares_of_steps(records, "Muon").tolist() == [pytest.approx(1.1)] * len(SEEDS)


def test_the_desk_and_smoke_experiments_have_what_claims_ask_for():
    by_name = {e.name: e for e in STUDY.experiments("desk")}
    assert {*claims.RADII, "averaged", "cued", "edge", "shakespeare"} <= by_name.keys()
    assert {claims.rare(epochs) for epochs in claims.EPOCHS} <= by_name.keys()
    assert all(isinstance(e, Comparison) and len(e.seeds) >= 8 for e in by_name.values())
    assert tuple(arm.name for arm in by_name["shakespeare"].arms) == TEXT
    for data, radius in claims.RADII.items():
        attack = next(p for p in by_name[data].probes if claims.ATTACK in [m.name for m in p.metrics])
        assert radius in attack.eps
    assert [arm.name for arm in by_name["edge"].arms] == [
        f"{norm} at {rate:g}" for norm, rates in claims.EDGE.items() for rate in rates]


def test_without_records_nothing_is_judged_or_drawn():
    assert {verdict.outcome for _, verdict in STUDY.judge(Records(), "desk")} == {"undecided"}
    assert STUDY.pictures(Records(), {}) == []


def test_pictures_are_drawn_from_the_same_records():
    records = Records(row for part in holding().values() for row in part)
    drawn = STUDY.pictures(records.where(experiment=["edge", "cued", "shakespeare"]), {})
    names = [figure.name for figure in drawn]
    assert {"edge", "cued", "losses", "grafts", "ranks"} <= set(names)
