"""What would decide what is undecided: so many pairs do so in four of five simulations, and the hours add up."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import scipy

from optscope.analyses.outlook import outlooks
from optscope.evidence.claims import Claim, Verdict
from optscope.evidence.power import outlook, power
from optscope.evidence.records import Record, Records, Watched
from optscope.evidence.verdicts import all_of, equivalent, greater, holm_corrected
from tiny import call

RESULTS = Path(__file__).parents[1] / "results"
RNG = np.random.default_rng(5)


def share(judge, n, effect, outcome, draws=800):
    """How often a test of n pairs with this mean difference and spread 1 comes to an outcome."""
    return np.mean([judge(RNG.normal(effect, 1.0, n), np.zeros(n)).outcome == outcome for _ in range(draws)])


def found(judge, effect, n=8):
    """The verdict on n pairs with exactly this mean difference and spread."""
    values = RNG.normal(size=n)
    return judge(effect + (values - values.mean()) / values.std(ddof=1), np.zeros(n))


def test_power_is_that_of_the_noncentral_t():
    for n in (6, 8, 30, 1000):
        for effect in (0.0, 0.01, 0.3, -1.0, 4.0, 40.0):
            for alpha in (0.05, 0.05 / 40):
                least = scipy.stats.t.ppf(1 - alpha / 2, n - 1)
                known = scipy.stats.nct.sf(least, n - 1, abs(effect) * n**0.5)
                assert power(n, effect, alpha) == pytest.approx(known, rel=1e-9)


@pytest.mark.parametrize(("judge", "effect", "outcome"), [
    (greater, 0.5, "holds"), (greater, -0.5, "fails"),
    (lambda a, b: equivalent(a, b, 1.0), 0.2, "holds"), (lambda a, b: equivalent(a, b, 0.5), 1.0, "fails"),
    (lambda a, b: equivalent(a, b, 0.6), 0.0, "holds")],
    ids=["greater", "less", "equal", "unequal", "equal in the middle"])
def test_so_many_pairs_decide_in_four_of_five_simulations(judge, effect, outcome):
    told = outlook(found(judge, effect))
    assert told.holds == (outcome == "holds")
    assert share(judge, told.pairs, effect, outcome) == pytest.approx(0.8, abs=0.05)
    assert share(judge, told.pairs - 3, effect, outcome) < 0.8


def test_the_reach_is_what_n_pairs_show_in_four_of_five_simulations():
    told = outlook(found(greater, 0.1, n=10))
    assert share(greater, 10, told.reach, "holds") == pytest.approx(0.8, abs=0.05)
    assert outlook(found(greater, 0.1, n=4)).reach == np.inf


def test_of_many_tests_it_takes_more_and_nobody_can_tell_without_bounds_or_spread():
    verdict = found(greater, 0.5)
    assert outlook(replace(verdict, tests=6)).pairs > outlook(verdict).pairs
    assert outlook(replace(verdict, effect=1e-6)).pairs is None
    assert outlook(replace(verdict, low=np.nan, high=np.nan)) is None
    assert outlook(replace(verdict, least=-np.inf)) is None


def test_the_hours_are_those_of_the_runs_that_the_claim_read():
    gaps = {1: 1.0, 2: -0.5, 3: 2.0, 4: -1.0, 5: 1.5, 6: 0.2, 7: -0.3, 8: 1.0}
    rows = [Record("one", arm, seed, metric, value, run=f"{arm}{seed}")
            for seed, gap in gaps.items() for arm, x in (("A", gap), ("B", 0.0), ("C", 0.0))
            for metric, value in (("accuracy", x), ("seconds", 450.0))]
    rows += [Record("one", "A", 1, "accuracy", 0.0, phase="tune", run="tuned")]
    read = set()
    Watched(Records(rows), read).where(experiment="one").pairs("A", "B", "accuracy")
    assert read == {f"{arm}{seed}" for arm in "AB" for seed in gaps}

    def test(records):
        better = greater(*records.where(experiment="one").pairs("A", "B", "accuracy"), unit="points")
        return all_of([Verdict("holds", "known."), *holm_corrected([better, better])])
    study = replace(import_module("optscope.studies.robustness_gap").STUDY, families={"X": "an example"},
                    shown={}, answers=(), looks={},
                    claims=(Claim("X", "A is better.", "here", test, "B is better"),))
    table = outlooks(study, Records(rows))
    needed = outlook(replace(greater(list(gaps.values()), [0.0] * 8), tests=2)).pairs
    assert [row[0] for row in table.rows] == ["X"]  # equal parts are said once
    assert table.rows[0][2:4] == ("at least 0", "8")
    assert table.rows[0][5] == f"{needed} (holds)"
    assert float(table.rows[0][6]) == pytest.approx((needed - 8) * 2 * 450 / 3600, rel=0.05)


def test_the_command_says_it_of_every_undecided_claim_of_a_report(monkeypatch, capsys):
    name = "modern_optimisers"
    assert call(monkeypatch, f"show {name} --power {RESULTS / name}") == 0
    said = " ".join(capsys.readouterr().out.split())
    judged = json.loads((RESULTS / name / "verdicts.json").read_text())
    for claim in (each["claim"] for each in judged if each["outcome"] == "undecided"):
        assert claim.split()[0] in said
    assert call(monkeypatch, f"show gan_grafting --power {RESULTS / name}") == 2
    assert "expected the records of gan_grafting, got none that its claims read" in " ".join(
        capsys.readouterr().err.split())


def test_of_a_study_whose_runs_all_failed_nothing_is_measured():
    study = import_module("optscope.studies.robustness_gap").STUDY
    found = outlooks(study, Records())
    assert {row[0] for row in found.rows} <= {claim.id for claim in study.claims}
    assert {row[1] for row in found.rows} == {"not measured"}


def test_what_another_scale_measures_is_said_once_a_claim():
    rows = outlooks(import_module("optscope.studies.gan_grafting").STUDY, Records()).rows
    said = [row[1] for row in rows if row[0] == "C3 fashion-mnist"]  # two normalised rules, of which one must do
    assert said == ["not measured: --scale long does"]
    assert [row[1] for row in rows if row[0] == "C3 lattice"] == ["not measured"]
