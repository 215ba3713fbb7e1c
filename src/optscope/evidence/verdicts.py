"""Tests that claims are made of: each turns numbers into a verdict with effect, interval, n, p and sentence.

The interval decides and p stands beside it. A difference whose interval holds the margin is undecided, never
"equal": equality has a test of its own. Tests over seeds need two complete pairs, at most one pair in five
missing (seeds that diverge are not missing by chance), and six pairs where all differences are equal (the t
interval then has no width).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from optscope.errors import UserError
from optscope.evidence.claims import Outcome, Verdict
from optscope.evidence.stats import (
    Interval,
    complete_pairs,
    equivalence,
    holm,
    paired_difference,
    seeds_needed,
    sign_flip_p,
    smallest_p,
)

ALPHA = 0.05
MISSING_MOST = 0.2  # the largest share of pairs that may be missing


def greater(a: ArrayLike, b: ArrayLike, margin: float = 0.0, what: str = "difference",
            unit: str = "") -> Verdict:
    """Judge over pairs whether the mean of a - b is above `margin`.

    Holds if its 95 % t interval lies above the margin, fails if it lies below, else undecided. A negative
    margin asks for non-inferiority. `p` is that of the sign-flip test on a - b - margin.

    >>> greater([81.0, 82.5, 80.5], [79.0, 80.0, 79.0], what="accuracy, SGD - Adam", unit="points").note
    'accuracy, SGD - Adam: +2 points (95 % interval +0.758 to +3.24, 3 pairs, sign-flip p = 0.25), above 0
    points; 3 pairs can never reach p < 0.05, it takes 6.'
    """
    first, second, _ = complete_pairs(a, b)
    found = paired_difference(a, b)
    reason = _too_little(found, first, second)
    if found.n < 2:
        return _unmeasured(what, reason, found)
    outcome: Outcome = "holds" if found.low > margin else "fails" if found.high < margin else "undecided"
    side = {"holds": "above", "fails": "below", "undecided": "not told apart from"}[outcome]
    p = sign_flip_p(first - second - margin)
    shown = f"{_bounds(found, 95)}, {found.n} pairs, sign-flip p = {p:.2g}"
    weak = (f"{found.n} pairs can never reach p < {ALPHA}, it takes {seeds_needed(1, ALPHA)}"
            if smallest_p(found.n) > ALPHA else "")
    note = _sentence(f"{what}: {_signed(found.estimate, unit)} ({shown}), {side} {_plain(margin, unit)}",
                     reason, _gaps(found), weak)
    outcome = "undecided" if reason else outcome
    return Verdict(outcome, note, found.estimate, found.low, found.high, found.n, p)


def equivalent(a: ArrayLike, b: ArrayLike, margin: float, what: str = "difference",
               unit: str = "") -> Verdict:
    """Judge over pairs whether the mean of a - b lies within ±margin, a margin fixed before the runs.

    Holds if two one-sided t tests show it (the 90 % interval lies within ±margin), fails if the 95 % interval
    lies outside ±margin, else undecided. `p` is that of the two tests (TOST); of a failure, that of the
    two-sided t test against the nearer margin. `low` and `high` are the 95 % interval.

    >>> equivalent([90.1, 90.4, 89.8, 90.0], [90.0, 90.5, 89.9, 90.1], 1.0, "clean accuracy", "points").note
    'clean accuracy: -0.05 points (90 % interval -0.168 to +0.0677, 4 pairs, TOST p = 0.00016), within ±1
    points.'
    """
    first, second, _ = complete_pairs(a, b)
    tost, wide = equivalence(a, b, margin, ALPHA), paired_difference(a, b)
    reason = _too_little(wide, first, second)
    if wide.n < 2:
        return _unmeasured(what, reason, wide)
    apart = wide.low > margin or wide.high < -margin
    outcome: Outcome = "holds" if tost.equivalent else "fails" if apart else "undecided"
    p = 2 * (1 - tost.p) if apart else tost.p
    side = {"holds": "within", "fails": "outside", "undecided": "neither shown within nor outside"}[outcome]
    shown = f"{_bounds(wide, 95)}, {wide.n} pairs, p = {p:.2g}" if apart else (
        f"{_bounds(tost.interval, 90)}, {wide.n} pairs, TOST p = {p:.2g}")
    note = _sentence(f"{what}: {_signed(wide.estimate, unit)} ({shown}), {side} ±{_plain(margin, unit)}",
                     reason, _gaps(wide))
    return Verdict("undecided" if reason else outcome, note, wide.estimate, wide.low, wide.high, wide.n, p)


def within(value: float | Interval, low: float = -math.inf, high: float = math.inf, what: str = "value",
           unit: str = "") -> Verdict:
    """Judge whether a number, or a whole 95 % interval, lies in [low, high].

    An interval (of a rate, a rank correlation, a median) that lies inside holds, one that lies outside fails,
    one that straddles a bound is undecided. So is nan, a number that was not measured.

    >>> within(0.97, low=0.8, high=1.05, what="error ratio").outcome
    'holds'
    >>> within(Interval(-0.6, -0.85, -0.1, n=12), high=0, what="rank correlation").note
    'rank correlation: -0.6 (95 % interval -0.85 to -0.1, n = 12), at most 0.'
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
        return Verdict(outcome, _sentence(f"{what}: {_plain(value, unit)}, {side}{asked}"), value)
    shown = f"{_plain(found.estimate, unit)} ({_bounds(found, 95)}, n = {found.n})"
    note = _sentence(f"{what}: {shown}, {side}{asked}", reason, _gaps(found))
    return Verdict("undecided" if reason else outcome, note, found.estimate, found.low, found.high, found.n)


def close(value: float, expected: float, tolerance: float, what: str = "value", unit: str = "") -> Verdict:
    """Judge an exact result: |value - expected| <= tolerance holds, anything else fails (nan is undecided).

    >>> close(123.7001, 123.70, 0.02, what="adversarial risk of GD").note
    'adversarial risk of GD: 123.7, off the expected 123.7 by 0.0001, tolerance 0.02.'
    """
    if not tolerance >= 0:
        raise UserError(f"expected a tolerance of 0 or more, got {tolerance}")
    if math.isnan(value):
        return _unmeasured(what, "not measured", Interval(value, value, value, 0))
    off = abs(value - expected)
    note = _sentence(f"{what}: {value:.6g}{_suffix(unit)}, off the expected {expected:.6g} by {off:.2g}, "
                     f"tolerance {tolerance:.2g}")
    return Verdict("holds" if off <= tolerance else "fails", note, value)


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


def holm_corrected(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Replace the p of a family of verdicts by Holm's, and leave undecided what no longer reaches p <= 0.05.

    Verdicts without p (exact results) are not counted and stay as they are.
    """
    adjusted = holm([verdict.p for verdict in verdicts])
    tests = int(np.sum(~np.isnan(adjusted)))

    def corrected(verdict: Verdict, p: float) -> Verdict:
        if math.isnan(p):
            return verdict
        lost = verdict.outcome != "undecided" and p > ALPHA
        note = f"{verdict.note} Holm over {tests} tests: p = {p:.2g}{', so undecided' if lost else ''}."
        return replace(verdict, outcome="undecided" if lost else verdict.outcome, p=p, note=note)

    return [corrected(verdict, float(p)) for verdict, p in zip(verdicts, adjusted, strict=True)]


def _too_little(found: Interval, first: ArrayLike, second: ArrayLike) -> str:
    """Return why pairs cannot be judged, or nothing."""
    if found.n < 2:
        return f"two complete pairs are needed, there {'is one' if found.n else 'are none'}"
    a, b = np.asarray(first), np.asarray(second)
    rounding = 1e-6 * max(np.abs(a).max(), np.abs(b).max())  # of metrics computed in float32
    if np.ptp(a - b) <= rounding and smallest_p(found.n) > ALPHA:
        return f"all differences are equal, which takes {seeds_needed(1, ALPHA)} pairs to judge"
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
    return Verdict(outcome, note, n=min((verdict.n for verdict in verdicts if verdict.n), default=0))


def _sentence(*clauses: str) -> str:
    return "; ".join(clause for clause in clauses if clause) + "."


def _gaps(found: Interval) -> str:
    return f"{found.missing} of {found.n + found.missing} missing" if found.missing else ""


def _bounds(found: Interval, level: int) -> str:
    return f"{level} % interval {found.low:+.3g} to {found.high:+.3g}"


def _suffix(unit: str) -> str:
    return f" {unit}" if unit else ""


def _signed(value: float, unit: str) -> str:
    return f"{value:+.3g}{_suffix(unit)}"


def _plain(value: float, unit: str) -> str:
    return f"{value:.4g}{_suffix(unit)}"
