"""What it would take to decide what is undecided: how many pairs, and how long, by the spread that was found."""

from __future__ import annotations

from math import inf, isnan

from optscope.evidence.claims import Claim, Scale, Verdict
from optscope.evidence.level import at_level
from optscope.evidence.power import MOST, outlook
from optscope.evidence.records import Records, Watched
from optscope.protocol.study import Study
from optscope.report.tables import Table, interval, number

UNMEASURED = "not measured"


def outlooks(study: Study, records: Records) -> Table:
    """Return a row for every undecided part of a claim: what its pairs could show, and what would decide it.

    The hours are those of the runs that the claim read, as often as it takes: of one process, tuning left out.
    """
    seconds = {row.run: row.value for row in records.where(metric="seconds")}
    rows: list[tuple[str, ...]] = []
    for claim in study.claims:
        read: set[str] = set()
        verdict = _tested(study, claim, records, read)
        if verdict.outcome == "undecided":
            spent = sum(seconds.get(run, 0.0) for run in read)
            rows += dict.fromkeys((claim.id, *_row(part, spent, claim.scale)) for part in _open(verdict))
    return Table("What would decide what is undecided",
                 ("claim", "found", "asked", "n", "n shows", "n to decide it", "hours more"), rows,
                 "In four of five cases: how far from its bounds so many pairs (or cells, or cases) show an "
                 "effect, if its spread is as found; and how many would decide the claim, if the effect is, too. "
                 "Hours are of one process.")


def _tested(study: Study, claim: Claim, records: Records, read: set[str]) -> Verdict:
    """Return the verdict of a claim's test, at its last look where it has some, and note the runs that it read."""
    looks = next((found for scale in study.looks if (found := study.looks_at(claim, scale))), None)
    if looks is None or not (taken := looks.taken(records)):
        return claim.test(Watched(records, read))
    verdict = looks.judge(claim, records, "paper")
    with at_level(looks.levels[taken - 1]):
        last = claim.test(Watched(looks.records(records, taken - 1), read))
    return last if verdict is None or verdict.outcome == "undecided" else verdict


def _open(verdict: Verdict) -> list[Verdict]:
    """Return the undecided verdicts that an undecided one is combined of, or itself."""
    parts = [part for each in verdict.parts if each.outcome == "undecided" for part in _open(each)]
    return parts or [verdict]


def _row(verdict: Verdict, seconds: float, scale: Scale) -> tuple[str, ...]:
    found = outlook(verdict)
    if found is None:
        unmeasured = UNMEASURED if scale == "desk" else f"{UNMEASURED}: --scale {scale} does"
        return unmeasured if isnan(verdict.effect) else number(verdict.effect, 3), "", "", "", "", ""
    unit = f" {verdict.unit}" if verdict.unit else ""
    shown = interval(verdict.effect, verdict.low, verdict.high) + unit
    reach = f"{number(found.reach, 2)}{unit}" if found.reach < inf else "nothing"
    if found.pairs is None:
        return shown, _asked(verdict), str(verdict.n), reach, f"more than {MOST}", ""
    more = max(0, found.pairs - verdict.n) / verdict.n * seconds / 3600
    return (shown, _asked(verdict), str(verdict.n), reach,
            f"{found.pairs} ({'holds' if found.holds else 'fails'})", number(more, 2) if seconds else "not known")


def _asked(verdict: Verdict) -> str:
    """Return between which bounds the claim says the effect lies."""
    least, most = (number(bound, 3) for bound in (verdict.least, verdict.most))
    return (f"at most {most}" if verdict.least == -inf else f"at least {least}"
            if verdict.most == inf else f"{least} to {most}")
