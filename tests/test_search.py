"""What is searched, and how a search goes on: spaces, budgets in gradients, edges that are widened."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optscope.analyses.caveats import fairness, reservations
from optscope.analyses.tuning import learning_rates
from optscope.engine.plan import Plan
from optscope.engine.train import train
from optscope.errors import UserError
from optscope.evidence.records import Record, Records
from optscope.optim import SAM, SGD, AdamW, ByKind, Cosine, Decayed, Foreign, Linear, Players, Scheduled
from optscope.probes.accuracy import Accuracy
from optscope.protocol.arms import NAMES, TRIALS, arm_named
from optscope.protocol.compare import arms_of
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.search import Grid, Halton, PlayerGrid, Random, Thinned
from optscope.protocol.settings import read_settings
from optscope.protocol.space import Choice, Log, Space, Uniform, half_decades
from tiny import TASK

PLAN = Plan(epochs=2, batch=32)


def comparison(*arms, **changes):
    fields = {"name": "demo", "task": TASK, "arms": arms, "plan": PLAN, "probes": (Accuracy(),),
              "seeds": (1, 2), "tuning_seeds": (1001,), "widen": 2}
    return Comparison(**(fields | changes))


def played(given, loss):
    """Play a comparison to its end: `loss(arm, rule)` is what validation finds; return records and all jobs."""
    rows, told = [], set()
    while True:
        jobs = given.jobs(Records(rows))
        fresh = [job for job in jobs if job.use not in told]
        if not fresh:
            return Records(rows), jobs
        for job in fresh:
            e, value = job.use, loss(job.use.arm, job.work.rule)
            told.add(e)
            common = {"phase": e.phase, "rule": e.rule, "run": e.run,
                      "status": "ok" if math.isfinite(value) else "diverged"}
            rows += [Record(e.experiment, e.arm, e.seed, name, number, **common)
                     for name, number in (("training loss", 1.0), ("loss", value)) if math.isfinite(number)]


def bowl(at):
    """A loss with its minimum at one learning rate."""
    return lambda arm, rule: math.log(rule.lr / at[arm]) ** 2


def tried(given, records):
    return {arm: [rule.lr for rule in rules] for arm, rules in given.tried(records).items()}


# Spaces

def test_a_grid_takes_every_combination_of_named_values_also_of_held_rules():
    rule = ByKind(matrices=SGD(lr=0.1), rest=AdamW(lr=1e-3, decay=0.0))
    space = Space(**{"matrices.lr": (0.1, 0.3), "rest.beta1": (0.9, 0.95), "rest.lr": (1e-3,)})
    found = Grid(space).candidates(rule)
    assert [(r.by_name["matrices"].lr, r.by_name["rest"].beta1) for r in found] == list(
        itertools.product((0.1, 0.3), (0.9, 0.95)))
    assert space.rates == ("matrices.lr", "rest.lr")


def test_schedules_are_searched_as_what_they_are():
    rule = Scheduled(SGD(lr=0.1), Linear(), 100)
    found = Grid(Space(lr=(0.1,), schedule=(Cosine(), Cosine(warmup=0.1)))).candidates(rule)
    assert [each.schedule for each in found] == [Cosine(), Cosine(warmup=0.1)]


@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 5), st.sampled_from([Halton, Random]))
def test_a_trial_is_a_function_of_seed_and_number(few, more, seed, search):
    few, more = sorted((few, more))
    space = Space(lr=Log(1e-4, 1e-1), momentum=Uniform(0.5, 0.99), nesterov=(True, False))
    all_ = search(more, space, seed).candidates(SGD(lr=1.0))
    assert search(few, space, seed).candidates(SGD(lr=1.0)) == all_[:few]
    assert all(1e-4 <= r.lr <= 1e-1 and 0.5 <= r.momentum <= 0.99 for r in all_)


def test_random_points_are_even_in_the_logarithm_and_over_choices():
    rules = Random(2000, Space(lr=Log(1e-4, 1.0), momentum=(0.0, 0.9))).candidates(SGD(lr=1.0))
    below = sum(rule.lr < 1e-2 for rule in rules)
    heavy = sum(rule.momentum == 0.9 for rule in rules)
    assert abs(below - 1000) < 4 * math.sqrt(500)
    assert abs(heavy - 1000) < 4 * math.sqrt(500)


def test_half_decades():
    assert half_decades(1e-4, 3e-2) == (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    assert half_decades(2, 40) == (3.0, 10.0, 30.0)


@pytest.mark.parametrize(("make", "words"), [
    (Space, "needs a hyperparameter"),
    (lambda: Space(lr=0.1), "ranges or values"),
    (lambda: Space(lr="ab"), "ranges or values"),
    (lambda: Space(lr=()), "different values, at least one"),
    (lambda: Choice(1, 1), "different values"),
    (lambda: Log(1.0, 0.1), "0 < low < high; got low=1.0, high=0.1"),
    (lambda: Uniform(1.0, 0.1), "low < high; got low=1.0, high=0.1"),
    (lambda: Uniform(0.0, math.nan), "low < high"),
    (lambda: half_decades(1.1, 2.0), "no half-decade"),
    (lambda: half_decades(1.0, 0.1), "0 < low <= high"),
    (lambda: Grid(Space(lr=Log(0.1, 1.0))), r"lr has the range .*half_decades\(low, high\)"),
    (lambda: Random(0, Log(0.1, 1.0)), "whole number >= 1"),
    (lambda: Grid(Space(momentun=(0.9,))).candidates(SGD(lr=0.1)),
     'no "momentun" to search; did you mean "momentum"'),
    (lambda: Grid(Space(**{"rest.bta1": (0.9,)})).candidates(ByKind(rest=AdamW(lr=0.1))),
     'did you mean "rest.beta1"'),
    (lambda: Grid(Space(lr=(0.1,), decay=(0.0, 0.1))).candidates(Decayed(AdamW(lr=0.1), decay=0.1)),
     "decay twice .* keep one"),
    (lambda: Arm("a", Decayed(AdamW(lr=0.1), decay=0.1)), "decay twice .* by 0.1 and by 0.01 in AdamW"),
    (lambda: Arm("a", Decayed(Foreign("torch.optim:SGD", lr=0.1, weight_decay=0.2), decay=0.1)),
     "by 0.2 in Foreign"),
    (lambda: comparison(Arm("a", SGD(lr=0.1), Grid((0.1,))), widen=-1), "widen must be a whole number from 0"),
])
def test_what_cannot_be_searched_is_said_in_one_sentence(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_one_decay_is_no_two():
    Arm("a", Decayed(AdamW(lr=0.1, decay=0.0), decay=0.1))
    Arm("b", ByKind(matrices=Decayed(SGD(lr=0.1), decay=0.1), rest=AdamW(lr=0.1)))


# Budgets

def test_budgets_are_counted_in_gradients():
    sgd, sam = Arm("SGD", SGD(lr=0.1), Grid((0.1, 0.3, 1.0, 3.0))), SAM(SGD(lr=0.1))
    comparison(sgd, Arm("SAM", sam, Grid((0.1, 0.3))))
    with pytest.raises(UserError, match=r"SGD 4 × 1, SAM 4 × 2: give as many .* such as SGD 8, SAM 4"):
        comparison(sgd, Arm("SAM", sam, Grid((0.1, 0.3, 1.0, 3.0))))


# Going on

def test_a_range_goes_on_by_its_own_ratio_and_the_others_refine_at_the_same_cost():
    given = comparison(Arm("far", SGD(lr=0.1), Grid((0.01, 0.03, 0.1))),
                       Arm("here", AdamW(lr=0.1), Grid((0.01, 0.1, 1.0))), widen=2)
    records, jobs = played(given, bowl({"far": 10.0, "here": 0.13}))
    assert tried(given, records) == {"far": [0.01, 0.03, 0.1, 0.3, 1.0],
                                     "here": [0.01, 0.1, 1.0, 0.3162, 0.1778]}
    assert given.at_edge(records) == ["far"]
    assert {arm: rule.lr for arm, rule in given.chosen(records).items()} == {"far": 1.0, "here": 0.1}
    assert sum(job.use.phase == "tune" for job in jobs) == 10
    assert {job.work.rule.lr for job in jobs if job.use.phase == "final"} == {1.0, 0.1}


def test_it_stops_as_soon_as_no_best_lies_at_an_end_and_goes_to_both_sides():
    given = comparison(Arm("low", SGD(lr=0.1), Grid((1.0, 2.0, 4.0))), widen=8)
    records, _ = played(given, bowl({"low": 0.25}))
    assert tried(given, records) == {"low": [1.0, 2.0, 4.0, 0.5, 0.25, 0.125]}
    assert len(given.rounds(records)) == 4
    assert given.at_edge(records) == []


def test_without_widening_or_need_nothing_is_added():
    for widen, best in ((0, 10.0), (3, 0.3)):
        given = comparison(Arm("a", SGD(lr=0.1), Grid((0.1, 0.3, 1.0))), widen=widen)
        assert tried(given, played(given, bowl({"a": best}))[0]) == {"a": [0.1, 0.3, 1.0]}


def test_where_all_diverge_smaller_rates_are_tried():
    given = comparison(Arm("wild", SGD(lr=0.1), Grid((1.0, 10.0))), widen=2)
    records, _ = played(given, lambda arm, rule: 1.0 if rule.lr < 0.05 else math.inf)
    assert tried(given, records) == {"wild": [1.0, 10.0, 0.1, 0.01]}
    assert given.chosen(records)["wild"].lr == 0.01


def test_a_rule_of_two_gradients_gets_half_as_many_more():
    given = comparison(Arm("SGD", SGD(lr=0.1), Grid((0.1, 0.2, 0.4, 0.8))),
                       Arm("SAM", SAM(SGD(lr=0.1)), Grid((0.1, 0.2))), widen=1)
    records, _ = played(given, bowl({"SGD": 9.0, "SAM": 9.0}))
    assert tried(given, records) == {"SGD": [0.1, 0.2, 0.4, 0.8, 1.6, 3.2], "SAM": [0.1, 0.2, 0.4]}
    said = fairness(given, records).checks[0]
    assert said.met
    steps = PLAN.total(TASK.data().train.size)
    assert f"{6 * steps} for choosing, {steps} (SGD); {2 * steps} (SAM) in each training" in said.note


def test_drawn_points_go_on_by_half_a_decade_and_keep_what_else_was_best():
    space = Space(lr=Log(0.01, 1.0), momentum=Uniform(0.1, 0.9))
    given = comparison(Arm("a", SGD(lr=0.1), Halton(5, space)), widen=1)
    records, _ = played(given, bowl({"a": 100.0}))
    *first, last = given.tried(records)["a"]
    best = max(first, key=lambda rule: rule.lr)
    assert last.lr == pytest.approx(best.lr * math.sqrt(10), rel=1e-3)
    assert last.momentum == best.momentum


def test_a_short_search_goes_on_as_the_whole_one_does():
    points = Random(12, Log(1e-4, 1.0), seed=7)
    assert sorted(round(r.lr, 4) for r in Thinned(points, 3).candidates(SGD(lr=1.0))) == [0.0001, 0.1204, 0.1244]
    for whole, after in ((points, 0.1244 * math.sqrt(10)), (Grid((0.01, 0.03, 0.1, 0.3, 1.0, 3.0)), 10.0)):
        short = Thinned(whole, 3)
        (found,) = short.further([(rule, -rule.lr) for rule in short.candidates(SGD(lr=1.0))], 1)
        assert found.lr == pytest.approx(after, rel=1e-3)


def test_all_rates_at_an_end_move_together():
    rule = Players(generator=SGD(lr=1.0), discriminator=SGD(lr=1.0))
    grid = PlayerGrid(generator=(0.1, 0.2), discriminator=(1.0, 3.0, 10.0))
    scored = [(each, -each.by_name["generator"].lr + abs(each.by_name["discriminator"].lr - 3))
              for each in grid.candidates(rule)]
    (found,) = grid.further(scored, 1)
    assert found == Players(generator=SGD(lr=0.4), discriminator=SGD(lr=3.0))


def test_a_space_without_a_rate_cannot_go_on():
    with pytest.raises(UserError, match="along learning rates"):
        comparison(Arm("a", SGD(lr=0.1), Grid(Space(momentum=(0.1, 0.9)))))


def test_the_report_says_that_it_was_widened_and_still_warns():
    given = comparison(Arm("far", SGD(lr=0.1), Grid((0.01, 0.1))), Arm("here", AdamW(lr=0.1), Grid((0.1, 1.0))),
                       widen=2)
    records, _ = played(given, bowl({"far": 1e9, "here": 1e9}))
    assert any("far (10.0), here (100.0), after the search was widened 2 times" in each
               for each in reservations(given, records).warnings)


def test_the_picture_shows_every_candidate_the_diverged_ones_beyond_the_worst():
    given = comparison(Arm("a", SGD(lr=0.1), Grid((0.1, 0.3, 1.0, 3.0))), widen=0)
    losses = {0.1: 0.5, 0.3: 0.2, 1.0: 0.6, 3.0: math.inf}
    records, _ = played(given, lambda arm, rule: losses[rule.lr])
    (panel,) = learning_rates(given, records).panels
    line, lost, ring = panel.series
    assert (line.x, line.y) == ([0.1, 0.3, 1.0], [0.5, 0.2, 0.6])
    assert lost.x == [3.0]
    assert lost.y[0] == panel.levels["diverged"] > 0.6
    assert (ring.x, ring.y, ring.mark) == ([0.3], [0.2], "rings")


# Ready arms, and what settings say

@pytest.mark.parametrize("name", NAMES)
def test_ready_arms_have_one_budget_and_move_a_model(name):
    arm = arm_named(name)
    assert sum(rule.evaluations for rule in arm.candidates()) == TRIALS
    rates = [rule.lr for rule in arm.candidates()]
    assert rates[0] < arm.rule.lr < rates[-1]
    first, after = (train(TASK, arm.rule, Plan(steps=steps, batch=16), seed=0) for steps in (1, 3))
    assert after.diverged_at is None
    moved = [(p - q).abs().max() for p, q in zip(first.snapshot.model.parameters(),
                                                 after.snapshot.model.parameters(), strict=True)]
    assert min(moved) > 0


def said(text, tmp_path):
    (tmp_path / "settings.toml").write_text(text)
    return arms_of(read_settings(tmp_path / "settings.toml"))


def test_settings_say_what_else_is_searched(tmp_path):
    sgd, muon = said('[optimisers.sgd]\nspace = {momentum = [0.0, 0.9]}\n[optimisers.muon]\n'
                     'space = {"matrices.lr" = [0.01, 0.1], "rest.lr" = [1e-3, 1e-2, 1e-1]}', tmp_path)
    assert len(sgd.candidates()) == 12
    assert {rule.momentum for rule in sgd.candidates()} == {0.0, 0.9}
    assert {rule.lr for rule in sgd.candidates()} == {rule.lr for rule in arm_named("sgd").candidates()}
    assert len(muon.candidates()) == 6
    assert {rule.by_name["rest"].lr for rule in muon.candidates()} == {1e-3, 1e-2, 1e-1}


def test_settings_draw_as_many_trials_of_every_arm_by_its_cost(tmp_path):
    sgd, sam = said('trials = 10\n[optimisers.sgd]\nspace = {momentum = {uniform = [0.1, 0.9]}}\n'
                    '[optimisers.sam]\nspace = {rho = {log = [0.01, 0.5]}}', tmp_path)
    assert len(sgd.candidates()) == 10
    assert len({rule.momentum for rule in sgd.candidates()}) == 10
    assert all(0.01 <= rule.lr <= 3.0 for rule in sgd.candidates())
    assert len(sam.candidates()) == 5
    assert all(0.01 <= rule.rho <= 0.5 for rule in sam.candidates())


@pytest.mark.parametrize(("text", "words"), [
    ("[optimisers.sgd]\nspace = {momentum = 0.9}", r"sgd.momentum: a list of values, .* expected; got 0.9"),
    ("[optimisers.sgd]\nspace = {momentum = {log = [0.1]}}", "expected; got {'log': "),
    ("[optimisers.sgd]\nspace = {momentum = {log = [0.9, 0.1]}}", "0 < low < high; got low=0.9, high=0.1"),
    ("[optimisers.sgd]\nspace = {momentum = {log = [0.1, 0.9]}}", "momentum has the range"),
    ("[optimisers.sgd]\nspace = {}", "optimisers.sgd.space"),
    ("trials = 0", "trials: .*greater than or equal to 1"),
    ("widen = 9", "widen: .*less than or equal to 8"),
])
def test_settings_that_cannot_be_searched(text, words, tmp_path):
    with pytest.raises(UserError, match=words):
        said(text, tmp_path)
