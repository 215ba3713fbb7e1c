"""Looks: claims that are open get the next look's seeds and no others, and the whole error stays at 5 %."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import scipy

from optscope.analyses.outlook import outlooks
from optscope.analyses.twice import seen_twice
from optscope.engine.execute import Inline
from optscope.engine.plan import Plan
from optscope.engine.run import Call
from optscope.engine.store import Store
from optscope.errors import UserError
from optscope.evidence.claims import Claim
from optscope.evidence.halves import halves, on_halves
from optscope.evidence.level import at_level, level
from optscope.evidence.paired import equivalence
from optscope.evidence.power import outlook
from optscope.evidence.records import Record, Records, measured
from optscope.evidence.stats import bootstrap_interval, mean_interval, median_interval, wilson
from optscope.evidence.variance import deviation_ratio, spread_ratio
from optscope.evidence.verdicts import equivalent, greater, holm_corrected, within
from optscope.optim import SGD
from optscope.probes.accuracy import Accuracy
from optscope.protocol.comparison import Arm, Calls, Comparison
from optscope.protocol.events import Quiet
from optscope.protocol.looks import Looks
from optscope.protocol.search import Grid
from optscope.protocol.session import run_experiments
from optscope.protocol.study import Study
from optscope.protocol.twice import Twice
from optscope.report.document import Document
from optscope.report.page import render, write
from tiny import TASK

RNG = np.random.default_rng(11)
LEVELS = Looks(("X",), (tuple(range(8)), tuple(range(8, 16)), tuple(range(16, 32))), "c").levels
PAIRS = (8, 16, 32)


# The level

def test_the_looks_share_five_percent_by_their_seeds():
    assert pytest.approx([0.0125, 0.0125, 0.025]) == LEVELS


def test_tests_and_intervals_take_the_level_and_are_the_usual_ones_outside():
    values, zeros = RNG.normal(0.5, 1.0, 24), np.zeros(24)
    usual = greater(values, zeros)
    with at_level(0.01):
        assert level() == 0.01
        strict = greater(values, zeros)
        half = scipy.stats.t.ppf(0.995, 23) * values.std(ddof=1) / np.sqrt(24)
        assert (strict.low, strict.high) == pytest.approx((values.mean() - half, values.mean() + half))
        assert (strict.outcome == "holds") == (strict.p <= 0.01) == (strict.low > 0)
        assert "99 % interval" in strict.note
        assert median_interval(values) == median_interval(values, 0.99)
        assert wilson(7, 24) == wilson(7, 24, 0.99)
        assert spread_ratio(values.reshape(8, 3)) == spread_ratio(values.reshape(8, 3), 0.99)
        assert deviation_ratio(2.0, 10, 1.0, 20) == deviation_ratio(2.0, 10, 1.0, 20, 0.99)
        assert bootstrap_interval(values, np.mean) == bootstrap_interval(values, np.mean, 0.99)
        assert within(mean_interval(values), low=0.0).low == strict.low
        assert equivalence(values, zeros, 1.0) == equivalence(values, zeros, 1.0, 0.01)
        assert "98 % interval" in equivalent(values, zeros, 2.0).note
        assert "never reach p < 0.01, it takes 6" in greater([1.0] * 3, [0.0] * 3).note
        assert greater([1.0, 1.1, 0.9, 1.05, 0.95, 1.02], [0.0] * 6).outcome == "holds"
        raw = replace(usual, outcome="holds", p=0.008)
        assert [v.outcome for v in holm_corrected([raw, raw])] == ["undecided"] * 2
    assert level() == 0.05
    assert (usual.level, strict.level) == (0.05, 0.01)
    assert usual.p == strict.p
    assert greater(values, zeros) == usual
    with pytest.raises(UserError, match="level between 0 and"), at_level(0.5):
        pass


def test_what_would_decide_is_asked_at_the_level_of_the_verdict():
    values = RNG.normal(0.3, 1.0, 12)
    values = 0.3 + (values - values.mean()) / values.std(ddof=1)
    usual = outlook(greater(values, np.zeros(12)))
    with at_level(0.0125):
        strict = greater(values, np.zeros(12))
    assert outlook(strict).pairs > usual.pairs
    assert outlook(replace(strict, level=0.05, low=0.3 - (strict.high - 0.3) / 2)).pairs != outlook(strict).pairs


def errors(judge, levels, draw, draws):
    """The share of series without an effect that some look decides."""
    decided = 0
    for _ in range(draws):
        values = draw(max(PAIRS))
        for pairs, alpha in zip(PAIRS, levels, strict=True):
            with at_level(alpha):
                if judge(values[:pairs]):
                    decided += 1
                    break
    return decided / draws


def shown(values):
    return greater(values, np.zeros(len(values))).outcome != "undecided"


def left_out(values):
    found = median_interval(values)
    return not found.low <= 0 <= found.high


def test_three_looks_err_in_five_of_a_hundred_and_peeking_in_more():
    draws = 800
    noise = 2 * np.sqrt(0.05 * 0.95 / draws)
    assert errors(shown, LEVELS, lambda n: RNG.normal(size=n), draws) <= 0.05 + noise
    assert errors(shown, [0.05] * 3, lambda n: RNG.normal(size=n), draws) > 0.05 + noise
    assert errors(left_out, LEVELS, lambda n: RNG.exponential(size=n) - np.log(2), draws) <= 0.05 + noise


# Sessions and verdicts

def gaps(seeds, size):
    """A call: the arm A is better by `size` than B, on every seed with its own noise."""
    return [row for seed in seeds for row in (
        measured("A", seed, "score", size + np.random.default_rng(seed).normal()),
        measured("B", seed, "score", 0.0))], {}


def calls(size, seeds):
    return Calls("gaps", [Call(gaps, {"seeds": seeds, "size": size})])


def better(records):
    return greater(*records.where(experiment="gaps").pairs("A", "B", "score"), what="score, A - B")


CLAIMS = (Claim("X", "A is better.", "here", better, "B is better"),
          Claim("Y", "A is better, too.", "here", better, "B is better"))
SEEDS = ((11, 12, 13, 14, 15, 16), (21, 22, 23, 24, 25, 26), (31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42))


def study_of(size, claims=("X",), seeds=SEEDS):
    """A study of two claims on one call of five seeds, of which `claims` have looks."""
    base = import_module("optscope.studies.robustness_gap").STUDY
    return Study("example", base.paper, "?", "", "", lambda scale: [calls(size, (1, 2, 3, 4, 5))], CLAIMS,
                 lambda records, arrays: [], {"X": "an example", "Y": "another"}, {"desk": "no time"},
                 looks={"desk": (Looks(claims, seeds, lambda seeds: calls(size, seeds)),)})


def done(study, folder):
    experiments = study.experiments("desk")
    return run_experiments([*experiments, *study.looking("desk", [])], Store(folder), Inline(), Quiet()).records


@pytest.mark.parametrize(("size", "looks"), [(6.0, 1), (1.3, 2), (0.8, 3), (0.0, 3)])
def test_a_claim_that_is_open_gets_the_seeds_of_the_next_look_and_no_others(tmp_path, size, looks):
    study = study_of(size)
    records = done(study, tmp_path)
    seeds = [seed for added in SEEDS[:looks] for seed in added]
    assert sorted(records.where(experiment="gaps at looks").seeds("A")) == seeds
    x, y = (verdict for _, verdict in study.judge(records, "desk"))
    with at_level(LEVELS[looks - 1]):
        alone = better(Records(replace(row, experiment="gaps") for row in records if "looks" in row.experiment))
    assert (x.outcome, x.p, x.low, x.n) == (alone.outcome, alone.p, alone.low, len(seeds))
    assert f"Look {looks} of 3: {len(seeds)} of 24 seeds, at a level of {100 * LEVELS[looks - 1]:g} %." in x.note
    assert (y.n, y.level) == (5, 0.05)
    assert len(x.halves) == 2
    assert sum(half.n for half in x.halves) == x.n


def test_seeds_of_the_look_that_decided_stay_while_looks_of_others_go_on(tmp_path):
    def noise(seeds):
        return Calls("noise", [Call(gaps, {"seeds": seeds, "size": 0.0})])
    other = Claim("Y", "A is better there.", "here", lambda records: better(Records(
        replace(row, experiment="gaps") for row in records.where(experiment="noise"))), "-")
    study = study_of(1.3)
    study = replace(study, claims=(CLAIMS[0], other), looks={"desk": (*study.looks["desk"],
                                                                      Looks(("Y",), SEEDS, noise))})
    records = done(study, tmp_path)
    x, y = (verdict for _, verdict in study.judge(records, "desk"))
    assert (x.outcome, x.n, y.n) == ("holds", 12, 24)
    assert sorted(records.where(experiment="gaps at looks").seeds("A")) == [*SEEDS[0], *SEEDS[1]]


def test_the_verdict_is_that_of_the_look_that_decided_whatever_came_later(tmp_path):
    study = study_of(6.0)
    records = done(study, tmp_path)
    later = gaps(SEEDS[1], -60.0)[0]
    more = records + [replace(row, experiment="gaps at looks") for row in later]
    assert dict(study.judge(more, "desk"))[CLAIMS[0]] == dict(study.judge(records, "desk"))[CLAIMS[0]]


def test_records_from_before_there_were_looks_are_judged_as_they_were():
    study = study_of(6.0)
    records = Records(replace(row, experiment="gaps") for row in gaps((1, 2, 3, 4, 5), 6.0)[0])
    assert study.judge(records, "desk") == replace(study, looks={}).judge(records, "desk")
    assert "Look" not in study.judge(records, "desk")[0][1].note


def test_the_outlook_of_a_claim_with_looks_is_that_of_its_last(tmp_path):
    study = study_of(0.0)
    rows = {row[0]: row for row in outlooks(study, done(study, tmp_path)).rows}
    assert (rows["X"][3], rows["Y"][3]) == ("24", "5")


def test_further_seeds_are_trained_at_the_chosen_rate_and_only_the_arms_that_were_named(tmp_path):
    arms = (Arm("SGD", SGD(lr=0.1), Grid((0.1, 0.3))), Arm("slow", SGD(lr=0.01)), Arm("other", SGD(lr=0.02)))
    comparison = Comparison("c", TASK, arms, Plan(1, 32), (Accuracy(),), (1, 2))

    def never(records):
        return greater(*records.where(experiment="c").pairs("SGD", "slow", "accuracy"), margin=1e9)
    open_ = Claim("X", "Never.", "here", lambda records: replace(never(records), outcome="undecided"), "-")
    study = replace(study_of(0.0), claims=(open_,), families={"X": "an example"},
                    looks={"desk": (Looks(("X",), ((3, 4), (5,)), "c", ("SGD", "slow")),)})
    found = run_experiments([comparison, *study.looking("desk", [comparison])], Store(tmp_path), Inline(),
                            Quiet()).records
    more = found.where(experiment="c at looks")
    assert (more.arms(), more.seeds("SGD"), more.seeds("slow")) == (["SGD", "slow"], [3, 4, 5], [3, 4, 5])
    assert {row.rule for row in more.where(arm="SGD")} == {repr(comparison.chosen(found)["SGD"])}
    assert found.where(experiment="c").seeds("SGD", "other") == [1, 2]


@pytest.mark.parametrize("wrong", [
    lambda: Looks((), SEEDS, "c"), lambda: Looks(("X",), SEEDS[:1], "c"),
    lambda: Looks(("X",), (*SEEDS, (1,)), "c"), lambda: Looks(("X",), ((1, 2), (2, 3)), "c")])
def test_looks_are_two_or_three_of_new_seeds(wrong):
    with pytest.raises(UserError, match="two or 3 of them, each with new seeds"):
        wrong()


def test_looks_name_claims_of_the_study_each_once():
    with pytest.raises(UserError, match="name claims of the study, each once; got Z"):
        study_of(0.0, ("Z",))
    with pytest.raises(UserError, match="each once; got X"):
        study_of(0.0, ("X", "X"))


# Halves

def test_halves_have_every_second_seed_and_what_is_not_by_seed():
    rows = Records([*(Record("a", "A", seed, "score", float(seed)) for seed in range(7)),
                    *(Record("few", "A", seed, "score", 0.0) for seed in (1, 2, 3)),
                    Record("a", "A", 9, "score", 1.0, phase="tune"), Record("a", "", 0, "seconds", 1.0)])
    first, second = halves(rows)
    assert first.where(experiment="a").seeds("A") == [0, 2, 4, 6]
    assert second.where(experiment="a").seeds("A") == [1, 3, 5]
    for part in (first, second):
        assert len(part.where(experiment="few")) == 3
        assert len(part.where(phase="tune")) == len(part.where(metric="seconds")) == 1


def test_a_verdict_has_halves_where_its_n_is_shared_by_them_and_can_be_judged():
    rows = Records(replace(row, experiment="gaps") for row in gaps(range(1, 11), 6.0)[0])
    verdict = on_halves(CLAIMS[0], rows, halves(rows), "desk")
    assert [half.n for half in verdict.halves] == [5, 5]
    assert np.mean([half.effect for half in verdict.halves]) == pytest.approx(verdict.effect)

    def bootstrapped(records):
        return within(bootstrap_interval(records.where(experiment="gaps").values("A", "score"), np.mean), low=0.0)
    rows = Records(replace(row, experiment="gaps") for row in gaps(range(1, 22), 6.0)[0])
    claim = replace(CLAIMS[0], test=bootstrapped)
    assert on_halves(claim, rows, halves(rows), "desk").halves == ()  # of ten seeds there is no bootstrap
    exact = replace(CLAIMS[0], test=lambda _: within(1.0, low=0.0))
    assert on_halves(exact, rows, halves(rows), "desk").halves == ()


# Seen twice

def test_a_number_that_was_seen_twice_is_a_row_and_a_check_and_one_that_was_not_is_neither():
    study = replace(study_of(0.0), twice=(
        Twice("a mean", "one sum", "another", lambda records: (1.0, 1.04), 0.05),
        Twice("a share", "counting", "guessing", lambda records: (1.0, 2.0), 0.4, relative=True),
        Twice("a hope", "waiting", "wishing", lambda records: (1.0, np.nan), 0.1)))
    found = seen_twice(study, Records())
    assert [row[0] for row in found.tables[0].rows] == ["a mean", "a share"]
    assert [(check.met, row[-1]) for check, row in zip(found.checks, found.tables[0].rows, strict=True)] == [
        (True, "yes"), (False, "no")]
    assert "1 by counting, 2 by guessing; 0.4 of it is allowed" in found.checks[1].note
    assert seen_twice(replace(study, twice=()), Records()).tables == []
    with pytest.raises(UserError, match="difference must be above 0"):
        Twice("", "", "", lambda records: (0.0, 0.0), 0.0)


def test_halves_stand_in_the_page_and_its_markdown(tmp_path):
    rows = Records(replace(row, experiment="gaps") for row in gaps(range(1, 11), 6.0)[0])
    verdict = on_halves(CLAIMS[0], rows, halves(rows), "desk")
    document = Document("a title", "a question", "an answer", verdicts=[(CLAIMS[0], verdict)], scale="desk")
    write(document, tmp_path)
    said = f"On one half of the seeds and on the other: {verdict.halves[0].word}, "
    assert said in (tmp_path / "report.html").read_text()
    assert said in (tmp_path / "report.md").read_text()
    assert "On one half" not in render(replace(document, verdicts=[(CLAIMS[0], replace(verdict, halves=()))]))
