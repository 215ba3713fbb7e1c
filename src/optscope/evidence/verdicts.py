"""Tests that claims are made of: each turns numbers into a verdict with effect, interval, n, p and sentence.

A verdict over pairs has one test, `paired_test`, which its sentence names; its p decides, and is the p that is
corrected where there are several. A difference that is not shown is undecided, never "equal": equality has a test
of its own. Tests over seeds need two complete pairs, and at most one pair in five missing (seeds that diverge are
not missing by chance).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from optscope.errors import UserError
from optscope.evidence.claims import Outcome, Verdict
from optscope.evidence.level import level
from optscope.evidence.paired import FEWEST, equivalence, paired_test
from optscope.evidence.stats import Interval, complete_pairs, holm, paired_difference

MISSING_MOST = 0.2  # the largest share of pairs that may be missing


def greater(a: ArrayLike, b: ArrayLike, margin: float = 0.0, what: str = "difference",
            unit: str = "") -> Verdict:
    """Judge over pairs whether the mean of a - b is above `margin`.

    Holds if the two-sided `paired_test` of a - b - margin has p <= 0.05 and the mean lies above the margin, fails
    if it lies below, else undecided. A negative margin asks for non-inferiority. From six pairs on that is the t
    test, and its p is at most 0.05 exactly when the 95 % t interval leaves the margin out.

    >>> greater([81.0, 82.5, 80.5], [79.0, 80.0, 79.0], what="accuracy, SGD - Adam", unit="points").note
    'accuracy, SGD - Adam: +2 points (95 % interval +0.758 to +3.24, 3 pairs, sign-flip test p = 0.25), not told
    apart from 0 points; 3 pairs can never reach p < 0.05, it takes 6.'
    """
    first, second, _ = complete_pairs(a, b)
    found = paired_difference(a, b)
    if found.n < 2:
        return _unmeasured(what, _too_little(found), found)
    tested = paired_test(first, second, margin=margin)
    outcome: Outcome = ("undecided" if tested.p > level() or _too_little(found) else
                        "holds" if found.estimate > margin else "fails")
    side = {"holds": "above", "fails": "below", "undecided": "not told apart from"}[outcome]
    shown = f"{_bounds(found)}, {found.n} pairs, {tested.test} p = {tested.p:.2g}"
    weak = f"{found.n} pairs can never reach p < {level():g}, it takes {FEWEST}" if found.n < FEWEST else ""
    note = _sentence(f"{what}: {_signed(found.estimate, unit)} ({shown}), {side} {_plain(margin, unit)}",
                     _too_little(found), _gaps(found), weak)
    return Verdict(outcome, note, found.estimate, found.low, found.high, found.n, tested.p, tested.test,
                   least=margin, unit=unit)


def equivalent(a: ArrayLike, b: ArrayLike, margin: ArrayLike, what: str = "difference",
               unit: str = "") -> Verdict:
    """Judge over pairs whether the mean of a - b lies within ±margin, fixed before the runs.

    The margin is a number, or one a pair (a share of the baseline's error), whose mean it then is. Holds if two
    one-sided tests show it (with the t test: the 90 % interval lies within ±margin), fails if the two-sided test
    against the nearer margin has p <= 0.05 and the mean lies outside (the 95 % interval does), else undecided. `p`
    is that of the test that decided; `low` and `high` are the 95 % interval.

    >>> equivalent([90.1, 90.4, 89.8, 90.0, 90.2, 90.3], [90.0, 90.5, 89.9, 90.1, 90.2, 90.2], 1.0).note
    'difference: -0.0167 (90 % interval -0.0975 to +0.0642, 6 pairs, two one-sided t tests p = 1.1e-06), within ±1.'
    """
    first, second, _ = complete_pairs(a, b)
    wide = paired_difference(a, b)
    if wide.n < 2:
        return _unmeasured(what, _too_little(wide), wide)
    tost = equivalence(a, b, margin)
    margins = np.broadcast_to(margin, np.shape(a))[~np.isnan(np.asarray(a) + np.asarray(b))]
    side_of = 1.0 if wide.estimate > 0 else -1.0
    outside = paired_test(side_of * first, side_of * second, margin=margins)
    apart = outside.p <= level() and abs(wide.estimate) > float(margins.mean())
    reason = _too_little(wide)
    outcome: Outcome = "holds" if tost.equivalent else "fails" if apart else "undecided"
    outcome = "undecided" if reason else outcome
    p, test = (outside.p, outside.test) if apart else (tost.p, f"two one-sided {tost.test}s")
    side = {"holds": "within", "fails": "outside", "undecided": "neither shown within nor outside"}[outcome]
    interval = _bounds(wide) if apart else _bounds(tost.interval, 2)
    reach = float(margins.mean())
    note = _sentence(f"{what}: {_signed(wide.estimate, unit)} ({interval}, {wide.n} pairs, {test} p = {p:.2g}), "
                     f"{side} ±{_plain(reach, unit)}", reason, _gaps(wide))
    return Verdict(outcome, note, wide.estimate, wide.low, wide.high, wide.n, p, test, -reach, reach, unit)


def within(value: float | Interval, low: float = -math.inf, high: float = math.inf, what: str = "value",
           unit: str = "") -> Verdict:
    """Judge whether a number, or a whole 95 % interval, lies in [low, high].

    An interval (of a rate, a rank correlation, a median) that lies inside holds, one that lies outside fails,
    one that straddles a bound is undecided. So is nan, a number that was not measured.

    >>> within(0.97, low=0.8, high=1.05, what="error ratio").outcome
    'holds'
    >>> within(Interval(-0.6, -0.85, -0.1, n=12), high=0, what="rank correlation").note
    'rank correlation: -0.6 (95 % interval -0.85 to -0.1, n = 12), at most 0.'

    Raises:
        UserError: unless low <= high.
    """
    if not low <= high:
        raise UserError(f"expected low <= high, got {low} and {high}")
    found = value if isinstance(value, Interval) else Interval(value, value, value, 0)
    if math.isnan(found.low) or math.isnan(found.high):
        return _unmeasured(what, "too few values for an interval" if found.n else "not measured", found)
    reason = _too_many_missing(found)
    outcome: Outcome = ("holds" if low <= found.low and found.high <= high
                        else "fails" if found.high < low or found.low > high else "undecided")
    side = {"holds": "", "fails": "not ", "undecided": "not shown to be "}[outcome]
    asked = (f"at most {_plain(high, unit)}" if low == -math.inf else f"at least {_plain(low, unit)}"
             if high == math.inf else f"within {low:.4g} to {_plain(high, unit)}")
    if not isinstance(value, Interval):
        return Verdict(outcome, _sentence(f"{what}: {_plain(value, unit)}, {side}{asked}"), value,
                       least=low, most=high, unit=unit)
    shown = f"{_plain(found.estimate, unit)} ({_bounds(found)}, n = {found.n})"
    note = _sentence(f"{what}: {shown}, {side}{asked}", reason, _gaps(found))
    return Verdict("undecided" if reason else outcome, note, found.estimate, found.low, found.high, found.n,
                   least=low, most=high, unit=unit)


def close(value: float, expected: float, tolerance: float, what: str = "value", unit: str = "") -> Verdict:
    """Judge an exact result: |value - expected| <= tolerance holds, anything else fails (nan is undecided).

    >>> close(123.7001, 123.70, 0.02, what="adversarial risk of GD").note
    'adversarial risk of GD: 123.7, off the expected 123.7 by 0.0001, tolerance 0.02.'

    Raises:
        UserError: unless tolerance >= 0.
    """
    if not tolerance >= 0:
        raise UserError(f"expected a tolerance of 0 or more, got {tolerance}")
    if math.isnan(value):
        return _unmeasured(what, "not measured", Interval(value, value, value, 0))
    off = abs(value - expected)
    note = _sentence(f"{what}: {value:.6g}{_suffix(unit)}, off the expected {expected:.6g} by {off:.2g}, "
                     f"tolerance {tolerance:.2g}")
    return Verdict("holds" if off <= tolerance else "fails", note, value, least=expected - tolerance,
                   most=expected + tolerance, unit=unit)


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Combine: holds if all hold, fails if any fails, else undecided."""
    return most_of(verdicts, len(verdicts))


def most_of(verdicts: Sequence[Verdict], at_least: int) -> Verdict:
    """Combine: fails if any fails, else holds if `at_least` hold, else undecided."""
    holding, failing = _count(verdicts, "holds"), _count(verdicts, "fails")
    enough = 0 < at_least <= holding
    return _combined(verdicts, "fails" if failing else "holds" if enough else "undecided", at_least)


def at_least_k(verdicts: Sequence[Verdict], k: int) -> Verdict:
    """Combine: holds if k or more hold, fails if so many fail that k cannot be reached, else undecided.

    Each part is judged at 5 %, so with k = 1 of many the false alarms add up: pass them through
    `holm_corrected` first.
    """
    holding, failing = _count(verdicts, "holds"), _count(verdicts, "fails")
    outcome: Outcome = ("holds" if 0 < k <= holding
                        else "fails" if len(verdicts) - failing < k <= len(verdicts) else "undecided")
    return _combined(verdicts, outcome, k)


def shown_by(combined: Verdict, part: Verdict) -> Verdict:
    """Return a combined verdict with the numbers of one of its parts: what it was asked of, and what was found."""
    return replace(combined, effect=part.effect, low=part.low, high=part.high, n=part.n,
                   least=part.least, most=part.most, unit=part.unit)


def holm_corrected(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Replace the p of a family of verdicts by Holm's, and leave undecided what no longer reaches p <= 0.05.

    Verdicts without p (exact results) are not counted and stay as they are.
    """
    adjusted = holm([verdict.p for verdict in verdicts])
    tests = int(np.sum(~np.isnan(adjusted)))

    def corrected(verdict: Verdict, p: float) -> Verdict:
        if math.isnan(p):
            return verdict
        lost = verdict.outcome != "undecided" and p > level()
        note = (f"{verdict.note} Holm over {tests} test{'s' * (tests != 1)}: p = {p:.2g}"
                f"{', so undecided' if lost else ''}.")
        return replace(verdict, outcome="undecided" if lost else verdict.outcome, p=p, note=note,
                       test=f"{verdict.test}, Holm over {tests}", tests=tests)

    return [corrected(verdict, float(p)) for verdict, p in zip(verdicts, adjusted, strict=True)]


def _too_little(found: Interval) -> str:
    """Return why pairs cannot be judged, or nothing."""
    if found.n < 2:
        return f"two complete pairs are needed, there {'is one' if found.n else 'are none'}"
    return _too_many_missing(found)


def _too_many_missing(found: Interval) -> str:
    many = found.missing > MISSING_MOST * (found.n + found.missing)
    return "too many are missing to judge" if many else ""


def _unmeasured(what: str, reason: str, found: Interval) -> Verdict:
    return Verdict("undecided", _sentence(f"{what}: {reason}", _gaps(found)), found.estimate, n=found.n)


def _count(verdicts: Sequence[Verdict], outcome: Outcome) -> int:
    return sum(verdict.outcome == outcome for verdict in verdicts)


def _combined(verdicts: Sequence[Verdict], outcome: Outcome, needed: int) -> Verdict:
    parts = " ".join(f"[{verdict.outcome}] {verdict.note}" for verdict in verdicts) or "nothing to judge."
    note = f"{_count(verdicts, 'holds')} of {len(verdicts)} hold, {needed} needed: {parts}"
    return Verdict(outcome, note, n=min((verdict.n for verdict in verdicts if verdict.n), default=0),
                   parts=tuple(verdicts))


def _sentence(*clauses: str) -> str:
    return "; ".join(clause for clause in clauses if clause) + "."


def _gaps(found: Interval) -> str:
    return f"{found.missing} of {found.n + found.missing} missing" if found.missing else ""


def _bounds(found: Interval, sides: int = 1) -> str:
    """Return an interval's ends; of two one-sided tests it leaves out twice the level."""
    return f"{100 * (1 - sides * level()):.4g} % interval {found.low:+.3g} to {found.high:+.3g}"


def _suffix(unit: str) -> str:
    return f" {unit}" if unit else ""


def _signed(value: float, unit: str) -> str:
    return f"{value:+.3g}{_suffix(unit)}"


def _plain(value: float, unit: str) -> str:
    return f"{value:.4g}{_suffix(unit)}"
