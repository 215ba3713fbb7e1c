"""The momentum advisor: against the probes it reads, and the sentence it says after a comparison."""

from __future__ import annotations

import pytest

from optscope.analyses.choice import choice
from optscope.analyses.findings import findings
from optscope.analyses.momentum import earned
from optscope.engine.plan import Plan
from optscope.engine.train import train
from optscope.errors import UserError
from optscope.evidence.records import Record, Records
from optscope.optim import SGD, Adam, Momentum
from optscope.probes.accuracy import Accuracy
from optscope.probes.curvature import TopEigenvalues
from optscope.protocol.advice import Advice, advise, buffer_bytes
from optscope.protocol.comparison import Arm, Comparison
from tiny import TASK

PLAN = Plan(epochs=4, batch=16)
MODEL_BYTES = 4 * (2 * 8 + 8 + 8 * 3 + 3)


def test_advice_is_what_the_probes_say():
    rule = SGD(lr=0.05, momentum=0.5)
    found = advise(TASK, rule, PLAN, seed=3)
    assert found.instead == SGD(lr=0.1)
    assert found.memory == MODEL_BYTES == buffer_bytes(TASK.model().parameters())
    end = train(TASK, rule, PLAN, 3).snapshot
    last = 0.1 * float(TopEigenvalues(rel=1e-3)(end).values["sharpness"])
    assert found.product >= 0.95 * last > 0
    assert found.noise_induced > 0
    text = str(found)
    assert "SGD(lr=0.1)" in text
    assert f"{MODEL_BYTES} bytes" in text


@pytest.mark.parametrize(("product", "words"), [(0.5, "should do as well"), (3.0, "only a comparison"),
                                                (9.0, "keep momentum")])
def test_what_is_foretold_is_said(product, words):
    assert words in str(Advice(Momentum(lr=0.1), SGD(lr=0.1), product, 1e-4, 1e-3, 500.0, 100))


def test_what_cannot_be_advised_is_refused():
    with pytest.raises(UserError, match="needs SGD with momentum"):
        advise(TASK, Adam(lr=0.1), PLAN)
    with pytest.raises(UserError, match=r"diverged at step .* smaller learning rate"):
        advise(TASK, SGD(lr=1e30, momentum=0.9), PLAN)


def comparison(*arms: Arm) -> Comparison:
    return Comparison("c", TASK, arms, PLAN, (Accuracy(),), (1, 2, 3, 4, 5, 6))


def records(gain: float, spread: float = 0.1) -> Records:
    return Records(Record("c", arm, seed, "accuracy", 80 + shift + spread * sign * (seed - 3.5))
                   for arm, shift, sign in (("plain", 0.0, 1), ("heavy", gain, -1)) for seed in range(1, 7))


ARMS = Arm("plain", SGD(lr=0.1)), Arm("adam", Adam(lr=0.1)), Arm("heavy", SGD(lr=0.01, momentum=0.9))


@pytest.mark.parametrize(("gain", "spread", "words"), [
    (0.2, 0.1, "heavy did not earn its buffer of 204 bytes: its clean accuracy is equal within 1.5 points"),
    (4.0, 0.1, "heavy earned its buffer of 204 bytes: its clean accuracy is higher"),
    (-4.0, 0.1, "heavy did not earn its buffer of 204 bytes: its clean accuracy is lower"),
    (1.0, 5.0, "Whether heavy earned its buffer of 204 bytes is not shown"),
])
def test_a_comparison_says_whether_momentum_earned_its_buffer(gain, spread, words):
    assert earned(comparison(*ARMS), records(gain, spread)).startswith(words)


def test_nothing_is_said_without_both_kinds():
    assert earned(comparison(*ARMS[:2]), records(1.0)) == ""
    assert earned(comparison(*ARMS), Records()) == ""


def of_all(values, **more):
    """Accuracies by arm, and losses that tell nothing, on seeds 1 to 6."""
    return Records([Record("c", arm, seed, metric, x, status="ok" if x == x else "diverged")
                    for metric, by in {"accuracy": values, **more}.items()
                    for arm, each in by.items() for seed, x in enumerate(each, 1)])


def test_momentum_earned_what_the_report_shows_and_no_more():
    nan, given, turned = float("nan"), comparison(*ARMS), comparison(*ARMS[::-1])
    plain, gains = [80.0, 81.0, 82.0, 83.0, 84.0, 85.0], [1.0, 5.0, 3.0, 2.0, 4.0, 0.0]
    better = [x + y for x, y in zip(plain, gains, strict=True)]  # t test: p = 0.02, of two tests 0.04
    assert earned(given, of_all({"plain": plain, "heavy": better})).startswith("heavy earned its buffer of")
    told = of_all({"plain": plain, "adam": gains, "heavy": better},
                  loss={"plain": plain, "adam": better, "heavy": gains[::-1]})
    answer = choice(given, told, findings(given, told))
    assert answer.startswith("No difference in accuracy between plain and heavy is shown")
    assert earned(given, told).startswith("Whether heavy earned its buffer of 204 bytes is not shown (+2.5 points ")
    assert choice(turned, told, findings(turned, told)).startswith("Take heavy: its accuracy is higher")
    assert earned(turned, told).startswith("heavy earned its buffer of 204 bytes: its clean accuracy is higher (")
    perfect = of_all({"plain": [100.0] * 6, "heavy": [100.0] * 6})
    assert "is not shown (+0 points" in earned(given, perfect)
    lost = earned(given, of_all({"plain": plain, "heavy": [nan] * 6}))
    assert lost == "Whether heavy earned its buffer of 204 bytes is not shown (no seed has both)."
