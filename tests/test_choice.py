"""Which optimiser to take: the choice follows its rule in every case, and the page opens with it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest

from optscope.analyses.charts import accuracies, axes, measures
from optscope.analyses.choice import choice
from optscope.analyses.differences import Differences, judged_by, measured
from optscope.analyses.findings import findings
from optscope.analyses.headline import headline
from optscope.analyses.joined import claims
from optscope.analyses.scorecard import scorecard
from optscope.evidence.picture import Scorecard
from optscope.evidence.power import power, seeds_to_show, spread_of
from optscope.evidence.records import Metric, Record, Records
from optscope.evidence.stats import mean_interval
from optscope.optim import SGD
from optscope.probes.probe import Probe, Reading, Subject
from optscope.protocol.comparison import Arm
from optscope.report.document import Document
from optscope.report.figures import alt, draw
from optscope.report.page import render
from optscope.report.tables import figure_tables
from test_findings import MEASURED, OF_MANY_LABELS, SEEDS, TWO

PAIR = replace(MEASURED, arms=MEASURED.arms[:2])
ATTACK, PLACE = "accuracy under attack at radius 0.5", "accuracy under attack (radius 0.5)"


def records(shifts, arms=("A", "B"), seeds=SEEDS, spread=0.1):
    """Records of every metric: seed effects that arms share, plus `shifts[arm, metric]` and little noise."""
    generator, rows = np.random.default_rng(1), []
    for metric in (m for probe in MEASURED.probes for m in probe.metrics if m.name not in OF_MANY_LABELS):
        scale = 0.01 if metric.name == "loss" else 1.0
        for at in (0.1, 0.5, 1.0) if metric.axis else (None,):
            common = generator.normal(size=len(seeds)) * 2 + 80
            for arm in arms:
                values = common + shifts.get((arm, metric.name), 0.0) / scale
                values = values + spread * generator.normal(size=len(seeds))
                rows += [Record("demo", arm, seed, metric.name, scale * float(v), at)
                         for seed, v in zip(seeds, values, strict=True)]
    return Records(rows)


def said(shifts, of=PAIR, spread=0.1, margin=None, **given):
    found = records(shifts, [arm.name for arm in of.arms], of.seeds, spread, **given)
    return choice(of, found, findings(of, found, margin))


def test_who_is_more_accurate_is_taken_and_what_the_first_does_better_is_said():
    text = said({("B", "accuracy"): 5.0, ("B", "accuracy under attack"): -20.0, ("B", "loss"): 0.3})
    assert re.fullmatch(r"Take B: its accuracy is higher than A's \((4\.9|5|5\.1) points\)\. A is better in "
                        rf"{re.escape(ATTACK)} \((19|20) points\) and loss \(0\.\d+ against 1\.\d+\)\.", text)


def test_of_several_that_are_better_those_shown_to_be_worse_than_another_are_left():
    arms = replace(MEASURED, arms=(*MEASURED.arms, Arm("D", SGD(lr=0.1))))
    text = said({("B", "accuracy"): 4.0, ("C", "accuracy"): 8.0, ("D", "accuracy"): -8.0}, of=arms)
    assert re.fullmatch(r"Take C: its accuracy is higher than A's \([\d.]+ points\), and than that of B\.", text)
    text = said({("B", "accuracy"): 4.0, ("C", "accuracy"): 4.0}, of=MEASURED, spread=0.8)
    assert re.fullmatch(r"Take B or C: their accuracy is higher than A's \([\d.]+ to [\d.]+ points\); between them "
                        r"no difference in it is shown\.", text)


def test_the_first_is_taken_where_all_others_are_worse():
    text = said({("B", "accuracy"): -5.0, ("C", "accuracy"): -9.0, ("B", "loss"): -0.3, ("C", "loss"): -0.4},
                of=MEASURED)
    assert re.fullmatch(r"Take A: its accuracy is higher than that of B \([\d.]+ points\), that of C \([\d.]+ "
                        r"points\)\. B and C are better in loss \([\d.]+ to [\d.]+ against [\d.]+\)\.", text)


@pytest.mark.parametrize(("shift", "text"), [
    (20.0, r"Take B: accuracy is equal within 1\.5 points, and B is better than A in {attack} \(\d+ points\)\."),
    (-20.0, r"Take A: accuracy is equal within 1\.5 points, and it is better than B in {attack} \(\d+ points\)\."),
    (0.0, r"No difference between A and B matters: accuracy is equal within 1\.5 points, and nothing else differs "
          r"that 8 seeds can show\. Take whichever is cheaper\.")])
def test_equals_are_told_apart_by_what_else_is_shown(shift, text):
    found = said({("B", "accuracy under attack"): shift}, margin=1.5)
    assert re.fullmatch(text.format(attack=re.escape(ATTACK)), found)


def test_equals_that_each_have_something_are_a_choice_by_what_matters():
    text = said({("B", "accuracy under attack"): 20.0, ("B", "loss"): 0.5}, margin=1.5)
    assert re.fullmatch(r"Choose between A and B by what matters to you: accuracy is equal within 1\.5 points\.\n"
                        rf"B is better than A in {re.escape(ATTACK)} \(\d+ points\); "
                        r"A is better in loss \(.*\)\.", text)


def test_of_several_equals_those_that_are_better_in_nothing_are_left():
    of = replace(MEASURED, arms=(*MEASURED.arms, Arm("D", SGD(lr=0.1))))
    torn, worse = {("B", "accuracy under attack"): 20.0, ("B", "loss"): 0.5}, ("accuracy under attack", "loss")
    text = said({**torn, ("C", worse[0]): -9.0, ("D", worse[0]): -20.0, ("D", worse[1]): 0.5}, of=of, margin=1.5)
    first, of_b, of_rest = text.splitlines()
    assert first == "Choose between A and B by what matters to you: accuracy is equal within 1.5 points."
    assert of_b.startswith(f"B is better than A in {ATTACK} (")
    assert re.fullmatch(r"Leave C and D, shown to be better in nothing: A is better in "
                        rf"{re.escape(ATTACK)} \((8\.9|9|9\.1) to \d+ points\)\.", of_rest)
    text = said({("C", worse[0]): -9.0, ("D", worse[0]): -9.0}, of=of, margin=1.5)
    assert text.splitlines()[0] == "Choose between A and B by cost: accuracy is equal within 1.5 points."
    assert text.splitlines()[1].startswith("Leave C and D, ")


def test_what_is_not_shown_is_not_advised_and_the_seeds_that_would_show_it_are_said():
    text = said({}, spread=3.0)
    found = re.fullmatch(r"No difference in accuracy between A and B is shown, nor that they are equal; about "
                         r"(\d+) seeds would show one of 1\.5 points in 4 of 5 cases\. No choice follows\.", text)
    assert found
    assert len(SEEDS) < int(found[1]) < 400
    first, of_b, of_c = said({("B", "loss"): 9.0, ("C", "loss"): -9.0}, of=MEASURED, spread=3.0).splitlines()
    assert first.startswith("No difference in accuracy between A and B, C is shown, ")
    assert first.endswith(" in 4 of 5 cases.")
    assert re.fullmatch(r"A is better than B in loss \(.*\)\.", of_b)
    assert re.fullmatch(r"C is better than A in loss \(.*\)\.", of_c)
    few = said({("B", "accuracy"): 30.0}, of=replace(PAIR, seeds=(1, 2, 3)))
    assert few.startswith("No choice yet: 3 seeds can show no difference, whatever the runs give; it takes 6")


def test_an_arm_that_was_lost_is_left_and_a_lost_first_is_no_baseline():
    found = records({})
    for arm, text in (("B", r"Take A\. Leave B: it diverged or failed on 2 of 8 seeds\."),
                      ("A", r"No choice: A, which .*, diverged or failed on 2 of 8 seeds: put another first\.")):
        lost = Records([*(r for r in found if r.arm != arm or r.seed > 2),
                        *(Record("demo", arm, s, "loss", np.nan, status="diverged") for s in (1, 2))])
        assert re.fullmatch(text, choice(PAIR, lost, findings(PAIR, lost)))


def test_a_difference_that_rounding_can_make_is_none():
    final = records({("B", "accuracy"): 0.5})
    twins = [replace(row, phase="twin", rule=f"k = {k}", value=row.value + sign * 3)
             for row in final if row.seed <= 2 for k, sign in ((3, 1), (5, -1))]
    whole = final + Records(twins)
    judged = findings(TWO, whole, margin=0.1)
    assert any(f.lead and f.verdict.outcome == "holds" and f.drowned and f.place.text == "accuracy" for f in judged)
    assert choice(TWO, whole, judged) == ("No difference in accuracy that rounding alone cannot make between A and "
                                          "B is shown, nor that they are equal. No choice follows.")


def with_twins(final, moved):
    """Records with two rounding twins of the first two seeds of every arm, `moved[arm]` away in accuracy."""
    return final + Records([replace(row, phase="twin", rule=f"k = {k}", value=row.value + sign * moved[row.arm])
                            for row in final if row.seed <= 2 and row.metric == "accuracy"
                            for k, sign in ((3, 1), (5, -1))])


@pytest.mark.parametrize(("moved", "text"), [
    (3.0, "Take B or C: their accuracy is higher than A's (14 to 15 points); between them no difference"),
    (0.01, "Take C: its accuracy is higher than A's (15 points), and than that of B.")])
def test_among_those_that_are_better_too_a_difference_that_rounding_can_make_is_none(moved, text):
    final = records({("B", "accuracy"): 14.0, ("C", "accuracy"): 15.0}, ("A", "B", "C"), spread=0.05)
    whole = with_twins(final, {"A": 0.01, "B": moved, "C": moved})
    assert choice(MEASURED, whole, findings(MEASURED, whole)).startswith(text)


def test_means_are_over_the_seeds_that_both_have_so_that_they_do_not_speak_against_the_difference():
    values = {("A", seed): 0.5 + seed / 1000 for seed in SEEDS} | {("B", seed): 0.4 for seed in SEEDS}
    values |= {("B", 8): 2.4, ("B", 1): 0.41}  # a hard seed, on which A is lost: the mean of all of B's is .65
    found = Records(Record("demo", arm, seed, "loss", value) if (arm, seed) != ("A", 8) else
                    Record("demo", arm, seed, "training loss", np.nan, status="diverged")
                    for (arm, seed), value in values.items())
    of = replace(PAIR, metrics=("loss",))
    text = choice(of, found, findings(of, found))
    assert text == "Take B: its loss is lower than A's (0.401 against 0.504)."


def test_names_with_commas_and_conjunctions_are_read_as_they_are_meant():
    names = "A and B", "SGD, lr 0.1", "SGD"
    of = replace(MEASURED, arms=tuple(Arm(name, SGD(lr=0.1)) for name in names))
    gained = {(name, "accuracy"): 4.0 for name in names[1:]} | {(name, "loss"): 0.5 for name in names[1:]}
    text = said(gained, of=of, spread=0.8)
    assert text.startswith("Take SGD, lr 0.1 or SGD: their accuracy is higher than A and B's (")
    assert " A and B is better in loss (" in text
    torn = {("SGD, lr 0.1", "accuracy under attack"): 20.0, ("SGD, lr 0.1", "loss"): 0.5}
    assert said(torn, of=of, margin=1.5).startswith("Choose between A and B; SGD, lr 0.1 and SGD by what matters")


def test_arms_that_lost_different_seeds_have_too_few_in_common():
    lost = ("A", 1), ("B", 2)
    found = Records([*(r for r in records({("B", "accuracy"): 9.0}) if (r.arm, r.seed) not in lost),
                     *(Record("demo", arm, s, "training loss", np.nan, status="diverged") for arm, s in lost)])
    assert choice(PAIR, found, findings(PAIR, found)) == (
        "No difference in accuracy between A and B is shown, nor that they are equal; A and B have too few seeds "
        "in common. No choice follows.")


def test_few_seeds_take_nobody_also_where_all_others_were_lost():
    of = replace(PAIR, seeds=(1, 2, 3, 4))
    found = Records([*(r for r in records({}, seeds=of.seeds) if r.arm == "A" or r.seed > 1),
                     Record("demo", "B", 1, "training loss", np.nan, status="diverged")])
    assert choice(of, found, findings(of, found)) == (
        "No choice yet: 4 seeds can show no difference, whatever the runs give; it takes 6, and more to show small "
        "ones. Leave B: it diverged or failed on 1 of 4 seeds.")


def test_a_name_in_brackets_is_no_margin_and_the_difference_of_equals_is_no_minus_nothing():
    first = "SGD (within 2)"
    of = replace(PAIR, arms=(Arm(first, SGD(lr=0.1)), PAIR.arms[1]))
    found = records({}, (first, "B"), spread=0.0)
    judged = findings(of, found, 1.5)
    assert headline(of, found, judged).endswith("equal within 1.5 points; nothing else is shown to differ.")
    (claim, verdict), *_ = claims(judged, first)
    assert claim.text == f"B against {first}: accuracy (equal within 1.5 points)"
    assert math.copysign(1.0, verdict.effect) == math.copysign(1.0, verdict.low) == 1.0


def test_what_other_examples_may_take_back_is_said():
    found = records({("B", "accuracy"): 5.0})
    right = {arm: {seed: np.arange(40) >= wrong for seed in SEEDS} for arm, wrong in (("A", 3), ("B", 1))}
    text = choice(PAIR, found, findings(PAIR, found, right=right))
    assert "points). It is shown for these 40 test examples; others may say otherwise." in text


# The power of the t test

def test_the_seeds_that_show_a_difference_are_those_that_do_so_in_four_of_five_simulations():
    generator = np.random.default_rng(0)
    for effect, alpha in ((0.8, 0.05), (1.5, 0.01)):
        n = seeds_to_show(1.0, effect, alpha)
        shown = []
        for _ in range(4000):
            found = mean_interval(generator.normal(effect, 1.0, n), 1 - alpha)
            shown.append(found.low > 0)
        assert np.mean(shown) == pytest.approx(power(n, effect, alpha), abs=0.025)
        assert power(n, effect, alpha) >= 0.8 > power(n - 1, effect, alpha)
    values = generator.normal(size=9)
    found = mean_interval(values)
    assert spread_of(found.low, found.high, 9) == pytest.approx(values.std(ddof=1))


# The scorecard

SHIFTS = {("B", "accuracy"): 5.0, ("B", "accuracy under attack"): -20.0}


def test_the_scorecard_holds_the_means_and_what_is_shown_of_each():
    found = records(SHIFTS)
    table, card = scorecard(PAIR, found, findings(PAIR, found, margin=1.5))
    assert [quality.name for quality in card.qualities] == ["accuracy [%]", "loss", "calibration error [points]",
                                                            f"{PLACE} [%]"]
    by = {quality.name: quality for quality in card.qualities}
    expected = mean_interval(found.values("B", "accuracy"))
    assert (by["accuracy [%]"].estimates[1], by["accuracy [%]"].lows[1]) == (expected.estimate, expected.low)
    assert [quality.shown[1] for quality in card.qualities] == ["better", "", "", "worse"]
    assert {quality.shown[0] for quality in card.qualities} == {""}
    assert [quality.higher_is_better for quality in card.qualities] == [True, False, False, True]
    assert card.title == "2 of 4 differences to A are shown: 1 better, 1 worse"
    assert table.header == ("quality", "A", "B")
    assert table.rows[0][0] == "accuracy [%]\u00a0↑"
    signs = [row[2].partition("\u00a0")[2] for row in table.rows]
    assert signs == ["▲", "", "", "▼"]
    equal = findings(PAIR, records({}), margin=1.5)
    assert scorecard(PAIR, records({}), equal)[0].rows[0][2].endswith("\u00a0=")


def test_a_scorecard_is_drawn_better_to_the_right_and_told_in_words_and_numbers():
    found = records(SHIFTS)
    _, card = scorecard(PAIR, found, findings(PAIR, found))
    assert "Scorecard of A, B, better to the right. A panel each: accuracy [%]" in alt(card)
    rows = figure_tables(card)[0].rows
    seeds = found.seeds("A")
    assert figure_tables(card)[0].samples == ("", *[f"n = {len(seeds)}: seeds {seeds[0]}–{seeds[-1]}"] * 2)
    assert rows[0][2].endswith("\u00a0▲")
    assert rows[3][2].endswith("\u00a0▼")
    lower = replace(card, qualities=[replace(card.qualities[0], higher_is_better=False)])
    one = replace(card, qualities=[card.qualities[0]])
    for figure, sign in ((one, 1), (lower, -1)):
        a, b = (_mark(draw(figure), series) for series in (0, 1))
        assert sign * (b - a) > 0  # B has the larger accuracy


def test_a_comparison_of_which_nothing_was_measured_has_no_table_of_it():
    tuned = Records(replace(row, phase="tune") for row in records({}))
    assert len(measured(PAIR, records({})).tables) == 1
    assert measured(PAIR, tuned).tables == []


def _mark(svg, series):
    group = re.search(rf'<g data-series="{series}">(?:<path[^>]*/>)?<defs>(.*?)</g></g>', svg)
    return float(re.search(r'<use [^>]*x="([\d.]+)"', group[1])[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300, -1e300])
def test_a_scorecard_with_holes_is_drawn(bad):
    found = records(SHIFTS)
    _, card = scorecard(PAIR, found, findings(PAIR, found))
    quality = replace(card.qualities[0], estimates=[bad, 1.0], lows=[bad, bad], highs=[bad, 1.5])
    assert draw(Scorecard("s", "t", card.arms, [quality])).startswith("<svg")
    assert draw(Scorecard("s", "t", card.arms, [])).startswith("<svg")


def test_the_page_opens_with_the_choice_the_table_and_the_scorecard_and_claims_come_after_figures():
    found = records(SHIFTS)
    section = Differences(1.5, lambda comparison, records: {})(PAIR, found)
    assert len(section.sentences) == 1
    page = render(Document("t", "q", section.sentences[0], ["mind this"], section.verdicts, figures=[],
                           summaries=section.summaries, openers=section.openers, details=section.details))
    order = [page.index(part) for part in ("Take B", "Read first</a>: 1 reservation.", "accuracy [%]",
                                           'id="fig-scorecard"', "mind this", 'id="claims"', "A against B:")]
    assert order == sorted(order)
    assert page.count('class="narrow"') == 1  # drawn once more for phones


def test_a_title_crowns_nobody_where_no_difference_is_shown():
    def title(shift):
        found = records({("B", "accuracy under attack"): shift}, spread=1.0)
        return axes(PAIR, found, lambda comparison, records: findings(comparison, records)).figures[0].title
    assert title(0.1) == "Accuracy under attack over radius: at 0.5 no difference to A is shown"
    assert title(-9.0) == "Accuracy under attack over radius: at 0.5, B is worse than A"


# One claim a difference

@pytest.mark.parametrize(("shift", "spread", "margin", "said", "outcome"), [
    (0.0, 0.1, 1.5, "equal", "holds"), (0.9, 0.1, 1.5, "equal", "holds"), (5.0, 0.1, 1.5, "better", "holds"),
    (-5.0, 0.1, 1.5, "worse", "holds"), (0.0, 9.0, 1.5, "not shown", "undecided")])
def test_equality_and_difference_are_two_tests_and_one_row(shift, spread, margin, said, outcome):
    rows = records({("B", "accuracy"): shift}, spread=spread)
    found = findings(PAIR, rows, margin)
    told = claims(found, "A")
    assert len(found) == len(told) + 1
    assert [claim.id for claim, _ in told] == [f"F{i}" for i in range(1, len(told) + 1)]
    assert not any("accuracy" in claim.text and "attack" not in claim.text for claim, _ in told[1:])
    claim, verdict = told[0]
    assert claim.text == "B against A: accuracy (equal within 1.5 points)"
    assert (verdict.said, verdict.outcome) == (said, outcome)
    assert ("A difference is shown as well" in verdict.note) == (shift == 0.9)
    gaps = np.subtract(*rows.pairs("B", "A", "accuracy"))
    assert verdict.effect == pytest.approx(gaps.mean())
    assert verdict.low < gaps.mean() < verdict.high
    assert (verdict.least, verdict.most) == pytest.approx((-1.5, 1.5))
    equal, differs = (f.verdict for f in found if f.place.text == "accuracy")
    assert verdict.p == (equal if said == "equal" else differs).p


def test_of_a_loss_less_is_better_and_a_row_says_so():
    rows = Records(row for row in records({("B", "loss"): 0.5}) if row.metric != "accuracy")
    claim, verdict = claims(findings(PAIR, rows), "A")[0]
    assert claim.text.startswith("B against A: loss (equal within ")
    assert verdict.said == "worse"
    assert verdict.effect > 0


@dataclass(frozen=True, repr=False)
class Forgetting(Probe):
    """Measures percent of which less is better; it is never taken here."""

    metrics = (Metric("forgetting", "%", "lower"),)

    def measure(self, subject: Subject) -> Reading:
        raise AssertionError


def test_percent_of_which_less_is_better_is_drawn_as_no_accuracy_and_nothing_as_no_figure():
    lower = [Record("demo", arm, seed, "forgetting", 5.0 + seed) for arm in "AB" for seed in SEEDS]
    of = replace(PAIR, probes=(*PAIR.probes, Forgetting()))
    (picture,) = accuracies(of, records({}) + lower).figures
    assert picture.panels[0].categories == ["accuracy", PLACE.replace(" (", "\n(")]
    alone = replace(PAIR, probes=PAIR.probes[1:])
    assert not measures(alone, records({})).figures
    (picture,) = measures(replace(of, probes=(Forgetting(),)), Records(lower)).figures
    assert (picture.title, picture.panels[0].y_label) == ("What is compared, by arm", "forgetting, lower is better")


def test_one_test_is_not_corrected():
    of = replace(PAIR, probes=(Forgetting(),))
    found = findings(of, Records(Record("demo", arm, seed, "forgetting", seed + (arm == "B") * seed**0.5)
                                 for arm in "AB" for seed in SEEDS))
    assert "Holm over 1 test: p" in found[0].verdict.note
    assert "Holm" not in judged_by(of, [each.verdict for each in found])
